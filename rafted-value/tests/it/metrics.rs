//! Every metric of a group moves when what it counts happens. Those of the log are tested where a log can fail.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rafted_value::{
    AppliedCommand, ClusterTag, GroupConfig, LeaderHook, Leading, PieceError, PieceWriter, ReplicaSpec, Role, Store,
    UntypedReplica, Value, ValueFactory, encode_command, encode_query, stats,
};

use crate::cluster::{PATIENCE, eventually};
use crate::hub::Hub;
use crate::recorder::names;
use crate::telling::recorded;

const GROUP: &str = "measured";
const LABELS: &[(&str, &str)] = &[("group", GROUP)];
/// Above what is called slow.
const LONG: Duration = Duration::from_millis(250);
/// Some of these are more than a hook's queue takes.
const HEAVY_BYTES: usize = 1 << 20;

static IS_UNWRITABLE: AtomicBool = AtomicBool::new(false);

rafted_value::messages! {
    #[derive(Default)]
    pub struct Older { done: u64 }
    #[derive(Default)]
    pub struct Newer { done: u64 }
    pub enum Act { Add, Panic, TakeLong, UpsetHook, HangHook, Weigh(Vec<u8>) }
}

impl Value for Older {
    type Command = ();
    type Reply = ();
    type Query = ();
    type Answer = u64;
    fn command(&mut self, (): ()) {}
    fn query(&self, (): ()) -> u64 {
        self.done
    }
}

impl Value for Newer {
    const VERSION: u32 = 2;
    type Command = Act;
    type Reply = ();
    type Query = ();
    type Answer = u64;

    fn command(&mut self, act: Act) {
        match act {
            Act::Panic => panic!("as asked"),
            Act::TakeLong => std::thread::sleep(LONG),
            _ => self.done += 1,
        }
    }

    fn query(&self, (): ()) -> u64 {
        self.done
    }

    fn write_pieces(&self, pieces: &mut PieceWriter<'_>) -> Result<(), PieceError> {
        if IS_UNWRITABLE.load(Ordering::SeqCst) {
            return Err(PieceError::Failed("as asked".into()));
        }
        pieces.write(self)
    }
}

struct Hook;

impl LeaderHook<Newer> for Hook {
    async fn command_applied(&self, _: &Leading<Newer>, applied: &AppliedCommand<Newer>) {
        match applied.command {
            Act::UpsetHook => panic!("as asked"),
            Act::HangHook => std::future::pending().await,
            _ => {}
        }
    }
}

async fn start(store: &Store, hub: &Hub, node: &str, factory: ValueFactory) -> UntypedReplica {
    let replica = store.create_replica(GROUP, 0, Vec::new()).await.unwrap();
    let (cluster, config) = (ClusterTag::default(), GroupConfig::default());
    let spec = ReplicaSpec { group: GROUP.into(), incarnation: 0, replica, cluster, config, is_alone: false };
    let started = UntypedReplica::start(store, spec, factory, hub.transport(node)).await.unwrap();
    hub.attach(node, started.clone());
    started
}

fn member(name: &str) -> rafted_value::Member {
    rafted_value::Member { name: name.into(), node: 1, zone: String::new(), decided_at: 0, addresses: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_a_group_moves() {
    let recorded = recorded();
    let number = |name| recorded.number(name, LABELS);
    let (hub, store, other) = (Hub::default(), Store::memory("n1"), Store::memory("n2"));
    let leader = start(&store, &hub, "n1", ValueFactory::with_hook::<Newer>(None, Hook)).await;
    leader.initialize([(leader.spec().replica, member("n1"))].into()).await.unwrap();
    eventually("it leads", || leader.status().role == Role::Leader).await;
    let act = |act: Act| leader.propose(encode_command::<Newer>(&act, None, 0).unwrap(), PATIENCE);
    act(Act::Add).await.unwrap();
    act(Act::Panic).await.unwrap_err();
    act(Act::TakeLong).await.unwrap();
    act(Act::UpsetHook).await.unwrap();
    act(Act::HangHook).await.unwrap();
    for _ in 0..20 {
        act(Act::Weigh(vec![0; HEAVY_BYTES - 64])).await.unwrap();
    }
    let query = encode_query::<Newer>(&()).unwrap();
    leader.read(query.clone(), PATIENCE).await.unwrap();
    leader.read_with_staleness(query, Duration::ZERO, PATIENCE).await.unwrap();
    leader.snapshot().await;
    eventually("a snapshot", || leader.status().snapshot.is_some()).await;
    act(Act::Add).await.unwrap();
    IS_UNWRITABLE.store(true, Ordering::SeqCst);
    leader.snapshot().await;
    // Of the older program, it cannot read what the leader has.
    let learner = start(&other, &hub, "n2", ValueFactory::of::<Older>(None)).await;
    let position = leader.status().members.position;
    leader.add_learner(learner.spec().replica, member("n2"), position).await.unwrap();
    for name in names().into_iter().filter(|name| !name.starts_with("rafted_value_log_")) {
        eventually(name, || number(name) > 0).await;
    }
    assert_eq!(number(stats::FAILED_COMMANDS), 1);
    assert_eq!(number(stats::FAILED_HOOK_CALLS), 1);
    assert_eq!(number(stats::DROPPED_HOOK_CALLS), leader.dropped_hook_calls());
    learner.shutdown().await;
    leader.shutdown().await;
}

#[test]
fn the_readme_names_every_metric() {
    let readme = include_str!("../../README.md");
    let names = names();
    assert_eq!(names.len(), 17);
    for name in names {
        assert!(readme.contains(&format!("`{name}`")), "{name}");
    }
}
