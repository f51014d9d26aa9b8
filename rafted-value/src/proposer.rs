//! Gathers commands and hands them to openraft in batches: with many groups and one write at a time, the cost
//! of a write was measured to be thirty times higher.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal};
use openraft::raft::WriteResult;
use openraft::{Instant as _, ReadPolicy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::command;
use crate::error::{CommandError, NotHappened, UnknownOutcome};
use crate::gathering;
use crate::machine::{Raft, Shared};
use crate::openraft_types::{Applied, EntryData, Types};
use crate::roster::Roster;
use crate::sessions::MAX_REMEMBERED;
use crate::status::{Member, ReplicaId};
use crate::value::LogTime;

/// Commands in one message to openraft's core.
const MAX_BATCH: usize = 1_024;
/// Batches whose replies are awaited at once; the queue before the proposer bounds the commands.
const MAX_BATCHES_IN_FLIGHT: usize = 256;

/// The part of a lease after which it is renewed; of a leader that is awake, heartbeats do so before.
const LEASE_IN_USE: f64 = 0.75;
const RENEWAL_PATIENCE: Duration = Duration::from_millis(300);

/// Why a proposal has no reply.
#[derive(Debug, Clone, PartialEq)]
pub enum ProposeError {
    /// This replica does not lead, and did not append the command.
    NotLeader {
        /// The leader it knows.
        leader: Option<(ReplicaId, Member)>,
    },
    /// The outcome.
    Command(CommandError),
}

impl From<CommandError> for ProposeError {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

pub(crate) struct Proposal {
    pub(crate) command: BytesMut,
    pub(crate) reply: Reply,
    /// In which term every member was found to read it.
    pub(crate) admitted_in: Option<u64>,
}

/// Where an outcome goes, and the room that the command takes until then.
pub(crate) struct Reply {
    pub(crate) caller: oneshot::Sender<Result<Bytes, ProposeError>>,
    pub(crate) _room: Room,
}

impl Reply {
    pub(crate) fn send(self, outcome: Result<Bytes, ProposeError>) {
        let Self { caller, _room: room } = self;
        // Before the caller hears of it, who may ask again at once.
        drop(room);
        // The caller may have given up.
        let _ = caller.send(outcome);
    }
}

/// A command's share of what may be under way, in number and bytes; given back when it is dropped.
pub(crate) struct Room {
    under_way: Arc<AtomicUsize>,
    _bytes: OwnedSemaphorePermit,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What may be under way at one replica, from the call to the reply. How many may is said with each: it can change.
pub(crate) struct Limits {
    under_way: Arc<AtomicUsize>,
    bytes: Arc<Semaphore>,
}

/// Bytes of commands under way at one replica.
const MAX_BYTES_UNDER_WAY: usize = 64 << 20;

impl Limits {
    pub(crate) fn new() -> Self {
        Self { under_way: Arc::default(), bytes: Arc::new(Semaphore::new(MAX_BYTES_UNDER_WAY)) }
    }

    /// Whether any command is under way.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0
    }

    /// Room for a command of so many bytes, if there is any and at most so many others are under way.
    pub(crate) fn take(&self, bytes: usize, max_commands: usize) -> Option<Room> {
        let bytes = u32::try_from(bytes).ok()?;
        let bytes = self.bytes.clone().try_acquire_many_owned(bytes).ok()?;
        let one_more = |count: usize| (count < max_commands).then(|| count + 1);
        self.under_way.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Room { under_way: self.under_way.clone(), _bytes: bytes })
    }
}

/// Runs until the queue's senders are gone. What must wait until it is known who reads it goes `aside`, and comes back
/// through the queue.
pub(crate) async fn run(
    raft: Raft,
    shared: Arc<Shared>,
    lease: Duration,
    mut roster: Roster,
    aside: mpsc::UnboundedSender<Proposal>,
    mut queue: mpsc::UnboundedReceiver<Proposal>,
) {
    let mut batch = Vec::new();
    let mut in_flight = FuturesUnordered::new();
    // When the first of the batch came, and when it has waited long enough.
    let mut since = Instant::now();
    let mut waited_long = pin!(tokio::time::sleep_until(since));
    loop {
        let room = MAX_BATCH - batch.len();
        let may_propose = in_flight.len() < MAX_BATCHES_IN_FLIGHT;
        tokio::select! {
            // Replies first: each is finite work, and whoever waits for one may be the next to ask.
            biased;
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
            () = &mut waited_long, if may_propose && !batch.is_empty() => {}
            count = queue.recv_many(&mut batch, room), if room > 0 => {
                if count == 0 {
                    break;
                }
                if count == batch.len() {
                    since = Instant::now();
                    waited_long.as_mut().reset(since + gathering::MAX_WAIT);
                }
            }
        }
        if may_propose && gathering::is_due(in_flight.len(), batch.len(), since.elapsed()) {
            in_flight.extend(propose(&raft, &shared, lease, &mut roster, &aside, &mut batch).await);
        }
    }
    in_flight.extend(propose(&raft, &shared, lease, &mut roster, &aside, &mut batch).await);
    while in_flight.next().await.is_some() {}
}

/// Hands a batch to openraft; answers with what delivers its replies.
async fn propose(
    raft: &Raft,
    shared: &Arc<Shared>,
    lease: Duration,
    roster: &mut Roster,
    aside: &mpsc::UnboundedSender<Proposal>,
    batch: &mut Vec<Proposal>,
) -> Option<impl Future<Output = ()> + use<>> {
    put_aside_unreadable(raft, shared, roster, aside, batch);
    if batch.is_empty() {
        return None;
    }
    // Whoever does not lead appends nothing, and need not know the time.
    let time = if raft.is_leader() {
        renew(raft, lease).await;
        roster.time().await
    } else {
        None
    };
    let (commands, replies) = stamped(shared, time, batch);
    if commands.is_empty() {
        return None;
    }
    match raft.client_write_many(commands).await {
        Ok(results) => Some(deliver(shared.clone(), results, replies)),
        Err(fatal) => {
            stopped(&fatal, replies);
            None
        }
    }
}

/// A leader whose last answers are old, because its group slept, has them renewed by a round of heartbeats: openraft takes
/// no command otherwise, and the caller would come again after a pause.
async fn renew(raft: &Raft, lease: Duration) {
    let acknowledged = raft.metrics().borrow_watched().last_quorum_acked;
    if acknowledged.is_none_or(|at| at.elapsed() < lease.mul_f64(LEASE_IN_USE)) {
        return;
    }
    // Where it fails, the commands do, too, and say so.
    let _ = tokio::time::timeout(RENEWAL_PATIENCE, raft.get_read_linearizer(ReadPolicy::ReadIndex)).await;
}

/// Puts aside, or refuses, what some member may not be able to read.
fn put_aside_unreadable(
    raft: &Raft,
    shared: &Shared,
    roster: &Roster,
    aside: &mpsc::UnboundedSender<Proposal>,
    batch: &mut Vec<Proposal>,
) {
    let in_use = shared.version_in_use();
    let is_in_use =
        |proposal: &Proposal| command::schema(&proposal.command).is_none_or(|version| Some(version) <= in_use);
    if batch.iter().all(is_in_use) {
        return;
    }
    // What it has applied is what was committed before its term, too: asked first, since more may be applied meanwhile.
    let is_up_to_date = has_applied_own_term(raft) == Some(true);
    let in_use = shared.version_in_use();
    let term = raft.metrics().borrow_watched().current_term;
    for proposal in std::mem::take(batch) {
        let judged = match command::schema(&proposal.command) {
            // Not asked again, however long it was queued since: else it might never get through.
            _ if proposal.admitted_in == Some(term) => Some(Ok(())),
            Some(version) if Some(version) > in_use && !is_up_to_date => None,
            Some(version) => roster.judge(version, in_use),
            None => Some(Ok(())),
        };
        match judged {
            Some(Ok(())) => batch.push(proposal),
            Some(Err(refusal)) => proposal.reply.send(Err(not_happened(refusal))),
            None => {
                // Nobody takes them only while the replica stops, and the caller hears of that.
                let _ = aside.send(proposal);
            }
        }
    }
}

/// Whether the leader has applied an entry of its own term, and with it all that was committed before; `None` if this
/// does not lead.
pub(crate) fn has_applied_own_term(raft: &Raft) -> Option<bool> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let applied = metrics.last_applied.map(|id| **id.committed_leader_id());
    metrics.state.is_leader().then(|| applied == Some(metrics.vote.leader_id.term))
}

fn stamped(shared: &Shared, time: Option<LogTime>, batch: &mut Vec<Proposal>) -> (Vec<EntryData>, Vec<Reply>) {
    let now = shared.next_stamp(time);
    batch
        .drain(..)
        // A caller that has given up before its command was appended: it need not run.
        .filter(|proposal| !proposal.reply.caller.is_closed())
        .map(|mut proposal| {
            command::stamp(&mut proposal.command, now);
            (EntryData(proposal.command.freeze()), proposal.reply)
        })
        .unzip()
}

async fn deliver(
    shared: Arc<Shared>,
    mut results: impl futures_util::Stream<Item = Result<WriteResult<Types>, Fatal<Types>>> + Unpin,
    replies: Vec<Reply>,
) {
    let mut replies = replies.into_iter();
    while let Some(reply) = replies.next() {
        let outcome = match results.next().await {
            Some(Ok(Ok(written))) => outcome_of(&shared, written.response),
            Some(Ok(Err(error))) => Err(refused(error)),
            Some(Err(fatal)) => {
                reply.send(Err(interrupted(&fatal)));
                return stopped(&fatal, replies.collect());
            }
            None => Err(unknown(UnknownOutcome::Interrupted("the replica stopped".into()))),
        };
        reply.send(outcome);
    }
}

fn outcome_of(shared: &Shared, applied: Applied) -> Result<Bytes, ProposeError> {
    match applied {
        Applied::Reply(reply) => Ok(reply),
        Applied::Nothing => Ok(Bytes::new()),
        Applied::Expired { log_time } => Err(unknown(UnknownOutcome::Expired { log_time: Some(log_time) })),
        Applied::ReplyGone => Err(unknown(UnknownOutcome::ReplyGone)),
        Applied::TooFarAhead { log_time, not_after } => {
            Err(not_happened(NotHappened::TooFarAhead { group: shared.group().to_owned(), log_time, not_after }))
        }
        Applied::Crowded => {
            let (group, queued) = (shared.group().to_owned(), MAX_REMEMBERED);
            Err(not_happened(NotHappened::Overloaded { group, queued }))
        }
        Applied::Failed(message) => Err(CommandError::Failed(message).into()),
    }
}

fn refused(error: ClientWriteError<Types>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(to) => {
            let leader = to.leader_id.and_then(ReplicaId::new).zip(to.leader_node);
            ProposeError::NotLeader { leader }
        }
        other => unknown(UnknownOutcome::Interrupted(other.to_string())),
    }
}

fn not_happened(reason: NotHappened) -> ProposeError {
    CommandError::NotHappened(reason).into()
}

fn unknown(reason: UnknownOutcome) -> ProposeError {
    CommandError::Unknown(reason).into()
}

fn interrupted(fatal: &Fatal<Types>) -> ProposeError {
    unknown(UnknownOutcome::Interrupted(format!("the replica stopped: {fatal}")))
}

fn stopped(fatal: &Fatal<Types>, replies: Vec<Reply>) {
    for reply in replies {
        reply.send(Err(interrupted(fatal)));
    }
}
