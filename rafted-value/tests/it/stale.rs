//! No read is stale, whoever is cut off and whoever restarts: a leader that was cut off is asked again and again
//! while a voter, which may have promised it something, restarts and helps another one to lead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rafted_value::{GroupConfig, Role, UntypedReplica, decode_answer, encode_query};

use crate::cluster::{Cluster, GROUP, Journal, PATIENCE, Query, eventually};
use crate::hub::Hub;

const THREE: [&str; 3] = ["n1", "n2", "n3"];

/// How a reader gets at the value of the replica that it asks.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// As the library does.
    ReadIndex,
    /// Any member's own value, by a proof that is younger than the question.
    NoStaleness,
    /// What must be caught: whoever takes itself for the leader answers from memory.
    LeadersMemory,
}

impl Way {
    /// The number of additions that the replica answers with, if it answers.
    async fn read(self, replica: &UntypedReplica) -> Option<usize> {
        match self {
            Self::ReadIndex => {
                let query = encode_query::<Journal>(&Query::All).unwrap();
                let answer = replica.read(query, Duration::from_millis(200)).await.ok()?;
                Some(decode_answer::<Journal>(&answer).unwrap().len())
            }
            Self::NoStaleness => {
                let query = encode_query::<Journal>(&Query::All).unwrap();
                let timeout = Duration::from_millis(200);
                let answer = replica.read_with_staleness(query, Duration::ZERO, timeout).await.ok()?;
                Some(decode_answer::<Journal>(&answer).unwrap().len())
            }
            Self::LeadersMemory => {
                tokio::task::yield_now().await;
                let leads = replica.status().role == Role::Leader;
                leads.then(|| replica.read_local(|journal: &Journal, _| journal.added.len()).unwrap())
            }
        }
    }
}

/// When the voter restarts that follows the old leader.
#[derive(Debug, Clone, Copy)]
enum Restart {
    BeforeTheCut,
    BetweenCutAndWrite,
    AfterTheWrite,
}

/// Reads at every replica, over and over; counts answers, and those that lack what was acknowledged before they began.
struct Readers {
    acknowledged: Arc<AtomicUsize>,
    answers: Arc<AtomicUsize>,
    stale: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<()>,
}

impl Readers {
    fn start(way: Way, hub: &Hub, acknowledged: usize) -> Self {
        let mut readers = Self {
            acknowledged: Arc::new(AtomicUsize::new(acknowledged)),
            answers: Arc::default(),
            stale: Arc::default(),
            ended: Arc::default(),
            tasks: tokio::task::JoinSet::new(),
        };
        THREE.iter().for_each(|name| readers.add(way, hub.clone(), name));
        readers
    }

    fn add(&mut self, way: Way, hub: Hub, name: &'static str) {
        let (acknowledged, answers) = (self.acknowledged.clone(), self.answers.clone());
        let (stale, ended) = (self.stale.clone(), self.ended.clone());
        self.tasks.spawn(async move {
            while !ended.load(Ordering::SeqCst) {
                let before = acknowledged.load(Ordering::SeqCst);
                let read = match hub.find(name, GROUP) {
                    Some(replica) => way.read(&replica).await,
                    None => None,
                };
                if let Some(read) = read {
                    answers.fetch_add(1, Ordering::SeqCst);
                    stale.fetch_add(usize::from(read < before), Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    async fn end(mut self) -> usize {
        self.ended.store(true, Ordering::SeqCst);
        while self.tasks.join_next().await.is_some() {}
        self.stale.load(Ordering::SeqCst)
    }
}

/// Restarts one voter around the moment in which another one takes over; returns the stale answers.
async fn round(cluster: &mut Cluster, way: Way, restart: Restart, count: &mut usize) -> usize {
    let old = cluster.wait_leader().await;
    let others: Vec<&str> = THREE.into_iter().filter(|name| *name != old).collect();
    let (restarted, next) = (others[*count % 2], others[(*count + 1) % 2]);
    let readers = Readers::start(way, &cluster.hub, *count);
    let answers = readers.answers.clone();
    eventually("a read is answered", || answers.load(Ordering::SeqCst) > 0).await;
    if let Restart::BeforeTheCut = restart {
        again(cluster, restarted).await;
    }
    cluster.hub.isolate(&old, &THREE);
    if let Restart::BetweenCutAndWrite = restart {
        again(cluster, restarted).await;
    }
    cluster.nodes[next].replica.elect().await;
    for _ in 0..3 {
        cluster.add(next, *count as i64).await.unwrap();
        *count += 1;
        readers.acknowledged.store(*count, Ordering::SeqCst);
    }
    if let Restart::AfterTheWrite = restart {
        again(cluster, restarted).await;
    }
    // The old leader is asked by whoever comes, also while it is connected again.
    let asked = answers.load(Ordering::SeqCst);
    eventually("another read is answered", || answers.load(Ordering::SeqCst) > asked).await;
    cluster.hub.heal();
    cluster.add(&old, *count as i64).await.unwrap();
    *count += 1;
    readers.acknowledged.store(*count, Ordering::SeqCst);
    let stale = readers.end().await;
    for name in THREE {
        assert_eq!(cluster.all(name).await.unwrap().len(), *count, "asked at {name}, by whatever leader");
    }
    stale
}

async fn again(cluster: &mut Cluster, name: &str) {
    cluster.stop(name).await;
    cluster.start(name).await;
}

async fn rounds(way: Way, number: usize) -> usize {
    // Long terms of office: an old leader goes on for a while before it steps down by itself.
    let (heartbeat, shortest, longest) =
        (Duration::from_millis(50), Duration::from_millis(400), Duration::from_millis(800));
    let config = GroupConfig::default().with_timing(heartbeat, shortest, longest).unwrap();
    let mut cluster = Cluster::durable(&THREE, config).await;
    let started = std::time::Instant::now();
    let (mut stale, mut count) = (0, 0);
    for number in 0..number {
        let moments = [Restart::BetweenCutAndWrite, Restart::BeforeTheCut, Restart::AfterTheWrite];
        stale += round(&mut cluster, way, moments[number % moments.len()], &mut count).await;
        assert!(started.elapsed() < PATIENCE * 6, "round {number}");
    }
    cluster.shutdown().await;
    stale
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_stale_when_a_voter_restarts_between_the_cut_and_the_write() {
    assert_eq!(rounds(Way::ReadIndex, 9).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_of_a_members_own_value_without_staleness_is_stale() {
    assert_eq!(rounds(Way::NoStaleness, 6).await, 0);
}

/// That the rounds above would see a stale read: a leader that answers from memory is caught.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_answers_from_memory_is_caught_by_the_same_rounds() {
    assert!(rounds(Way::LeadersMemory, 3).await > 0);
}
