//! What nodes say to each other beside the groups' own requests: calls and casts to the mailbox `fleet`.

use std::collections::BTreeMap;

use batched_comm::{Message, Request};
use rafted_value::{DirectoryStart, messages};

use crate::bootstrap::{ClusterKey, Promise, Standing};
use crate::cluster::Delta;
use crate::report::Report;

/// The mailbox of the messages below.
pub(crate) const FLEET_MAILBOX: &str = "fleet";
/// The mailbox of the groups' requests.
pub(crate) const RAFT_MAILBOX: &str = "raft";

messages! {
    /// Where do you stand? From a node that has come to no cluster yet, or that looks for its own.
    pub(crate) struct Where {
        /// Where the sender can be reached.
        pub(crate) address: String,
    }

    pub(crate) struct Here {
        pub(crate) standing: Standing,
        /// Whom the sender knows: names and addresses.
        pub(crate) nodes: BTreeMap<String, String>,
        /// The node that is registered under the name of the one who asks.
        pub(crate) namesake: Option<Namesake>,
    }

    #[derive(Eq)]
    pub(crate) struct Namesake {
        pub(crate) node_id: u64,
        pub(crate) address: String,
    }

    /// A fresh node's word, already synced.
    pub(crate) struct GivePromise {
        pub(crate) cluster: ClusterKey,
        pub(crate) promise: Promise,
    }

    /// Whether the promise was stored.
    pub(crate) struct PromiseTaken {
        pub(crate) taken: bool,
    }

    /// I start again: what is the latest start of mine that you know?
    pub(crate) struct LastStart {
        pub(crate) address: String,
    }

    /// The sender as the receiver last saw it registered.
    pub(crate) struct KnownStart {
        pub(crate) known: Option<Start>,
    }

    /// One start of one node. All zero: of a node that was met, and not seen registered.
    #[derive(Copy, Eq, Default)]
    pub(crate) struct Start {
        pub(crate) node_id: u64,
        pub(crate) boot: u64,
        /// What the directory drew for it.
        pub(crate) number: u64,
        /// What the process drew for itself; its connections tell it.
        pub(crate) start: u64,
    }

    /// Who are you?
    pub(crate) struct WhoAreYou {}

    pub(crate) struct IAm {
        pub(crate) start: Start,
        /// How many replicas it holds, the cluster group's counted, too.
        pub(crate) replicas: u64,
    }

    /// Tell me what changed in the cluster's state since this index; wait for it a while.
    pub(crate) struct Follow {
        pub(crate) since: u64,
    }

    pub(crate) enum Followed {
        /// Nothing changed meanwhile.
        Unchanged,
        Changed(Delta),
        /// This node cannot tell: it does not vote in the cluster group, or has no leader.
        NotHere,
    }

    /// Make a replica of this group.
    pub(crate) struct CreateReplica {
        pub(crate) group: String,
        pub(crate) incarnation: u64,
        pub(crate) type_name: String,
        /// The group's membership for which it is made, `None` for a group's first members. It is made once
        /// for the same `after`, and is a member only if the group's next membership names it.
        pub(crate) after: Option<Position>,
        /// The receiver's view must have come this far to judge.
        pub(crate) known_at: u64,
    }

    #[derive(Copy, Eq, PartialOrd, Ord)]
    pub(crate) struct Position {
        pub(crate) term: u64,
        pub(crate) index: u64,
    }

    #[derive(Eq)]
    pub(crate) enum Created {
        Replica { node_id: u64, replica: u64 },
        Refused(String),
    }

    /// Which replicas are in this group? Asked by who hosts one that may have been removed.
    pub(crate) struct Membership {
        pub(crate) group: String,
        pub(crate) incarnation: u64,
    }

    #[derive(Eq)]
    pub(crate) enum GroupMembers {
        /// A committed membership, as its leader sees it.
        Committed { position: Position, replicas: Vec<u64> },
        /// The receiver does not lead the group.
        NotHere,
    }

    /// What do you have of these groups?
    pub(crate) struct AskReports {
        pub(crate) groups: Vec<String>,
    }

    pub(crate) enum Reports {
        Of { node_id: u64, reports: Vec<Report> },
        /// The receiver is not registered, or cannot read its log.
        NotHere,
    }

    /// A cast: this replica of yours is no longer in its group, by this committed membership.
    pub(crate) struct Released {
        pub(crate) group: String,
        pub(crate) incarnation: u64,
        pub(crate) replica: u64,
        pub(crate) position: Position,
    }

    /// A cast: groups that the sender leads, or leads no longer.
    pub(crate) struct Leading {
        pub(crate) groups: Vec<Led>,
    }

    /// These groups are at rest: may your replicas of them sleep?
    pub(crate) struct Sleep {
        pub(crate) beds: Vec<Bed>,
    }

    /// One replica, and what its leader has.
    #[derive(Eq)]
    pub(crate) struct Bed {
        /// The replica that may sleep.
        pub(crate) to: u64,
        /// The leader, and its term.
        pub(crate) leader: u64,
        pub(crate) term: u64,
        /// The last entry.
        pub(crate) last: Position,
    }

    /// Which of them sleep now, in the same order.
    pub(crate) struct Slept {
        pub(crate) asleep: Vec<bool>,
    }

    /// Do these leaders still lead? From who hosts sleeping members of their groups.
    pub(crate) struct RollCall {
        pub(crate) sleepers: Vec<Sleeper>,
    }

    /// The leader that a sleeping member knows, and its term.
    #[derive(Copy, Eq)]
    pub(crate) struct Sleeper {
        pub(crate) leader: u64,
        pub(crate) term: u64,
    }

    /// Those that do not, by their place in the question.
    pub(crate) struct RollAnswer {
        pub(crate) not_leading: Vec<u32>,
    }

    #[derive(Eq)]
    pub(crate) struct Led {
        pub(crate) group: String,
        pub(crate) incarnation: u64,
        pub(crate) term: u64,
        pub(crate) leads: bool,
        /// The nodes with a replica that votes.
        pub(crate) members: Vec<String>,
    }
}

impl Start {
    /// What the directory remembers of it.
    pub(crate) fn of_directory(&self) -> DirectoryStart {
        DirectoryStart { boot: self.boot, number: self.number }
    }
}

macro_rules! requests {
    ($($number:literal $request:ty => $reply:ty,)*) => {
        $(
            impl Message for $request {
                const TYPE: u32 = $number;
            }
            impl Request for $request {
                type Reply = $reply;
            }
        )*
    };
}

requests! {
    1 Where => Here,
    2 GivePromise => PromiseTaken,
    3 LastStart => KnownStart,
    4 WhoAreYou => IAm,
    5 Follow => Followed,
    6 CreateReplica => Created,
    7 Membership => GroupMembers,
    10 AskReports => Reports,
    20 Sleep => Slept,
    21 RollCall => RollAnswer,
}

impl Message for Released {
    const TYPE: u32 = 8;
}

impl Message for Leading {
    const TYPE: u32 = 9;
}
