//! Nodes that come back: as they were, elsewhere, or where they are not wanted any more.

use std::path::Path;
use std::time::Duration;

use raft_fleet::rafted_value::Store;
use raft_fleet::{Fleet, FleetError, NodeFailure, NodeState, SeedFile};

use crate::harness::{
    Int, World, copy_directory, eventually, increment, members, refused, shutdown_all, start, value, within,
};

fn state_of(fleet: &Fleet, node: &str) -> Option<NodeState> {
    fleet.nodes().into_iter().find(|info| info.name == node).map(|info| info.state)
}

fn is_removed(error: &FleetError) -> bool {
    matches!(error, FleetError::Refused(NodeFailure::Removed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_moved_is_found_by_the_others_and_its_groups_go_on() {
    let world = World::new(3, 4).on_disk();
    let mut fleets = world.start_all(0..3).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleets[0], "g").await, 0);
    let gone = fleets.remove(2);
    within("shutdown", gone.shutdown()).await;
    let elsewhere = world.address(3);
    let moved = start(|| world.builder(2).listen(elsewhere)).await;
    within("ready", moved.ready()).await.unwrap();
    assert_eq!(moved.node_id(), gone.node_id());
    for fleet in &fleets {
        let is_known =
            || fleet.nodes().into_iter().find(|node| node.name == "n2" && node.address == elsewhere.to_string());
        eventually("its address is known", is_known).await;
    }
    // Of three members two are left, one of them the one that moved.
    let other = fleets.remove(1);
    within("shutdown", other.shutdown()).await;
    assert_eq!(increment(&fleets[0], "g").await, 1);
    assert_eq!(value(&moved, "g").await, 2);
    fleets.push(moved);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_that_moved_find_each_other_by_the_file_of_seeds_alone() {
    let world = World::new(3, 6).on_disk();
    let fleets = world.start_all(0..3).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleets[0], "g").await, 0);
    shutdown_all(fleets).await;
    // The old places are taken, and silent.
    let silent: Vec<_> = (0..3).map(|node| std::net::UdpSocket::bind(world.address(node)).unwrap()).collect();
    let path = world.directory(0).parent().unwrap().join("seeds");
    std::fs::write(&path, format!("{}\n", world.address(0))).unwrap();
    let mut moved = Vec::new();
    for node in 0..3 {
        let builder = || {
            let elsewhere = world.builder(node).listen(world.address(3 + node));
            elsewhere.seeds(Vec::new()).discovery(SeedFile::new(&path)).bootstrap_node("n0")
        };
        moved.push(start(builder).await);
    }
    assert!(tokio::time::timeout(Duration::from_millis(500), moved[1].ready()).await.is_err(), "nobody is known");
    std::fs::write(&path, format!("{}\n", world.address(3))).unwrap();
    for (node, fleet) in moved.iter().enumerate() {
        within("ready", fleet.ready()).await.unwrap();
        let is_known = || {
            let nodes = moved[0].nodes();
            nodes.into_iter().find(|info| info.name == world.name(node) && info.address == fleet.address().to_string())
        };
        eventually("its new address is known", is_known).await;
    }
    assert_eq!(increment(&moved[1], "g").await, 1);
    assert_eq!(value(&moved[2], "g").await, 2);
    drop(silent);
    shutdown_all(moved).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_while_it_was_down_is_told_so_and_its_directory_is_not_used_again() {
    let world = World::new(4, 4).on_disk();
    let mut fleets = world.start_all(0..4).await;
    fleets[0].add_group::<Int>("g", 4).await.unwrap();
    assert_eq!(increment(&fleets[0], "g").await, 0);
    let gone = fleets.remove(3);
    within("shutdown", gone.shutdown()).await;
    let is_unreachable = || (state_of(&fleets[0], "n3") == Some(NodeState::Unreachable)).then_some(());
    eventually("unreachable", is_unreachable).await;
    within("removed", fleets[1].remove_node("n3")).await.unwrap();
    let returned = start(|| world.builder(3)).await;
    let error = within("refusal", returned.ready()).await.unwrap_err();
    shutdown_all(vec![returned]).await;
    assert!(is_removed(&error), "{error}");
    eventually("its replica is replaced or given up", || (members(&fleets[0], "g").len() == 3).then_some(())).await;
    assert_eq!(increment(&fleets[0], "g").await, 1);
    shutdown_all(fleets).await;
    // With nobody there to ask.
    let error = refused(world.builder(3)).await;
    assert!(is_removed(&error), "{error}");
    // A new memory under the name is welcome.
    std::fs::remove_dir_all(world.directory(3)).unwrap();
    let fleets = world.start_all(0..4).await;
    assert_eq!(value(&fleets[3], "g").await, 2);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_drained_is_told_so_while_it_runs_and_when_it_starts_again() {
    let world = World::new(3, 3).on_disk();
    let mut fleets = world.start_all(0..3).await;
    let leaving = fleets.remove(2);
    within("drained", fleets[0].drain("n2")).await.unwrap();
    assert_eq!(within("failure", leaving.failed()).await, NodeFailure::Removed);
    shutdown_all(vec![leaving]).await;
    let again = world.builder(2).listen(([127, 0, 0, 1], 0).into());
    let error = refused(again).await;
    assert!(is_removed(&error), "{error}");
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fails_right_after_its_registration_is_purged() {
    let world = World::new(3, 4).purge_after(Duration::from_secs(1));
    let mut fleets = world.start_all(0..3).await;
    let short = world.start(3).await;
    let registered = || state_of(&fleets[0], "n3");
    eventually("registered", registered).await;
    // As a crash: nothing is handed over, nobody is told.
    drop(short);
    eventually("dead", || (state_of(&fleets[0], "n3") == Some(NodeState::Dead)).then_some(())).await;
    within("removed", fleets[0].remove_node("n3")).await.unwrap();
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleets[2], "g").await, 0);
    let fresh = world.start_all([3]).await;
    fleets.extend(fresh);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_was_rolled_back_is_refused_also_after_starts_that_nobody_saw() {
    let world = World::new(3, 3).on_disk();
    shutdown_all(world.start_all(0..3).await).await;
    let copy = tempfile::tempdir().unwrap();
    copy_directory(&world.directory(2), copy.path());
    let fleets = world.start_all(0..3).await;
    within("shutdown", fleets[2].shutdown()).await;
    std::fs::remove_dir_all(world.directory(2)).unwrap();
    copy_directory(copy.path(), &world.directory(2));
    let boot = start_apart(&world.directory(2), 5).await;
    let seen = fleets[0].nodes().into_iter().find(|node| node.name == "n2").unwrap().boot;
    assert!(boot > seen, "boot {boot} is above {seen}, which the cluster saw");
    let rolled_back = start(|| world.builder(2)).await;
    let error = within("refusal", rolled_back.ready()).await.unwrap_err();
    shutdown_all(vec![rolled_back]).await;
    assert!(matches!(error, FleetError::Refused(NodeFailure::RolledBack { .. })), "{error}");
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_crashed_again_and_again_before_it_registered_is_accepted() {
    let world = World::new(3, 3).on_disk();
    let mut fleets = world.start_all(0..3).await;
    let gone = fleets.remove(2);
    within("shutdown", gone.shutdown()).await;
    start_apart(&world.directory(2), 5).await;
    fleets.extend(world.start_all([2]).await);
    shutdown_all(fleets).await;
}

/// Starts of a directory that nobody hears of; answers the last boot number.
async fn start_apart(directory: &Path, count: u64) -> u64 {
    let mut boot = 0;
    for _ in 0..count {
        let store = Store::open(directory, "n2").await.unwrap();
        boot = store.node().boot;
        store.close().await;
    }
    boot
}
