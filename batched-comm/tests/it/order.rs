//! Order, at most once, and whose answer is whose, in a network that breaks in every way, by many seeds.
//!
//! Three nodes send to each other all the time: numbered messages by every way to send, and calls with tokens of
//! their own. Meanwhile links are cut, connections dropped, nodes crashed, restarted, removed and named again. The
//! [`Ledger`] knows what was sent over which connection and judges each message and each answer when it comes.
//!
//! `BATCHED_COMM_SEEDS` says which seeds: how many (`1000`), or which (`17..18`). The faults of a seed
//! are the same each time, the course of events is not: a seed that failed may have to be repeated.

mod ledger;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use batched_comm::test_net::{Link, TestNet};
use batched_comm::{
    Address, Batching, CallError, Compression, Endpoint, EndpointConfig, Identity, PeerState, SendError,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use ledger::{Ended, Lane, Ledger, Pair};

const NAMES: [&str; 3] = ["a", "b", "c"];
const DEFAULT_SEEDS: Range<u64> = 0..40;
/// Things that break in one run.
const FAULTS: u32 = 12;
/// Tasks that call from one node to another, each one call after the other.
const CALLERS: u64 = 2;
/// A call ends this long after its timeout at the latest: the timers' granularity.
const LATE: Duration = Duration::from_millis(10);
/// After everything is healed, it takes no longer until every node can call every other one.
const RECOVERY: Duration = Duration::from_secs(10);
/// Virtual time in which a run ends.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);
/// Small, so that senders have to wait.
const MAX_QUEUED_BYTES: [usize; 2] = [4 * 1024, 32 * 1024];
/// Some nodes hold batches back, so that a connection ends with messages that never left.
const MAX_WAITS: [Duration; 3] = [Duration::ZERO, Duration::ZERO, Duration::from_millis(15)];
const COMPRESSIONS: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];
/// What is sent over a slow link comes long after a new connection stands.
const SLOW: Duration = Duration::from_millis(400);
/// Larger than what is ever sent in a run, so that no mailbox drops anything.
const MAILBOX_CAPACITY: usize = 1_000_000;
const MESSAGE: u32 = 1;
const CALL: u32 = 2;

fn seeds() -> Range<u64> {
    let Ok(given) = std::env::var("BATCHED_COMM_SEEDS") else { return DEFAULT_SEEDS };
    let number = |text: &str| text.parse().expect("BATCHED_COMM_SEEDS is a number or a range like 17..18");
    match given.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => 0..number(&given),
    }
}

#[test]
fn nothing_comes_twice_or_out_of_order_and_every_answer_is_its_calls_own() {
    let ca = Identity::in_memory_ca().unwrap();
    let identities = NAMES.map(|name| ca.issue(name).unwrap());
    let mut totals = ledger::Totals::default();
    let next_seed = Mutex::new(seeds());
    let work = || {
        let mut totals = ledger::Totals::default();
        loop {
            // Others stop when one has panicked.
            let Ok(Some(seed)) = next_seed.lock().map(|mut seeds| seeds.next()) else { return totals };
            totals.add(&run_alone(seed, &identities));
        }
    };
    std::thread::scope(|scope| {
        let count = std::thread::available_parallelism().map_or(1, |count| count.get());
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            totals.add(&thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    println!("{totals:?}");
    // A test in which nothing breaks, or nothing arrives, shows nothing.
    assert!(totals.received > totals.sent / 4, "{totals:?}");
    assert!(totals.sent > totals.received, "{totals:?}");
    assert!(totals.answered > totals.calls / 4, "{totals:?}");
    if seeds().count() as u64 >= DEFAULT_SEEDS.end {
        for (outcome, count) in [("lost", totals.lost), ("not sent", totals.not_sent), ("late", totals.timeouts)] {
            assert!(count > 0, "no call was {outcome}: {totals:?}");
        }
    }
}

/// A run on a runtime of its own, in virtual time.
fn run_alone(seed: u64, identities: &[Identity; 3]) -> ledger::Totals {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let run = timeout(RUN_TIMEOUT, run(seed, identities)).await;
        run.unwrap_or_else(|_| panic!("seed {seed}: it does not end"))
    })
}

/// One run, in which everything that can be checked at a step is.
struct World {
    seed: u64,
    net: TestNet,
    identities: [Identity; 3],
    ledger: Mutex<Ledger>,
}

/// A start of a node, with its tasks.
struct Start {
    endpoint: Endpoint,
    tasks: JoinSet<()>,
}

async fn run(seed: u64, identities: &[Identity; 3]) -> ledger::Totals {
    let world =
        Arc::new(World { seed, net: TestNet::new(seed), identities: identities.clone(), ledger: Mutex::default() });
    let mut random = StdRng::seed_from_u64(seed);
    world.net.set_default_link(some_link(&mut random));
    let (mut starts, mut ghosts) = (Vec::new(), Vec::new());
    for node in 0..NAMES.len() {
        starts.push(start(&world, node, 0).await);
    }
    for step in 0..FAULTS {
        sleep(Duration::from_millis(random.random_range(5..400))).await;
        fault(&world, &mut random, &mut starts, &mut ghosts, step + 1).await;
        world.check();
    }
    world.net.heal_all();
    world.net.set_default_link(Link::default());
    everybody_reaches_everybody(&world).await;
    for start in &mut starts {
        start.endpoint.shutdown().await;
        start.tasks.shutdown().await;
    }
    world.check();
    world.ledger.lock().unwrap().totals()
}

impl World {
    fn check(&self) {
        let violations = &self.ledger.lock().unwrap().violations;
        assert!(violations.is_empty(), "seed {}: {violations:#?}", self.seed);
    }
}

fn address_of(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8 + 1], 1))
}

fn to(node: usize, mailbox: &str) -> Address {
    Address::new(&NAMES[node].parse().unwrap(), mailbox).unwrap()
}

fn others(node: usize) -> impl Iterator<Item = usize> {
    (0..NAMES.len()).filter(move |other| *other != node)
}

fn some_link(random: &mut StdRng) -> Link {
    let ms = Duration::from_millis;
    let link = match random.random_range(0..3) {
        0 => Link::default(),
        1 => Link::with_delay(ms(1)..ms(random.random_range(5..60))),
        _ => Link::with_delay(ms(1)..ms(10)).with_loss(random.random_range(0.0..0.15)),
    };
    link.with_duplicates(if random.random_bool(0.3) { 0.05 } else { 0.0 })
}

/// Breaks something, or mends it.
async fn fault(
    world: &Arc<World>,
    random: &mut StdRng,
    starts: &mut [Start],
    ghosts: &mut Vec<Start>,
    generation: u32,
) {
    let node = random.random_range(0..NAMES.len());
    let other = (node + random.random_range(1..NAMES.len())) % NAMES.len();
    let (here, there) = (address_of(node), address_of(other));
    let way = random.random_range(0..16);
    match way {
        0..=3 => world.net.drop_connections(here, there),
        4 => world.net.cut(here, there),
        5 => world.net.cut_one_way(here, there),
        6..=7 => world.net.heal_all(),
        8 => {
            let [x, y, z] = [0, 1, 2].map(address_of);
            world.net.partition(&[&[x], &[y, z]]);
        }
        9 => world.net.set_default_link(some_link(random)),
        10 => world.net.set_link(here, there, some_link(random)),
        11 => {
            world.ledger.lock().unwrap().forget_lanes(Pair { from: node, to: other });
            starts[node].endpoint.remove_peer(&NAMES[other].parse().unwrap());
            if random.random_bool(0.5) {
                sleep(Duration::from_millis(random.random_range(0..50))).await;
            }
            starts[node].endpoint.set_peer(&NAMES[other].parse().unwrap(), vec![there]);
        }
        12 => {
            starts[node].endpoint.shutdown().await;
            starts[node].tasks.shutdown().await;
            starts[node] = start(world, node, generation).await;
        }
        13 | 15 => {
            if way == 15 {
                // Its last words come when its successor has already spoken.
                world.net.set_link(here, there, Link::with_delay(SLOW..SLOW));
                sleep(Duration::from_millis(100)).await;
                world.net.set_link(here, there, Link::default());
            }
            world.net.crash(here);
            starts[node].tasks.shutdown().await;
            starts[node] = start(world, node, generation).await;
        }
        14 => {
            world.net.crash(here);
            // What had arrived is still handled.
            sleep(Duration::from_millis(1)).await;
            let new = start(world, node, generation).await;
            // It goes on, unheard, next to its successor.
            ghosts.push(std::mem::replace(&mut starts[node], new));
        }
        _ => unreachable!("there are sixteen"),
    }
}

/// Starts a node: `generation` tells its messages from those of its former starts.
async fn start(world: &Arc<World>, node: usize, generation: u32) -> Start {
    let mut random = random_of(world, Pair { from: node, to: node }, generation, 14);
    let max_queued_bytes = MAX_QUEUED_BYTES[random.random_range(0..MAX_QUEUED_BYTES.len())];
    let max_wait = MAX_WAITS[random.random_range(0..MAX_WAITS.len())];
    let compression = COMPRESSIONS[random.random_range(0..COMPRESSIONS.len())];
    let batching = Batching::default().with_max_wait(max_wait).unwrap();
    // A build without zstd refuses it.
    let batching = batching.with_compression(compression).unwrap_or(batching);
    let config = EndpointConfig::new().with_max_queued_bytes(max_queued_bytes).unwrap().with_batching(batching);
    let identity = world.identities[node].clone();
    let endpoint = Endpoint::bind_in(&world.net, address_of(node), identity, config).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(receive(world.clone(), node, endpoint.mailbox("in", MAILBOX_CAPACITY).unwrap()));
    tasks.spawn(serve(world.clone(), node, generation, endpoint.mailbox("echo", MAILBOX_CAPACITY).unwrap()));
    for other in others(node) {
        let pair = Pair { from: node, to: other };
        world.ledger.lock().unwrap().forget_lanes(pair);
        endpoint.set_peer(&NAMES[other].parse().unwrap(), vec![address_of(other)]);
        tasks.spawn(send(world.clone(), endpoint.clone(), pair, generation));
        for caller in 0..CALLERS {
            tasks.spawn(call(world.clone(), endpoint.clone(), pair, generation, caller));
        }
    }
    Start { endpoint, tasks }
}

/// The randomness of one task.
fn random_of(world: &World, pair: Pair, generation: u32, task: u64) -> StdRng {
    let pair = (pair.from * NAMES.len() + pair.to) as u64;
    StdRng::seed_from_u64(world.seed << 24 | u64::from(generation) << 8 | pair << 4 | task)
}

/// The connection that a message takes which is taken now.
fn lane(world: &World, endpoint: &Endpoint, pair: Pair) -> Lane {
    let epoch = world.ledger.lock().unwrap().epoch(pair);
    let status = endpoint.peers().into_iter().find(|peer| peer.name.as_str() == NAMES[pair.to]);
    let connections = status.as_ref().map_or(0, |peer| peer.traffic.connections);
    let dropped = status.as_ref().map_or(0, |peer| peer.traffic.messages_dropped) + endpoint.dropped_casts();
    let is_up = status.is_some_and(|peer| matches!(peer.state, PeerState::Up { .. } | PeerState::Suspect { .. }));
    Lane { epoch, connections, is_up, dropped }
}

fn body(numbers: [u64; 2], bytes: usize) -> Vec<u8> {
    let mut body = numbers.map(u64::to_le_bytes).concat();
    body.resize(body.len() + bytes, 0x5a);
    body
}

fn numbers(body: &[u8]) -> [u64; 2] {
    let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
    [number(0), number(8)]
}

/// Sends numbered messages for ever, in every way there is.
async fn send(world: Arc<World>, endpoint: Endpoint, pair: Pair, generation: u32) {
    let mut random = random_of(&world, pair, generation, 0);
    let to = to(pair.to, "in");
    for number in 0.. {
        let bytes = if random.random_bool(0.1) { random.random_range(0..20_000) } else { 16 };
        let body = body([generation.into(), number], bytes);
        world.ledger.lock().unwrap().attempt(pair, generation, number);
        // Whether it was taken. Between that and the look at the lane nothing else runs.
        let taken = match random.random_range(0..4) {
            0 => {
                let before = lane(&world, &endpoint, pair);
                endpoint.cast_bytes(&to, MESSAGE, &body);
                before.is_up && lane(&world, &endpoint, pair).dropped == before.dropped
            }
            1 => endpoint.try_send_bytes(&to, MESSAGE, &body).is_ok(),
            2 => endpoint.send_bytes(&to, MESSAGE, &body).await.is_ok(),
            _ => {
                let patience = Duration::from_millis(random.random_range(0..20));
                // Given up while it waited, it was not taken.
                timeout(patience, endpoint.send_bytes(&to, MESSAGE, &body)).await.is_ok_and(|sent| sent.is_ok())
            }
        };
        let lane = lane(&world, &endpoint, pair);
        world.ledger.lock().unwrap().sent(pair, generation, number, taken.then_some(lane));
        // Also none: several in one batch.
        if random.random_bool(0.4) {
            sleep(Duration::from_millis(random.random_range(0..100))).await;
        }
        tokio::task::consume_budget().await;
    }
}

async fn receive(world: Arc<World>, node: usize, mut mailbox: batched_comm::Mailbox) {
    while let Some(incoming) = mailbox.recv().await {
        let from = NAMES.iter().position(|name| *name == incoming.from.as_str()).unwrap();
        let [generation, number] = numbers(incoming.body());
        let pair = Pair { from, to: node };
        world.ledger.lock().unwrap().received(pair, generation as u32, number);
    }
}

/// Calls for ever, one call after the other, each with a token of its own.
async fn call(world: Arc<World>, endpoint: Endpoint, pair: Pair, generation: u32, caller: u64) {
    let mut random = random_of(&world, pair, generation, 1 + caller);
    let to = to(pair.to, "echo");
    loop {
        let token = world.ledger.lock().unwrap().begin_call(pair);
        let within = Duration::from_millis(random.random_range(20..1500));
        let bytes = if random.random_bool(0.1) { random.random_range(0..10_000) } else { 0 };
        let before = lane(&world, &endpoint, pair);
        let begun = Instant::now();
        let request = body([token, 0], bytes);
        let calling = endpoint.call_bytes(&to, CALL, &request, within);
        let ended = if random.random_bool(0.1) {
            // Whoever gives a call up learns nothing of it.
            let patience = Duration::from_millis(random.random_range(0..100));
            match timeout(patience, calling).await {
                Ok(answer) => judge(answer, token),
                Err(_) => Ended::GivenUp,
            }
        } else {
            judge(calling.await, token)
        };
        let took = begun.elapsed();
        let after = lane(&world, &endpoint, pair);
        let connection_went = !before.is_up || !after.is_up || !before.is_same(&after);
        world.judge_call(pair, token, ended, within, took, connection_went);
        sleep(Duration::from_millis(random.random_range(0..80))).await;
    }
}

fn judge(answer: Result<batched_comm::Body, CallError>, token: u64) -> Ended {
    match answer {
        Ok(body) => match numbers(&body) {
            [of, server] if of == token => Ended::Answered { server },
            [of, _] => Ended::OthersAnswer { of },
        },
        Err(CallError::NotSent(SendError::MailboxFull { .. })) => Ended::Impossible("the mailbox is not full"),
        Err(CallError::NotSent(SendError::TooManyCalls { .. })) => Ended::Impossible("so many calls there are not"),
        Err(CallError::NotSent(_)) => Ended::NotSent,
        Err(CallError::Lost { .. }) => Ended::Lost,
        Err(CallError::Timeout { .. }) => Ended::Timeout,
        Err(CallError::Unanswered { .. }) => Ended::Unanswered,
        Err(CallError::Decode(_)) => Ended::Impossible("bytes are not decoded"),
    }
}

/// Answers at once, later, or not at all.
async fn serve(world: Arc<World>, node: usize, generation: u32, mut mailbox: batched_comm::Mailbox) {
    let server = (node as u64) << 32 | u64::from(generation);
    let mut random = random_of(&world, Pair { from: node, to: node }, generation, 15);
    let mut later = JoinSet::new();
    while let Some(incoming) = mailbox.recv().await {
        let [token, _] = numbers(incoming.body());
        world.ledger.lock().unwrap().handle_call(token, node, server);
        while later.try_join_next().is_some() {}
        let bytes = if random.random_bool(0.1) { random.random_range(0..10_000) } else { 0 };
        let answer = body([token, server], bytes);
        match random.random_range(0..10) {
            0 => drop(incoming),
            1..=3 => {
                let delay = Duration::from_millis(random.random_range(0..400));
                later.spawn(async move {
                    sleep(delay).await;
                    // The caller sees why when this fails.
                    let _ = incoming.reply_bytes_waiting(&answer).await;
                });
            }
            _ => drop(incoming.reply_bytes(&answer)),
        }
    }
}

/// Once all is healed, calls go through, and the latest messages, too.
async fn everybody_reaches_everybody(world: &Arc<World>) {
    let deadline = Instant::now() + RECOVERY;
    let pairs = (0..NAMES.len()).flat_map(|from| others(from).map(move |to| Pair { from, to }));
    let mut missing: HashMap<Pair, [u64; 2]> = pairs.map(|pair| (pair, world.progress(pair))).collect();
    while !missing.is_empty() {
        let what = "within the time for recovery, nothing came from and to";
        assert!(Instant::now() < deadline, "seed {}: {what} {missing:?}", world.seed);
        sleep(Duration::from_millis(20)).await;
        missing.retain(|pair, before| world.progress(*pair).iter().zip(before).any(|(now, before)| now == before));
        world.check();
    }
}

impl World {
    /// How many messages have arrived, and how many calls were answered.
    fn progress(&self, pair: Pair) -> [u64; 2] {
        let ledger = self.ledger.lock().unwrap();
        [ledger.received_of(pair), ledger.answered_of(pair)]
    }

    fn judge_call(
        &self,
        pair: Pair,
        token: u64,
        ended: Ended,
        within: Duration,
        took: Duration,
        connection_went: bool,
    ) {
        let mut ledger = self.ledger.lock().unwrap();
        if took > within + LATE {
            ledger.violations.push(format!("{pair:?}: a call with {within:?} took {took:?}: {ended:?}"));
        }
        if ended == Ended::Timeout && took < within {
            ledger.violations.push(format!("{pair:?}: a call timed out after {took:?} of {within:?}"));
        }
        if ended == Ended::Lost && !connection_went {
            ledger.violations.push(format!("{pair:?}: a call was lost with a connection that stands"));
        }
        ledger.end_call(token, ended);
    }
}
