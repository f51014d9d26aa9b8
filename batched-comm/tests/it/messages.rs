//! Casts, calls and replies.

use std::time::Duration;

use batched_comm::{Batching, CallError, Endpoint, EndpointConfig, Incoming, SendError};
use tokio::task::JoinSet;

use crate::support::*;

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_call_is_answered_by_a_local_and_by_a_remote_mailbox() {
    let (a, b) = pair().await;
    for endpoint in [&a, &b] {
        echo(endpoint.mailbox("echo", 10).unwrap());
    }
    for target in [&a, &b] {
        let answer = a.call(&at(target, "echo"), &note(3), DEADLINE).await.unwrap();
        assert_eq!(answer, note(3));
    }
}

#[tokio::test]
async fn a_cast_arrives_with_its_sender() {
    let (a, b) = pair().await;
    for target in [&a, &b] {
        let mut mailbox = target.mailbox("in", 10).unwrap();
        a.send(&at(target, "in"), &note(1)).await.unwrap();
        a.try_send(&at(target, "in"), &note(2)).unwrap();
        a.send_bytes(&at(target, "in"), 9, b"own encoding").await.unwrap();
        for n in [1, 2] {
            let incoming = soon("a message", mailbox.recv()).await.unwrap();
            assert_eq!((&incoming.from, incoming.is_call()), (a.name(), false));
            assert_eq!(incoming.decode::<Note>().unwrap(), note(n));
        }
        let incoming = soon("a message", mailbox.recv()).await.unwrap();
        assert_eq!((incoming.type_number, incoming.body()), (9, &b"own encoding"[..]));
        assert_eq!(incoming.body().as_ptr() as usize % 16, 0);
        assert!(incoming.decode::<Note>().is_err());
    }
}

#[tokio::test]
async fn a_broadcast_goes_to_local_remote_and_unknown_nodes() {
    let (a, b) = pair().await;
    let mut mailboxes = [a.mailbox("in", 10).unwrap(), b.mailbox("in", 10).unwrap()];
    let nobody = batched_comm::Address::new(&"nobody".parse().unwrap(), "in").unwrap();
    let results = a.broadcast(&[at(&a, "in"), at(&b, "in"), nobody], &note(5)).await;
    assert!(results[0].1.is_ok() && results[1].1.is_ok());
    assert!(matches!(results[2].1, Err(SendError::UnknownPeer { .. })));
    for mailbox in &mut mailboxes {
        let incoming = soon("a message", mailbox.recv()).await.unwrap();
        assert_eq!(incoming.decode::<Note>().unwrap(), note(5));
    }
}

#[tokio::test]
async fn a_call_that_nobody_answers_times_out_and_its_late_reply_is_dropped() {
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("slow", 10).unwrap();
    for caller in [&a, &b] {
        let error = caller.call(&at(&b, "slow"), &note(1), SHORT).await.unwrap_err();
        assert!(matches!(error, CallError::Timeout { .. }), "{error}");
        assert!(error.is_unknown());
        let late = soon("the request", mailbox.recv()).await.unwrap();
        let _ = late.reply(&note(1));
        let next = tokio::spawn({
            let (caller, to) = (caller.clone(), at(&b, "slow"));
            async move { caller.call(&to, &note(2), DEADLINE).await }
        });
        let request = soon("the request", mailbox.recv()).await.unwrap();
        request.reply(&note(2)).unwrap();
        assert_eq!(next.await.unwrap().unwrap(), note(2), "never the late reply");
    }
    let dropped = || a.peers()[0].traffic.messages_dropped;
    eventually("a dropped late reply", || dropped() == 1).await;
}

#[tokio::test]
async fn a_call_given_up_by_its_caller_leaves_nothing_behind() {
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("slow", 10).unwrap();
    {
        let target = at(&b, "slow");
        let request = note(1);
        let call = a.call(&target, &request, DEADLINE);
        assert!(tokio::time::timeout(SHORT, call).await.is_err());
    }
    let request = soon("the request", mailbox.recv()).await.unwrap();
    request.reply(&note(1)).unwrap();
    eventually("a dropped late reply", || a.peers()[0].traffic.messages_dropped == 1).await;
}

#[tokio::test]
async fn an_unknown_mailbox_is_answered_and_a_cast_to_it_counted() {
    let (a, b) = pair().await;
    for target in [&a, &b] {
        let error = a.call(&at(target, "none"), &note(1), DEADLINE).await.unwrap_err();
        let expected = matches!(error, CallError::NotSent(SendError::UnknownMailbox { .. }));
        assert!(expected && !error.is_unknown(), "{error}");
    }
    a.send(&at(&b, "none"), &note(1)).await.unwrap();
    eventually("a drop", || b.peers()[0].traffic.messages_dropped == 2).await;
}

#[tokio::test]
async fn a_full_mailbox_refuses_and_others_go_on() {
    let (a, b) = pair().await;
    let full = b.mailbox("full", 1).unwrap();
    echo(b.mailbox("echo", 10).unwrap());
    a.send(&at(&b, "full"), &note(0)).await.unwrap();
    for n in 0..1000 {
        a.send(&at(&b, "full"), &note(n)).await.unwrap();
    }
    let error = a.call(&at(&b, "full"), &note(1), DEADLINE).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(SendError::MailboxFull { .. })), "{error}");
    assert_eq!(a.call(&at(&b, "echo"), &note(2), DEADLINE).await.unwrap(), note(2));
    assert_eq!(b.peers()[0].traffic.messages_dropped, 1001);
    assert_eq!(a.peers()[0].traffic.messages_dropped, 0, "who sent them does not know");
    // On its own node, whoever sends is told.
    let told = b.send(&at(&b, "full"), &note(1)).await;
    assert!(matches!(told, Err(SendError::MailboxFull { .. })), "{told:?}");
    drop(full);
}

#[tokio::test]
async fn a_handler_that_gives_up_is_told_to_its_caller() {
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("lazy", 10).unwrap();
    tokio::spawn(async move { while mailbox.recv().await.is_some() {} });
    for caller in [&a, &b] {
        let error = caller.call(&at(&b, "lazy"), &note(1), DEADLINE).await.unwrap_err();
        assert!(matches!(error, CallError::Unanswered { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_oversized_message_is_refused_and_the_largest_arrives() {
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("in", 10).unwrap();
    let max = batched_comm::MAX_MESSAGE_BYTES;
    let large = vec![7; max + 1];
    for target in [&a, &b] {
        let error = a.send_bytes(&at(target, "in"), 1, &large).await.unwrap_err();
        assert!(matches!(error, SendError::TooLarge { .. }), "{error}");
    }
    a.send_bytes(&at(&b, "in"), 1, &large[..max]).await.unwrap();
    a.send(&at(&b, "in"), &note(1)).await.unwrap();
    let incoming = soon("the large message", mailbox.recv()).await.unwrap();
    assert!(incoming.body() == &large[..max]);
    assert_eq!(soon("the next", mailbox.recv()).await.unwrap().decode::<Note>().unwrap(), note(1));
}

#[tokio::test]
async fn an_oversized_answer_is_refused_and_the_caller_told_on_this_node_as_on_another() {
    let (a, b) = pair().await;
    let max = batched_comm::MAX_MESSAGE_BYTES;
    for target in [&a, &b] {
        let mut mailbox = target.mailbox("large", 10).unwrap();
        let serving = tokio::spawn(async move {
            for bytes in [max + 1, max] {
                let incoming = mailbox.recv().await.unwrap();
                let answered = incoming.reply_bytes(&vec![7; bytes]);
                let too_large = SendError::TooLarge { given_bytes: bytes, max_bytes: max };
                assert_eq!(answered, if bytes > max { Err(too_large) } else { Ok(()) });
            }
        });
        let error = a.call_bytes(&at(target, "large"), 1, b"", DEADLINE).await.unwrap_err();
        assert!(matches!(error, CallError::Unanswered { .. }), "{error}");
        assert_eq!(a.call_bytes(&at(target, "large"), 1, b"", DEADLINE).await.unwrap().len(), max);
        serving.await.unwrap();
    }
}

#[tokio::test]
async fn an_untyped_mailbox_answers_a_request_with_its_type_of_answer() {
    let (a, b) = pair().await;
    for target in [&a, &b] {
        let (mut mailbox, to) = (target.mailbox("in", 10).unwrap(), at(target, "in"));
        let serving = tokio::spawn(async move {
            let incoming = mailbox.recv().await.unwrap();
            let given = incoming.decode().unwrap();
            incoming.answer::<Note>(&given).unwrap();
            let incoming = mailbox.recv().await.unwrap();
            incoming.answer_waiting::<Note>(&note(2)).await.unwrap();
            // Not a note: no note answers it.
            let error = mailbox.recv().await.unwrap().answer::<Note>(&note(3)).unwrap_err();
            assert!(error.to_string().contains("messages of type 7, and this one is of type 1"), "{error}");
            let answered = mailbox.recv().await.unwrap().answer_waiting::<Note>(&note(3)).await;
            assert!(matches!(answered, Err(SendError::Encode(_))), "{answered:?}");
        });
        assert_eq!(a.call(&to, &note(1), DEADLINE).await.unwrap(), note(1));
        assert_eq!(a.call(&to, &note(1), DEADLINE).await.unwrap(), note(2));
        for _ in 0..2 {
            let error = a.call_bytes(&to, 1, b"", DEADLINE).await.unwrap_err();
            assert!(matches!(error, CallError::Unanswered { .. }), "{error}");
        }
        soon("four requests", serving).await.unwrap();
    }
}

#[tokio::test]
async fn messages_of_one_sender_arrive_in_order_and_once() {
    const COUNT: u64 = 20_000;
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("in", COUNT as usize).unwrap();
    let target = at(&b, "in");
    let sender = tokio::spawn(async move {
        for n in 0..COUNT {
            a.send(&target, &note(n)).await.unwrap();
        }
        a
    });
    for n in 0..COUNT {
        let incoming = soon("a message", mailbox.recv()).await.unwrap();
        assert_eq!(incoming.decode::<Note>().unwrap().number, n);
    }
    let a = sender.await.unwrap();
    assert!(mailbox.try_recv().is_none());
    assert_eq!(a.peers()[0].traffic.messages_sent, COUNT);
}

#[tokio::test]
async fn messages_gather_into_batches_under_load() {
    let (a, b) = pair().await;
    echo(b.mailbox("echo", 10_000).unwrap());
    let before = a.peers()[0].traffic;
    let mut callers = JoinSet::new();
    for caller in 0..64 {
        let (a, target) = (a.clone(), at(&b, "echo"));
        callers.spawn(async move {
            for n in 0..50 {
                let answer = a.call(&target, &note(caller * 1000 + n), DEADLINE).await.unwrap();
                assert_eq!(answer, note(caller * 1000 + n));
            }
        });
    }
    soon("all answers", callers.join_all()).await;
    let sent = a.peers()[0].traffic.since(&before);
    assert_eq!(sent.messages_sent, 3200);
    let per_batch = sent.messages_sent / sent.batches_sent;
    assert!(per_batch >= 8, "{per_batch} messages per batch: {sent:?}");
}

#[tokio::test]
async fn an_idle_lane_sends_a_message_at_once_in_a_batch_of_its_own() {
    let (a, b) = pair().await;
    echo(b.mailbox("echo", 10).unwrap());
    let before = a.peers()[0].traffic;
    for n in 0..20 {
        a.call(&at(&b, "echo"), &note(n), DEADLINE).await.unwrap();
    }
    let sent = a.peers()[0].traffic.since(&before);
    assert_eq!((sent.messages_sent, sent.batches_sent), (20, 20));
}

#[tokio::test]
async fn batching_is_changed_while_running_and_read_back() {
    let (a, b) = pair().await;
    let mut mailbox = b.mailbox("in", 1000).unwrap();
    let slow = Batching::default().with_max_wait(Duration::from_millis(300)).unwrap();
    let small = slow.with_max_batch_messages(10).unwrap();
    a.set_batching(small);
    assert_eq!(a.batching(), small);
    let before = a.peers()[0].traffic;
    for n in 0..100 {
        a.try_send(&at(&b, "in"), &note(n)).unwrap();
    }
    for _ in 0..100 {
        soon("a message", mailbox.recv()).await.unwrap();
    }
    let sent = a.peers()[0].traffic.since(&before);
    assert_eq!((sent.messages_sent, sent.batches_sent), (100, 10));
}

#[tokio::test]
async fn at_the_bound_a_send_waits_and_a_try_send_is_refused() {
    let ca = ca();
    let config = EndpointConfig::new().with_max_queued_bytes(4096).unwrap().with_network_thread(false);
    let (a, b) = (bind_with(&ca, "a", config).await, bind(&ca, "b").await);
    connect(&a, &b).await;
    let mut mailbox = b.mailbox("in", 100_000).unwrap();
    let target = at(&b, "in");
    // Nobody else runs between these, so that nothing leaves.
    let mut taken = 0;
    let error = loop {
        match a.try_send(&target, &note(taken)) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SendError::Full { .. }), "{error}");
    assert!((20..100).contains(&taken), "{taken}");
    for n in taken..taken + 1000 {
        soon("room", a.send(&target, &note(n))).await.unwrap();
    }
    for n in 0..taken + 1000 {
        let incoming = soon("a message", mailbox.recv()).await.unwrap();
        assert_eq!(incoming.decode::<Note>().unwrap().number, n);
    }
}

#[tokio::test]
async fn a_broadcast_to_many_mailboxes_of_a_node_is_one_copy() {
    let (a, b) = pair().await;
    let mut mailboxes: Vec<_> = (0..10).map(|n| b.mailbox(&format!("in{n}"), 10).unwrap()).collect();
    let mut to: Vec<_> = mailboxes.iter().map(|mailbox| at(&b, mailbox.name().as_str())).collect();
    to.push(at(&b, "nobody"));
    let before = a.peers()[0].traffic;
    assert!(a.broadcast(&to, &note(5)).await.iter().all(|(_, result)| result.is_ok()));
    for mailbox in &mut mailboxes {
        let incoming = soon("a message", mailbox.recv()).await.unwrap();
        assert_eq!(incoming.decode::<Note>().unwrap(), note(5));
    }
    eventually("the count", || a.peers()[0].traffic.since(&before).messages_sent == 1).await;
    eventually("the drop", || b.peers()[0].traffic.messages_dropped == 1).await;
    // Names that do not fit into one frame go in several.
    let long: Vec<_> = (0..9).map(|n| b.mailbox(&format!("{n}{}", "x".repeat(60)), 10).unwrap()).collect();
    let to: Vec<_> = long.iter().map(|mailbox| at(&b, mailbox.name().as_str())).collect();
    assert!(a.broadcast(&to, &note(6)).await.iter().all(|(_, result)| result.is_ok()));
    for mut mailbox in long {
        let incoming = soon("a message", mailbox.recv()).await.unwrap();
        assert_eq!(incoming.decode::<Note>().unwrap(), note(6));
    }
}

#[test]
fn peers_may_be_named_from_outside_of_the_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ca = ca();
    let (a, b) = runtime.block_on(async { (bind(&ca, "a").await, bind(&ca, "b").await) });
    a.set_peer(b.name(), vec![b.local_address()]);
    runtime.block_on(eventually("a connection", || is_up(&a, &b) && is_up(&b, &a)));
    drop((a, b));
}

/// Requests of `count` calls from a to b, taken and not answered yet, and the callers.
async fn open_calls(
    a: &Endpoint,
    b: &Endpoint,
    count: u64,
) -> (Vec<Incoming>, JoinSet<Result<batched_comm::Body, CallError>>) {
    let mut mailbox = b.mailbox("in", count as usize).unwrap();
    let mut callers = JoinSet::new();
    for _ in 0..count {
        let (a, to) = (a.clone(), at(b, "in"));
        callers.spawn(async move { a.call_bytes(&to, 1, b"", 2 * DEADLINE).await });
    }
    let mut requests = Vec::new();
    for _ in 0..count {
        requests.push(soon("a request", mailbox.recv()).await.unwrap());
    }
    (requests, callers)
}

async fn narrow_pair() -> (Endpoint, Endpoint) {
    let ca = ca();
    let narrow = EndpointConfig::new().with_max_queued_bytes(4096).unwrap().with_network_thread(false);
    let (a, b) = (bind(&ca, "a").await, bind_with(&ca, "b", narrow).await);
    connect(&a, &b).await;
    (a, b)
}

#[tokio::test]
async fn who_gets_no_answer_for_want_of_room_is_told_so() {
    const COUNT: u64 = 500;
    let (a, b) = narrow_pair().await;
    let (requests, callers) = open_calls(&a, &b, COUNT).await;
    // Nobody else runs between these, so that nothing leaves.
    let full = requests.into_iter().filter_map(|request| request.reply_bytes(&[1; 1000]).err()).count();
    assert!((1..COUNT as usize).contains(&full), "{full}");
    let outcomes = soon("all outcomes", callers.join_all()).await;
    let unanswered = outcomes.iter().filter(|outcome| matches!(outcome, Err(CallError::Unanswered { .. }))).count();
    let answered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!((unanswered, answered), (full, COUNT as usize - full));
}

#[tokio::test]
async fn answers_that_wait_for_room_all_arrive() {
    const COUNT: u64 = 500;
    let (a, b) = narrow_pair().await;
    let (requests, callers) = open_calls(&a, &b, COUNT).await;
    let mut answering = JoinSet::new();
    for request in requests {
        answering.spawn(async move { request.reply_bytes_waiting(&[1; 1000]).await });
    }
    assert!(soon("room", answering.join_all()).await.iter().all(Result::is_ok));
    assert!(soon("all outcomes", callers.join_all()).await.iter().all(Result::is_ok));
    // The wait ends with the connection.
    let (requests, _callers) = open_calls(&a, &b, COUNT).await;
    let mut answering = JoinSet::new();
    for request in requests {
        answering.spawn(async move { request.reply_bytes_waiting(&[1; 1000]).await });
    }
    a.shutdown().await;
    soon("the end", answering.join_all()).await;
}

#[tokio::test]
async fn an_endpoint_without_a_thread_of_its_own_is_a_task_of_the_runtime() {
    let ca = ca();
    let config = EndpointConfig::new().with_network_thread(false);
    assert!(!config.network_thread() && EndpointConfig::new().network_thread());
    let (a, b) = (bind_with(&ca, "a", config.clone()).await, bind_with(&ca, "b", config).await);
    connect(&a, &b).await;
    echo(b.mailbox("echo", 10).unwrap());
    assert_eq!(a.call(&at(&b, "echo"), &note(1), DEADLINE).await.unwrap(), note(1));
    a.shutdown().await;
    b.shutdown().await;
}
