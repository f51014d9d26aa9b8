//! Gets one command or query to the shard that owns its key and answered within a deadline, while shards move and
//! nodes fail.
//!
//! ```text
//!              a reply -------------------------------------> done
//! attempt ---> moved: nothing was run ----------------------> ask for the table, pause, again
//!              not happened (no leader, group is gone) -----> ask for the table, pause, again
//!              unknown -------------------------------------> "maybe": ask for the table, again under the same serial
//! deadline --> maybe: unknown outcome; else: did not happen
//! ```
//!
//! All attempts of a command have one serial, so that it runs once however many groups it passes through. The
//! only exception: a shard remembers `moved` as its reply to that serial, and would repeat it after it has
//! become the owner again. So the next attempt gets a new serial when every attempt so far is known not to
//! have run; after one that may have run, never.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rafted_value::{
    BoxFuture, ClientSession, CommandError, LogTime, MAX_OPEN_SERIALS, NotHappened, OpenCommand, QueryError,
    UnknownOutcome, Value, WireError, decode_answer, decode_reply, encode_command, encode_query,
};
use tokio::sync::Mutex;
use tokio::time::timeout_at;

use crate::error::KvError;
use crate::hash::KeyHash;
use crate::keyspaces::{Keyspaces, KeyspacesAnswer, KeyspacesCommand, KeyspacesQuery, KeyspacesReply};
use crate::request::Limit;
use crate::routing::{Route, Routing};

/// The group that holds the keyspaces.
pub const KEYSPACES_GROUP: &str = "kv.keyspaces";

/// The groups of the fleet, as bytes: the seam between this crate's requests and the network.
pub(crate) trait Groups: Send + Sync + 'static {
    fn command(&self, group: &str, command: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, CommandError>>;
    fn query(&self, group: &str, query: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, QueryError>>;
    /// Wall time, by which commands expire.
    fn now(&self) -> LogTime;
}

/// Sends requests to shards. One per node.
pub(crate) struct Dispatcher {
    groups: Arc<dyn Groups>,
    session: ClientSession,
    routing: Routing,
    /// How many questions for the table have begun.
    begun: AtomicU64,
    /// The latest question that was answered. It is held while one is under way: those who wait for it share
    /// the next one's answer.
    answered: Mutex<u64>,
}

/// A key of a keyspace, and what its values must be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) keyspace: &'a str,
    pub(crate) type_name: &'a str,
    pub(crate) key: &'a str,
}

/// What came back from a shard.
pub(crate) enum Reaction<T> {
    Done(T),
    /// The shard does not own the key; nothing was run.
    Moved {
        wait: bool,
    },
}

/// Between attempts: well below an election, and far above a round trip.
const PAUSE: Duration = Duration::from_millis(20);

impl Dispatcher {
    pub(crate) fn new(groups: Arc<dyn Groups>, session: ClientSession) -> Self {
        Self { groups, session, routing: Routing::default(), begun: AtomicU64::new(0), answered: Mutex::default() }
    }

    pub(crate) fn routing(&self) -> &Routing {
        &self.routing
    }

    /// Runs a command on a key once.
    pub(crate) async fn command<V: Value, T>(
        &self,
        target: Target<'_>,
        command: &V::Command,
        limit: Limit,
        react: impl Fn(V::Reply) -> Reaction<T>,
    ) -> Result<T, KvError> {
        let mut attempts = Attempts { dispatcher: self, target, limit, maybe: None, was_moved: false };
        let mut route = self.route(target.keyspace, target.type_name, limit).await?;
        let mut open = self.open(limit).await?;
        let hash = KeyHash::of(target.key);
        while let Some((group, patience)) = attempts.next(&route, hash) {
            let bytes = encode_command::<V>(command, Some(open.id()), hash.0).map_err(malformed)?;
            let mut wait = true;
            let outcome = self.groups.command(&group, bytes, patience).await;
            match outcome.inspect_err(|error| self.session.learn_from(error, self.groups.now())) {
                Ok(reply) => match react(decode_reply::<V>(&reply).map_err(interrupted)?) {
                    Reaction::Done(done) => return Ok(done),
                    Reaction::Moved { wait: on_its_way } => {
                        wait = on_its_way;
                        attempts.was_moved = true;
                        if attempts.maybe.is_none() {
                            // Let go before another is asked for: all of a process may be waiting for one.
                            drop(open);
                            open = self.open(limit).await?;
                        }
                    }
                },
                Err(CommandError::Failed(message)) => return Err(KvError::Failed(message)),
                Err(CommandError::Unknown(reason @ (UnknownOutcome::Expired { .. } | UnknownOutcome::ReplyGone))) => {
                    return Err(reason.into());
                }
                Err(CommandError::Unknown(reason)) => attempts.maybe = Some(reason),
                // This process's clock was wrong: the next serial has the right time.
                Err(CommandError::NotHappened(NotHappened::TooFarAhead { .. })) if attempts.maybe.is_none() => {
                    drop(open);
                    open = self.open(limit).await?;
                }
                Err(CommandError::NotHappened(reason)) if is_transient(&reason) => {}
                Err(CommandError::NotHappened(reason)) => return Err(attempts.refused(reason.into())),
            }
            route = attempts.look_again(&route, wait).await?;
        }
        Err(attempts.timed_out())
    }

    /// Reads a key linearizably.
    pub(crate) async fn query<V: Value, T>(
        &self,
        target: Target<'_>,
        query: &V::Query,
        limit: Limit,
        react: impl Fn(V::Answer) -> Reaction<T>,
    ) -> Result<T, KvError> {
        let mut attempts = Attempts { dispatcher: self, target, limit, maybe: None, was_moved: false };
        let mut route = self.route(target.keyspace, target.type_name, limit).await?;
        let bytes = encode_query::<V>(query).map_err(malformed)?;
        let hash = KeyHash::of(target.key);
        while let Some((group, patience)) = attempts.next(&route, hash) {
            let mut wait = true;
            match self.groups.query(&group, bytes.clone(), patience).await {
                Ok(answer) => match react(decode_answer::<V>(&answer).map_err(malformed)?) {
                    Reaction::Done(done) => return Ok(done),
                    Reaction::Moved { wait: on_its_way } => {
                        wait = on_its_way;
                        attempts.was_moved = true;
                    }
                },
                Err(QueryError::Failed(message)) => return Err(KvError::Failed(message)),
                Err(QueryError::NotHappened(reason)) if is_transient(&reason) => {}
                Err(QueryError::NotHappened(reason)) => return Err(reason.into()),
            }
            route = attempts.look_again(&route, wait).await?;
        }
        Err(attempts.timed_out())
    }

    /// Runs a command on a group by its name, once.
    pub(crate) async fn command_group<V: Value>(
        &self,
        group: &str,
        command: &V::Command,
        timeout: Duration,
    ) -> Result<V::Reply, CommandError> {
        let open = self.open(Limit::new(timeout)).await?;
        let bytes = encode_command::<V>(command, Some(open.id()), 0).map_err(malformed)?;
        let reply = self.groups.command(group, bytes, timeout).await?;
        decode_reply::<V>(&reply).map_err(|error| UnknownOutcome::Interrupted(error.to_string()).into())
    }

    /// Reads a group by its name linearizably.
    pub(crate) async fn query_group<V: Value>(
        &self,
        group: &str,
        query: &V::Query,
        timeout: Duration,
    ) -> Result<V::Answer, QueryError> {
        let bytes = encode_query::<V>(query).map_err(malformed)?;
        let answer = self.groups.query(group, bytes, timeout).await?;
        Ok(decode_answer::<V>(&answer).map_err(malformed)?)
    }

    /// Runs a command on the keyspaces, once.
    pub(crate) async fn command_keyspaces(
        &self,
        command: &KeyspacesCommand,
        timeout: Duration,
    ) -> Result<KeyspacesReply, CommandError> {
        self.command_group::<Keyspaces>(KEYSPACES_GROUP, command, timeout).await
    }

    /// Whether no shard of a keyspace that was deleted answers any more.
    pub(crate) async fn is_closed(&self, keyspace: u64, limit: Limit) -> Result<bool, QueryError> {
        let query = KeyspacesQuery::IsClosed { id: keyspace };
        let answer = self.query_group::<Keyspaces>(KEYSPACES_GROUP, &query, limit.left()).await?;
        Ok(matches!(answer, KeyspacesAnswer::Closed(true)))
    }

    /// The keyspace of this name, whose shards serve. One that is not in the table is asked for before it counts
    /// as not found.
    pub(crate) async fn route(&self, keyspace: &str, type_name: &str, limit: Limit) -> Result<Arc<Route>, KvError> {
        let mut route = self.routing.get(keyspace);
        loop {
            match route {
                Some(route) if route.type_name != type_name => {
                    return Err(KvError::WrongType {
                        keyspace: keyspace.to_owned(),
                        type_name: route.type_name.clone(),
                        expected: type_name.to_owned(),
                    });
                }
                Some(route) if route.is_serving => return Ok(route),
                Some(_) if limit.is_over() => {
                    return Err(KvError::NotServing { keyspace: keyspace.to_owned(), waited: limit.timeout });
                }
                Some(_) => limit.pause(PAUSE).await,
                None => {}
            }
            self.refresh(limit).await?;
            route = self.routing.get(keyspace);
            if route.is_none() {
                return Err(KvError::KeyspaceNotFound { name: keyspace.to_owned() });
            }
        }
    }

    /// Asks for the table, unless a question that began after this call has been answered meanwhile.
    pub(crate) async fn refresh(&self, limit: Limit) -> Result<(), QueryError> {
        let no_leader = || NotHappened::NoLeader { group: KEYSPACES_GROUP.to_owned(), waited: limit.timeout };
        let seen = self.begun.load(Ordering::Acquire);
        let mut answered = timeout_at(limit.deadline, self.answered.lock()).await.map_err(|_| no_leader())?;
        if *answered > seen {
            return Ok(());
        }
        let question = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let query = KeyspacesQuery::Since { revision: self.routing.revision() };
        let answer = self.query_group::<Keyspaces>(KEYSPACES_GROUP, &query, limit.left()).await?;
        if let KeyspacesAnswer::Table(table) = answer {
            self.routing.install(table);
        }
        *answered = question;
        Ok(())
    }

    /// Opens a serial; waits while too many are open.
    async fn open(&self, limit: Limit) -> Result<OpenCommand, NotHappened> {
        let open = timeout_at(limit.deadline, self.session.open(self.groups.now(), limit.left())).await;
        open.map_err(|_| NotHappened::Overloaded { group: "(any)".into(), queued: MAX_OPEN_SERIALS })
    }
}

/// The attempts of one request.
struct Attempts<'a> {
    dispatcher: &'a Dispatcher,
    target: Target<'a>,
    limit: Limit,
    /// Why the outcome of an attempt is not known.
    maybe: Option<UnknownOutcome>,
    was_moved: bool,
}

impl Attempts<'_> {
    /// The group to try now and for how long; `None` at the deadline.
    fn next(&self, route: &Route, hash: KeyHash) -> Option<(Arc<str>, Duration)> {
        let shard = route.shard(hash)?;
        (!self.limit.is_over()).then(|| (shard.group.clone(), self.limit.attempt()))
    }

    /// Asks for the table after an attempt that was no success. When that fails, the old one is as good as any.
    async fn look_again(&self, route: &Arc<Route>, wait: bool) -> Result<Arc<Route>, KvError> {
        let Target { keyspace, type_name, key } = self.target;
        if wait {
            self.limit.pause(PAUSE).await;
        }
        let look = Limit::new(self.limit.attempt());
        if self.dispatcher.refresh(look).await.is_err() {
            return Ok(route.clone());
        }
        let found =
            self.dispatcher.route(keyspace, type_name, self.limit).await.map_err(|error| self.refused(error))?;
        if found.id != route.id && self.maybe.is_some() {
            // The key of the same name in another keyspace is another key.
            return Err(UnknownOutcome::Interrupted(format!("{keyspace} was deleted and made again")).into());
        }
        let group = |route: &Route| route.shard(KeyHash::of(key)).map(|shard| shard.group.clone());
        if !wait && group(&found) == group(route) {
            // The shard says that the key is elsewhere, and the table does not know where yet.
            self.limit.pause(PAUSE).await;
        }
        Ok(found)
    }

    /// An attempt that is known not to have run, unless an earlier one may have.
    fn refused(&self, error: KvError) -> KvError {
        self.maybe.clone().map_or(error, KvError::Unknown)
    }

    fn timed_out(&self) -> KvError {
        let Target { keyspace, key, .. } = self.target;
        let waited = self.limit.timeout;
        match (&self.maybe, self.was_moved) {
            (Some(_), _) => UnknownOutcome::Timeout(waited).into(),
            (None, true) => KvError::Moving { keyspace: keyspace.to_owned(), key: key.to_owned(), waited },
            (None, false) => NotHappened::NoLeader { group: format!("of {key:?} in {keyspace}"), waited }.into(),
        }
    }
}

/// Whether the next attempt may find what this one did not. An overloaded group is not helped by another one.
fn is_transient(reason: &NotHappened) -> bool {
    reason.is_retryable() && !matches!(reason, NotHappened::Overloaded { .. })
}

fn malformed(error: WireError) -> NotHappened {
    NotHappened::Malformed(error.to_string())
}

fn interrupted(error: WireError) -> UnknownOutcome {
    UnknownOutcome::Interrupted(error.to_string())
}

#[cfg(test)]
mod tests;
