//! One node: a disk, and, while it runs, a store over it, the task that writes the log, and a replica.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::clock::VirtualClock;
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
use crate::wal::{Appender, Step, WalConfig};

pub(crate) const GROUP: &str = "chain";
/// Small, so that segments roll and are used again; half of one takes a snapshot that lives in the log.
const SEGMENT_BYTES: u64 = 192 * 1024;
/// How long one write and sync of the log takes at most.
const MAX_SYNC: Duration = Duration::from_millis(5);
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
}

pub(crate) struct Running {
    pub(crate) scope: Scope,
    pub(crate) store: Store,
    pub(crate) replica: Option<UntypedReplica>,
    failed: watch::Receiver<Option<String>>,
}

/// How a node ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum End {
    /// The process is killed: what it wrote stays.
    Killed,
    /// Power is lost: of what was not synced, anything may be gone.
    PowerLost,
    /// The disk is lost.
    DiskLost,
}

impl Node {
    pub(crate) fn new(name: &str, start: Instant, plant: Plant) -> Self {
        let clock = Arc::new(VirtualClock::new(start));
        let disk = new_disk(plant);
        Self { name: name.to_owned(), disk, clock, running: None, start_at: None }
    }

    /// Opens the disk, and starts the replica that is on it.
    pub(crate) async fn start(&mut self, around: &Surroundings, seed: u64) -> Result<(), StartError> {
        let scope = Scope::new(seed);
        let config = WalConfig::default().with_segment_bytes(SEGMENT_BYTES).with_cache_bytes(4096);
        let disk = Arc::new(self.disk.clone());
        let (store, appender) = scope
            .run(async { Store::open_simulated(disk, Path::new("/data"), &self.name, self.clock.clone(), config) })
            .await?;
        scope.spawn(write(appender));
        around.plant.on_start(&store);
        let failed = store.failed();
        let mut running = Running { scope, store, replica: None, failed };
        let started = running.start_replica(&self.name, around).await;
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
                running.start_replica(&self.name, around).await?;
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

    pub(crate) fn end(&mut self, around: &Surroundings, how: End, seed: u64) {
        if let Some(running) = self.running.take() {
            running.scope.end();
        }
        around.network.detach(&self.name);
        self.disk = match how {
            End::Killed => self.disk.reopen(),
            End::PowerLost => self.disk.restart(seed),
            End::DiskLost => new_disk(around.plant),
        };
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

    pub(crate) fn items(&self) -> Option<Vec<u64>> {
        self.replica()?.read_local(|chain: &Chain, _| chain.items.clone())
    }
}

impl Running {
    async fn start_replica(&mut self, name: &str, around: &Surroundings) -> Result<(), StartError> {
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
        around.network.attach(name, replica.clone(), &self.scope);
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
async fn write(mut appender: Appender) {
    loop {
        match appender.step() {
            Step::Wrote => tokio::time::sleep(random_range(Duration::ZERO..MAX_SYNC)).await,
            Step::Idle => tokio::time::sleep(IDLE).await,
            Step::Full => tokio::time::sleep(MAX_SYNC).await,
            Step::Stopped => return,
        }
        if let Step::Stopped = appender.ask_again() {
            return;
        }
    }
}
