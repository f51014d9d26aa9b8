//! The ways to send, and typed addresses.

use batched_comm::{CallError, EndpointConfig, Message, Request, SendError, Sender, TypedMailbox, rkyv};

use crate::support::*;

#[tokio::test]
async fn a_cast_never_fails_and_what_cannot_be_taken_is_counted() {
    let ca = ca();
    let config = EndpointConfig::new().with_max_queued_bytes(4096).unwrap().with_network_thread(false);
    let (a, b) = (bind_with(&ca, "a", config).await, bind(&ca, "b").await);
    let (mut mailbox, to) = (b.mailbox("in", 1000).unwrap(), at(&b, "in"));
    let dropped = || a.peers()[0].traffic.messages_dropped;
    a.cast(&to, &note(0));
    assert_eq!(a.dropped_casts(), 1, "nobody known");
    a.set_peer(b.name(), vec![b.local_address()]);
    a.cast(&to, &note(0));
    a.cast_bytes(&to, 9, b"bytes");
    assert_eq!((a.dropped_casts(), dropped()), (1, 2), "not connected");
    connect(&a, &b).await;
    // Nothing leaves while this task runs: the bound is reached.
    for n in 0..200 {
        a.cast(&to, &note(n));
    }
    let full = dropped() - 2;
    assert!((1..200).contains(&full), "{full} of 200 dropped");
    let sent = 200 - full;
    for n in 0..sent {
        let incoming = soon("a cast", mailbox.recv()).await.unwrap();
        assert_eq!(incoming.decode::<Note>().unwrap(), note(n));
    }
    a.cast_bytes(&to, 9, &vec![0; batched_comm::MAX_MESSAGE_BYTES + 1]);
    assert_eq!(dropped(), 3 + full, "too large");
    a.cast(&at(&a, "none"), &note(0));
    assert_eq!(a.dropped_casts(), 2, "no such mailbox here");
    let mut local = a.mailbox("own", 1).unwrap();
    a.cast(&at(&a, "own"), &note(7));
    assert_eq!(soon("a cast", local.recv()).await.unwrap().decode::<Note>().unwrap(), note(7));
    a.shutdown().await;
    a.cast(&to, &note(0));
    assert_eq!(a.dropped_casts(), 3, "shut down");
}

#[tokio::test]
async fn a_sender_sends_tries_casts_and_calls_a_remote_and_a_local_mailbox() {
    let (a, b) = pair().await;
    for target in [&b, &a] {
        let mut mailbox = target.mailbox("in", 10).unwrap();
        let sender: Sender<Note> = a.sender(&at(target, "in"));
        assert_eq!(*sender.address(), at(target, "in"));
        sender.send(&note(1)).await.unwrap();
        sender.try_send(&note(2)).unwrap();
        sender.clone().cast(&note(3));
        for n in 1..=3 {
            assert_eq!(soon("a note", mailbox.recv()).await.unwrap().decode::<Note>().unwrap(), note(n));
        }
        echo(mailbox);
        // In a task of its own: its future goes anywhere.
        let answer = tokio::spawn(async move { sender.call(&note(4), DEADLINE).await });
        assert_eq!(answer.await.unwrap().unwrap(), note(4));
    }
}

#[tokio::test]
async fn a_sender_follows_a_peer_that_is_removed_and_comes_back() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    echo(b.mailbox("echo", 10).unwrap());
    let sender = a.sender::<Note>(&at(&b, "echo"));
    let unknown = SendError::UnknownPeer { peer: b.name().clone() };
    assert_eq!(sender.try_send(&note(0)), Err(unknown.clone()), "made before the peer is known");
    for n in 0..10 {
        a.set_peer(b.name(), vec![b.local_address()]);
        assert_eq!(sender.call(&note(n), DEADLINE).await.unwrap(), note(n));
        a.remove_peer(b.name());
        assert_eq!(sender.try_send(&note(n)), Err(unknown.clone()));
        assert_eq!(sender.send(&note(n)).await, Err(unknown.clone()));
        assert_eq!(sender.call(&note(n), DEADLINE).await, Err(CallError::NotSent(unknown.clone())));
    }
    let before = a.dropped_casts();
    sender.cast(&note(0));
    assert_eq!(a.dropped_casts(), before + 1);
}

#[tokio::test]
async fn a_sender_does_not_keep_its_endpoint_alive() {
    let (a, b) = pair().await;
    let (sender, own) = (a.sender::<Note>(&at(&b, "in")), a.sender::<Note>(&at(&a, "in")));
    sender.send(&note(1)).await.unwrap();
    let address = a.local_address();
    drop(a);
    for sender in [&sender, &own] {
        assert_eq!(sender.try_send(&note(1)), Err(SendError::ShutDown));
    }
    // Its address is free, too.
    bind_again(address, &ca().issue("a").unwrap()).await;
    drop((sender, own));
}

/// A number of its own.
#[derive(Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(crate = rkyv)]
struct Double(u64);

impl Message for Double {
    const TYPE: u32 = 8;
}

impl Request for Double {
    type Reply = u64;
}

#[tokio::test]
async fn a_typed_mailbox_gives_messages_and_takes_answers_of_the_right_type() {
    let (a, b) = pair().await;
    for target in [&b, &a] {
        let mut mailbox: TypedMailbox<Double> = target.typed_mailbox("double", 10).unwrap();
        assert!(target.mailbox("double", 10).is_err(), "{} is taken", mailbox.name());
        let from = a.name().clone();
        let serving = tokio::spawn(async move {
            for waits in [false, true] {
                let (sender, Double(number), reply) = mailbox.recv().await.unwrap();
                assert_eq!((sender, reply.is_awaited()), (from.clone(), true));
                match waits {
                    true => reply.reply_waiting(&(2 * number)).await.unwrap(),
                    false => reply.reply(&(2 * number)).unwrap(),
                }
            }
            let (_, Double(number), reply) = mailbox.recv().await.unwrap();
            assert_eq!((number, reply.is_awaited()), (5, false));
            reply.reply(&0).unwrap();
            mailbox
        });
        let sender = a.sender::<Double>(&at(target, "double"));
        assert_eq!(sender.call(&Double(21), DEADLINE).await.unwrap(), 42);
        assert_eq!(sender.call(&Double(4), DEADLINE).await.unwrap(), 8);
        sender.send(&Double(5)).await.unwrap();
        let mut mailbox = soon("all three", serving).await.unwrap();
        let giving_up = tokio::spawn(async move { drop(mailbox.recv().await) });
        let error = sender.call(&Double(1), DEADLINE).await.unwrap_err();
        assert!(matches!(error, CallError::Unanswered { .. }), "{error}");
        giving_up.await.unwrap();
    }
}

#[tokio::test]
async fn what_a_typed_mailbox_cannot_decode_is_counted_and_refused() {
    let (a, b) = pair().await;
    for target in [&b, &a] {
        let (mut mailbox, to) = (target.typed_mailbox::<Note>("in", 10).unwrap(), at(target, "in"));
        let serving = tokio::spawn(async move {
            let received = mailbox.recv().await.unwrap();
            (received.1, mailbox.undecodable())
        });
        a.send_bytes(&to, Note::TYPE, b"no note").await.unwrap();
        let refused = |result| {
            let Err(CallError::NotSent(SendError::NotUnderstood { node, mailbox })) = result else {
                panic!("{result:?}")
            };
            assert_eq!((node, mailbox.as_str()), (target.name().clone(), "in"));
        };
        refused(a.call_bytes(&to, Note::TYPE, b"no note", DEADLINE).await.map(drop));
        refused(a.call(&to, &Double(1), DEADLINE).await.map(drop));
        a.send(&to, &note(3)).await.unwrap();
        assert_eq!(soon("the note", serving).await.unwrap(), (note(3), 3));
    }
}

#[tokio::test]
async fn a_typed_mailbox_gives_what_is_there_without_waiting() {
    let a = bind(&ca(), "a").await;
    let (mut mailbox, to) = (a.typed_mailbox::<Note>("in", 10).unwrap(), at(&a, "in"));
    assert!(mailbox.try_recv().is_none());
    a.send_bytes(&to, Note::TYPE, b"no note").await.unwrap();
    a.send(&to, &note(1)).await.unwrap();
    let (from, received, reply) = mailbox.try_recv().unwrap();
    assert_eq!((&from, received, reply.is_awaited()), (a.name(), note(1), false));
    assert_eq!((mailbox.undecodable(), mailbox.try_recv().is_none()), (1, true));
}
