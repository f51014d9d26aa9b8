//! What can go wrong, one enum per operation.

use std::time::Duration;

use batched_comm::{BindError, IdentityError, NameError};
use rafted_value::{CommandError, NotHappened, QueryError, StoreError, UnknownOutcome};

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A setting of the builder is missing or contradicts another.
    #[error("{0}")]
    Setting(String),
    /// The certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate is another node's.
    #[error(
        "this node is named {name}, its certificate is for {certified}; issue one for {name}, or start the node as {certified}"
    )]
    OtherIdentity {
        /// The builder's name.
        name: String,
        /// The certificate's.
        certified: String,
    },
    /// The address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What an earlier run stored cannot be read.
    #[error(
        "the data directory's {what} cannot be read: {reason}; run the program that wrote it, or wipe the directory so that the node joins as new"
    )]
    Unreadable {
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The replica of the cluster group did not start.
    #[error("the cluster group's replica did not start: {0}")]
    Replica(String),
    /// The cluster refused the node.
    #[error(transparent)]
    Refused(#[from] NodeFailure),
}

/// Why a node that had started is no part of its cluster. It is final: stop the process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeFailure {
    /// The seeds belong to another cluster than the data directory.
    #[error(
        "this node belongs to cluster {own:032x}, its seeds answer for cluster {other:032x}; \
         correct the seeds, or wipe the data directory so that the node joins as new"
    )]
    ForeignCluster {
        /// The data directory's cluster.
        own: u128,
        /// The seeds'.
        other: u128,
    },
    /// Another node of this name runs.
    #[error("another node named {name} runs at {address}; give every node a name of its own, or stop that one")]
    NameInUse {
        /// The name.
        name: String,
        /// Where the other one is.
        address: String,
    },
    /// The data directory is an older copy of itself.
    #[error(
        "the data directory was rolled back: it is at boot {given}, and does not know of its boot {registered}, which \
         the cluster has seen; wipe it, and the node joins as new"
    )]
    RolledBack {
        /// The directory's boot number.
        given: u64,
        /// The cluster's.
        registered: u64,
    },
    /// A node with another memory has taken the name over.
    #[error("another node has taken over the name {name}; wipe the data directory and choose another name")]
    Fenced {
        /// The name.
        name: String,
    },
    /// The node was removed from the cluster.
    #[error("this node was removed from the cluster; wipe the data directory before it joins again")]
    Removed,
    /// The log could not be written.
    #[error("the log failed: {0}; free or repair the disk and start the node again")]
    Storage(String),
    /// The node was shut down.
    #[error("the node was shut down")]
    ShutDown,
}

/// Why a group was not added or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The name is none.
    #[error("{name:?} is no group's name: 1 to {max_bytes} bytes without control characters, and not \"cluster\"")]
    InvalidName {
        /// What was given.
        name: String,
        /// How long a name may be.
        max_bytes: usize,
    },
    /// A group without a replica.
    #[error("a group needs at least one replica")]
    NoReplicas,
    /// The type was not registered at the builder.
    #[error("the type {type_name} is not registered on this node; register it before the node starts, on every node")]
    UnknownType {
        /// The type's name.
        type_name: String,
    },
    /// There is a group of this name.
    #[error("there is a group {name} already")]
    AlreadyExists {
        /// The name.
        name: String,
    },
    /// A removed group of this name has replicas left.
    #[error("the removed group {name} is still being cleaned up by {pending:?}; retry later")]
    CleanupOngoing {
        /// The name.
        name: String,
        /// Who has not finished.
        pending: Vec<String>,
    },
    /// There is none.
    #[error("there is no group {name}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// No node could take a replica.
    #[error("no node could take a replica now; retry when nodes are reachable")]
    NoNodes,
    /// It was added, and elects its leader later.
    #[error("the group {name} was added, but has no leader after {waited:?}; it forms as soon as its nodes answer")]
    NoLeader {
        /// The name.
        name: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It did not happen and will not.
    #[error("nothing was changed: {0}")]
    NotHappened(NotHappened),
    /// It may have happened.
    #[error("it may or may not have happened: {0}; look at the groups")]
    Unknown(UnknownOutcome),
    /// The cluster group's own code failed.
    #[error("the cluster group failed: {0}")]
    Failed(String),
}

/// Why a node was not drained or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is none.
    #[error("there is no node {name}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// It works.
    #[error("node {name} is in use; drain it first, or stop it")]
    InUse {
        /// The name.
        name: String,
    },
    /// It was asked to before.
    #[error(
        "node {name} is being drained already; see how far it has come in the list of nodes, or activate it to cancel"
    )]
    AlreadyDraining {
        /// The name.
        name: String,
    },
    /// Nobody asked it to leave.
    #[error("node {name} is active already")]
    AlreadyActive {
        /// The name.
        name: String,
    },
    /// It did not answer for so long that its replicas are replaced.
    #[error("node {name} is dead: it is active again when it returns; remove it if it never will")]
    Dead {
        /// The name.
        name: String,
    },
    /// Nobody could take its replicas.
    #[error("no other active node answers that could take what node {name} has; add or start one first")]
    LastNode {
        /// The name.
        name: String,
    },
    /// It was activated again before it had given everything away.
    #[error("the drain of node {name} was cancelled: it is active again")]
    Cancelled {
        /// The name.
        name: String,
    },
    /// It gives its replicas away, and has not finished.
    #[error("node {name} still has {replicas} replicas (waited for {waited:?}); it goes on by itself, ask again later")]
    StillDraining {
        /// The name.
        name: String,
        /// How many are left.
        replicas: u64,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It did not happen and will not.
    #[error("nothing was changed: {0}")]
    NotHappened(NotHappened),
    /// It may have happened.
    #[error("it may or may not have happened: {0}; look at the nodes")]
    Unknown(UnknownOutcome),
    /// The cluster group's own code failed.
    #[error("the cluster group failed: {0}")]
    Failed(String),
}

/// Why a recovery was not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The plan is not this cluster's.
    #[error("the plan was made for cluster {given:032x}, this is cluster {own:032x}; make one here")]
    OtherCluster {
        /// The plan's cluster.
        given: u128,
        /// This node's.
        own: u128,
    },
    /// The node knows nothing yet.
    #[error("this node is not registered in its cluster; ask another one, or wait")]
    NotReady,
}

/// Why a written plan was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no recovery plan: {reason}; give the digits as they were printed")]
pub struct PlanUnreadable {
    /// Why.
    pub reason: String,
}

impl GroupError {
    /// Whether it may have happened.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether the same request may succeed later without harm.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::CleanupOngoing { .. } | Self::NoNodes => true,
            Self::NotHappened(reason) => reason.is_retryable(),
            _ => false,
        }
    }
}

impl NodeError {
    /// Whether it may have happened.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether the same request may succeed later without harm.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::StillDraining { .. } => true,
            Self::NotHappened(reason) => reason.is_retryable(),
            _ => false,
        }
    }
}

impl From<CommandError> for GroupError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::NotHappened(reason) => Self::NotHappened(reason),
            CommandError::Unknown(reason) => Self::Unknown(reason),
            CommandError::Failed(message) => Self::Failed(message),
        }
    }
}

impl From<QueryError> for GroupError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::NotHappened(reason) => Self::NotHappened(reason),
            QueryError::Failed(message) => Self::Failed(message),
        }
    }
}

impl From<CommandError> for NodeError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::NotHappened(reason) => Self::NotHappened(reason),
            CommandError::Unknown(reason) => Self::Unknown(reason),
            CommandError::Failed(message) => Self::Failed(message),
        }
    }
}
