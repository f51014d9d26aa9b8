//! Nodes that start again with what a crash left them.

use std::net::UdpSocket;
use std::time::Duration;

use batched_comm::MemoryCa;
use rafted_value::{Clock as _, CommandError, MAX_OPEN_SERIALS, NotHappened};
use tempfile::TempDir;

use super::*;
use crate::cluster::{Command, Refusal, Registration, Reply};
use crate::error::NodeFailure;

const DEADLINE: Duration = Duration::from_secs(30);

struct World {
    ca: MemoryCa,
    addresses: Vec<SocketAddr>,
    disk: TempDir,
}

impl World {
    fn new(count: usize) -> Self {
        let sockets: Vec<_> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        Self { ca: Identity::in_memory_ca().unwrap(), addresses, disk: tempfile::tempdir().unwrap() }
    }

    /// All nodes, each of which has the first one as its only seed.
    async fn start_all(&self) -> Vec<Fleet> {
        let mut fleets = Vec::new();
        for (number, address) in self.addresses.iter().enumerate() {
            let name = format!("n{number}");
            let builder = Fleet::builder(&name).listen(*address).identity(self.ca.issue(&name).unwrap());
            let builder = builder.seeds(vec![self.addresses[0]]).bootstrap_expect(self.addresses.len() as u32);
            fleets.push(builder.data_dir(self.disk.path().join(&name)).start().await.unwrap());
        }
        for fleet in &fleets {
            tokio::time::timeout(DEADLINE, fleet.ready()).await.expect("ready in time").unwrap();
        }
        fleets
    }

    async fn stop_all(&self, fleets: Vec<Fleet>) {
        let stopping: JoinSet<()> = fleets.into_iter().map(|fleet| async move { fleet.shutdown().await }).collect();
        tokio::time::timeout(DEADLINE, stopping.join_all()).await.expect("stopped in time");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_remember_nobody_find_each_other_by_one_seed() {
    let world = World::new(5);
    world.stop_all(world.start_all().await).await;
    for number in 0..5 {
        // What a crash may leave right after a node came to its cluster.
        let name = format!("n{number}");
        let store = Store::open(world.disk.path().join(&name), &name).await.unwrap();
        Memory::open(&store).unwrap().set_known(BTreeMap::new()).await.unwrap();
        store.close().await;
    }
    world.stop_all(world.start_all().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_cluster_waits_for_a_free_serial_no_longer_than_it_may_take() {
    let world = World::new(1);
    let fleets = world.start_all().await;
    let node = fleets[0].node();
    let drain = |timeout| node.cluster_command(Command::Drain { node: "nobody".into() }, timeout);
    let mut open = Vec::new();
    for _ in 0..MAX_OPEN_SERIALS {
        open.push(node.session.open(node.clock.wall(), DEADLINE).await);
    }
    let result = tokio::time::timeout(DEADLINE, drain(Duration::from_millis(50))).await.expect("answered in time");
    assert!(matches!(result, Err(CommandError::NotHappened(NotHappened::Overloaded { .. }))), "{result:?}");
    drop(open);
    assert_eq!(drain(DEADLINE).await.unwrap(), Reply::Refused(Refusal::NodeNotFound));
    world.stop_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_for_good_when_a_copy_of_its_directory_has_registered_a_later_start() {
    let world = World::new(1);
    let fleets = world.start_all().await;
    let node = fleets[0].node();
    let own: Vec<_> = node.store.starts().iter().map(|start| (start.boot, start.number)).collect();
    let (boot, number) = *own.last().unwrap();
    let of_copy = Registration {
        node: node.name.to_string(),
        node_id: node.start.node_id,
        starts: [&own[..], &[(boot + 1, number ^ 1)]].concat(),
        start: 7,
        zone: String::new(),
        address: node.address.to_string(),
        attributes: BTreeMap::new(),
        replace: false,
    };
    let registered = node.cluster_command(Command::Register(of_copy), DEADLINE).await.unwrap();
    assert!(matches!(registered, Reply::Done { .. }), "{registered:?}");
    let failure = tokio::time::timeout(DEADLINE, fleets[0].failed()).await.expect("told in time");
    let rolled_back = NodeFailure::RolledBack { given: boot, registered: boot + 1 };
    assert_eq!(failure, rolled_back);
    world.stop_all(fleets).await;
    let store = Store::open(world.disk.path().join("n0"), "n0").await.unwrap();
    let refused = Memory::open(&store).unwrap().get().refused.map(|refused| refused.failure("n0"));
    assert_eq!(refused, Some(rolled_back));
    store.close().await;
}
