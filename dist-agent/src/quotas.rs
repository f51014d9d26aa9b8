//! The quotas, from any node: who uses them puts, reads and deletes; who activates asks for places.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raft_fleet::Group;
use rafted_value::{CommandError, NotHappened, QueryError};

use crate::error::AgentError;
use crate::grants::{Grants, Place, Places, PoolName, Release};
use crate::id::check_name;
use crate::quota_cache::{CACHE_LEASE, QuotaCache};
use crate::quota_group::{
    MAX_LISTED, Pending, QuotaAnswer, QuotaCommand, QuotaEntry, QuotaGroup, QuotaQuery, QuotaReply, ShardReport,
};

/// When to ask again for places that others hold.
const HELD_RETRY_AFTER: Duration = Duration::from_millis(500);

/// The quotas of the cluster. Clones are cheap and share what they know.
#[derive(Clone)]
pub struct Quotas {
    inner: Arc<Inner>,
}

struct Inner {
    group: Group<QuotaGroup>,
    cache: QuotaCache,
    grants: Grants,
}

/// A quota as of a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Its name.
    pub name: String,
    /// How many agents it allows; `None` is unlimited.
    pub limit: Option<u64>,
    /// How many agents it counts. It may be some seconds old.
    pub count: u64,
}

/// What came of asking for a place.
#[derive(Debug)]
pub(crate) enum Asked {
    /// One to put on a command.
    Place(Place),
    /// None is free now. Some are held by others, who may not need them.
    Held,
    /// None is free.
    LimitReached { limit: u64, used: u64 },
    /// The quota, or its incarnation, is gone.
    Gone,
}

impl Quotas {
    pub(crate) fn new(group: Group<QuotaGroup>) -> Self {
        let inner = Inner { group, cache: QuotaCache::default(), grants: Grants::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Makes a quota, or changes its limit; `None` is unlimited. A limit below the present use ends no agent.
    pub async fn put(&self, quota: &str, limit: Option<u64>, timeout: Duration) -> Result<(), AgentError> {
        check_name("quota", quota)?;
        match self.command(QuotaCommand::Put { quota: quota.to_owned(), limit }, timeout).await? {
            QuotaReply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes a quota. When this returns, commands to its agents are refused on every node; the agents are ended
    /// within a minute.
    pub async fn delete(&self, quota: &str, timeout: Duration) -> Result<(), AgentError> {
        check_name("quota", quota)?;
        let reply = self.command(QuotaCommand::Delete { quota: quota.to_owned() }, timeout).await?;
        self.inner.cache.forget(quota);
        match reply {
            QuotaReply::Done => {
                // Other nodes may take it for existing for so long.
                tokio::time::sleep(CACHE_LEASE).await;
                Ok(())
            }
            QuotaReply::NotFound => Err(AgentError::QuotaNotFound { quota: quota.to_owned() }),
            other => Err(unexpected(&other)),
        }
    }

    /// One quota.
    pub async fn get(&self, quota: &str, timeout: Duration) -> Result<Quota, AgentError> {
        check_name("quota", quota)?;
        match self.entry(quota, timeout).await? {
            Some(entry) => Ok(Quota { name: quota.to_owned(), limit: entry.limit, count: entry.used }),
            None => Err(AgentError::QuotaNotFound { quota: quota.to_owned() }),
        }
    }

    /// Names after `after`, in order, at most `limit` and at most 1,000.
    pub async fn list(&self, after: Option<&str>, limit: u32, timeout: Duration) -> Result<Vec<String>, AgentError> {
        let limit = limit.min(MAX_LISTED);
        match self.query(QuotaQuery::List { after: after.map(str::to_owned), limit }, timeout).await? {
            QuotaAnswer::Names(names) => Ok(names),
            other => Err(unexpected(&other)),
        }
    }

    /// The quota's incarnation: known for less than a lease, or asked for.
    pub(crate) async fn incarnation(&self, quota: &str, timeout: Duration) -> Result<u64, AgentError> {
        let cache = &self.inner.cache;
        if let Some(incarnation) = cache.get(quota, Instant::now()) {
            return Ok(incarnation);
        }
        let asking = cache.asking(quota);
        let _one_at_a_time = in_time(timeout, asking.lock()).await?;
        if let Some(incarnation) = cache.get(quota, Instant::now()) {
            return Ok(incarnation);
        }
        let asked = Instant::now();
        match self.entry(quota, timeout).await? {
            Some(entry) => {
                cache.put(quota, entry.incarnation, asked);
                Ok(entry.incarnation)
            }
            None => {
                cache.forget(quota);
                Err(AgentError::QuotaNotFound { quota: quota.to_owned() })
            }
        }
    }

    /// What was known of the quota is old.
    pub(crate) fn forget(&self, quota: &str) {
        self.inner.cache.forget(quota);
    }

    /// A place that this node holds already.
    pub(crate) fn held_place(&self, pool: &PoolName) -> Option<Place> {
        self.inner.grants.take(pool, wall_millis(), Instant::now())
    }

    /// Asks for places and takes one. `holder_time`: the shard's log time in ms, if it was seen.
    pub(crate) async fn ask_for_place(
        &self,
        pool: &PoolName,
        holder_time: u64,
        timeout: Duration,
    ) -> Result<Asked, AgentError> {
        let (_, asking) = self.inner.grants.ask(pool, Instant::now());
        let _one_at_a_time = in_time(timeout, asking.lock()).await?;
        if let Some(place) = self.inner.grants.take(pool, wall_millis().max(holder_time), Instant::now()) {
            return Ok(Asked::Place(place));
        }
        let (wanted, _) = self.inner.grants.ask(pool, Instant::now());
        let (quota, holder) = (pool.quota.clone(), pool.holder.clone());
        let reply = self.command(QuotaCommand::Grant { quota, holder, wanted, holder_time }, timeout).await?;
        match reply {
            QuotaReply::Granted { incarnation, reservation, amount, use_by } => {
                let granted = PoolName { incarnation, ..pool.clone() };
                self.inner.grants.add(&granted, Places { reservation, amount, use_by }, Instant::now());
                let place = self.inner.grants.take(pool, holder_time, Instant::now());
                Ok(place.map_or(Asked::Gone, Asked::Place))
            }
            QuotaReply::Held => Ok(Asked::Held),
            QuotaReply::LimitReached { limit, used } => Ok(Asked::LimitReached { limit, used }),
            QuotaReply::NotFound => Ok(Asked::Gone),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives back the places that this node does not need.
    pub(crate) async fn release_idle(&self, timeout: Duration) {
        for release in self.inner.grants.collect(Instant::now()) {
            let Release { quota, incarnation, reservation, filled } = release;
            let command = QuotaCommand::Release { quota, incarnation, reservation, filled };
            if let Err(error) = self.command(command, timeout).await {
                // The places come back by themselves past their time.
                tracing::debug!(%error, "places were not given back");
            }
        }
    }

    pub(crate) async fn report(&self, report: ShardReport, timeout: Duration) -> Result<Pending, AgentError> {
        match self.command(QuotaCommand::Report(report), timeout).await? {
            QuotaReply::Pending(pending) => Ok(pending),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn pending(
        &self,
        holders: Vec<String>,
        timeout: Duration,
    ) -> Result<Vec<(String, Pending)>, AgentError> {
        match self.query(QuotaQuery::Pending { holders }, timeout).await? {
            QuotaAnswer::Pending(pending) => Ok(pending),
            other => Err(unexpected(&other)),
        }
    }

    /// The deleted quotas whose agents may still be there: the incarnation, and the shards that are clean.
    pub(crate) async fn tombstones(&self, timeout: Duration) -> Result<Vec<(u64, BTreeSet<String>)>, AgentError> {
        match self.query(QuotaQuery::Tombstones, timeout).await? {
            QuotaAnswer::Tombstones(tombstones) => Ok(tombstones),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends a tombstone, of which every shard was seen to be clean.
    pub(crate) async fn forget_tombstone(&self, incarnation: u64, timeout: Duration) -> Result<(), AgentError> {
        self.command(QuotaCommand::Forget { incarnation }, timeout).await.map(drop)
    }

    async fn entry(&self, quota: &str, timeout: Duration) -> Result<Option<QuotaEntry>, AgentError> {
        match self.query(QuotaQuery::Get { quota: quota.to_owned() }, timeout).await? {
            QuotaAnswer::Quota(entry) => Ok(entry),
            other => Err(unexpected(&other)),
        }
    }

    async fn command(&self, command: QuotaCommand, timeout: Duration) -> Result<QuotaReply, AgentError> {
        Ok(self.inner.group.command(command).timeout(timeout).await?)
    }

    async fn query(&self, query: QuotaQuery, timeout: Duration) -> Result<QuotaAnswer, AgentError> {
        Ok(self.inner.group.query(query).timeout(timeout).await?)
    }
}

impl AgentError {
    pub(crate) fn places_held(quota: &str) -> Self {
        let reason = format!("the last places of the quota {quota:?} are held for other agents for the moment");
        Self::Overloaded { reason, retry_after: HELD_RETRY_AFTER }
    }
}

impl From<CommandError> for AgentError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::NotHappened(reason) => reason.into(),
            CommandError::Unknown(reason) => Self::Unknown { reason: reason.to_string() },
            CommandError::Failed(reason) => Self::AgentFailed { reason },
        }
    }
}

impl From<QueryError> for AgentError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::NotHappened(reason) => reason.into(),
            QueryError::Failed(reason) => Self::AgentFailed { reason },
        }
    }
}

/// When to try again where a queue was full.
const OVERLOADED_RETRY_AFTER: Duration = Duration::from_millis(200);

impl From<NotHappened> for AgentError {
    fn from(error: NotHappened) -> Self {
        let reason = error.to_string();
        match error {
            NotHappened::TooLarge { .. } => Self::TooLarge { reason },
            NotHappened::Overloaded { .. } => Self::Overloaded { reason, retry_after: OVERLOADED_RETRY_AFTER },
            _ => Self::NotHappened { reason },
        }
    }
}

async fn in_time<T>(timeout: Duration, waiting: impl Future<Output = T>) -> Result<T, AgentError> {
    let reason = || format!("the quotas did not answer within {timeout:?}");
    tokio::time::timeout(timeout, waiting).await.map_err(|_| AgentError::NotHappened { reason: reason() })
}

/// A reply that its command never gets from a node of this version.
fn unexpected(reply: &impl std::fmt::Debug) -> AgentError {
    AgentError::Unknown { reason: format!("the quotas answered {reply:?}: do all nodes run one version?") }
}

/// Near log time. It only saves a try with a place that is surely too old; the shard decides.
fn wall_millis() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
