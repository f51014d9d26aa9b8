//! A typed replica over the real transport: three endpoints on loopback, with TLS.

use std::net::SocketAddr;

use batched_comm::{Endpoint, Identity};
use rafted_value::{Replica, Store};

use crate::cluster::{Command, Journal, Query, eventually};

struct Member {
    endpoint: Endpoint,
    store: Store,
    replica: Replica<Journal>,
}

impl Member {
    async fn stop(self) {
        self.replica.shutdown().await;
        self.store.close().await;
        self.endpoint.shutdown().await;
    }
}

/// Starts the members of one group; the addresses are known once all are bound.
async fn group(identities: &[Identity], stores: Vec<Store>) -> Vec<Member> {
    let mut endpoints = Vec::new();
    for identity in identities {
        endpoints.push(Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), identity.clone()).await.unwrap());
    }
    let mut members = Vec::new();
    for (endpoint, store) in endpoints.iter().zip(stores) {
        let mut builder = Replica::<Journal>::builder("journal");
        for other in &endpoints {
            builder = builder.member(other.name().as_str(), other.local_address());
        }
        let replica = builder.start(&store, endpoint).await.unwrap();
        members.push(Member { endpoint: endpoint.clone(), store, replica });
    }
    members
}

fn identities() -> Vec<Identity> {
    let ca = Identity::in_memory_ca().unwrap();
    ["n1", "n2", "n3"].map(|name| ca.issue(name).unwrap()).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_commands_and_reads_over_the_network() {
    let stores = ["n1", "n2", "n3"].map(Store::memory).to_vec();
    let members = group(&identities(), stores).await;
    for (count, member) in (1..).zip(&members) {
        assert_eq!(member.replica.command(Command::Add(count)).await.unwrap(), count as u64);
        for reader in &members {
            assert_eq!(reader.replica.query(Query::All).await.unwrap(), (1..=count).collect::<Vec<_>>());
        }
    }
    for member in members {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_was_lost_joins_again_and_gets_everything() {
    let dir = tempfile::tempdir().unwrap();
    let identities = identities();
    let open = |name: &'static str| Store::open(dir.path().join(name), name);
    let stores = vec![open("n1").await.unwrap(), open("n2").await.unwrap(), open("n3").await.unwrap()];
    let mut members = group(&identities, stores).await;
    // More than a small snapshot, so that it travels by the second connection.
    members[0].replica.command(Command::Pad(200_000)).await.unwrap();
    for n in 0..20 {
        members[1].replica.command(Command::Add(n)).await.unwrap();
    }
    let addresses: Vec<_> =
        members.iter().map(|m| (m.endpoint.name().as_str().to_owned(), m.endpoint.local_address())).collect();
    // The first member is the one that forms a group: without its disk it must not form another.
    let lost = members.remove(0);
    let address = lost.endpoint.local_address();
    lost.stop().await;
    std::fs::remove_dir_all(dir.path().join("n1")).unwrap();
    for member in &members {
        member.replica.untyped().snapshot().await;
    }
    let endpoint = Endpoint::bind(address, identities[0].clone()).await.unwrap();
    let store = open("n1").await.unwrap();
    let mut builder = Replica::<Journal>::builder("journal");
    for (name, address) in &addresses {
        builder = builder.member(name, *address);
    }
    let replica = builder.start(&store, &endpoint).await.unwrap();
    let expected: Vec<i64> = (0..20).collect();
    let local = || replica.untyped().read_local(|journal: &Journal, _| journal.added.clone()).unwrap();
    eventually("it has everything", || local() == expected).await;
    assert_eq!(replica.query_any_member(Query::All).await.unwrap(), expected);
    eventually("it votes", || {
        let status = replica.status();
        status.members.is_voter(status.replica) && status.members.replicas.len() == 3
    })
    .await;
    assert_eq!(replica.query(Query::All).await.unwrap(), expected);
    Member { endpoint, store, replica }.stop().await;
    for member in members {
        member.stop().await;
    }
}
