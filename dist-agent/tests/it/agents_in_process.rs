//! Agents as a library: three nodes in one process, without HTTP.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use batched_comm::Identity;
use dist_agent::{
    Agent, AgentError, AgentId, Agents, AgentsConfig, IdempotencyKey, OnTick, Outcome, Registry, messages,
};
use raft_fleet::Fleet;
use raft_kv::{KeyedTypes, Kv};

use crate::support::free_udp;

messages! {
    /// Lines, until nobody has spoken for a while.
    pub struct Room { lines: Vec<String>, bells: u64 }
    pub enum RoomCommand { Say(String), SayAndStay { line: String, ticks: u64 }, Ring { ticks: u64 }, Break }
    pub enum RoomQuery { Since(u64), Bells }
    pub enum RoomAnswer { Lines(Vec<String>), Bells(u64) }
}

impl Agent for Room {
    const MODULE: &'static str = "room";
    type Command = RoomCommand;
    type Reply = u64;
    type Query = RoomQuery;
    type Answer = RoomAnswer;

    fn handle_command(_: &AgentId, state: Option<&Self>, command: RoomCommand) -> Outcome<Self, u64> {
        let mut room = state.cloned().unwrap_or(Room { lines: Vec::new(), bells: 0 });
        let on_tick = match command {
            RoomCommand::Say(line) => {
                room.lines.push(line);
                OnTick::Keep
            }
            RoomCommand::SayAndStay { line, ticks } => {
                room.lines.push(line);
                OnTick::Deactivate { ticks }
            }
            RoomCommand::Ring { ticks } => OnTick::Timeout { ticks },
            RoomCommand::Break => panic!("broken"),
        };
        let count = room.lines.len() as u64;
        Outcome::set(room, count).on_tick(on_tick)
    }

    fn handle_query(&self, _: &AgentId, query: RoomQuery) -> RoomAnswer {
        match query {
            RoomQuery::Since(first) => RoomAnswer::Lines(self.lines[(first as usize).min(self.lines.len())..].to_vec()),
            RoomQuery::Bells => RoomAnswer::Bells(self.bells),
        }
    }

    fn handle_timeout(&self, _: &AgentId) -> Outcome<Self, ()> {
        Outcome::set(Room { bells: self.bells + 1, ..self.clone() }, ()).on_tick(OnTick::Timeout { ticks: 1 })
    }
}

struct Node {
    agents: Agents,
    kv: Kv,
}

impl Node {
    async fn stop(self) {
        self.agents.shutdown().await;
        self.kv.shutdown().await;
        self.kv.fleet().shutdown().await;
    }
}

async fn cluster(count: usize) -> Vec<Node> {
    let authority = Identity::in_memory_ca().unwrap();
    let addresses: Vec<SocketAddr> = (0..count).map(|_| free_udp()).collect();
    assert!(addresses.iter().all(|address| address.ip() == Ipv4Addr::LOCALHOST));
    let mut starting = Vec::new();
    for (at, address) in addresses.iter().enumerate() {
        let (name, seeds) = (format!("n{}", at + 1), addresses.clone());
        let builder = Fleet::builder(&name).listen(*address).in_memory().identity(authority.issue(&name).unwrap());
        let builder = builder.seeds(seeds).bootstrap_expect(count as u32);
        let mut registry = Registry::new();
        registry.register::<Room>().unwrap();
        let registry = Arc::new(registry);
        let (builder, types) = Agents::register(builder, KeyedTypes::new(), registry.clone()).unwrap();
        starting.push(tokio::spawn(async move {
            let fleet = builder.start().await.unwrap();
            fleet.ready().await.unwrap();
            let kv = Kv::start(fleet, types);
            let config = AgentsConfig::default().with_tick_interval(Duration::from_millis(100)).unwrap();
            let agents = Agents::start(kv.clone(), registry, config.with_shards(2).unwrap()).await;
            Node { agents, kv }
        }));
    }
    let mut nodes = Vec::new();
    for node in starting {
        nodes.push(tokio::time::timeout(Duration::from_secs(40), node).await.unwrap().unwrap());
    }
    nodes
}

fn lines(answer: RoomAnswer) -> Vec<String> {
    match answer {
        RoomAnswer::Lines(lines) => lines,
        other => panic!("{other:?}"),
    }
}

fn bells(answer: RoomAnswer) -> u64 {
    match answer {
        RoomAnswer::Bells(bells) => bells,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_commanded_read_woken_and_ended_from_any_node() {
    let nodes = cluster(3).await;
    let room = |at: usize, key: &str| nodes[at].agents.of::<Room>("acme", key).unwrap();
    let say = |line: &str| RoomCommand::Say(line.to_owned());

    let unknown = room(0, "lobby").command(say("hi")).await.unwrap_err();
    assert!(matches!(unknown, AgentError::QuotaNotFound { .. }), "{unknown:?}");
    nodes[1].agents.quotas().put("acme", Some(5), Duration::from_secs(5)).await.unwrap();
    let absent = room(0, "lobby").query(RoomQuery::Since(0)).await.unwrap_err();
    assert!(matches!(absent, AgentError::AgentNotFound { .. }), "{absent:?}");
    assert_eq!(room(0, "lobby").command(say("one")).await.unwrap(), 1);
    assert_eq!(room(1, "lobby").command(say("two")).await.unwrap(), 2);
    assert_eq!(lines(room(2, "lobby").query(RoomQuery::Since(1)).await.unwrap()), ["two"]);

    let broken = room(2, "lobby").command(RoomCommand::Break).await.unwrap_err();
    assert!(matches!(&broken, AgentError::AgentFailed { reason } if reason.contains("broken")), "{broken:?}");
    assert_eq!(lines(room(0, "lobby").query(RoomQuery::Since(0)).await.unwrap()), ["one", "two"]);

    let key = IdempotencyKey::new("test", 7).unwrap();
    for at in 0..3 {
        assert_eq!(room(at, "once").command(say("hi")).idempotency(key.clone()).await.unwrap(), 1);
    }

    room(0, "tower").command(RoomCommand::Ring { ticks: 2 }).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while bells(room(1, "tower").query(RoomQuery::Bells).await.unwrap()) < 3 {
        assert!(tokio::time::Instant::now() < deadline, "the bells do not ring");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    room(0, "short").command(RoomCommand::SayAndStay { line: "bye".into(), ticks: 3 }).await.unwrap();
    while room(1, "short").query(RoomQuery::Since(0)).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline + Duration::from_secs(10), "the room stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let page = nodes[2].agents.list("acme", Some("room"), None, 100, Duration::from_secs(5)).await.unwrap();
    assert_eq!(page.agents.iter().map(AgentId::key).collect::<Vec<_>>(), ["lobby", "once", "tower"]);
    assert_eq!(page.next, None);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_place_of_a_limit_is_given_when_nodes_hold_places_they_do_not_use() {
    let nodes = cluster(1).await;
    let agents = &nodes[0].agents;
    agents.quotas().put("acme", Some(40), Duration::from_secs(5)).await.unwrap();
    let say = || RoomCommand::Say("hi".into());
    for number in 0..40 {
        let room = agents.of::<Room>("acme", &format!("r{number}")).unwrap();
        let said = room.command(say()).timeout(Duration::from_secs(20)).await;
        assert_eq!(said, Ok(1), "room {number}");
    }
    let refused = agents.of::<Room>("acme", "one-more").unwrap().command(say()).await.unwrap_err();
    assert!(matches!(refused, AgentError::QuotaLimitReached { limit: 40, used: 40, .. }), "{refused:?}");
    for node in nodes {
        node.stop().await;
    }
}
