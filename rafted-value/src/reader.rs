//! Linearizable reads by shared ReadIndex rounds (Raft dissertation, section 6.4): a read joins only a round
//! whose heartbeats are sent after it arrived. One round is in flight, one gathers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::linearizable_read::Linearizer;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::error::{NotHappened, QueryError};
use crate::machine::{Raft, Shared};
use crate::openraft_types::Types;
use crate::sleeper::Sleeper;
use crate::stats;
use crate::status::{Member, ReplicaId};
use crate::threads::Threads;

/// Queries that share one round.
const MAX_ROUND: usize = 4_096;
/// How often a round that waits for the value looks whether this still leads.
const LEADERSHIP_CHECK: Duration = Duration::from_millis(100);

/// A round that a sleeping leader has sent, and that lasts for so long, has lost a message.
const SLOW_ROUND: Duration = Duration::from_millis(100);

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ReadError {
    /// This replica does not lead.
    NotLeader {
        /// The leader it knows.
        leader: Option<(ReplicaId, Member)>,
    },
    /// It did not answer in time: it may lead, and be slow.
    NoAnswer {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The outcome.
    Query(QueryError),
}

impl From<QueryError> for ReadError {
    fn from(error: QueryError) -> Self {
        Self::Query(error)
    }
}

/// Who joins a round.
pub(crate) enum Read {
    /// An encoded query, answered from the value.
    Query { query: Bytes, answer: oneshot::Sender<Result<Bytes, ReadError>> },
    /// How many entries hold all that is committed: what another member needs in order to answer by itself.
    Index { answer: oneshot::Sender<Result<u64, ReadError>> },
}

impl Read {
    fn is_given_up(&self) -> bool {
        match self {
            Self::Query { answer, .. } => answer.is_closed(),
            Self::Index { answer } => answer.is_closed(),
        }
    }

    fn refuse(self, refusal: ReadError) {
        // Whoever asked may have given up.
        match self {
            Self::Query { answer, .. } => drop(answer.send(Err(refusal))),
            Self::Index { answer } => drop(answer.send(Err(refusal))),
        }
    }
}

/// Runs until the queue's senders are gone.
pub(crate) async fn run(
    raft: Raft,
    shared: Arc<Shared>,
    sleeper: Arc<Sleeper>,
    threads: Threads,
    mut queue: mpsc::Receiver<Read>,
) {
    let mut round = Vec::new();
    // The queries of the round before run while this one's heartbeats are under way; no more than one round's do, so
    // that a value that is held by a long command does not gather threads.
    let mut answering: Option<JoinHandle<()>> = None;
    while queue.recv_many(&mut round, MAX_ROUND).await > 0 {
        round.retain(|read: &Read| !read.is_given_up());
        if round.is_empty() {
            continue;
        }
        stats::count(stats::READ_ROUNDS, shared.group());
        let index = match prove(&raft, &sleeper).await {
            Ok(linearizer) => linearizer.read_log_id().index(),
            Err(error) => {
                refuse(round.drain(..), refusal_of(&error));
                continue;
            }
        };
        answer_indexes(&mut round, index);
        if round.is_empty() {
            continue;
        }
        if !applied_beyond(&raft, &shared, index, &round).await {
            refuse(round.drain(..), ReadError::NotLeader { leader: None });
            continue;
        }
        if let Some(before) = answering.take() {
            // It ends by itself; that it was cancelled can only mean that the runtime shuts down.
            let _ = before.await;
        }
        let (reads, shared) = (std::mem::take(&mut round), shared.clone());
        answering = Some(threads.spawn(move || {
            for read in reads {
                if let Read::Query { query, answer } = read
                    && !answer.is_closed()
                {
                    // Whoever asked may give up meanwhile.
                    let _ = answer.send(shared.query(&query).map_err(|message| QueryError::Failed(message).into()));
                }
            }
        }));
    }
}

/// Proves that this is still the leader. One round of heartbeats does, and leaves a sleeping group asleep; where a message
/// is lost, only a leader that is awake sends it again.
async fn prove(
    raft: &Raft,
    sleeper: &Sleeper,
) -> Result<Linearizer<Types>, RaftError<Types, LinearizableReadError<Types>>> {
    let mut round = std::pin::pin!(raft.get_read_linearizer(ReadPolicy::ReadIndex));
    if !sleeper.is_asleep() {
        return round.await;
    }
    match tokio::time::timeout(SLOW_ROUND, &mut round).await {
        Ok(proof) => proof,
        Err(_) => {
            sleeper.wake_leader();
            round.await
        }
    }
}

/// Answers those who want the index alone, and leaves the queries.
fn answer_indexes(round: &mut Vec<Read>, index: u64) {
    for read in std::mem::take(round) {
        match read {
            Read::Index { answer } => drop(answer.send(Ok(index.saturating_add(1)))),
            query => round.push(query),
        }
    }
}

/// Waits until the value has what was committed when the round began. The index may be that of an entry which this
/// leader never gets committed: the wait ends when it leads no more, or nobody waits for the answers.
async fn applied_beyond(raft: &Raft, shared: &Shared, index: u64, round: &[Read]) -> bool {
    let mut applied = shared.applied_count();
    loop {
        tokio::select! {
            biased;
            reached = applied.wait_for(|&count| count > index) => return reached.is_ok(),
            () = tokio::time::sleep(LEADERSHIP_CHECK) => {
                if !raft.is_leader() || round.iter().all(Read::is_given_up) {
                    return false;
                }
            }
        }
    }
}

fn refusal_of(error: &RaftError<Types, LinearizableReadError<Types>>) -> ReadError {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
            ReadError::NotLeader { leader: to.leader_id.and_then(ReplicaId::new).zip(to.leader_node.clone()) }
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => ReadError::NotLeader { leader: None },
        RaftError::Fatal(fatal) => {
            let reason = NotHappened::Stopped { group: String::new(), reason: fatal.to_string() };
            QueryError::NotHappened(reason).into()
        }
    }
}

fn refuse(reads: impl Iterator<Item = Read>, refusal: ReadError) {
    for read in reads {
        read.refuse(refusal.clone());
    }
}
