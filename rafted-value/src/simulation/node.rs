//! One node: a disk, and, while it runs, a store over it, the task that writes the log, and a replica.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::clock::VirtualClock;
use super::counts::Event;
use super::network::Network;
use super::plant::Plant;
use super::truth::{Observer, Truth};
use super::value::Chain;
use crate::any_value::ValueFactory;
use crate::config::GroupConfig;
use crate::disk::faulty::FaultyDisk;
use crate::error::StartError;
use crate::group::{ReplicaSpec, UntypedReplica};
use crate::rpc::ClusterTag;
use crate::runtime::{Scope, random_range};
use crate::status::{Member, ReplicaId, Status};
use crate::store::Store;
use crate::wal::{Appender, LogEnd, LogView, Step, WalConfig};

pub(crate) const GROUP: &str = "chain";
/// Small, so that segments roll and are used again; half of one takes a snapshot that lives in the log.
const SEGMENT_BYTES: u64 = 192 * 1024;
/// How long one write and sync of the log takes at most, in milliseconds.
const MAX_SYNC: u64 = 5;
/// The same of a disk that is slow.
const MAX_SLOW_SYNC: u64 = 300;
const DIR: &str = "/data";
/// How long a node is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a log with nothing to write looks for work.
const IDLE: Duration = Duration::from_millis(1);

/// What all nodes of a world share.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) network: Network,
    pub(crate) truth: Arc<Truth>,
    pub(crate) plant: Plant,
    pub(crate) config: GroupConfig,
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) disk: FaultyDisk,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) running: Option<Running>,
    /// When it is to be started again.
    pub(crate) start_at: Option<Instant>,
    /// What a write and sync of its disk takes at most, in milliseconds.
    max_sync: Arc<AtomicU64>,
}

pub(crate) struct Running {
    pub(crate) scope: Scope,
    pub(crate) store: Store,
    pub(crate) replica: Option<UntypedReplica>,
    failed: watch::Receiver<Option<String>>,
    writer: JoinHandle<()>,
}

/// How a node ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum End {
    /// The process is killed: what it wrote stays.
    Killed,
    /// The process ended in order, as far as it could within a second.
    Stopped,
    /// Power is lost: of what was not synced, anything may be gone.
    PowerLost,
    /// The disk is lost.
    DiskLost,
}

impl Node {
    pub(crate) fn new(name: &str, start: Instant, plant: Plant) -> Self {
        let clock = Arc::new(VirtualClock::new(start));
        let disk = new_disk(plant);
        let max_sync = Arc::new(AtomicU64::new(MAX_SYNC));
        Self { name: name.to_owned(), disk, clock, running: None, start_at: None, max_sync }
    }

    /// Opens the disk, and starts the replica that is on it.
    pub(crate) async fn start(&mut self, around: &Surroundings, seed: u64) -> Result<(), StartError> {
        let scope = Scope::new(seed);
        let config = WalConfig::default().with_segment_bytes(SEGMENT_BYTES).with_cache_bytes(4096);
        let disk = Arc::new(self.disk.clone());
        let (store, appender) = scope
            .run(async { Store::open_simulated(disk, Path::new(DIR), &self.name, self.clock.clone(), config) })
            .await?;
        let writer = scope.spawn(write(appender, self.max_sync.clone()));
        around.plant.on_start(&store);
        let failed = store.failed();
        let mut running = Running { scope, store, replica: None, failed, writer };
        let started = running.start_replica(&self.name, &self.disk, around).await;
        self.start_at = None;
        self.running = Some(running);
        started
    }

    /// Makes a replica here, if there is none, and starts it.
    pub(crate) async fn create_replica(&mut self, around: &Surroundings) -> Result<(), StartError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        if running.replica.is_none() {
            let store = running.store.clone();
            let created = running.scope.spawn(async move { store.create_replica(GROUP, 0, Vec::new()).await });
            // A disk without room makes it wait; it is there the next time.
            if let Ok(Ok(created)) = tokio::time::timeout(PATIENCE, created).await {
                created?;
                running.start_replica(&self.name, &self.disk, around).await?;
            }
        }
        Ok(())
    }

    /// Forgets the replica; the group has let it go.
    pub(crate) async fn remove_replica(&mut self, around: &Surroundings) {
        let Some(running) = &mut self.running else { return };
        if let Some(replica) = running.replica.take() {
            around.network.detach(&self.name);
            let (store, id) = (running.store.clone(), replica.spec().replica);
            let removal = running.scope.spawn(async move {
                replica.shutdown().await;
                // Of a disk that failed meanwhile, the start is told.
                let _ = store.remove_replica(id).await;
            });
            let _ = tokio::time::timeout(PATIENCE, removal).await;
        }
    }

    /// Stops it in order; what does not end in time is ended.
    pub(crate) async fn stop(&mut self, around: &Surroundings) {
        around.network.detach(&self.name);
        let Some(running) = &mut self.running else { return };
        let (store, replica) = (running.store.clone(), running.replica.take());
        let stopping = running.scope.spawn(async move {
            if let Some(replica) = replica {
                replica.shutdown().await;
            }
            store.close().await;
        });
        let stopped = async {
            let _ = stopping.await;
            let _ = (&mut running.writer).await;
        };
        let _ = tokio::time::timeout(PATIENCE, stopped).await;
    }

    pub(crate) fn end(&mut self, around: &Surroundings, how: End, seed: u64) {
        if let Some(running) = self.running.take() {
            running.scope.end();
        }
        around.network.detach(&self.name);
        self.disk = match how {
            End::Killed | End::Stopped => self.disk.reopen(),
            End::PowerLost => self.disk.restart(seed),
            End::DiskLost => new_disk(around.plant),
        };
        if how == End::PowerLost && self.has_torn_tail() {
            around.truth.count(Event::TornTail);
        }
    }

    fn has_torn_tail(&self) -> bool {
        let log = LogView::read(&self.disk, &Path::new(DIR).join("wal"));
        matches!(log.and_then(|log| log.end()), Ok(LogEnd::Torn { .. }))
    }

    /// Makes its disk slow, or as it was.
    pub(crate) fn set_slow(&self, is_slow: bool) {
        self.max_sync.store(if is_slow { MAX_SLOW_SYNC } else { MAX_SYNC }, Ordering::Relaxed);
    }

    /// Whether it cannot go on, and how it ends then.
    pub(crate) fn must_end(&self) -> Option<End> {
        let running = self.running.as_ref()?;
        if self.disk.crashed() {
            return Some(End::PowerLost);
        }
        running.failed.borrow().is_some().then_some(End::Killed)
    }

    pub(crate) fn replica(&self) -> Option<&UntypedReplica> {
        self.running.as_ref()?.replica.as_ref()
    }

    pub(crate) fn status(&self) -> Option<Status> {
        self.replica().map(UntypedReplica::status)
    }

    pub(crate) fn id(&self) -> Option<ReplicaId> {
        Some(self.replica()?.spec().replica)
    }

    pub(crate) fn member(&self, decided_at: u64) -> Option<Member> {
        let node = self.running.as_ref()?.store.node().node_id;
        Some(Member { name: self.name.clone(), node, zone: String::new(), decided_at, addresses: Vec::new() })
    }

    /// The last index of its replica's log, or of the snapshot that stands for it.
    pub(crate) fn log_end(&self) -> Option<(ReplicaId, Option<u64>)> {
        let id = self.id()?;
        let state = self.running.as_ref()?.store.wal().state(id.get())?;
        let of_snapshot = state.snapshot.and_then(|pointer| pointer.position);
        Some((id, state.last.max(state.last_purged).max(of_snapshot).map(|position| position.index)))
    }

    /// The last index that its value has applied, the list's length and its hash.
    pub(crate) fn state(&self) -> Option<(u64, u64, u64)> {
        self.replica()?.read_local(|chain: &Chain, context| (context.index(), chain.items.len() as u64, chain.hash))
    }

    pub(crate) fn items(&self) -> Option<Vec<u64>> {
        self.replica()?.read_local(|chain: &Chain, _| chain.items.clone())
    }
}

impl Running {
    async fn start_replica(&mut self, name: &str, disk: &FaultyDisk, around: &Surroundings) -> Result<(), StartError> {
        let Some(stored) = self.store.replicas().into_iter().find(|stored| stored.group == GROUP) else {
            return Ok(());
        };
        let spec = ReplicaSpec {
            group: GROUP.into(),
            incarnation: 0,
            replica: stored.replica,
            cluster: ClusterTag::default(),
            config: around.config.clone(),
            is_alone: false,
        };
        let observer = Observer { node: name.to_owned(), truth: around.truth.clone() };
        let factory = ValueFactory::of::<Chain>(Some(Arc::new(observer)));
        let (store, transport) = (self.store.clone(), around.network.transport(name));
        // Aborted only if the node ends, which waits for its start.
        let starting = self.scope.spawn(async move { UntypedReplica::start(&store, spec, factory, transport).await });
        let replica = starting.await.map_err(|error| StartError::Invalid(error.to_string()))??;
        if around.plant == Plant::DropSessions {
            replica.forget_sessions();
        }
        around.network.attach(name, replica.clone(), &self.scope, disk);
        self.replica = Some(replica);
        Ok(())
    }
}

fn new_disk(plant: Plant) -> FaultyDisk {
    let disk = FaultyDisk::default();
    if plant == Plant::AcknowledgeBeforeSync {
        disk.lie();
    }
    disk
}

/// Writes the log, batch by batch, each taking a while.
async fn write(mut appender: Appender, max_sync: Arc<AtomicU64>) {
    loop {
        match appender.step() {
            Step::Wrote => {
                let max = Duration::from_millis(max_sync.load(Ordering::Relaxed));
                tokio::time::sleep(random_range(Duration::ZERO..max)).await;
            }
            Step::Idle => tokio::time::sleep(IDLE).await,
            Step::Full => tokio::time::sleep(Duration::from_millis(MAX_SYNC)).await,
            Step::Stopped => return,
        }
        if let Step::Stopped = appender.ask_again() {
            return;
        }
    }
}
