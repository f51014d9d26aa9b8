//! A command runs once, whatever happens between it and its repetition; and no wrong clock breaks that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rafted_value::{
    Clock, CommandError, GroupConfig, LogTime, NotHappened, OpenCommand, RECORD_MARGIN, SystemClock, UnknownOutcome,
    encode_command,
};

use crate::cluster::{Cluster, Command, GROUP, Journal, PATIENCE, eventually};

const THREE: [&str; 3] = ["n1", "n2", "n3"];
const HOURS: Duration = Duration::from_secs(5 * 3_600);
/// What the tests below send again and again.
const MARK: i64 = -7;

fn wall() -> LogTime {
    SystemClock::default().wall()
}

fn earlier(time: LogTime, by: Duration) -> LogTime {
    LogTime::from_millis(time.as_millis().saturating_sub(u64::try_from(by.as_millis()).unwrap()))
}

fn mark(open: &OpenCommand) -> Bytes {
    encode_command::<Journal>(&Command::Add(MARK), Some(open.id()), 0).unwrap()
}

async fn send(cluster: &Cluster, at: &str, command: &Bytes) -> Result<Bytes, CommandError> {
    cluster.client(at).command(GROUP, command.clone(), PATIENCE).await
}

async fn marks(cluster: &Cluster) -> usize {
    cluster.all("n1").await.unwrap().iter().filter(|&&n| n == MARK).count()
}

fn small_snapshots() -> GroupConfig {
    GroupConfig::default().with_snapshot_after_entries(50).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repetition_after_commands_leader_changes_restarts_and_snapshots_runs_once() {
    let mut cluster = Cluster::durable(&THREE, small_snapshots()).await;
    let open = cluster.session.open(wall(), PATIENCE * 20).await;
    let command = mark(&open);
    let first = send(&cluster, "n1", &command).await.unwrap();
    for round in 0..4 {
        for n in 0..70 {
            cluster.add(THREE[n % 3], n as i64).await.unwrap();
        }
        match round % 2 {
            0 => {
                let leader = cluster.wait_leader().await;
                let next = THREE.iter().find(|name| **name != leader).unwrap();
                cluster.lead(next).await;
            }
            _ => {
                for name in THREE {
                    cluster.stop(name).await;
                }
                for name in THREE {
                    cluster.start(name).await;
                }
            }
        }
        for name in THREE {
            assert_eq!(send(&cluster, name, &command).await.unwrap(), first, "round {round}, at {name}");
        }
    }
    assert!(cluster.nodes["n1"].replica.status().snapshot.is_some());
    assert_eq!(marks(&cluster).await, 1);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repetition_that_is_the_first_command_of_a_leader_from_a_snapshot_runs_once() {
    let mut cluster = Cluster::durable(&THREE, small_snapshots()).await;
    cluster.lead("n1").await;
    cluster.stop("n3").await;
    let open = cluster.session.open(wall(), PATIENCE * 20).await;
    let command = mark(&open);
    let first = send(&cluster, "n1", &command).await.unwrap();
    for n in 0..200 {
        cluster.add("n1", n).await.unwrap();
    }
    let purged = || cluster.nodes["n1"].replica.status().snapshot.is_some_and(|at| at.index > 100);
    eventually("a snapshot", purged).await;
    cluster.start("n3").await;
    eventually("it arrives", || cluster.local("n3").len() == 201).await;
    cluster.lead("n3").await;
    cluster.stop("n1").await;
    assert_eq!(send(&cluster, "n3", &command).await.unwrap(), first);
    cluster.start("n1").await;
    assert_eq!(marks(&cluster).await, 1);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_reach_several_leaders_at_the_same_time_run_once() {
    let cluster = Cluster::memory(&THREE).await;
    for round in 0..10 {
        let open = cluster.session.open(wall(), PATIENCE).await;
        let command = mark(&open);
        let leader = cluster.wait_leader().await;
        let copies = THREE.map(|name| send(&cluster, name, &command));
        let next = THREE.iter().find(|name| **name != leader).unwrap();
        let (replies, ()) = tokio::join!(futures_util::future::join_all(copies), cluster.lead(next));
        let first = replies[0].clone().unwrap();
        assert!(replies.iter().all(|reply| *reply.as_ref().unwrap() == first), "round {round}: {replies:?}");
        assert_eq!(marks(&cluster).await, round + 1);
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repetition_after_its_time_is_unknown_and_never_runs() {
    let cluster = Cluster::memory(&THREE).await;
    // It may be repeated for 300 ms.
    let timeout = Duration::from_millis(300);
    let open = cluster.session.open(earlier(wall(), RECORD_MARGIN), timeout).await;
    let command = mark(&open);
    send(&cluster, "n1", &command).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let error = loop {
        assert!(Instant::now() < deadline, "it never expires");
        match send(&cluster, "n2", &command).await {
            Ok(_) => cluster.add("n3", 1).await.map(drop).unwrap(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CommandError::Unknown(UnknownOutcome::Expired { .. })), "{error}");
    for name in THREE {
        assert!(send(&cluster, name, &command).await.unwrap_err().is_unknown());
    }
    assert_eq!(marks(&cluster).await, 1);
    cluster.shutdown().await;
}

/// The system's clock, some time ahead or behind.
struct Wrong {
    system: SystemClock,
    ahead: bool,
}

impl Clock for Wrong {
    fn wall(&self) -> LogTime {
        let wall = self.system.wall();
        if self.ahead { wall.saturating_add(HOURS) } else { earlier(wall, HOURS) }
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_clock_is_hours_off_neither_moves_log_time_nor_expires_commands() {
    for ahead in [true, false] {
        let clock: Arc<dyn Clock> = Arc::new(Wrong { system: SystemClock::default(), ahead });
        let cluster = Cluster::memory_with_clock(&THREE, "n2", clock).await;
        cluster.lead("n2").await;
        let open = cluster.session.open(wall(), PATIENCE).await;
        let first = send(&cluster, "n2", &mark(&open)).await.unwrap();
        for n in 0..20 {
            cluster.add("n2", n).await.unwrap();
        }
        assert_eq!(send(&cluster, "n1", &mark(&open)).await.unwrap(), first);
        let read = |_: &Journal, context: &rafted_value::Context<'_>| context.log_time();
        let log_time = cluster.nodes["n2"].replica.read_local(read).unwrap();
        let off = log_time.as_millis().abs_diff(wall().as_millis());
        assert!(off < 10_000, "ahead: {ahead}; log time is {off} ms off");
        assert_eq!(marks(&cluster).await, 1);
        cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_clock_is_hours_off_is_told_and_learns() {
    let cluster = Cluster::memory(&THREE).await;
    let session = rafted_value::ClientSession::random();
    let ahead = wall().saturating_add(HOURS);
    let open = session.open(ahead, PATIENCE).await;
    let error = send(&cluster, "n1", &mark(&open)).await.unwrap_err();
    let CommandError::NotHappened(NotHappened::TooFarAhead { .. }) = &error else { panic!("{error}") };
    assert!(error.is_retryable());
    session.learn_from(&error, ahead);
    let open = session.open(wall().saturating_add(HOURS), PATIENCE).await;
    send(&cluster, "n1", &mark(&open)).await.unwrap();

    let session = rafted_value::ClientSession::random();
    let behind = earlier(wall(), HOURS);
    let open = session.open(behind, PATIENCE).await;
    let error = send(&cluster, "n1", &mark(&open)).await.unwrap_err();
    assert!(matches!(error, CommandError::Unknown(UnknownOutcome::Expired { .. })), "{error}");
    session.learn_from(&error, behind);
    let open = session.open(earlier(wall(), HOURS), PATIENCE).await;
    send(&cluster, "n1", &mark(&open)).await.unwrap();
    assert_eq!(marks(&cluster).await, 2, "neither was the one that was refused");
    cluster.shutdown().await;
}
