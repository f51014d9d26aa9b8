//! Who is there, who is not, and how soon that is known: in virtual time, with the figures of the design.

use std::net::SocketAddr;
use std::time::Duration;

use batched_comm::test_net::{Link, TestNet};
use batched_comm::{DownReason, Endpoint, EndpointConfig, Identity, MemoryCa, PeerEvent, PeerState};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Builder;
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::*;

const SUSPECT_AFTER: Duration = Duration::from_millis(400);
const DEAD_AFTER: Duration = Duration::from_millis(1200);
/// How often silence is looked for, and how often a peer says that it is there.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// tokio's timers.
const GRANULARITY: Duration = Duration::from_millis(2);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 1))
}

async fn node(net: &TestNet, identity: &Identity, number: u8) -> Endpoint {
    Endpoint::bind_in(net, address(number), identity.clone(), EndpointConfig::new()).await.unwrap()
}

/// Runs something in virtual time, once for each seed; a panic says which.
fn for_seeds<F: Future<Output = ()>>(count: u64, run: impl Fn(u64) -> F) {
    for seed in 0..count {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let of_seed = std::panic::AssertUnwindSafe(|| runtime.block_on(run(seed)));
        if let Err(panic) = std::panic::catch_unwind(of_seed) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// "a" and "b", connected; a dialled.
async fn two(net: &TestNet, ca: &MemoryCa) -> (Endpoint, Endpoint) {
    let a = node(net, &ca.issue("a").unwrap(), 1).await;
    let b = node(net, &ca.issue("b").unwrap(), 2).await;
    connect(&a, &b).await;
    (a, b)
}

/// The next event, and when it came.
async fn next(events: &mut broadcast::Receiver<PeerEvent>) -> (PeerEvent, Instant) {
    let event = soon("an event", events.recv()).await.unwrap();
    (event, Instant::now())
}

fn is_suspect(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Suspect { .. })
}

fn why_down(event: &PeerEvent) -> Option<DownReason> {
    match event {
        PeerEvent::Down { reason, .. } => Some(reason.clone()),
        _ => None,
    }
}

#[test]
fn a_silent_peer_is_suspect_after_400_ms_and_dead_within_1200_ms() {
    let ca = ca();
    for_seeds(12, async |seed| {
        let net = TestNet::new(seed);
        let (a, b) = two(&net, &ca).await;
        // At any phase of pings and looks.
        sleep(ms(StdRng::seed_from_u64(seed).random_range(1000..1200))).await;
        let mut both = [a.events(), b.events()];
        let cut_at = Instant::now();
        net.cut(address(1), address(2));
        for events in &mut both {
            let (event, at) = next(events).await;
            assert!(is_suspect(&event), "{event:?}");
            let silence = at - cut_at;
            assert!(silence >= SUSPECT_AFTER - PING_INTERVAL - WATCH_INTERVAL, "{silence:?}");
            assert!(silence <= SUSPECT_AFTER + 2 * WATCH_INTERVAL + GRANULARITY, "{silence:?}");
        }
        for events in &mut both {
            let (event, at) = next(events).await;
            assert_eq!(why_down(&event), Some(DownReason::Dead), "{event:?}");
            let silence = at - cut_at;
            assert!(silence >= DEAD_AFTER - PING_INTERVAL - 2 * WATCH_INTERVAL, "{silence:?}");
            assert!(silence <= DEAD_AFTER + GRANULARITY, "{silence:?}");
        }
    });
}

#[tokio::test(start_paused = true)]
async fn who_is_heard_and_hears_nothing_says_so_to_the_other() {
    let net = TestNet::new(1);
    let (a, b) = two(&net, &ca()).await;
    let (mut events_a, mut events_b) = (a.events(), b.events());
    let cut_at = Instant::now();
    net.cut_one_way(address(2), address(1));
    assert!(is_suspect(&next(&mut events_a).await.0));
    assert_eq!(why_down(&next(&mut events_a).await.0), Some(DownReason::Dead));
    let (event, at) = next(&mut events_b).await;
    assert!(matches!(why_down(&event), Some(DownReason::ClosedByPeer { .. })), "{event:?}");
    assert!(at - cut_at <= DEAD_AFTER + ms(10), "{:?}", at - cut_at);
    net.heal(address(1), address(2));
    soon("a connection", async { while !matches!(next(&mut events_a).await.0, PeerEvent::Up { .. }) {} }).await;
}

#[test]
fn a_peer_heard_again_before_its_death_is_alive_and_lost_nothing() {
    let ca = ca();
    for_seeds(6, async |seed| {
        let net = TestNet::new(seed);
        let (a, b) = two(&net, &ca).await;
        let mut mailbox = b.mailbox("in", 10).unwrap();
        let mut events = a.events();
        let cut_at = Instant::now();
        net.cut(address(1), address(2));
        assert!(is_suspect(&next(&mut events).await.0));
        a.send(&at(&b, "in"), &note(1)).await.unwrap();
        sleep_until(cut_at + ms(600 + 30 * seed)).await;
        net.heal(address(1), address(2));
        let (event, at) = next(&mut events).await;
        assert!(matches!(event, PeerEvent::Alive { .. }), "{event:?}");
        assert!(at - cut_at <= DEAD_AFTER, "{:?}", at - cut_at);
        assert!(matches!(a.peers()[0].state, PeerState::Up { .. }));
        assert_eq!(soon("the message", mailbox.recv()).await.unwrap().decode::<Note>().unwrap(), note(1));
        sleep(2 * DEAD_AFTER).await;
        assert!(events.is_empty(), "{:?}", events.try_recv());
    });
}

#[test]
fn nodes_that_all_dial_at_once_settle_on_one_connection_a_pair_without_a_storm() {
    const NODES: u8 = 4;
    const PAIRS: u64 = 6;
    let ca = ca();
    let names = ["a", "b", "c", "d"];
    let identities = names.map(|name| ca.issue(name).unwrap());
    for_seeds(12, async |seed| {
        let net = TestNet::new(seed);
        let mut random = StdRng::seed_from_u64(seed);
        net.set_default_link(Link::with_delay(ms(1)..ms(random.random_range(2..40))));
        let mut nodes = Vec::new();
        for number in 0..NODES {
            nodes.push(node(&net, &identities[usize::from(number)], number).await);
        }
        for from in &nodes {
            for to in nodes.iter().filter(|to| to.name() != from.name()) {
                from.set_peer(to.name(), vec![to.local_address()]);
            }
            sleep(ms(random.random_range(0..3) * random.random_range(0..10))).await;
        }
        let all_up = || nodes.iter().all(|from| nodes.iter().all(|to| from.name() == to.name() || is_up(from, to)));
        let begun = Instant::now();
        eventually("connections", all_up).await;
        assert!(begun.elapsed() < ms(1500), "{:?}", begun.elapsed());
        sleep(ms(1500)).await;
        let handshakes = net.traffic().handshakes;
        // One for each direction, and here and there one more that was refused and tried again.
        assert!((PAIRS..=3 * PAIRS).contains(&handshakes), "{handshakes} handshakes for {PAIRS} pairs");
        let connections = || nodes.iter().flat_map(Endpoint::peers).map(|peer| peer.traffic.connections).sum::<u64>();
        let settled = connections();
        assert!(settled <= 2 * 2 * PAIRS, "{settled} lanes seen from both ends");
        sleep(Duration::from_secs(5)).await;
        assert!(all_up());
        assert_eq!((net.traffic().handshakes, connections()), (handshakes, settled), "it goes on");
    });
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_restarts_at_another_address_is_followed_there() {
    let net = TestNet::new(1);
    let ca = ca();
    let identity = ca.issue("b").unwrap();
    let a = node(&net, &ca.issue("a").unwrap(), 1).await;
    let first = node(&net, &identity, 2).await;
    connect(&a, &first).await;
    let mut events = a.events();
    // It dials from where it is now.
    net.crash(address(2));
    let moved_at = Instant::now();
    let second = node(&net, &identity, 3).await;
    second.set_peer(a.name(), vec![address(1)]);
    assert_eq!(why_down(&next(&mut events).await.0), Some(DownReason::Replaced));
    let (event, at_new) = next(&mut events).await;
    assert_eq!(event, PeerEvent::Up { peer: second.name().clone(), instance: second.instance() });
    assert!(at_new - moved_at < ms(50), "{:?}", at_new - moved_at);
    assert_eq!(a.peer_address(second.name()), Some(address(3)));
    echo(second.mailbox("echo", 10).unwrap());
    assert_eq!(a.call(&at(&second, "echo"), &note(1), DEADLINE).await.unwrap(), note(1));
    // It says nothing, and a is told where it is.
    net.crash(address(3));
    let moved_at = Instant::now();
    let third = node(&net, &identity, 4).await;
    echo(third.mailbox("echo", 10).unwrap());
    a.set_peer(third.name(), vec![address(4)]);
    let answer = a.call(&at(&third, "echo"), &note(2), DEADLINE).await;
    // It went over the connection that was not yet known to be dead, and says so.
    assert!(answer.unwrap_err().is_unknown());
    assert_eq!(a.call(&at(&third, "echo"), &note(3), DEADLINE).await.unwrap(), note(3));
    assert!(moved_at.elapsed() <= DEAD_AFTER + ms(100), "{:?}", moved_at.elapsed());
    assert_eq!(a.peer_address(third.name()), Some(address(4)));
}

#[tokio::test(start_paused = true)]
async fn a_new_address_is_dialled_at_once_while_a_former_one_is_being_dialled() {
    let net = TestNet::new(1);
    let ca = ca();
    let a = node(&net, &ca.issue("a").unwrap(), 1).await;
    let b = node(&net, &ca.issue("b").unwrap(), 2).await;
    echo(b.mailbox("echo", 10).unwrap());
    // Nobody is there.
    a.set_peer(b.name(), vec![address(8), address(9)]);
    sleep(ms(100)).await;
    assert_eq!(a.peers()[0].state, PeerState::Connecting);
    a.set_peer(b.name(), vec![address(9), address(8)]);
    sleep(ms(100)).await;
    assert_eq!(net.traffic().handshakes, 1, "it is still said to be there");
    let told_at = Instant::now();
    a.set_peer(b.name(), vec![address(2)]);
    assert_eq!(a.call(&at(&b, "echo"), &note(1), DEADLINE).await.unwrap(), note(1));
    assert!(told_at.elapsed() < ms(50), "{:?}", told_at.elapsed());
    // The same when it is said that it is nowhere.
    let c: batched_comm::NodeName = "c".parse().unwrap();
    a.set_peer(&c, vec![address(9)]);
    sleep(ms(100)).await;
    a.set_peer(&c, Vec::new());
    eventually("an end of it", || a.peers()[1].state == PeerState::Idle).await;
}

#[test]
fn a_restarted_peer_is_noticed_within_50_ms_when_it_dials_and_at_the_next_ping_when_not() {
    let ca = ca();
    let identities = ["a", "b"].map(|name| ca.issue(name).unwrap());
    for_seeds(10, async |seed| {
        let net = TestNet::new(seed);
        let a = node(&net, &identities[0], 1).await;
        let first = node(&net, &identities[1], 2).await;
        connect(&a, &first).await;
        let mut events = a.events();
        let mut starts = vec![first];
        // The first restart finds a connection that a dialled: only such a one is believed to be reset.
        for (dials, within) in [(false, PING_INTERVAL + ms(100)), (true, ms(50))] {
            sleep(ms(1000 + 17 * seed)).await;
            net.crash(address(2));
            let restarted_at = Instant::now();
            let again = node(&net, &identities[1], 2).await;
            if dials {
                again.set_peer(a.name(), vec![address(1)]);
            }
            assert!(matches!(next(&mut events).await.0, PeerEvent::Down { .. }));
            let (event, at) = next(&mut events).await;
            assert_eq!(event, PeerEvent::Up { peer: again.name().clone(), instance: again.instance() });
            assert!(at - restarted_at <= within, "{:?}", at - restarted_at);
            starts.push(again);
        }
    });
}

#[tokio::test(start_paused = true)]
async fn two_nodes_of_one_name_take_turns_and_not_too_often() {
    let net = TestNet::new(1);
    let ca = ca();
    let identity = ca.issue("b").unwrap();
    let a = node(&net, &ca.issue("a").unwrap(), 1).await;
    let twins = [node(&net, &identity, 2).await, node(&net, &identity, 3).await];
    for twin in &twins {
        twin.set_peer(a.name(), vec![address(1)]);
    }
    // The waits have grown.
    sleep(ms(10_000)).await;
    let count = || a.peers()[0].traffic.connections;
    let before = count();
    sleep(ms(30_000)).await;
    // Each waits for half a second on the average.
    let per_second = (count() - before) / 30;
    assert!((1..=4).contains(&per_second), "{per_second} connections a second");
    let said = || a.peers()[0].last_error.clone().unwrap_or_default();
    eventually("a word of it", || said().starts_with("two nodes are named b")).await;
    // Once there is one, it stays, and what was is forgotten.
    let [first, second] = twins;
    second.shutdown().await;
    eventually("a connection", || is_up(&a, &first) && is_up(&first, &a)).await;
    sleep(ms(3000)).await;
    let after = count();
    sleep(ms(10_000)).await;
    assert_eq!(count(), after);
    let cut_at = Instant::now();
    net.drop_connections(address(1), address(2));
    eventually("another connection", || count() > after).await;
    assert!(cut_at.elapsed() <= PING_INTERVAL + ms(100), "{:?}", cut_at.elapsed());
}

#[test]
fn waits_between_attempts_are_anything_below_a_bound_that_doubles() {
    const ATTEMPTS: usize = 9;
    let ca = ca();
    let identity = ca.issue("a").unwrap();
    let config = EndpointConfig::new().with_hello_timeout(ms(50)).unwrap();
    let bounds = [50, 100, 200, 400, 800, 1000, 1000, 1000].map(ms);
    let shares = std::cell::RefCell::new(Vec::new());
    for_seeds(30, async |seed| {
        let net = TestNet::new(seed);
        let a = Endpoint::bind_in(&net, address(1), identity.clone(), config.clone()).await.unwrap();
        // Nobody is there.
        a.set_peer(&"b".parse().unwrap(), vec![address(2)]);
        let mut dialled_at = Vec::new();
        while dialled_at.len() < ATTEMPTS {
            if net.traffic().handshakes as usize > dialled_at.len() {
                dialled_at.push(Instant::now());
            }
            sleep(ms(1)).await;
        }
        for (attempts, bound) in dialled_at.windows(2).zip(bounds) {
            let wait = (attempts[1] - attempts[0]).saturating_sub(config.hello_timeout());
            assert!(wait <= bound + 3 * GRANULARITY, "{wait:?} is beyond {bound:?}");
            shares.borrow_mut().push(wait.as_secs_f64() / bound.as_secs_f64());
        }
    });
    let shares = shares.into_inner();
    assert_eq!(shares.len(), 30 * (ATTEMPTS - 1));
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!((0.4..0.6).contains(&mean), "not spread evenly: the mean is {mean}");
    assert!(shares.iter().any(|share| *share < 0.1) && shares.iter().any(|share| *share > 0.9));
}

#[tokio::test(start_paused = true)]
async fn connections_that_a_middlebox_forgot_are_made_anew_at_once() {
    let net = TestNet::new(1);
    let (a, b) = two(&net, &ca()).await;
    sleep(ms(500)).await;
    let mut events = a.events();
    let dropped_at = Instant::now();
    net.drop_connections(address(1), address(2));
    assert_eq!(why_down(&next(&mut events).await.0), Some(DownReason::Restarted));
    assert!(dropped_at.elapsed() < ms(2), "{:?}", dropped_at.elapsed());
    let (event, at) = next(&mut events).await;
    assert_eq!(event, PeerEvent::Up { peer: b.name().clone(), instance: b.instance() });
    assert!(at - dropped_at < ms(100), "{:?}", at - dropped_at);
    assert!(is_up(&b, &a));
    sleep(ms(3000)).await;
    assert!(events.is_empty(), "{:?}", events.try_recv());
    assert_eq!(net.traffic().handshakes, 2);
}

#[tokio::test(start_paused = true)]
async fn a_partition_keeps_its_groups_apart_and_nobody_else() {
    let net = TestNet::new(1);
    let ca = ca();
    let mut nodes = Vec::new();
    for (number, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        nodes.push(node(&net, &ca.issue(name).unwrap(), number as u8).await);
    }
    for from in &nodes {
        for to in &nodes {
            from.set_peer(to.name(), vec![to.local_address()]);
        }
    }
    let is_all_up = || nodes.iter().all(|from| nodes.iter().all(|to| from.name() == to.name() || is_up(from, to)));
    eventually("connections", is_all_up).await;
    // d is in no group.
    net.partition(&[&[address(0)], &[address(1), address(2)]]);
    sleep(2 * DEAD_AFTER).await;
    for (from, to, expected) in
        [(0, 1, false), (1, 0, false), (0, 2, false), (1, 2, true), (0, 3, true), (3, 1, true), (3, 0, true)]
    {
        assert_eq!(is_up(&nodes[from], &nodes[to]), expected, "{from} to {to}");
    }
    net.heal_all();
    eventually("connections", is_all_up).await;
}

#[tokio::test(start_paused = true)]
async fn a_seed_gives_each_node_its_chance_again() {
    let identity = ca().issue("a").unwrap();
    let mut instances = Vec::new();
    for seed in [7, 7, 8] {
        let net = TestNet::new(seed);
        let (first, second) = (node(&net, &identity, 1).await, node(&net, &identity, 2).await);
        assert_ne!(first.instance(), second.instance());
        instances.push((first.instance(), second.instance()));
    }
    assert_eq!(instances[0], instances[1]);
    assert_ne!(instances[0], instances[2]);
}

/// Without a paused clock, delays are real.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_simulated_network_works_in_real_time_and_over_several_threads() {
    let net = TestNet::new(1);
    net.set_default_link(Link::with_delay(ms(3)..ms(3)));
    let (a, b) = two(&net, &ca()).await;
    echo(b.mailbox("echo", 100).unwrap());
    let begun = std::time::Instant::now();
    let to = at(&b, "echo");
    let calls: Vec<_> = (0..50)
        .map(|n| {
            let (a, to) = (a.clone(), to.clone());
            tokio::spawn(async move { a.call(&to, &note(n), DEADLINE).await.unwrap() == note(n) })
        })
        .collect();
    for call in calls {
        assert!(soon("an answer", call).await.unwrap());
    }
    assert!(begun.elapsed() >= ms(6), "there and back in {:?}", begun.elapsed());
    a.shutdown().await;
    b.shutdown().await;
    // The addresses are free again.
    two(&net, &ca()).await;
}
