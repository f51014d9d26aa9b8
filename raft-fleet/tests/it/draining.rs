//! Nodes that give everything away: seen from everywhere, cancelled, interrupted.

use std::collections::BTreeSet;
use std::time::Duration;

use raft_fleet::{DrainProgress, Fleet, FleetEvent, NodeError, NodeState};

use crate::harness::{Int, World, eventually, increment, members, places, shutdown_all, value, within};

async fn with_groups(world: &World, nodes: usize, groups: usize) -> Vec<Fleet> {
    let fleets = world.start_all(0..nodes).await;
    for group in 0..groups {
        let name = format!("g{group}");
        fleets[0].add_group::<Int>(&name, 3).await.unwrap();
        assert_eq!(increment(&fleets[0], &name).await, 0);
    }
    fleets
}

fn drain_of(fleet: &Fleet, node: &str) -> Option<DrainProgress> {
    fleet.nodes().into_iter().find(|info| info.name == node)?.drain
}

fn state_of(fleet: &Fleet, node: &str) -> Option<NodeState> {
    fleet.nodes().into_iter().find(|info| info.name == node).map(|info| info.state)
}

/// The node that leads the cluster group, as the others see it.
async fn cluster_leader(fleets: &[Fleet]) -> usize {
    let leads = |fleet: &Fleet| {
        let stored = fleet.store().replicas().into_iter().any(|stored| stored.group == "cluster");
        stored && fleet.leads_cluster()
    };
    eventually("a leader of the cluster group", || fleets.iter().position(leads)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_seen_from_every_node_and_ends_with_nothing_left() {
    let world = World::new(4, 4).on_disk();
    let mut fleets = with_groups(&world, 4, 4).await;
    let drained = cluster_leader(&fleets).await;
    let name = world.name(drained);
    let other = (drained + 1) % 4;
    let mut events = fleets[other].events();
    fleets[other].begin_drain(&name).await.unwrap();
    let again = fleets[other].drain(&name).await.unwrap_err();
    assert_eq!(again, NodeError::AlreadyDraining { name: name.clone() });
    let mut told = BTreeSet::new();
    let watching = async {
        loop {
            match events.recv().await.unwrap() {
                FleetEvent::DrainProgress { node, replicas, .. } if node == name => drop(told.insert(replicas)),
                FleetEvent::NodeRemoved { node } if node == name => return,
                _ => {}
            }
        }
    };
    within("drained", fleets[other].drained(&name)).await.unwrap();
    within("the events say so", watching).await;
    assert!(told.contains(&0) && told.len() > 1, "{told:?}");
    let gone = fleets.remove(drained);
    assert!(gone.store().replicas().is_empty());
    within("it knows", gone.failed()).await;
    for fleet in &fleets {
        eventually("gone", || state_of(fleet, &name).is_none().then_some(())).await;
    }
    for group in 0..4 {
        let group = format!("g{group}");
        assert_eq!(value(&fleets[0], &group).await, 1);
        let placed = || (members(&fleets[1], &group) == places(&fleets[1], &group, 3)).then_some(());
        eventually("placed", placed).await;
    }
    shutdown_all(vec![gone]).await;
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_is_cancelled_leaves_the_node_with_its_places() {
    let world = World::new(4, 4);
    let fleets = with_groups(&world, 4, 3).await;
    assert_eq!(fleets[1].activate("n3").await, Err(NodeError::AlreadyActive { name: "n3".into() }));
    assert_eq!(fleets[1].activate("n9").await, Err(NodeError::NotFound { name: "n9".into() }));
    let before = fleets[0].places("g0", 4);
    fleets[0].begin_drain("n3").await.unwrap();
    eventually("it tells what it has", || drain_of(&fleets[2], "n3")).await;
    let (waiting, cancelled) = tokio::join!(fleets[1].drained("n3"), fleets[0].activate("n3"));
    cancelled.unwrap();
    // It may have given everything away already: then there was nothing to cancel, which `activate` would have said.
    assert_eq!(waiting, Err(NodeError::Cancelled { name: "n3".into() }));
    eventually("active", || (state_of(&fleets[2], "n3") == Some(NodeState::Active)).then_some(())).await;
    assert_eq!(drain_of(&fleets[0], "n3"), None);
    assert_eq!(fleets[0].places("g0", 4), before);
    for group in ["g0", "g1", "g2"] {
        let placed = || (members(&fleets[0], group) == places(&fleets[0], group, 3)).then_some(());
        eventually("placed", placed).await;
        assert_eq!(increment(&fleets[3], group).await, 1);
    }
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_drain_at_once_and_the_last_one_is_refused() {
    let world = World::new(3, 3);
    let mut fleets = with_groups(&world, 3, 2).await;
    let both = tokio::join!(fleets[0].drain("n1"), fleets[0].drain("n2"));
    assert_eq!(both, (Ok(()), Ok(())));
    assert_eq!(fleets[0].drain("n0").await, Err(NodeError::LastNode { name: "n0".into() }));
    let gone = fleets.split_off(1);
    for group in ["g0", "g1"] {
        eventually("alone", || (members(&fleets[0], group) == ["n0"]).then_some(())).await;
        assert_eq!(increment(&fleets[0], group).await, 1);
    }
    shutdown_all(gone).await;
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_it_drains_is_removed_after_the_window() {
    let world = World::new(4, 4).purge_after(Duration::from_secs(2));
    let mut fleets = with_groups(&world, 4, 3).await;
    fleets[0].begin_drain("n3").await.unwrap();
    let gone = fleets.remove(3);
    within("shutdown", gone.shutdown()).await;
    within("drained", fleets[0].drained("n3")).await.unwrap();
    for group in ["g0", "g1", "g2"] {
        eventually("placed", || (members(&fleets[0], group) == ["n0", "n1", "n2"]).then_some(())).await;
        assert_eq!(increment(&fleets[1], group).await, 1);
    }
    shutdown_all(fleets).await;
}
