//! Bugs that the simulation must find, planted at the crate's seams: the disk, the network, the log's records. The
//! code that is tested has no switch for them.

use bytes::Bytes;

use crate::group::UntypedReplica;
use crate::openraft_types::log_id;
use crate::rpc::{Answer, Append, Request, RequestBody};
use crate::status::Role;
use crate::store::Store;
use crate::wal::{Position, VoteRecord};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// None: what is tested.
    Nothing,
    /// The disk says that it has synced before it has.
    AcknowledgeBeforeSync,
    /// A restarted node has forgotten its vote.
    ForgetVote,
    /// A leader answers queries from its memory.
    StaleRead,
    /// What a snapshot was restored from had no sessions.
    DropSessions,
    /// A follower keeps its entries where the leader's differ, and says that all is well.
    KeepSuffix,
}

impl Plant {
    /// What a bug answers in place of the replica.
    pub(crate) async fn answers(self, replica: &UntypedReplica, request: &Bytes) -> Option<Bytes> {
        let body = Request::decode(request.clone()).ok()?.body;
        match (self, body) {
            (Self::StaleRead, RequestBody::Query(query)) if replica.status().role == Role::Leader => {
                replica.read_any(query).await.ok().map(|answer| Answer::Reply(answer).encode())
            }
            (Self::KeepSuffix, RequestBody::Append(append)) => keep_suffix(replica, request, append).await,
            _ => None,
        }
    }

    /// What a bug does to a node that starts.
    pub(crate) fn on_start(self, store: &Store) {
        if self != Self::ForgetVote {
            return;
        }
        for stored in store.replicas() {
            let state = store.wal().state(stored.replica.get()).unwrap_or_default();
            if state.vote.is_some() {
                let term = state.last.map_or(0, |last| last.term);
                let forgotten = VoteRecord { term, voted_for: 0, committed: false };
                store.wal().save_vote(stored.replica.get(), forgotten, Box::new(|_| {}));
            }
        }
    }
}

/// If entries differ from those that are there, gives the replica only the news of what is committed, as if its own
/// were the right ones.
async fn keep_suffix(replica: &UntypedReplica, request: &Bytes, append: Append) -> Option<Bytes> {
    let entries = replica.log_entries();
    let term_at = |index: u64| entries.iter().find(|entry| entry.index == index).map(|entry| entry.term);
    let differs = |&(term, index): &(u64, u64)| term_at(index).is_some_and(|found| found != term);
    let sent = append.entries.iter().map(|(term, index, _)| (*term, *index));
    let previous = append.previous.map(|id| (**id.committed_leader_id(), id.index));
    sent.chain(previous).find(differs)?;
    let last = entries.last().map(|entry| Position { term: entry.term, index: entry.index })?;
    let commit = append.commit.map(|id| id.index.min(last.index)).and_then(|index| Some((term_at(index)?, index)));
    let commit = commit.map(|(term, index)| log_id(term, index));
    let envelope = Request::decode(request.clone()).ok()?.envelope;
    let news = Append { previous: Some(log_id(last.term, last.index)), commit, entries: Vec::new(), ..append };
    let request = Request { envelope, body: RequestBody::Append(news) }.encode();
    replica.handle(request, std::time::Duration::from_secs(1)).await;
    Some(Answer::AppendSuccess.encode())
}
