//! Settings that a group agrees on hold on every member, over those with which it was started.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rafted_value::{
    Clock, CommandError, GroupConfig, NotHappened, ProposeError, Role, Status, SystemClock, encode_command,
    encode_config_change,
};

use crate::cluster::{Cluster, Command, GROUP, Journal, PATIENCE, eventually};
use crate::site::Site;

const THREE: [&str; 3] = ["n1", "n2", "n3"];

fn other() -> GroupConfig {
    let ms = Duration::from_millis;
    let config = GroupConfig::default().with_max_command_bytes(2_000).unwrap();
    config.with_timing(ms(60), ms(200), ms(400)).unwrap()
}

async fn change(cluster: &Cluster, through: &str, config: &GroupConfig) -> Result<(), CommandError> {
    let open = cluster.session.open(SystemClock::default().wall(), PATIENCE).await;
    cluster.client(through).change_config(GROUP, config, open.id(), PATIENCE).await
}

fn status(cluster: &Cluster, name: &str) -> Status {
    cluster.nodes[name].replica.status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_through_any_member_reaches_all() {
    let mut site = Site::memory();
    site.grow(&["n2", "n3"]).await;
    assert_eq!(site.replica("n1").status().config, GroupConfig::default());
    for (name, bytes) in [("n3", 900), ("n1", 800), ("n2", 700)] {
        let config = GroupConfig::default().with_max_command_bytes(bytes).unwrap();
        site.replica(name).change_config(config.clone()).timeout(PATIENCE).await.unwrap();
        for member in THREE {
            eventually("it has them", || site.replica(member).status().config == config).await;
            assert!(!site.replica(member).status().config_awaits_restart, "these hold at once");
        }
    }
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_outlive_restarts_and_snapshots_and_timing_holds_from_the_next_start_on() {
    let started_with = GroupConfig::default().with_snapshot_after_entries(50).unwrap();
    let mut cluster = Cluster::durable(&THREE, started_with).await;
    cluster.add("n1", 0).await.unwrap();
    let agreed = other().with_snapshot_after_entries(40).unwrap();
    change(&cluster, "n2", &agreed).await.unwrap();
    for name in THREE {
        eventually("it has them", || status(&cluster, name).config == agreed).await;
        assert!(status(&cluster, name).config_awaits_restart, "its core runs with another timing");
    }
    // From the log, then from a snapshot, then from a snapshot that was made of a snapshot.
    for round in 1..=3 {
        for name in THREE {
            cluster.stop(name).await;
        }
        for name in THREE {
            cluster.start(name).await;
        }
        cluster.add("n1", round).await.unwrap();
        for name in THREE {
            eventually("it has them again", || status(&cluster, name).config == agreed).await;
            assert!(!status(&cluster, name).config_awaits_restart, "round {round}");
        }
        let before = status(&cluster, "n2").snapshot;
        for n in 0..60 {
            cluster.add("n1", n).await.unwrap();
        }
        eventually("a snapshot", || status(&cluster, "n2").snapshot > before).await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_joins_late_has_them_from_the_log_or_from_a_snapshot() {
    for commands in [1, 200] {
        let started_with = GroupConfig::default().with_snapshot_after_entries(50).unwrap();
        let agreed = other().with_snapshot_after_entries(50).unwrap();
        let mut cluster = Cluster::durable(&THREE, started_with).await;
        change(&cluster, "n3", &agreed).await.unwrap();
        for n in 0..commands {
            cluster.add("n1", n).await.unwrap();
        }
        let leader = cluster.wait_leader().await;
        if commands > 100 {
            eventually("the log begins later", || status(&cluster, &leader).snapshot.is_some()).await;
        }
        cluster.start("n4").await;
        assert_ne!(status(&cluster, "n4").config, agreed);
        let (id, member) = (cluster.nodes["n4"].replica.spec().replica, cluster.member("n4"));
        let position = status(&cluster, &leader).members.position;
        cluster.nodes[&leader].replica.add_learner(id, member, position).await.unwrap();
        eventually("it has them", || status(&cluster, "n4").config == agreed).await;
        cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_over_the_agreed_bound_is_refused_by_every_member_until_it_is_raised() {
    let cluster = Cluster::memory(&THREE).await;
    let command = encode_command::<Journal>(&Command::Add(1), None, 0).unwrap();
    change(&cluster, "n1", &GroupConfig::default().with_max_command_bytes(1).unwrap()).await.unwrap();
    for name in THREE {
        eventually("it has them", || status(&cluster, name).config.max_command_bytes() == 1).await;
        let too_large = cluster.client(name).command(GROUP, command.clone(), PATIENCE).await.unwrap_err();
        assert!(
            matches!(too_large, CommandError::NotHappened(NotHappened::TooLarge { max_bytes: 1, .. })),
            "{too_large}"
        );
        // Also by itself, whether it leads or not.
        let too_large = cluster.nodes[name].replica.propose(command.clone(), PATIENCE).await.unwrap_err();
        assert!(
            matches!(too_large, ProposeError::Command(CommandError::NotHappened(NotHappened::TooLarge { .. }))),
            "{too_large:?}"
        );
    }
    // The settings themselves are larger than that.
    change(&cluster, "n2", &GroupConfig::default()).await.unwrap();
    cluster.client("n3").command(GROUP, command, PATIENCE).await.unwrap();
    let more = 2 * GroupConfig::default().max_command_bytes();
    change(&cluster, "n2", &GroupConfig::default().with_max_command_bytes(more).unwrap()).await.unwrap();
    let large =
        Bytes::from([&encode_command::<Journal>(&Command::Add(1), None, 0).unwrap()[..64], &vec![0xA5; more]].concat());
    for name in THREE {
        eventually("it has them", || status(&cluster, name).config.max_command_bytes() == more).await;
        let unread = cluster.client(name).command(GROUP, large.clone(), PATIENCE).await.unwrap_err();
        assert!(
            matches!(unread, CommandError::NotHappened(NotHappened::Malformed(_))),
            "it was not too large: {unread}"
        );
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agreed_number_of_commands_waits_at_a_leader_and_no_more() {
    let cluster = Cluster::memory(&THREE).await;
    change(&cluster, "n1", &GroupConfig::default().with_max_queued_commands(2).unwrap()).await.unwrap();
    let leader = cluster.wait_leader().await;
    cluster.hub.isolate(&leader, &THREE);
    let command = encode_command::<Journal>(&Command::Add(1), None, 0).unwrap();
    let propose = || cluster.nodes[&leader].replica.propose(command.clone(), Duration::from_millis(300));
    let (first, second, third) = tokio::join!(propose(), propose(), propose());
    let overloaded = CommandError::NotHappened(NotHappened::Overloaded { group: GROUP.into(), queued: 2 });
    let overloaded = Err(ProposeError::Command(overloaded));
    let refused = [first, second, third].iter().filter(|outcome| **outcome == overloaded).count();
    assert_eq!(refused, 1);
    // The room comes back with the replies.
    cluster.hub.heal();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = cluster.add(&leader, 2).await {
        let is_full = matches!(error, CommandError::NotHappened(NotHappened::Overloaded { .. }));
        assert!(is_full && Instant::now() < deadline, "{error}");
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_arrives_twice_is_made_once() {
    let cluster = Cluster::memory(&["n1"]).await;
    let first = cluster.session.open(SystemClock::default().wall(), PATIENCE).await;
    let bytes = encode_config_change(&other(), first.id());
    let client = cluster.client("n1");
    client.command(GROUP, bytes.clone(), PATIENCE).await.unwrap();
    change(&cluster, "n1", &GroupConfig::default()).await.unwrap();
    client.command(GROUP, bytes, PATIENCE).await.unwrap();
    assert_eq!(status(&cluster, "n1").config, GroupConfig::default());
    assert_eq!(status(&cluster, "n1").role, Role::Leader);
    cluster.shutdown().await;
}
