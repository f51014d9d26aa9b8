//! openraft by itself: three nodes in one process, with a log and a table in memory, and function calls as network.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::type_config::alias::{CommittedLeaderIdOf, EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::{Config, EntryPayload, OptionalSend};

use super::Client;

/// How long the nodes may take until one of them leads, and how often it is looked.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

openraft::declare_raft_types!(
    /// Typed commands: nothing is encoded.
    pub Types: D = Put, R = bool, NodeId = u64, Node = (),
);

/// A command.
#[derive(Clone)]
pub struct Put {
    key: u64,
    bytes: Vec<u8>,
}

impl Debug for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes under {}", self.bytes.len(), self.key)
    }
}

type Raft = openraft::Raft<Types, Machine>;
type Entry = EntryOf<Types>;
type LogId = LogIdOf<Types>;
type Snapshot = openraft::storage::Snapshot<CommittedLeaderIdOf<Types>, u64, (), State>;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<LogContent>>);

#[derive(Default)]
struct LogContent {
    entries: BTreeMap<u64, Entry>,
    vote: Option<VoteOf<Types>>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogContent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(self.lock().vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let content = self.lock();
        let last = content.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(LogState { last_purged_log_id: content.purged, last_log_id: last.or(content.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.lock().entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.lock().entries.split_off(&last.map_or(0, |last| last.index + 1));
        Ok(())
    }

    async fn purge(&mut self, up_to: LogId) -> Result<(), io::Error> {
        let mut content = self.lock();
        content.entries = content.entries.split_off(&(up_to.index + 1));
        content.purged = Some(up_to);
        Ok(())
    }
}

/// What is replicated; a clone of it is a snapshot.
#[derive(Clone, Default)]
struct State {
    rows: BTreeMap<u64, Vec<u8>>,
    applied: Option<LogId>,
    membership: StoredMembershipOf<Types>,
}

impl State {
    fn to_snapshot(&self) -> Snapshot {
        let meta = SnapshotMetaOf::<Types> { last_log_id: self.applied, last_membership: self.membership.clone() };
        Snapshot { meta, snapshot: self.clone() }
    }
}

/// The table.
#[derive(Default)]
struct Machine {
    state: State,
    snapshot: Arc<Mutex<Option<Snapshot>>>,
}

struct Builder {
    state: State,
    kept: Arc<Mutex<Option<Snapshot>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = State;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.state.to_snapshot());
        Ok(self.state.to_snapshot())
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = State;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembershipOf<Types>), io::Error> {
        Ok((self.state.applied, self.state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.state.applied = Some(entry.log_id);
            let answer = match entry.payload {
                EntryPayload::Blank => false,
                EntryPayload::Normal(put) => self.state.rows.insert(put.key, put.bytes).is_some(),
                EntryPayload::Membership(membership) => {
                    self.state.membership = StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                    false
                }
            };
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { state: self.state.clone(), kept: self.snapshot.clone() }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMetaOf<Types>, state: State) -> Result<(), io::Error> {
        self.state = state;
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.state.to_snapshot());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let kept = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(kept.as_ref().map(|kept| kept.snapshot.to_snapshot()))
    }
}

/// The nodes of the process.
#[derive(Clone, Default)]
struct Hub(Arc<OnceLock<BTreeMap<u64, Raft>>>);

/// The way to one node.
struct Link {
    hub: Hub,
    to: u64,
}

impl RaftNetworkFactory<Types> for Hub {
    type Network = Link;

    async fn new_client(&mut self, to: u64, _node: &()) -> Link {
        Link { hub: self.clone(), to }
    }
}

impl Link {
    fn target(&self) -> Result<Raft, Unreachable<Types>> {
        let found = self.hub.0.get().and_then(|nodes| nodes.get(&self.to)).cloned();
        found.ok_or_else(|| Unreachable::from_string("it does not run yet"))
    }
}

fn failed(error: impl fmt::Display) -> RPCError<Types> {
    NetworkError::from_string(error).into()
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = State;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.target()?.append_entries(request).await.map_err(failed)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.target()?.vote(request).await.map_err(failed)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let installed = self.target()?.install_full_snapshot(vote, snapshot).await;
        installed.map_err(|error| StreamingError::Network(NetworkError::from_string(error)))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.target()?.handle_transfer_leader(request).await.map_err(failed)
    }
}

/// A client on the leader's node.
#[derive(Clone)]
pub struct OpenraftClient {
    leader: Raft,
    /// Keeps the other nodes.
    _hub: Hub,
}

/// Three nodes, of which the first leads.
pub async fn connect() -> Result<OpenraftClient> {
    let (hub, mut nodes) = (Hub::default(), BTreeMap::new());
    for id in 1..=3 {
        let config = Arc::new(Config { cluster_name: "bench".into(), ..Config::default() }.validate()?);
        let raft = Raft::new(id, config, hub.clone(), Log::default(), Machine::default()).await;
        nodes.insert(id, raft.map_err(|error| anyhow!("openraft does not start: {error}"))?);
    }
    let first = nodes.get(&1).cloned().context("no node")?;
    hub.0.set(nodes).map_err(|_| anyhow!("set twice"))?;
    first.initialize((1..=3).map(|id| (id, ())).collect::<BTreeMap<_, _>>()).await?;
    first.wait(Some(PATIENCE)).current_leader(1, "the first leads").await?;
    let client = OpenraftClient { leader: first, _hub: hub };
    // Whoever is voted for names itself as the leader, and may be asked before the votes are there.
    let start = Instant::now();
    while let Err(error) = client.write(0, &[]).await {
        ensure!(start.elapsed() < PATIENCE, "no leader takes a write: {error:#}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(client)
}

impl Client for OpenraftClient {
    async fn write(&self, key: u64, body: &[u8]) -> Result<()> {
        self.leader.client_write(Put { key, bytes: body.to_vec() }).await?;
        Ok(())
    }
}
