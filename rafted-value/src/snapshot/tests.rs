//! Snapshots of one replica over real files: written and read in pieces, replaced, damaged, read while replaced.

use super::*;
use crate::disk::RealDisk;
use crate::openraft_types::{StoredMembership, log_id};
use crate::pieces::{PieceReader, PieceWriter};
use crate::value::Value;
use crate::wal::{ReplicaRecord, WalConfig};

const REPLICA: u64 = 7;

/// Numbers in pieces of a hundred.
#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(super) struct Numbers(pub(super) Vec<u64>);

impl Value for Numbers {
    type Command = Vec<u64>;
    type Reply = ();
    type Query = ();
    type Answer = ();

    fn command(&mut self, numbers: Vec<u64>) {
        self.0 = numbers;
    }

    fn query(&self, (): ()) {}

    fn write_pieces(&self, pieces: &mut PieceWriter<'_>) -> Result<(), PieceError> {
        self.0.chunks(100).try_for_each(|chunk| pieces.write(&chunk.to_vec()))
    }

    fn read_pieces(_: u32, pieces: &mut PieceReader<'_>) -> Result<Self, UpgradeError> {
        let mut numbers = Self::default();
        while let Some(chunk) = pieces.read::<Vec<u64>>()? {
            numbers.0.extend(chunk);
        }
        Ok(numbers)
    }
}

fn factory() -> ValueFactory {
    ValueFactory::of::<Numbers>(None)
}

fn content(index: u64, count: u64) -> Content {
    let meta = SnapshotMeta { last_log_id: Some(log_id(1, index)), last_membership: StoredMembership::default() };
    let mut value = factory().create();
    let numbers = crate::wire::encode(&(0..count).collect::<Vec<u64>>()).unwrap();
    value.command(&crate::value::Context::new(LogTime::default(), index, None), 1, &numbers).unwrap();
    Content { meta, log_time: LogTime::from_millis(index), sessions: Sessions::default(), config: None, value }
}

fn numbers(content: &Content) -> u64 {
    content.value.as_any().downcast_ref::<Numbers>().unwrap().0.len() as u64
}

fn file_names(dir: &Path) -> Vec<String> {
    RealDisk.list(dir).unwrap()
}

/// Waits for what threads do in their own time.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn store(dir: &Path) -> SnapshotStore {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (wal_dir, snapshots) = (dir.join("wal"), dir.join("snapshots"));
    for path in [&wal_dir, &snapshots] {
        disk.create_dir_all(path).unwrap();
    }
    let wal = Wal::open(disk.clone(), &wal_dir, WalConfig::default()).unwrap();
    if wal.replicas().is_empty() {
        let (done, created) = tokio::sync::oneshot::channel();
        let record = ReplicaRecord { replica: REPLICA, group: "g".into(), incarnation: 0, detail: Bytes::new() };
        wal.create(record, Box::new(move |result| drop(done.send(result))));
        created.await.unwrap().unwrap();
    }
    let threads = Threads::Pool(tokio::runtime::Handle::current());
    SnapshotStore::new(REPLICA, wal, Some((disk, snapshots)), threads)
}

async fn chunks_of(body: &SnapshotBody) -> Vec<Bytes> {
    let mut chunks = body.chunks(0);
    let mut all = Vec::new();
    while let Some(chunk) = chunks.next().await.unwrap() {
        all.push(chunk);
    }
    all
}

#[tokio::test]
async fn a_small_snapshot_lives_in_the_log_and_a_large_one_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    for (index, count, files) in [(1, 10, 0), (2, 100_000, 1), (3, 10, 0), (4, 200_000, 1), (5, 300_000, 1)] {
        let store = store(dir.path()).await;
        store.save(content(index, count)).await.unwrap();
        let loaded = store.load(&factory()).unwrap().unwrap().0;
        assert_eq!((loaded.meta.last_log_id, numbers(&loaded)), (Some(log_id(1, index)), count));
        let snapshots = dir.path().join("snapshots");
        eventually("the old file goes", || file_names(&snapshots).len() == files).await;
        assert!(file_names(&snapshots).iter().all(|name| name.ends_with(".snap")));
        store.wal.close();
    }
}

#[tokio::test]
async fn an_old_file_stays_until_its_last_reader_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let snapshots = dir.path().join("snapshots");
    let first = chunks_of(&store.save(content(1, 100_000)).await.unwrap()).await.concat();
    let (_, reading) = store.current().unwrap().unwrap();
    store.save(content(2, 100_001)).await.unwrap();
    assert_eq!(file_names(&snapshots).len(), 2, "one is being read");
    assert_eq!(chunks_of(&reading).await.concat(), first);
    drop(reading);
    eventually("the old file goes", || file_names(&snapshots).len() == 1).await;
    assert_eq!(numbers(&store.load(&factory()).unwrap().unwrap().0), 100_001);
}

#[tokio::test]
async fn an_older_snapshot_takes_the_place_of_no_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.save(content(5, 100_000)).await.unwrap();
    store.save(content(4, 100_001)).await.unwrap();
    assert_eq!(numbers(&store.load(&factory()).unwrap().unwrap().0), 100_000);
    eventually("its file goes", || file_names(&dir.path().join("snapshots")).len() == 1).await;
}

#[tokio::test]
async fn a_received_snapshot_is_the_sent_one() {
    for count in [10, 100_000] {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (sender, receiver) = (store(from.path()).await, store(to.path()).await);
        let body = sender.save(content(3, count)).await.unwrap();
        let (id, meta) = (body.identity().await.unwrap().0, content(3, 0).meta);
        let received = receiver.receive(id, 0, body.chunks(0), &meta, &factory()).await.unwrap();
        let installed = receiver.install(received, &factory()).await.unwrap();
        assert_eq!(numbers(&installed), count);
        assert_eq!(numbers(&receiver.load(&factory()).unwrap().unwrap().0), count);
    }
}

#[tokio::test]
async fn what_is_received_and_not_the_announced_snapshot_leaves_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sender, receiver) = (store(from.path()).await, store(to.path()).await);
    let body = sender.save(content(3, 100_000)).await.unwrap();
    let (id, other) = (body.identity().await.unwrap().0, content(4, 0).meta);
    let error = receiver.receive(id, 0, body.chunks(0), &other, &factory()).await.err().unwrap();
    assert!(error.to_string().contains("another snapshot"), "{error}");
    assert!(receiver.load(&factory()).unwrap().is_none());
    eventually("its file goes", || file_names(&to.path().join("snapshots")).is_empty()).await;
}

/// A value that has no code for any other version.
#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Later(u64);

impl Value for Later {
    const VERSION: u32 = 2;
    type Command = ();
    type Reply = ();
    type Query = ();
    type Answer = ();
    fn command(&mut self, (): ()) {}
    fn query(&self, (): ()) {}
}

#[tokio::test]
async fn what_no_program_of_this_version_can_read_is_told_from_what_is_damaged() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sender, receiver) = (store(from.path()).await, store(to.path()).await);
    let body = sender.save(content(3, 100_000)).await.unwrap();
    let ((id, form), meta) = (body.identity().await.unwrap(), content(3, 0).meta);
    assert_eq!(form, SnapshotForm { format: 3, version: 1 });
    let later = ValueFactory::of::<Later>(None);
    let rows = [
        (form, &later, None),
        (SnapshotForm { version: 2, ..form }, &later, None),
        (SnapshotForm { version: 3, ..form }, &later, Some("version 3")),
        (SnapshotForm { version: 2, ..form }, &factory(), Some("version 2")),
        (SnapshotForm { format: 2, ..form }, &later, Some("format 2")),
        (SnapshotForm { format: 4, ..form }, &later, Some("format 4")),
    ];
    for (form, factory, reason) in rows {
        let found = SnapshotStore::cannot_read(form, factory);
        assert_eq!(found.is_some(), reason.is_some(), "{form:?}");
        assert!(found.is_none_or(|found| found.contains(reason.unwrap_or_default())), "{form:?}");
    }
    // Only its code knows of which older versions it knows.
    let received = receiver.receive(id, 0, body.chunks(0), &meta, &later).await;
    let Err(ReceiveError::Unreadable(reason)) = received else { panic!("it was received, or refused otherwise") };
    assert!(reason.contains("version 1"), "{reason}");
    eventually("its file goes", || file_names(&to.path().join("snapshots")).is_empty()).await;
}

/// A body that breaks off after some chunks.
struct Broken {
    chunks: Box<dyn Body>,
    left: usize,
}

impl Body for Broken {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Option<Bytes>>> + Send + '_>> {
        if self.left == 0 {
            return Box::pin(async { Err(io::Error::other("the connection is lost")) });
        }
        self.left -= 1;
        self.chunks.next()
    }
}

#[tokio::test]
async fn a_transfer_that_breaks_off_again_and_again_arrives() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sender, receiver) = (store(from.path()).await, store(to.path()).await);
    let body = sender.save(content(3, 300_000)).await.unwrap();
    let (id, meta) = (body.identity().await.unwrap().0, content(3, 0).meta);
    assert!(id.length > 8 * CHUNK_BYTES as u64, "{}", id.length);
    let mut expected = 0;
    let received = loop {
        let offset = receiver.offset(id).unwrap();
        assert_eq!(offset, expected, "nothing is sent twice");
        let chunks = Box::new(Broken { chunks: body.chunks(offset), left: 1 });
        match receiver.receive(id, offset, chunks, &meta, &factory()).await {
            Ok(received) => break received,
            Err(ReceiveError::Failed(error)) => assert!(error.to_string().contains("is lost"), "{error}"),
            Err(refused) => panic!("{refused}"),
        }
        expected += CHUNK_BYTES as u64;
        if expected >= id.length {
            let last = receiver.receive(id, id.length, body.chunks(id.length), &meta, &factory()).await;
            break last.unwrap();
        }
    };
    assert_eq!(numbers(&receiver.install(received, &factory()).await.unwrap()), 300_000);
    assert_eq!(file_names(&to.path().join("snapshots")).len(), 1);
}

#[tokio::test]
async fn a_transfer_that_goes_on_with_another_snapshot_is_found_out_and_leaves_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sender, receiver) = (store(from.path()).await, store(to.path()).await);
    let one = sender.save(content(3, 300_000)).await.unwrap();
    let other = sender.save(content(4, 300_000)).await.unwrap();
    let (id, meta) = (one.identity().await.unwrap().0, content(3, 0).meta);
    assert_eq!(id.length, other.identity().await.unwrap().0.length, "the same length");
    let chunks = Box::new(Broken { chunks: one.chunks(0), left: 2 });
    receiver.receive(id, 0, chunks, &meta, &factory()).await.err().unwrap();
    let offset = receiver.offset(id).unwrap();
    let error = receiver.receive(id, offset, other.chunks(offset), &meta, &factory()).await.err().unwrap();
    assert!(error.to_string().contains("checksum"), "{error}");
    assert_eq!(receiver.offset(id), Some(0), "it begins again");
    eventually("its file goes", || file_names(&to.path().join("snapshots")).is_empty()).await;
}

#[tokio::test]
async fn a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.save(content(1, 100_000)).await.unwrap();
    let path = dir.path().join("snapshots").join(&file_names(&dir.path().join("snapshots"))[0]);
    let whole = std::fs::read(&path).unwrap();
    for at in [0, 9, 40, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        match store.load(&factory()) {
            Err(ReadError::Damaged(reason)) => assert!(reason.contains(&*path.to_string_lossy()), "{reason}"),
            other => panic!("byte {at}: {:?}", other.map(|_| "it was read")),
        }
    }
}

#[tokio::test]
async fn pieces_that_the_value_does_not_read_are_an_error() {
    #[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
    struct Forgetful(Vec<u64>);
    impl Value for Forgetful {
        type Command = ();
        type Reply = ();
        type Query = ();
        type Answer = ();
        fn command(&mut self, (): ()) {}
        fn query(&self, (): ()) {}
    }
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.save(content(1, 1_000)).await.unwrap();
    let error = store.load(&ValueFactory::of::<Forgetful>(None)).err().unwrap();
    assert!(matches!(&error, ReadError::Damaged(reason) if reason.contains("where End is due")), "{error}");
}
