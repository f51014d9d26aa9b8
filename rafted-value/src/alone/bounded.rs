//! Over a long run, neither the log nor the snapshots take more than what a snapshot's distance needs.

use std::path::Path;

use super::*;
use crate::disk::{Disk, RealDisk};
use crate::wal::{MIN_SEGMENT_BYTES, WalConfig};

const SEGMENT_BYTES: u64 = 4 * MIN_SEGMENT_BYTES;
const SNAPSHOT_AFTER: u64 = 50;
/// Large enough that a snapshot is a file of its own.
const VALUE_BYTES: usize = 80_000;
const COMMAND_BYTES: usize = 2_000;
const ROUNDS: usize = 60;
const COMMANDS_PER_ROUND: usize = 100;
/// A round, what comes while a snapshot is being made, what is kept behind one, and the segments that are written and in
/// reserve: it does not grow with the number of rounds.
const MAX_LOG_BYTES: u64 = 24 * SEGMENT_BYTES;
const MAX_SNAPSHOT_FILES: usize = 3;

/// The last one it was given.
#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Register(Vec<u8>);

impl Value for Register {
    type Command = Vec<u8>;
    type Reply = ();
    type Query = ();
    type Answer = ();
    fn command(&mut self, bytes: Vec<u8>) {
        self.0 = bytes;
        self.0.resize(VALUE_BYTES, 7);
    }
    fn query(&self, (): ()) {}
}

fn sizes(dir: &Path) -> Vec<u64> {
    let lengths = RealDisk.list(dir).unwrap().into_iter().filter_map(|name| std::fs::metadata(dir.join(name)).ok());
    lengths.map(|found| found.len()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_snapshots_stay_bounded_over_a_long_run() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let log_config = WalConfig::default().with_segment_bytes(SEGMENT_BYTES);
    let store = Store::open_with(disk, dir.path(), "n1", log_config).unwrap();
    let config = GroupConfig::default().with_snapshot_after_entries(SNAPSHOT_AFTER).unwrap();
    let replica = start_as(&store, "register", config, ValueFactory::of::<Register>(None)).await;
    let command = encode_command::<Register>(&vec![7; COMMAND_BYTES], None, 0).unwrap();
    for round in 0..ROUNDS {
        let proposals = (0..COMMANDS_PER_ROUND).map(|_| replica.propose(command.clone(), PATIENCE));
        for outcome in futures_util::future::join_all(proposals).await {
            outcome.unwrap();
        }
        // Commands do not wait for snapshots: it may be a while behind.
        let is_bounded = || {
            let (log, snapshots) = (sizes(&dir.path().join("wal")), sizes(&dir.path().join("snapshots")));
            log.iter().sum::<u64>() <= MAX_LOG_BYTES && snapshots.len() <= MAX_SNAPSHOT_FILES
        };
        let deadline = std::time::Instant::now() + PATIENCE;
        while !is_bounded() {
            let (log, snapshots) = (sizes(&dir.path().join("wal")), sizes(&dir.path().join("snapshots")));
            assert!(
                std::time::Instant::now() < deadline,
                "round {round}: {log:?}, {snapshots:?}, {:?}",
                replica.status()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let written = store.log_stats().bytes;
    assert!(written > 5 * MAX_LOG_BYTES, "{written} bytes were written, too few to tell");
    replica.shutdown().await;
    store.close().await;
}
