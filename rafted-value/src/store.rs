//! A node's storage: one per process. It owns the directory's lock, the node file, the write-ahead log that all
//! of the node's groups share, the snapshots, and the threads on which user code runs.
//!
//! ```text
//! DIR/node       who this node is (node_file.rs)          DIR/wal/        the log's segments, nothing else
//! DIR/lock       held while a process uses DIR            DIR/snapshots/  one file per large snapshot
//! ```

mod config;
mod recovering;
mod promises;
mod starts;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

pub use self::config::StoreConfig;
use self::promises::Waiting;
pub use self::recovering::{Recovered, RecoveryError};
use crate::clock::{Clock, SystemClock};
use crate::disk::guarded::GuardedDisk;
use crate::disk::{Disk, RealDisk};
use crate::error::StoreError;
use crate::node_file::{self, NodeFile};
use crate::rpc::ClusterTag;
use crate::snapshot::{self, SnapshotLimits, SnapshotStore, Traffic};
use crate::starts::{Start, Starts};
use crate::status::ReplicaId;
use crate::threads::Threads;
#[cfg(test)]
use crate::wal::WalConfig;
use crate::wal::{ReplicaLogState, ReplicaRecord, Wal, WalError, WalStats};

/// A node's storage. Clones share it; it is closed by [`Store::close`] or when the last is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    /// As in `node`, which is held while it is written.
    node_id: u64,
    node: Mutex<NodeFile>,
    /// The starts of this directory, which are what they are.
    starts: Starts,
    /// Whether members of a group know more of this directory than is in it.
    rolled_back: watch::Sender<bool>,
    /// As in `node`: the latest starts of other nodes.
    seen: Mutex<BTreeMap<u64, Start>>,
    /// Promises that are yet to be written.
    promises: Mutex<Vec<Waiting>>,
    wal: Wal,
    files: Option<Files>,
    around: Surroundings,
    traffic: Arc<Traffic>,
    /// Replicas that run: a second core over one replica's log could vote twice in a term.
    running: Mutex<BTreeSet<ReplicaId>>,
    /// Replicas that were made since the store was opened.
    created: Mutex<BTreeSet<ReplicaId>>,
}

/// A replica that runs; it may run again once this is dropped, which whoever writes its log does.
pub(crate) struct Running {
    store: Store,
    replica: ReplicaId,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.store.inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.replica);
    }
}

/// What a store has from outside.
struct Surroundings {
    clock: Arc<dyn Clock>,
    threads: Threads,
    /// Keeps the threads alive.
    #[allow(dead_code, reason = "held for its drop")]
    apply_threads: Option<ApplyThreads>,
}

impl Surroundings {
    /// The machine's clocks, and threads of this store's own.
    fn system() -> Self {
        let apply_threads = ApplyThreads::start();
        let threads = Threads::Pool(apply_threads.handle.clone());
        Self { clock: Arc::new(SystemClock::default()), threads, apply_threads: Some(apply_threads) }
    }
}

struct Files {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// Who this node is, as its directory says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Its name.
    pub name: String,
    /// The number of its memory: minted with the directory, or, in memory, at each start.
    pub node_id: u64,
    /// Raised at each start; in memory, random.
    pub boot: u64,
    /// The cluster it belongs to, if it has joined one.
    pub cluster: Option<ClusterTag>,
    /// What the layer above keeps here.
    pub extra: Vec<u8>,
}

impl From<NodeFile> for NodeIdentity {
    fn from(node: NodeFile) -> Self {
        let NodeFile { name, node_id, boot, cluster, extra, .. } = node;
        Self { name, node_id, boot, cluster, extra }
    }
}

/// What this crate keeps with a replica of a lone group once that has let it in.
const ADMITTED: &[u8] = b"admitted";

/// A replica that was created here and not removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReplica {
    /// Its id.
    pub replica: ReplicaId,
    /// Its group.
    pub group: String,
    /// Its group's incarnation.
    pub incarnation: u64,
    /// What the layer above keeps with it, such as the value's registered name. Of lone groups, this crate is that layer.
    pub detail: Vec<u8>,
}

impl Store {
    /// Opens the data directory of the node of this name, and makes it where there is none. Raises the boot
    /// number, recovers the log, and keeps the directory locked.
    pub async fn open(dir: impl AsRef<Path>, name: &str) -> Result<Self, StoreError> {
        Self::open_with_config(dir, name, StoreConfig::default()).await
    }

    /// As [`Store::open`], with other sizes.
    pub async fn open_with_config(dir: impl AsRef<Path>, name: &str, config: StoreConfig) -> Result<Self, StoreError> {
        let (dir, name) = (dir.as_ref().to_owned(), name.to_owned());
        let around = Surroundings::system();
        let threads = around.threads.clone();
        let open = move || {
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            Self::open_in(around, disk, dir, name, |disk, dir| Wal::open(disk, dir, config.into_log()))
        };
        let opened = threads.run(open).await;
        match opened {
            Ok(store) => store,
            // The closure above holds no user code: only a runtime that shuts down ends here.
            Err(error) => Err(StoreError::Io { path: PathBuf::new(), error }),
        }
    }

    /// A node without a disk: the same code, and nothing survives the process.
    pub fn memory(name: &str) -> Self {
        Self::assemble(Surroundings::system(), name.to_owned(), NodeFile::of_memory(name), Wal::memory(), None)
    }

    /// Opens a directory on some disk, with a log of some size.
    #[cfg(test)]
    pub(crate) fn open_with(
        disk: Arc<dyn Disk>,
        dir: &Path,
        name: &str,
        config: WalConfig,
    ) -> Result<Self, StoreError> {
        let open_log = |disk, dir: &Path| Wal::open(disk, dir, config);
        Self::open_in(Surroundings::system(), disk, dir.to_owned(), name.to_owned(), open_log)
    }

    /// As [`Store::memory`], with clocks of its own, such as a test's.
    pub fn memory_with_clock(name: &str, clock: Arc<dyn Clock>) -> Self {
        let node = NodeFile::of_memory(name);
        let around = Surroundings { clock, ..Surroundings::system() };
        Self::assemble(around, name.to_owned(), node, Wal::memory(), None)
    }

    /// Opens a simulated node's directory; nothing is written until the appender is stepped.
    #[cfg(test)]
    pub(crate) fn open_simulated(
        disk: Arc<dyn Disk>,
        dir: &Path,
        name: &str,
        clock: Arc<dyn Clock>,
        config: WalConfig,
    ) -> Result<(Self, crate::wal::Appender), StoreError> {
        let around = Surroundings { clock, threads: Threads::Simulated, apply_threads: None };
        let mut appender = None;
        let store = Self::open_in(around, disk, dir.to_owned(), name.to_owned(), |disk, dir| {
            let (wal, stepped) = Wal::open_stepped(disk, dir, config)?;
            appender = Some(stepped);
            Ok(wal)
        })?;
        Ok((store, appender.expect("it was opened above")))
    }

    fn open_in(
        around: Surroundings,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        name: String,
        open_log: impl FnOnce(Arc<dyn Disk>, &Path) -> Result<Wal, WalError>,
    ) -> Result<Self, StoreError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| StoreError::Io { path, error }
        };
        let (wal_dir, snapshot_dir) = (dir.join("wal"), dir.join("snapshots"));
        for path in [&dir, &wal_dir, &snapshot_dir] {
            disk.create_dir_all(path).map_err(at(path))?;
        }
        let lock = disk.lock(&dir.join("lock")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => StoreError::Locked { path: dir.clone() },
            _ => StoreError::Io { path: dir.join("lock"), error },
        })?;
        let node = node_file::open(&*disk, &dir, &name)?;
        let wal = open_log(disk.clone(), &wal_dir).map_err(|error| from_wal(&wal_dir, error))?;
        let in_use: Vec<String> = wal
            .replicas()
            .iter()
            .filter_map(|record| wal.state(record.replica)?.snapshot)
            .map(|pointer| pointer.file)
            .collect();
        snapshot::sweep(&*disk, &snapshot_dir, |file| in_use.iter().any(|used| used == file))
            .map_err(at(&snapshot_dir))?;
        wal.hold(lock);
        let failing = wal.clone();
        let disk = Arc::new(GuardedDisk::new(disk, Arc::new(move |reason| failing.fail(reason))));
        Ok(Self::assemble(around, name, node, wal, Some(Files { disk, dir })))
    }

    fn assemble(around: Surroundings, name: String, node: NodeFile, wal: Wal, files: Option<Files>) -> Self {
        let (traffic, running) = (Traffic::new(around.clock.clone()), Mutex::default());
        let (promises, created) = (Mutex::default(), Mutex::default());
        let (node_id, starts, seen) = (node.node_id, node.starts.clone(), Mutex::new(node.seen.clone()));
        let node = Mutex::new(node);
        Self {
            inner: Arc::new(Inner {
                name,
                node_id,
                starts,
                rolled_back: watch::Sender::new(false),
                seen,
                node,
                promises,
                wal,
                files,
                around,
                traffic,
                running,
                created,
            }),
        }
    }

    /// Who this node is.
    pub fn node(&self) -> NodeIdentity {
        self.lock_node().clone().into()
    }

    /// The number of this node's memory; never waits for a disk.
    pub(crate) fn node_id(&self) -> u64 {
        self.inner.node_id
    }

    /// Remembers the cluster; durable on return. It waits for the disk: call it on a thread that may block.
    pub fn set_cluster(&self, cluster: ClusterTag) -> Result<(), StoreError> {
        self.update_node(|node| node.cluster = Some(cluster))
    }

    /// Remembers bytes of the layer above; durable on return. It waits for the disk: call it on a thread that may block.
    pub fn set_extra(&self, extra: Vec<u8>) -> Result<(), StoreError> {
        self.update_node(|node| node.extra = extra)
    }

    /// The replicas that live here.
    pub fn replicas(&self) -> Vec<StoredReplica> {
        self.inner.wal.replicas().into_iter().filter_map(stored).collect()
    }

    /// One of them, if it lives here.
    pub fn replica(&self, replica: ReplicaId) -> Option<StoredReplica> {
        self.inner.wal.record(replica.get()).and_then(stored)
    }

    /// Mints the id of a new replica; it is synced before it is returned, so that it is never minted again.
    pub async fn create_replica(
        &self,
        group: &str,
        incarnation: u64,
        detail: Vec<u8>,
    ) -> Result<ReplicaId, StoreError> {
        if *self.inner.rolled_back.borrow() {
            return Err(StoreError::RolledBack { path: self.dir() });
        }
        let replica = ReplicaId::random();
        let record =
            ReplicaRecord { replica: replica.get(), group: group.to_owned(), incarnation, detail: Bytes::from(detail) };
        let (done, synced) = oneshot::channel();
        self.inner.wal.create(record, Box::new(move |result| drop(done.send(result))));
        self.synced(synced).await?;
        self.lock_created().insert(replica);
        Ok(replica)
    }

    /// Forgets a replica with its log and snapshots. Stop it first.
    pub async fn remove_replica(&self, replica: ReplicaId) -> Result<(), StoreError> {
        let snapshot = self.inner.wal.state(replica.get()).and_then(|state| state.snapshot);
        let (done, synced) = oneshot::channel();
        self.inner.wal.remove(replica.get(), Box::new(move |result| drop(done.send(result))));
        self.synced(synced).await?;
        if let (Some(files), Some(pointer)) = (&self.inner.files, snapshot)
            && !pointer.file.is_empty()
        {
            let (disk, path) = (files.disk.clone(), files.dir.join("snapshots").join(&pointer.file));
            let file = path.clone();
            // A large file takes its time to go.
            let removed = self.threads().run(move || disk.remove(&file)).await.and_then(|removed| removed);
            removed.map_err(|error| StoreError::Io { path, error })?;
        }
        self.lock_created().remove(&replica);
        self.forget_removed(replica).await
    }

    /// Becomes `Some(reason)` when the log could not be written or synced. The process must stop then:
    /// nothing is acknowledged any more.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.inner.wal.poisoned()
    }

    /// How fast snapshots are sent and written from now on, by all groups together.
    pub fn set_snapshot_limits(&self, limits: &SnapshotLimits) {
        self.inner.traffic.set_limits(limits);
    }

    /// What the log has done so far.
    pub fn log_stats(&self) -> WalStats {
        self.inner.wal.stats()
    }

    /// Writes the log's last words. Stop the replicas first; what they write later fails.
    pub async fn close(&self) {
        let wal = self.inner.wal.clone();
        // Fails only when the runtime shuts down, and then the log closes as it is dropped.
        let _ = self.threads().run(move || wal.close()).await;
    }

    /// Claims a replica for one core; `None` while another has it.
    pub(crate) fn claim(&self, replica: ReplicaId) -> Option<Running> {
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(replica).then(|| Running { store: self.clone(), replica })
    }

    /// Remembers that its group removed this replica; durable on return.
    pub(crate) async fn note_removed(&self, replica: ReplicaId) -> Result<(), StoreError> {
        self.update_node_file(move |node| {
            node.removed.insert(replica.get());
        })
        .await
    }

    async fn forget_removed(&self, replica: ReplicaId) -> Result<(), StoreError> {
        let forget = move |node: &mut NodeFile| {
            node.removed.remove(&replica.get());
        };
        if self.is_removed(replica) { self.update_node_file(forget).await } else { Ok(()) }
    }

    /// Remembers that this replica's lone group has let it in; durable on return.
    pub(crate) async fn note_admitted(&self, replica: ReplicaId) -> Result<(), StoreError> {
        let admitted = |record: &ReplicaRecord, _: &ReplicaLogState| {
            Some(ReplicaRecord { detail: Bytes::from_static(ADMITTED), ..record.clone() })
        };
        self.amend(replica, admitted).await.map(drop)
    }

    /// Whether its lone group has ever let this replica in.
    pub(crate) fn was_admitted(&self, replica: ReplicaId) -> bool {
        self.inner.wal.record(replica.get()).is_some_and(|record| record.detail == ADMITTED)
    }

    /// Makes a replica one of a later incarnation of its group, if it holds nothing; durable on return. `false` if it
    /// holds something, or is of such a one.
    pub(crate) async fn raise_incarnation(&self, replica: ReplicaId, incarnation: u64) -> Result<bool, StoreError> {
        self.amend(replica, |record, held| {
            let holds_nothing = held.last.is_none() && held.snapshot.is_none() && held.vote.is_none();
            let is_later = record.incarnation < incarnation;
            (holds_nothing && is_later).then(|| ReplicaRecord { incarnation, ..record.clone() })
        })
        .await
    }

    /// Changes what was noted at a replica's creation, judged by what is in the log at that moment; durable on return.
    /// Whether there was anything to change.
    async fn amend(
        &self,
        replica: ReplicaId,
        change: impl FnOnce(&ReplicaRecord, &ReplicaLogState) -> Option<ReplicaRecord>,
    ) -> Result<bool, StoreError> {
        let (done, synced) = oneshot::channel();
        let amended = self.inner.wal.amend(replica.get(), change, Box::new(move |result| drop(done.send(result))));
        self.synced(synced).await?;
        Ok(amended)
    }

    /// Whether its group removed this replica.
    pub(crate) fn is_removed(&self, replica: ReplicaId) -> bool {
        self.lock_node().removed.contains(&replica.get())
    }

    pub(crate) fn wal(&self) -> &Wal {
        &self.inner.wal
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.around.clock
    }

    /// Where work runs that blocks, or that is the user's.
    pub(crate) fn threads(&self) -> &Threads {
        &self.inner.around.threads
    }

    pub(crate) fn snapshots_of(&self, replica: ReplicaId) -> SnapshotStore {
        let files = self.inner.files.as_ref().map(|files| (files.disk.clone(), files.dir.join("snapshots")));
        let snapshots = SnapshotStore::new(replica.get(), self.inner.wal.clone(), files, self.threads().clone());
        snapshots.sharing(self.inner.traffic.clone())
    }

    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.inner.traffic
    }

    async fn synced(&self, done: oneshot::Receiver<io::Result<()>>) -> Result<(), StoreError> {
        let result = done.await.unwrap_or_else(|_| Err(io::Error::other("the log has stopped")));
        result.map_err(|error| StoreError::Io { path: self.wal_dir(), error })
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.inner.files.as_ref().map(|files| files.dir.clone()).unwrap_or_default()
    }

    fn wal_dir(&self) -> PathBuf {
        self.inner.files.as_ref().map(|files| files.dir.join("wal")).unwrap_or_default()
    }

    fn lock_node(&self) -> std::sync::MutexGuard<'_, NodeFile> {
        self.inner.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_created(&self) -> std::sync::MutexGuard<'_, BTreeSet<ReplicaId>> {
        self.inner.created.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the node file, off the threads of the network.
    async fn update_node_file(&self, change: impl FnOnce(&mut NodeFile) + Send + 'static) -> Result<(), StoreError> {
        let store = self.clone();
        let updated = self.threads().run(move || store.update_node(change)).await;
        updated.map_err(|error| StoreError::Io { path: self.wal_dir(), error })?
    }

    fn update_node(&self, change: impl FnOnce(&mut NodeFile)) -> Result<(), StoreError> {
        let mut node = self.lock_node();
        let mut next = node.clone();
        change(&mut next);
        if next == *node {
            return Ok(());
        }
        if let Some(files) = &self.inner.files {
            node_file::write(&*files.disk, &files.dir, &next)?;
        }
        *node = next;
        Ok(())
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

fn from_wal(dir: &Path, error: WalError) -> StoreError {
    StoreError::Log { path: dir.to_owned(), reason: error.to_string() }
}

/// The threads on which entries are applied and queries run: never those of raft and network.
struct ApplyThreads {
    handle: tokio::runtime::Handle,
    runtime: Option<tokio::runtime::Runtime>,
}

/// User code of this many groups runs at once. Threads come when they are needed and go when they are idle, so that a
/// slow command of one group holds up no other.
const MAX_APPLY_THREADS: usize = 128;

impl ApplyThreads {
    fn start() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let built = builder.worker_threads(1).max_blocking_threads(MAX_APPLY_THREADS).thread_name("apply").build();
        match built {
            Ok(runtime) => Self { handle: runtime.handle().clone(), runtime: Some(runtime) },
            // No thread can be had: the caller's runtime serves, which is slower under long commands but right.
            Err(error) => {
                tracing::warn!(%error, "no threads of their own for user code");
                Self { handle: tokio::runtime::Handle::current(), runtime: None }
            }
        }
    }
}

impl Drop for ApplyThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // In the background: this may be dropped on a runtime's thread, which must not block.
            runtime.shutdown_background();
        }
    }
}
fn stored(record: ReplicaRecord) -> Option<StoredReplica> {
    let ReplicaRecord { replica, group, incarnation, detail } = record;
    Some(StoredReplica { replica: ReplicaId::new(replica)?, group, incarnation, detail: detail.to_vec() })
}
