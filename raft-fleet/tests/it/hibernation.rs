//! Idle groups sleep, and are there when somebody needs them.

use std::time::{Duration, Instant};

use raft_fleet::{Fleet, GroupState};

use crate::harness::{Int, World, eventually, increment, info, leader, shutdown_all, value, within};

const GROUPS: usize = 12;
/// Several election timeouts: that nothing happens takes its time.
const LONG: Duration = Duration::from_secs(2);

fn name(group: usize) -> String {
    format!("g{group}")
}

async fn add_groups(fleets: &[Fleet]) {
    for group in 0..GROUPS {
        fleets[0].add_group::<Int>(&name(group), 3).await.unwrap();
    }
}

/// Waits until all groups sleep on all nodes of three, with a leader that answers.
async fn all_sleep(fleets: &[Fleet]) {
    let asleep = |fleet: &Fleet| (0..GROUPS).all(|group| state(fleet, group) == Some(GroupState::Hibernating));
    eventually("all groups sleep everywhere", || fleets.iter().all(asleep).then_some(())).await;
}

fn state(fleet: &Fleet, group: usize) -> Option<GroupState> {
    info(fleet, &name(group)).filter(|info| info.leader.is_some()).map(|info| info.state)
}

/// Leader and term of each group, as a node knows them.
fn leaders(fleet: &Fleet) -> Vec<(Option<String>, u64)> {
    (0..GROUPS)
        .map(|group| (leader(fleet, &name(group)), info(fleet, &name(group)).map_or(0, |info| info.term)))
        .collect()
}

/// All replicas' terms on this node; a sleeping group's never rise.
async fn nothing_happens(fleets: &[Fleet]) {
    all_sleep(fleets).await;
    let before: Vec<_> = fleets.iter().map(leaders).collect();
    tokio::time::sleep(LONG).await;
    assert_eq!(fleets.iter().map(leaders).collect::<Vec<_>>(), before);
    all_sleep(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_groups_sleep_queries_leave_them_asleep_and_commands_wake_them_without_an_election() {
    let world = World::new(3, 3).sleepy();
    let fleets = world.start_all(0..3).await;
    add_groups(&fleets).await;
    nothing_happens(&fleets).await;
    let before = leaders(&fleets[0]);
    for group in 0..GROUPS {
        assert_eq!(value(&fleets[group % 3], &name(group)).await, 0);
    }
    assert!((0..GROUPS).all(|group| state(&fleets[0], group) == Some(GroupState::Hibernating)));
    for group in 0..GROUPS {
        assert_eq!(increment(&fleets[group % 3], &name(group)).await, 0);
        assert_eq!(value(&fleets[(group + 1) % 3], &name(group)).await, 1);
    }
    nothing_happens(&fleets).await;
    assert_eq!(leaders(&fleets[0]), before, "nobody was elected");
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_slept_when_their_leaders_node_died_go_on_and_sleep_without_it() {
    let world = World::new(3, 3).on_disk().sleepy();
    let mut fleets = world.start_all(0..3).await;
    add_groups(&fleets).await;
    all_sleep(&fleets).await;
    let gone = fleets.remove(2);
    let dead = gone.name().to_string();
    // Without a word to anybody.
    within("the end of its connections", gone.endpoint().shutdown()).await;
    let started = Instant::now();
    for group in 0..GROUPS {
        assert_eq!(increment(&fleets[group % 2], &name(group)).await, 0);
    }
    let took = started.elapsed();
    assert!(took < LONG * 5, "those who wait are served first: {took:?}");
    let has_leader = |fleet: &Fleet, group| leader(fleet, &name(group)).is_some_and(|leader| leader != dead);
    let all_led = || fleets.iter().all(|fleet| (0..GROUPS).all(|group| has_leader(fleet, group))).then_some(());
    eventually("every group has a leader that lives", all_led).await;
    nothing_happens(&fleets).await;
    within("shutdown", gone.shutdown()).await;
    drop(gone);
    // Written while it is away, and asleep when it comes back.
    fleets.extend(world.start_all([2]).await);
    all_sleep(&fleets).await;
    let other = fleets.remove(0);
    within("shutdown", other.shutdown()).await;
    for group in 0..GROUPS {
        assert_eq!(value(&fleets[1], &name(group)).await, 1, "it has what was written meanwhile");
        assert_eq!(increment(&fleets[0], &name(group)).await, 1);
    }
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_nobody_asks_for_have_a_leader_again_soon_after_a_node_died() {
    let world = World::new(3, 3).sleepy();
    let mut fleets = world.start_all(0..3).await;
    add_groups(&fleets).await;
    all_sleep(&fleets).await;
    let gone = fleets.remove(1);
    let dead = gone.name().to_string();
    within("the end of its connections", gone.endpoint().shutdown()).await;
    let led = |group| leader(&fleets[0], &name(group)).is_some_and(|leader| leader != dead);
    eventually("all are led", || (0..GROUPS).all(led).then_some(())).await;
    nothing_happens(&fleets).await;
    within("shutdown", gone.shutdown()).await;
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_restarts_at_once_leads_nothing_that_it_led_before() {
    let world = World::new(3, 3).on_disk().sleepy();
    let mut fleets = world.start_all(0..3).await;
    add_groups(&fleets).await;
    for group in 0..GROUPS {
        assert_eq!(increment(&fleets[0], &name(group)).await, 0);
    }
    all_sleep(&fleets).await;
    let stopped = fleets.remove(0);
    within("shutdown", stopped.shutdown()).await;
    drop(stopped);
    fleets.extend(world.start_all([0]).await);
    all_sleep(&fleets).await;
    for group in 0..GROUPS {
        assert_eq!(increment(&fleets[2], &name(group)).await, 1);
    }
    shutdown_all(fleets).await;
}
