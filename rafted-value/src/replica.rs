//! A replicated value by itself: a fixed list of nodes, one group, typed commands and queries from any member.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use batched_comm::{Endpoint, NodeName};
use tokio::task::JoinSet;

use crate::any_value::ValueFactory;
use crate::client::{GroupClient, Route};
use crate::clock::{Clock, SystemClock};
use crate::config::GroupConfig;
use crate::encoding::{decode_answer, decode_reply, encode_query};
use crate::error::{CommandError, NotHappened, QueryError, StartError, UnknownOutcome};
use crate::formation::Formation;
use crate::group::{ReplicaSpec, UntypedReplica};
use crate::quic::{QuicTransport, serve};
use crate::rpc::ClusterTag;
use crate::runtime;
use crate::session::ClientSession;
use crate::status::{Member, Status};
use crate::store::Store;
use crate::transport::Transport;
use crate::value::Value;

/// How long a command or query may take unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// A replicated value: this node's replica, and the way to the group's leader. Clones share it; the replica
/// stops with [`Replica::shutdown`] or when the last clone is dropped.
pub struct Replica<V> {
    inner: Arc<Inner>,
    value: PhantomData<fn() -> V>,
}

struct Inner {
    group: String,
    replica: UntypedReplica,
    client: GroupClient,
    session: ClientSession,
    clock: SystemClock,
    /// Serves requests of the others, and forms the group.
    tasks: Mutex<JoinSet<()>>,
}

/// Collects what a replica needs to start.
pub struct ReplicaBuilder<V> {
    group: String,
    members: BTreeMap<String, SocketAddr>,
    initiator: Option<String>,
    config: GroupConfig,
    environment: Option<Arc<dyn std::any::Any + Send + Sync>>,
    value: PhantomData<fn() -> V>,
}

impl<V: Value> Replica<V> {
    /// A replica of the group of this name. All members give the same name and the same list of members.
    pub fn builder(group: &str) -> ReplicaBuilder<V> {
        ReplicaBuilder {
            group: group.to_owned(),
            members: BTreeMap::new(),
            initiator: None,
            config: GroupConfig::default(),
            environment: None,
            value: PhantomData,
        }
    }

    /// Runs a command once; the reply comes when it is durable on a majority. Await it, or set a
    /// [`timeout`](CommandRequest::timeout) first.
    pub fn command(&self, command: V::Command) -> CommandRequest<V> {
        CommandRequest { replica: self.clone(), command, timeout: DEFAULT_TIMEOUT }
    }

    /// Reads linearizably, from whichever member this is.
    pub fn query(&self, query: V::Query) -> QueryRequest<V> {
        QueryRequest { replica: self.clone(), query, max_staleness: None, timeout: DEFAULT_TIMEOUT }
    }

    /// Reads this member's own value, or another member's, that has at least every command which was acknowledged `max`
    /// before this call. It costs no round trip while this member's last proof of that is younger than `max`, and
    /// otherwise one to the leader, which everybody who waits here shares; `Duration::ZERO` is linearizable. The time is
    /// measured by the answering member's own monotonic clock, so that wrong wall clocks do no harm; while that machine
    /// is suspended, its time stands still.
    pub fn query_with_staleness(&self, query: V::Query, max: Duration) -> QueryRequest<V> {
        QueryRequest { replica: self.clone(), query, max_staleness: Some(max), timeout: DEFAULT_TIMEOUT }
    }

    /// Reads what this member has applied: it may be old, and it answers without a majority.
    pub async fn query_any_member(&self, query: V::Query) -> Result<V::Answer, QueryError> {
        let malformed = |error: crate::wire::WireError| QueryError::from(NotHappened::Malformed(error.to_string()));
        let query = encode_query::<V>(&query).map_err(malformed)?;
        let answer = self.inner.replica.read_any(query).await?;
        decode_answer::<V>(&answer).map_err(malformed)
    }

    /// How this member sees the group.
    pub fn status(&self) -> Status {
        self.inner.replica.status()
    }

    /// The replica without its type, for what has no method here.
    pub fn untyped(&self) -> &UntypedReplica {
        &self.inner.replica
    }

    /// Stops this member; what it has stored stays. The group goes on while a majority does.
    pub async fn shutdown(&self) {
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.inner.replica.shutdown().await;
    }
}

impl<V> Clone for Replica<V> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), value: PhantomData }
    }
}

impl<V> std::fmt::Debug for Replica<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("group", &self.inner.group).finish_non_exhaustive()
    }
}

impl<V: Value> ReplicaBuilder<V> {
    /// Adds a member: a node's name and address. The first one added forms the group, once, when all are there.
    pub fn member(mut self, name: &str, address: SocketAddr) -> Self {
        self.initiator.get_or_insert_with(|| name.to_owned());
        self.members.insert(name.to_owned(), address);
        self
    }

    /// Replaces the default settings.
    pub fn config(mut self, config: GroupConfig) -> Self {
        self.config = config;
        self
    }

    /// What [`Context::environment`](crate::Context::environment) gives to the value's code.
    pub fn environment(mut self, environment: Arc<dyn std::any::Any + Send + Sync>) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Starts this node's replica, from what the store has of it. Returns when the replica runs; the group may
    /// still be waiting for its other members.
    pub async fn start(self, store: &Store, endpoint: &Endpoint) -> Result<Replica<V>, StartError> {
        let here = endpoint.name().as_str().to_owned();
        let initiator = match &self.initiator {
            Some(initiator) if self.members.contains_key(&here) => initiator.clone(),
            _ => {
                let members: Vec<_> = self.members.keys().collect();
                return Err(StartError::Invalid(format!(
                    "the endpoint's node is {here}, the members are {members:?}; the list must name every member"
                )));
            }
        };
        for (name, address) in self.members.iter().filter(|(name, _)| **name != here) {
            let name: NodeName = name.parse().map_err(|error| StartError::Invalid(format!("{name}: {error}")))?;
            endpoint.set_peer(&name, vec![*address]);
        }
        let replica = self.start_replica(store, endpoint).await?;
        let mut tasks = JoinSet::new();
        let mailbox = QuicTransport::mailbox_of(&self.group);
        serve(endpoint, &mailbox, Arc::new(replica.clone()), &mut tasks)
            .map_err(|error| StartError::Invalid(error.to_string()))?;
        let transport: Arc<dyn Transport> = Arc::new(QuicTransport::new(endpoint.clone(), &mailbox));
        let route = Arc::new(FixedRoute {
            here: here.clone(),
            nodes: self.members.keys().cloned().collect(),
            replica: replica.clone(),
            leader: Mutex::new(None),
        });
        let formation = Formation {
            replica: replica.clone(),
            me: Member { name: here.clone(), node: store.node().node_id, zone: String::new(), decided_at: 0 },
            is_initiator: initiator == here,
            others: self.members.keys().filter(|name| **name != here).cloned().collect(),
            transport: transport.clone(),
        };
        runtime::spawn_on(&mut tasks, formation.run());
        let inner = Inner {
            group: self.group,
            replica,
            client: GroupClient::new(route, transport),
            session: ClientSession::random(),
            clock: SystemClock::default(),
            tasks: Mutex::new(tasks),
        };
        Ok(Replica { inner: Arc::new(inner), value: PhantomData })
    }

    async fn start_replica(&self, store: &Store, endpoint: &Endpoint) -> Result<UntypedReplica, StartError> {
        let stored = store.replicas().into_iter().find(|stored| stored.group == self.group);
        let replica = match stored {
            Some(stored) => stored.replica,
            None => store.create_replica(&self.group, 0, Vec::new()).await?,
        };
        let spec = ReplicaSpec {
            group: self.group.clone(),
            incarnation: 0,
            replica,
            cluster: ClusterTag::default(),
            config: self.config.clone(),
            is_alone: true,
        };
        let mailbox = QuicTransport::mailbox_of(&self.group);
        let transport = Arc::new(QuicTransport::new(endpoint.clone(), &mailbox));
        UntypedReplica::start(store, spec, ValueFactory::of::<V>(self.environment.clone()), transport).await
    }
}

/// A command on its way; await it.
pub struct CommandRequest<V: Value> {
    replica: Replica<V>,
    command: V::Command,
    timeout: Duration,
}

impl<V: Value> CommandRequest<V> {
    /// How long it may take, retries included; [`DEFAULT_TIMEOUT`] unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(self) -> Result<V::Reply, CommandError> {
        let inner = &self.replica.inner;
        let open = inner.session.open(inner.clock.wall(), self.timeout).await;
        let reply =
            inner.client.typed_command::<V>(&inner.group, &self.command, Some(open.id()), 0, self.timeout).await?;
        decode_reply::<V>(&reply).map_err(|error| UnknownOutcome::Interrupted(error.to_string()).into())
    }
}

impl<V: Value> IntoFuture for CommandRequest<V> {
    type Output = Result<V::Reply, CommandError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A query on its way; await it.
pub struct QueryRequest<V: Value> {
    replica: Replica<V>,
    query: V::Query,
    /// `None` for a linearizable answer from the leader.
    max_staleness: Option<Duration>,
    timeout: Duration,
}

impl<V: Value> QueryRequest<V> {
    /// How long it may take, retries included; [`DEFAULT_TIMEOUT`] unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(self) -> Result<V::Answer, QueryError> {
        let malformed = |error: crate::wire::WireError| NotHappened::Malformed(error.to_string());
        let bytes = encode_query::<V>(&self.query).map_err(malformed)?;
        let inner = &self.replica.inner;
        let answer = match self.max_staleness {
            None => inner.client.query(&inner.group, bytes, self.timeout).await?,
            Some(max) => inner.client.query_with_staleness(&inner.group, bytes, max, self.timeout).await?,
        };
        decode_answer::<V>(&answer).map_err(|error| malformed(error).into())
    }
}

impl<V: Value> IntoFuture for QueryRequest<V> {
    type Output = Result<V::Answer, QueryError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// The members as they were listed.
struct FixedRoute {
    here: String,
    nodes: Vec<String>,
    replica: UntypedReplica,
    leader: Mutex<Option<String>>,
}

impl Route for FixedRoute {
    fn here(&self) -> &str {
        &self.here
    }

    fn local(&self, _group: &str) -> Option<UntypedReplica> {
        Some(self.replica.clone())
    }

    fn nodes(&self, _group: &str) -> Vec<String> {
        self.nodes.clone()
    }

    fn identity(&self, _group: &str) -> Option<(ClusterTag, u64)> {
        Some((self.replica.spec().cluster, self.replica.spec().incarnation))
    }

    fn leader(&self, _group: &str) -> Option<String> {
        let known = self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.or_else(|| self.replica.status().leader_member().map(|(_, member)| member.name.clone()))
    }

    fn set_leader(&self, _group: &str, node: Option<&str>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = node.map(str::to_owned);
    }
}
