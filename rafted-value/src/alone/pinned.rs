//! An idle group that keeps the log's oldest segment is snapshotted once that costs no more than to copy its entries again
//! and again; a large state is not written for the sake of a few entries.

use super::*;
use crate::backlog::MIN_DISTANCE_BYTES;
use crate::disk::{Disk, RealDisk};
use crate::wal::{LogEntry, Position, Wal, WalConfig};

const SEGMENT_BYTES: u64 = 128 << 10;
/// Too little for a snapshot by its own weight.
const IDLE_BYTES: usize = 600_000;
/// What is written of it at most before copies weigh as much as a snapshot.
const MAX_COPIED_BYTES: u64 = MIN_DISTANCE_BYTES + SEGMENT_BYTES;

/// Writes to a replica of the log alone, and drops it at once.
async fn write_segment(wal: &Wal, busy: u64, next: &mut u64) {
    for _ in 0..16 {
        let (done, appended) = tokio::sync::oneshot::channel();
        let payload = Bytes::from(vec![1; SEGMENT_BYTES as usize / 16]);
        let told = Box::new(move |result| drop(done.send(result)));
        wal.append(busy, vec![LogEntry { term: 1, index: *next, payload }], told);
        appended.await.unwrap().unwrap();
        wal.purge(busy, Position { term: 1, index: *next });
        *next += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_group_is_snapshotted_instead_of_being_copied_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let config = WalConfig::default().with_segment_bytes(SEGMENT_BYTES);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let store = Store::open_with(disk, dir.path(), "n1", config).unwrap();
    let idle = start(&store, "idle").await;
    add(&idle, IDLE_BYTES / COMMAND_BYTES).await;
    let busy = store.create_replica("busy", 0, Vec::new()).await.unwrap().get();
    let (wal, mut next) = (store.wal().clone(), 0);
    assert!(idle.status().snapshot.is_none() && wal.stats().live_bytes > IDLE_BYTES as u64 * 9 / 10);
    let deadline = std::time::Instant::now() + PATIENCE;
    // It keeps several segments, and is told of each when that is the oldest.
    while wal.stats().live_bytes > IDLE_BYTES as u64 / 10 {
        assert!(std::time::Instant::now() < deadline, "{:?}, {:?}", wal.stats(), idle.status());
        write_segment(&wal, busy, &mut next).await;
    }
    let copied = wal.stats().copied_bytes;
    assert!(idle.status().snapshot.is_some() && copied <= MAX_COPIED_BYTES, "{:?}", wal.stats());
    for _ in 0..20 {
        write_segment(&wal, busy, &mut next).await;
        assert!(wal.stats().segments <= 6 && wal.stats().copied_bytes < copied + SEGMENT_BYTES, "{:?}", wal.stats());
    }
    // Nothing is lost by it.
    let entries = idle.read_local(|bag: &Bag, _| bag.0.len()).unwrap();
    assert_eq!(entries, IDLE_BYTES / COMMAND_BYTES);
    idle.shutdown().await;
}

/// As large from the first command on as the command says.
#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Large(Vec<u8>);

impl Value for Large {
    type Command = (u64, Vec<u8>);
    type Reply = ();
    type Query = ();
    type Answer = ();
    fn command(&mut self, (bytes, _): (u64, Vec<u8>)) {
        self.0.resize(bytes as usize, 7);
    }
    fn query(&self, (): ()) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_state_is_not_written_again_for_the_sake_of_a_few_entries() {
    const STATE_BYTES: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let config = WalConfig::default().with_segment_bytes(SEGMENT_BYTES);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let store = Store::open_with(disk, dir.path(), "n1", config).unwrap();
    let large = start_as(&store, "large", GroupConfig::default(), ValueFactory::of::<Large>(None)).await;
    let command = |bytes: usize| encode_command::<Large>(&(STATE_BYTES, vec![7; bytes]), None, 0).unwrap();
    large.propose(command(1), PATIENCE).await.unwrap();
    large.snapshot().await;
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut changes = large.status_changes();
    while large.status().snapshot.is_none() {
        assert!(std::time::Instant::now() < deadline, "{:?}", large.status());
        let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
    }
    let first = large.status().snapshot;
    large.propose(command(40_000), PATIENCE).await.unwrap();
    let busy = store.create_replica("busy", 0, Vec::new()).await.unwrap().get();
    let (wal, mut next) = (store.wal().clone(), 0);
    // It keeps the oldest segment again and again, and is told each time.
    while wal.stats().copied_bytes < 6 * 40_000 {
        assert!(std::time::Instant::now() < deadline, "{:?}, {:?}", wal.stats(), large.status());
        write_segment(&wal, busy, &mut next).await;
    }
    assert_eq!(large.status().snapshot, first, "{:?}", wal.stats());
    large.shutdown().await;
}
