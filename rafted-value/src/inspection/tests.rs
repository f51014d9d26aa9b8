//! Directories as real nodes leave them: closed, killed, torn, and damaged.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::alone::{COMMAND_BYTES, add, start};
use crate::store::Store;
use crate::wal::SegmentState;

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with two replicas, one with a snapshot in a file; as a kill leaves it, and as a clean stop does.
async fn directories() -> (TempDir, TempDir, ReplicaId) {
    let closed = tempfile::tempdir().unwrap();
    let store = Store::open(closed.path(), "n1").await.unwrap();
    let (large, small) = (start(&store, "large").await, start(&store, "small").await);
    add(&large, 4).await;
    large.snapshot().await;
    let mut changes = large.status_changes();
    while large.status().snapshot.is_none() {
        let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
    }
    add(&large, 2).await;
    add(&small, 1).await;
    assert!(matches!(Inspection::open(closed.path()), Err(StoreError::Locked { .. })));
    assert!(matches!(Inspection::verify(closed.path()), Err(StoreError::Locked { .. })));
    let killed = tempfile::tempdir().unwrap();
    for (path, bytes) in content(closed.path()) {
        let to = killed.path().join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
    let id = large.spec().replica;
    large.shutdown().await;
    small.shutdown().await;
    drop((large, small));
    store.close().await;
    drop(store);
    (closed, killed, id)
}

/// All files by their names.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let folders = [dir.to_owned(), dir.join("wal"), dir.join("snapshots")];
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.is_file());
    files.map(|path| (path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

/// Opens it, while whatever has held it lets go of its lock.
fn open(dir: &Path) -> Inspection {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match Inspection::open(dir) {
            Err(StoreError::Locked { .. }) if std::time::Instant::now() < deadline => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_left_is_told_and_nothing_is_written() {
    let (closed, killed, large) = directories().await;
    for (dir, is_closed) in [(closed.path(), true), (killed.path(), false)] {
        let inspection = open(dir);
        let before = content(dir);
        assert_eq!((inspection.node().unwrap().name.as_str(), inspection.node().unwrap().boot), ("n1", 1));
        let segments = inspection.segments();
        assert_eq!((segments[0].state, segments[0].segment_use), (SegmentState::Active, 1));
        let (first, last) = segments[0].sequences.unwrap();
        assert!(first == 1 && last > 8 && segments[0].live_bytes < segments[0].used_bytes, "{segments:?}");
        assert_eq!(inspection.end().unwrap() == LogEnd::Closed, is_closed);
        let replicas = inspection.replicas();
        let find = |group: &str| replicas.iter().find(|replica| replica.group == group).unwrap();
        let found = find("large");
        assert_eq!((found.replica, found.incarnation, found.vote.unwrap().committed), (large, 3, true));
        assert!(found.snapshot.is_some() && found.snapshot_file.is_some() && find("small").snapshot.is_none());
        let count = |found: &InspectedReplica| found.last.unwrap().index + 1 - found.first_index.unwrap();
        assert_eq!((count(found), count(find("small"))), (found.entries, find("small").entries));
        let mut records = Vec::new();
        inspection.records(large, |record| records.push(record)).unwrap();
        assert_eq!(records[0].content, RecordContent::Created);
        let is_command = |record: &&InspectedRecord| {
            matches!(record.content, RecordContent::Entry { kind: "command", payload_bytes, .. }
                if payload_bytes > COMMAND_BYTES as u64)
        };
        assert_eq!(records.iter().filter(is_command).count(), 6);
        drop(inspection);
        let verified = Inspection::verify(dir).unwrap();
        assert_eq!((verified.findings, verified.replicas, verified.snapshots), (vec![], 2, 1));
        assert!(verified.snapshot_bytes > 4 * COMMAND_BYTES as u64);
        assert_eq!(content(dir), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_named_and_is_no_damage() {
    let (_closed, killed, _) = directories().await;
    let mut records = Vec::new();
    let inspection = open(killed.path());
    for replica in inspection.replicas() {
        inspection.records(replica.replica, |record| records.push(record)).unwrap();
    }
    drop(inspection);
    let record = records.into_iter().max_by_key(|record| record.offset).unwrap();
    let offset = record.offset;
    flip(&record.file, offset + 20);
    let verified = Inspection::verify(killed.path()).unwrap();
    assert_eq!(verified.findings, []);
    let Some(LogEnd::Torn { file, offset: torn_at }) = verified.end else { panic!("{:?}", verified.end) };
    assert!(file == record.file && torn_at < offset, "{torn_at} {offset}");
    // A start drops it: then nothing is torn any more.
    Store::open(killed.path(), "n1").await.unwrap().close().await;
    assert_eq!(open(killed.path()).end().unwrap(), LogEnd::Closed);
}

fn flip(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset as usize] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_found_with_its_file_and_byte() {
    let (closed, _killed, _) = directories().await;
    let dir = closed.path();
    let inspection = open(dir);
    let active = inspection.segments()[0].clone();
    let snapshot = inspection.replicas().into_iter().find_map(|replica| replica.snapshot_file).unwrap();
    drop(inspection);
    let snapshot = dir.join("snapshots").join(snapshot);
    let snapshot_bytes = fs::metadata(&snapshot).unwrap().len();
    let healthy = content(dir);
    let restore = || healthy.iter().for_each(|(path, bytes)| fs::write(dir.join(path), bytes).unwrap());
    let places = [
        (dir.join("node"), vec![0, 9, 30]),
        (active.file.clone(), vec![33, 4096, 4096 + 30, active.used_bytes / 2]),
        (snapshot.clone(), vec![0, 9, 17, snapshot_bytes / 3, snapshot_bytes - 1]),
    ];
    for (file, offsets) in places {
        for offset in offsets {
            flip(&file, offset);
            let found = Inspection::verify(dir).unwrap().findings;
            assert_eq!(found.len(), 1, "{offset} of {}: {found:?}", file.display());
            // A snapshot's id is judged with its first frame, and the node file as a whole.
            let near = if file == dir.join("node") { u64::MAX } else { offset.max(16) };
            assert!(found[0].file == file && found[0].offset <= near, "{offset}: {}", found[0]);
            if file == active.file {
                let refused = Store::open(dir, "n1").await.unwrap_err().to_string();
                let place = (format!("{}", file.display()), format!("{}", found[0].offset));
                assert!(refused.contains(&place.0) && refused.contains(&place.1), "{}: {refused}", found[0]);
            }
            restore();
        }
    }
    fs::write(&snapshot, &healthy[snapshot.strip_prefix(dir).unwrap()][..1000]).unwrap();
    assert!(Inspection::verify(dir).unwrap().findings[0].what.contains("cut short"));
    fs::remove_file(&snapshot).unwrap();
    assert!(Inspection::verify(dir).unwrap().findings[0].what.contains("missing"));
    restore();
    fs::remove_file(dir.join("node")).unwrap();
    assert_eq!(Inspection::verify(dir).unwrap().findings[0].file, dir.join("node"));
    restore();
    assert_eq!(Inspection::verify(dir).unwrap().findings, []);
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Inspection::verify(dir.path().join("none")), Err(StoreError::Io { .. })));
    assert!(Inspection::open(dir.path().join("none")).is_err());
}
