//! Nodes with one CA, on free ports, in memory or on disk; waiting for conditions with a deadline.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use raft_fleet::batched_comm::{BindError, Identity, MemoryCa};
use raft_fleet::rafted_value::{Value, messages};
use raft_fleet::{Fleet, FleetBuilder, FleetConfig, FleetError, GroupInfo};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

messages! {
    #[derive(Default)]
    pub struct Int { n: i64 }
    pub enum IntCommand { Increment }
}

impl Value for Int {
    type Command = IntCommand;
    type Reply = i64;
    type Query = ();
    type Answer = i64;

    fn command(&mut self, IntCommand::Increment: IntCommand) -> i64 {
        self.n += 1;
        self.n - 1
    }

    fn query(&self, (): ()) -> i64 {
        self.n
    }
}

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A world in which nodes can be started.
pub struct World {
    ca: MemoryCa,
    addresses: Vec<SocketAddr>,
    expect: u32,
    zones: usize,
    config: FleetConfig,
    disk: Option<TempDir>,
}

impl World {
    /// `expect` nodes make the cluster; there are addresses for `count`.
    pub fn new(expect: u32, count: usize) -> Self {
        let sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        Self {
            ca: Identity::in_memory_ca().unwrap(),
            addresses: sockets.iter().map(|socket| socket.local_addr().unwrap()).collect(),
            expect,
            zones: 1,
            config: config(Duration::from_secs(600)),
            disk: None,
        }
    }

    pub fn zones(self, zones: usize) -> Self {
        Self { zones, ..self }
    }

    pub fn on_disk(self) -> Self {
        Self { disk: Some(tempfile::tempdir().unwrap()), ..self }
    }

    pub fn purge_after(self, window: Duration) -> Self {
        Self { config: config(window), ..self }
    }

    /// Groups sleep and wake all the time.
    pub fn sleepy(self) -> Self {
        Self { config: self.config.with_sleep_after(Some(Duration::from_millis(300))).unwrap(), ..self }
    }

    pub fn name(&self, node: usize) -> String {
        format!("n{node}")
    }

    pub fn address(&self, node: usize) -> SocketAddr {
        self.addresses[node]
    }

    pub fn identity(&self, name: &str) -> Identity {
        self.ca.issue(name).unwrap()
    }

    pub fn directory(&self, node: usize) -> PathBuf {
        self.disk.as_ref().unwrap().path().join(self.name(node))
    }

    pub fn builder(&self, node: usize) -> FleetBuilder {
        let name = self.name(node);
        let builder = Fleet::builder(&name)
            .zone(&format!("z{}", node % self.zones))
            .listen(self.addresses[node])
            .identity(self.identity(&name))
            .seeds(vec![self.addresses[0], self.addresses[1 % self.addresses.len()]])
            .bootstrap_expect(self.expect)
            .config(self.config.clone())
            .register::<Int>("int")
            .unwrap();
        if self.disk.is_some() { builder.data_dir(self.directory(node)) } else { builder.in_memory() }
    }

    pub async fn start(&self, node: usize) -> Fleet {
        start(|| self.builder(node)).await
    }

    /// Starts nodes at the same instant, and waits until all are ready.
    pub async fn start_all(&self, nodes: impl IntoIterator<Item = usize>) -> Vec<Fleet> {
        let mut fleets = Vec::new();
        for node in nodes {
            fleets.push(self.start(node).await);
        }
        for fleet in &fleets {
            within("ready", fleet.ready()).await.unwrap();
        }
        fleets
    }
}

/// Starts a node whose address was in use a moment ago: connections that were being dialled give it back late.
pub async fn start(builder: impl Fn() -> FleetBuilder) -> Fleet {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match builder().start().await {
            Err(FleetError::Bind(BindError::AddressInUse { .. })) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            started => return started.unwrap(),
        }
    }
}

fn config(purge_after: Duration) -> FleetConfig {
    let ms = Duration::from_millis;
    let group = raft_fleet::rafted_value::GroupConfig::default().with_timing(ms(100), ms(300), ms(600)).unwrap();
    FleetConfig::default()
        .with_group(group)
        .with_purge_after(purge_after)
        .unwrap()
        .with_reconcile_interval(ms(500))
        .unwrap()
}

/// Fails the test when it takes too long.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Waits until `found` finds something; looks often.
pub async fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A group as a node sees it.
pub fn info(fleet: &Fleet, group: &str) -> Option<GroupInfo> {
    fleet.groups().into_iter().find(|info| info.name == group)
}

/// The members of a group as a node has heard them, in order.
pub fn members(fleet: &Fleet, group: &str) -> Vec<String> {
    let mut members = info(fleet, group).map(|info| info.members).unwrap_or_default();
    members.sort();
    members
}

/// Where a group belongs, in order.
pub fn places(fleet: &Fleet, group: &str, replicas: u32) -> Vec<String> {
    let mut places = fleet.places(group, replicas);
    places.sort();
    places
}

pub fn leader(fleet: &Fleet, group: &str) -> Option<String> {
    info(fleet, group)?.leader.map(|leader| leader.to_string())
}

pub async fn increment(fleet: &Fleet, group: &str) -> i64 {
    let command = fleet.group::<Int>(group).command(IntCommand::Increment).timeout(DEADLINE);
    command.await.unwrap_or_else(|error| panic!("{group}: {error}"))
}

pub async fn value(fleet: &Fleet, group: &str) -> i64 {
    let query = fleet.group::<Int>(group).query(()).timeout(DEADLINE);
    query.await.unwrap_or_else(|error| panic!("{group}: {error}"))
}

pub async fn shutdown_all(fleets: Vec<Fleet>) {
    let stopping: JoinSet<()> = fleets.into_iter().map(|fleet| async move { fleet.shutdown().await }).collect();
    within("shutdown", stopping.join_all()).await;
}

/// Why a start failed, or why the node was refused.
pub async fn refused(builder: FleetBuilder) -> FleetError {
    match builder.start().await {
        Err(error) => error,
        Ok(fleet) => {
            let error = within("refusal", fleet.ready()).await.unwrap_err();
            within("shutdown", fleet.shutdown()).await;
            error
        }
    }
}

/// Copies a data directory of a node that does not run.
pub fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
