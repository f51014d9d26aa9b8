//! One replica of one group, of whatever type: what a fleet of many groups holds.
//!
//! ```text
//!            commands --> proposer.rs --.                          .--> network.rs --> Transport --> other nodes
//!   caller   queries ---> reader.rs ----+--> openraft's core ------+--> log_store.rs --> wal
//!            requests of other nodes ---'                          '--> machine.rs ----> the value
//! ```

mod changes;
mod queries;
mod settings;
mod seeing;
mod answering;
mod participation;
mod sleeping;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openraft::ChangeMembers;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

pub(crate) use self::changes::Changed;
use self::changes::Succession;
pub(crate) use self::participation::Part;
use self::participation::Participation;
pub(crate) use self::queries::check_length;
pub use self::sleeping::Rest;
use crate::admission;
use crate::any_value::ValueFactory;
use crate::change;
use crate::command::{self, Command, HEADER_BYTES};
use crate::compactor::Compactor;
use crate::config::GroupConfig;
use crate::error::{CommandError, InitializeError, MembersError, NotHappened, StartError, StoreError, UnknownOutcome};
use crate::freshness::{self, Freshness};
use crate::hook_runner;
use crate::installer::{Installer, Unreadable};
use crate::log_store::LogStore;
use crate::machine::{Machine, Raft, Shared};
use crate::membership;
use crate::network::Network;
use crate::peers::Peers;
use crate::proposer::{self, Limits, Proposal, ProposeError, Reply};
use crate::readable;
use crate::reader::{self, Read};
use crate::roster;
use crate::rpc::{Answer, ClusterTag};
use crate::runtime::{self, watch};
use crate::sender::Sender;
use crate::sleeper::Sleeper;
use crate::snapshot::ReadError as SnapshotError;
use crate::status::{LogPosition, Member, ReplicaId, Role};
use crate::store::Store;
use crate::transport::{Body, BoxFuture, Handler, Transport};
use crate::value::{Context, Value};

/// Which replica to start.
#[derive(Debug, Clone)]
pub struct ReplicaSpec {
    /// The group's name.
    pub group: String,
    /// The group's incarnation. A replica of a lone group that holds nothing follows later ones.
    pub incarnation: u64,
    /// The id that [`Store::create_replica`] minted.
    pub replica: ReplicaId,
    /// The cluster.
    pub cluster: ClusterTag,
    /// The settings to start with; the group's own, where it has agreed on some, take their place.
    pub config: GroupConfig,
    /// Whether its members form the group among themselves, without a fleet that places them. [`Replica`](crate::Replica)
    /// sees to that, and to that no directory that was rolled back takes part; whoever starts such a replica by itself
    /// vouches for its directory.
    pub is_alone: bool,
}

/// A running replica. Clones share it; it runs until [`UntypedReplica::shutdown`] or until the last is dropped.
#[derive(Clone)]
pub struct UntypedReplica {
    inner: Arc<Inner>,
}

struct Inner {
    spec: ReplicaSpec,
    sender: Sender,
    /// Keeps the directory locked and the apply threads alive.
    store: Store,
    raft: Raft,
    sleeper: Arc<Sleeper>,
    shared: Arc<Shared>,
    installer: Installer,
    /// What openraft's core runs with.
    core_config: GroupConfig,
    /// Each holds its room of `limits`, which bounds them.
    proposals: mpsc::UnboundedSender<Proposal>,
    limits: Limits,
    reads: mpsc::Sender<Read>,
    query_bytes: Arc<Semaphore>,
    freshness: Arc<Freshness>,
    /// That entries which it cannot read are refused is said once.
    warned_unreadable: AtomicBool,
    /// No fleet places its replicas: members ask each other to be let in.
    is_alone: bool,
    /// The lone group has let it in at some time, and that is written down.
    admitted: AtomicBool,
    /// The group removed it.
    removed: AtomicBool,
    participation: Participation,
    succession: Succession,
    /// The term in which it was seen to lead before a majority had answered, and since when, by the store's clock.
    unanswered: Mutex<Option<(u64, Duration)>>,
    /// When a leader was heard last, in microseconds of the store's clock.
    heard_at: AtomicU64,
    /// The proposer and the reader: they end with this.
    tasks: Mutex<JoinSet<()>>,
}

impl UntypedReplica {
    /// Starts a replica from what the store has of it: its newest snapshot, then its log.
    pub async fn start(
        store: &Store,
        spec: ReplicaSpec,
        factory: ValueFactory,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        Self::start_as(Part::Takes, store, spec, factory, transport).await
    }

    /// As [`UntypedReplica::start`]; one that waits is told later whether it takes part.
    pub(crate) async fn start_as(
        part: Part,
        store: &Store,
        spec: ReplicaSpec,
        factory: ValueFactory,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        let group = spec.group.clone();
        let (spec_is_alone, was_admitted) = (spec.is_alone, store.was_admitted(spec.replica));
        if *store.rolled_back().borrow() {
            return Err(StoreError::RolledBack { path: store.dir() }.into());
        }
        let Some(claim) = store.claim(spec.replica) else {
            return Err(StartError::Running { group, replica: spec.replica });
        };
        let shared =
            Shared::new(group.clone(), spec.replica.get(), factory, store.clock().clone(), spec.config.clone());
        let hook = hook_runner::prepare(&shared);
        let snapshots = store.snapshots_of(spec.replica);
        let (opening, to_open, threads) = (shared.clone(), snapshots.clone(), store.threads().clone());
        let (wal, replica) = (store.wal().clone(), spec.replica.get());
        let name = group.clone();
        let open = move || {
            let damaged =
                |group, error: &dyn std::fmt::Display| StartError::Damaged { group, reason: error.to_string() };
            let machine = Machine::open(opening.clone(), to_open, threads).map_err(|error| match error {
                SnapshotError::Unreadable(error) => {
                    StartError::Unreadable { group: name.clone(), reason: format!("its snapshot: {error}") }
                }
                SnapshotError::OtherFormat(reason) => StartError::Unreadable { group: name.clone(), reason },
                error => damaged(name.clone(), &error),
            })?;
            // Found before the core runs: once it does, it can only stop.
            let next = *opening.applied_count().borrow();
            match readable::log(opening.factory(), &wal, replica, next) {
                Ok(Ok(settings)) => Ok((machine, settings)),
                Ok(Err(error)) => Err(StartError::Unreadable { group: name, reason: error.to_string() }),
                Err(error) => Err(damaged(name, &error)),
            }
        };
        let opened = store.threads().run(open).await;
        let (machine, logged) =
            opened.map_err(|error| StartError::Raft { group: group.clone(), reason: error.to_string() })??;
        // Settings at the end of the log may not be committed; of what openraft keeps of them, none can do harm.
        let core_config = logged.unwrap_or_else(|| GroupConfig::clone(&shared.config()));
        let mut config = core_config.to_openraft(&group);
        config.enable_elect = part == Part::Takes;
        let config =
            config.validate().map_err(|error| StartError::Raft { group: group.clone(), reason: error.to_string() })?;
        let sender = Sender::new(spec.cluster, &group, spec.replica, spec.incarnation);
        let asleep = Arc::new(AtomicBool::new(false));
        let network = Network {
            sender: sender.clone(),
            traffic: store.traffic().clone(),
            transport: transport.clone(),
            asleep: asleep.clone(),
        };
        let log = LogStore::new(store.wal().clone(), spec.replica.get(), store.threads().clone()).claiming(claim);
        let raft = Raft::new(spec.replica.get(), Arc::new(config), network, log, machine)
            .await
            .map_err(|error| StartError::Raft { group: group.clone(), reason: error.to_string() })?;
        let installer = Installer {
            group: spec.group.clone(),
            raft: raft.clone(),
            shared: shared.clone(),
            snapshots,
            unreadable: Unreadable::default(),
        };
        let sleeper = Arc::new(Sleeper::new(raft.clone(), store.clock().clone(), asleep));
        let (proposals, proposal_queue) = mpsc::unbounded_channel();
        let limits = Limits::new();
        let (reads, read_queue) = mpsc::channel(queries::MAX_QUEUED);
        let heard_at = u64::try_from(store.clock().monotonic().as_micros()).unwrap_or(u64::MAX);
        let mut tasks = JoinSet::new();
        if let Some((hook, calls)) = hook {
            hook_runner::connect(&raft, &shared);
            runtime::spawn_on(&mut tasks, hook_runner::observe(raft.clone(), shared.clone()));
            runtime::spawn_on(&mut tasks, hook_runner::run(hook, shared.clone(), calls));
        }
        let pinned = store.wal().pinned(spec.replica.get());
        let compactor = Compactor { raft: raft.clone(), shared: shared.clone(), traffic: store.traffic().clone() };
        runtime::spawn_on(&mut tasks, compactor.run(pinned));
        let peers = Peers { raft: raft.clone(), sender: sender.clone(), transport };
        let (roster, asking) = roster::new(peers.clone(), shared.clone());
        runtime::spawn_on(&mut tasks, asking.run());
        let lease = core_config.election().1;
        let (aside, put_aside) = mpsc::unbounded_channel();
        let admitted = proposals.downgrade();
        let admission = admission::run(peers.clone(), shared.clone(), roster.clone(), put_aside, admitted);
        runtime::spawn_on(&mut tasks, admission);
        runtime::spawn_on(
            &mut tasks,
            proposer::run(raft.clone(), shared.clone(), lease, roster, aside, proposal_queue),
        );
        let freshness = Arc::new(Freshness::default());
        runtime::spawn_on(&mut tasks, freshness::run(peers, reads.clone(), shared.clone(), freshness.clone()));
        let (wakes, threads) = (sleeper.clone(), store.threads().clone());
        let reader = reader::run(raft.clone(), shared.clone(), wakes, threads, read_queue);
        runtime::spawn_on(&mut tasks, reader);
        Ok(Self {
            inner: Arc::new(Inner {
                spec,
                sender,
                store: store.clone(),
                raft,
                sleeper,
                shared,
                installer,
                core_config,
                proposals,
                limits,
                reads,
                query_bytes: Arc::new(Semaphore::new(queries::MAX_BYTES_UNDER_WAY)),
                freshness,
                warned_unreadable: AtomicBool::new(false),
                is_alone: spec_is_alone,
                admitted: AtomicBool::new(was_admitted),
                removed: AtomicBool::new(false),
                participation: Participation::new(part),
                succession: Succession::default(),
                unanswered: Mutex::default(),
                heard_at: AtomicU64::new(heard_at),
                tasks: Mutex::new(tasks),
            }),
        })
    }

    /// Which replica this is.
    pub fn spec(&self) -> &ReplicaSpec {
        &self.inner.spec
    }

    /// As whom it asks the others.
    pub(crate) fn sender(&self) -> &Sender {
        &self.inner.sender
    }

    /// Writes the first members into a fresh replica's log; exactly one replica of a group may ever do so.
    pub async fn initialize(&self, members: BTreeMap<ReplicaId, Member>) -> Result<(), InitializeError> {
        let nodes: BTreeMap<u64, Member> = members.into_iter().map(|(id, member)| (id.get(), member)).collect();
        self.inner.raft.initialize(nodes).await.map_err(membership::initialize_error)
    }

    /// Wakes whenever the role, term, leader or members may have changed; read [`UntypedReplica::status`] then.
    pub fn status_changes(&self) -> StatusChanges {
        StatusChanges { metrics: self.inner.raft.server_metrics() }
    }

    /// Counts applied entries: one above the last applied index, 0 before the first.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.inner.shared.applied_count()
    }

    /// Calls of the hook for which there was no room; 0 without a hook.
    pub fn dropped_hook_calls(&self) -> u64 {
        self.inner.shared.hooks().map_or(0, |queue| queue.dropped())
    }

    /// Reads this replica's own value, which may lag behind; `None` if it is of another type. Runs on the
    /// caller's thread while commands wait: keep it short.
    pub fn read_local<V: Value, T>(&self, read: impl FnOnce(&V, &Context<'_>) -> T) -> Option<T> {
        self.inner.shared.with_value(|value, context| value.as_any().downcast_ref().map(|value| read(value, context)))
    }

    /// The largest encoded command that the group may take, without its header: it may have agreed on other settings than
    /// this replica was started with, and go back to them while this one lags.
    pub(crate) fn max_command_bytes(&self) -> usize {
        self.inner.shared.config().max_command_bytes().max(self.inner.spec.config.max_command_bytes())
    }

    /// Proposes an encoded command; only the leader takes it. The reply comes once it is durable on a majority
    /// and applied here.
    pub async fn propose(&self, command: Bytes, timeout: Duration) -> Result<Bytes, ProposeError> {
        self.inner.sleeper.stir_leader();
        let config = self.inner.shared.config();
        let max_bytes = config.max_command_bytes();
        let bytes = command.len().saturating_sub(HEADER_BYTES);
        // Settings are short enough, or malformed: they must get through whatever the settings are.
        if bytes > max_bytes && command::schema(&command).is_some() {
            return Err(refused(NotHappened::TooLarge { bytes, max_bytes }));
        }
        // Refused here, above openraft, whose core ends on any storage error.
        if self.inner.store.wal().is_full() {
            return Err(refused(NotHappened::DiskFull { group: self.inner.spec.group.clone() }));
        }
        let malformed = |error: String| refused(NotHappened::Malformed(error));
        let decoded = Command::decode(command.clone()).map_err(|error| malformed(error.to_string()))?;
        self.check_readable(&decoded).await?;
        let group = || self.inner.spec.group.clone();
        let overloaded = || {
            let queued = config.max_queued_commands();
            refused(NotHappened::Overloaded { group: group(), queued })
        };
        let room = self.inner.limits.take(command.len(), config.max_queued_commands()).ok_or_else(overloaded)?;
        let (caller, replied) = oneshot::channel();
        let reply = Reply { caller, _room: room };
        let proposal = Proposal { command: BytesMut::from(command), reply, admitted_in: None };
        self.inner
            .proposals
            .send(proposal)
            .map_err(|_| refused(NotHappened::Stopped { group: group(), reason: "the replica was stopped".into() }))?;
        match tokio::time::timeout(timeout, replied).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(unknown(UnknownOutcome::Interrupted("the replica stopped".into()))),
            Err(_) => Err(unknown(UnknownOutcome::Timeout(timeout))),
        }
    }

    /// Lets a replica in that does not vote yet.
    pub async fn add_learner(
        &self,
        id: ReplicaId,
        member: Member,
        expected: Option<LogPosition>,
    ) -> Result<(), MembersError> {
        let decided_at = member.decided_at;
        let change = ChangeMembers::AddNodes(BTreeMap::from([(id.get(), member)]));
        self.change_members(change, expected, decided_at).await
    }

    /// Replaces the set of voters; those that leave it leave the group. All must be members already.
    pub async fn change_voters(
        &self,
        voters: BTreeSet<ReplicaId>,
        expected: Option<LogPosition>,
        decided_at: u64,
    ) -> Result<(), MembersError> {
        membership::check_voters(&self.status(), &voters)?;
        let change = ChangeMembers::ReplaceAllVoters(voters.into_iter().map(ReplicaId::get).collect());
        self.change_members(change, expected, decided_at).await
    }

    /// Removes a replica that does not vote.
    pub async fn remove_learner(
        &self,
        id: ReplicaId,
        expected: Option<LogPosition>,
        decided_at: u64,
    ) -> Result<(), MembersError> {
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([id.get()]));
        self.change_members(change, expected, decided_at).await
    }

    async fn change_members(
        &self,
        change: ChangeMembers<u64, Member>,
        expected: Option<LogPosition>,
        decided_at: u64,
    ) -> Result<(), MembersError> {
        self.inner.sleeper.stir();
        membership::change(&self.inner.raft, &self.status(), change, expected, decided_at).await
    }

    /// Finishes a change that a lost leader left half done.
    pub async fn finish_joint(&self, expected: Option<LogPosition>) -> Result<(), MembersError> {
        let members = self.status().members;
        let Some(voters) = members.voters.last().filter(|_| members.is_joint()) else {
            return Ok(());
        };
        self.change_voters(voters.clone(), expected, members.decided_at()).await
    }

    /// Asks the leader, which this must be, to hand over.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), MembersError> {
        let status = self.status();
        if status.role != Role::Leader {
            return Err(MembersError::NotLeader { leader: status.leader });
        }
        if to == status.replica {
            return Ok(());
        }
        if !status.members.is_voter(to) {
            return Err(MembersError::NotAllowed(format!("{to} is no voter of the group")));
        }
        if !change::is_close(&status, to) {
            return Err(MembersError::NotAllowed(format!(
                "{to} does not answer, or lacks entries; wait until it has them"
            )));
        }
        self.inner.sleeper.stir();
        let asked = self.inner.raft.trigger().transfer_leader(to.get()).await;
        asked.map_err(|error| MembersError::Unknown(error.to_string()))
    }

    /// Asks for an election now, instead of after a silence. The pre-vote keeps it from deposing a leader
    /// that a majority hears.
    pub async fn elect(&self) {
        if self.part() != Part::Takes {
            return;
        }
        self.inner.sleeper.stir();
        // A stopped replica elects nobody.
        let _ = self.inner.raft.trigger().elect(true).await;
    }

    /// Takes a snapshot soon; a stopped replica takes none.
    pub async fn snapshot(&self) {
        self.inner.shared.building().ask();
    }

    /// Answers a request of another node or of a client.
    pub fn handle(&self, request: Bytes, timeout: Duration) -> BoxFuture<Bytes> {
        let this = self.clone();
        Box::pin(async move { this.answer(request, timeout).await.encode() })
    }

    /// Answers a request that is followed by a body: a snapshot.
    pub fn handle_with_body(&self, request: Bytes, body: Box<dyn Body>) -> BoxFuture<Bytes> {
        let this = self.clone();
        Box::pin(async move { this.answer_with_body(request, body).await.encode() })
    }

    /// Whether anything of the group is stored here.
    pub(crate) fn has_log(&self) -> bool {
        let state = self.inner.store.wal().state(self.inner.spec.replica.get()).unwrap_or_default();
        state.last.is_some() || state.snapshot.is_some()
    }

    /// Promises, durably, that this replica and no other founds the group; `false` if another was promised.
    pub(crate) async fn promise_to_found(&self) -> bool {
        let promised = self.inner.store.promise_founder(&self.inner.spec.group, self.inner.spec.replica).await;
        promised.unwrap_or_else(|error| {
            tracing::error!(%error, "a promise could not be written down");
            false
        })
    }

    /// Why openraft has stopped, if it has.
    #[cfg(test)]
    pub(crate) fn fatal(&self) -> Option<String> {
        let metrics = self.inner.raft.metrics();
        let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics).clone();
        metrics.running_state.err().map(|error| error.to_string())
    }

    /// See [`Shared::forget_sessions`].
    #[cfg(test)]
    pub(crate) fn forget_sessions(&self) {
        self.inner.shared.forget_sessions();
    }

    /// The entries in this replica's log.
    #[cfg(test)]
    pub(crate) fn log_entries(&self) -> Vec<crate::wal::LogEntry> {
        let id = self.inner.spec.replica.get();
        self.inner.store.wal().read(id, 0..u64::MAX, usize::MAX).unwrap_or_default()
    }

    /// Stops the replica; what it has stored stays.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(group = %self.inner.spec.group, %error, "the replica did not stop cleanly");
        }
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

/// How long a request of another node may wait here; its sender has given up long before.
const MAX_SERVE: Duration = Duration::from_secs(10);

impl Handler for UntypedReplica {
    fn handle(&self, request: Bytes) -> BoxFuture<Bytes> {
        Self::handle(self, request, MAX_SERVE)
    }

    fn handle_with_body(&self, request: Bytes, body: Box<dyn Body>) -> BoxFuture<Bytes> {
        Self::handle_with_body(self, request, body)
    }
}

impl std::fmt::Debug for UntypedReplica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UntypedReplica").field("spec", &self.inner.spec).finish_non_exhaustive()
    }
}

/// See [`UntypedReplica::status_changes`].
pub struct StatusChanges {
    metrics: openraft::type_config::alias::WatchReceiverOf<
        crate::openraft_types::Types,
        openraft::metrics::RaftServerMetrics<crate::openraft_types::Types>,
    >,
}

impl StatusChanges {
    /// Waits for the next change; `false` once the replica has stopped.
    pub async fn changed(&mut self) -> bool {
        openraft::async_runtime::watch::WatchReceiver::changed(&mut self.metrics).await.is_ok()
    }
}

/// What a node answers for a replica that it does not host.
pub fn wrong_replica() -> Bytes {
    Answer::WrongReplica.encode()
}

fn refused(reason: NotHappened) -> ProposeError {
    CommandError::NotHappened(reason).into()
}

fn unknown(reason: UnknownOutcome) -> ProposeError {
    CommandError::Unknown(reason).into()
}

#[cfg(test)]
mod tests;
