//! What is left of a removed group, and of a node that is gone: nothing.

use std::path::Path;

use raft_fleet::rafted_value::{Inspection, Value, messages};
use raft_fleet::{Fleet, FleetBuilder, GroupError, NodeError, NodeState};

use crate::harness::{DEADLINE, World, eventually, shutdown_all, start, within};

messages! {
    /// Large enough that its snapshots are files.
    #[derive(Default)]
    pub struct Blobs { blobs: Vec<Vec<u8>> }
    pub enum BlobsCommand { Add(Vec<u8>) }
}

impl Value for Blobs {
    type Command = BlobsCommand;
    type Reply = u64;
    type Query = ();
    type Answer = u64;

    fn command(&mut self, BlobsCommand::Add(blob): BlobsCommand) -> u64 {
        self.blobs.push(blob);
        self.blobs.len() as u64
    }

    fn query(&self, (): ()) -> u64 {
        self.blobs.len() as u64
    }
}

const BLOB_BYTES: usize = 64 << 10;
/// Together well above what makes a snapshot due.
const BLOBS: u64 = 40;

async fn start_all(world: &World, count: usize) -> Vec<Fleet> {
    let builder = |node| -> FleetBuilder { world.builder(node).register::<Blobs>("blobs").unwrap() };
    let mut fleets = Vec::new();
    for node in 0..count {
        fleets.push(start(|| builder(node)).await);
    }
    for fleet in &fleets {
        within("ready", fleet.ready()).await.unwrap();
    }
    fleets
}

async fn fill(fleet: &Fleet, group: &str) {
    for number in 1..=BLOBS {
        let add = fleet.group::<Blobs>(group).command(BlobsCommand::Add(vec![7; BLOB_BYTES])).timeout(DEADLINE);
        assert_eq!(add.await.unwrap(), number, "it started empty");
    }
}

fn snapshot_files(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("snapshots")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_removed_group_is_left_and_it_starts_empty_when_it_is_added_again() {
    let world = World::new(3, 3).on_disk();
    let fleets = start_all(&world, 3).await;
    fleets[0].add_group::<Blobs>("g", 3).await.unwrap();
    fill(&fleets[1], "g").await;
    for node in 0..3 {
        let is_there = || (snapshot_files(&world.directory(node)) > 0).then_some(());
        eventually("a snapshot is a file", is_there).await;
    }
    fleets[0].remove_group("g").await.unwrap();
    let has_replica = |fleet: &Fleet| fleet.store().replicas().iter().any(|stored| stored.group == "g");
    for (node, fleet) in fleets.iter().enumerate() {
        let is_clean = || (!has_replica(fleet) && snapshot_files(&world.directory(node)) == 0).then_some(());
        eventually("no replica, no snapshot", is_clean).await;
        eventually("no group", || fleet.groups().is_empty().then_some(())).await;
        assert!(fleet.led_groups().is_empty() && fleet.led::<Blobs>("g").is_none());
        assert!(fleet.leaderless_groups().await.is_empty());
        let query = fleet.group::<Blobs>("g").query(()).await.unwrap_err();
        assert!(query.to_string().contains("there is no group of this name"), "{query}");
    }
    // Its name is free once every node has said that it is clean; it starts empty, as `fill` sees.
    let again = async {
        loop {
            match fleets[2].add_group::<Blobs>("g", 3).await {
                Err(GroupError::CleanupOngoing { .. }) => tokio::task::yield_now().await,
                other => return other,
            }
        }
    };
    within("added again", again).await.unwrap();
    fill(&fleets[0], "g").await;
    fleets[1].remove_group("g").await.unwrap();
    for fleet in &fleets {
        eventually("no replica", || (!has_replica(fleet)).then_some(())).await;
    }
    shutdown_all(fleets).await;
    for node in 0..3 {
        let inspection = Inspection::open(world.directory(node)).unwrap();
        let of_group = inspection.replicas().iter().filter(|replica| replica.group == "g").count();
        assert_eq!(of_group, 0, "the log has a replica of it, or entries");
        assert_eq!(snapshot_files(&world.directory(node)), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_removed_and_a_working_one_is_not() {
    let world = World::new(3, 4).purge_after(std::time::Duration::from_secs(1));
    let mut fleets = start_all(&world, 3).await;
    let in_use = fleets[0].remove_node("n2").await.unwrap_err();
    assert_eq!(in_use, NodeError::InUse { name: "n2".into() });
    let gone = fleets.remove(2);
    within("shutdown", gone.shutdown()).await;
    let state = |fleet: &Fleet| fleet.nodes().into_iter().find(|node| node.name == "n2").map(|node| node.state);
    eventually("dead", || (state(&fleets[1]) == Some(NodeState::Dead)).then_some(())).await;
    assert_eq!(fleets[0].drain("n2").await, Err(NodeError::Dead { name: "n2".into() }));
    assert_eq!(fleets[0].activate("n2").await, Err(NodeError::Dead { name: "n2".into() }));
    fleets[0].remove_node("n2").await.unwrap();
    for fleet in &fleets {
        eventually("gone", || state(fleet).is_none().then_some(())).await;
    }
    assert_eq!(fleets[1].remove_node("n2").await, Err(NodeError::NotFound { name: "n2".into() }));
    shutdown_all(fleets).await;
}
