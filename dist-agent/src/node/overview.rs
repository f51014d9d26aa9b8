//! What a cluster consists of, as rows: for the interface's lists and for the page.

use serde::Serialize;

/// Everything that the page shows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overview {
    /// The node that tells it.
    pub(crate) node: String,
    pub(crate) nodes: Vec<NodeRow>,
    pub(crate) groups: Vec<GroupRow>,
    /// With the names of their keyspaces.
    pub(crate) shards: Vec<(String, ShardRow)>,
    pub(crate) quotas: Vec<QuotaRow>,
    /// What could not be read, and why.
    pub(crate) gaps: Vec<String>,
}

/// A node.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NodeRow {
    pub(crate) name: String,
    /// In hexadecimal: a number of 64 bits is too large for the numbers of many JSON readers.
    pub(crate) id: String,
    pub(crate) zone: String,
    pub(crate) state: &'static str,
    pub(crate) address: String,
    /// Where it serves HTTP.
    pub(crate) http: String,
    /// While it is draining: the replicas that it has left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left: Option<u64>,
}

/// A group.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GroupRow {
    pub(crate) name: String,
    pub(crate) leader: Option<String>,
    pub(crate) replicas: Vec<String>,
    pub(crate) term: u64,
    pub(crate) state: &'static str,
}

/// A shard of a keyspace.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ShardRow {
    pub(crate) group: String,
    /// The first hash of its range.
    pub(crate) lower: u32,
    /// The last hash of its range.
    pub(crate) upper: u32,
    /// Of what a shard says of itself nothing is known while it has no leader.
    pub(crate) keys: Option<u64>,
    pub(crate) bytes: Option<u64>,
    pub(crate) load: Option<u64>,
    pub(crate) phase: &'static str,
}

/// A quota.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct QuotaRow {
    pub(crate) quota: String,
    pub(crate) limit: Option<u64>,
    pub(crate) count: u64,
}
