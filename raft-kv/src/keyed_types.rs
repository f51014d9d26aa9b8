//! The types of values that this process knows, by name: what a node needs to serve, create and open the shards
//! of any keyspace.

use std::any::Any;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use raft_fleet::{Fleet, FleetBuilder, FleetError, GroupError};
use rafted_value::{BoxFuture, CommandError, NotHappened, QueryError};

use crate::error::check_name;
use crate::keyed_value::KeyedValue;
use crate::keyspaces::Keyspaces;
use crate::shard::{Shard, ShardAnswer, ShardCommand, ShardQuery, ShardReply, ShardStats, Step, StepRefused};

/// The types of values that a node serves; the same on every node.
#[derive(Clone, Default)]
pub struct KeyedTypes {
    by_name: BTreeMap<&'static str, Arc<dyn KeyedType>>,
}

/// One type, with what depends on it.
pub(crate) trait KeyedType: Send + Sync {
    fn register(&self, builder: FleetBuilder) -> Result<FleetBuilder, FleetError>;
    /// Adds a shard's group.
    fn add_group(&self, fleet: Fleet, group: String, replicas: u32) -> BoxFuture<Result<(), GroupError>>;
    /// Has a shard take a step.
    fn take(
        &self,
        fleet: Fleet,
        group: String,
        step: Step,
        timeout: Duration,
    ) -> BoxFuture<Result<Result<(), StepRefused>, CommandError>>;
    /// How large and how busy a shard is.
    fn stats(&self, fleet: Fleet, group: String, timeout: Duration) -> BoxFuture<Result<ShardStats, QueryError>>;
}

struct Typed<K> {
    environment: Option<Arc<dyn Any + Send + Sync>>,
    value: PhantomData<fn() -> K>,
}

impl KeyedTypes {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a type. A type of the same name is replaced.
    pub fn with<K: KeyedValue>(self) -> Self {
        self.add::<K>(None)
    }

    /// Adds a type with what [`Context::environment`](rafted_value::Context::environment) gives to its code.
    pub fn with_environment<K: KeyedValue>(self, environment: Arc<dyn Any + Send + Sync>) -> Self {
        self.add::<K>(Some(environment))
    }

    fn add<K: KeyedValue>(mut self, environment: Option<Arc<dyn Any + Send + Sync>>) -> Self {
        self.by_name.insert(K::NAME, Arc::new(Typed::<K> { environment, value: PhantomData }));
        self
    }

    /// Lets a node host the keyspaces, and shards of these types. Fails when a name is none, or taken.
    pub fn register(&self, builder: FleetBuilder) -> Result<FleetBuilder, FleetError> {
        let builder = builder.register::<Keyspaces>(KEYSPACES_TYPE)?;
        self.by_name.values().try_fold(builder, |builder, keyed| keyed.register(builder))
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().copied()
    }

    pub(crate) fn get(&self, type_name: &str) -> Option<Arc<dyn KeyedType>> {
        self.by_name.get(type_name).cloned()
    }
}

impl std::fmt::Debug for KeyedTypes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// The type of the keyspaces group's value.
const KEYSPACES_TYPE: &str = "kv.keyspaces";
/// Before the name of a keyed type: the type of its shards' groups.
const SHARD_TYPE_PREFIX: &str = "kv.shard.";

impl<K: KeyedValue> KeyedType for Typed<K> {
    fn register(&self, builder: FleetBuilder) -> Result<FleetBuilder, FleetError> {
        check_name(K::NAME).map_err(|error| FleetError::Setting(error.to_string()))?;
        let type_name = format!("{SHARD_TYPE_PREFIX}{}", K::NAME);
        match &self.environment {
            Some(environment) => builder.register_with::<Shard<K>>(&type_name, environment.clone()),
            None => builder.register::<Shard<K>>(&type_name),
        }
    }

    fn add_group(&self, fleet: Fleet, group: String, replicas: u32) -> BoxFuture<Result<(), GroupError>> {
        Box::pin(async move { fleet.add_group::<Shard<K>>(&group, replicas).await })
    }

    fn take(
        &self,
        fleet: Fleet,
        group: String,
        step: Step,
        timeout: Duration,
    ) -> BoxFuture<Result<Result<(), StepRefused>, CommandError>> {
        Box::pin(async move {
            match fleet.group::<Shard<K>>(&group).command(ShardCommand::Take(step)).timeout(timeout).await? {
                ShardReply::Taken(taken) => Ok(taken),
                // A shard answers a step in no other way.
                _ => Err(CommandError::Failed("a step was answered with something else".into())),
            }
        })
    }

    fn stats(&self, fleet: Fleet, group: String, timeout: Duration) -> BoxFuture<Result<ShardStats, QueryError>> {
        Box::pin(async move {
            match fleet.group::<Shard<K>>(&group).query(ShardQuery::Stats).timeout(timeout).await? {
                ShardAnswer::Stats(stats) => Ok(stats),
                // A shard answers this question in no other way.
                _ => Err(NotHappened::Malformed("another answer than statistics".into()).into()),
            }
        })
    }
}
