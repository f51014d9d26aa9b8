//! What a shard's group is asked and answers: the user's commands and queries in an envelope, and the
//! project's own beside them.

use std::collections::BTreeMap;

use super::phase::{Phase, Step, StepRefused};

/// Keys that one listing, tick or bulk removal handles at most.
pub const MAX_KEYS_PER_REQUEST: u32 = 1_000;

rafted_value::messages! {
    /// What changes a shard.
    pub enum ShardCommand<C> {
        /// A user's command on one key.
        Run(Run<C>),
        /// Runs what is due, the earliest first.
        Tick {
            /// At most so many keys, and never more than [`MAX_KEYS_PER_REQUEST`].
            limit: u32,
        },
        /// Removes keys, whatever their values say.
        RemovePrefix {
            /// Those that begin with it.
            prefix: String,
            /// At most so many, and never more than [`MAX_KEYS_PER_REQUEST`].
            limit: u32,
        },
        /// Changes what the shard owns.
        Take(Step),
    }

    /// A user's command on one key.
    pub struct Run<C> {
        /// The key.
        pub key: String,
        /// What must hold before it.
        pub precondition: Precondition,
        /// Under which name it runs once, where the caller gave it one.
        pub once: Option<Once>,
        /// The command.
        pub command: C,
    }

    /// What must hold for a key before a command on it runs.
    #[derive(Copy, Eq, Default)]
    pub enum Precondition {
        /// Nothing.
        #[default]
        None,
        /// The key has a value.
        Present,
        /// The key has none.
        Absent,
        /// The key has a value, and this is its version.
        VersionIs(u64),
    }

    /// The name that a caller gave to a request, so that it runs once however often it is sent.
    #[derive(Eq)]
    pub struct Once {
        /// The caller.
        pub client: String,
        /// The request's number, unique for the client and key.
        pub serial: u64,
        /// A hash of what is asked: the same name for something else is a mistake.
        pub fingerprint: u64,
    }

    /// What a shard answers to a command.
    pub enum ShardReply<R> {
        /// The user's command ran.
        Ran(Ran<R>),
        /// It did not run.
        Refused(Refused),
        /// The shard does not own the key, or nothing at all. Nothing was run.
        Moved {
            /// It is about to change: ask again after a while.
            wait: bool,
        },
        /// The tick ran.
        Ticked(Ticked),
        /// Keys were removed.
        Removed(Removed),
        /// The step was taken, now or before.
        Taken(Result<(), StepRefused>),
    }

    /// A command's reply, and what it left.
    #[derive(Eq)]
    pub struct Ran<R> {
        /// What the user's code answered.
        pub reply: R,
        /// The version of the key's value after the command; `None` when it has no value.
        pub version: Option<u64>,
        /// The request had run before, and this is what it answered then.
        pub repeated: bool,
    }

    /// Why a command did not run.
    #[derive(Copy, Eq)]
    pub enum Refused {
        /// The precondition did not hold.
        PreconditionFailed {
            /// The version that was found; `None` when the key had no value.
            version: Option<u64>,
        },
        /// The serial is below the client's window, or was used more than 24 h ago.
        SerialTooOld,
        /// The request ran, and its reply was too large to keep.
        AlreadyDone,
        /// The serial was used for another request.
        IdempotencyConflict,
        /// The key remembers as many clients as it may.
        TooManyClients,
    }

    /// What a tick did.
    #[derive(Eq, Default)]
    pub struct Ticked {
        /// The keys whose timeout ran, in its order.
        pub ran: Vec<String>,
        /// The keys whose timeout panicked: they are as they were, and still due.
        pub failed: Vec<String>,
        /// More were due than the limit.
        pub more: bool,
    }

    /// What a bulk removal did.
    #[derive(Copy, Eq)]
    pub struct Removed {
        /// How many keys went.
        pub count: u64,
        /// There are more.
        pub more: bool,
    }

    /// What reads a shard.
    pub enum ShardQuery<Q> {
        /// A user's query on one key.
        Get {
            /// The key.
            key: String,
            /// The query.
            query: Q,
        },
        /// The keys in order.
        List {
            /// Those that begin with it.
            prefix: String,
            /// Those behind this one.
            after: Option<String>,
            /// At most so many, and never more than [`MAX_KEYS_PER_REQUEST`].
            limit: u32,
        },
        /// How many keys each account has.
        Accounts,
        /// How large and how busy the shard is.
        Stats,
    }

    /// What a shard answers to a query.
    pub enum ShardAnswer<A> {
        /// The key's value was read.
        Got {
            /// What the user's code answered.
            answer: A,
            /// The value's version.
            version: u64,
        },
        /// The key has no value.
        NotFound,
        /// The shard does not own the key, or nothing at all.
        Moved {
            /// It is about to change: ask again after a while.
            wait: bool,
        },
        /// Keys in order.
        Keys {
            /// The keys.
            keys: Vec<String>,
            /// There are more.
            more: bool,
        },
        /// Keys per account.
        Accounts(Accounts),
        /// Size and load.
        Stats(ShardStats),
    }

    /// How many keys each account has in a shard.
    #[derive(Eq)]
    pub struct Accounts {
        /// By account; none is zero.
        pub counts: BTreeMap<String, u64>,
        /// The log index up to which they were counted.
        pub index: u64,
    }

    /// How large and how busy a shard is.
    #[derive(Eq)]
    pub struct ShardStats {
        /// Keys that have a value.
        pub keys: u64,
        /// Bytes of these keys and values, as the values tell it.
        pub bytes: u64,
        /// The load of all commands so far: the difference of two readings tells how busy it was.
        pub load: u64,
        /// What it owns.
        pub phase: Phase,
    }
}

impl Precondition {
    /// Whether it holds for a key with this version.
    pub fn holds(self, version: Option<u64>) -> bool {
        match self {
            Self::None => true,
            Self::Present => version.is_some(),
            Self::Absent => version.is_none(),
            Self::VersionIs(expected) => version == Some(expected),
        }
    }
}
