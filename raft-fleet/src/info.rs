//! What a fleet tells of its nodes and groups: copies of what this node knows, some milliseconds old.

use std::collections::BTreeMap;

use batched_comm::NodeName;
use rafted_value::LogTime;

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// The number of its memory.
    pub node_id: u64,
    /// Its zone; empty where there are none.
    pub zone: String,
    /// Where it is reached.
    pub address: String,
    /// What it told of itself.
    pub attributes: BTreeMap<String, String>,
    /// How it stands.
    pub state: NodeState,
    /// Since when.
    pub since: LogTime,
    /// How often its data directory was started.
    pub boot: u64,
    /// While it is draining: what it still has, as it has told last.
    pub drain: Option<DrainProgress>,
}

/// How far a draining node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainProgress {
    /// The replicas that it has left, of the cluster group, too.
    pub replicas: u64,
    /// The groups among them that it leads.
    pub leaderships: u64,
    /// Since when it has been so: long ago means that something hinders it, such as nodes that do not answer.
    pub since: LogTime,
}

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeState {
    /// It holds replicas.
    Active,
    /// It does not answer; its replicas wait for it.
    Unreachable,
    /// It gives its replicas away.
    Draining,
    /// It did not answer for so long that its replicas are replaced.
    Dead,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// The registered name of its value's type.
    pub type_name: String,
    /// Another one after it was removed and added again.
    pub incarnation: u64,
    /// How many replicas it should have.
    pub replicas: u32,
    /// The nodes with a replica that votes, as the leader told last.
    pub members: Vec<String>,
    /// The leader's node, as it told last.
    pub leader: Option<NodeName>,
    /// The leader's term.
    pub term: u64,
    /// How it stands.
    pub state: GroupState,
}

/// How a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupState {
    /// Its first replicas are being made.
    Forming,
    /// It has a leader.
    Running,
    /// It has a leader, and sleeps until something happens, as the replica on this node sees it.
    Hibernating,
    /// This node knows of no leader.
    Leaderless,
    /// It lost its majority, and its survivors are about to go on without it.
    Recovering,
}

/// A group that this node leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LedGroup {
    /// Its name.
    pub name: String,
    /// The registered name of its value's type.
    pub type_name: String,
    /// The term in which it is led.
    pub term: u64,
}
