//! A replicated value by itself: one group, whose members come and go; typed commands and queries from any member.

mod members;
mod settings;
mod route;

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use batched_comm::{Endpoint, NodeName};
use tokio::task::JoinSet;

pub use self::members::{DEFAULT_MEMBERSHIP_TIMEOUT, MembershipRequest};
use self::route::MemberRoute;
pub use self::settings::ConfigRequest;
use crate::any_value::ValueFactory;
use crate::caretaker::Caretaker;
use crate::client::{GroupClient, Route};
use crate::clock::{Clock, SystemClock};
use crate::command::CommandId;
use crate::config::GroupConfig;
use crate::encoding::{decode_answer, decode_reply, encode_query};
use crate::error::{CommandError, NotHappened, QueryError, StartError, UnknownOutcome};
use crate::formation::{Entrance, Formation, discover_incarnation};
use crate::group::{Part, ReplicaSpec, UntypedReplica};
use crate::hook::{self, AnyHook, LeaderHook};
use crate::quic::{QuicTransport, serve};
use crate::returning::Returning;
use crate::rpc::ClusterTag;
use crate::runtime;
use crate::session::{ClientSession, MAX_OPEN_SERIALS, OpenCommand};
use crate::status::{Member, Role, Status};
use crate::store::Store;
use crate::transport::Transport;
use crate::value::Value;
use crate::verdict::Told;

/// How long a command or query may take unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the first start of a node that joins waits to hear of which incarnation the group is.
const JOINING_PATIENCE: Duration = Duration::from_secs(5);
/// The same where the others may be starting for the first time, too.
const FOUNDING_PATIENCE: Duration = Duration::from_millis(300);

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
    route: Arc<dyn Route>,
    transport: Arc<dyn Transport>,
    session: ClientSession,
    clock: SystemClock,
    /// Serves requests of the others, gets this replica into the group, and looks after it.
    tasks: Mutex<JoinSet<()>>,
}

/// Collects what a replica needs to start.
pub struct ReplicaBuilder<V> {
    group: String,
    entrance: Way,
    /// The listed members, or those through whom it joins.
    members: BTreeMap<String, SocketAddr>,
    initiator: Option<String>,
    address: Option<SocketAddr>,
    config: GroupConfig,
    environment: Option<Arc<dyn std::any::Any + Send + Sync>>,
    hook: Option<Arc<dyn AnyHook>>,
    value: PhantomData<fn() -> V>,
}

/// How the builder was told to get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Untold,
    Founding,
    Joining,
    Waiting,
    /// Told two of them.
    Contradictory,
}

impl<V: Value> Replica<V> {
    /// A replica of the group of this name. The founding members give the same list of [members]; others
    /// [join], or wait until they are [added].
    ///
    /// [members]: ReplicaBuilder::member
    /// [join]: ReplicaBuilder::join_through
    /// [added]: ReplicaBuilder::wait_to_be_added
    pub fn builder(group: &str) -> ReplicaBuilder<V> {
        ReplicaBuilder {
            group: group.to_owned(),
            entrance: Way::Untold,
            address: None,
            members: BTreeMap::new(),
            initiator: None,
            config: GroupConfig::default(),
            environment: None,
            hook: None,
            value: PhantomData,
        }
    }

    /// Runs a command once; the reply comes when it is durable on a majority. Await it, or set a
    /// [`timeout`](CommandRequest::timeout) first.
    pub fn command(&self, command: V::Command) -> CommandRequest<V> {
        CommandRequest { replica: self.clone(), command, timeout: DEFAULT_TIMEOUT, id: None }
    }

    /// Opens a number for one command that may have to be asked for again, within `repeatable` (at most
    /// [`MAX_REPEATABLE`](crate::MAX_REPEATABLE)): under one number it runs once. See [`CommandRequest::once`].
    pub async fn open_command(&self, repeatable: Duration) -> Result<OpenCommand, CommandError> {
        self.inner.check_member()?;
        Ok(self.inner.open(repeatable).await?)
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
        self.inner.check_member()?;
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

impl Inner {
    /// Opens a serial for a command with this timeout, and waits for one no longer than that.
    async fn open(&self, timeout: Duration) -> Result<OpenCommand, NotHappened> {
        let opening = self.session.open(self.clock.wall(), timeout);
        let overloaded = |_| NotHappened::Overloaded { group: self.group.clone(), queued: MAX_OPEN_SERIALS };
        tokio::time::timeout(timeout, opening).await.map_err(overloaded)
    }

    /// A removed member serves nobody, also not by way of the others.
    fn check_member(&self) -> Result<(), NotHappened> {
        let reason = match self.replica.status().role {
            Role::Removed => {
                "this member was removed from the group; delete its data and join again, or ask another node"
            }
            Role::RolledBack => {
                "this member's directory was rolled back to an older copy; wipe it and join as new, or ask another node"
            }
            _ => return Ok(()),
        };
        Err(NotHappened::Stopped { group: self.group.clone(), reason: reason.into() })
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
    /// Lists a founding member: a node's name and address. All founding members give the same list, and each is in
    /// it. The first one listed forms the group, once, when all are there; a list of one starts a group of one.
    pub fn member(mut self, name: &str, address: SocketAddr) -> Self {
        self.initiator.get_or_insert_with(|| name.to_owned());
        self.members.insert(name.to_owned(), address);
        self.enter(Way::Founding)
    }

    /// Joins an existing group through one of its members, whichever; name several, and one that is up is enough.
    /// It asks until it is let in, as a member with a vote that lacks at most [`MAX_CATCH_UP_LAG`](crate::MAX_CATCH_UP_LAG)
    /// entries.
    pub fn join_through(mut self, name: &str, address: SocketAddr) -> Self {
        self.members.insert(name.to_owned(), address);
        self.enter(Way::Joining)
    }

    /// Waits until a member of an existing group adds this node: see [`Replica::add_member`].
    pub fn wait_to_be_added(self) -> Self {
        self.enter(Way::Waiting)
    }

    /// Where the other members reach this node, if that is neither what the list says nor the endpoint's own address.
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    fn enter(mut self, way: Way) -> Self {
        let is_new = self.entrance == Way::Untold || self.entrance == way;
        self.entrance = if is_new { way } else { Way::Contradictory };
        self
    }

    /// Replaces the default settings, until the group has agreed on others: see [`Replica::change_config`].
    pub fn config(mut self, config: GroupConfig) -> Self {
        self.config = config;
        self
    }

    /// What [`Context::environment`](crate::Context::environment) gives to the value's code.
    pub fn environment(mut self, environment: Arc<dyn std::any::Any + Send + Sync>) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Code that runs beside this replica while it leads.
    pub fn hook(mut self, hook: impl LeaderHook<V>) -> Self {
        self.hook = Some(hook::erased(hook));
        self
    }

    /// Starts this node's replica, from what the store has of it. Returns when the replica runs; the group may
    /// still be waiting for its other members.
    pub async fn start(self, store: &Store, endpoint: &Endpoint) -> Result<Replica<V>, StartError> {
        let here = endpoint.name().as_str().to_owned();
        let entrance = self.entrance(&here)?;
        let mut others: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
        for (name, address) in self.members.iter().filter(|(name, _)| **name != here) {
            let peer: NodeName = name.parse().map_err(|error| StartError::Invalid(format!("{name}: {error}")))?;
            endpoint.set_peer(&peer, vec![*address]);
            others.insert(name.clone(), vec![*address]);
        }
        let names = others.keys().cloned().collect();
        let told = match entrance {
            Entrance::Founding { .. } => Told::Founders(names),
            Entrance::Joining | Entrance::Waiting => Told::Sponsors(names),
        };
        let me = self.me(&here, store, endpoint);
        let replica = self.start_replica(store, endpoint).await?;
        let mut tasks = JoinSet::new();
        let mailbox = QuicTransport::mailbox_of(&self.group);
        serve(endpoint, &mailbox, Arc::new(replica.clone()), &mut tasks)
            .map_err(|error| StartError::Invalid(error.to_string()))?;
        let transport: Arc<dyn Transport> = Arc::new(QuicTransport::new(endpoint.clone(), &mailbox));
        let route: Arc<dyn Route> = Arc::new(MemberRoute::new(endpoint.clone(), self.members.clone(), replica.clone()));
        let client = GroupClient::new(route.clone(), transport.clone());
        let (transport_of, client_of) = (transport.clone(), client.clone());
        let formation = Formation {
            replica: replica.clone(),
            me: me.clone(),
            entrance,
            others,
            route: route.clone(),
            transport: transport_of,
            client: client_of,
        };
        runtime::spawn_on(&mut tasks, formation.run());
        // What is in memory only cannot be put back.
        if store.is_durable() {
            let (route, transport) = (route.clone(), transport.clone());
            let returning = Returning { replica: replica.clone(), me: me.clone(), told, route, transport };
            runtime::spawn_on(&mut tasks, returning.run());
        }
        let caretaker = Caretaker {
            replica: replica.clone(),
            me,
            route: route.clone(),
            transport: transport.clone(),
            client: client.clone(),
        };
        runtime::spawn_on(&mut tasks, caretaker.run());
        let inner = Inner {
            group: self.group,
            replica,
            client,
            route,
            transport,
            session: ClientSession::random(),
            clock: SystemClock::default(),
            tasks: Mutex::new(tasks),
        };
        Ok(Replica { inner: Arc::new(inner), value: PhantomData })
    }

    fn entrance(&self, here: &str) -> Result<Entrance, StartError> {
        let members: Vec<_> = self.members.keys().collect();
        match (self.entrance, &self.initiator) {
            (Way::Founding, Some(initiator)) if self.members.contains_key(here) => {
                Ok(Entrance::Founding { is_initiator: initiator == here })
            }
            (Way::Founding, _) => Err(StartError::Invalid(format!(
                "the endpoint's node is {here}, the members are {members:?}; the list must name every founding member"
            ))),
            (Way::Joining, _) => Ok(Entrance::Joining),
            (Way::Waiting, _) => Ok(Entrance::Waiting),
            (Way::Untold | Way::Contradictory, _) => Err(StartError::Invalid(
                "a replica founds a group (`member`), joins one (`join_through`) or waits (`wait_to_be_added`); tell one"
                    .into(),
            )),
        }
    }

    /// This node, as the members are to know it.
    fn me(&self, here: &str, store: &Store, endpoint: &Endpoint) -> Member {
        let own = Some(endpoint.local_address()).filter(|address| !address.ip().is_unspecified());
        let address = self.address.or_else(|| self.members.get(here).copied()).or(own);
        Member {
            name: here.to_owned(),
            node: store.node_id(),
            zone: String::new(),
            decided_at: 0,
            addresses: address.into_iter().collect(),
        }
    }

    async fn start_replica(&self, store: &Store, endpoint: &Endpoint) -> Result<UntypedReplica, StartError> {
        let mailbox = QuicTransport::mailbox_of(&self.group);
        let transport = Arc::new(QuicTransport::new(endpoint.clone(), &mailbox));
        let stored = store.replicas().into_iter().find(|stored| stored.group == self.group);
        let (replica, incarnation) = match stored {
            Some(stored) => (stored.replica, stored.incarnation),
            None => {
                let others = self.members.keys().filter(|name| *name != endpoint.name().as_str());
                let patience = if self.entrance == Way::Joining { JOINING_PATIENCE } else { FOUNDING_PATIENCE };
                let incarnation = discover_incarnation(&*transport, &self.group, others, patience).await;
                (store.create_replica(&self.group, incarnation, Vec::new()).await?, incarnation)
            }
        };
        if store.is_removed(replica) {
            return Err(StartError::Removed { group: self.group.clone(), replica });
        }
        let spec = ReplicaSpec {
            group: self.group.clone(),
            incarnation,
            replica,
            cluster: ClusterTag::default(),
            config: self.config.clone(),
            is_alone: true,
        };
        let factory = ValueFactory::of::<V>(self.environment.clone()).hooked(self.hook.clone());
        // What was made just now can have forgotten nothing.
        let part = if store.is_new(replica) { Part::Takes } else { Part::Waits };
        UntypedReplica::start_as(part, store, spec, factory, transport).await
    }
}

/// A command on its way; await it.
pub struct CommandRequest<V: Value> {
    replica: Replica<V>,
    command: V::Command,
    timeout: Duration,
    /// The caller's own.
    id: Option<CommandId>,
}

impl<V: Value> CommandRequest<V> {
    /// Under a number that its caller has opened and keeps: after [`CommandError::Unknown`] the same command may be asked
    /// for again under the same number, and runs once. Without, every call is another command.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rafted_value::{CommandError, Replica, Value, messages};
    /// # messages! { #[derive(Default)] pub struct Count { n: u64 } }
    /// # impl Value for Count {
    /// #     type Command = u64; type Reply = u64; type Query = (); type Answer = u64;
    /// #     fn command(&mut self, add: u64) -> u64 { self.n += add; self.n }
    /// #     fn query(&self, (): ()) -> u64 { self.n }
    /// # }
    /// # async fn example(count: Replica<Count>) -> Result<u64, CommandError> {
    /// let number = count.open_command(Duration::from_secs(600)).await?;
    /// loop {
    ///     match count.command(5).once(&number).await {
    ///         Err(error) if error.is_unknown() => continue,       // the same number: not twice
    ///         outcome => return outcome,
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// After the time for which the number was opened the outcome stays unknown: then look into the value.
    pub fn once(mut self, number: &OpenCommand) -> Self {
        self.id = Some(number.id());
        self
    }

    /// How long it may take, retries included; [`DEFAULT_TIMEOUT`] unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(self) -> Result<V::Reply, CommandError> {
        let inner = &self.replica.inner;
        inner.check_member()?;
        let started = tokio::time::Instant::now();
        let mut is_first = true;
        let reply = loop {
            let left = || self.timeout.saturating_sub(started.elapsed());
            let open = if self.id.is_none() { Some(inner.open(left()).await?) } else { None };
            let (id, left) = (self.id.or(open.as_ref().map(OpenCommand::id)), left());
            let outcome = inner.client.typed_command::<V>(&inner.group, &self.command, id, 0, left).await;
            match outcome.inspect_err(|error| inner.session.learn_from(error, inner.clock.wall())) {
                // It did not run, and the next serial has the right time.
                Err(CommandError::NotHappened(NotHappened::TooFarAhead { .. })) if is_first && self.id.is_none() => {
                    is_first = false
                }
                outcome => break outcome?,
            }
        };
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
        inner.check_member()?;
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
