//! The orderly end: what was taken arrives, whoever shuts down when.

use std::time::Duration;

use batched_comm::{CallError, Endpoint, EndpointConfig, Mailbox, PeerState, SendError};
use tokio::time::{Instant, sleep};

use crate::support::*;

/// What was received before the end, and then the end.
async fn numbers(mailbox: &mut Mailbox) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(incoming) = soon("a message or the end", mailbox.recv()).await {
        numbers.push(incoming.decode::<Note>().unwrap().number);
    }
    numbers
}

/// Sends until it is refused; how many were taken.
async fn send_on(from: Endpoint, to: Endpoint) -> u64 {
    let address = at(&to, "in");
    for n in 0.. {
        match from.send(&address, &note(n)).await {
            Ok(()) => {}
            Err(SendError::ShutDown | SendError::NotConnected { .. }) => return n,
            Err(error) => panic!("{error}"),
        }
        if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    unreachable!("it is refused before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_shutting_down_at_once_deliver_all_that_both_have_taken() {
    const ROUNDS: u64 = 60;
    let ca = ca();
    let mut sent_in_all = 0;
    for round in 0..ROUNDS {
        let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
        connect(&a, &b).await;
        let mut at_a = a.mailbox("in", 1 << 20).unwrap();
        let mut at_b = b.mailbox("in", 1 << 20).unwrap();
        let there = tokio::spawn(send_on(a.clone(), b.clone()));
        let back = tokio::spawn(send_on(b.clone(), a.clone()));
        // Not always the same moment, nor always exactly the same one on both sides.
        sleep(Duration::from_micros(137 * (round % 29))).await;
        let later = async {
            sleep(Duration::from_micros(500 * (round % 4))).await;
            b.shutdown().await;
        };
        let started = Instant::now();
        tokio::join!(a.shutdown(), later);
        assert!(started.elapsed() < Duration::from_secs(2), "round {round}: {:?}", started.elapsed());
        let (there, back) = (soon("the sender", there).await.unwrap(), soon("the sender", back).await.unwrap());
        let expected = ((0..there).collect::<Vec<_>>(), (0..back).collect::<Vec<_>>());
        let received = (numbers(&mut at_b).await, numbers(&mut at_a).await);
        assert_eq!((received.0.len(), received.1.len()), (expected.0.len(), expected.1.len()), "round {round}");
        assert!(received == expected, "round {round}: in order");
        sent_in_all += there + back;
    }
    assert!(sent_in_all > ROUNDS * 10, "{sent_in_all} messages show little");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_has_taken_arrives_though_only_the_receiver_shuts_down() {
    let ca = ca();
    for round in 0..20 {
        let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
        connect(&a, &b).await;
        let mut mailbox = b.mailbox("in", 1 << 20).unwrap();
        let sending = tokio::spawn(send_on(a.clone(), b.clone()));
        sleep(Duration::from_micros(211 * round)).await;
        b.shutdown().await;
        let taken = soon("the sender", sending).await.unwrap();
        assert_eq!(numbers(&mut mailbox).await.len() as u64, taken, "round {round}");
    }
}

#[tokio::test]
async fn a_call_of_a_former_connection_does_not_hold_up_the_shutdown() {
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("in", 10).unwrap();
    let calling = tokio::spawn({
        let (a, to) = (a.clone(), at(&b, "in"));
        async move { a.call(&to, &note(1), DEADLINE).await }
    });
    let _kept = soon("the request", mailbox.recv()).await.unwrap();
    a.remove_peer(b.name());
    assert!(matches!(soon("the loss", calling).await.unwrap(), Err(CallError::Lost { .. })));
    eventually("the end of the connection", || !is_up(&b, &a)).await;
    connect(&a, &b).await;
    let begun = Instant::now();
    b.shutdown().await;
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_call_that_was_received_before_the_shutdown_is_answered() {
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("in", 10).unwrap();
    let calling = tokio::spawn({
        let (a, to) = (a.clone(), at(&b, "in"));
        async move { a.call(&to, &note(1), DEADLINE).await }
    });
    let incoming = soon("the request", mailbox.recv()).await.unwrap();
    let ending = tokio::spawn({
        let b = b.clone();
        async move { b.shutdown().await }
    });
    let refused = || b.try_send(&at(&a, "in"), &note(1)) == Err(SendError::ShutDown);
    eventually("the beginning of the end", refused).await;
    // The handler takes a while; the node does not go before it is done.
    sleep(Duration::from_millis(100)).await;
    assert!(!ending.is_finished());
    incoming.reply(&note(2)).unwrap();
    assert_eq!(soon("the answer", calling).await.unwrap().unwrap(), note(2));
    soon("the end", ending).await.unwrap();
}

#[tokio::test]
async fn a_handler_that_never_answers_does_not_hold_the_shutdown_up_and_its_caller_is_told() {
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("in", 10).unwrap();
    let call = |number| {
        let (a, to) = (a.clone(), at(&b, "in"));
        tokio::spawn(async move { a.call(&to, &note(number), DEADLINE).await })
    };
    let (taken, untaken) = (call(1), call(2));
    eventually("the requests", || b.peers()[0].traffic.messages_received == 2).await;
    let held = soon("the request", mailbox.recv()).await.unwrap();
    let started = Instant::now();
    soon("the end", b.shutdown()).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    for calling in [taken, untaken] {
        let error = soon("an error", calling).await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Lost { .. }), "{error}");
    }
    assert!(held.reply(&note(3)).is_err(), "there is no way back any more");
    assert!(mailbox.recv().await.is_none(), "a call that nobody can answer is not handled");
}

/// What an error says holds: an answer was given, or the request may have been handled, or it was not sent
/// and not handled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_while_the_peer_shuts_down_are_answered_or_of_the_right_class() {
    let ca = ca();
    let (mut answered, mut failed) = (0, 0);
    for round in 0..20 {
        let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
        connect(&a, &b).await;
        let mut mailbox = b.mailbox("in", 10_000).unwrap();
        let handling = tokio::spawn(async move {
            let mut handled = std::collections::HashSet::new();
            while let Some(incoming) = mailbox.recv().await {
                let request: Note = incoming.decode().unwrap();
                assert!(handled.insert(request.number), "handled twice");
                let _ = incoming.reply(&request);
            }
            handled
        });
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..8 {
            let (a, to) = (a.clone(), at(&b, "in"));
            callers.spawn(async move {
                for n in 0.. {
                    let number = caller * 1_000_000 + n;
                    // Short, since a call without a connection waits for the next one.
                    let outcome = a.call(&to, &note(number), Duration::from_millis(300)).await;
                    if let Err(error) = outcome {
                        return (number, n, error);
                    }
                }
                unreachable!("the peer is gone before")
            });
        }
        sleep(Duration::from_micros(500 * round)).await;
        b.shutdown().await;
        let outcomes = soon("the callers", callers.join_all()).await;
        let handled = soon("the handler", handling).await.unwrap();
        for (number, before, error) in outcomes {
            assert!((number - before..number).all(|number| handled.contains(&number)));
            match &error {
                CallError::NotSent(SendError::NotConnected { .. }) => {
                    assert!(!handled.contains(&number), "{number} was handled: {error}");
                }
                CallError::Lost { .. } | CallError::Timeout { .. } => {}
                other => panic!("{other}"),
            }
            answered += before;
            failed += 1;
        }
    }
    assert!(answered > 0 && failed == 160, "{answered} {failed}");
}

#[tokio::test]
async fn a_shutdown_while_the_peer_is_dead_ends_within_its_bound() {
    let ca = ca();
    let second = Duration::from_secs(1);
    // Silence alone would take half a minute to be noticed.
    let patient = EndpointConfig::new().with_liveness(Duration::from_millis(100), 20 * second, 30 * second).unwrap();
    let (a, b) = (bind_with(&ca, "a", patient).await, bind(&ca, "b").await);
    let relay = Relay::to(b.local_address()).await;
    a.set_peer(b.name(), vec![relay.address()]);
    eventually("a connection", || is_up(&a, &b)).await;
    relay.cut(true);
    a.send(&at(&b, "in"), &note(1)).await.unwrap();
    let calling = tokio::spawn({
        let (a, to) = (a.clone(), at(&b, "in"));
        async move { a.call(&to, &note(2), DEADLINE).await }
    });
    sleep(Duration::from_millis(20)).await;
    let started = Instant::now();
    soon("the end", a.shutdown()).await;
    assert!(started.elapsed() < 3 * second, "{:?}", started.elapsed());
    let error = soon("an error", calling).await.unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error}");
}

/// The peer's end was read, and then the peer was gone without a word.
#[tokio::test]
async fn a_peer_that_is_restarted_during_its_end_is_met_again_at_once() {
    let ca = ca();
    let identity = ca.issue("b").unwrap();
    let a = bind(&ca, "a").await;
    let b = Endpoint::bind(any_port(), identity.clone()).await.unwrap();
    let address = b.local_address();
    a.set_peer(b.name(), vec![address]);
    eventually("a connection", || is_up(&a, &b)).await;
    let mut watch = a.watch_peer(b.name());
    b.shutdown().await;
    let again = bind_again(address, &identity).await;
    echo(again.mailbox("echo", 10).unwrap());
    assert_eq!(a.call(&at(&again, "echo"), &note(1), DEADLINE).await.unwrap(), note(1));
    soon("up", watch.wait_for(|state| matches!(state, Some(PeerState::Up { .. })))).await.unwrap();
    assert_eq!(a.peers()[0].instance, Some(again.instance()));
}
