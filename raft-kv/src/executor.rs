//! Carries out the effects of workflows on the node that leads the `keyspaces` group. Any node can: what is to be
//! done stands in the group's value, and every effect is idempotent.
//!
//! ```text
//!   leads? --> effects of the value, as applied here --> carry out, several at once --> commit `Done` for each
//!     ^                                                                                        |
//!     +---------------------- a pause, or a nudge by a request ---------------------------------+
//! ```
//!
//! What a driver leaves over that was late (a group created for a keyspace that was forgotten meanwhile) is found by
//! its name and removed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use raft_fleet::{Fleet, GroupError, LedReplica};
use rafted_value::{CommandError, NotHappened};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::dispatcher::KEYSPACES_GROUP;
use crate::keyed_types::{KeyedType, KeyedTypes};
use crate::keyspaces::{KeyspaceRecord, Keyspaces, KeyspacesCommand, KeyspacesReply};
use crate::shard::{ShardId, Step};
use crate::workflow::Effect;

/// Drives workflows. One per node; it works only where the node leads the keyspaces.
pub(crate) struct Executor {
    pub(crate) fleet: Fleet,
    pub(crate) types: KeyedTypes,
    /// Something is to be done.
    pub(crate) nudge: Arc<Notify>,
    /// Replicas of the keyspaces group.
    pub(crate) replicas: u32,
}

/// Why an effect was not carried out; it is tried again.
#[derive(Debug, thiserror::Error)]
enum EffectError {
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("the type {0} is not registered on this node; register it on every node")]
    UnknownType(String),
    #[error("the shard refused: {0}")]
    Refused(#[from] crate::shard::StepRefused),
}

/// Effects that are carried out at once.
const MAX_EFFECTS_AT_ONCE: usize = 16;
/// How often a node looks whether it leads and has something to do.
const LOOK: Duration = Duration::from_millis(500);
/// Before failed effects are tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How long a step at a shard, or a report, may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shard that cannot be reached keeps its group from being removed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);
/// How often groups that were left over are looked for.
const SWEEP: Duration = Duration::from_secs(30);

impl Executor {
    /// Works until it is dropped.
    pub(crate) async fn run(&self) {
        self.add_keyspaces_group().await;
        let mut next_sweep = Instant::now() + SWEEP;
        loop {
            let _ = tokio::time::timeout(LOOK, self.nudge.notified()).await;
            let Some(led) = self.fleet.led::<Keyspaces>(KEYSPACES_GROUP) else { continue };
            self.drive(&led).await;
            if Instant::now() >= next_sweep {
                self.sweep(&led).await;
                next_sweep = Instant::now() + SWEEP;
            }
        }
    }

    /// The first node that gets here adds the group; it needs the cluster's own group to answer.
    async fn add_keyspaces_group(&self) {
        loop {
            match self.fleet.add_group::<Keyspaces>(KEYSPACES_GROUP, self.replicas).await {
                Ok(()) | Err(GroupError::AlreadyExists { .. } | GroupError::NoLeader { .. }) => return,
                Err(error) => tracing::debug!(%error, "the keyspaces group is not there yet"),
            }
            sleep(RETRY).await;
        }
    }

    /// Carries out what is to be done until nothing is, or this node leads no more.
    async fn drive(&self, led: &LedReplica<Keyspaces>) {
        while led.leads() {
            // A value that lags behind asks for effects that are done; they are done again, and change nothing.
            let plan = |keyspaces: &Keyspaces| {
                let effects = keyspaces.effects().into_iter();
                let known = effects.filter_map(|(id, effect)| Some((id, keyspaces.get(id)?.clone(), effect)));
                known.collect::<Vec<_>>()
            };
            let effects = led.read(|keyspaces, _| plan(keyspaces)).unwrap_or_default();
            if effects.is_empty() {
                return;
            }
            let count = effects.len();
            let carried = stream::iter(effects).map(|(id, keyspace, effect)| self.carry_out(led, id, keyspace, effect));
            let done = carried.buffer_unordered(MAX_EFFECTS_AT_ONCE).filter(|&done| async move { done }).count().await;
            if done < count {
                sleep(RETRY).await;
            }
        }
    }

    /// Carries out one effect and commits it as done; whether it was.
    async fn carry_out(&self, led: &LedReplica<Keyspaces>, id: u64, keyspace: KeyspaceRecord, effect: Effect) -> bool {
        if let Err(error) = self.effect(id, &keyspace, effect).await {
            tracing::warn!(keyspace = keyspace.name, ?effect, %error, "will be tried again");
            return false;
        }
        match led.propose(KeyspacesCommand::Done { keyspace: id, effect }).await {
            Ok(KeyspacesReply::Noted) => true,
            Ok(_) | Err(_) => false,
        }
    }

    async fn effect(&self, id: u64, keyspace: &KeyspaceRecord, effect: Effect) -> Result<(), EffectError> {
        let keyed = self.types.get(&keyspace.type_name);
        let keyed = keyed.ok_or_else(|| EffectError::UnknownType(keyspace.type_name.clone()))?;
        let shard_id = |shard| ShardId { keyspace: id, shard };
        match effect {
            Effect::CreateGroup(shard) => {
                let (group, replicas) = (shard_id(shard).group(), keyspace.policy.replicas());
                match keyed.add_group(self.fleet.clone(), group, replicas).await {
                    Ok(()) | Err(GroupError::AlreadyExists { .. }) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Effect::OpenShard(shard) => {
                let Some(&range) = keyspace.shards.get(&shard) else { return Ok(()) };
                let (group, step) = (shard_id(shard).group(), Step::Serve { id: shard_id(shard), range });
                Ok(keyed.take(self.fleet.clone(), group, step, STEP_TIMEOUT).await??)
            }
            Effect::CloseShard(shard) => self.close(&*keyed, shard_id(shard)).await,
            Effect::RemoveGroup(shard) => match self.fleet.remove_group(&shard_id(shard).group()).await {
                Ok(()) | Err(GroupError::NotFound { .. } | GroupError::CleanupOngoing { .. }) => Ok(()),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Closes a shard so that no node gets an answer from it any more. One that cannot be reached for long, or
    /// was never created, is closed by the removal of its group.
    async fn close(&self, keyed: &dyn KeyedType, shard: ShardId) -> Result<(), EffectError> {
        let step = Step::Close { keyspace: shard.keyspace };
        match keyed.take(self.fleet.clone(), shard.group(), step, CLOSE_PATIENCE).await {
            Ok(taken) => Ok(taken?),
            Err(CommandError::NotHappened(NotHappened::NoLeader { .. } | NotHappened::Stopped { .. })) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes groups of shards that were forgotten.
    async fn sweep(&self, led: &LedReplica<Keyspaces>) {
        let groups = self.fleet.groups().into_iter();
        let shards: Vec<ShardId> = groups.filter_map(|group| ShardId::of_group(&group.name)).collect();
        let forgotten = led
            .read(|keyspaces, _| shards.into_iter().filter(|&shard| keyspaces.is_forgotten(shard)).collect::<Vec<_>>());
        for shard in forgotten.unwrap_or_default() {
            let group = shard.group();
            match self.fleet.remove_group(&group).await {
                Ok(()) => tracing::info!(group, "removed a group that was left over"),
                Err(error) => tracing::debug!(group, %error, "a group that was left over stays for now"),
            }
        }
    }
}
