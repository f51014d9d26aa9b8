//! Power is lost at any write, sync or change of a name of a whole store with snapshots: what was acknowledged is
//! there after a start, nothing that was not proposed, who the node is, and exactly the snapshots that are pointed to.

use std::path::Path;

use super::*;
use crate::disk::Disk;
use crate::disk::faulty::{Fault, FaultyDisk};
use crate::error::StoreError;
use crate::wal::WalConfig;

const DIR: &str = "/data";
/// Two of them, and a snapshot is a file.
const BYTES: usize = 40_000;

/// What a run was told.
#[derive(Debug, Default)]
struct Told {
    /// The first start's identity.
    node_id: Option<u64>,
    boot: u64,
    /// Commands that were acknowledged, and that were proposed: their serials are 1, 2, ...
    acknowledged: u64,
    proposed: u64,
}

fn open(disk: &FaultyDisk) -> Result<Store, StoreError> {
    let config = WalConfig::default().with_segment_bytes(256 * 1024);
    Store::open_with(Arc::new(disk.clone()), Path::new(DIR), "n1", config)
}

/// Makes commands, takes snapshots, and purges, until all is done or the disk fails.
async fn work(disk: &FaultyDisk, told: &mut Told) -> Option<()> {
    let store = open(disk).ok()?;
    told.node_id = Some(store.node().node_id);
    told.boot = store.node().boot;
    let replica = try_start(&store).await?;
    let done = commands(&replica, told).await;
    replica.shutdown().await;
    store.close().await;
    done
}

async fn try_start(store: &Store) -> Option<UntypedReplica> {
    let replica = match store.replicas().first() {
        Some(stored) => stored.replica,
        None => store.create_replica("g", 3, Vec::new()).await.ok()?,
    };
    let cluster = ClusterTag::default();
    // Small, so that the log is purged behind each snapshot.
    let config = GroupConfig::default().with_snapshot_after_entries(4).unwrap();
    let spec = ReplicaSpec { group: "g".into(), incarnation: 3, replica, cluster, config, is_alone: false };
    let started = UntypedReplica::start(store, spec, ValueFactory::of::<Bag>(None), Arc::new(NoNetwork)).await.ok()?;
    // It may have been initialized before.
    let _ = started.initialize([(replica, Member::default())].into()).await;
    started.elect().await;
    let mut changes = started.status_changes();
    while !matches!(started.status().role, Role::Leader | Role::Stopped) {
        let _ = tokio::time::timeout(PATIENCE, changes.changed()).await.unwrap();
    }
    Some(started)
}

async fn commands(replica: &UntypedReplica, told: &mut Told) -> Option<()> {
    for _ in 0..3 {
        for _ in 0..3 {
            told.proposed += 1;
            let mut bytes = vec![7; BYTES];
            bytes[..8].copy_from_slice(&told.proposed.to_le_bytes());
            replica.propose(encode_command::<Bag>(&bytes, None, 0).unwrap(), PATIENCE).await.ok()?;
            told.acknowledged += 1;
        }
        let last = replica.status().applied?.index;
        let mut changes = replica.status_changes();
        while replica.status().snapshot.is_none_or(|snapshot| snapshot.index < last) {
            if replica.status().role == Role::Stopped {
                return None;
            }
            // One of an earlier entry may be under way, and then no other is begun.
            replica.snapshot().await;
            let _ = tokio::time::timeout(Duration::from_millis(5), changes.changed()).await;
        }
    }
    Some(())
}

/// Starts from what a crash left, and judges it.
async fn check(disk: FaultyDisk, told: &Told, context: &str) {
    let store = open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    let node = store.node();
    if let Some(node_id) = told.node_id {
        assert!(node.node_id == node_id && node.boot > told.boot, "{context}: {node:?} after {told:?}");
    }
    let snapshots = disk.list(&Path::new(DIR).join("snapshots")).unwrap();
    let pointed: Vec<String> = store
        .replicas()
        .iter()
        .filter_map(|replica| store.wal().state(replica.replica.get()).unwrap().snapshot.map(|pointer| pointer.file))
        .filter(|file| !file.is_empty())
        .collect();
    assert_eq!(snapshots, pointed, "{context}");
    if told.acknowledged == 0 && store.replicas().is_empty() {
        return;
    }
    let replica = try_start(&store).await.unwrap_or_else(|| panic!("{context}: it does not start"));
    assert_eq!(replica.status().role, Role::Leader, "{context}");
    // Its first entry as a leader comes behind all that was committed.
    let mut applied = replica.applied();
    let last = replica.status().last_log_index.unwrap();
    tokio::time::timeout(PATIENCE, applied.wait_for(|&count| count > last)).await.unwrap().unwrap();
    let serials = |bag: &Bag| bag.0.iter().map(|bytes| u64::from_le_bytes(bytes[..8].try_into().unwrap())).collect();
    let found: Vec<u64> = replica.read_local(|bag: &Bag, _| serials(bag)).unwrap();
    let count = found.len() as u64;
    assert_eq!(found, (1..=count).collect::<Vec<_>>(), "{context}");
    assert!(told.acknowledged <= count && count <= told.proposed, "{context}: {count} of {told:?}");
    replica.shutdown().await;
    store.close().await;
}

/// Shares of the sectors, and of the changes of names, that outlive a crash: nothing but what was synced, names without
/// what the files hold, files without their names, and a part of each.
const KEPT: [(f64, f64); 4] = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5)];

async fn with_failing_operations(fault: Fault, step: usize, kept: &[(f64, f64)]) {
    let whole = FaultyDisk::default();
    work(&whole, &mut Told::default()).await.unwrap();
    let operations = whole.operations();
    assert!(operations > 60, "{operations}");
    let mut interrupted = 0;
    for at in (0..operations).step_by(step) {
        let disk = FaultyDisk::default();
        disk.fail_at(at, fault);
        let mut told = Told::default();
        interrupted += usize::from(work(&disk, &mut told).await.is_none());
        for &(sectors, names) in kept {
            let context = format!("{fault:?} at {at} of {operations}, {sectors} of the sectors, {names} of the names");
            check(disk.restart_keeping(sectors, names, at), &told, &context).await;
        }
    }
    assert!(interrupted > 10, "{interrupted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_lost_at_any_operation_of_a_store_with_snapshots_loses_nothing_acknowledged() {
    with_failing_operations(Fault::Crash, 1, &KEPT[..2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_lost_when_files_outlive_their_names_or_half_is_there_loses_nothing_acknowledged() {
    with_failing_operations(Fault::Crash, 1, &KEPT[2..]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_operation_of_a_store_with_snapshots_that_fails_loses_nothing_acknowledged() {
    with_failing_operations(Fault::Fail, 5, &KEPT).await;
}
