//! Linearizable reads by shared ReadIndex rounds (Raft dissertation, section 6.4): a read joins only a round
//! whose heartbeats are sent after it arrived. One round is in flight, one gathers.

use std::sync::Arc;

use bytes::Bytes;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot};

use crate::error::{NotHappened, QueryError};
use crate::machine::{Raft, Shared};
use crate::status::{Member, ReplicaId};

/// Queries that share one round.
const MAX_ROUND: usize = 4_096;

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ReadError {
    /// This replica does not lead.
    NotLeader {
        /// The leader it knows.
        leader: Option<(ReplicaId, Member)>,
    },
    /// The outcome.
    Query(QueryError),
}

impl From<QueryError> for ReadError {
    fn from(error: QueryError) -> Self {
        Self::Query(error)
    }
}

pub(crate) struct Read {
    pub(crate) query: Bytes,
    pub(crate) answer: oneshot::Sender<Result<Bytes, ReadError>>,
}

/// Runs until the queue's senders are gone.
pub(crate) async fn run(
    raft: Raft,
    shared: Arc<Shared>,
    apply_threads: tokio::runtime::Handle,
    mut queue: mpsc::Receiver<Read>,
) {
    let mut applied = shared.applied_count();
    let mut round = Vec::new();
    while queue.recv_many(&mut round, MAX_ROUND).await > 0 {
        round.retain(|read: &Read| !read.answer.is_closed());
        if round.is_empty() {
            continue;
        }
        metrics::counter!("rafted_value_read_rounds_total").increment(1);
        let index = match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => linearizer.read_log_id().index(),
            Err(error) => {
                refuse(round.drain(..), &error);
                continue;
            }
        };
        // The value is read once applied has reached the round's index.
        if applied.wait_for(|&count| count > index).await.is_err() {
            return;
        }
        let reads = std::mem::take(&mut round);
        let shared = shared.clone();
        // Not awaited: the next round need not wait for the user's code. The task ends by itself.
        apply_threads.spawn(async move {
            for read in reads {
                let answer = shared.query(&read.query).map_err(|message| QueryError::Failed(message).into());
                let _ = read.answer.send(answer);
            }
        });
    }
}

fn refuse(
    reads: impl Iterator<Item = Read>,
    error: &RaftError<crate::openraft_types::Types, LinearizableReadError<crate::openraft_types::Types>>,
) {
    let refusal = match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
            ReadError::NotLeader { leader: to.leader_id.and_then(ReplicaId::new).zip(to.leader_node.clone()) }
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => ReadError::NotLeader { leader: None },
        RaftError::Fatal(fatal) => {
            let reason = NotHappened::Stopped { group: String::new(), reason: fatal.to_string() };
            QueryError::NotHappened(reason).into()
        }
    };
    for read in reads {
        let _ = read.answer.send(Err(refusal.clone()));
    }
}
