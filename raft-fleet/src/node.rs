//! What the tasks of a node share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use batched_comm::{Address, CallError, ClusterId, Endpoint, Message, NodeName, Request};
use rafted_value::{
    ClientSession, Clock, ClusterTag, CommandError, GroupClient, MAX_OPEN_SERIALS, NotHappened, QueryError, ReplicaId,
    Store, SystemClock, UnknownOutcome, deadline_in, decode_answer, decode_reply, encode_command, encode_query,
};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::bootstrap::{Bootstrap, ClusterKey, Event, Part};
use crate::cluster::{Answer, CLUSTER_GROUP, Cluster, Command, Query, Reply};
use crate::config::FleetConfig;
use crate::error::NodeFailure;
use crate::event::FleetEvent;
use crate::gate::Gate;
use crate::leaderless::Leaderless;
use crate::leaders::Leaders;
use crate::memory::{Memory, Refused};
use crate::message::{FLEET_MAILBOX, Start};
use crate::peers::Peers;
use crate::replicas::Replicas;
use crate::routes::Contacts;
use crate::seeds::Seeds;
use crate::view::View;
use crate::waking::Waking;

/// How far a node has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It looks for its cluster, or registers there.
    Joining,
    /// It is registered, and its replicas run.
    Running,
    /// It is over.
    Failed(NodeFailure),
}

/// A replica of the cluster group, in a term, of which the leader said that it votes, and when.
#[derive(Debug, Default)]
pub(crate) struct Confirmed {
    last: Mutex<Option<(ReplicaId, u64, Instant)>>,
}

impl Confirmed {
    pub(crate) fn set(&self, replica: ReplicaId, term: u64) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((replica, term, Instant::now()));
    }

    /// How long ago, if it was this replica in this term.
    pub(crate) fn elapsed(&self, replica: ReplicaId, term: u64) -> Option<Duration> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(id, at, _)| (*id, *at) == (replica, term)).map(|(_, _, since)| since.elapsed())
    }
}

/// That this node leads the cluster group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) term: u64,
    pub(crate) since: Instant,
}

/// A node.
pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) zone: String,
    /// Where others reach it.
    pub(crate) address: SocketAddr,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) seeds: Seeds,
    pub(crate) part: Part,
    pub(crate) replace: bool,
    pub(crate) start: Start,
    pub(crate) config: FleetConfig,
    pub(crate) store: Store,
    pub(crate) endpoint: Endpoint,
    pub(crate) session: ClientSession,
    pub(crate) clock: SystemClock,
    pub(crate) memory: Memory,
    pub(crate) gate: Gate,
    pub(crate) view: Arc<View>,
    /// When the leader of the cluster group last confirmed that this node's replica of it votes.
    pub(crate) confirmed: Confirmed,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) leaders: Arc<Leaders>,
    pub(crate) leaderless: Leaderless,
    pub(crate) peers: Arc<Peers>,
    pub(crate) waking: Arc<Waking>,
    pub(crate) contacts: Arc<Contacts>,
    pub(crate) client: GroupClient,
    /// Whether this process took part in making the cluster.
    pub(crate) is_founder: AtomicBool,
    pub(crate) progress: watch::Sender<Progress>,
    /// Whether this node leads the cluster group.
    pub(crate) leads_cluster: watch::Sender<Option<Leadership>>,
    pub(crate) events: broadcast::Sender<FleetEvent>,
}

impl Node {
    /// Whether the socket takes what comes to any of the machine's addresses.
    pub(crate) fn listens_anywhere(&self) -> bool {
        self.endpoint.local_address().ip().is_unspecified()
    }

    pub(crate) fn is_here(&self, node: &str) -> bool {
        self.name.as_str() == node
    }

    /// From now on this node is bound to the cluster: its store, its connections, its replicas.
    pub(crate) async fn bind(&self, cluster: ClusterKey) -> Result<(), NodeFailure> {
        let tag = ClusterTag { id: cluster.id, generation: cluster.generation };
        if self.replicas.cluster() == Some(tag) {
            return Ok(());
        }
        let store = self.store.clone();
        let stored = tokio::task::spawn_blocking(move || store.set_cluster(tag)).await;
        let stored = stored.map_err(|error| NodeFailure::Storage(error.to_string()))?;
        stored.map_err(|error| NodeFailure::Storage(error.to_string()))?;
        self.endpoint.set_cluster(ClusterId { id: cluster.id, generation: cluster.generation });
        self.replicas.set_cluster(tag);
        Ok(())
    }

    /// Brings the bootstrap forward; the state that it returns is synced.
    pub(crate) async fn bootstrap(&self, event: Event) -> Result<Bootstrap, NodeFailure> {
        self.memory.bootstrap(self.part, event, self.contacts.get()).await
    }

    /// Asks another node, or this one.
    pub(crate) async fn call<R: Request>(
        &self,
        node: &str,
        request: &R,
        timeout: Duration,
    ) -> Result<R::Reply, CallError> {
        self.endpoint.call(&self.mailbox_of(node)?, request, timeout).await
    }

    /// Tells another node, if it is connected.
    pub(crate) fn cast<M: Message>(&self, node: &str, message: &M) {
        if let Ok(address) = self.mailbox_of(node)
            && let Err(error) = self.endpoint.try_send(&address, message)
        {
            tracing::debug!(node, %error, "a hint was not sent; it will be asked for");
        }
    }

    fn mailbox_of(&self, node: &str) -> Result<Address, batched_comm::SendError> {
        let unknown = || batched_comm::SendError::UnknownPeer { peer: self.name.clone() };
        let name: NodeName = node.parse().map_err(|_| unknown())?;
        Address::new(&name, FLEET_MAILBOX).map_err(|_| unknown())
    }

    /// Learns where a node is, unless the cluster's state says it better.
    pub(crate) fn meet(&self, node: &str, address: &str) {
        if self.is_here(node) || self.view.get().node(node).is_some() {
            return;
        }
        if let (Ok(name), Ok(socket)) = (node.parse::<NodeName>(), address.parse::<SocketAddr>())
            && self.contacts.get().get(node).is_none_or(|known| known != address)
        {
            self.contacts.add(node, address);
            self.endpoint.set_peer(&name, vec![socket]);
        }
    }

    /// Runs a command of the cluster group, once.
    pub(crate) async fn cluster_command(&self, command: Command, timeout: Duration) -> Result<Reply, CommandError> {
        let deadline = deadline_in(timeout);
        let opened = tokio::time::timeout_at(deadline, self.session.open(self.clock.wall(), timeout)).await;
        // Too many commands of this process are open: this one has not begun.
        let overloaded = || NotHappened::Overloaded { group: CLUSTER_GROUP.to_owned(), queued: MAX_OPEN_SERIALS };
        let open = opened.map_err(|_| overloaded())?;
        let bytes = encode_command::<Cluster>(&command, Some(open.id()), 0)
            .map_err(|error| NotHappened::Malformed(error.to_string()))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let outcome = self.client.command(CLUSTER_GROUP, bytes, left).await;
        let reply = outcome.inspect_err(|error| self.session.learn_from(error, self.clock.wall()))?;
        decode_reply::<Cluster>(&reply).map_err(|error| UnknownOutcome::Interrupted(error.to_string()).into())
    }

    /// Reads the cluster group linearizably.
    pub(crate) async fn cluster_query(&self, query: Query, timeout: Duration) -> Result<Answer, QueryError> {
        let malformed = |error: rafted_value::WireError| NotHappened::Malformed(error.to_string());
        let bytes = encode_query::<Cluster>(&query).map_err(malformed)?;
        let answer = self.client.query(CLUSTER_GROUP, bytes, timeout).await?;
        Ok(decode_answer::<Cluster>(&answer).map_err(malformed)?)
    }

    pub(crate) fn fail(&self, failure: NodeFailure) {
        self.progress.send_if_modified(|progress| {
            if matches!(progress, Progress::Failed(_)) {
                return false;
            }
            if failure != NodeFailure::ShutDown {
                tracing::error!(node = %self.name, %failure, "the node stops taking part");
            }
            *progress = Progress::Failed(failure);
            true
        });
    }

    /// The same, for a failure that the directory must remember: before it is told.
    pub(crate) async fn fail_for_good(&self, failure: NodeFailure) {
        if let Some(refused) = Refused::of(&failure)
            && let Err(error) = self.memory.set_refused(refused).await
        {
            tracing::warn!(node = %self.name, %error, "the directory does not remember that it was refused");
        }
        self.fail(failure);
    }

    /// Whether this was a start of this node's memory of which the directory does not know: it was rolled back.
    pub(crate) fn has_forgotten(&self, seen: Start) -> bool {
        seen.node_id == self.start.node_id && self.store.starts().lack(seen.of_directory())
    }

    pub(crate) fn is_running(&self) -> bool {
        *self.progress.borrow() == Progress::Running
    }

    /// Waits until the node is registered and its replicas run. After a failure it waits for ever, and ends with
    /// the node.
    pub(crate) async fn running(&self) {
        let mut progress = self.progress.subscribe();
        if progress.wait_for(|progress| *progress == Progress::Running).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits until this node leads the cluster group.
pub(crate) async fn leadership(leads: &mut watch::Receiver<Option<Leadership>>) -> Leadership {
    loop {
        if let Some(leadership) = *leads.borrow_and_update() {
            return leadership;
        }
        if leads.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
