//! openraft's network over the [`Transport`] trait: one client per other replica of one group.

mod commits;
mod sending;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::Stream;
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::openraft_types::{Types, Vote, encode_payload};
use crate::rpc::{Answer, Append, RequestBody};
use crate::sender::Sender;
use crate::snapshot::{SnapshotBody, Traffic};
use crate::status::{Member, ReplicaId};
use crate::transport::{Transport, TransportError};

type Snapshot = openraft::type_config::alias::SnapshotOf<Types, SnapshotBody>;

/// Answers that wait for a sync get at least this long.
const MIN_APPEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes the clients of one replica.
pub(crate) struct Network {
    pub(crate) sender: Sender,
    pub(crate) transport: Arc<dyn Transport>,
    /// What all senders of snapshots of this node share.
    pub(crate) traffic: Arc<Traffic>,
    /// While the group sleeps, nobody is tried again and again.
    pub(crate) asleep: Arc<AtomicBool>,
}

/// The client for one other replica.
pub(crate) struct Client {
    sender: Sender,
    to: u64,
    node: String,
    transport: Arc<dyn Transport>,
    traffic: Arc<Traffic>,
    asleep: Arc<AtomicBool>,
    /// That it cannot read a snapshot is said once.
    warned_unreadable: AtomicBool,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Member) -> Client {
        Client {
            sender: self.sender.clone(),
            to: target,
            node: node.name.clone(),
            transport: self.transport.clone(),
            traffic: self.traffic.clone(),
            asleep: self.asleep.clone(),
            warned_unreadable: AtomicBool::new(false),
        }
    }
}

impl Client {
    fn request(&self, body: RequestBody) -> bytes::Bytes {
        self.sender.request(ReplicaId::new(self.to), body)
    }

    async fn call(&self, body: RequestBody, what: RPCTypes, timeout: Duration) -> Result<Answer, RPCError<Types>> {
        let answer = self.transport.call(&self.node, self.request(body), timeout).await;
        self.judge(answer, what, timeout)
    }

    fn judge(
        &self,
        answer: Result<bytes::Bytes, TransportError>,
        action: RPCTypes,
        timeout: Duration,
    ) -> Result<Answer, RPCError<Types>> {
        match answer {
            Ok(bytes) => match Answer::decode(bytes) {
                // A replica that is not there must never count as a vote or a log answer.
                Ok(Answer::WrongReplica) => {
                    Err(Unreachable::from_string(format!("node {} does not host replica {:016x}", self.node, self.to))
                        .into())
                }
                Ok(Answer::Ended { incarnation }) => {
                    Err(Unreachable::from_string(format!("the group goes on as incarnation {incarnation}")).into())
                }
                Ok(Answer::NotHappened(reason)) => Err(Unreachable::from_string(reason).into()),
                Ok(answer) => Ok(answer),
                Err(error) => Err(NetworkError::from_string(error).into()),
            },
            Err(TransportError::NotSent(reason)) => Err(Unreachable::from_string(reason).into()),
            Err(TransportError::Lost(_)) => {
                Err(Timeout { action, id: self.sender.replica().get(), target: self.to, timeout }.into())
            }
        }
    }

    fn unexpected(answer: &Answer) -> RPCError<Types> {
        NetworkError::from_string(format!("an answer to another question: {answer:?}")).into()
    }
}

fn vote_response(answer: Answer) -> Result<VoteResponse<Types>, RPCError<Types>> {
    match answer {
        Answer::Vote { vote, granted, last } => Ok(VoteResponse { vote, vote_granted: granted, last_log_id: last }),
        other => Err(Client::unexpected(&other)),
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotBody;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let timeout =
            if rpc.entries.is_empty() { option.hard_ttl() } else { option.hard_ttl().max(MIN_APPEND_TIMEOUT) };
        let entries = rpc
            .entries
            .iter()
            .map(|entry| (**entry.log_id.committed_leader_id(), entry.log_id.index, encode_payload(&entry.payload)))
            .collect();
        let append = Append { vote: rpc.vote, previous: rpc.prev_log_id, commit: rpc.leader_commit, entries };
        match self.call(RequestBody::Append(append), RPCTypes::AppendEntries, timeout).await? {
            Answer::AppendSuccess => Ok(AppendEntriesResponse::Success),
            Answer::AppendPartial(last) => Ok(AppendEntriesResponse::PartialSuccess(last)),
            Answer::AppendConflict => Ok(AppendEntriesResponse::Conflict),
            Answer::AppendHigherVote(vote) => Ok(AppendEntriesResponse::HigherVote(vote)),
            other => Err(Self::unexpected(&other)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        stream_append_sequential(self, Box::pin(commits::with_next_entries(input)), option)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let body = RequestBody::Vote { vote: rpc.vote, last: rpc.last_log_id, transfer: rpc.leadership_transfer };
        vote_response(self.call(body, RPCTypes::Vote, option.hard_ttl()).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let body = RequestBody::PreVote { vote: rpc.vote, last: rpc.last_log_id, transfer: rpc.leadership_transfer };
        vote_response(self.call(body, RPCTypes::Vote, option.hard_ttl()).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = self.send(vote, snapshot.meta, snapshot.snapshot) => sent,
        };
        match sent {
            Ok(vote) => Ok(SnapshotResponse::new(vote)),
            Err(RPCError::Timeout(error)) => Err(error.into()),
            Err(RPCError::Unreachable(error)) => Err(error.into()),
            Err(RPCError::Network(error)) => Err(error.into()),
            Err(other) => Err(NetworkError::from_string(other).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let body = RequestBody::TransferLeader {
            from: *request.from_leader(),
            to: *request.to_node_id(),
            last: request.last_log_id().copied(),
        };
        match self.call(body, RPCTypes::TransferLeader, option.hard_ttl()).await? {
            Answer::TransferAccepted => Ok(Ok(())),
            Answer::TransferVoteChanged { expected, actual } => {
                Ok(Err(TransferLeaderError::VoteChanged { expected, actual }))
            }
            Answer::TransferLogNotFlushed { expected, actual } => {
                Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
            }
            other => Err(Self::unexpected(&other)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let asleep = self.asleep.clone();
        let steps = BACKOFF_STEPS.into_iter().chain(std::iter::repeat(BACKOFF_MAX));
        Some(Backoff::new(steps.map(move |step| if asleep.load(Ordering::Acquire) { BACKOFF_ASLEEP } else { step })))
    }
}

/// While a peer is unreachable; the transport itself waits for a connection within a call's timeout.
const BACKOFF_STEPS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(50)];
const BACKOFF_MAX: Duration = Duration::from_millis(100);
/// In a sleeping group: whoever wakes it for a member that can be reached again has that one tried at once.
const BACKOFF_ASLEEP: Duration = Duration::from_secs(60);
