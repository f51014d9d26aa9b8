#![doc = include_str!("../README.md")]

mod kv;
mod executor;
mod led;
mod keyed_types;
mod keyspace;
mod dispatcher;
mod routing;
mod request;
mod error;
mod keyspaces;
mod workflow;
mod shard;
mod policy;
mod keyed_value;
mod hash;

pub use crate::dispatcher::KEYSPACES_GROUP;
pub use crate::error::{KvError, MAX_CLIENT_BYTES, MAX_KEY_BYTES, MAX_NAME_BYTES};
pub use crate::hash::{HashRange, KeyHash, Rest, fingerprint};
pub use crate::keyed_types::KeyedTypes;
pub use crate::keyed_value::{KeyedValue, Next, Outcome};
pub use crate::keyspace::{CommandRequest, Keyspace, Page, QueryRequest};
pub use crate::keyspaces::{
    FixedSetting, KeyspaceRecord, KeyspaceState, Keyspaces, KeyspacesAnswer, KeyspacesCommand, KeyspacesQuery,
    KeyspacesReply, MAX_KEYSPACES, Table,
};
pub use crate::kv::{KeyspaceInfo, Kv, Put, ShardInfo};
pub use crate::led::LedShard;
pub use crate::policy::{MAX_SHARDS, Policy, PolicyError};
pub use crate::request::{DEFAULT_TIMEOUT, Request};
pub use crate::shard::{
    Accounts, Ending, KEPT_FOR, MAX_CLIENTS_PER_KEY, MAX_KEPT_REPLY_BYTES, MAX_KEYS_PER_REQUEST, Once, Phase,
    Precondition, Ran, Refused, Removed, Run, Shard, ShardAnswer, ShardCommand, ShardId, ShardQuery, ShardReply,
    ShardStats, Step, StepRefused, Ticked, Transfer, WINDOW,
};
pub use crate::workflow::{Deregistration, Effect, Registration};

pub use {raft_fleet, rafted_value};
