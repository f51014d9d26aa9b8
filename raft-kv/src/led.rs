//! The shards that this node leads, from the inside: for work that belongs to the leader, such as ticks and reports.

use std::sync::Arc;

use raft_fleet::LedReplica;
use rafted_value::{Context, LogTime};

use crate::error::KvError;
use crate::keyed_value::KeyedValue;
use crate::shard::{Accounts, Shard, ShardCommand, ShardReply, Ticked};

/// A shard that this node leads, or led a moment ago.
pub struct LedShard<K: KeyedValue> {
    group: Arc<str>,
    replica: LedReplica<Shard<K>>,
}

impl<K: KeyedValue> LedShard<K> {
    pub(crate) fn new(group: Arc<str>, replica: LedReplica<Shard<K>>) -> Self {
        Self { group, replica }
    }

    /// The name of the shard's group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Whether this node still leads it, as far as it knows.
    pub fn leads(&self) -> bool {
        self.replica.leads()
    }

    /// Reads what this node has applied, which may lag behind what is committed. Commands wait meanwhile: keep it
    /// short.
    pub fn read<T>(&self, read: impl FnOnce(&Shard<K>, &Context<'_>) -> T) -> Option<T> {
        self.replica.read(read)
    }

    /// How many keys are due at `now`, counted up to [`MAX_KEYS_PER_REQUEST`](crate::MAX_KEYS_PER_REQUEST). A tick
    /// that runs them is not needed for the shard to be right, only for time to pass in it.
    pub fn due(&self, now: LogTime) -> u32 {
        self.read(|shard, _| shard.due(now)).unwrap_or(0)
    }

    /// The earliest deadline of its keys.
    pub fn next_deadline(&self) -> Option<LogTime> {
        self.read(|shard, _| shard.next_deadline()).flatten()
    }

    /// How many keys each account has.
    pub fn accounts(&self) -> Option<Accounts> {
        self.read(|shard, context| shard.accounts(context))
    }

    /// Runs what is due, at most `limit` keys; with nothing due it still moves the shard's log time on. Harmless
    /// when it runs twice.
    pub async fn propose_tick(&self, limit: u32) -> Result<Ticked, KvError> {
        match self.replica.propose(ShardCommand::Tick { limit }).await? {
            ShardReply::Ticked(ticked) => Ok(ticked),
            // A shard answers a tick in no other way.
            other => Err(KvError::Failed(format!("a tick was answered with {}", kind(&other)))),
        }
    }
}

impl<K: KeyedValue> Clone for LedShard<K> {
    fn clone(&self) -> Self {
        Self { group: self.group.clone(), replica: self.replica.clone() }
    }
}

impl<K: KeyedValue> std::fmt::Debug for LedShard<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedShard").field("group", &self.group).finish_non_exhaustive()
    }
}

fn kind<R>(reply: &ShardReply<R>) -> &'static str {
    match reply {
        ShardReply::Ran(_) | ShardReply::Refused(_) => "a key's reply",
        ShardReply::Moved { .. } => "moved",
        ShardReply::Ticked(_) => "a tick's reply",
        ShardReply::Removed(_) => "a removal's reply",
        ShardReply::Taken(_) => "a step's reply",
    }
}
