//! How clusters begin.

use std::collections::BTreeSet;

use crate::harness::{Int, World, eventually, increment, shutdown_all, value, within};

fn clusters(fleets: &[raft_fleet::Fleet]) -> BTreeSet<u128> {
    fleets.iter().map(|fleet| fleet.store().node().cluster.unwrap().id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_alone_is_a_cluster() {
    let world = World::new(1, 1);
    let fleet = raft_fleet::Fleet::builder("n0")
        .listen(world.address(0))
        .identity(world.identity("n0"))
        .in_memory()
        .register::<Int>("int")
        .unwrap()
        .start()
        .await
        .unwrap();
    within("ready", fleet.ready()).await.unwrap();
    fleet.add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleet, "g").await, 0);
    shutdown_all(vec![fleet]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_and_five_nodes_that_start_at_the_same_instant_are_one_cluster() {
    for count in [3, 5] {
        let world = World::new(count, count as usize);
        let fleets = world.start_all(0..count as usize).await;
        assert_eq!(clusters(&fleets).len(), 1);
        for fleet in &fleets {
            eventually("all nodes", || (fleet.nodes().len() == count as usize).then_some(())).await;
        }
        shutdown_all(fleets).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twelve_nodes_that_join_at_the_same_instant_are_one_cluster() {
    let world = World::new(3, 12).zones(3);
    let fleets = world.start_all(0..12).await;
    assert_eq!(clusters(&fleets).len(), 1);
    for fleet in &fleets {
        eventually("all nodes", || (fleet.nodes().len() == 12).then_some(())).await;
    }
    fleets[11].add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleets[5], "g").await, 0);
    assert_eq!(value(&fleets[7], "g").await, 1);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_goes_on_where_a_crash_of_the_initiator_left_it() {
    let world = World::new(3, 3).on_disk();
    let initiator = world.start(0).await;
    let other = world.start(1).await;
    let promised = || other.store().node().cluster;
    let cluster = eventually("a promise", promised).await;
    within("shutdown", initiator.shutdown()).await;
    drop(initiator);
    let mut fleets = world.start_all([0, 2]).await;
    fleets.push(other);
    within("ready", fleets[2].ready()).await.unwrap();
    assert_eq!(clusters(&fleets), BTreeSet::from([cluster.id]));
    shutdown_all(fleets).await;
}
