#![doc = include_str!("../README.md")]

mod keyspaces;
mod workflow;
mod shard;
mod policy;
mod keyed_value;
mod hash;

pub use crate::hash::{HashRange, KeyHash, Rest, fingerprint};
pub use crate::keyed_value::{KeyedValue, Next, Outcome};
pub use crate::keyspaces::{
    FixedSetting, Keyspace, KeyspaceState, Keyspaces, KeyspacesAnswer, KeyspacesCommand, KeyspacesQuery,
    KeyspacesReply, MAX_KEYSPACES, Table,
};
pub use crate::policy::{MAX_SHARDS, Policy, PolicyError};
pub use crate::shard::{
    Accounts, Ending, KEPT_FOR, MAX_CLIENTS_PER_KEY, MAX_KEPT_REPLY_BYTES, MAX_KEYS_PER_REQUEST, Once, Phase,
    Precondition, Ran, Refused, Removed, Run, Shard, ShardAnswer, ShardCommand, ShardId, ShardQuery, ShardReply,
    ShardStats, Step, StepRefused, Ticked, Transfer, WINDOW,
};
pub use crate::workflow::{Deregistration, Effect, Registration};
