//! Agents, from any node: commands and queries by id, typed or in bytes; lists; quotas.
//!
//! ```text
//!   command --> quota's incarnation --> shard -----------------------------> reply
//!                  (known, or asked)      |  with a place, if one is held
//!                                         |
//!                                     needs a place, or its time is over
//!                                         |
//!                                 quota group: a place --> shard again
//!                                              held by others: again after a pause
//!                                              limit reached: once more after a pause, then refused
//! ```

mod request;
mod sending;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use raft_fleet::{Fleet, FleetBuilder, FleetError, GroupError};
use raft_kv::{KeyedTypes, Keyspace, Kv, KvError, Policy};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::sending::Sending;
use crate::agent_state::{AGENTS_KEYSPACE, AgentAnswer, AgentCell, AgentQuery};
use crate::behaviour::Agent;
use crate::config::AgentsConfig;
use crate::error::{AgentError, IdempotencyKey};
use crate::id::{AgentId, IdError};
use crate::quota_group::{self, QuotaGroup};
use crate::quota_reporter::QuotaReporter;
use crate::quotas::Quotas;
use crate::recent::Recent;
use crate::registry::Registry;
use crate::ticker::Ticker;

pub use self::request::{AgentCommandRequest, AgentHandle, AgentQueryRequest};

/// Before what a new cluster lacks is made again.
const RETRY: Duration = Duration::from_millis(250);

/// Before a task that panicked is started again.
const RESTART: Duration = Duration::from_secs(1);

/// The agents of a cluster, from this node. Clones are cheap.
#[derive(Clone)]
pub struct Agents {
    inner: Arc<Inner>,
}

struct Inner {
    kv: Kv,
    keyspace: Keyspace<AgentCell>,
    registry: Arc<Registry>,
    config: AgentsConfig,
    quotas: Quotas,
    recent: Recent,
    /// They end when this is dropped.
    tasks: Mutex<JoinSet<()>>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPage {
    /// In the order of modules and keys.
    pub agents: Vec<AgentId>,
    /// What to give as `after` for the next page, if there is one.
    pub next: Option<String>,
}

impl Agents {
    /// Lets agents live on a node, beside values of other types: to be called before the fleet starts, with the same
    /// modules and types on every node. The answered types are for [`Kv::start`].
    pub fn register(
        fleet: FleetBuilder,
        types: KeyedTypes,
        registry: Arc<Registry>,
    ) -> Result<(FleetBuilder, KeyedTypes), FleetError> {
        let types = types.with_environment::<AgentCell>(registry);
        let fleet = types.register(fleet)?.register::<QuotaGroup>(quota_group::TYPE_NAME)?;
        Ok((fleet, types))
    }

    /// Starts to serve agents on a node that is part of its cluster. In a new cluster it makes their keyspace and
    /// the quotas' group, which may take until enough nodes are there.
    pub async fn start(kv: Kv, registry: Arc<Registry>, config: AgentsConfig) -> Self {
        make_quota_group(kv.fleet(), &config).await;
        let keyspace = make_keyspace(&kv, &config).await;
        let quotas = Quotas::new(kv.fleet().group(quota_group::GROUP_NAME));
        let mut tasks = JoinSet::new();
        let (ticking, interval) = (kv.clone(), config.tick_interval());
        tasks.spawn(supervise("ticker", move || Ticker::new(ticking.clone(), interval).run()));
        let reporting = (kv.clone(), keyspace.clone(), quotas.clone());
        tasks.spawn(supervise("quota reporter", move || {
            let (kv, keyspace, quotas) = reporting.clone();
            QuotaReporter::new(kv, keyspace, quotas).run()
        }));
        let (recent, tasks) = (Recent::default(), Mutex::new(tasks));
        Self { inner: Arc::new(Inner { kv, keyspace, registry, config, quotas, recent, tasks }) }
    }

    /// One agent of a type that the caller knows.
    pub fn of<A: Agent>(&self, quota: &str, key: &str) -> Result<AgentHandle<A>, IdError> {
        Ok(AgentHandle::new(self.clone(), AgentId::new(quota, A::MODULE, key)?))
    }

    /// The quotas.
    pub fn quotas(&self) -> &Quotas {
        &self.inner.quotas
    }

    /// The names of the modules that are known here, in order.
    pub fn modules(&self) -> Vec<&'static str> {
        self.inner.registry.modules().collect()
    }

    /// Runs an encoded command, once; with a key, also when it is sent again from elsewhere. The bytes are those of
    /// the module's `Command` as [`Wire`](crate::Wire) has them, and so is the reply.
    pub async fn command_bytes(
        &self,
        id: &AgentId,
        command: Vec<u8>,
        key: Option<IdempotencyKey>,
        timeout: Duration,
    ) -> Result<Vec<u8>, AgentError> {
        Sending::new(&self.inner, id, command, key, timeout)?.run().await
    }

    /// Reads an agent, linearizably. It activates nothing.
    pub async fn query_bytes(&self, id: &AgentId, query: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, AgentError> {
        let deadline = rafted_value::deadline_in(timeout);
        let inner = &self.inner;
        let version = inner.version_of(id)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let incarnation = inner.quotas.incarnation(id.quota(), left).await?;
            let query = AgentQuery { incarnation, version, query: query.clone() };
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = match inner.keyspace.query(&id.stored(), query).timeout(left).await {
                Ok(answer) => answer,
                Err(KvError::KeyNotFound { .. }) => return Err(not_found(id)),
                Err(error) => return Err(error.into()),
            };
            return match answer {
                AgentAnswer::Answer(answer) => Ok(answer),
                AgentAnswer::NotFound { newer: true } if Instant::now() < deadline => {
                    inner.quotas.forget(id.quota());
                    continue;
                }
                AgentAnswer::NotFound { .. } => Err(not_found(id)),
                AgentAnswer::UnknownModule => Err(inner.unknown_module(id)),
                AgentAnswer::OtherVersion { known } => Err(other_version(id, version, known)),
                AgentAnswer::Malformed(reason) => Err(malformed(id, reason)),
                AgentAnswer::Failed(reason) => Err(AgentError::AgentFailed { reason }),
            };
        }
    }

    /// The agents of a quota, or of one module in it, after the one that a page before named as `next`.
    pub async fn list(
        &self,
        quota: &str,
        module: Option<&str>,
        after: Option<&str>,
        limit: u32,
        timeout: Duration,
    ) -> Result<AgentPage, AgentError> {
        let prefix = AgentId::prefix(quota, module)?;
        let deadline = rafted_value::deadline_in(timeout);
        self.inner.quotas.incarnation(quota, timeout).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let page = self.inner.keyspace.list(&prefix, after, limit).timeout(left).await?;
        let next = page.keys.last().filter(|_| page.more).cloned();
        // Only agents live in this keyspace.
        let agents = page.keys.iter().filter_map(|key| AgentId::from_stored(key).ok()).collect();
        Ok(AgentPage { agents, next })
    }

    /// Ends all agents of one module in a quota; answers how many. Those that come into being meanwhile may stay.
    pub async fn remove_module(&self, quota: &str, module: &str, timeout: Duration) -> Result<u64, AgentError> {
        let prefix = AgentId::prefix(quota, Some(module))?;
        let deadline = rafted_value::deadline_in(timeout);
        self.inner.quotas.incarnation(quota, timeout).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        Ok(self.inner.keyspace.remove_prefix(&prefix).timeout(left).await?)
    }

    /// Ends this node's part in ticks and quotas. Others go on.
    pub async fn shutdown(&self) {
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").field("modules", &self.modules()).finish_non_exhaustive()
    }
}

impl Inner {
    fn version_of(&self, id: &AgentId) -> Result<u32, AgentError> {
        self.registry.module(id.module()).map(|module| module.version()).ok_or_else(|| self.unknown_module(id))
    }

    fn unknown_module(&self, id: &AgentId) -> AgentError {
        let known = self.registry.modules().map(str::to_owned).collect();
        AgentError::UnknownModule { module: id.module().to_owned(), known }
    }
}

/// Starts a task again when it panics: a node that neither ticks nor reports would look well, and not be.
async fn supervise<F: Future<Output = ()> + Send + 'static>(what: &'static str, start: impl Fn() -> F) {
    loop {
        let mut running = JoinSet::new();
        running.spawn(start());
        match running.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(what, %error, "a task panicked; it starts again");
                tokio::time::sleep(RESTART).await;
            }
            _ => return,
        }
    }
}

/// The first node of a new cluster that gets here adds the group; the others find it.
async fn make_quota_group(fleet: &Fleet, config: &AgentsConfig) {
    loop {
        match fleet.add_group::<QuotaGroup>(quota_group::GROUP_NAME, config.replicas()).await {
            Ok(()) | Err(GroupError::AlreadyExists { .. } | GroupError::NoLeader { .. }) => return,
            Err(error) => tracing::debug!(%error, "the group of quotas is not there yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn make_keyspace(kv: &Kv, config: &AgentsConfig) -> Keyspace<AgentCell> {
    let most = config.shards().max(*Policy::new().shards().end());
    let policy = Policy::new().with_shards(config.shards()..=most);
    // Both numbers are within what a policy allows.
    let policy = policy.and_then(|policy| policy.with_replicas(config.replicas())).unwrap_or_default();
    loop {
        match kv.create_keyspace::<AgentCell>(AGENTS_KEYSPACE, policy.clone()).await {
            Ok(keyspace) => return keyspace,
            Err(KvError::AlreadyExists { .. }) => {
                // Made by another node, perhaps a moment ago: this one must know it, too.
                if kv.keyspace_info(AGENTS_KEYSPACE).await.is_ok_and(|keyspace| keyspace.is_serving) {
                    return kv.keyspace(AGENTS_KEYSPACE);
                }
            }
            Err(error) => tracing::debug!(%error, "the keyspace of agents is not there yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn not_found(id: &AgentId) -> AgentError {
    AgentError::AgentNotFound { id: Box::new(id.clone()) }
}

fn malformed(id: &AgentId, reason: String) -> AgentError {
    AgentError::Malformed { module: id.module().to_owned(), reason }
}

/// Nodes run different versions of a module for a while: what one understands, another may not.
fn other_version(id: &AgentId, given: u32, known: u32) -> AgentError {
    let module = id.module();
    let reason = format!("this node has version {given} of module {module:?}, the shard's has {known}; retry later");
    AgentError::NotHappened { reason }
}

impl From<KvError> for AgentError {
    fn from(error: KvError) -> Self {
        let reason = error.to_string();
        match error {
            KvError::NotHappened(why) => why.into(),
            KvError::Unknown(why) => Self::Unknown { reason: why.to_string() },
            KvError::Failed(reason) => Self::AgentFailed { reason },
            KvError::InvalidKey { bytes } => Self::Id(IdError::Key { bytes }),
            KvError::TooManyClients => Self::Overloaded { reason, retry_after: TOO_MANY_CLIENTS_RETRY_AFTER },
            _ => Self::NotHappened { reason },
        }
    }
}

/// Clients are forgotten after a day; when one of them will be is not known.
const TOO_MANY_CLIENTS_RETRY_AFTER: Duration = Duration::from_secs(60);
