//! Snapshots on their way: links that are cut, receivers that stop, senders that change, and what is left behind.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use batched_comm::{Endpoint, Identity};
use rafted_value::{Clock, GroupConfig, Replica, Role, SnapshotLimits, Store, SystemClock, UntypedReplica};

use crate::cluster::{Cluster, Command, GROUP, Journal, PATIENCE, eventually};

const THREE: [&str; 3] = ["n1", "n2", "n3"];
/// Several chunks.
const LARGE: u64 = 3 << 20;

fn config() -> GroupConfig {
    GroupConfig::default().with_snapshot_after_entries(50).unwrap()
}

fn slow(bytes_per_second: u64) -> SnapshotLimits {
    SnapshotLimits::default().with_sent_bytes_per_second(bytes_per_second).unwrap()
}

/// A group with a large value of which one member, the second, has missed so much that it is given a snapshot.
async fn with_a_late_member() -> (Cluster, String, String, Vec<i64>) {
    let mut cluster = Cluster::durable(&THREE, config()).await;
    let leader = cluster.wait_leader().await;
    let late = THREE.iter().find(|name| **name != leader).unwrap().to_string();
    cluster.stop(&late).await;
    cluster.command(&leader, Command::Pad(LARGE)).await.unwrap();
    let live = |cluster: &Cluster, name: &str| cluster.nodes[name].store.log_stats().live_bytes;
    let mut most = std::collections::BTreeMap::new();
    for n in 0..120 {
        cluster.add(&leader, n).await.unwrap();
        for name in cluster.names() {
            let most: &mut u64 = most.entry(name.clone()).or_default();
            *most = live(&cluster, &name).max(*most);
        }
    }
    for name in THREE.iter().filter(|name| **name != late) {
        let built = || cluster.nodes[*name].replica.status().snapshot.is_some_and(|at| at.index > 60);
        eventually("a snapshot", built).await;
        purged(&cluster.nodes[*name].replica, most[*name], || live(&cluster, name)).await;
    }
    let leader = cluster.wait_leader().await;
    (cluster, leader, late, (0..120).collect())
}

/// Waits until the log has let go of entries, of which there were `most` bytes. A leader keeps them while they are on
/// their way to the one that is away, until that has failed.
async fn purged(replica: &UntypedReplica, most: u64, live: impl Fn() -> u64) {
    let deadline = Instant::now() + PATIENCE;
    while live() >= most * 3 / 4 {
        assert!(Instant::now() < deadline, "{} of {most} bytes are live: {:?}", live(), replica.status());
        replica.snapshot().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn files(cluster: &Cluster, name: &str) -> Vec<String> {
    let dir = cluster.dir(name).unwrap().join("snapshots");
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn leaves_nothing_else(cluster: &Cluster) {
    for name in cluster.names() {
        let one = || matches!(&files(cluster, &name)[..], [only] if only.ends_with(".snap"));
        eventually(&format!("one snapshot is left on {name}"), one).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_on_where_its_transfer_broke_off() {
    let (mut cluster, leader, late, expected) = with_a_late_member().await;
    cluster.hub.break_bodies(&[3, 1, 0, 2, 4]);
    cluster.start(&late).await;
    eventually("it arrives", || cluster.local(&late) == expected).await;
    let (bodies, bytes) = (cluster.hub.bodies(&leader, &late), cluster.hub.body_bytes(&leader, &late));
    assert!(bodies >= 6, "{bodies} bodies");
    assert!(bytes < LARGE + LARGE / 2, "{bytes} bytes were sent of {LARGE}");
    leaves_nothing_else(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_cut_in_the_middle_delays_a_snapshot_and_no_command() {
    let (mut cluster, leader, late, mut expected) = with_a_late_member().await;
    cluster.nodes[&leader].store.set_snapshot_limits(&slow(2 << 20));
    let term = cluster.nodes[&leader].replica.status().term;
    let started = Instant::now();
    for n in 120..140 {
        cluster.add(&leader, n).await.unwrap();
    }
    let usual = started.elapsed();
    cluster.start(&late).await;
    eventually("it begins", || cluster.hub.body_bytes(&leader, &late) > LARGE / 4).await;
    cluster.hub.cut(&leader, &late);
    cluster.hub.cut(&late, &leader);
    let sent = cluster.hub.body_bytes(&leader, &late);
    let started = Instant::now();
    for n in 140..160 {
        cluster.add(&leader, n).await.unwrap();
    }
    expected.extend(120..160);
    let took = started.elapsed();
    assert!(took < 10 * usual + Duration::from_secs(1), "commands wait for a snapshot: {took:?}, without it {usual:?}");
    cluster.hub.heal();
    eventually("it arrives", || cluster.local(&late) == expected).await;
    assert!(cluster.hub.body_bytes(&leader, &late) > sent);
    let status = cluster.nodes[&leader].replica.status();
    assert_eq!((status.role, status.term), (Role::Leader, term), "its followers heard it all the time");
    leaves_nothing_else(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_stops_in_the_middle_leaves_no_file_and_gets_all_later() {
    let (mut cluster, leader, late, expected) = with_a_late_member().await;
    cluster.nodes[&leader].store.set_snapshot_limits(&slow(1 << 20));
    for _ in 0..2 {
        cluster.start(&late).await;
        let begun = || files(&cluster, &late).iter().any(|name| name.ends_with(".tmp"));
        eventually("it begins", begun).await;
        cluster.stop(&late).await;
    }
    cluster.nodes[&leader].store.set_snapshot_limits(&SnapshotLimits::default());
    cluster.start(&late).await;
    eventually("it arrives", || cluster.local(&late) == expected).await;
    leaves_nothing_else(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_snapshot_does_not_take_the_file_of_the_one_that_is_being_sent() {
    let (mut cluster, leader, late, mut expected) = with_a_late_member().await;
    cluster.nodes[&leader].store.set_snapshot_limits(&slow(1 << 20));
    cluster.start(&late).await;
    eventually("it begins", || cluster.hub.body_bytes(&leader, &late) > LARGE / 8).await;
    let before = cluster.nodes[&leader].replica.status().snapshot;
    let bodies = cluster.hub.bodies(&leader, &late);
    for n in 120..240 {
        cluster.add(&leader, n).await.unwrap();
        expected.push(n);
    }
    eventually("a newer snapshot", || cluster.nodes[&leader].replica.status().snapshot > before).await;
    assert_eq!(cluster.hub.bodies(&leader, &late), bodies, "the old one is still being sent");
    cluster.nodes[&leader].store.set_snapshot_limits(&SnapshotLimits::default());
    eventually("all arrives", || cluster.local(&late) == expected).await;
    leaves_nothing_else(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_sends_its_own_snapshot_in_place_of_the_old_leaders() {
    let (mut cluster, leader, late, mut expected) = with_a_late_member().await;
    cluster.nodes[&leader].store.set_snapshot_limits(&slow(512 << 10));
    cluster.start(&late).await;
    eventually("it begins", || cluster.hub.body_bytes(&leader, &late) > LARGE / 8).await;
    cluster.hub.isolate(&leader, &THREE);
    let other = THREE.iter().find(|name| **name != leader && **name != late).unwrap();
    // With its log, which is longer than the late one's, and the late one's vote.
    eventually("another leader", || cluster.nodes[*other].replica.status().role == Role::Leader).await;
    cluster.add(other, 120).await.unwrap();
    expected.push(120);
    eventually("it arrives", || cluster.local(&late) == expected).await;
    assert!(cluster.hub.body_bytes(other, &late) > LARGE / 2, "from the new leader");
    cluster.hub.heal();
    eventually("the old leader follows", || cluster.local(&leader) == expected).await;
    leaves_nothing_else(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_state_is_not_written_again_for_every_few_thousand_small_commands() {
    let cluster = Cluster::durable(&["n1"], GroupConfig::default()).await;
    let replica = &cluster.nodes["n1"].replica;
    cluster.command("n1", Command::Pad(LARGE)).await.unwrap();
    replica.snapshot().await;
    let last = || replica.status().snapshot;
    eventually("a snapshot", || last().is_some()).await;
    let mut taken = vec![last()];
    for round in 0..8 {
        let adding = (0..1_000).map(|n| cluster.add("n1", round * 1_000 + n));
        for added in futures_util::future::join_all(adding).await {
            added.unwrap();
            taken.extend(Some(last()).filter(|now| Some(now) != taken.last()));
        }
    }
    assert_eq!(taken.len(), 1, "8,000 commands of a few bytes weigh less than 3 MiB: {taken:?}");
    // The group's bound on entries holds at once.
    let agreed = GroupConfig::default().with_snapshot_after_entries(1_000).unwrap();
    let open = cluster.session.open(SystemClock::default().wall(), PATIENCE).await;
    cluster.client("n1").change_config(GROUP, &agreed, open.id(), PATIENCE).await.unwrap();
    eventually("a snapshot", || last() > taken[0]).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_quic_a_large_snapshot_survives_a_restart_of_the_receivers_network() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Identity::in_memory_ca().unwrap();
    let identities = THREE.map(|name| ca.issue(name).unwrap());
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let (mut endpoints, mut stores, mut replicas) = (Vec::new(), Vec::new(), Vec::new());
    for (name, identity) in THREE.iter().zip(&identities) {
        endpoints.push(Endpoint::bind(local, identity.clone()).await.unwrap());
        stores.push(Store::open(dir.path().join(name), name).await.unwrap());
    }
    let addresses: Vec<_> = THREE.iter().zip(&endpoints).map(|(name, at)| (*name, at.local_address())).collect();
    let builder = || {
        let named = Replica::<Journal>::builder("journal").config(config());
        addresses.iter().fold(named, |builder, (name, address)| builder.member(name, *address))
    };
    for (store, endpoint) in stores.iter().zip(&endpoints) {
        replicas.push(builder().start(store, endpoint).await.unwrap());
    }
    replicas[0].command(Command::Add(0)).await.unwrap();
    let lead = || replicas.iter().position(|replica| replica.status().role == Role::Leader);
    eventually("a leader", || lead().is_some()).await;
    let late = (0..3).rev().find(|&at| Some(at) != lead()).unwrap();
    let keeps = usize::from(late == 0);
    replicas[late].shutdown().await;
    endpoints[late].shutdown().await;
    replicas[keeps].command(Command::Pad(LARGE)).await.unwrap();
    let live = || stores.iter().map(|store| store.log_stats().live_bytes).collect::<Vec<_>>();
    let mut most = live();
    for n in 1..120 {
        replicas[keeps].command(Command::Add(n)).await.unwrap();
        most.iter_mut().zip(live()).for_each(|(most, live)| *most = live.max(*most));
    }
    for at in (0..3).filter(|&at| at != late) {
        purged(replicas[at].untyped(), most[at], || live()[at]).await;
    }
    stores.iter().for_each(|store| store.set_snapshot_limits(&slow(2 << 20)));
    let snapshots = dir.path().join(THREE[late]).join("snapshots");
    let received = || -> u64 {
        let entries = std::fs::read_dir(&snapshots).unwrap().filter_map(Result::ok);
        entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).max().unwrap_or(0)
    };
    let mut parts = vec![0];
    for round in 1..=3 {
        let endpoint = Endpoint::bind(addresses[late].1, identities[late].clone()).await.unwrap();
        let replica = builder().start(&stores[late], &endpoint).await.unwrap();
        if round == 3 {
            stores.iter().for_each(|store| store.set_snapshot_limits(&SnapshotLimits::default()));
            let added = || replica.untyped().read_local(|journal: &Journal, _| journal.added.len()).unwrap();
            eventually("it arrives", || added() == 120).await;
            replica.shutdown().await;
            endpoint.shutdown().await;
            break;
        }
        let before = *parts.last().unwrap();
        eventually("it goes on", || received() > before + LARGE / 8).await;
        replica.shutdown().await;
        endpoint.shutdown().await;
        parts.push(received());
    }
    assert!(parts.is_sorted() && parts[2] > parts[1], "what was received stayed: {parts:?}");
    for (at, replica) in replicas.iter().enumerate().filter(|(at, _)| *at != late) {
        replica.shutdown().await;
        endpoints[at].shutdown().await;
    }
}
