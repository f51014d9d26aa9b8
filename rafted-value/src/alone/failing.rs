//! A disk that fails under a replica: whoever waits is told that nothing is known, nobody gets any further, the node is
//! told why, and what was acknowledged is there after a restart.

use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::*;
use crate::disk::Disk;
use crate::disk::faulty::{Fault, FaultyDisk};
use crate::error::CommandError;
use crate::proposer::ProposeError;
use crate::status::ReplicaId;
use crate::wal::WalConfig;

const DIR: &str = "/data";

fn open(disk: &FaultyDisk, cache_bytes: usize) -> Result<Store, crate::error::StoreError> {
    let config = WalConfig::default().with_segment_bytes(256 * 1024).with_cache_bytes(cache_bytes);
    Store::open_with(Arc::new(disk.clone()), Path::new(DIR), "n1", config)
}

fn marker(serial: u64) -> Vec<u8> {
    format!("command number {serial:010}").into_bytes()
}

async fn propose(replica: &UntypedReplica, serial: u64) -> Result<Bytes, ProposeError> {
    replica.propose(encode_command::<Bag>(&marker(serial), None, 0).unwrap(), PATIENCE).await
}

async fn reason(failed: &mut watch::Receiver<Option<String>>) -> String {
    let told = tokio::time::timeout(PATIENCE, failed.wait_for(Option::is_some)).await;
    told.expect("nobody says that the disk has failed").unwrap().clone().unwrap()
}

/// How many commands a restarted replica has; they are the first, in order.
async fn count_after_restart(disk: FaultyDisk) -> u64 {
    let store = open(&disk, 0).unwrap();
    let stored = store.replicas().into_iter().find(|stored| stored.group == "g").unwrap().replica;
    let spec = ReplicaSpec {
        group: "g".into(),
        incarnation: 3,
        replica: stored,
        cluster: ClusterTag::default(),
        config: GroupConfig::default(),
        is_alone: false,
    };
    let factory = ValueFactory::of::<Bag>(None);
    let replica = UntypedReplica::start(&store, spec, factory, Arc::new(NoNetwork)).await.unwrap();
    let mut changes = replica.status_changes();
    while replica.status().role != Role::Leader {
        assert!(tokio::time::timeout(PATIENCE, changes.changed()).await.unwrap());
    }
    let (mut applied, last) = (replica.applied(), replica.status().last_log_index.unwrap());
    tokio::time::timeout(PATIENCE, applied.wait_for(|&count| count > last)).await.unwrap().unwrap();
    let found = replica.read_local(|bag: &Bag, _| bag.0.clone()).unwrap();
    let count = found.len() as u64;
    assert_eq!(found, (0..count).map(marker).collect::<Vec<_>>());
    replica.shutdown().await;
    store.close().await;
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_or_sync_ends_every_command_and_loses_nothing_that_was_acknowledged() {
    for (operation, expected) in [(0, "write"), (1, "sync")] {
        let disk = FaultyDisk::default();
        let store = open(&disk, 1 << 20).unwrap();
        let (replica, other) = (start(&store, "g").await, start(&store, "other").await);
        for serial in 0..3 {
            propose(&replica, serial).await.unwrap();
        }
        let mut failed = store.failed();
        assert_eq!(*failed.borrow(), None);
        // A command's batch is one write and one sync.
        disk.fail_at(disk.operations() + operation, Fault::Fail);
        let lost = propose(&replica, 3).await.unwrap_err();
        assert!(matches!(&lost, ProposeError::Command(error) if error.is_unknown()), "{expected}: {lost:?}");
        let told = reason(&mut failed).await;
        assert!(told.contains(&format!("the {expected} failed")) && told.contains("segment"), "{told}");
        let operations = disk.operations();
        for replica in [&replica, &other] {
            let refused = propose(replica, 4).await.unwrap_err();
            let is_error =
                matches!(refused, ProposeError::Command(CommandError::Unknown(_) | CommandError::NotHappened(_)));
            assert!(is_error, "{expected}: {refused:?}");
        }
        assert_eq!(disk.operations(), operations, "the disk is asked again after a failed {expected}");
        replica.shutdown().await;
        other.shutdown().await;
        store.close().await;
        assert_eq!(disk.operations(), operations, "not even the last words are written");
        for (after, disk) in [("a kill", disk.reopen()), ("a loss of power", disk.restart_keeping(0.0, 0.0, 0))] {
            let count = count_after_restart(disk).await;
            assert!((3..=4).contains(&count), "{count} of 3 that were acknowledged, after {after}");
        }
    }
}

/// Damages every command in the log.
fn damage(disk: &FaultyDisk, count: u64) {
    let dir = Path::new(DIR).join("wal");
    let mut damaged = 0;
    for path in disk.list(&dir).unwrap().into_iter().map(|name| dir.join(name)) {
        let content = disk.content(&path);
        for serial in 0..count {
            let marker = marker(serial);
            if let Some(at) = content.windows(marker.len()).position(|bytes| bytes == marker) {
                disk.flip_bit(&path, at as u64);
                damaged += 1;
            }
        }
    }
    assert_eq!(damaged, count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_read_while_it_is_used_stops_the_node_and_is_refused_by_the_next_start() {
    const COUNT: u64 = 20;
    let disk = FaultyDisk::default();
    let store = open(&disk, 0).unwrap();
    let replica = start(&store, "g").await;
    for serial in 0..COUNT {
        propose(&replica, serial).await.unwrap();
    }
    damage(&disk, COUNT);
    let mut failed = store.failed();
    assert_eq!(*failed.borrow(), None, "nobody has read it");
    // A new member has none of the entries: they are read, to be sent.
    let position = replica.status().members.position;
    let _ = replica.add_learner(ReplicaId::new(77).unwrap(), Member::default(), position).await;
    let told = reason(&mut failed).await;
    assert!(told.contains("the log cannot be read") && told.contains(&format!("{DIR}/wal")), "{told}");
    propose(&replica, COUNT).await.unwrap_err();
    replica.shutdown().await;
    store.close().await;
    let refused = open(&disk.reopen(), 0).unwrap_err().to_string();
    assert!(refused.contains(&format!("{DIR}/wal")), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_cannot_be_opened_stops_the_node() {
    let disk = FaultyDisk::default();
    let store = open(&disk, 1 << 20).unwrap();
    let replica = start(&store, "g").await;
    add(&replica, 3).await;
    replica.snapshot().await;
    eventually("a snapshot", || replica.status().snapshot.is_some()).await;
    let id = replica.spec().replica;
    assert!(store.snapshots_of(id).current().unwrap().is_some());
    let dir: PathBuf = Path::new(DIR).join("snapshots");
    let [name] = &disk.list(&dir).unwrap()[..] else { panic!("one snapshot") };
    disk.remove(&dir.join(name)).unwrap();
    let mut failed = store.failed();
    assert_eq!(*failed.borrow(), None);
    // One that has not opened it yet. openraft ends the core of whoever is told of an error here.
    assert!(store.snapshots_of(id).current().is_err());
    let told = reason(&mut failed).await;
    assert!(told.contains("a snapshot cannot be read") && told.contains(name.as_str()), "{told}");
    propose(&replica, 0).await.unwrap_err();
    replica.shutdown().await;
    store.close().await;
}
