//! Nodes of one process over QUIC on loopback; waiting for conditions with a deadline.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use raft_fleet::batched_comm::{BindError, Identity, MemoryCa};
use raft_fleet::{Fleet, FleetBuilder, FleetConfig, FleetError};
use raft_kv::{KeyedTypes, Keyspace, Kv, ShardId};
use rafted_value::GroupConfig;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::values::List;

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A world in which nodes can be started.
pub struct World {
    ca: MemoryCa,
    addresses: Vec<SocketAddr>,
    disk: Option<TempDir>,
}

impl World {
    pub fn new(count: usize) -> Self {
        let filter = std::env::var("RUST_LOG").unwrap_or_default();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        Self { ca: Identity::in_memory_ca().unwrap(), addresses, disk: None }
    }

    pub fn on_disk(self) -> Self {
        Self { disk: Some(tempfile::tempdir().unwrap()), ..self }
    }

    fn builder(&self, node: usize) -> FleetBuilder {
        let name = format!("n{node}");
        let ms = Duration::from_millis;
        let timing = GroupConfig::default().with_timing(ms(100), ms(300), ms(600)).unwrap();
        let config = FleetConfig::default().with_group(timing).with_reconcile_interval(ms(500)).unwrap();
        let builder = Fleet::builder(&name)
            .listen(self.addresses[node])
            .identity(self.ca.issue(&name).unwrap())
            .seeds(self.addresses.clone())
            .bootstrap_expect(self.addresses.len() as u32)
            .config(config);
        match &self.disk {
            Some(disk) => builder.data_dir(disk.path().join(name)),
            None => builder.in_memory(),
        }
    }

    pub async fn start(&self, node: usize) -> Kv {
        let types = KeyedTypes::new().with::<List>();
        let deadline = Instant::now() + DEADLINE;
        loop {
            match types.register(self.builder(node)).unwrap().start().await {
                Err(FleetError::Bind(BindError::AddressInUse { .. })) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                started => return Kv::start(started.unwrap(), types),
            }
        }
    }

    /// Starts all nodes, and waits until the keyspaces answer on each.
    pub async fn start_all(&self) -> Vec<Kv> {
        let mut nodes = Vec::new();
        for node in 0..self.addresses.len() {
            nodes.push(self.start(node).await);
        }
        for kv in &nodes {
            within("ready", kv.ready()).await;
        }
        nodes
    }
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

pub fn lists(kv: &Kv) -> Keyspace<List> {
    kv.keyspace("lists")
}

/// The groups of shards that a node knows of.
pub fn shard_groups(kv: &Kv) -> Vec<String> {
    let groups = kv.fleet().groups().into_iter().map(|group| group.name);
    groups.filter(|name| ShardId::of_group(name).is_some()).collect()
}

pub async fn stop(kv: Kv) {
    within("shutdown", async {
        kv.shutdown().await;
        kv.fleet().shutdown().await;
    })
    .await;
}

pub async fn stop_all(nodes: Vec<Kv>) {
    for kv in nodes {
        stop(kv).await;
    }
}
