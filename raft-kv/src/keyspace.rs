//! What users hold of one keyspace: commands and queries by key, listings, bulk removal, counts.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use rafted_value::{BoxFuture, CommandError, UnknownOutcome};

use crate::dispatcher::{Dispatcher, Reaction, Target};
use crate::error::{KvError, check_client, check_key};
use crate::keyed_value::KeyedValue;
use crate::request::{DEFAULT_TIMEOUT, Limit, Request};
use crate::routing::Route;
use crate::shard::{
    MAX_KEYS_PER_REQUEST, Once, Precondition, Ran, Refused, Run, Shard, ShardAnswer, ShardCommand, ShardQuery,
    ShardReply,
};

/// A keyspace of values of type `K`, from whichever node this is. Cheap to clone.
pub struct Keyspace<K> {
    dispatcher: Arc<Dispatcher>,
    name: Arc<str>,
    value: PhantomData<fn() -> K>,
}

/// A command that is awaited.
#[must_use = "a command is sent when it is awaited"]
pub struct CommandRequest<K: KeyedValue> {
    keyspace: Keyspace<K>,
    run: Run<K::Command>,
    timeout: Duration,
}

/// A query that is awaited.
#[must_use = "a query is sent when it is awaited"]
pub struct QueryRequest<K: KeyedValue> {
    keyspace: Keyspace<K>,
    key: String,
    query: K::Query,
    timeout: Duration,
}

/// One page of a keyspace's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the order of their bytes.
    pub keys: Vec<String>,
    /// There are more behind the last one.
    pub more: bool,
}

impl<K: KeyedValue> Keyspace<K> {
    pub(crate) fn new(dispatcher: Arc<Dispatcher>, name: &str) -> Self {
        Self { dispatcher, name: Arc::from(name), value: PhantomData }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command on a key, once; the reply comes when it is durable on a majority. Await it, or set a
    /// [`timeout`](CommandRequest::timeout) and more first.
    pub fn command(&self, key: &str, command: K::Command) -> CommandRequest<K> {
        let run = Run { key: key.to_owned(), precondition: Precondition::None, once: None, command };
        CommandRequest { keyspace: self.clone(), run, timeout: DEFAULT_TIMEOUT }
    }

    /// Reads a key, linearizably. Await it, or set a [`timeout`](QueryRequest::timeout) first.
    pub fn query(&self, key: &str, query: K::Query) -> QueryRequest<K> {
        QueryRequest { keyspace: self.clone(), key: key.to_owned(), query, timeout: DEFAULT_TIMEOUT }
    }

    /// Up to `limit` keys (at most [`MAX_KEYS_PER_REQUEST`]) behind `after` that begin with `prefix`, in the order
    /// of their bytes. Each shard is read linearizably, at its own moment.
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: u32) -> Request<Page> {
        let (keyspace, prefix, after) = (self.clone(), prefix.to_owned(), after.map(str::to_owned));
        let count = limit.min(MAX_KEYS_PER_REQUEST);
        Request::new(DEFAULT_TIMEOUT, async move |limit| {
            let query = || ShardQuery::List { prefix: prefix.clone(), after: after.clone(), limit: count };
            let pages = keyspace.ask_all(limit, query, |answer| match answer {
                ShardAnswer::Keys { keys, more } => Some(Page { keys, more }),
                _ => None,
            });
            Ok(merge(pages.await?, count))
        })
    }

    /// Removes every key that begins with `prefix`, whatever their values say; answers how many went. When it
    /// fails midway, some are gone; do it again. A key that is written meanwhile may stay.
    pub fn remove_prefix(&self, prefix: &str) -> Request<u64> {
        let (keyspace, prefix) = (self.clone(), prefix.to_owned());
        Request::new(DEFAULT_TIMEOUT, async move |limit| {
            let mut sum = 0;
            loop {
                let route = keyspace.route(limit).await.map_err(|error| begun(sum, error))?;
                let removal = |group: Arc<str>| {
                    let (keyspace, prefix) = (keyspace.clone(), prefix.clone());
                    async move { keyspace.remove_in(&group, &prefix, limit).await }
                };
                let removals: Vec<_> = route.shards.iter().map(|shard| removal(shard.group.clone())).collect();
                let done: Vec<Result<Part<u64>, KvError>> =
                    stream::iter(removals).buffer_unordered(MAX_SHARDS_AT_ONCE).collect().await;
                sum += done.iter().flatten().map(|part| part.value).sum::<u64>();
                let done: Vec<Part<u64>> =
                    done.into_iter().collect::<Result<_, _>>().map_err(|error| begun(sum, error))?;
                match done.into_iter().find_map(|part| part.open) {
                    None => return Ok(sum),
                    Some(reason) => {
                        keyspace.look_again(reason, limit).await.map_err(|error| begun(sum, error))?;
                    }
                }
            }
        })
    }

    /// How many keys each account has (see [`KeyedValue::account`]). Each shard is read linearizably, at its own
    /// moment.
    pub fn count_by_account(&self) -> Request<BTreeMap<String, u64>> {
        let keyspace = self.clone();
        Request::new(DEFAULT_TIMEOUT, async move |limit| {
            let accounts = keyspace.ask_all(
                limit,
                || ShardQuery::Accounts,
                |answer| match answer {
                    ShardAnswer::Accounts(accounts) => Some(accounts.counts),
                    _ => None,
                },
            );
            let mut sum = BTreeMap::new();
            for (account, count) in accounts.await?.into_iter().flatten() {
                *sum.entry(account).or_insert(0) += count;
            }
            Ok(sum)
        })
    }

    fn target<'a>(&'a self, key: &'a str) -> Target<'a> {
        Target { keyspace: &self.name, type_name: K::NAME, key }
    }

    async fn route(&self, limit: Limit) -> Result<Arc<Route>, KvError> {
        self.dispatcher.route(&self.name, K::NAME, limit).await
    }

    /// Asks every shard the same, again when one had moved or did not answer; `take` knows the right kind of answer.
    async fn ask_all<T>(
        &self,
        limit: Limit,
        query: impl Fn() -> ShardQuery<K::Query>,
        take: impl Fn(ShardAnswer<K::Answer>) -> Option<T>,
    ) -> Result<Vec<T>, KvError> {
        loop {
            let route = self.route(limit).await?;
            let ask = |group: Arc<str>| {
                let query = query();
                async move { self.dispatcher.query_group::<Shard<K>>(&group, &query, limit.attempt()).await }
            };
            let questions: Vec<_> = route.shards.iter().map(|shard| ask(shard.group.clone())).collect();
            let answers = stream::iter(questions).buffered(MAX_SHARDS_AT_ONCE).try_collect::<Vec<_>>().await;
            let reason = match answers.map(|answers| answers.into_iter().map(&take).collect::<Option<Vec<T>>>()) {
                Ok(Some(taken)) => return Ok(taken),
                Ok(None) => self.moved(limit),
                Err(error) => KvError::from(error),
            };
            self.look_again(reason, limit).await?;
        }
    }

    /// Removes keys from one shard until it has no more, has moved or does not answer.
    async fn remove_in(&self, group: &str, prefix: &str, limit: Limit) -> Result<Part<u64>, KvError> {
        let mut sum = 0;
        loop {
            let command = ShardCommand::RemovePrefix { prefix: prefix.to_owned(), limit: MAX_KEYS_PER_REQUEST };
            let open = match self.dispatcher.command_group::<Shard<K>>(group, &command, limit.attempt()).await {
                Ok(ShardReply::Removed(removed)) => {
                    sum += removed.count;
                    if removed.more {
                        continue;
                    }
                    None
                }
                Ok(_) => Some(self.moved(limit)),
                Err(CommandError::NotHappened(reason)) => Some(reason.into()),
                Err(error) => return Err(begun(sum, error.into())),
            };
            return Ok(Part { value: sum, open });
        }
    }

    fn moved(&self, limit: Limit) -> KvError {
        KvError::NotServing { keyspace: self.name.to_string(), waited: limit.timeout }
    }

    /// Before shards are asked again: waits a little and renews the table. `reason` is told when time is over or
    /// waiting does not help, unless the keyspace is gone.
    async fn look_again(&self, reason: KvError, limit: Limit) -> Result<(), KvError> {
        let is_over = limit.is_over() || !reason.is_retryable();
        limit.pause(PAUSE).await;
        let look = Limit::new(limit.attempt().max(LAST_LOOK));
        if self.dispatcher.refresh(look).await.is_ok() && self.dispatcher.routing().get(&self.name).is_none() {
            return Err(KvError::KeyspaceNotFound { name: self.name.to_string() });
        }
        if is_over { Err(reason) } else { Ok(()) }
    }
}

/// Once keys were removed, nothing may say that it did not happen.
fn begun(removed: u64, error: KvError) -> KvError {
    match error {
        error if removed == 0 || error.is_unknown() => error,
        error => UnknownOutcome::Interrupted(format!("{removed} keys were removed, then: {error}")).into(),
    }
}

/// What one shard has done of a request over all of them.
struct Part<T> {
    value: T,
    /// Why it is not at its end.
    open: Option<KvError>,
}

impl<K> Clone for Keyspace<K> {
    fn clone(&self) -> Self {
        Self { dispatcher: self.dispatcher.clone(), name: self.name.clone(), value: PhantomData }
    }
}

impl<K> std::fmt::Debug for Keyspace<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyspace").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<K: KeyedValue> CommandRequest<K> {
    /// The whole time it may take, retries included; [`DEFAULT_TIMEOUT`] otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it only if this holds for the key just before; else [`KvError::PreconditionFailed`].
    pub fn require(mut self, precondition: Precondition) -> Self {
        self.run.precondition = precondition;
        self
    }

    /// Names the request, so that it runs once also when another process sends it again: up to 64 serials of a
    /// client may be open at once on one key, in any order. `fingerprint` tells other requests under the same
    /// name apart (see [`fingerprint`](crate::fingerprint)). The reply is kept for 24 h of log time.
    pub fn idempotency(mut self, client: &str, serial: u64, fingerprint: u64) -> Self {
        self.run.once = Some(Once { client: client.to_owned(), serial, fingerprint });
        self
    }

    /// Sends it, and answers also the key's version.
    pub async fn versioned(self) -> Result<Ran<K::Reply>, KvError> {
        let Self { keyspace, run, timeout } = self;
        check_key(&run.key)?;
        let once = run.once.clone();
        if let Some(once) = &once {
            check_client(&once.client)?;
        }
        let key = run.key.clone();
        let command = ShardCommand::Run(run);
        let react = |reply| match reply {
            ShardReply::Ran(ran) => Reaction::Done(Ok(ran)),
            ShardReply::Refused(refused) => Reaction::Done(Err(refused)),
            ShardReply::Moved { wait } => Reaction::Moved { wait },
            // A shard answers a command on a key in no other way.
            _ => Reaction::Moved { wait: true },
        };
        let done = keyspace
            .dispatcher
            .command::<Shard<K>, _>(keyspace.target(&key), &command, Limit::new(timeout), react)
            .await?;
        done.map_err(|refused| refusal(refused, once))
    }
}

impl<K: KeyedValue> IntoFuture for CommandRequest<K> {
    type Output = Result<K::Reply, KvError>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.versioned().await?.reply) })
    }
}

impl<K: KeyedValue> QueryRequest<K> {
    /// The whole time it may take, retries included; [`DEFAULT_TIMEOUT`] otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends it, and answers also the value's version.
    pub async fn versioned(self) -> Result<(K::Answer, u64), KvError> {
        let Self { keyspace, key, query, timeout } = self;
        check_key(&key)?;
        let query = ShardQuery::Get { key: key.clone(), query };
        let react = |answer| match answer {
            ShardAnswer::Got { answer, version } => Reaction::Done(Some((answer, version))),
            ShardAnswer::NotFound => Reaction::Done(None),
            ShardAnswer::Moved { wait } => Reaction::Moved { wait },
            // A shard answers a query on a key in no other way.
            _ => Reaction::Moved { wait: true },
        };
        let found =
            keyspace.dispatcher.query::<Shard<K>, _>(keyspace.target(&key), &query, Limit::new(timeout), react).await?;
        found.ok_or_else(|| KvError::KeyNotFound { keyspace: keyspace.name.to_string(), key })
    }
}

impl<K: KeyedValue> IntoFuture for QueryRequest<K> {
    type Output = Result<K::Answer, KvError>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.versioned().await?.0) })
    }
}

/// Shards that one request talks to at once.
const MAX_SHARDS_AT_ONCE: usize = 64;
/// Before shards are asked again.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the last look at the table may take, after the deadline of what failed.
const LAST_LOOK: Duration = Duration::from_millis(500);

/// One page of the first keys of several.
fn merge(pages: Vec<Page>, limit: u32) -> Page {
    let mut more = pages.iter().any(|page| page.more);
    let mut keys: Vec<String> = pages.into_iter().flat_map(|page| page.keys).collect();
    keys.sort_unstable();
    keys.dedup();
    more |= keys.len() > limit as usize;
    keys.truncate(limit as usize);
    Page { keys, more }
}

fn refusal(refused: Refused, once: Option<Once>) -> KvError {
    let (client, serial) = once.map(|once| (once.client, once.serial)).unwrap_or_default();
    match refused {
        Refused::PreconditionFailed { version } => KvError::PreconditionFailed { version },
        Refused::SerialTooOld => KvError::SerialTooOld { client, serial },
        Refused::AlreadyDone => KvError::AlreadyDone { client, serial },
        Refused::IdempotencyConflict => KvError::IdempotencyConflict { client, serial },
        Refused::TooManyClients => KvError::TooManyClients,
    }
}
