//! A group by its name, from any node; and a group that this node leads, from the inside.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rafted_value::{
    Clock, CommandError, Context, NotHappened, OpenCommand, ProposeError, QueryError, Role, UnknownOutcome, Value,
    WireError, decode_answer, decode_reply, encode_command, encode_query,
};
use tokio::time::Instant;

use crate::cluster::{Answer, Query};
use crate::node::Node;
use crate::replicas::Hosted;

/// A group of values of type `V`. Clones are cheap.
pub struct Group<V> {
    node: Arc<Node>,
    name: Arc<str>,
    value: PhantomData<fn() -> V>,
}

impl<V: Value> Group<V> {
    pub(crate) fn new(node: Arc<Node>, name: &str) -> Self {
        Self { node, name: name.into(), value: PhantomData }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command once, by the group's leader, wherever that is; elections are masked. The reply comes when
    /// the command is durable on a majority. Await it, or set something first.
    pub fn command(&self, command: V::Command) -> GroupCommand<'static, V> {
        let timeout = self.node.config.request_timeout();
        GroupCommand { group: self.clone(), command, timeout, open: None, key_hash: 0 }
    }

    /// Reads linearizably. Await it, or set a timeout first.
    pub fn query(&self, query: V::Query) -> GroupQuery<V> {
        GroupQuery { group: self.clone(), query, timeout: self.node.config.request_timeout() }
    }
}

impl<V> Clone for Group<V> {
    fn clone(&self) -> Self {
        Self { node: self.node.clone(), name: self.name.clone(), value: PhantomData }
    }
}

impl<V> fmt::Debug for Group<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({})", self.name)
    }
}

/// A command on its way; await it.
pub struct GroupCommand<'a, V: Value> {
    group: Group<V>,
    command: V::Command,
    timeout: Duration,
    open: Option<&'a OpenCommand>,
    key_hash: u32,
}

impl<'a, V: Value> GroupCommand<'a, V> {
    /// How long it may take, retries included.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Uses a serial that was opened before, so that a command whose outcome is unknown can be sent again, also
    /// to another group, and still runs once.
    pub fn open<'b>(self, open: &'b OpenCommand) -> GroupCommand<'b, V> {
        let Self { group, command, timeout, key_hash, .. } = self;
        GroupCommand { group, command, timeout, open: Some(open), key_hash }
    }

    /// The hash of the key that the command is about.
    pub fn key_hash(self, key_hash: u32) -> Self {
        Self { key_hash, ..self }
    }

    async fn run(self) -> Result<V::Reply, CommandError> {
        let node = &self.group.node;
        let deadline = rafted_value::deadline_in(self.timeout);
        find(node, &self.group.name, deadline).await?;
        let own = match self.open {
            Some(_) => None,
            // Too many commands of this process are open: this one has not begun.
            None => match tokio::time::timeout_at(deadline, node.session.open(node.clock.wall(), self.timeout)).await {
                Ok(open) => Some(open),
                Err(_) => {
                    let group = self.group.name.to_string();
                    return Err(NotHappened::Overloaded { group, queued: rafted_value::MAX_OPEN_SERIALS }.into());
                }
            },
        };
        let id = self.open.or(own.as_ref()).map(OpenCommand::id);
        let left = deadline.saturating_duration_since(Instant::now());
        let name = &self.group.name;
        let outcome = node.client.typed_command::<V>(name, &self.command, id, self.key_hash, left).await;
        let reply = outcome.inspect_err(|error| node.session.learn_from(error, node.clock.wall()))?;
        decode_reply::<V>(&reply).map_err(|error| UnknownOutcome::Interrupted(error.to_string()).into())
    }
}

impl<'a, V: Value> IntoFuture for GroupCommand<'a, V> {
    type Output = Result<V::Reply, CommandError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A query on its way; await it.
pub struct GroupQuery<V: Value> {
    group: Group<V>,
    query: V::Query,
    timeout: Duration,
}

impl<V: Value> GroupQuery<V> {
    /// How long it may take, retries included.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    async fn run(self) -> Result<V::Answer, QueryError> {
        let node = &self.group.node;
        let deadline = rafted_value::deadline_in(self.timeout);
        find(node, &self.group.name, deadline).await?;
        let bytes = encode_query::<V>(&self.query).map_err(malformed)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = node.client.query(&self.group.name, bytes, left).await?;
        decode_answer::<V>(&answer).map_err(|error| malformed(error).into())
    }
}

impl<V: Value> IntoFuture for GroupQuery<V> {
    type Output = Result<V::Answer, QueryError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A group that this node leads, or led a moment ago. For work that belongs to the leader: deadlines, reports.
pub struct LedReplica<V> {
    hosted: Hosted,
    timeout: Duration,
    value: PhantomData<fn() -> V>,
}

impl<V: Value> LedReplica<V> {
    pub(crate) fn new(hosted: Hosted, timeout: Duration) -> Self {
        Self { hosted, timeout, value: PhantomData }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        self.hosted.group()
    }

    /// Whether this node still leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.hosted.replica.status().role == Role::Leader
    }

    /// Reads what this node has applied, which may lag behind what is committed; `None` if the group holds
    /// another type. Commands wait meanwhile: keep it short.
    pub fn read<T>(&self, read: impl FnOnce(&V, &Context<'_>) -> T) -> Option<T> {
        self.hosted.replica.read_local(read)
    }

    /// Proposes a command without a session: it may run twice if it is proposed again, so that this is for
    /// commands whose repetition does no harm.
    pub async fn propose(&self, command: V::Command) -> Result<V::Reply, CommandError> {
        let bytes = encode_command::<V>(&command, None, 0).map_err(malformed)?;
        match self.hosted.replica.propose(bytes, self.timeout).await {
            Ok(reply) => {
                decode_reply::<V>(&reply).map_err(|error| UnknownOutcome::Interrupted(error.to_string()).into())
            }
            Err(ProposeError::NotLeader { .. }) => {
                let (group, reason) = (self.name().to_owned(), "this node does not lead it any more".to_owned());
                Err(NotHappened::Stopped { group, reason }.into())
            }
            Err(ProposeError::Command(error)) => Err(error),
        }
    }
}

impl<V> Clone for LedReplica<V> {
    fn clone(&self) -> Self {
        Self { hosted: self.hosted.clone(), timeout: self.timeout, value: PhantomData }
    }
}

impl<V> fmt::Debug for LedReplica<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LedReplica({})", self.hosted.group())
    }
}

fn malformed(error: WireError) -> NotHappened {
    NotHappened::Malformed(error.to_string())
}

/// Waits until this node knows the group; fails at once when the cluster knows no such group.
async fn find(node: &Node, group: &str, deadline: Instant) -> Result<(), NotHappened> {
    if node.view.get().group(group).is_some() {
        return Ok(());
    }
    let none = || NotHappened::Stopped { group: group.to_owned(), reason: "there is no group of this name".into() };
    let left = deadline.saturating_duration_since(Instant::now());
    let answer = node.cluster_query(Query::Incarnation { group: group.to_owned() }, left).await;
    let index = match answer {
        Ok(Answer::Incarnation { current: Some(_), index, .. }) => index,
        Ok(_) => return Err(none()),
        Err(QueryError::NotHappened(reason)) => return Err(reason),
        Err(QueryError::Failed(reason)) => return Err(NotHappened::Malformed(reason)),
    };
    let known = node.view.wait(|cluster| (cluster.changed_at >= index).then(|| cluster.group(group).is_some()));
    match tokio::time::timeout_at(deadline, known).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(none()),
        Err(_) => Err(NotHappened::NoLeader { group: group.to_owned(), waited: left }),
    }
}
