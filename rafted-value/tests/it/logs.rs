//! What stands in the members' logs and snapshots: the same everywhere, once, and no more than is needed.

use std::path::Path;

use rafted_value::{GroupConfig, Inspection, LogPosition, RecordContent, encode_command};

use crate::cluster::{Cluster, Command, Journal, PATIENCE, eventually};

const THREE: [&str; 3] = ["n1", "n2", "n3"];

/// The entries in a directory that are needed, each with its length, and the positions of those that are not.
fn logged(dir: &Path) -> (Vec<(LogPosition, u64)>, Vec<LogPosition>) {
    let inspection = Inspection::open(dir).unwrap();
    let (mut live, mut dead) = (Vec::new(), Vec::new());
    for replica in inspection.replicas() {
        let visit = |record: rafted_value::InspectedRecord| match record.content {
            RecordContent::Entry { position, payload_bytes, .. } if record.is_live => {
                live.push((position, payload_bytes));
            }
            RecordContent::Entry { position, .. } => dead.push(position),
            _ => {}
        };
        inspection.records(replica.replica, visit).unwrap();
    }
    (live, dead)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_wrote_that_was_cut_off_vanishes_from_its_log() {
    let mut cluster = Cluster::durable(&THREE, GroupConfig::default()).await;
    cluster.add("n1", 1).await.unwrap();
    let old = cluster.wait_leader().await;
    let term = cluster.nodes[&old].replica.status().term;
    let others: Vec<&str> = THREE.into_iter().filter(|name| *name != old).collect();
    let replica = cluster.nodes[&old].replica.clone();
    cluster.all(&old).await.unwrap();
    let before = *replica.applied().borrow() - 1;
    cluster.hub.isolate(&old, &THREE);
    let propose = |n| {
        let (replica, command) = (replica.clone(), encode_command::<Journal>(&Command::Add(n), None, 0).unwrap());
        async move { replica.propose(command, PATIENCE).await }
    };
    let cut_off: Vec<_> = (100..105).map(|n| tokio::spawn(propose(n))).collect();
    eventually("they are in its log", || replica.status().last_log_index == Some(before + 5)).await;
    // Fewer, so that some of its entries have others in their places and some have none.
    cluster.add(others[0], 2).await.unwrap();
    cluster.add(others[1], 3).await.unwrap();
    cluster.hub.heal();
    for outcome in cut_off {
        assert!(outcome.await.unwrap().is_err(), "none of them was acknowledged");
    }
    cluster.add(others[0], 4).await.unwrap();
    for name in THREE {
        eventually("all have the same", || cluster.local(name) == [1, 2, 3, 4]).await;
    }
    let last = cluster.nodes[others[0]].replica.status().last_log_index;
    let ends = |cluster: &Cluster, name: &str| cluster.nodes[name].replica.status().last_log_index;
    for name in THREE {
        eventually("and no more", || ends(&cluster, name) == last).await;
        cluster.stop(name).await;
    }
    let logs = THREE.map(|name| logged(&cluster.dir(name).unwrap()));
    let (live, _) = &logs[0];
    assert_eq!(live.len() as u64, last.unwrap() + 1);
    assert!(live.iter().enumerate().all(|(at, (position, _))| position.index == at as u64), "{live:?}");
    assert!(logs.iter().all(|(other, _)| other == live), "{logs:?}");
    let (_, dead) = &logs[THREE.iter().position(|name| *name == old).unwrap()];
    let cut_off: Vec<_> = (1..=5).map(|after| LogPosition { term, index: before + after }).collect();
    assert_eq!(*dead, cut_off, "what it wrote alone was there, and is not needed any more");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_writes_each_entry_once() {
    let mut cluster = Cluster::durable(&THREE, GroupConfig::default()).await;
    // One above the last index.
    let ends =
        |cluster: &Cluster, name: &str| cluster.nodes[name].replica.status().last_log_index.map_or(0, |last| last + 1);
    let written = |cluster: &Cluster, name: &str| cluster.nodes[name].store.log_stats().entries;
    for n in 0..100 {
        cluster.add("n2", n).await.unwrap();
    }
    let leader = cluster.wait_leader().await;
    for name in THREE {
        eventually("it has all", || ends(&cluster, name) == ends(&cluster, &leader)).await;
        assert_eq!(written(&cluster, name), ends(&cluster, name), "{name}");
    }
    // One that was away writes what it missed.
    let late = THREE.into_iter().find(|name| *name != leader).unwrap();
    let had = ends(&cluster, late);
    cluster.stop(late).await;
    for n in 0..100 {
        cluster.add(&leader, n).await.unwrap();
    }
    cluster.start(late).await;
    eventually("it has all", || ends(&cluster, late) == ends(&cluster, &leader)).await;
    assert_eq!(written(&cluster, late), ends(&cluster, late) - had);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_in_memory_and_on_disk_give_each_other_snapshots() {
    // One that fits into the log, and one that is a file of its own where there are files.
    for bytes in [100, 300_000] {
        for without_disk in [&["n1", "n2"][..], &["n3"]] {
            let config = GroupConfig::default().with_snapshot_after_entries(50).unwrap();
            let mut cluster = Cluster::mixed(&["n1", "n2"], without_disk, config).await;
            cluster.command("n1", Command::Pad(bytes)).await.unwrap();
            let expected: Vec<i64> = (0..200).collect();
            for n in &expected {
                cluster.add("n1", *n).await.unwrap();
            }
            let leader = cluster.wait_leader().await;
            let replica = cluster.nodes[&leader].replica.clone();
            eventually("a snapshot", || replica.status().snapshot.is_some_and(|at| at.index > 100)).await;
            cluster.start("n3").await;
            let (id, member) = (cluster.nodes["n3"].replica.spec().replica, cluster.member("n3"));
            replica.add_learner(id, member, replica.status().members.position).await.unwrap();
            eventually("it has all", || cluster.local("n3") == expected).await;
            let installed = cluster.nodes["n3"].replica.status().snapshot;
            assert!(installed.is_some_and(|at| at.index > 100), "{installed:?}");
            let written = cluster.nodes["n3"].store.log_stats().entries;
            assert!(written < 150, "{written} entries beside the snapshot");
            cluster.shutdown().await;
        }
    }
}
