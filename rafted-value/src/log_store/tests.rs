//! openraft's storage suite, over every mode of the log, with the real machine and snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::*;
use crate::any_value::ValueFactory;
use crate::clock::SystemClock;
use crate::config::GroupConfig;
use crate::disk::faulty::FaultyDisk;
use crate::disk::{Disk, RealDisk};
use crate::machine::{Machine, Shared};
use crate::snapshot::SnapshotStore;
use crate::status::Member;
use crate::threads::Threads;
use crate::value::Value;
use crate::wal::{MIN_SEGMENT_BYTES, ReplicaRecord, WalConfig};

const REPLICA: u64 = 1;

/// The suite names members by numbers alone.
impl Default for Member {
    fn default() -> Self {
        Member { name: "n".into(), node: 1, zone: String::new(), decided_at: 0, addresses: Vec::new() }
    }
}

crate::messages! {
    #[derive(Default)]
    pub struct Numbers { pub by_name: BTreeMap<String, u64> }
    pub enum Command { Set(String, u64) }
    pub enum Query { Count }
}

impl Value for Numbers {
    type Command = Command;
    type Reply = u64;
    type Query = Query;
    type Answer = u64;

    fn command(&mut self, command: Command) -> u64 {
        let Command::Set(name, number) = command;
        self.by_name.insert(name, number).unwrap_or(0)
    }

    fn query(&self, _query: Query) -> u64 {
        self.by_name.len() as u64
    }
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Memory,
    Files,
    /// Every entry is read from its segment.
    FilesWithoutCache,
}

impl Mode {
    async fn open(self) -> Result<(Option<TempDir>, LogStore, Machine), io::Error> {
        let (dir, wal, files) = match self {
            Mode::Memory => (None, Wal::memory(), None),
            Mode::Files | Mode::FilesWithoutCache => {
                let dir = tempfile::tempdir()?;
                let snapshots = dir.path().join("snapshots");
                let disk: Arc<dyn Disk> = Arc::new(RealDisk);
                disk.create_dir_all(&snapshots)?;
                let mut config = WalConfig::default().with_segment_bytes(MIN_SEGMENT_BYTES);
                if let Mode::FilesWithoutCache = self {
                    config = config.with_cache_bytes(0);
                }
                let wal = Wal::open(disk.clone(), &dir.path().join("wal"), config).map_err(io::Error::other)?;
                (Some(dir), wal, Some((disk, snapshots)))
            }
        };
        create(&wal).await?;
        let threads = Threads::Pool(tokio::runtime::Handle::current());
        let snapshots = SnapshotStore::new(REPLICA, wal.clone(), files, threads.clone());
        let (factory, clock) = (ValueFactory::of::<Numbers>(None), Arc::new(SystemClock::default()));
        let shared = Shared::new("group".into(), REPLICA, factory, clock, GroupConfig::default());
        let machine = Machine::open(shared, snapshots, threads.clone()).map_err(io::Error::other)?;
        Ok((dir, LogStore::new(wal, REPLICA, threads), machine))
    }
}

async fn create(wal: &Wal) -> io::Result<()> {
    let (created, is_created) = oneshot::channel();
    let record = ReplicaRecord { replica: REPLICA, group: "group".into(), incarnation: 0, detail: Bytes::new() };
    wal.create(record, Box::new(move |result| drop(created.send(result))));
    is_created.await.map_err(io::Error::other)?
}

impl StoreBuilder<Types, LogStore, Machine, Option<TempDir>> for Mode {
    async fn build(&self) -> Result<(Option<TempDir>, LogStore, Machine), StorageError<Types>> {
        Ok(self.open().await.expect("a log in a new directory"))
    }
}

async fn passes(mode: Mode) {
    Suite::test_all(mode).await.unwrap_or_else(|error| panic!("{mode:?}: {error}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes_in_memory() {
    passes(Mode::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes_on_files() {
    passes(Mode::Files).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes_on_files_without_a_cache() {
    passes(Mode::FilesWithoutCache).await;
}

#[tokio::test]
async fn files_are_read_on_a_thread_that_may_wait_and_only_when_they_must_be() {
    let here = std::thread::current().id();
    let payload = encode_payload(&openraft::EntryPayload::Blank);
    let entries = || (0..50).map(|index| LogEntry { term: 1, index, payload: payload.clone() }).collect();
    for (cache_bytes, reads) in [(1 << 20, false), (0, true)] {
        let disk = FaultyDisk::default();
        let config = WalConfig::default().with_segment_bytes(MIN_SEGMENT_BYTES).with_cache_bytes(cache_bytes);
        let wal = Wal::open(Arc::new(disk.clone()), std::path::Path::new("/wal"), config).unwrap();
        create(&wal).await.unwrap();
        let (done, appended) = oneshot::channel();
        wal.append(REPLICA, entries(), Box::new(move |result| drop(done.send(result))));
        appended.await.unwrap().unwrap();
        disk.readers();
        let mut store = LogStore::new(wal, REPLICA, Threads::Pool(tokio::runtime::Handle::current()));
        assert_eq!(store.try_get_log_entries(10..20).await.unwrap().len(), 10);
        assert_eq!(store.limited_get_log_entries(10, 50).await.unwrap().len(), 40);
        let streamed: Vec<_> = store.entries_stream(0..50).await.try_collect().await.unwrap();
        assert_eq!(streamed.len(), 50);
        let readers = disk.readers();
        assert_eq!((!readers.is_empty(), readers.contains(&here)), (reads, false), "{cache_bytes} bytes of cache");
    }
}
