//! A full disk under a replica: commands are refused before raft sees them, and taken again when there is room.

use super::*;
use crate::disk::faulty::FaultyDisk;
use crate::error::{CommandError, NotHappened};
use crate::proposer::ProposeError;
use crate::wal::WalConfig;

const SEGMENT_BYTES: u64 = 256 * 1024;

fn open(disk: &FaultyDisk) -> Store {
    let config = WalConfig::default().with_segment_bytes(SEGMENT_BYTES);
    Store::open_with(Arc::new(disk.clone()), std::path::Path::new("/data"), "n1", config).unwrap()
}

async fn propose(replica: &UntypedReplica, serial: u64) -> Result<Bytes, ProposeError> {
    let mut bytes = vec![7; 1000];
    bytes[..8].copy_from_slice(&serial.to_le_bytes());
    replica.propose(encode_command::<Bag>(&bytes, None, 0).unwrap(), PATIENCE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_refused_while_the_disk_is_full_and_nothing_acknowledged_is_lost() {
    let disk = FaultyDisk::default();
    disk.set_capacity(Some(6 * SEGMENT_BYTES));
    let store = open(&disk);
    let replica = start(&store, "g").await;
    let mut acknowledged = 0;
    let refused = loop {
        match propose(&replica, acknowledged).await {
            Ok(_) => acknowledged += 1,
            Err(refused) => break refused,
        }
    };
    let expected = ProposeError::Command(CommandError::NotHappened(NotHappened::DiskFull { group: "g".into() }));
    assert!(refused == expected && acknowledged > 100, "{refused:?} after {acknowledged}");
    // Not the status, which tells of an entry a moment after its command is answered.
    let last = |replica: &UntypedReplica| replica.log_entries().last().map(|entry| entry.index);
    let before = last(&replica);
    assert_eq!(propose(&replica, 0).await.unwrap_err(), expected);
    assert_eq!((replica.status().role, last(&replica)), (Role::Leader, before), "raft has not seen it");
    disk.set_capacity(None);
    let deadline = std::time::Instant::now() + PATIENCE;
    // The log asks the disk by itself, without being written to.
    while store.wal().is_full() {
        assert!(std::time::Instant::now() < deadline, "{:?}", store.log_stats());
        tokio::task::yield_now().await;
    }
    propose(&replica, acknowledged).await.unwrap();
    let serials = |bag: &Bag| bag.0.iter().map(|bytes| u64::from_le_bytes(bytes[..8].try_into().unwrap())).collect();
    let found: Vec<u64> = replica.read_local(|bag: &Bag, _| serials(bag)).unwrap();
    assert_eq!(found, (0..=acknowledged).collect::<Vec<_>>());
    replica.shutdown().await;
}
