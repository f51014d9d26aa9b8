//! One group over several nodes: commands, queries, members, failures, restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rafted_value::{
    Clock, CommandError, GroupConfig, Inspection, LogTime, MembersError, ProposeError, Role, SystemClock,
    encode_command,
};

use crate::cluster::{Cluster, Command, GROUP, Journal, PATIENCE, eventually};

const THREE: [&str; 3] = ["n1", "n2", "n3"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_answers_at_once() {
    let cluster = Cluster::memory(&["n1"]).await;
    assert_eq!(cluster.add("n1", 5).await.unwrap(), 1);
    assert_eq!(cluster.all("n1").await.unwrap(), [5]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_queries_from_any_member_reach_the_leader() {
    let cluster = Cluster::memory(&THREE).await;
    for (count, name) in (1..).zip(THREE) {
        assert_eq!(cluster.add(name, count).await.unwrap(), count as u64);
        for reader in THREE {
            assert_eq!(cluster.all(reader).await.unwrap().len() as i64, count, "read at {reader}");
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_command_id_runs_once_on_every_replica() {
    let cluster = Cluster::memory(&THREE).await;
    let open = cluster.session.open(SystemClock::default().wall(), PATIENCE).await;
    let bytes = encode_command::<Journal>(&Command::Add(7), Some(open.id()), 0).unwrap();
    let client = cluster.client("n2");
    let first = client.command(GROUP, bytes.clone(), PATIENCE).await.unwrap();
    for n in 0..150 {
        cluster.add("n1", n).await.unwrap();
    }
    let again = client.command(GROUP, bytes, PATIENCE).await.unwrap();
    assert_eq!(first, again, "the first reply, 150 commands later");
    let sevens = cluster.all("n3").await.unwrap().iter().filter(|&&n| n == 7).count();
    assert_eq!(sevens, 2, "one by the id, one of the 150");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_past_its_time_is_unknown_and_does_not_run() {
    let cluster = Cluster::memory(&["n1"]).await;
    cluster.add("n1", 1).await.unwrap();
    let open = cluster.session.open(LogTime::from_millis(1), Duration::ZERO).await;
    let bytes = encode_command::<Journal>(&Command::Add(2), Some(open.id()), 0).unwrap();
    let error = cluster.client("n1").command(GROUP, bytes, PATIENCE).await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
    assert_eq!(cluster.all("n1").await.unwrap(), [1]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::memory(&THREE).await;
    for n in 0..20 {
        cluster.add("n1", n).await.unwrap();
    }
    let leader = cluster.wait_leader().await;
    cluster.stop(&leader).await;
    let other = cluster.names()[0].clone();
    cluster.add(&other, 20).await.unwrap();
    assert_eq!(cluster.all(&other).await.unwrap(), (0..=20).collect::<Vec<_>>());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_leader_behind_a_partition_answers_no_query_and_no_command() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let old = cluster.wait_leader().await;
    cluster.hub.isolate(&old, &THREE);
    let other = THREE.iter().find(|name| **name != old).unwrap();
    cluster.add(other, 2).await.unwrap();
    let replica = &cluster.nodes[&old].replica;
    let query = rafted_value::encode_query::<Journal>(&crate::cluster::Query::All).unwrap();
    assert!(replica.read(query, Duration::from_millis(500)).await.is_err(), "a stale read");
    let command = encode_command::<Journal>(&Command::Add(99), None, 0).unwrap();
    let refused = replica.propose(command, Duration::from_millis(500)).await.unwrap_err();
    let unknown = matches!(&refused, ProposeError::Command(error) if error.is_unknown());
    assert!(unknown || matches!(refused, ProposeError::NotLeader { .. }), "{refused:?}");
    assert_eq!(cluster.any(&old).await.unwrap(), [1], "old, as its caller has said that it may be");
    cluster.hub.heal();
    eventually("the old leader follows", || cluster.local(&old) == [1, 2]).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_a_command_is_never_reported_as_done() {
    let mut cluster = Cluster::durable(&THREE, GroupConfig::default()).await;
    cluster.add("n1", 1).await.unwrap();
    let leader = cluster.wait_leader().await;
    let others: Vec<_> = cluster.names().into_iter().filter(|name| *name != leader).collect();
    for name in &others {
        cluster.stop(name).await;
    }
    let open = cluster.session.open(SystemClock::default().wall(), PATIENCE).await;
    let bytes = encode_command::<Journal>(&Command::Add(2), Some(open.id()), 0).unwrap();
    let timeout = Duration::from_millis(600);
    let error = cluster.client(&leader).command(GROUP, bytes, timeout).await.unwrap_err();
    assert!(matches!(error, CommandError::Unknown(_) | CommandError::NotHappened(_)), "{error}");
    for name in &others {
        cluster.start(name).await;
    }
    cluster.add(&leader, 3).await.unwrap();
    let all = cluster.all(&leader).await.unwrap();
    assert!(error.is_unknown() || all == [1, 3], "{all:?}, and the caller of 2 was told: {error}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_answered_on_every_replica_and_the_group_goes_on() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let error = cluster.command("n2", Command::Panic).await.unwrap_err();
    assert!(matches!(&error, CommandError::Failed(message) if message.contains("as asked")), "{error}");
    assert_eq!(cluster.add("n3", 2).await.unwrap(), 2);
    for name in THREE {
        eventually("every replica lives", || cluster.local(name) == [1, 2]).await;
        assert_ne!(cluster.nodes[name].replica.status().role, Role::Stopped);
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_added_promoted_and_removed_by_compare_and_set() {
    let mut cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    cluster.start("n4").await;
    let leader = cluster.wait_leader().await;
    let (id, member) = (cluster.nodes["n4"].replica.spec().replica, cluster.member("n4"));
    let replica = cluster.nodes[&leader].replica.clone();
    let before = replica.status().members;
    let stale = replica.add_learner(id, member.clone(), None).await.unwrap_err();
    assert!(matches!(stale, MembersError::Changed { .. }), "{stale}");
    replica.add_learner(id, member, before.position).await.unwrap();
    eventually("the learner catches up", || cluster.local("n4") == [1]).await;
    let removed = THREE.iter().find(|name| **name != leader).unwrap();
    let mut voters: BTreeSet<_> = before.voter_ids();
    voters.remove(&cluster.nodes[*removed].replica.spec().replica);
    voters.insert(id);
    replica.change_voters(voters.clone(), replica.status().members.position, 3).await.unwrap();
    assert_eq!(replica.status().members.voter_ids(), voters);
    assert_eq!(replica.status().members.replicas.len(), 3, "the removed voter has left");
    cluster.add("n4", 2).await.unwrap();
    eventually("the new member applies", || cluster.local("n4") == [1, 2]).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_replaced_on_request() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let old = cluster.wait_leader().await;
    let target = THREE.iter().find(|name| **name != old).unwrap();
    let id = cluster.nodes[*target].replica.spec().replica;
    cluster.nodes[&old].replica.transfer_leader(id).await.unwrap();
    eventually("it leads", || cluster.nodes[*target].replica.status().role == Role::Leader).await;
    cluster.add(&old, 2).await.unwrap();
    cluster.shutdown().await;
}

fn small_snapshots() -> GroupConfig {
    GroupConfig::default().with_snapshot_after_entries(50).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_every_node_keeps_all_that_was_acknowledged() {
    let mut cluster = Cluster::durable(&THREE, small_snapshots()).await;
    let (mut expected, mut snapshots) = (Vec::new(), BTreeMap::new());
    for round in 0..3 {
        for n in 0..70 {
            cluster.add("n1", round * 100 + n).await.unwrap();
            expected.push(round * 100 + n);
        }
        // A replica of the log alone would pass, too: it is to begin with a snapshot, and the entries behind it.
        for name in THREE {
            let before = snapshots.get(name).copied().flatten();
            let taken = || cluster.nodes[name].replica.status().snapshot;
            eventually("a snapshot of this round", || taken() > before).await;
            snapshots.insert(name, taken());
        }
        for name in THREE {
            cluster.stop(name).await;
            let inspection = Inspection::open(cluster.dir(name).unwrap()).unwrap();
            let first = inspection.replicas()[0].first_index;
            assert!(first.is_none_or(|first| first > 0), "the log of {name} still begins with entry 0");
        }
        for name in THREE {
            cluster.start(name).await;
        }
        assert_eq!(cluster.all("n2").await.unwrap(), expected, "after restart {round}");
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_missed_much_is_given_a_snapshot() {
    for bytes in [100, 300_000] {
        let mut cluster = Cluster::durable(&THREE, small_snapshots()).await;
        let leader = cluster.wait_leader().await;
        let late = THREE.iter().find(|name| **name != leader).unwrap();
        cluster.stop(late).await;
        cluster.command(&leader, Command::Pad(bytes)).await.unwrap();
        for n in 0..200 {
            cluster.add(&leader, n).await.unwrap();
        }
        let purged = || cluster.nodes[&leader].replica.status().snapshot.is_some_and(|at| at.index > 100);
        eventually("a snapshot", purged).await;
        cluster.start(late).await;
        let expected: Vec<i64> = (0..200).collect();
        eventually("the snapshot arrives", || cluster.local(late) == expected).await;
        // Also what it keeps of sessions is the same: it leads, and a repetition runs once.
        cluster.stop(late).await;
        cluster.start(late).await;
        eventually("it restarts from the snapshot", || cluster.local(late) == expected).await;
        cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_waits_for_the_sync_of_a_majority() {
    let cluster = Cluster::durable(&THREE, GroupConfig::default()).await;
    cluster.add("n1", 0).await.unwrap();
    let syncs = || -> Vec<u64> { cluster.nodes.values().map(|node| node.store.log_stats().syncs).collect() };
    for n in 1..=20 {
        let before = syncs();
        cluster.add("n1", n).await.unwrap();
        let synced = syncs().iter().zip(&before).filter(|(now, before)| now > before).count();
        assert!(synced >= 2, "command {n} was acknowledged after the sync of {synced} of 3");
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_over_the_limit_is_refused_before_it_is_logged() {
    let config = GroupConfig::default().with_max_command_bytes(64).unwrap();
    let cluster = Cluster::durable(&["n1"], config).await;
    cluster.add("n1", 1).await.unwrap();
    let before = cluster.nodes["n1"].replica.status().last_log_index;
    let long = bytes::Bytes::from(vec![0; 1000]);
    let error = cluster.client("n1").command(GROUP, long, PATIENCE).await.unwrap_err();
    assert!(matches!(error, CommandError::NotHappened(_)), "{error}");
    assert_eq!(cluster.nodes["n1"].replica.status().last_log_index, before);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_leader_does_not_lead_its_old_term_again() {
    // What it had sent and not yet synced, others may have synced: it must not write those indexes again.
    let mut cluster = Cluster::durable(&["n1"], GroupConfig::default()).await;
    for n in 0..5 {
        cluster.add("n1", n).await.unwrap();
        let before = cluster.nodes["n1"].replica.status().term;
        cluster.stop("n1").await;
        cluster.start("n1").await;
        cluster.add("n1", n).await.unwrap();
        let after = cluster.nodes["n1"].replica.status().term;
        assert!(after > before, "it led term {before} before the restart and {after} after it");
    }
    cluster.shutdown().await;
}
