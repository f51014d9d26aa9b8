//! Nodes that find their cluster by a file, by DNS, or late.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft_fleet::{Fleet, FleetBuilder, FleetError, SeedFile, SeedList};
use simple_dns::rdata::{A, RData, SRV};
use simple_dns::{CLASS, Name, Packet, QTYPE, ResourceRecord, TYPE};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::harness::{World, eventually, refused, shutdown_all, within};

/// A node that only joins.
fn joiner(world: &World, node: usize) -> FleetBuilder {
    let name = world.name(node);
    Fleet::builder(&name).listen(world.address(node)).identity(world.identity(&name)).in_memory()
}

/// Has not come to its cluster after several tries.
async fn stays_alone(fleet: &Fleet) {
    let early = tokio::time::timeout(Duration::from_millis(1_500), fleet.ready()).await;
    assert!(early.is_err(), "{early:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_seeds_are_dead_keeps_trying_and_joins_when_they_come() {
    let world = World::new(2, 3);
    let early = joiner(&world, 2).seeds(vec![world.address(0), world.address(1)]).start().await.unwrap();
    stays_alone(&early).await;
    let mut fleets = world.start_all(0..2).await;
    within("joined", early.ready()).await.unwrap();
    fleets.push(early);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_seeds_that_is_edited_brings_a_waiting_node_to_its_cluster() {
    let world = World::new(2, 4);
    let mut fleets = world.start_all(0..2).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seeds");
    let waiting = joiner(&world, 2).discovery(SeedFile::new(&path)).start().await.unwrap();
    stays_alone(&waiting).await;
    std::fs::write(&path, format!("# nobody is there\n{}\n", world.address(3))).unwrap();
    stays_alone(&waiting).await;
    std::fs::write(
        &path,
        format!("this line is broken\n{}\nlocalhost:{}\n", world.address(3), world.address(1).port()),
    )
    .unwrap();
    within("joined", waiting.ready()).await.unwrap();
    fleets.push(waiting);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_know_a_service_in_dns_make_one_cluster_and_follow_it() {
    let world = World::new(3, 4);
    let dns = NameServer::start().await;
    dns.set(vec![world.address(3)]);
    let node = |node| {
        let list = SeedList::new(["_fleet._udp.corp".parse().unwrap()]).with_name_servers(vec![dns.address]);
        world.builder(node).seeds(Vec::new()).discovery(list).bootstrap_node("n0")
    };
    let mut fleets = Vec::new();
    for at in 0..3 {
        fleets.push(node(at).start().await.unwrap());
    }
    stays_alone(&fleets[1]).await;
    dns.set((0..3).map(|at| world.address(at)).collect());
    for fleet in &fleets {
        within("ready", fleet.ready()).await.unwrap();
    }
    eventually("all nodes", || (fleets[2].nodes().len() == 3).then_some(())).await;
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_makes_the_cluster_must_be_named_where_no_seed_is_the_first() {
    let world = World::new(1, 1);
    let file = || SeedFile::new("nowhere");
    let error = refused(world.builder(0).seeds(Vec::new()).discovery(file())).await;
    assert!(matches!(&error, FleetError::Setting(text) if text.contains("`bootstrap_node`")), "{error}");
    let named = world.builder(0).seeds(Vec::new()).discovery(file()).bootstrap_node("n0").start().await.unwrap();
    within("ready", named.ready()).await.unwrap();
    shutdown_all(vec![named]).await;
    let first = world.builder(0).discovery(file()).start().await.unwrap();
    within("ready", first.ready()).await.unwrap();
    shutdown_all(vec![first]).await;
}

/// Tells the nodes of the service `_fleet._udp.corp`.
struct NameServer {
    address: SocketAddr,
    nodes: Arc<Mutex<Vec<SocketAddr>>>,
    _task: JoinSet<()>,
}

impl NameServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, nodes) = (socket.local_addr().unwrap(), Arc::<Mutex<Vec<SocketAddr>>>::default());
        let (mut task, known) = (JoinSet::new(), nodes.clone());
        task.spawn(async move {
            let mut bytes = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
                let reply = answer(&bytes[..length], &known.lock().unwrap());
                let _ = socket.send_to(&reply, from).await;
            }
        });
        Self { address, nodes, _task: task }
    }

    fn set(&self, nodes: Vec<SocketAddr>) {
        *self.nodes.lock().unwrap() = nodes;
    }
}

fn answer(query: &[u8], nodes: &[SocketAddr]) -> Vec<u8> {
    let mut packet = Packet::parse(query).unwrap().into_reply();
    let asked = &packet.questions[0];
    let record = |rdata| ResourceRecord::new(asked.qname.clone(), CLASS::IN, 0, rdata);
    let target = Name::new("here.corp").unwrap();
    let answers = match asked.qtype {
        QTYPE::TYPE(TYPE::SRV) => {
            let services =
                nodes.iter().map(|node| SRV { priority: 0, weight: 0, port: node.port(), target: target.clone() });
            services.map(|service| record(RData::SRV(service))).collect()
        }
        QTYPE::TYPE(TYPE::A) => vec![record(RData::A(A { address: Ipv4Addr::LOCALHOST.into() }))],
        _ => Vec::new(),
    };
    packet.answers = answers;
    packet.build_bytes_vec_compressed().unwrap()
}
