//! Answers the requests that other nodes and clients send to a replica.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
};

use super::UntypedReplica;
use crate::error::{NotHappened, UnknownOutcome};
use crate::freshness;
use crate::openraft_types::{decode_payload, entry};
use crate::proposer::ProposeError;
use crate::readable;
use crate::reader::ReadError;
use crate::rpc::{Answer, Append, Envelope, Request, RequestBody};
use crate::stats;
use crate::status::{Member, ReplicaId};
use crate::transport::Body;

impl UntypedReplica {
    /// Whether a request is for exactly this replica.
    fn is_for_me(&self, envelope: &Envelope) -> bool {
        let spec = &self.inner.spec;
        envelope.group == spec.group
            && envelope.cluster == spec.cluster
            && envelope.incarnation == self.inner.sender.incarnation()
            && envelope.to.is_none_or(|to| to == spec.replica)
    }

    pub(super) async fn answer(&self, request: Bytes, timeout: Duration) -> Answer {
        let mut request = match Request::decode(request) {
            Ok(request) => request,
            Err(error) => return Answer::NotHappened(NotHappened::Malformed(error.to_string())),
        };
        if let Some(ended) = self.judge_incarnation(&mut request).await {
            return ended;
        }
        if !self.is_for_me(&request.envelope) {
            return Answer::WrongReplica;
        }
        if self.must_wait_for(&request.body) {
            return Answer::WrongReplica;
        }
        let exact = request.envelope.to.is_some();
        if exact && let Some(answer) = self.stir_for(&request.body) {
            return answer;
        }
        match request.body {
            RequestBody::Append(append) if exact => self.append(append).await,
            RequestBody::Vote { vote, last, transfer } if exact => {
                let request = VoteRequest { vote, last_log_id: last, leadership_transfer: transfer };
                vote_answer(self.inner.raft.vote(request).await)
            }
            RequestBody::PreVote { vote, last, transfer } if exact => {
                let request = VoteRequest { vote, last_log_id: last, leadership_transfer: transfer };
                vote_answer(self.inner.raft.pre_vote(request).await)
            }
            RequestBody::TransferLeader { from, to, last } if exact => {
                self.take_over(TransferLeaderRequest::new(from, to, last)).await
            }
            RequestBody::Command(command) => match self.propose(command, timeout).await {
                Ok(reply) => Answer::Reply(reply),
                Err(ProposeError::NotLeader { leader }) => not_leader(leader),
                Err(ProposeError::Command(error)) => Err(error).into(),
            },
            RequestBody::Query(query) => match self.read(query, timeout).await {
                Ok(answer) => Answer::Reply(answer),
                Err(ReadError::NotLeader { leader }) => not_leader(leader),
                Err(ReadError::NoAnswer { waited }) => Answer::Unknown(UnknownOutcome::Timeout(waited)),
                Err(ReadError::Query(error)) => Err(error).into(),
            },
            RequestBody::QueryAny(query) => self.read_any(query).await.into(),
            RequestBody::QueryWithStaleness { max, query } => {
                self.read_with_staleness(query, max, timeout).await.into()
            }
            RequestBody::Facts if exact => {
                let shared = &self.inner.shared;
                Answer::Facts { newest: shared.factory().version(), wall: shared.wall() }
            }
            RequestBody::ReadIndex if exact => match freshness::index_of(&self.inner.reads, timeout).await {
                Ok(entries) => Answer::ReadIndex { entries },
                Err(ReadError::NotLeader { leader }) => not_leader(leader),
                Err(ReadError::NoAnswer { waited }) => Answer::Unknown(UnknownOutcome::Timeout(waited)),
                Err(ReadError::Query(error)) => Err(error).into(),
            },
            RequestBody::Hello { founder } => self.hello(request.envelope.from.filter(|_| founder)).await,
            RequestBody::Change { change, within } if self.inner.is_alone => {
                self.change(change, within.min(timeout)).await.into()
            }
            RequestBody::Seat { replica } => self.seat(replica).await,
            RequestBody::Returned { node, start, after, asker } if self.inner.is_alone => match request.envelope.from {
                Some(from) => self.seen(from, node, start, after, asker).await,
                None => Answer::WrongReplica,
            },
            RequestBody::Introduce(leader) if self.inner.is_alone && exact => self.meet(leader),
            RequestBody::SnapshotOffer { vote, meta, id, form } if exact => {
                self.inner.installer.offered(vote, &meta, id, form).await
            }
            RequestBody::Append(_)
            | RequestBody::Vote { .. }
            | RequestBody::PreVote { .. }
            | RequestBody::TransferLeader { .. }
            | RequestBody::Change { .. }
            | RequestBody::Returned { .. }
            | RequestBody::Introduce(_)
            | RequestBody::ReadIndex
            | RequestBody::Facts
            | RequestBody::SnapshotOffer { .. }
            | RequestBody::Snapshot { .. } => Answer::WrongReplica,
        }
    }

    async fn hello(&self, founder: Option<ReplicaId>) -> Answer {
        let inner = &self.inner;
        let mut initialized = self.status().members.position.is_some();
        if let Some(founder) = founder.filter(|_| inner.is_alone && !initialized) {
            match inner.store.promise_founder(&inner.spec.group, founder).await {
                // Another one may have founded it.
                Ok(promised) => initialized = !promised,
                Err(error) => return self.stopped(&error),
            }
        }
        Answer::Hello {
            replica: inner.spec.replica.get(),
            node: inner.store.node_id(),
            incarnation: inner.sender.incarnation(),
            initialized,
        }
    }

    async fn append(&self, append: Append) -> Answer {
        // Heartbeats go on; entries wait at the leader until there is room.
        if !append.entries.is_empty() && self.inner.store.wal().is_full() {
            return Answer::NotHappened(NotHappened::DiskFull { group: self.inner.spec.group.clone() });
        }
        let (factory, threads) = (self.inner.shared.factory(), self.inner.store.threads());
        match readable::entries(factory, threads, &append.entries).await {
            Ok(Ok(())) => {}
            // Its sender takes this replica for unreachable: it gets the entry again when its program reads it.
            Ok(Err(unreadable)) => {
                self.warn_unreadable(&unreadable);
                return self.stopped(&unreadable);
            }
            Err(error) => return self.stopped(&error),
        }
        let mut entries = Vec::with_capacity(append.entries.len());
        for (term, index, payload) in append.entries {
            match decode_payload(payload) {
                Ok(payload) => entries.push(entry(term, index, payload)),
                Err(error) => {
                    return Answer::NotHappened(NotHappened::Malformed(error.to_string()));
                }
            }
        }
        let request = AppendEntriesRequest {
            vote: append.vote,
            prev_log_id: append.previous,
            entries,
            leader_commit: append.commit,
        };
        let answer = self.inner.raft.append_entries(request).await;
        if matches!(answer, Ok(AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_))) {
            self.hear_leader();
        }
        match answer {
            Ok(AppendEntriesResponse::Success) => Answer::AppendSuccess,
            Ok(AppendEntriesResponse::PartialSuccess(last)) => Answer::AppendPartial(last),
            Ok(AppendEntriesResponse::Conflict) => Answer::AppendConflict,
            Ok(AppendEntriesResponse::HigherVote(vote)) => Answer::AppendHigherVote(vote),
            Err(error) => self.stopped(&error),
        }
    }

    fn warn_unreadable(&self, unreadable: &readable::Unreadable) {
        stats::count(stats::UNREADABLE_ENTRIES, &self.inner.spec.group);
        if !self.inner.warned_unreadable.swap(true, Ordering::Relaxed) {
            let group = &self.inner.spec.group;
            tracing::error!(%group, %unreadable, "this replica takes no more entries; run the newer program here");
        }
    }

    async fn take_over(&self, request: TransferLeaderRequest<crate::openraft_types::Types>) -> Answer {
        match self.inner.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => Answer::TransferAccepted,
            Ok(Err(TransferLeaderError::VoteChanged { expected, actual })) => {
                Answer::TransferVoteChanged { expected, actual }
            }
            Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual })) => {
                Answer::TransferLogNotFlushed { expected, actual }
            }
            Err(error) => self.stopped(&error),
        }
    }

    pub(super) async fn answer_with_body(&self, request: Bytes, body: Box<dyn Body>) -> Answer {
        let request = match Request::decode(request) {
            Ok(request) => request,
            Err(error) => return Answer::NotHappened(NotHappened::Malformed(error.to_string())),
        };
        if !self.is_for_me(&request.envelope) || request.envelope.to.is_none() || self.must_wait_for(&request.body) {
            return Answer::WrongReplica;
        }
        if let Some(answer) = self.stir_for(&request.body) {
            return answer;
        }
        let RequestBody::Snapshot { vote, meta, id, offset } = request.body else {
            return Answer::NotHappened(NotHappened::Malformed("this request has no body".into()));
        };
        self.inner.installer.receive(vote, meta, id, offset, body).await
    }

    pub(super) fn stopped(&self, error: &dyn std::fmt::Display) -> Answer {
        let (group, reason) = (self.inner.spec.group.clone(), error.to_string());
        Answer::NotHappened(NotHappened::Stopped { group, reason })
    }
}

fn vote_answer<E: std::fmt::Display>(
    response: Result<openraft::raft::VoteResponse<crate::openraft_types::Types>, E>,
) -> Answer {
    match response {
        Ok(response) => {
            Answer::Vote { vote: response.vote, granted: response.vote_granted, last: response.last_log_id }
        }
        // Neither granted nor refused: the replica has stopped.
        Err(_) => Answer::WrongReplica,
    }
}

pub(super) fn not_leader(leader: Option<(ReplicaId, Member)>) -> Answer {
    Answer::NotLeader { leader: leader.map(|(id, member)| (id.get(), member)) }
}
