//! A group of a counter over several stores in one process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rafted_value::{
    ClientSession, Clock, ClusterTag, CommandError, GroupClient, GroupConfig, Member, QueryError, ReplicaId,
    ReplicaSpec, Role, Route, StartError, Store, StoreError, SystemClock, UntypedReplica, Value, ValueFactory,
    decode_answer, decode_reply, encode_command, encode_query,
};

use crate::hub::Hub;

pub const GROUP: &str = "counter";
pub const PATIENCE: Duration = Duration::from_secs(20);

rafted_value::messages! {
    /// A log of what was added, so that order and repetition are visible.
    #[derive(Default)]
    pub struct Journal { pub added: Vec<i64>, pub padding: Vec<u8> }
    pub enum Command { Add(i64), Pad(u64), Panic }
    pub enum Query { All, Panic }
}

impl Value for Journal {
    type Command = Command;
    type Reply = u64;
    type Query = Query;
    type Answer = Vec<i64>;

    fn command(&mut self, command: Command) -> u64 {
        match command {
            Command::Add(n) => self.added.push(n),
            Command::Pad(bytes) => self.padding = vec![7; bytes as usize],
            Command::Panic => panic!("as asked"),
        }
        self.added.len() as u64
    }

    fn query(&self, query: Query) -> Vec<i64> {
        match query {
            Query::All => self.added.clone(),
            Query::Panic => panic!("as asked"),
        }
    }
}

/// Waits for a condition; fails with `what` after [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Opens a directory, once whoever still reads at a replica of it has let go.
pub async fn open(dir: PathBuf, name: &str) -> Store {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Store::open(&dir, name).await {
            Err(StoreError::Locked { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            opened => return opened.unwrap(),
        }
    }
}

pub struct Node {
    pub name: String,
    pub store: Store,
    pub replica: UntypedReplica,
}

pub struct Cluster {
    pub hub: Hub,
    pub nodes: BTreeMap<String, Node>,
    pub session: ClientSession,
    dirs: Option<tempfile::TempDir>,
    /// Nodes that keep nothing on disk, although others do.
    without_disk: &'static [&'static str],
    config: GroupConfig,
    /// The clock of one node in memory that has its own.
    clock: Option<(String, Arc<dyn Clock>)>,
}

impl Cluster {
    /// `names` as the first members, in memory.
    pub async fn memory(names: &[&str]) -> Self {
        Self::form(names, None, GroupConfig::default(), ValueFactory::of::<Journal>(None), None).await
    }

    /// `names` as the first members, in memory; one of them has another clock.
    pub async fn memory_with_clock(names: &[&str], with_clock: &str, clock: Arc<dyn Clock>) -> Self {
        let clock = Some((with_clock.to_owned(), clock));
        Self::form(names, None, GroupConfig::default(), ValueFactory::of::<Journal>(None), clock).await
    }

    /// `names` as the first members, each with a directory.
    pub async fn durable(names: &[&str], config: GroupConfig) -> Self {
        Self::durable_as(names, config, ValueFactory::of::<Journal>(None)).await
    }

    /// As [`Cluster::durable`], but some nodes, also of those that start later, live in memory.
    pub async fn mixed(names: &[&str], without_disk: &'static [&'static str], config: GroupConfig) -> Self {
        let (dirs, factory) = (Some(tempfile::tempdir().unwrap()), ValueFactory::of::<Journal>(None));
        Self::form_with(names, dirs, without_disk, config, factory, None).await
    }

    /// As [`Cluster::durable`], with another program's value.
    pub async fn durable_as(names: &[&str], config: GroupConfig, factory: ValueFactory) -> Self {
        Self::form(names, Some(tempfile::tempdir().unwrap()), config, factory, None).await
    }

    async fn form(
        names: &[&str],
        dirs: Option<tempfile::TempDir>,
        config: GroupConfig,
        factory: ValueFactory,
        clock: Option<(String, Arc<dyn Clock>)>,
    ) -> Self {
        Self::form_with(names, dirs, &[], config, factory, clock).await
    }

    async fn form_with(
        names: &[&str],
        dirs: Option<tempfile::TempDir>,
        without_disk: &'static [&'static str],
        config: GroupConfig,
        factory: ValueFactory,
        clock: Option<(String, Arc<dyn Clock>)>,
    ) -> Self {
        let session = ClientSession::random();
        let (hub, nodes) = (Hub::default(), BTreeMap::new());
        let mut cluster = Self { hub, nodes, session, dirs, without_disk, config, clock };
        for name in names {
            cluster.start_as(name, factory.clone()).await.unwrap();
        }
        let members = cluster.nodes.values().map(|node| (node.replica.spec().replica, cluster.member(&node.name)));
        let members: BTreeMap<ReplicaId, Member> = members.collect();
        cluster.nodes[names[0]].replica.initialize(members).await.unwrap();
        cluster
    }

    pub fn member(&self, name: &str) -> Member {
        let node = self.nodes[name].store.node().node_id;
        Member { name: name.to_owned(), node, zone: String::new(), decided_at: 0, addresses: Vec::new() }
    }

    pub fn dir(&self, name: &str) -> Option<PathBuf> {
        self.dirs.as_ref().filter(|_| !self.without_disk.contains(&name)).map(|dirs| dirs.path().join(name))
    }

    /// Starts a node, with what its directory holds.
    pub async fn start(&mut self, name: &str) {
        self.start_as(name, ValueFactory::of::<Journal>(None)).await.unwrap();
    }

    /// Starts a node with another program's value.
    pub async fn start_as(&mut self, name: &str, factory: ValueFactory) -> Result<(), StartError> {
        let store = match self.dir(name) {
            Some(dir) => open(dir, name).await,
            None => match &self.clock {
                Some((with_clock, clock)) if with_clock == name => Store::memory_with_clock(name, clock.clone()),
                _ => Store::memory(name),
            },
        };
        let stored = store.replicas().into_iter().find(|stored| stored.group == GROUP);
        let replica = match stored {
            Some(stored) => stored.replica,
            None => store.create_replica(GROUP, 0, Vec::new()).await.unwrap(),
        };
        let spec = ReplicaSpec {
            group: GROUP.into(),
            incarnation: 0,
            replica,
            cluster: ClusterTag::default(),
            config: self.config.clone(),
            is_alone: false,
        };
        let started = UntypedReplica::start(&store, spec, factory, self.hub.transport(name)).await;
        let replica = match started {
            Ok(replica) => replica,
            Err(error) => {
                store.close().await;
                return Err(error);
            }
        };
        self.hub.attach(name, replica.clone());
        self.nodes.insert(name.to_owned(), Node { name: name.to_owned(), store, replica });
        Ok(())
    }

    /// Stops a node; its directory stays.
    pub async fn stop(&mut self, name: &str) {
        self.hub.detach(name, GROUP);
        let node = self.nodes.remove(name).unwrap();
        node.replica.shutdown().await;
        node.store.close().await;
    }

    pub fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    pub fn leader(&self) -> Option<String> {
        let leads = |node: &&Node| node.replica.status().role == Role::Leader;
        let newest = self.nodes.values().filter(leads).max_by_key(|node| node.replica.status().term);
        newest.map(|node| node.name.clone())
    }

    pub async fn wait_leader(&self) -> String {
        eventually("a leader", || self.leader().is_some()).await;
        self.leader().unwrap()
    }

    /// Makes a node the leader.
    pub async fn lead(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        let leads = || self.nodes[name].replica.status().role == Role::Leader;
        while !leads() {
            assert!(Instant::now() < deadline, "{name} does not get to lead");
            if let Some(leader) = self.leader() {
                // Refused while it lacks entries, or is not asked in time: again.
                let _ = self.nodes[&leader].replica.transfer_leader(self.nodes[name].replica.spec().replica).await;
            }
            let (replica, again) = (&self.nodes[name].replica, Instant::now() + Duration::from_secs(1));
            while !leads() && Instant::now() < again {
                let _ = tokio::time::timeout(Duration::from_millis(20), replica.status_changes().changed()).await;
            }
        }
    }

    pub fn client(&self, here: &str) -> GroupClient {
        let route = HubRoute {
            hub: self.hub.clone(),
            here: here.to_owned(),
            nodes: ["n1", "n2", "n3", "n4", "n5", "n6", "n7"].map(str::to_owned).to_vec(),
            leader: Mutex::new(None),
        };
        GroupClient::new(Arc::new(route), self.hub.transport(here))
    }

    pub async fn add(&self, here: &str, n: i64) -> Result<u64, CommandError> {
        self.command(here, Command::Add(n)).await
    }

    pub async fn command(&self, here: &str, command: Command) -> Result<u64, CommandError> {
        let open = self.session.open(SystemClock::default().wall(), PATIENCE).await;
        let bytes = encode_command::<Journal>(&command, Some(open.id()), 0).unwrap();
        let reply = self.client(here).command(GROUP, bytes, PATIENCE).await?;
        Ok(decode_reply::<Journal>(&reply).unwrap())
    }

    pub async fn all(&self, here: &str) -> Result<Vec<i64>, QueryError> {
        let query = encode_query::<Journal>(&Query::All).unwrap();
        let answer = self.client(here).query(GROUP, query, PATIENCE).await?;
        Ok(decode_answer::<Journal>(&answer).unwrap())
    }

    /// What a node's own replica answers, which may be old.
    pub async fn any(&self, here: &str) -> Result<Vec<i64>, QueryError> {
        let query = encode_query::<Journal>(&Query::All).unwrap();
        let answer = self.nodes[here].replica.read_any(query).await?;
        Ok(decode_answer::<Journal>(&answer).unwrap())
    }

    pub fn local(&self, name: &str) -> Vec<i64> {
        self.nodes[name].replica.read_local(|journal: &Journal, _| journal.added.clone()).unwrap()
    }

    pub async fn shutdown(mut self) {
        for name in self.names() {
            self.stop(&name).await;
        }
    }
}

struct HubRoute {
    hub: Hub,
    here: String,
    nodes: Vec<String>,
    leader: Mutex<Option<String>>,
}

impl Route for HubRoute {
    fn here(&self) -> &str {
        &self.here
    }
    fn local(&self, group: &str) -> Option<UntypedReplica> {
        self.hub.find(&self.here, group)
    }
    fn nodes(&self, _group: &str) -> Vec<String> {
        self.nodes.clone()
    }
    fn identity(&self, _group: &str) -> Option<(ClusterTag, u64)> {
        Some((ClusterTag::default(), 0))
    }
    fn leader(&self, _group: &str) -> Option<String> {
        self.leader.lock().unwrap().clone()
    }
    fn set_leader(&self, _group: &str, node: Option<&str>) {
        *self.leader.lock().unwrap() = node.map(str::to_owned);
    }
}
