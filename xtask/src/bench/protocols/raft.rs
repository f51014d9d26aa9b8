//! rafted-value: a node that hosts replicas with a durable log, and a client process that is a member of nothing.
//!
//! The client reaches the groups by the library's own means: a `GroupClient` over a `QuicTransport` from an endpoint of
//! its own, with a session, so that each command has an id and runs once. It learns the leader by redirects and goes
//! straight to it, as etcd's client does here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use batched_comm::{Endpoint, EndpointConfig, Identity, NodeName};
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt};
use rafted_value::{
    ClientSession, Clock, ClusterTag, GroupClient, GroupConfig, QuicTransport, Replica, Route, Store, SystemClock,
    UntypedReplica, Value, decode_answer, decode_reply, encode_command, encode_query,
};
use serde_json::json;

use super::{Client, PeerOptions, Protocol, input, now_us, work};

/// How long one operation may take.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// Groups that are asked at once whether they are there.
const FIRST_WRITES_AT_ONCE: usize = 64;

rafted_value::messages! {
    /// What is replicated: like a key-value store's table.
    #[derive(Default)]
    pub struct Table { rows: BTreeMap<u64, Vec<u8>> }
    pub struct Put { key: u64, bytes: Vec<u8> }
}

impl Value for Table {
    type Command = Put;
    type Reply = bool;
    type Query = u64;
    type Answer = Option<Vec<u8>>;

    fn command(&mut self, put: Put) -> bool {
        self.rows.insert(put.key, put.bytes).is_some()
    }

    fn query(&self, key: u64) -> Option<Vec<u8>> {
        self.rows.get(&key).cloned()
    }
}

/// The name of a group.
pub fn group_name(group: usize) -> String {
    format!("bench-{group}")
}

/// The defaults; but thousands of groups that stay awake are given heartbeats as rare as a node's operator would make
/// them: at the default of 50 ms, 2,000 groups send 80,000 a second, and nothing else would be measured.
fn config(options: &PeerOptions) -> Result<GroupConfig> {
    if options.groups == 1 {
        return Ok(GroupConfig::default());
    }
    let seconds = Duration::from_secs;
    Ok(GroupConfig::default().with_timing(seconds(10), seconds(40), seconds(80))?)
}

/// The network is a part of the process's one runtime: no user's code runs there that could hold it up.
pub async fn bind(options: &PeerOptions) -> Result<Endpoint> {
    let config = EndpointConfig::new().with_network_thread(false);
    Ok(Endpoint::bind_with(options.address, Identity::load(&options.tls, &options.name)?, config).await?)
}

/// The node's log, and all that it keeps.
pub async fn open_store(options: &PeerOptions) -> Result<Store> {
    let name = options.name.as_str();
    match (&options.data, options.protocol) {
        (_, Protocol::RaftInMemory) => Ok(Store::memory(name)),
        (Some(data), _) => Ok(Store::open(data, name).await?),
        (None, _) => bail!("a node with a log needs --data"),
    }
}

/// A node: hosts a replica of every group, and says what its log has done.
pub async fn serve(options: &PeerOptions) -> Result<()> {
    let endpoint = bind(options).await?;
    let store = open_store(options).await?;
    let config = config(options)?;
    // All at once: each asks the other nodes first whether they know its group, and waits for them a while.
    let starting = (0..options.groups).map(|group| {
        let mut builder = Replica::<Table>::builder(&group_name(group)).config(config.clone());
        // The first member forms the group, and leads it then: groups are spread over the nodes.
        let members = options.members.iter().cycle().skip(group % options.members.len());
        for member in members.take(options.members.len()) {
            builder = builder.member(&member.name, member.address);
        }
        builder.start(&store, &endpoint)
    });
    let replicas = try_join_all(starting).await?;
    println!("ready {} {}", endpoint.local_address(), now_us());
    let mut input = input();
    while let Some(line) = input.next_line().await? {
        ensure!(line == "count", "a node knows no command {line:?}");
        let log = store.log_stats();
        let applied: u64 = replicas.iter().map(|replica| *replica.untyped().applied().borrow()).sum();
        println!("{}", json!({ "applied": applied, "entries": log.entries, "batches": log.batches }));
    }
    Ok(())
}

/// A client of groups.
#[derive(Clone)]
pub struct RaftClient {
    groups: Arc<Vec<(String, GroupClient)>>,
    next: Arc<AtomicU64>,
    session: ClientSession,
    clock: SystemClock,
}

impl RaftClient {
    pub fn new(groups: Vec<(String, GroupClient)>) -> RaftClient {
        let (next, session) = (Arc::default(), ClientSession::random());
        RaftClient { groups: Arc::new(groups), next, session, clock: SystemClock::default() }
    }

    /// One group after the other.
    fn group(&self) -> &(String, GroupClient) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        &self.groups[next % self.groups.len()]
    }

    /// Waits until every group has answered.
    pub async fn ready(&self) -> Result<()> {
        let writes = futures_util::stream::iter(0..self.groups.len()).map(|_| self.write(0, &[]));
        writes.buffer_unordered(FIRST_WRITES_AT_ONCE).try_collect().await
    }
}

impl Client for RaftClient {
    async fn write(&self, key: u64, body: &[u8]) -> Result<()> {
        let (group, client) = self.group();
        let open = self.session.open(self.clock.wall(), TIMEOUT).await;
        let command = encode_command::<Table>(&Put { key, bytes: body.to_vec() }, Some(open.id()), 0)?;
        let reply = client.command(group, command, TIMEOUT).await?;
        decode_reply::<Table>(&reply)?;
        Ok(())
    }

    async fn read(&self, key: u64, body: &[u8]) -> Result<()> {
        let (group, client) = self.group();
        let answer = client.query(group, encode_query::<Table>(&key)?, TIMEOUT).await?;
        ensure!(decode_answer::<Table>(&answer)?.as_deref() == Some(body), "key {key} holds something else");
        Ok(())
    }
}

/// A client process.
pub async fn connect(options: &PeerOptions) -> Result<()> {
    let client = RaftClient::new(clients(options).await?);
    client.ready().await?;
    work(client).await
}

/// The groups on the nodes, from outside.
pub async fn clients(options: &PeerOptions) -> Result<Vec<(String, GroupClient)>> {
    let endpoint = bind(options).await?;
    for member in &options.members {
        let name: NodeName = member.name.parse().with_context(|| format!("{} is no node's name", member.name))?;
        endpoint.set_peer(&name, vec![member.address]);
    }
    let nodes: Vec<_> = options.members.iter().map(|member| member.name.clone()).collect();
    let groups = (0..options.groups).map(|group| {
        let name = group_name(group);
        let transport = Arc::new(QuicTransport::to_group(endpoint.clone(), &name));
        let route = Arc::new(Members::new(&options.name, nodes.clone(), None));
        (name, GroupClient::new(route, transport))
    });
    Ok(groups.collect())
}

/// A route to nodes that do not change.
pub struct Members {
    here: String,
    nodes: Vec<String>,
    local: Option<UntypedReplica>,
    leader: Mutex<Option<String>>,
}

impl Members {
    pub fn new(here: &str, nodes: Vec<String>, local: Option<UntypedReplica>) -> Members {
        Members { here: here.to_owned(), nodes, local, leader: Mutex::default() }
    }
}

impl Route for Members {
    fn here(&self) -> &str {
        &self.here
    }

    fn local(&self, _group: &str) -> Option<UntypedReplica> {
        self.local.clone()
    }

    fn nodes(&self, _group: &str) -> Vec<String> {
        self.nodes.clone()
    }

    fn identity(&self, _group: &str) -> Option<(ClusterTag, u64)> {
        Some((ClusterTag::default(), 0))
    }

    fn leader(&self, _group: &str) -> Option<String> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_leader(&self, _group: &str, node: Option<&str>) {
        let mut leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        // After each answer it is told again who gave it.
        if leader.as_deref() != node {
            *leader = node.map(str::to_owned);
        }
    }
}
