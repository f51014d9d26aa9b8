//! What users hold of a node's keyspaces: made, found, changed, deleted, listed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use raft_fleet::Fleet;
use rafted_value::{BoxFuture, Clock, CommandError, LogTime, NotHappened, QueryError, SystemClock, UnknownOutcome};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::dispatcher::{Dispatcher, Groups};
use crate::error::{KvError, check_name};
use crate::executor::Executor;
use crate::hash::KeyHash;
use crate::keyed_types::KeyedTypes;
use crate::keyed_value::KeyedValue;
use crate::keyspace::Keyspace;
use crate::keyspaces::{KeyspacesCommand, KeyspacesReply};
use crate::led::LedShard;
use crate::policy::Policy;
use crate::request::{DEFAULT_TIMEOUT, Limit, Request};
use crate::routing::Route;
use crate::shard::{Shard, ShardStats};

/// The keyspaces, from one node of a fleet. Clones are the same; its tasks end with [`Kv::shutdown`], or when the
/// last clone is dropped. Keyspaces that were taken from it still work then.
#[derive(Clone)]
pub struct Kv {
    fleet: Fleet,
    types: KeyedTypes,
    dispatcher: Arc<Dispatcher>,
    nudge: Arc<Notify>,
    /// They end when this is dropped.
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// A keyspace as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyspaceInfo {
    /// Its name.
    pub name: String,
    /// The type of its values.
    pub type_name: String,
    /// How it is cut.
    pub policy: Policy,
    /// How many shards it has.
    pub shards: u32,
    /// Whether they serve; else it is being created.
    pub is_serving: bool,
}

/// A shard as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardInfo {
    /// The name of its group.
    pub group: String,
    /// The first hash that it owns.
    pub lower: KeyHash,
    /// The last hash that it owns.
    pub upper: KeyHash,
    /// What it told of itself; `None` when it did not answer in time.
    pub stats: Option<ShardStats>,
}

/// What [`Kv::put_keyspace`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// There was none of this name.
    Created,
    /// It has another policy now, or had this one already.
    Changed,
}

/// Replicas of the keyspaces group; fewer where there are fewer nodes.
const KEYSPACES_REPLICAS: u32 = 5;
/// How often the table is asked for when nothing else asks.
const FOLLOW: Duration = Duration::from_secs(5);
/// How long one such question may take.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(5);
/// Before a task that panicked is started again.
const RESTART: Duration = Duration::from_secs(1);
/// Between looks at a workflow that is waited for.
const LOOK: Duration = Duration::from_millis(30);
/// Shards that are asked at once for how they stand.
const MAX_SHARDS_AT_ONCE: usize = 32;
/// How long one of them may take.
const STATS_TIMEOUT: Duration = Duration::from_secs(1);

impl Kv {
    /// Starts the keyspaces on a node, whose builder these types were registered at. It returns at once; requests
    /// wait until their groups answer, each within its own time.
    pub fn start(fleet: Fleet, types: KeyedTypes) -> Self {
        let groups = FleetGroups { fleet: fleet.clone(), clock: SystemClock::default() };
        let dispatcher = Arc::new(Dispatcher::new(Arc::new(groups), fleet.session().clone()));
        let nudge = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let executor = Arc::new(Executor {
            fleet: fleet.clone(),
            types: types.clone(),
            nudge: nudge.clone(),
            replicas: KEYSPACES_REPLICAS,
        });
        tasks.spawn(supervise("executor", move || {
            let executor = executor.clone();
            async move { executor.run().await }
        }));
        let following = dispatcher.clone();
        tasks.spawn(supervise("follower", move || follow(following.clone())));
        Self { fleet, types, dispatcher, nudge, tasks: Arc::new(Mutex::new(tasks)) }
    }

    /// Waits until the keyspaces answer.
    pub async fn ready(&self) {
        while self.dispatcher.refresh(Limit::new(FOLLOW_TIMEOUT)).await.is_err() {
            sleep(LOOK).await;
        }
    }

    /// Creates a keyspace with the policy's least number of shards, and answers when they serve.
    pub fn create_keyspace<K: KeyedValue>(&self, name: &str, policy: Policy) -> Request<Keyspace<K>> {
        let (kv, name) = (self.clone(), name.to_owned());
        Request::new(CREATE_TIMEOUT, async move |limit| match kv.create(&name, K::NAME, policy, limit).await? {
            Some(type_name) => Err(KvError::AlreadyExists { name, type_name }),
            None => Ok(kv.keyspace(&name)),
        })
    }

    /// The same for a type by its name.
    pub fn create_keyspace_of_type(&self, name: &str, type_name: &str, policy: Policy) -> Request<()> {
        let (kv, name, type_name) = (self.clone(), name.to_owned(), type_name.to_owned());
        Request::new(CREATE_TIMEOUT, async move |limit| match kv.create(&name, &type_name, policy, limit).await? {
            Some(type_name) => Err(KvError::AlreadyExists { name, type_name }),
            None => Ok(()),
        })
    }

    /// Creates a keyspace, or changes the policy of the one that is there; answers when its shards serve.
    pub fn put_keyspace(&self, name: &str, type_name: &str, policy: Policy) -> Request<Put> {
        let (kv, name, type_name) = (self.clone(), name.to_owned(), type_name.to_owned());
        Request::new(CREATE_TIMEOUT, async move |limit| {
            match kv.create(&name, &type_name, policy.clone(), limit).await? {
                None => Ok(Put::Created),
                Some(existing) if existing != type_name => {
                    Err(KvError::WrongType { keyspace: name, type_name: existing, expected: type_name })
                }
                Some(_) => {
                    kv.change_policy(&name, policy, limit).await?;
                    kv.serving(&name, &type_name, limit).await.map_err(unfinished)?;
                    Ok(Put::Changed)
                }
            }
        })
    }

    /// Changes a keyspace's policy. The number of shards and replicas cannot change yet.
    pub fn set_policy(&self, name: &str, policy: Policy) -> Request<()> {
        let (kv, name) = (self.clone(), name.to_owned());
        Request::new(DEFAULT_TIMEOUT, async move |limit| kv.change_policy(&name, policy, limit).await)
    }

    /// Deletes a keyspace with all that it holds. When this returns, no node answers from it any more; its groups go
    /// in the background, and its name is free.
    pub fn delete_keyspace(&self, name: &str) -> Request<()> {
        let (kv, name) = (self.clone(), name.to_owned());
        Request::new(DELETE_TIMEOUT, async move |limit| {
            let command = KeyspacesCommand::Delete { name: name.clone() };
            let id = match kv.dispatcher.command_keyspaces(&command, limit.left()).await? {
                KeyspacesReply::Accepted { id } => id,
                other => return Err(refused(&name, other)),
            };
            kv.nudge.notify_one();
            kv.closed(id, limit).await.map_err(unfinished)
        })
    }

    /// The keyspace of this name. Whether it is there is found out by the first request.
    pub fn keyspace<K: KeyedValue>(&self, name: &str) -> Keyspace<K> {
        Keyspace::new(self.dispatcher.clone(), name)
    }

    /// All keyspaces by name, read linearizably.
    pub async fn keyspaces(&self) -> Result<Vec<KeyspaceInfo>, KvError> {
        self.dispatcher.refresh(Limit::new(DEFAULT_TIMEOUT)).await?;
        Ok(self.dispatcher.routing().all().iter().map(|route| info(route)).collect())
    }

    /// One keyspace, read linearizably.
    pub async fn keyspace_info(&self, name: &str) -> Result<KeyspaceInfo, KvError> {
        self.dispatcher.refresh(Limit::new(DEFAULT_TIMEOUT)).await?;
        let route = self.dispatcher.routing().get(name);
        let route = route.ok_or_else(|| KvError::KeyspaceNotFound { name: name.to_owned() })?;
        Ok(info(&route))
    }

    /// The shards of a keyspace in the order of their ranges, with what each tells of itself.
    pub async fn shards(&self, name: &str) -> Result<Vec<ShardInfo>, KvError> {
        self.dispatcher.refresh(Limit::new(DEFAULT_TIMEOUT)).await?;
        let route = self.dispatcher.routing().get(name);
        let route = route.ok_or_else(|| KvError::KeyspaceNotFound { name: name.to_owned() })?;
        let keyed = self.types.get(&route.type_name);
        let keyed = keyed.ok_or_else(|| KvError::UnknownType { type_name: route.type_name.clone() })?;
        let questions: Vec<_> = route
            .shards
            .iter()
            .map(|shard| {
                let (group, range) = (shard.group.to_string(), shard.range);
                let stats = keyed.stats(self.fleet.clone(), group.clone(), STATS_TIMEOUT);
                async move { ShardInfo { group, lower: range.lower(), upper: range.upper(), stats: stats.await.ok() } }
            })
            .collect();
        Ok(stream::iter(questions).buffered(MAX_SHARDS_AT_ONCE).collect().await)
    }

    /// The group of the shard that owns a key, as this node knows it; `None` for a keyspace it has not heard of.
    pub fn shard_of(&self, keyspace: &str, key: &str) -> Option<Arc<str>> {
        let route = self.dispatcher.routing().get(keyspace)?;
        route.shard(KeyHash::of(key)).map(|shard| shard.group.clone())
    }

    /// The shards of a keyspace that this node leads, as it knows them.
    pub fn led_shards<K: KeyedValue>(&self, keyspace: &str) -> Vec<LedShard<K>> {
        let Some(route) = self.dispatcher.routing().get(keyspace) else { return Vec::new() };
        if route.type_name != K::NAME {
            return Vec::new();
        }
        let led = |group: &Arc<str>| {
            let replica = self.fleet.led::<Shard<K>>(group)?;
            Some(LedShard::new(group.clone(), replica))
        };
        route.shards.iter().filter_map(|shard| led(&shard.group)).collect()
    }

    /// The fleet that it runs on.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Ends its tasks; the fleet goes on.
    pub async fn shutdown(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }

    /// Has the keyspace created and waits until its shards serve; the type's name of one that was there.
    async fn create(
        &self,
        name: &str,
        type_name: &str,
        policy: Policy,
        limit: Limit,
    ) -> Result<Option<String>, KvError> {
        check_name(name)?;
        if self.types.get(type_name).is_none() {
            return Err(KvError::UnknownType { type_name: type_name.to_owned() });
        }
        let command = KeyspacesCommand::Create { name: name.to_owned(), type_name: type_name.to_owned(), policy };
        match self.dispatcher.command_keyspaces(&command, limit.left()).await? {
            KeyspacesReply::Accepted { .. } => {}
            KeyspacesReply::AlreadyExists { type_name, .. } => return Ok(Some(type_name)),
            other => return Err(refused(name, other)),
        }
        self.nudge.notify_one();
        self.serving(name, type_name, limit).await.map_err(unfinished)?;
        Ok(None)
    }

    async fn change_policy(&self, name: &str, policy: Policy, limit: Limit) -> Result<(), KvError> {
        let command = KeyspacesCommand::SetPolicy { name: name.to_owned(), policy };
        match self.dispatcher.command_keyspaces(&command, limit.left()).await? {
            KeyspacesReply::Accepted { .. } => Ok(()),
            KeyspacesReply::Fixed { setting, present } => {
                Err(KvError::NotYet { keyspace: name.to_owned(), setting, present })
            }
            other => Err(refused(name, other)),
        }
    }

    /// Waits until the shards of a keyspace serve.
    async fn serving(&self, name: &str, type_name: &str, limit: Limit) -> Result<(), KvError> {
        self.dispatcher.refresh(limit).await?;
        self.dispatcher.route(name, type_name, limit).await.map(drop)
    }

    /// Waits until the shards of a deleted keyspace answer no more.
    async fn closed(&self, id: u64, limit: Limit) -> Result<(), KvError> {
        while !self.dispatcher.is_closed(id, limit).await? {
            if limit.is_over() {
                return Err(UnknownOutcome::Timeout(limit.timeout).into());
            }
            limit.pause(LOOK).await;
        }
        Ok(self.dispatcher.refresh(limit).await?)
    }
}

impl std::fmt::Debug for Kv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kv").field("node", self.fleet.name()).field("types", &self.types).finish_non_exhaustive()
    }
}

/// How long the groups of a new keyspace may take to have leaders.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the shards of a deleted keyspace may take to stop.
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);

/// The fleet's groups, as bytes.
struct FleetGroups {
    fleet: Fleet,
    clock: SystemClock,
}

impl Groups for FleetGroups {
    fn command(
        &self,
        group: &str,
        command: bytes::Bytes,
        timeout: Duration,
    ) -> BoxFuture<Result<bytes::Bytes, CommandError>> {
        let (client, group) = (self.fleet.client().clone(), group.to_owned());
        Box::pin(async move { client.command(&group, command, timeout).await })
    }

    fn query(
        &self,
        group: &str,
        query: bytes::Bytes,
        timeout: Duration,
    ) -> BoxFuture<Result<bytes::Bytes, QueryError>> {
        let (client, group) = (self.fleet.client().clone(), group.to_owned());
        Box::pin(async move { client.query(&group, query, timeout).await })
    }

    fn now(&self) -> LogTime {
        self.clock.wall()
    }
}

/// Keeps the table from growing old where nobody asks for it.
async fn follow(dispatcher: Arc<Dispatcher>) {
    loop {
        if let Err(error) = dispatcher.refresh(Limit::new(FOLLOW_TIMEOUT)).await {
            tracing::debug!(%error, "the table of shards may be old");
        }
        sleep(FOLLOW).await;
    }
}

/// Starts a task again when it panics.
async fn supervise<F: Future<Output = ()> + Send + 'static>(what: &'static str, start: impl Fn() -> F) {
    loop {
        let mut running = JoinSet::new();
        running.spawn(start());
        match running.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(what, %error, "a task panicked; it starts again");
                sleep(RESTART).await;
            }
            _ => return,
        }
    }
}

/// What was accepted goes on, whatever the wait for its end ran into.
fn unfinished(error: KvError) -> KvError {
    match error {
        KvError::Unknown(reason) => KvError::Unknown(reason),
        other => UnknownOutcome::Interrupted(format!("it was accepted and goes on by itself, but: {other}")).into(),
    }
}

fn info(route: &Route) -> KeyspaceInfo {
    KeyspaceInfo {
        name: route.name.clone(),
        type_name: route.type_name.clone(),
        policy: route.policy.clone(),
        // At most `MAX_SHARDS`.
        shards: route.shards.len() as u32,
        is_serving: route.is_serving,
    }
}

fn refused(name: &str, reply: KeyspacesReply) -> KvError {
    match reply {
        KeyspacesReply::NotFound => KvError::KeyspaceNotFound { name: name.to_owned() },
        KeyspacesReply::TooMany => KvError::TooManyKeyspaces,
        other => KvError::from(NotHappened::Malformed(format!("another answer than the question's: {other:?}"))),
    }
}
