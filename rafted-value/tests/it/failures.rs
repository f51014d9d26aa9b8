//! How many members may fail: a minority, and what happens beyond.

use std::time::Duration;

use rafted_value::{Clock, CommandError, Role, SystemClock, encode_command};

use crate::cluster::{Cluster, Command, GROUP, Journal, PATIENCE, eventually};

const NAMES: [&str; 7] = ["n1", "n2", "n3", "n4", "n5", "n6", "n7"];

/// A command whose outcome is awaited for a short time only.
async fn add_briefly(cluster: &Cluster, here: &str, n: i64) -> Result<(), CommandError> {
    let open = cluster.session.open(SystemClock::default().wall(), PATIENCE).await;
    let bytes = encode_command::<Journal>(&Command::Add(n), Some(open.id()), 0).unwrap();
    cluster.client(here).command(GROUP, bytes, Duration::from_millis(600)).await.map(drop)
}

async fn tolerates(count: usize, failures: usize) {
    let names = &NAMES[..count];
    let cluster = Cluster::memory(names).await;
    cluster.add("n1", 0).await.unwrap();
    // The leader is among those that fail first.
    let leader = cluster.wait_leader().await;
    let mut order: Vec<&str> = names.to_vec();
    order.sort_by_key(|name| *name != leader);
    let (failing, rest) = order.split_at(failures);
    failing.iter().for_each(|name| cluster.hub.isolate(name, names));
    cluster.add(rest[0], 1).await.unwrap();
    assert_eq!(cluster.all(rest[1]).await.unwrap(), [0, 1], "{count} members without {failures}");
    let leads = || rest.iter().find(|name| cluster.nodes[**name].replica.status().role == Role::Leader);
    eventually("one of the rest leads", || leads().is_some()).await;
    let leader = *leads().unwrap();
    let one_more = rest.iter().find(|name| **name != leader).unwrap();
    cluster.hub.isolate(one_more, names);
    // Whether it was written down before nobody answered any more is not known.
    let lost = add_briefly(&cluster, leader, 2).await.unwrap_err();
    assert!(matches!(lost, CommandError::Unknown(_) | CommandError::NotHappened(_)), "{lost}");
    eventually("the leader steps down", || cluster.nodes[leader].replica.status().role != Role::Leader).await;
    let status = cluster.nodes[leader].replica.status();
    assert_eq!(status.leader, None, "nor does it name itself");
    let refused = add_briefly(&cluster, leader, 3).await.unwrap_err();
    // Who asks for it by its name gets an old answer from whoever is there, at once and without a majority.
    for name in [leader, one_more] {
        let answer = cluster.any(name).await.unwrap();
        assert!(answer.starts_with(&[0, 1]), "{name} without a majority: {answer:?}");
    }
    cluster.hub.heal();
    cluster.add(leader, 4).await.unwrap();
    let all = cluster.all(one_more).await.unwrap();
    assert!(all.starts_with(&[0, 1]) && all.ends_with(&[4]), "service resumes and nothing is lost: {all:?}");
    for (n, error) in [(2, lost), (3, refused)] {
        assert!(error.is_unknown() || !all.contains(&n), "{n} has run, and its caller was told: {error}");
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_tolerate_one_failure() {
    tolerates(3, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_members_tolerate_one_failure() {
    tolerates(4, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_members_tolerate_two_failures() {
    tolerates(5, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_members_tolerate_two_failures() {
    tolerates(6, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_members_tolerate_three_failures() {
    tolerates(7, 3).await;
}
