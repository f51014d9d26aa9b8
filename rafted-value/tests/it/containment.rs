//! What user code may do without harming anything else: panic anywhere, and take long.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rafted_value::{
    Clock, ClusterTag, CommandError, GroupConfig, MAX_QUERY_BYTES, NotHappened, PieceError, PieceWriter, QueryError,
    ReplicaSpec, Role, SystemClock, UntypedReplica, Value, ValueFactory, decode_answer, decode_reply, encode_command,
    encode_query,
};

use crate::cluster::{Cluster, GROUP, PATIENCE, eventually};
use crate::telling::{listen, recorded, was_heard};

const THREE: [&str; 3] = ["n1", "n2", "n3"];

/// How often a value has panicked when it was cloned, and when it was written. Neither has another way to its test, and
/// only one test makes values that do.
static PANICS_IN_CLONE: AtomicU64 = AtomicU64::new(0);
static PANICS_IN_WRITE: AtomicU64 = AtomicU64::new(0);
/// Commands that hold on end now.
static RELEASED: AtomicBool = AtomicBool::new(false);

rafted_value::messages! {
    pub enum Command { Add, Panic, PanicInDrop, PanicIn(Option<Snapshotting>), Block(u64), HoldOn }
    /// Where a value panics from now on.
    pub enum Snapshotting { Clone, Write }
    pub enum Query { Count, Panic }
}

#[derive(Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Rude {
    count: u64,
    panics_in: Option<Snapshotting>,
}

impl Clone for Rude {
    fn clone(&self) -> Self {
        if self.panics_in == Some(Snapshotting::Clone) {
            PANICS_IN_CLONE.fetch_add(1, Ordering::SeqCst);
            panic!("asked to panic in clone");
        }
        Self { count: self.count, panics_in: self.panics_in.clone() }
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        // The values of tests in this process are dropped at all times: only one that is marked panics.
        assert!(self.count < MARKED || std::thread::panicking(), "asked to panic in drop");
    }
}

const MARKED: u64 = 1 << 40;

impl Value for Rude {
    type Command = Command;
    type Reply = u64;
    type Query = Query;
    type Answer = u64;

    fn command(&mut self, command: Command) -> u64 {
        match command {
            Command::Add => self.count += 1,
            Command::Panic => panic!("as asked"),
            Command::PanicInDrop => drop(Rude { count: MARKED, panics_in: None }),
            Command::PanicIn(panics_in) => self.panics_in = panics_in,
            Command::HoldOn => {
                let since = Instant::now();
                while !RELEASED.load(Ordering::SeqCst) && since.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Command::Block(millis) => std::thread::sleep(Duration::from_millis(millis)),
        }
        self.count
    }

    fn query(&self, query: Query) -> u64 {
        match query {
            Query::Count => self.count,
            Query::Panic => panic!("as asked"),
        }
    }

    fn write_pieces(&self, pieces: &mut PieceWriter<'_>) -> Result<(), PieceError> {
        if self.panics_in == Some(Snapshotting::Write) {
            PANICS_IN_WRITE.fetch_add(1, Ordering::SeqCst);
            panic!("asked to panic in write_pieces");
        }
        pieces.write(self)
    }
}

/// Another group on a node's storage, of one member.
async fn lone(cluster: &Cluster, node: &str, group: &str) -> UntypedReplica {
    let store = &cluster.nodes[node].store;
    let replica = store.create_replica(group, 0, Vec::new()).await.unwrap();
    let spec = ReplicaSpec {
        group: group.into(),
        incarnation: 0,
        replica,
        cluster: ClusterTag::default(),
        config: GroupConfig::default(),
        is_alone: false,
    };
    let factory = ValueFactory::of::<Rude>(None);
    let lone = UntypedReplica::start(store, spec, factory, cluster.hub.transport(node)).await.unwrap();
    lone.initialize([(replica, cluster.member(node))].into()).await.unwrap();
    eventually("the lone member leads", || lone.status().role == Role::Leader).await;
    lone
}

async fn send(cluster: &Cluster, command: Command) -> Result<u64, CommandError> {
    let open = cluster.session.open(SystemClock::default().wall(), PATIENCE).await;
    let bytes = encode_command::<Rude>(&command, Some(open.id()), 0).unwrap();
    let reply = cluster.client("n1").command(GROUP, bytes, PATIENCE).await?;
    Ok(decode_reply::<Rude>(&reply).unwrap())
}

async fn count(cluster: &Cluster, at: &str) -> u64 {
    let query = encode_query::<Rude>(&Query::Count).unwrap();
    decode_answer::<Rude>(&cluster.nodes[at].replica.read_any(query).await.unwrap()).unwrap()
}

async fn all_live(cluster: &Cluster, expected: u64) {
    for name in THREE {
        let deadline = Instant::now() + PATIENCE;
        while count(cluster, name).await != expected {
            assert!(Instant::now() < deadline, "{name} has {} of {expected}", count(cluster, name).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_ne!(cluster.nodes[name].replica.status().role, Role::Stopped, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_in_commands_queries_and_destructors_are_answered_on_every_replica() {
    let cluster = Cluster::durable_as(&THREE, GroupConfig::default(), ValueFactory::of::<Rude>(None)).await;
    send(&cluster, Command::Add).await.unwrap();
    for command in [Command::Panic, Command::PanicInDrop] {
        let error = send(&cluster, command).await.unwrap_err();
        assert!(matches!(&error, CommandError::Failed(message) if message.contains("as")), "{error}");
    }
    let query = encode_query::<Rude>(&Query::Panic).unwrap();
    let error = cluster.client("n2").query(GROUP, query.clone(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, QueryError::Failed(_)), "{error}");
    for name in THREE {
        let replica = &cluster.nodes[name].replica;
        assert!(matches!(replica.read_any(query.clone()).await, Err(QueryError::Failed(_))));
        let bounded = replica.read_with_staleness(query.clone(), Duration::ZERO, PATIENCE).await;
        assert!(matches!(bounded, Err(QueryError::Failed(_))));
    }
    assert_eq!(send(&cluster, Command::Add).await.unwrap(), 2);
    all_live(&cluster, 2).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_panics_when_it_is_copied_for_a_snapshot_gets_none_and_lives() {
    gets_no_snapshot_and_lives(Snapshotting::Clone, &PANICS_IN_CLONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_panics_when_it_is_written_for_a_snapshot_gets_none_and_lives() {
    gets_no_snapshot_and_lives(Snapshotting::Write, &PANICS_IN_WRITE).await;
}

async fn gets_no_snapshot_and_lives(panics_in: Snapshotting, panics: &AtomicU64) {
    let config = GroupConfig::default().with_snapshot_after_entries(10).unwrap();
    let mut cluster = Cluster::durable_as(&THREE, config, ValueFactory::of::<Rude>(None)).await;
    send(&cluster, Command::PanicIn(Some(panics_in))).await.unwrap();
    for n in 1..=60 {
        assert_eq!(send(&cluster, Command::Add).await.unwrap(), n);
    }
    all_live(&cluster, 60).await;
    for name in THREE {
        assert_eq!(cluster.nodes[name].replica.status().snapshot, None, "{name}");
    }
    eventually("it has panicked", || panics.load(Ordering::SeqCst) > 0).await;
    send(&cluster, Command::PanicIn(None)).await.unwrap();
    // Nothing was lost with the snapshots: the log has it all.
    for name in THREE {
        cluster.stop(name).await;
    }
    for name in THREE {
        cluster.start_as(name, ValueFactory::of::<Rude>(None)).await.unwrap();
    }
    assert_eq!(send(&cluster, Command::Add).await.unwrap(), 61);
    all_live(&cluster, 61).await;
    let snapshots = || THREE.iter().all(|name| cluster.nodes[*name].replica.status().snapshot.is_some());
    send(&cluster, Command::Add).await.unwrap();
    eventually("snapshots are taken again", snapshots).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_command_delays_neither_other_groups_nor_the_heartbeats_of_its_own() {
    let cluster = Cluster::durable_as(&THREE, GroupConfig::default(), ValueFactory::of::<Rude>(None)).await;
    send(&cluster, Command::Add).await.unwrap();
    let leader = cluster.wait_leader().await;
    let before = cluster.nodes[&leader].replica.status();
    let other = lone(&cluster, &leader, "other").await;
    // Five of the longest election timeouts.
    let blocked = Duration::from_millis(1_500);
    let started = Instant::now();
    let long = send(&cluster, Command::Block(1_500));
    let others = async {
        let mut done = 0;
        while started.elapsed() < blocked {
            let command = encode_command::<Rude>(&Command::Add, None, 0).unwrap();
            other.propose(command, PATIENCE).await.unwrap();
            done += 1;
        }
        done
    };
    let (outcome, done) = tokio::join!(long, others);
    outcome.unwrap();
    assert!(started.elapsed() >= blocked);
    assert!(done >= 20, "the other group ran {done} commands meanwhile");
    let after = cluster.nodes[&leader].replica.status();
    assert_eq!((after.term, after.role), (before.term, Role::Leader), "no election");
    other.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_takes_long_is_reported_while_it_runs_with_its_groups_name() {
    listen();
    let recorded = recorded();
    let slow_applies =
        |group: &'static [(&'static str, &'static str)]| recorded.number("rafted_value_slow_applies_total", group);
    let cluster = Cluster::durable_as(&["n1"], GroupConfig::default(), ValueFactory::of::<Rude>(None)).await;
    let slow = lone(&cluster, "n1", "slow").await;
    let quick = lone(&cluster, "n1", "quick").await;
    let add = encode_command::<Rude>(&Command::Add, None, 0).unwrap();
    quick.propose(add, PATIENCE).await.unwrap();
    let command = encode_command::<Rude>(&Command::HoldOn, None, 0).unwrap();
    let reported = eventually("it is reported", || {
        slow_applies(&[("group", "slow")]) > 0 && was_heard(&["warning", "group=slow", "long"])
    });
    tokio::select! {
        _ = slow.propose(command, PATIENCE) => panic!("it ended"),
        () = reported => RELEASED.store(true, Ordering::SeqCst),
    }
    assert!(!was_heard(&["group=quick", "long"]), "the group that is quick was reported");
    assert_eq!(slow_applies(&[("group", "quick")]), 0);
    slow.shutdown().await;
    quick.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_too_large_is_refused_before_it_is_sent() {
    let config = GroupConfig::default().with_max_command_bytes(64).unwrap();
    let cluster = Cluster::durable_as(&THREE, config, ValueFactory::of::<Rude>(None)).await;
    send(&cluster, Command::Add).await.unwrap();
    let (leader, last) =
        (cluster.wait_leader().await, |name: &str| cluster.nodes[name].replica.status().last_log_index);
    let follower = THREE.iter().find(|name| **name != leader).unwrap();
    let sent = cluster.hub.sent(follower, &leader);
    let before = last(&leader);
    let long = bytes::Bytes::from(vec![0; 1_000]);
    let error = cluster.client(follower).command(GROUP, long, PATIENCE).await.unwrap_err();
    let CommandError::NotHappened(NotHappened::TooLarge { max_bytes: 64, .. }) = &error else { panic!("{error}") };
    assert_eq!(cluster.hub.sent(follower, &leader), sent, "it did not travel");
    assert_eq!(last(&leader), before, "it was not logged");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_is_too_large_is_refused_before_it_is_sent_and_by_every_replica() {
    let cluster = Cluster::durable_as(&THREE, GroupConfig::default(), ValueFactory::of::<Rude>(None)).await;
    let leader = cluster.wait_leader().await;
    let follower = THREE.iter().find(|name| **name != leader).unwrap();
    let long = bytes::Bytes::from(vec![0; MAX_QUERY_BYTES + 1]);
    let too_large = NotHappened::TooLarge { bytes: MAX_QUERY_BYTES + 1, max_bytes: MAX_QUERY_BYTES };
    let client = cluster.client(follower);
    let refused = client.query(GROUP, long.clone(), PATIENCE).await;
    assert_eq!(refused, Err(too_large.clone().into()));
    let refused = client.query_with_staleness(GROUP, long.clone(), PATIENCE, PATIENCE).await;
    assert_eq!(refused, Err(too_large.clone().into()));
    // Of those that ask in other ways, too.
    let replica = &cluster.nodes[&leader].replica;
    assert_eq!(replica.read(long.clone(), PATIENCE).await, Err(QueryError::from(too_large.clone()).into()));
    assert_eq!(replica.read_any(long.clone()).await, Err(too_large.clone().into()));
    assert_eq!(replica.read_with_staleness(long, PATIENCE, PATIENCE).await, Err(too_large.into()));
    // One that is just short enough reaches the value, which does not know it.
    let short = bytes::Bytes::from(vec![0xFF; MAX_QUERY_BYTES]);
    assert!(matches!(client.query(GROUP, short, PATIENCE).await, Err(QueryError::Failed(_))));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_without_an_id_that_takes_long_has_all_of_its_callers_time() {
    let cluster = Cluster::durable_as(&THREE, GroupConfig::default(), ValueFactory::of::<Rude>(None)).await;
    let leader = cluster.wait_leader().await;
    for at in THREE {
        // Longer than the first attempt of one that can be sent again.
        let command = encode_command::<Rude>(&Command::Block(1_300), None, 0).unwrap();
        let outcome = cluster.client(at).command(GROUP, command, PATIENCE).await;
        assert!(outcome.is_ok(), "by {at}, led by {leader}: {outcome:?}");
    }
    cluster.shutdown().await;
}
