//! What users hold.

mod recovery;

use std::any::TypeId;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use batched_comm::{Endpoint, NodeName};
use rafted_value::{ClientSession, GroupClient, ReplicaId, Role, Status, Store, Value, ValueFactory};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{CLUSTER_GROUP, Cluster, Command, Drain, GroupPhase, NodePhase, Refusal, Reply};
use crate::error::{FleetError, GroupError, NodeError, NodeFailure};
use crate::event::FleetEvent;
use crate::group::{Group, LedReplica};
use crate::info::{DrainProgress, GroupInfo, GroupState, LedGroup, NodeInfo, NodeState};
use crate::message::WhoAreYou;
use crate::node::{Node, Progress};

/// The longest name of a group, in bytes.
pub const MAX_GROUP_NAME_BYTES: usize = 255;
/// How long a change of groups or nodes may take. Such changes are rare, and run once however often they are sent:
/// patience costs nothing.
const ADMIN_PATIENCE: Duration = Duration::from_secs(20);
/// How long a draining node may have made no progress before it is told that it goes on by itself.
const DRAIN_PATIENCE: Duration = Duration::from_secs(120);
/// How long a node that stops waits for others to take its groups over.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(1);
const HAND_OVER_LOOK: Duration = Duration::from_millis(5);
const CALL_PATIENCE: Duration = Duration::from_secs(2);

/// A node of a fleet. Clones are the same node; it ends with [`Fleet::shutdown`], or when the last clone is
/// dropped.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    node: Arc<Node>,
    types: Types,
    /// How many nodes a cluster that this process helps to make has when it is ready.
    expected_nodes: usize,
    /// All tasks; they end when this is dropped.
    tasks: Mutex<JoinSet<()>>,
}

/// The registered types of values.
#[derive(Clone, Default)]
pub(crate) struct Types {
    pub(crate) factories: HashMap<String, ValueFactory>,
    pub(crate) names: HashMap<TypeId, String>,
}

impl Fleet {
    pub(crate) fn new(node: Arc<Node>, tasks: JoinSet<()>, types: Types, expected_nodes: usize) -> Self {
        Self { inner: Arc::new(Inner { node, types, expected_nodes, tasks: Mutex::new(tasks) }) }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.inner.node
    }

    /// Waits until the node is registered in its cluster and its replicas run; after a bootstrap, until all
    /// expected nodes are registered. An error is final.
    pub async fn ready(&self) -> Result<(), FleetError> {
        let node = self.node();
        let mut progress = node.progress.subscribe();
        let settled = progress.wait_for(|progress| *progress != Progress::Joining).await;
        // The sender lives in the node.
        let settled = settled.map_or(Progress::Failed(NodeFailure::ShutDown), |progress| progress.clone());
        if let Progress::Failed(failure) = settled {
            return Err(failure.into());
        }
        let expected = self.expected_nodes();
        let complete = node.view.wait(|cluster| (cluster.nodes().count() >= expected).then_some(()));
        tokio::select! {
            () = complete => Ok(()),
            failure = self.failed() => Err(failure.into()),
        }
    }

    /// Whether [`Fleet::ready`] would return at once, and well.
    pub fn is_ready(&self) -> bool {
        let node = self.node();
        node.is_running() && node.view.get().nodes().count() >= self.expected_nodes()
    }

    /// How many nodes must be registered before this one is ready: who only joins a cluster cannot know how many
    /// nodes that still has.
    fn expected_nodes(&self) -> usize {
        if self.node().is_founder.load(Ordering::Relaxed) { self.inner.expected_nodes } else { 1 }
    }

    /// Waits until the node can be no part of its cluster any more; stop the process then.
    pub async fn failed(&self) -> NodeFailure {
        let mut progress = self.node().progress.subscribe();
        loop {
            if let Progress::Failed(failure) = &*progress.borrow_and_update() {
                return failure.clone();
            }
            if progress.changed().await.is_err() {
                return NodeFailure::ShutDown;
            }
        }
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.node().name
    }

    /// The number of the node's memory.
    pub fn node_id(&self) -> u64 {
        self.node().start.node_id
    }

    /// The node's zone.
    pub fn zone(&self) -> &str {
        &self.node().zone
    }

    /// Where others reach the node.
    pub fn address(&self) -> SocketAddr {
        self.node().address
    }

    /// The node's endpoint, for further mailboxes: all names but `raft` and `fleet` are free.
    pub fn endpoint(&self) -> &Endpoint {
        &self.node().endpoint
    }

    /// The session of this process, for commands that are opened before they are sent.
    pub fn session(&self) -> &ClientSession {
        &self.node().session
    }

    /// The client of all groups, for layers that encode commands themselves. A group that the cluster does not
    /// know (yet) has no leader for it: see [`Group`] for what waits, or tells.
    pub fn client(&self) -> &GroupClient {
        &self.node().client
    }

    /// Whether groups of values of this registered type can live on this node.
    pub fn has_type(&self, type_name: &str) -> bool {
        self.inner.types.factories.contains_key(type_name)
    }

    /// The node's storage.
    pub fn store(&self) -> &Store {
        &self.node().store
    }

    /// Whether this node leads the cluster group, as far as it knows.
    pub fn leads_cluster(&self) -> bool {
        self.node().leads_cluster.borrow().is_some()
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<FleetEvent> {
        self.node().events.subscribe()
    }

    /// Stops the node: its replicas, its connections, its log. What it stored stays, and a start with the same
    /// directory continues. To leave for good, see [`Fleet::drain`].
    pub async fn shutdown(&self) {
        let node = self.node();
        self.hand_over().await;
        node.fail(NodeFailure::ShutDown);
        node.replicas.shutdown().await;
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        node.endpoint.shutdown().await;
        node.store.close().await;
    }
}

/// Leaving.
impl Fleet {
    /// Gives what this node leads to the voters that have most of it, so that its groups need not first miss it.
    /// Best effort: where nobody takes over in time, the others elect.
    async fn hand_over(&self) {
        let all = self.node().replicas.all();
        let heirs = all.iter().filter_map(|hosted| Some((hosted, heir(&hosted.replica.status())?)));
        let asked = heirs.map(|(hosted, heir)| async move {
            if let Err(error) = hosted.replica.transfer_leader(heir).await {
                tracing::debug!(group = hosted.group(), %error, "nobody takes the group over");
            }
        });
        futures_util::future::join_all(asked).await;
        let taken_over = async {
            while all.iter().any(|hosted| heir(&hosted.replica.status()).is_some()) {
                tokio::time::sleep(HAND_OVER_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(HAND_OVER_PATIENCE, taken_over).await;
    }
}

/// Who should lead a group instead of this node; nobody where it does not lead, or is alone.
fn heir(status: &Status) -> Option<ReplicaId> {
    let voters = status.members.voter_ids().into_iter().filter(|&id| id != status.replica);
    let heir = voters.max_by_key(|id| status.matched.get(id).copied().flatten());
    heir.filter(|_| status.role == Role::Leader)
}

/// Groups.
impl Fleet {
    /// Adds a group of values of type `V` with this many replicas, or as many as there are nodes. Answers when the
    /// group has a leader.
    pub async fn add_group<V: Value>(&self, name: &str, replicas: u32) -> Result<(), GroupError> {
        let type_name = self.inner.types.names.get(&TypeId::of::<V>());
        let unknown = || GroupError::UnknownType { type_name: std::any::type_name::<V>().to_owned() };
        self.add_group_of_type(name, type_name.ok_or_else(unknown)?, replicas).await
    }

    /// The same for a type by its registered name.
    pub async fn add_group_of_type(&self, name: &str, type_name: &str, replicas: u32) -> Result<(), GroupError> {
        check_name(name)?;
        if replicas == 0 {
            return Err(GroupError::NoReplicas);
        }
        if !self.has_type(type_name) {
            return Err(GroupError::UnknownType { type_name: type_name.to_owned() });
        }
        let (node, deadline) = (self.node(), Instant::now() + ADMIN_PATIENCE);
        let add = Command::AddGroup { group: name.to_owned(), type_name: type_name.to_owned(), replicas };
        let index = match node.cluster_command(add, ADMIN_PATIENCE).await? {
            Reply::Done { index } => index,
            Reply::Refused(refusal) => return Err(group_refused(name, refusal)),
        };
        let settled = node.view.wait(|cluster| has_leader(cluster, name, index));
        match tokio::time::timeout_at(deadline, settled).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(GroupError::NotFound { name: name.to_owned() }),
            Err(_) => Err(GroupError::NoLeader { name: name.to_owned(), waited: ADMIN_PATIENCE }),
        }
    }

    /// Removes a group with all that it holds. Its name is free again when every node has cleaned up.
    pub async fn remove_group(&self, name: &str) -> Result<(), GroupError> {
        let remove = Command::RemoveGroup { group: name.to_owned() };
        match self.node().cluster_command(remove, ADMIN_PATIENCE).await? {
            Reply::Done { .. } => Ok(()),
            Reply::Refused(refusal) => Err(group_refused(name, refusal)),
        }
    }

    /// A group by its name, from any node. It is looked for when it is used.
    pub fn group<V: Value>(&self, name: &str) -> Group<V> {
        Group::new(self.node().clone(), name)
    }

    /// All groups, as this node knows them.
    pub fn groups(&self) -> Vec<GroupInfo> {
        let cluster = self.node().view.get();
        cluster.groups().map(|(name, group)| self.group_info(name, group)).collect()
    }

    fn group_info(&self, name: &str, group: &crate::cluster::Group) -> GroupInfo {
        let heard = self.node().leaders.get(name).unwrap_or_default();
        let leader = heard.leader.filter(|leader| !self.node().peers.is_silent(leader));
        let state = match group.phase {
            GroupPhase::Forming { .. } | GroupPhase::Founded { .. } => GroupState::Forming,
            GroupPhase::Recovering => GroupState::Recovering,
            GroupPhase::Running if leader.is_none() => GroupState::Leaderless,
            GroupPhase::Running if self.sleeps(name) => GroupState::Hibernating,
            GroupPhase::Running => GroupState::Running,
        };
        GroupInfo {
            name: name.to_owned(),
            type_name: group.type_name.clone(),
            incarnation: group.incarnation,
            replicas: group.replicas,
            members: heard.members,
            leader: leader.and_then(|leader| leader.parse().ok()),
            term: heard.term,
            state,
        }
    }

    /// Whether this node's replica of a group, if it has one, sleeps.
    fn sleeps(&self, group: &str) -> bool {
        self.node().replicas.of_group(group).is_some_and(|hosted| hosted.replica.is_asleep())
    }

    /// The groups that this node leads.
    pub fn led_groups(&self) -> Vec<LedGroup> {
        let hosted = self.node().replicas.all().into_iter().filter(|hosted| !hosted.is_cluster());
        let led = hosted.filter_map(|hosted| {
            let status = hosted.replica.status();
            (status.role == Role::Leader).then(|| LedGroup {
                name: hosted.group().to_owned(),
                type_name: hosted.type_name.to_string(),
                term: status.term,
            })
        });
        let mut led: Vec<_> = led.collect();
        led.sort();
        led
    }

    /// A group that this node leads, from the inside; `None` if another node leads it, or none.
    pub fn led<V: Value>(&self, name: &str) -> Option<LedReplica<V>> {
        let hosted = self.node().replicas.of_group(name)?;
        let is_current = |group: &crate::cluster::Group| group.incarnation == hosted.incarnation();
        let leads =
            hosted.replica.status().role == Role::Leader && self.node().view.get().group(name).is_some_and(is_current);
        leads.then(|| LedReplica::new(hosted, self.node().config.request_timeout()))
    }

    /// Where a group of this name and number of replicas belongs, the preferred leader first.
    pub fn places(&self, group: &str, replicas: u32) -> Vec<String> {
        self.node().view.get().places(group, replicas).into_iter().map(str::to_owned).collect()
    }
}

/// Nodes.
impl Fleet {
    /// All registered nodes, as this node knows them.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let cluster = self.node().view.get();
        cluster.nodes().map(|(name, record)| node_info(name, record)).collect()
    }

    /// Has a node give its leaderships and replicas away, after which it leaves the cluster, which it may never join again
    /// with what it has stored. Answers when all is done, see [`NodeInfo::drain`] for how far it is; when nothing has
    /// changed for long, it is told, and goes on by itself.
    pub async fn drain(&self, name: &str) -> Result<(), NodeError> {
        self.begin_drain(name).await?;
        self.drained(name).await
    }

    /// As [`Fleet::drain`], without waiting. A second time is an error.
    pub async fn begin_drain(&self, name: &str) -> Result<(), NodeError> {
        self.node_command(name, Command::Drain { node: name.to_owned() }).await
    }

    /// Waits until a draining node has left.
    pub async fn drained(&self, name: &str) -> Result<(), NodeError> {
        let left = |cluster: &Cluster, seen: Option<Drain>| match cluster.node(name) {
            None => Some(Ok(None)),
            Some(record) if record.phase != NodePhase::Draining => {
                Some(Err(NodeError::Cancelled { name: name.to_owned() }))
            }
            Some(record) => (record.drain != seen).then_some(Ok(record.drain)),
        };
        let mut seen = None;
        loop {
            let changed = self.node().view.wait(|cluster| left(cluster, seen));
            match tokio::time::timeout(DRAIN_PATIENCE, changed).await {
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(progress)) => seen = progress,
                Ok(Err(cancelled)) => return Err(cancelled),
                Err(_) => {
                    let replicas = seen.map_or(0, |drain| drain.replicas);
                    return Err(NodeError::StillDraining { name: name.to_owned(), replicas, waited: DRAIN_PATIENCE });
                }
            }
        }
    }

    /// Cancels the drain of a node: it holds replicas again. An error for one that is active.
    pub async fn activate(&self, name: &str) -> Result<(), NodeError> {
        self.node_command(name, Command::Activate { node: name.to_owned() }).await
    }

    /// Forgets a node that was drained, or that is unreachable: its replicas are replaced.
    pub async fn remove_node(&self, name: &str) -> Result<(), NodeError> {
        let node = self.node();
        let is_draining = |record: &crate::cluster::Node| record.phase == NodePhase::Draining;
        let drains = node.view.get().node(name).is_some_and(is_draining);
        // It would lose at once what it still holds.
        if drains
            && !node.peers.is_silent(name)
            && let Ok(is) = node.call(name, &WhoAreYou {}, CALL_PATIENCE).await
            && is.replicas > 0
        {
            let (name, waited) = (name.to_owned(), Duration::ZERO);
            return Err(NodeError::StillDraining { name, replicas: is.replicas, waited });
        }
        self.node_command(name, Command::RemoveNode { node: name.to_owned() }).await
    }

    async fn node_command(&self, name: &str, command: Command) -> Result<(), NodeError> {
        let node = self.node();
        let refusal = match node.cluster_command(command, ADMIN_PATIENCE).await? {
            Reply::Done { index } => {
                // What was done is seen by whoever asked for it.
                let known = node.view.wait(|cluster| (cluster.changed_at >= index).then_some(()));
                let _ = tokio::time::timeout(CALL_PATIENCE, known).await;
                return Ok(());
            }
            Reply::Refused(refusal) => refusal,
        };
        let name = name.to_owned();
        Err(match refusal {
            Refusal::NodeNotFound => NodeError::NotFound { name },
            Refusal::NodeInUse => NodeError::InUse { name },
            Refusal::AlreadyDraining => NodeError::AlreadyDraining { name },
            Refusal::AlreadyActive => NodeError::AlreadyActive { name },
            Refusal::NodeDead => NodeError::Dead { name },
            Refusal::LastNode => NodeError::LastNode { name },
            other => NodeError::Failed(format!("{other:?}")),
        })
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("name", &self.name()).field("address", &self.address()).finish_non_exhaustive()
    }
}

/// `None` while the group forms; whether it is there and has a leader.
fn has_leader(cluster: &Cluster, name: &str, added_at: u64) -> Option<bool> {
    if cluster.changed_at < added_at {
        return None;
    }
    match cluster.group(name) {
        None => Some(false),
        Some(group) => (group.phase == GroupPhase::Running).then_some(true),
    }
}

fn check_name(name: &str) -> Result<(), GroupError> {
    let is_name = !name.is_empty() && name.len() <= MAX_GROUP_NAME_BYTES && !name.chars().any(char::is_control);
    if !is_name || name == CLUSTER_GROUP {
        return Err(GroupError::InvalidName { name: name.to_owned(), max_bytes: MAX_GROUP_NAME_BYTES });
    }
    Ok(())
}

fn group_refused(name: &str, refusal: Refusal) -> GroupError {
    let name = name.to_owned();
    match refusal {
        Refusal::GroupExists => GroupError::AlreadyExists { name },
        Refusal::CleanupOngoing { pending } => GroupError::CleanupOngoing { name, pending },
        Refusal::GroupNotFound => GroupError::NotFound { name },
        Refusal::NoNodes => GroupError::NoNodes,
        other => GroupError::Failed(format!("{other:?}")),
    }
}

fn node_info(name: &str, record: &crate::cluster::Node) -> NodeInfo {
    let (state, since) = match (record.phase, record.unreachable_since) {
        (NodePhase::Dead, _) => (NodeState::Dead, record.since),
        (NodePhase::Active, Some(since)) => (NodeState::Unreachable, since),
        (NodePhase::Active, None) => (NodeState::Active, record.since),
        (NodePhase::Draining, _) => (NodeState::Draining, record.since),
    };
    let attributes: BTreeMap<String, String> = record.attributes.clone();
    NodeInfo {
        name: name.to_owned(),
        node_id: record.node_id,
        zone: record.zone.clone(),
        address: record.address.clone(),
        attributes,
        state,
        since: rafted_value::LogTime::from_millis(since),
        boot: record.boot,
        drain: record.drain.map(|drain| DrainProgress {
            replicas: drain.replicas,
            leaderships: drain.leaderships,
            since: rafted_value::LogTime::from_millis(drain.since),
        }),
    }
}
