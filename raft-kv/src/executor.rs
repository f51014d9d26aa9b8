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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use raft_fleet::{Fleet, GroupError, LedReplica};
use rafted_value::{CommandError, NotHappened};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::dispatcher::KEYSPACES_GROUP;
use crate::keyed_types::{KeyedType, KeyedTypes};
use crate::keyspaces::{KeyspaceRecord, Keyspaces, KeyspacesCommand};
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
const MAX_EFFECTS_AT_ONCE: usize = 32;
/// And for one keyspace.
const MAX_EFFECTS_PER_KEYSPACE: usize = 8;
/// How often a node looks whether it leads and has something to do: a look at its own memory.
const LOOK: Duration = Duration::from_millis(100);
/// Before a failed effect is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Before the keyspaces group is added again.
const ADD_RETRY: Duration = Duration::from_millis(100);
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
            sleep(ADD_RETRY).await;
        }
    }

    /// Carries out what is to be done until nothing is, or this node leads no more. A keyspace whose groups do not
    /// come up holds up no other one.
    async fn drive(&self, led: &LedReplica<Keyspaces>) {
        let mut running = FuturesUnordered::new();
        let mut busy: BTreeSet<(u64, Effect)> = BTreeSet::new();
        while led.leads() {
            for (id, keyspace, effect) in led.read(|keyspaces, _| plan(keyspaces, &busy)).unwrap_or_default() {
                busy.insert((id, effect));
                running.push(self.carry_out(led, id, keyspace, effect));
            }
            if running.is_empty() {
                return;
            }
            tokio::select! {
                Some(ended) = running.next() => drop(busy.remove(&ended)),
                () = self.nudge.notified() => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Carries out one effect and commits it as done; after a failure it ends when it may be tried again.
    async fn carry_out(
        &self,
        led: &LedReplica<Keyspaces>,
        id: u64,
        keyspace: KeyspaceRecord,
        effect: Effect,
    ) -> (u64, Effect) {
        if let Err(error) = self.effect(id, &keyspace, effect).await {
            tracing::warn!(keyspace = keyspace.name, ?effect, %error, "will be tried again");
            sleep(RETRY).await;
        } else if let Err(error) = led.propose(KeyspacesCommand::Done { keyspace: id, effect }).await {
            // It will be carried out again, and changes nothing.
            tracing::debug!(keyspace = keyspace.name, ?effect, %error, "was done, but is not known to be noted");
        }
        (id, effect)
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

/// The effects to begin now. A value that lags behind asks for some that are done: they are done again.
fn plan(keyspaces: &Keyspaces, busy: &BTreeSet<(u64, Effect)>) -> Vec<(u64, KeyspaceRecord, Effect)> {
    let mut room: BTreeMap<u64, usize> = BTreeMap::new();
    for (id, _) in busy {
        *room.entry(*id).or_insert(MAX_EFFECTS_PER_KEYSPACE) -= 1;
    }
    let mut planned = Vec::new();
    for (id, effect) in keyspaces.effects() {
        let room = room.entry(id).or_insert(MAX_EFFECTS_PER_KEYSPACE);
        let is_new = !busy.contains(&(id, effect)) && *room > 0 && busy.len() + planned.len() < MAX_EFFECTS_AT_ONCE;
        if let (true, Some(keyspace)) = (is_new, keyspaces.get(id)) {
            *room -= 1;
            planned.push((id, keyspace.clone(), effect));
        }
    }
    planned
}

#[cfg(test)]
mod tests {
    use rafted_value::{Context, LogTime, Value};

    use super::*;
    use crate::keyspaces::KeyspacesReply;
    use crate::policy::Policy;

    fn create(keyspaces: &mut Keyspaces, id: u64, shards: u32) {
        let policy = Policy::new().with_shards(shards..=shards).unwrap();
        let create = KeyspacesCommand::Create { name: format!("k{id}"), type_name: "t".into(), policy };
        let reply = keyspaces.command_in(&Context::new(LogTime::default(), id, None), create);
        assert_eq!(reply, KeyspacesReply::Accepted { id });
    }

    #[test]
    fn a_keyspace_that_hangs_leaves_room_for_others() {
        let mut keyspaces = Keyspaces::default();
        create(&mut keyspaces, 1, 64);
        let mut busy = BTreeSet::new();
        let begin = |keyspaces: &Keyspaces, busy: &mut BTreeSet<_>| {
            let planned: Vec<_> = plan(keyspaces, busy).into_iter().map(|(id, _, effect)| (id, effect)).collect();
            busy.extend(planned.iter().copied());
            planned
        };
        assert_eq!(begin(&keyspaces, &mut busy).len(), MAX_EFFECTS_PER_KEYSPACE);
        assert_eq!(begin(&keyspaces, &mut busy), [], "none is begun twice");
        create(&mut keyspaces, 2, 3);
        assert_eq!(begin(&keyspaces, &mut busy), [0, 1, 2].map(|shard| (2, Effect::CreateGroup(shard))));
        busy.remove(&(1, Effect::CreateGroup(5)));
        assert_eq!(begin(&keyspaces, &mut busy), [(1, Effect::CreateGroup(5))], "one that failed comes again");
        for id in 3..100 {
            create(&mut keyspaces, id, 8);
        }
        begin(&keyspaces, &mut busy);
        assert_eq!(busy.len(), MAX_EFFECTS_AT_ONCE);
    }
}
