//! Connections that come, go, and come again.

use std::time::Duration;

use batched_comm::{
    Address, BindError, CallError, ConnectError, DownReason, Endpoint, EndpointConfig, Identity, PeerEvent, PeerState,
    SendError,
};
use tokio::time::{Instant, timeout};

use crate::support::*;

const SHORT: Duration = Duration::from_millis(150);

fn up(event: PeerEvent) -> Option<u64> {
    match event {
        PeerEvent::Up { instance, .. } => Some(instance),
        _ => None,
    }
}

fn down(event: PeerEvent) -> Option<DownReason> {
    match event {
        PeerEvent::Down { reason, .. } => Some(reason),
        _ => None,
    }
}

/// Silence alone would take half a minute to be noticed.
fn patient() -> EndpointConfig {
    let second = Duration::from_secs(1);
    EndpointConfig::new().with_liveness(Duration::from_millis(100), 20 * second, 30 * second).unwrap()
}

#[tokio::test]
async fn a_call_waits_for_a_connection_that_does_not_stand_yet() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    echo(b.mailbox("echo", 10).unwrap());
    a.set_peer(b.name(), vec![b.local_address()]);
    assert!(matches!(a.try_send(&at(&b, "echo"), &note(1)), Err(SendError::NotConnected { .. })));
    assert_eq!(a.peers()[0].traffic.messages_dropped, 0, "the sender was told");
    assert_eq!(a.call(&at(&b, "echo"), &note(1), DEADLINE).await.unwrap(), note(1));
}

#[tokio::test]
async fn a_call_to_nobody_is_known_not_to_have_been_sent() {
    let ca = ca();
    let a = bind(&ca, "a").await;
    let nobody: Address = Address::new(&"b".parse().unwrap(), "in").unwrap();
    let error = a.call(&nobody, &note(1), DEADLINE).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(SendError::UnknownPeer { .. })), "{error}");
    let silent = std::net::UdpSocket::bind(any_port()).unwrap();
    a.set_peer(&nobody.node, vec![silent.local_addr().unwrap()]);
    let error = a.call(&nobody, &note(1), SHORT).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(SendError::NotConnected { .. })), "{error}");
    assert!(matches!(a.peers()[0].state, PeerState::Connecting | PeerState::BackingOff { .. }));
}

#[tokio::test]
async fn both_dialling_at_once_end_with_one_connection() {
    let ca = ca();
    for round in 0..20 {
        let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
        for endpoint in [&a, &b] {
            echo(endpoint.mailbox("echo", 10).unwrap());
        }
        a.set_peer(b.name(), vec![b.local_address()]);
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        b.set_peer(a.name(), vec![a.local_address()]);
        let (to_a, to_b) = (at(&a, "echo"), at(&b, "echo"));
        let requests = (note(1), note(2));
        let (there, back) = tokio::join!(a.call(&to_b, &requests.0, DEADLINE), b.call(&to_a, &requests.1, DEADLINE));
        // A request that went over the connection that lost may be lost with it, and says so.
        for (answer, expected) in [(there, note(1)), (back, note(2))] {
            match answer {
                Ok(answer) => assert_eq!(answer, expected),
                Err(error) => assert!(error.is_unknown(), "{error}"),
            }
        }
        eventually("one connection", || is_up(&a, &b) && is_up(&b, &a)).await;
        let connections = || a.peers()[0].traffic.connections + b.peers()[0].traffic.connections;
        let settled = connections();
        for _ in 0..20 {
            assert_eq!(a.call(&to_b, &note(3), DEADLINE).await.unwrap(), note(3));
            assert_eq!(b.call(&to_a, &note(4), DEADLINE).await.unwrap(), note(4));
        }
        assert_eq!(connections(), settled, "round {round}");
        assert!(settled <= 4, "round {round}: {settled} connections");
    }
}

#[tokio::test]
async fn a_peer_that_is_restarted_on_its_port_is_noticed_long_before_silence_would_tell() {
    let ca = ca();
    let identity = ca.issue("b").unwrap();
    let a = bind_with(&ca, "a", patient()).await;
    let b = Endpoint::bind(any_port(), identity.clone()).await.unwrap();
    let address = b.local_address();
    let first_instance = b.instance();
    connect(&a, &b).await;
    let mut events = a.events();
    let mailbox = b.mailbox("in", 10).unwrap();
    let pending = tokio::spawn({
        let (a, to) = (a.clone(), at(&b, "in"));
        async move { a.call(&to, &note(1), DEADLINE).await }
    });
    eventually("the request", || b.peers()[0].traffic.messages_received == 1).await;
    drop((mailbox, b));
    let again = bind_again(address, &identity).await;
    echo(again.mailbox("echo", 10).unwrap());
    let error = pending.await.unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error}");
    let instance = event(&mut events, "the new start", up).await;
    assert_ne!(instance, first_instance);
    assert_eq!(instance, again.instance());
    assert_eq!(a.call(&at(&again, "echo"), &note(2), DEADLINE).await.unwrap(), note(2));
}

/// The peer's process is gone without a word, and its next start does not dial: only the reset of an old
/// connection's packet can tell.
#[tokio::test]
async fn a_restarted_peer_resets_the_connections_of_its_former_start() {
    let ca = ca();
    let identity = ca.issue("b").unwrap();
    let a = bind_with(&ca, "a", patient()).await;
    let first = Endpoint::bind_with(any_port(), identity.clone(), patient()).await.unwrap();
    let relay = Relay::to(first.local_address()).await;
    a.set_peer(first.name(), vec![relay.address()]);
    eventually("a connection", || is_up(&a, &first)).await;
    let mut events = a.events();
    relay.cut(true);
    drop(first);
    let second = Endpoint::bind_with(any_port(), identity, patient()).await.unwrap();
    relay.aim_at(second.local_address());
    relay.cut(false);
    assert_eq!(event(&mut events, "the reset", down).await, DownReason::Restarted);
    assert_eq!(event(&mut events, "the new start", up).await, second.instance());
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_suspect_then_dead_and_comes_back() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    let mailbox = b.mailbox("in", 10).unwrap();
    let relay = Relay::to(b.local_address()).await;
    a.set_peer(b.name(), vec![relay.address()]);
    eventually("a connection", || is_up(&a, &b)).await;
    let mut events = a.events();
    let pending = tokio::spawn({
        let (a, to) = (a.clone(), at(&b, "in"));
        async move { a.call(&to, &note(1), DEADLINE).await }
    });
    eventually("the request", || b.peers()[0].traffic.messages_received == 1).await;
    let cut_at = Instant::now();
    relay.cut(true);
    let suspect = |event| matches!(event, PeerEvent::Suspect { .. }).then_some(());
    event(&mut events, "suspicion", suspect).await;
    assert!(matches!(a.peers()[0].state, PeerState::Suspect { .. }));
    assert_eq!(event(&mut events, "death", down).await, DownReason::Dead);
    assert!(cut_at.elapsed() >= Duration::from_secs(1));
    let error = pending.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Lost { .. }), "{error}");
    relay.cut(false);
    event(&mut events, "the connection", up).await;
    drop(mailbox);
}

#[tokio::test]
async fn a_suspect_peer_that_is_heard_again_is_alive_and_lost_nothing() {
    let ca = ca();
    let ms = Duration::from_millis;
    let config = EndpointConfig::new().with_liveness(ms(50), ms(200), ms(30_000)).unwrap();
    let (a, b) = (bind_with(&ca, "a", config.clone()).await, bind_with(&ca, "b", config).await);
    let mut mailbox = b.mailbox("in", 10).unwrap();
    let relay = Relay::to(b.local_address()).await;
    a.set_peer(b.name(), vec![relay.address()]);
    eventually("a connection", || is_up(&a, &b)).await;
    let mut events = a.events();
    relay.cut(true);
    event(&mut events, "suspicion", |event| matches!(event, PeerEvent::Suspect { .. }).then_some(())).await;
    a.send(&at(&b, "in"), &note(1)).await.unwrap();
    relay.cut(false);
    event(&mut events, "life", |event| matches!(event, PeerEvent::Alive { .. }).then_some(())).await;
    assert_eq!(soon("the message", mailbox.recv()).await.unwrap().decode::<Note>().unwrap(), note(1));
    assert_eq!(a.peers()[0].traffic.connections, 1);
}

#[tokio::test]
async fn shutdown_sends_what_is_waiting_and_tells_the_peers() {
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("in", 10_000).unwrap();
    let mut events = b.events();
    for n in 0..1000 {
        a.send(&at(&b, "in"), &note(n)).await.unwrap();
    }
    soon("the end", a.shutdown()).await;
    for n in 0..1000 {
        let incoming = soon("a message", mailbox.recv()).await.unwrap();
        assert_eq!(incoming.decode::<Note>().unwrap().number, n);
    }
    let reason = event(&mut events, "the end", down).await;
    assert!(matches!(reason, DownReason::ClosedByPeer { .. }), "{reason}");
    let error = a.send(&at(&b, "in"), &note(1)).await.unwrap_err();
    assert_eq!(error, SendError::ShutDown);
    assert!(a.mailbox("late", 1).is_err());
    drop(b);
    assert!(soon("the end", mailbox.recv()).await.is_none());
}

#[tokio::test]
async fn dropping_the_last_clone_frees_the_port_and_ends_pending_calls_of_peers() {
    let (a, b) = pair().await;
    let address = b.local_address();
    let _mailbox = b.mailbox("in", 10).unwrap();
    let pending = tokio::spawn({
        let (a, to) = (a.clone(), at(&b, "in"));
        async move { a.call(&to, &note(1), DEADLINE).await }
    });
    eventually("the request", || b.peers()[0].traffic.messages_received == 1).await;
    let clone = b.clone();
    drop(b);
    assert!(matches!(Endpoint::bind(address, ca().issue("c").unwrap()).await, Err(BindError::AddressInUse { .. })));
    drop(clone);
    let error = pending.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Lost { .. }), "{error}");
    bind_again(address, &ca().issue("c").unwrap()).await;
}

#[tokio::test]
async fn a_removed_peer_is_forgotten_and_may_dial_again() {
    let (a, b) = pair().await;
    let mut events = b.events();
    a.remove_peer(b.name());
    assert!(a.peers().iter().all(|peer| peer.name != *b.name()));
    let reason = event(&mut events, "the end", down).await;
    assert!(matches!(reason, DownReason::ClosedByPeer { .. }), "{reason}");
    let error = a.send(&at(&b, "in"), &note(1)).await.unwrap_err();
    assert!(matches!(error, SendError::UnknownPeer { .. }), "{error}");
    connect(&b, &a).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_back_at_once_is_down_before_it_is_up() {
    let (a, b) = pair().await;
    let mut events = a.events();
    for _ in 0..50 {
        a.remove_peer(b.name());
        a.set_peer(b.name(), vec![b.local_address()]);
        eventually("a connection", || is_up(&a, &b)).await;
    }
    let mut was_up = true;
    while let Ok(event) = events.try_recv() {
        let is_up = match event {
            PeerEvent::Up { .. } => true,
            PeerEvent::Down { .. } => false,
            PeerEvent::Suspect { .. } | PeerEvent::Alive { .. } => continue,
        };
        assert_ne!(is_up, was_up, "up and down in turn");
        was_up = is_up;
    }
    assert!(was_up);
}

#[tokio::test]
async fn at_the_bound_a_peer_without_an_address_makes_room() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    for n in 0..batched_comm::MAX_PEERS {
        a.set_peer(&format!("gone{n}").parse().unwrap(), Vec::new());
    }
    assert_eq!(a.peers().len(), batched_comm::MAX_PEERS);
    connect(&b, &a).await;
    assert_eq!(a.peers().len(), batched_comm::MAX_PEERS);
}

#[tokio::test]
async fn a_peer_that_moved_is_found_at_its_new_address() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    connect(&a, &b).await;
    drop(b);
    eventually("the loss", || !matches!(a.peers()[0].state, PeerState::Up { .. })).await;
    let moved = bind(&ca, "b").await;
    echo(moved.mailbox("echo", 10).unwrap());
    a.set_peer(moved.name(), vec![moved.local_address()]);
    assert_eq!(a.call(&at(&moved, "echo"), &note(1), DEADLINE).await.unwrap(), note(1));
    assert_eq!(a.peer_address(moved.name()), Some(moved.local_address()));
}

#[tokio::test]
async fn the_first_address_that_works_is_found() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    let silent = std::net::UdpSocket::bind(any_port()).unwrap();
    let config = EndpointConfig::new().with_hello_timeout(Duration::from_millis(300)).unwrap();
    let impatient = bind_with(&ca, "c", config).await;
    for from in [&a, &impatient] {
        from.set_peer(b.name(), vec![silent.local_addr().unwrap(), b.local_address()]);
        eventually("a connection", || is_up(from, &b)).await;
    }
}

#[tokio::test]
async fn a_probe_learns_who_lives_at_an_address() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b_1").await);
    echo(b.mailbox("echo", 10).unwrap());
    let name = a.probe(b.local_address(), DEADLINE).await.unwrap();
    assert_eq!(name, *b.name());
    assert_eq!(a.call(&at(&b, "echo"), &note(1), DEADLINE).await.unwrap(), note(1));
    assert_eq!(a.probe(a.local_address(), DEADLINE).await.unwrap(), *a.name());
    let silent = std::net::UdpSocket::bind(any_port()).unwrap();
    let error = a.probe(silent.local_addr().unwrap(), SHORT).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn ipv6_works() {
    let ca = ca();
    let address = "[::1]:0".parse().unwrap();
    if std::net::UdpSocket::bind(address).is_err() {
        // A machine without IPv6 has nothing to show.
        return;
    }
    let a = Endpoint::bind(address, ca.issue("a").unwrap()).await.unwrap();
    let b = Endpoint::bind(address, ca.issue("b").unwrap()).await.unwrap();
    connect(&a, &b).await;
}

#[tokio::test]
async fn certificates_rotate_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let a = Endpoint::bind(any_port(), Identity::dev(dir.path(), "a").unwrap()).await.unwrap();
    let b = Endpoint::bind(any_port(), Identity::dev(dir.path(), "b").unwrap()).await.unwrap();
    connect(&a, &b).await;
    batched_comm::tls::issue(dir.path(), "b", &[]).unwrap();
    b.set_identity(&Identity::load(dir.path(), "b").unwrap()).unwrap();
    assert!(is_up(&a, &b));
    assert!(b.set_identity(&Identity::load(dir.path(), "a").unwrap()).is_err());
    a.remove_peer(b.name());
    connect(&a, &b).await;
    // A new CA on both sides: each trusts the other's new certificate, and no old one.
    let other = ca();
    a.set_identity(&other.issue("a").unwrap()).unwrap();
    let error = a.probe(b.local_address(), DEADLINE).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
    b.set_identity(&other.issue("b").unwrap()).unwrap();
    assert_eq!(a.probe(b.local_address(), DEADLINE).await.unwrap(), *b.name());
}

#[tokio::test]
async fn what_never_left_is_not_sent_and_what_left_is_lost() {
    let ca = ca();
    let config = EndpointConfig::new().with_max_queued_bytes(16 * 1024 * 1024).unwrap();
    // So that the writer has its turns when this task yields.
    let config = config.with_network_thread(false);
    let (a, b) = (bind_with(&ca, "a", config).await, bind(&ca, "b").await);
    let mailbox = b.mailbox("in", 10).unwrap();
    let relay = Relay::to(b.local_address()).await;
    a.set_peer(b.name(), vec![relay.address()]);
    eventually("a connection", || is_up(&a, &b)).await;
    let call = |n| {
        let (a, to) = (a.clone(), at(&b, "in"));
        tokio::spawn(async move { a.call(&to, &note(n), DEADLINE).await.unwrap_err() })
    };
    let left = call(1);
    eventually("the request", || b.peers()[0].traffic.messages_received == 1).await;
    relay.cut(true);
    // More than QUIC takes while nothing is acknowledged: the writer is stuck with it.
    a.try_send_bytes(&at(&b, "in"), 1, &vec![0; 8 * 1024 * 1024]).unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let stayed = call(2);
    let error = left.await.unwrap();
    assert!(matches!(error, CallError::Lost { .. }), "{error}");
    let error = stayed.await.unwrap();
    assert!(matches!(error, CallError::NotSent(SendError::NotConnected { .. })), "{error}");
    drop(mailbox);
}

/// Callers count on what an error says: "not sent" was never handled, an answer was handled once, and
/// nothing is handled twice, however often the connection breaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_handled_twice_while_connections_break() {
    const CALLERS: u64 = 16;
    const CALLS: u64 = 400;
    const BREAKS: usize = 15;
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("in", 100_000).unwrap();
    let handler = tokio::spawn(async move {
        let mut handled = std::collections::HashMap::new();
        while let Some(incoming) = mailbox.recv().await {
            let request: Note = incoming.decode().unwrap();
            *handled.entry(request.number).or_insert(0) += 1;
            // The way back may be gone.
            let _ = incoming.reply(&request);
        }
        handled
    });
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let (a, to) = (a.clone(), at(&b, "in"));
        callers.spawn(async move {
            let mut outcomes = Vec::new();
            for n in 0..CALLS {
                let number = caller * CALLS + n;
                let outcome = a.call(&to, &note(number), DEADLINE).await;
                assert!(!matches!(outcome, Err(CallError::Timeout { .. })), "{outcome:?}");
                outcomes.push((number, outcome));
            }
            outcomes
        });
    }
    for n in 0..BREAKS {
        let connections = || a.peers()[0].traffic.connections as usize;
        eventually("a connection", || callers.is_empty() || connections() > n).await;
        b.remove_peer(a.name());
    }
    let outcomes: Vec<_> = soon("all callers", callers.join_all()).await.into_iter().flatten().collect();
    b.shutdown().await;
    let handled = soon("the handler", handler).await.unwrap();
    assert!(handled.values().all(|times| *times == 1));
    for (number, outcome) in outcomes {
        let times = handled.get(&number).copied().unwrap_or(0);
        match outcome {
            Ok(answer) => assert_eq!((answer, times), (note(number), 1)),
            Err(error) if !error.is_unknown() => assert_eq!(times, 0, "{number}: {error}"),
            Err(_) => {}
        }
    }
    assert!(a.peers()[0].traffic.connections > 2);
}

#[tokio::test]
async fn after_a_shutdown_the_address_is_free_though_clones_live() {
    let ca = ca();
    let (a, other) = (ca.issue("a").unwrap(), bind(&ca, "other").await);
    echo(other.mailbox("echo", 10).unwrap());
    let mut clones = Vec::new();
    let mut address = any_port();
    for number in 0..30 {
        let endpoint = Endpoint::bind(address, a.clone()).await.unwrap();
        address = endpoint.local_address();
        endpoint.set_peer(other.name(), vec![other.local_address()]);
        assert_eq!(endpoint.call(&at(&other, "echo"), &note(number), DEADLINE).await.unwrap(), note(number));
        endpoint.shutdown().await;
        clones.push(endpoint);
    }
}

#[tokio::test]
async fn ends_of_bulk_transfers_that_are_held_do_not_keep_the_address() {
    let (a, b) = pair().await;
    let mut listener = b.bulk_listener("in", 4).unwrap();
    let sender = a.open_bulk(&at(&b, "in"), b"x").await.unwrap();
    let receiver = soon("a transfer", listener.accept()).await.unwrap();
    for endpoint in [&a, &b] {
        endpoint.shutdown().await;
        Endpoint::bind(endpoint.local_address(), ca().issue("next").unwrap()).await.unwrap();
    }
    drop((sender, receiver));
}

#[tokio::test]
async fn a_peer_that_never_answers_does_not_keep_the_address() {
    let ca = ca();
    let a = ca.issue("a").unwrap();
    // Bound and silent: a handshake with it stays under way.
    let silent = std::net::UdpSocket::bind(any_port()).unwrap();
    let mut address = any_port();
    for _ in 0..3 {
        let endpoint = Endpoint::bind(address, a.clone()).await.unwrap();
        address = endpoint.local_address();
        endpoint.set_peer(&"silent".parse().unwrap(), vec![silent.local_addr().unwrap()]);
        // Its first packet has arrived: the handshake is under way.
        let mut first = [0; 2048];
        silent.set_read_timeout(Some(DEADLINE)).unwrap();
        let reading = silent.try_clone().unwrap();
        tokio::task::spawn_blocking(move || reading.recv(&mut first)).await.unwrap().unwrap();
        endpoint.shutdown().await;
    }
}

/// Pings come from a thread that user code never enters.
#[test]
fn a_node_whose_code_blocks_all_threads_of_its_runtime_is_not_suspected() {
    let ca = ca();
    let blocked = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let healthy = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let b = blocked.block_on(bind(&ca, "b"));
    let a = healthy.block_on(bind(&ca, "a"));
    let mut events = healthy.block_on(async {
        connect(&a, &b).await;
        a.events()
    });
    let (block, unblock) = std::sync::mpsc::channel::<()>();
    let unblock = std::sync::Arc::new(std::sync::Mutex::new(unblock));
    let (entered, all_entered) = std::sync::mpsc::channel();
    for _ in 0..2 {
        let (unblock, entered) = (unblock.clone(), entered.clone());
        blocked.spawn(async move {
            entered.send(()).unwrap();
            // Ends when the sender is dropped.
            let _ = unblock.lock().unwrap().recv();
        });
    }
    (0..2).for_each(|_| all_entered.recv_timeout(DEADLINE).unwrap());
    healthy.block_on(async {
        let silence = timeout(Duration::from_secs(2), events.recv()).await;
        assert!(silence.is_err(), "nothing happens to the peer: {silence:?}");
        assert!(is_up(&a, &b));
        drop(block);
        echo_after(&blocked, &b);
        let answer = soon("an answer", a.call(&at(&b, "echo"), &note(1), DEADLINE)).await;
        assert_eq!(answer.unwrap(), note(1));
    });
}

fn echo_after(runtime: &tokio::runtime::Runtime, endpoint: &Endpoint) {
    let _entered = runtime.enter();
    echo(endpoint.mailbox("echo", 10).unwrap());
}
