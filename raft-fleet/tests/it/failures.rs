//! Nodes that stop, return, or return without their memory.

use std::time::Duration;

use raft_fleet::NodeState;

use crate::harness::{Int, World, eventually, increment, leader, members, places, shutdown_all, start, value, within};

fn state_of(fleet: &raft_fleet::Fleet, node: &str) -> Option<NodeState> {
    fleet.nodes().into_iter().find(|info| info.name == node).map(|info| info.state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_restart_and_every_group_is_back_with_its_data() {
    let world = World::new(3, 3).on_disk();
    let fleets = world.start_all(0..3).await;
    for group in 0..3 {
        let name = format!("g{group}");
        fleets[0].add_group::<Int>(&name, 3).await.unwrap();
        for count in 0..=group {
            assert_eq!(increment(&fleets[1], &name).await, count);
        }
    }
    fleets[0].add_group::<Int>("removed", 3).await.unwrap();
    fleets[0].remove_group("removed").await.unwrap();
    shutdown_all(fleets).await;
    let fleets = world.start_all(0..3).await;
    for group in 0..3 {
        assert_eq!(value(&fleets[2], &format!("g{group}")).await, group + 1);
    }
    assert_eq!(fleets[0].groups().len(), 3, "removed groups stay removed");
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_nodes_restart_without_the_third() {
    let world = World::new(3, 3).on_disk();
    let fleets = world.start_all(0..3).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleets[0], "g").await, 0);
    shutdown_all(fleets).await;
    let fleets = world.start_all(1..3).await;
    assert_eq!(increment(&fleets[0], "g").await, 1);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_is_masked_and_nothing_moves_when_it_returns_in_time() {
    let world = World::new(4, 4).on_disk();
    let mut fleets = world.start_all(0..4).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    let preferred = fleets[0].places("g", 3)[0].clone();
    eventually("a leader", || (leader(&fleets[0], "g") == Some(preferred.clone())).then_some(())).await;
    let before = eventually("members", || Some(members(&fleets[0], "g")).filter(|m| m.len() == 3)).await;
    let dead = fleets.iter().position(|fleet| fleet.name().as_str() == preferred).unwrap();
    let node: usize = preferred[1..].parse().unwrap();
    let gone = fleets.remove(dead);
    within("shutdown", gone.shutdown()).await;
    drop(gone);
    for count in 0..5 {
        assert_eq!(increment(&fleets[0], "g").await, count);
    }
    eventually("unreachable", || (state_of(&fleets[1], &preferred) == Some(NodeState::Unreachable)).then_some(()))
        .await;
    fleets.extend(world.start_all([node]).await);
    eventually("active", || (state_of(&fleets[1], &preferred) == Some(NodeState::Active)).then_some(())).await;
    eventually("it leads again", || (leader(&fleets[0], "g") == Some(preferred.clone())).then_some(())).await;
    assert_eq!(members(&fleets[0], "g"), before);
    assert_eq!(value(&fleets[3], "g").await, 5);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stays_away_is_replaced_after_the_purge_window() {
    let world = World::new(4, 4).purge_after(Duration::from_secs(1));
    let mut fleets = world.start_all(0..4).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleets[0], "g").await, 0);
    let placed = eventually("placed", || Some(members(&fleets[0], "g")).filter(|m| m.len() == 3)).await;
    let victim = fleets.iter().position(|fleet| placed.contains(&fleet.name().to_string())).unwrap();
    let gone = fleets.remove(victim);
    let name = gone.name().to_string();
    within("shutdown", gone.shutdown()).await;
    eventually("dead", || (state_of(&fleets[0], &name) == Some(NodeState::Dead)).then_some(())).await;
    let replaced = || {
        let members = members(&fleets[1], "g");
        (!members.contains(&name) && members == places(&fleets[1], "g", 3)).then_some(())
    };
    eventually("replaced", replaced).await;
    assert_eq!(increment(&fleets[2], "g").await, 1);
    within("removed", fleets[0].remove_node(&name)).await.unwrap();
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_returns_after_the_purge_is_active_again_with_new_replicas() {
    let world = World::new(4, 4).on_disk().purge_after(Duration::from_secs(1));
    let mut fleets = world.start_all(0..4).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleets[0], "g").await, 0);
    let placed = eventually("placed", || Some(members(&fleets[0], "g")).filter(|m| m.len() == 3)).await;
    let victim = fleets.iter().position(|fleet| placed.contains(&fleet.name().to_string())).unwrap();
    let gone = fleets.remove(victim);
    let name = gone.name().to_string();
    let replica_of = |fleet: &raft_fleet::Fleet| {
        let stored: Vec<_> = fleet.store().replicas().into_iter().filter(|stored| stored.group == "g").collect();
        (stored.len() == 1).then(|| stored[0].replica)
    };
    let before = replica_of(&gone).unwrap();
    within("shutdown", gone.shutdown()).await;
    drop(gone);
    let is_replaced =
        || (members(&fleets[1], "g").len() == 3 && !members(&fleets[1], "g").contains(&name)).then_some(());
    eventually("replaced", is_replaced).await;
    let returned = world.start_all([victim]).await.remove(0);
    eventually("back in its place", || (members(&returned, "g") == placed).then_some(())).await;
    let is_new = || replica_of(&returned).filter(|replica| *replica != before);
    eventually("one replica, and not the one that it had", is_new).await;
    assert_eq!(value(&returned, "g").await, 1);
    fleets.push(returned);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_memory_that_restarts_takes_its_name_back() {
    let world = World::new(3, 3);
    let mut fleets = world.start_all(0..3).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleets[0], "g").await, 0);
    let gone = fleets.remove(2);
    within("shutdown", gone.shutdown()).await;
    drop(gone);
    fleets.extend(world.start_all([2]).await);
    let is_member = || fleets[2].store().replicas().iter().any(|stored| stored.group == "g").then_some(());
    eventually("a new replica", is_member).await;
    assert_eq!(value(&fleets[2], "g").await, 1);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_was_wiped_returns_under_its_name_as_a_new_member() {
    let world = World::new(3, 3).on_disk();
    let mut fleets = world.start_all(0..3).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    for count in 0..10 {
        assert_eq!(increment(&fleets[0], "g").await, count);
    }
    let wiped = fleets.remove(0);
    let before = wiped.node_id();
    within("shutdown", wiped.shutdown()).await;
    drop(wiped);
    std::fs::remove_dir_all(world.directory(0)).unwrap();
    let returned = start(|| world.builder(0).replace(true)).await;
    within("ready", returned.ready()).await.unwrap();
    assert_ne!(returned.node_id(), before);
    assert_eq!(value(&returned, "g").await, 10);
    // Its replica is a new one, and a member: the group goes on when another node stops.
    let is_member = || returned.store().replicas().iter().any(|stored| stored.group == "g").then_some(());
    eventually("a new replica", is_member).await;
    let all = || (members(&returned, "g").len() == 3 && members(&returned, "cluster").is_empty()).then_some(());
    eventually("three members", all).await;
    shutdown_all(vec![returned]).await;
    shutdown_all(fleets).await;
}
