//! How a cluster begins, and how nodes come to it: a pure state machine. It must never make two clusters, so
//! that configuration decides it, and not who sees whom: one initiator; nobody else ever initializes.
//!
//! ```text
//!              Begin                 promises == expect            initialized
//! Fresh --initiator--> Collecting ------------------> Decided ----------------> Member
//!   |  \                   |  nobody promised yet, and a cluster answers           ^  ^
//!   |   \                  +-------------------------------------------------------+  |
//!   |    +--asked by the initiator--> Promised --its cluster answers------------------+
//!   |                                 (bound to that cluster until the directory is wiped)
//!   +--a cluster answers--------------------------------------------------------------+
//! ```
//!
//! Every state is stored and synced before anyone is told of it. Why there is never a second cluster:
//! `Decided` is reached only with `expect - 1` promises; a promise is bound to one cluster id; and a node that
//! once was in `Collecting` with a promise, `Decided` or `Promised` never takes another id.

use std::collections::BTreeMap;

use rafted_value::messages;

messages! {
    /// How far a node has come. Stored in the data directory.
    #[derive(Default, Eq)]
    pub(crate) enum Bootstrap {
        /// It has promised nothing and is in no cluster.
        #[default]
        Fresh,
        /// The initiator, with what was promised to it, itself included.
        Collecting { cluster: ClusterKey, promises: BTreeMap<String, Promise> },
        /// The initiator, with the exact first members. They never change any more.
        Decided { cluster: ClusterKey, members: Vec<Promise> },
        /// A future first member.
        Promised { cluster: ClusterKey },
        /// In the cluster.
        Member { cluster: ClusterKey },
    }

    /// A cluster's id, with the generation that recovery and restoring raise.
    #[derive(Copy, Eq, PartialOrd, Ord)]
    pub(crate) struct ClusterKey {
        pub(crate) id: u128,
        pub(crate) generation: u64,
    }

    /// A fresh node's word that it will be a first member of this cluster, and of no other.
    #[derive(Eq)]
    pub(crate) struct Promise {
        pub(crate) node: String,
        pub(crate) node_id: u64,
        pub(crate) zone: String,
        /// Its replica of the cluster group, already made and synced.
        pub(crate) replica: u64,
    }

    /// What a node tells another that asks where it stands.
    #[derive(Copy, Eq)]
    pub(crate) enum Standing {
        /// It waits, like the one who asks.
        Waiting,
        /// It is the initiator, and asks for a promise.
        Asking { cluster: ClusterKey },
        /// It is in this cluster.
        Member { cluster: ClusterKey },
    }
}

/// What a node may do, by its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Makes the cluster once it has this many first members, itself included.
    Initiator {
        /// At least 1.
        expect: usize,
    },
    /// May become a first member.
    Founder,
    /// Joins a cluster that there is.
    Joiner,
}

/// What happens to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It starts, found no cluster, and may mint this id; `own` is its own promise.
    Begin { cluster: ClusterKey, own: Promise },
    /// Somebody told where it stands.
    Heard(Standing),
    /// Somebody promised to this cluster.
    PromiseArrived { cluster: ClusterKey, promise: Promise },
    /// The cluster group has its first members, in its log.
    Initialized,
}

/// Why an event changes nothing and needs a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this node is bound to cluster {own:032x}, but a node answers that is in cluster {other:032x}; \
     correct the seeds, or wipe this node's data directory so that it joins as new"
)]
pub(crate) struct Foreign {
    pub(crate) own: u128,
    pub(crate) other: u128,
}

impl Bootstrap {
    /// The state after an event. An event that means nothing in a state leaves it as it is, because messages
    /// come late and twice.
    pub(crate) fn next(self, part: Part, event: Event) -> Result<Self, Foreign> {
        use Bootstrap::{Collecting, Decided, Fresh, Member, Promised};
        Ok(match (self, event) {
            (Fresh, Event::Begin { cluster, own }) => match part {
                Part::Initiator { expect } => Self::collect(cluster, BTreeMap::from([(own.node.clone(), own)]), expect),
                Part::Founder | Part::Joiner => Fresh,
            },
            (Fresh, Event::Heard(Standing::Member { cluster })) => Member { cluster },
            (Fresh, Event::Heard(Standing::Asking { cluster })) => match part {
                Part::Founder => Promised { cluster },
                Part::Initiator { .. } | Part::Joiner => Fresh,
            },
            (Collecting { cluster, promises }, Event::Heard(Standing::Member { cluster: other })) => {
                // Only its own promise: nobody is bound to the id, which may be given up.
                if promises.len() > 1 && cluster != other {
                    return Err(Foreign { own: cluster.id, other: other.id });
                }
                Member { cluster: other }
            }
            (Collecting { cluster, mut promises }, Event::PromiseArrived { cluster: to, promise }) if to == cluster => {
                promises.insert(promise.node.clone(), promise);
                match part {
                    Part::Initiator { expect } => Self::collect(cluster, promises, expect),
                    // The configuration was changed under a started bootstrap: wait until it is changed back.
                    Part::Founder | Part::Joiner => Collecting { cluster, promises },
                }
            }
            (Decided { cluster, .. }, Event::Initialized) => Member { cluster },
            (
                state @ (Decided { cluster, .. } | Promised { cluster } | Member { cluster }),
                Event::Heard(Standing::Member { cluster: other }),
            ) => {
                if cluster != other {
                    return Err(Foreign { own: cluster.id, other: other.id });
                }
                match state {
                    Promised { .. } => Member { cluster },
                    state => state,
                }
            }
            (state, _) => state,
        })
    }

    fn collect(cluster: ClusterKey, promises: BTreeMap<String, Promise>, expect: usize) -> Self {
        if promises.len() < expect {
            return Self::Collecting { cluster, promises };
        }
        Self::Decided { cluster, members: promises.into_values().collect() }
    }

    /// What it tells others.
    pub(crate) fn standing(&self) -> Standing {
        match self {
            Self::Fresh | Self::Decided { .. } | Self::Promised { .. } => Standing::Waiting,
            Self::Collecting { cluster, .. } => Standing::Asking { cluster: *cluster },
            Self::Member { cluster } => Standing::Member { cluster: *cluster },
        }
    }

    /// The cluster id that it can no longer change.
    pub(crate) fn bound_to(&self) -> Option<ClusterKey> {
        match self {
            Self::Fresh | Self::Collecting { .. } => None,
            Self::Decided { cluster, .. } | Self::Promised { cluster } | Self::Member { cluster } => Some(*cluster),
        }
    }

    /// Whether a promise was taken in.
    pub(crate) fn has_promise_of(&self, name: &str, node_id: u64) -> bool {
        let is = |promise: &Promise| promise.node == name && promise.node_id == node_id;
        match self {
            Self::Collecting { promises, .. } => promises.get(name).is_some_and(is),
            Self::Decided { members, .. } => members.iter().any(is),
            Self::Fresh | Self::Promised { .. } | Self::Member { .. } => false,
        }
    }
}

#[cfg(test)]
mod exploring;
#[cfg(test)]
mod tests;
