//! A typed replica over the real transport: three endpoints on loopback, with TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use batched_comm::{Endpoint, Identity};
use rafted_value::{
    ClusterTag, GroupClient, QuicTransport, Replica, Route, StartError, Store, UntypedReplica, decode_answer,
    decode_reply, encode_command, encode_query,
};

use crate::cluster::{Command, Journal, PATIENCE, Query, eventually};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_member_answers_old_only_to_who_asks_for_it() {
    let stores = ["n1", "n2", "n3"].map(Store::memory).to_vec();
    let mut members = group(&identities(), stores).await;
    members[0].replica.command(Command::Add(1)).await.unwrap();
    let last = members.pop().unwrap();
    let local = || last.replica.untyped().read_local(|journal: &Journal, _| journal.added.clone()).unwrap();
    eventually("it has all", || local() == [1]).await;
    for member in members {
        member.stop().await;
    }
    let refused = last.replica.query(Query::All).timeout(Duration::from_millis(500)).await;
    assert!(refused.is_err(), "without a majority: {refused:?}");
    assert_eq!(last.replica.query_any_member(Query::All).await.unwrap(), [1]);
    last.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_dropped_stops_and_can_be_started_again() {
    let identities = &identities()[..1];
    let mut members = group(identities, vec![Store::memory("n1")]).await;
    let Member { endpoint, store, replica } = members.pop().unwrap();
    replica.command(Command::Add(1)).await.unwrap();
    drop(replica);
    let deadline = Instant::now() + PATIENCE;
    let replica = loop {
        let builder = Replica::<Journal>::builder("journal").member("n1", endpoint.local_address());
        match builder.start(&store, &endpoint).await {
            // Until all that belonged to it has ended.
            Err(StartError::Running { .. } | StartError::Invalid(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            started => break started.unwrap(),
        }
    };
    assert_eq!(replica.query(Query::All).timeout(PATIENCE).await.unwrap(), [1]);
    Member { endpoint, store, replica }.stop().await;
}

/// Of a client that is no member.
struct FromOutside {
    name: String,
    nodes: Vec<String>,
    identity: (ClusterTag, u64),
    leader: Mutex<Option<String>>,
}

impl Route for FromOutside {
    fn here(&self) -> &str {
        &self.name
    }
    fn local(&self, _: &str) -> Option<UntypedReplica> {
        None
    }
    fn nodes(&self, _: &str) -> Vec<String> {
        self.nodes.clone()
    }
    fn identity(&self, _: &str) -> Option<(ClusterTag, u64)> {
        Some(self.identity)
    }
    fn leader(&self, _: &str) -> Option<String> {
        self.leader.lock().unwrap().clone()
    }
    fn set_leader(&self, _: &str, node: Option<&str>) {
        *self.leader.lock().unwrap() = node.map(str::to_owned);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_no_member_commands_and_reads() {
    let ca = Identity::in_memory_ca().unwrap();
    let identities = ["n1", "n2", "n3"].map(|name| ca.issue(name).unwrap()).to_vec();
    let members = group(&identities, ["n1", "n2", "n3"].map(Store::memory).to_vec()).await;
    members[0].replica.command(Command::Add(1)).await.unwrap();
    let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), ca.issue("client").unwrap()).await.unwrap();
    for member in &members {
        endpoint.set_peer(member.endpoint.name(), vec![member.endpoint.local_address()]);
    }
    let spec = members[0].replica.untyped().spec();
    let route = FromOutside {
        name: "client".into(),
        nodes: ["n1", "n2", "n3"].map(str::to_owned).to_vec(),
        identity: (spec.cluster, spec.incarnation),
        leader: Mutex::new(None),
    };
    let transport = QuicTransport::to_group(endpoint.clone(), "journal");
    let client = GroupClient::new(Arc::new(route), Arc::new(transport));
    let command = encode_command::<Journal>(&Command::Add(2), None, 0).unwrap();
    let reply = client.command("journal", command, PATIENCE).await.unwrap();
    assert_eq!(decode_reply::<Journal>(&reply).unwrap(), 2);
    let answer = client.query("journal", encode_query::<Journal>(&Query::All).unwrap(), PATIENCE).await.unwrap();
    assert_eq!(decode_answer::<Journal>(&answer).unwrap(), [1, 2]);
    endpoint.shutdown().await;
    for member in members {
        member.stop().await;
    }
}
