//! What a node refuses, and how it says so.

use raft_fleet::batched_comm::BindError;
use raft_fleet::rafted_value::StoreError;
use raft_fleet::{Fleet, FleetError, NodeFailure};

use crate::harness::{World, copy_directory, refused, shutdown_all, start, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_a_foreign_certificate_and_missing_settings_are_told_at_once() {
    let world = World::new(1, 1);
    let fleets = world.start_all(0..1).await;
    let error = refused(world.builder(0)).await;
    assert!(matches!(error, FleetError::Bind(BindError::AddressInUse { .. })), "{error}");
    let error = refused(world.builder(0).identity(world.identity("other"))).await;
    assert!(matches!(&error, FleetError::OtherIdentity { certified, .. } if certified == "other"), "{error}");
    let error = refused(Fleet::builder("n0")).await;
    assert!(matches!(error, FleetError::Setting(_)), "{error}");
    let error = refused(Fleet::builder("a b")).await;
    assert!(matches!(error, FleetError::Name(_)), "{error}");
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_use_and_one_of_another_node_are_refused() {
    let world = World::new(1, 2).on_disk();
    let fleets = world.start_all(0..1).await;
    let error = refused(world.builder(1).data_dir(world.directory(0))).await;
    assert!(matches!(error, FleetError::Store(StoreError::Locked { .. })), "{error}");
    shutdown_all(fleets).await;
    let error = refused(world.builder(1).data_dir(world.directory(0))).await;
    assert!(matches!(error, FleetError::Store(StoreError::WrongName { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_cluster_is_refused() {
    let first = World::new(1, 1).on_disk();
    let second = World::new(2, 2).on_disk();
    let of_first = first.builder(0).identity(second.identity("n0")).start().await.unwrap();
    of_first.ready().await.unwrap();
    shutdown_all(vec![of_first]).await;
    let fleets = second.start_all(0..2).await;
    let foreign = first.builder(0).identity(second.identity("n0")).listen(first.address(0));
    let foreign = foreign.seeds(vec![second.address(1)]).start().await.unwrap();
    let failure = within("failure", foreign.failed()).await;
    assert!(matches!(failure, NodeFailure::ForeignCluster { .. }), "{failure}");
    shutdown_all(vec![foreign]).await;
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_node_of_one_name_is_refused_and_the_first_goes_on() {
    let world = World::new(2, 3);
    let fleets = world.start_all(0..2).await;
    let double = world.builder(1).listen(world.address(2));
    let error = refused(double).await;
    assert!(matches!(&error, FleetError::Refused(NodeFailure::NameInUse { name, .. }) if name == "n1"), "{error}");
    fleets[0].add_group::<crate::harness::Int>("g", 2).await.unwrap();
    assert_eq!(crate::harness::increment(&fleets[1], "g").await, 0);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_was_rolled_back_is_refused() {
    let world = World::new(3, 3).on_disk();
    let fleets = world.start_all(0..3).await;
    shutdown_all(fleets).await;
    let copy = tempfile::tempdir().unwrap();
    copy_directory(&world.directory(2), copy.path());
    let fleets = world.start_all(0..3).await;
    fleets[2].shutdown().await;
    std::fs::remove_dir_all(world.directory(2)).unwrap();
    copy_directory(copy.path(), &world.directory(2));
    let rolled_back = start(|| world.builder(2)).await;
    let error = within("refusal", rolled_back.ready()).await.unwrap_err();
    shutdown_all(vec![rolled_back]).await;
    assert!(matches!(error, FleetError::Refused(NodeFailure::RolledBack { .. })), "{error}");
    let again = world.builder(2).listen(([127, 0, 0, 1], 0).into());
    let error = refused(again).await;
    assert!(matches!(error, FleetError::Refused(NodeFailure::RolledBack { .. })), "{error}");
    shutdown_all(fleets).await;
}
