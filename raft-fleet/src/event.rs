//! What a fleet tells those who listen.

/// Something changed, as this node has learned it. A listener that is too slow misses the oldest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetEvent {
    /// A node was registered, or registered again after a restart.
    NodeRegistered {
        /// Its name.
        node: String,
    },
    /// The cluster does not reach a node.
    NodeUnreachable {
        /// Its name.
        node: String,
    },
    /// The cluster reaches it again.
    NodeReachable {
        /// Its name.
        node: String,
    },
    /// A node was unreachable for so long that its replicas are replaced.
    NodeDead {
        /// Its name.
        node: String,
    },
    /// A node gives its replicas away.
    NodeDraining {
        /// Its name.
        node: String,
    },
    /// A draining node has told what it still has.
    DrainProgress {
        /// Its name.
        node: String,
        /// The replicas that it has left.
        replicas: u64,
        /// The groups among them that it leads.
        leaderships: u64,
    },
    /// A node's drain was cancelled: it holds replicas again.
    NodeActivated {
        /// Its name.
        node: String,
    },
    /// A node is no longer part of the cluster.
    NodeRemoved {
        /// Its name.
        node: String,
    },
    /// A group was added.
    GroupAdded {
        /// Its name.
        group: String,
    },
    /// A group was removed.
    GroupRemoved {
        /// Its name.
        group: String,
    },
    /// This node has heard of no leader of a group for longer than an election takes.
    GroupLeaderless {
        /// Its name.
        group: String,
    },
    /// A group that had lost its majority goes on with what survived of it.
    GroupRecovered {
        /// Its name.
        group: String,
    },
    /// This node leads a group.
    Leading {
        /// Its name.
        group: String,
        /// The leader's term.
        term: u64,
    },
    /// This node leads a group no longer.
    NotLeading {
        /// Its name.
        group: String,
    },
}
