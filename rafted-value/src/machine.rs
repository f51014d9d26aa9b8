//! Applies committed entries to the value: openraft's state machine.
//!
//! ```text
//! openraft --entries--> Machine --hop--> apply threads: sessions.judge -> value.command -> sessions.record -> reply
//!                          |                                 (catch_unwind around the user's code)
//!                          '--snapshot--> freeze under the lock, write in pieces outside it
//! ```
//!
//! User code never runs on the threads of raft and network, and never under `catch_unwind`'s absence.

mod agreed;
mod turn;

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use self::agreed::Agreed;
pub(crate) use self::turn::Built;
use self::turn::{Building, Turn};
use crate::any_value::{AnyValue, CommandFault, ValueFactory, discard};
use crate::backlog::{Amount, Backlog};
use crate::clock::{Clock, next_stamp};
use crate::command::{Command, Recipient};
use crate::config::{GroupConfig, UnreadableConfig};
use crate::hook::{Call, HookQueue, ReadValue};
use crate::openraft_types::{Applied, Entry, LogId, SnapshotMeta, StoredMembership, Types};
use crate::pieces::PieceError;
use crate::runtime::watch;
use crate::sessions::{Sessions, Verdict};
use crate::snapshot::{Content, ReadError, SnapshotBody, SnapshotStore};
use crate::stats;
use crate::threads::Threads;
use crate::value::{Context, LogTime};

/// The alias that is not in `openraft_types.rs`: it names the machine, which uses those.
pub(crate) type Raft = openraft::Raft<Types, Machine>;

type Snapshot = openraft::storage::Snapshot<
    openraft::type_config::alias::CommittedLeaderIdOf<Types>,
    u64,
    crate::status::Member,
    SnapshotBody,
>;

/// Entries applied in one hop to the apply threads: the lock is let go between two such batches.
const MAX_APPLY_BATCH: usize = 512;

fn command_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(data) => data.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// The state that entries change and queries read.
pub(crate) struct State {
    pub(crate) value: Box<dyn AnyValue>,
    sessions: Sessions,
    applied: Option<LogId>,
    membership: StoredMembership,
    log_time: LogTime,
    /// What the group has agreed on, if it has.
    config: Option<GroupConfig>,
}

/// The last applied stamp, and the monotonic clock at that moment. It has a lock of its own, which is never held
/// for long: the proposer reads it on a thread of the network, while a command may hold the state.
#[derive(Clone, Copy)]
struct LastStamp {
    log_time: LogTime,
    at: std::time::Duration,
}

/// What the machine shares with the group's handle.
pub(crate) struct Shared {
    group: String,
    factory: ValueFactory,
    clock: Arc<dyn Clock>,
    state: RwLock<State>,
    last_stamp: Mutex<LastStamp>,
    agreed: Agreed,
    /// Changed under the state's lock, so that a frozen state and its amount belong together.
    backlog: Mutex<Backlog>,
    building: Building,
    /// As the sessions say; a copy that is never locked for long.
    version_in_use: Mutex<Option<u32>>,
    /// One above the last applied index, 0 before the first.
    applied: watch::Sender<u64>,
    /// Where a hook, if there is one, hears of applied commands.
    hooks: OnceLock<Arc<HookQueue>>,
    /// The replica to which this belongs.
    replica: u64,
    /// That one was a member by an entry that was applied since the start, or by a snapshot.
    was_member: AtomicBool,
}

impl Shared {
    /// Nothing is applied; `config` holds until the group's own settings are.
    pub(crate) fn new(
        group: String,
        replica: u64,
        factory: ValueFactory,
        clock: Arc<dyn Clock>,
        config: GroupConfig,
    ) -> Arc<Self> {
        let state = State {
            value: factory.create(),
            sessions: Sessions::default(),
            applied: None,
            membership: StoredMembership::default(),
            log_time: LogTime::default(),
            config: None,
        };
        let last_stamp = LastStamp { log_time: LogTime::default(), at: clock.monotonic() };
        Arc::new(Self {
            group,
            factory,
            clock,
            state: RwLock::new(state),
            last_stamp: Mutex::new(last_stamp),
            agreed: Agreed::new(config),
            backlog: Mutex::new(Backlog::new(replica)),
            building: Building::default(),
            version_in_use: Mutex::new(None),
            applied: watch::Sender::new(0),
            hooks: OnceLock::new(),
            replica,
            was_member: AtomicBool::new(false),
        })
    }

    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// Where a hook hears of applied commands: set once, before there are any.
    pub(crate) fn set_hooks(&self, queue: Arc<HookQueue>) {
        // Set twice, the first stays; nobody does.
        let _ = self.hooks.set(queue);
    }

    /// Whether this replica was a member at any entry since its start, also one at which nobody looked.
    pub(crate) fn was_member(&self) -> bool {
        self.was_member.load(Ordering::Acquire)
    }

    fn see_members(&self, membership: &StoredMembership) {
        if membership.membership().get_node(&self.replica).is_some() {
            self.was_member.store(true, Ordering::Release);
        }
    }

    pub(crate) fn hooks(&self) -> Option<&Arc<HookQueue>> {
        self.hooks.get()
    }

    /// This node's monotonic clock.
    pub(crate) fn monotonic(&self) -> std::time::Duration {
        self.clock.monotonic()
    }

    /// Applied entries: one above the last index.
    pub(crate) fn applied_count(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    pub(crate) fn factory(&self) -> &ValueFactory {
        &self.factory
    }

    /// The settings that hold, as far as this replica has applied.
    pub(crate) fn config(&self) -> Arc<GroupConfig> {
        self.agreed.now()
    }

    /// This node's wall clock.
    pub(crate) fn wall(&self) -> LogTime {
        self.clock.wall()
    }

    /// A leader's stamp for commands that it proposes now; `agreed` is the time by a majority's clocks.
    pub(crate) fn next_stamp(&self, agreed: Option<LogTime>) -> LogTime {
        let last = *self.last_stamp.lock().unwrap_or_else(PoisonError::into_inner);
        let since_last = self.clock.monotonic().saturating_sub(last.at);
        next_stamp(last.log_time, since_last, agreed, self.clock.wall())
    }

    /// The newest version of which a command was applied, if any was.
    pub(crate) fn version_in_use(&self) -> Option<u32> {
        *self.version_in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember_version(&self, state: &State) {
        *self.version_in_use.lock().unwrap_or_else(PoisonError::into_inner) = state.sessions.version_in_use();
    }

    fn remember_stamp(&self, log_time: LogTime) {
        let last = LastStamp { log_time, at: self.clock.monotonic() };
        *self.last_stamp.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// Runs an encoded query of the value; call it on an apply thread.
    pub(crate) fn query(&self, query: &[u8]) -> Result<Bytes, String> {
        let state = self.read();
        state.value.query(&self.context(&state), query)
    }

    /// Reads the value in place; call it where user code may run.
    pub(crate) fn with_value<T>(&self, read: impl FnOnce(&dyn AnyValue, &Context<'_>) -> T) -> T {
        let state = self.read();
        read(&*state.value, &self.context(&state))
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a snapshot is due by what was applied since the last one.
    pub(crate) fn is_snapshot_due(&self) -> bool {
        let max_entries = self.config().snapshot_after_entries();
        self.backlog().is_due(max_entries)
    }

    /// The log is about to copy so many bytes of this replica's.
    pub(crate) fn add_copied(&self, bytes: u64) {
        self.backlog().add_copied(bytes);
    }

    /// Who builds snapshots, and when.
    pub(crate) fn building(&self) -> &Building {
        &self.building
    }

    fn context<'a>(&'a self, state: &State) -> Context<'a> {
        Context::new(state.log_time, state.applied.map_or(0, |id| id.index), self.factory.environment())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_batch(&self, batch: Vec<EntryResponder<Types>>) -> io::Result<()> {
        let Some(last) = batch.last().map(|(entry, _)| entry.log_id.index) else { return Ok(()) };
        let started = self.clock.monotonic();
        {
            let mut state = self.write();
            let mut amount = Amount::default();
            for (entry, responder) in batch {
                amount = amount.plus(Amount::of_entry(command_bytes(&entry)));
                let applied = self.apply(&mut state, entry)?;
                if let Some(responder) = responder {
                    responder.send(applied);
                }
            }
            self.backlog().add(amount, last);
        }
        if self.is_snapshot_due() {
            self.building.wake();
        }
        let took = self.clock.monotonic().saturating_sub(started);
        metrics::histogram!(stats::APPLY_SECONDS, "group" => self.group.clone()).record(took.as_secs_f64());
        self.applied.send_replace(last + 1);
        Ok(())
    }

    fn apply(&self, state: &mut State, entry: Entry) -> io::Result<Applied> {
        let applied = match entry.payload {
            EntryPayload::Blank => Applied::Nothing,
            EntryPayload::Membership(membership) => {
                state.membership = StoredMembership::new(Some(entry.log_id), membership);
                self.see_members(&state.membership);
                Applied::Nothing
            }
            EntryPayload::Normal(data) => match Command::decode(data.0) {
                Ok(command) => self.apply_command(state, entry.log_id, command)?,
                Err(error) => Applied::Failed(error.to_string()),
            },
        };
        state.applied = Some(entry.log_id);
        if let Some(hooks) = self.hooks.get() {
            hooks.see_entry(**entry.log_id.committed_leader_id());
        }
        Ok(applied)
    }

    fn apply_command(&self, state: &mut State, at: LogId, command: Command) -> io::Result<Applied> {
        let index = at.index;
        if command.stamp > state.log_time {
            state.log_time = command.stamp;
            self.remember_stamp(command.stamp);
        }
        let now = state.log_time;
        if command.to == Recipient::Value && state.sessions.version_in_use() < Some(command.schema) {
            state.sessions.use_version(command.schema);
            self.remember_version(state);
        }
        state.sessions.expire(now);
        if let Some(id) = &command.id {
            match state.sessions.judge(id, now) {
                Verdict::Run => {}
                Verdict::Ran(kept) => return Ok(kept.map_or(Applied::ReplyGone, Applied::from_kept)),
                Verdict::Expired => return Ok(Applied::Expired { log_time: now }),
                Verdict::TooFarAhead => return Ok(Applied::TooFarAhead { log_time: now, not_after: id.not_after }),
                Verdict::Crowded => return Ok(Applied::Crowded),
            }
        }
        let applied = match command.to {
            Recipient::Value => self.run(state, at, &command)?,
            Recipient::Group => self.agree(state, index, &command)?,
        };
        if let Some(id) = &command.id {
            state.sessions.record(id, command.key_hash, applied.to_kept());
        }
        Ok(applied)
    }

    /// A command of the user.
    fn run(&self, state: &mut State, at: LogId, command: &Command) -> io::Result<Applied> {
        let (term, index, now) = (**at.committed_leader_id(), at.index, state.log_time);
        let context = Context::new(now, index, self.factory.environment());
        let applied = match state.value.command(&context, command.schema, &command.payload) {
            Ok(reply) => Applied::Reply(reply),
            Err(CommandFault::Unreadable(error)) => {
                // Answering and going on would make this replica differ from those that can read it.
                tracing::error!(group = %self.group, index, %error, "the replica stops at a command it cannot read");
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("entry {index}: {error}")));
            }
            Err(CommandFault::Failed(message)) => {
                tracing::error!(group = %self.group, index, message, "a command failed in the value's code");
                stats::count(stats::FAILED_COMMANDS, &self.group);
                Applied::Failed(message)
            }
        };
        if let (Some(hooks), Applied::Reply(reply)) = (self.hooks.get(), &applied)
            && hooks.leads() == term
        {
            let Command { schema, payload, .. } = command;
            let (command, reply) = (payload.clone(), reply.clone());
            hooks.push(Call::Applied { term, index, log_time: now, schema: *schema, command, reply });
        }
        Ok(applied)
    }

    /// New settings. What is wrong with them is wrong at every replica; of another version, it may be wrong at this one
    /// alone.
    fn agree(&self, state: &mut State, index: u64, command: &Command) -> io::Result<Applied> {
        match GroupConfig::decode(command.schema, &command.payload) {
            Ok(config) => {
                tracing::info!(group = %self.group, index, ?config, "the group has new settings");
                self.agreed.follow(Some(&config));
                state.config = Some(config);
                Ok(Applied::Reply(Bytes::new()))
            }
            Err(error @ UnreadableConfig::Version(_)) => {
                tracing::error!(group = %self.group, index, %error, "the replica stops at settings it cannot read");
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("entry {index}: {error}")))
            }
            Err(error) => Ok(Applied::Failed(error.to_string())),
        }
    }

    /// What a bug would do, which a simulation must notice.
    #[cfg(test)]
    pub(crate) fn forget_sessions(&self) {
        self.write().sessions = Sessions::default();
    }

    /// The state as it is, to be written while commands go on. They wait for the copy, not for the writing.
    fn freeze(&self) -> (Content, Amount) {
        let state = self.read();
        let content = Content {
            meta: SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() },
            log_time: state.log_time,
            sessions: state.sessions.clone(),
            config: state.config.clone(),
            value: state.value.freeze(),
        };
        (content, self.backlog().applied())
    }

    /// Replaces everything by a snapshot of so many bytes.
    fn restore(&self, content: Content, bytes: u64) {
        let next = State {
            value: content.value,
            sessions: content.sessions,
            applied: content.meta.last_log_id,
            membership: content.meta.last_membership,
            log_time: content.log_time,
            config: content.config,
        };
        let applied = next.applied.map_or(0, |id| id.index + 1);
        self.remember_version(&next);
        self.see_members(&next.membership);
        self.agreed.follow(next.config.as_ref());
        let old = {
            let mut state = self.write();
            self.backlog().restored(applied.saturating_sub(1), bytes);
            std::mem::replace(&mut *state, next)
        };
        self.remember_stamp(content.log_time);
        self.applied.send_replace(applied);
        // Outside the lock: a large value takes its time.
        discard(old.value);
    }
}

impl ReadValue for Shared {
    fn read_value(&self, read: &mut dyn FnMut(&dyn std::any::Any, &Context<'_>)) {
        self.with_value(|value, context| read(value.as_any(), context));
    }
}

/// Above this, applying one batch is worth a warning; and again each time it has taken as long once more.
const SLOW_APPLY: std::time::Duration = std::time::Duration::from_millis(200);

/// openraft's state machine.
pub(crate) struct Machine {
    shared: Arc<Shared>,
    snapshots: SnapshotStore,
    threads: Threads,
}

impl Machine {
    /// Restores the newest snapshot, where there is one.
    pub(crate) fn open(shared: Arc<Shared>, snapshots: SnapshotStore, threads: Threads) -> Result<Self, ReadError> {
        if let Some((content, bytes)) = snapshots.load(&shared.factory)? {
            shared.restore(content, bytes);
        }
        Ok(Self { shared, snapshots, threads })
    }

    /// Says of a batch that takes long that it does, also before it ends.
    async fn watch<T>(&self, applying: impl Future<Output = T>) -> T {
        let mut applying = std::pin::pin!(applying);
        let mut patience = SLOW_APPLY;
        loop {
            match tokio::time::timeout(patience, &mut applying).await {
                Ok(applied) => return applied,
                Err(_) => {
                    let group = &self.shared.group;
                    stats::count(stats::SLOW_APPLIES, group);
                    tracing::warn!(%group, ?patience, "applying takes long: the group's commands wait for it");
                    patience = patience.saturating_mul(2);
                }
            }
        }
    }

    async fn on_apply_threads<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.threads.run(work).await
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotBody;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.shared.read();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        loop {
            let mut batch = Vec::new();
            while batch.len() < MAX_APPLY_BATCH {
                match entries.next().await {
                    Some(entry) => batch.push(entry?),
                    None => break,
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            let shared = self.shared.clone();
            let applying = self.on_apply_threads(move || shared.apply_batch(batch));
            self.watch(applying).await??;
        }
    }

    /// Only for who has a turn: a copy of the value, which may cost as much memory as the value, is made for nobody else.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let turn = self.shared.building.take();
        // An error while building ends openraft's core, so that what will not succeed is not begun.
        if !force && (turn.is_none() || self.snapshots.is_full()) {
            return None;
        }
        let mut builder = self.get_snapshot_builder().await;
        builder.turn = turn;
        if builder.frozen.is_none() {
            builder.end(Built::Failed);
        }
        (force || builder.frozen.is_some()).then_some(builder)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let shared = self.shared.clone();
        // A value that is no persistent collection is copied here: not on a thread of the network.
        let frozen = self.on_apply_threads(move || shared.freeze()).await;
        if let Err(error) = &frozen {
            tracing::error!(group = %self.shared.group, %error, "the value cannot be copied for a snapshot");
        }
        Builder { frozen: frozen.ok(), snapshots: self.snapshots.clone(), shared: self.shared.clone(), turn: None }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, body: SnapshotBody) -> Result<(), io::Error> {
        let bytes = body.length();
        let content = self.snapshots.install(body, &self.shared.factory).await?;
        let shared = self.shared.clone();
        self.on_apply_threads(move || shared.restore(content, bytes)).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let snapshots = self.snapshots.clone();
        // A file is opened: not on a thread of the network.
        let current = self.threads.run(move || snapshots.current()).await??;
        Ok(current.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Builds one snapshot.
pub(crate) struct Builder {
    /// Taken by the one call that builds: the state, and what was applied when it was frozen.
    frozen: Option<(Content, Amount)>,
    snapshots: SnapshotStore,
    shared: Arc<Shared>,
    turn: Option<Turn>,
}

impl Builder {
    fn end(&mut self, built: Built) {
        if let Some(turn) = self.turn.take() {
            turn.end(built);
        }
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotBody;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let Some((content, amount)) = self.frozen.take() else {
            return Err(io::Error::other("there is no state to build this snapshot from"));
        };
        let meta = content.meta.clone();
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let group = &self.shared.group;
        match self.snapshots.save(content).await {
            Ok(snapshot) => {
                tracing::debug!(%group, index, bytes = snapshot.length(), "a snapshot was taken");
                stats::count(stats::SNAPSHOTS, group);
                stats::add(stats::SNAPSHOT_BYTES, group, snapshot.length());
                let max_entries = self.shared.config().snapshot_after_entries();
                let purge = self.shared.backlog().snapshotted(amount, index, snapshot.length(), max_entries);
                self.end(Built::Taken { index, purge });
                Ok(Snapshot { meta, snapshot })
            }
            // The user's code cannot write the value. An error here would end the core, on every replica alike: the log is
            // kept instead, and it is tried again with what the value is then.
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<PieceError>()) => {
                tracing::error!(%group, %error, "no snapshot can be taken, the log grows");
                stats::count(stats::FAILED_SNAPSHOTS, group);
                self.end(Built::Failed);
                // None that is newer than any.
                Ok(Snapshot { meta: SnapshotMeta::default(), snapshot: self.snapshots.nothing() })
            }
            Err(error) => Err(error),
        }
    }
}
