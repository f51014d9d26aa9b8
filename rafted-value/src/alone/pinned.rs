//! An idle group that keeps the log's oldest segment is snapshotted, and its entries are not copied for ever.

use super::*;
use crate::disk::{Disk, RealDisk};
use crate::wal::{LogEntry, Position, Wal, WalConfig};

const SEGMENT_BYTES: u64 = 1 << 20;
const IDLE_BYTES: usize = 8 << 20;

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
    assert!(idle.status().snapshot.is_some() && copied <= IDLE_BYTES as u64, "{:?}", wal.stats());
    for _ in 0..20 {
        write_segment(&wal, busy, &mut next).await;
        assert!(wal.stats().segments <= 6 && wal.stats().copied_bytes < copied + SEGMENT_BYTES, "{:?}", wal.stats());
    }
    // Nothing is lost by it.
    let entries = idle.read_local(|bag: &Bag, _| bag.0.len()).unwrap();
    assert_eq!(entries, IDLE_BYTES / COMMAND_BYTES);
    idle.shutdown().await;
}
