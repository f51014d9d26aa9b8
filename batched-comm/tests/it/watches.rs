//! The states of peers, watched.

use std::time::Duration;

use batched_comm::{Endpoint, PeerState, SendError};
use tokio::time::timeout;

use crate::support::*;

fn is_up_state(state: &Option<PeerState>) -> bool {
    matches!(state, Some(PeerState::Up { .. }))
}

#[tokio::test]
async fn a_watch_sees_a_peer_become_known_go_up_be_removed_and_return() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    let mut watch = a.watch_peer(b.name());
    assert_eq!(watch.get(), None, "not yet known");
    for _ in 0..5 {
        a.set_peer(b.name(), vec![b.local_address()]);
        assert_ne!(watch.get(), None);
        soon("a connection", watch.wait_for(is_up_state)).await.unwrap();
        assert!(is_up_state(&a.watch_peer(b.name()).get()), "who comes later knows it, too");
        assert!(matches!(a.watch_peers().get().get(b.name()), Some(PeerState::Up { .. })));
        a.remove_peer(b.name());
        assert_eq!(watch.get(), None);
        assert!(a.watch_peers().get().is_empty());
        // The end of the connection of the former one says nothing of who is no peer.
        let change = timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(change.is_err(), "{:?}", watch.get());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sees_that_a_peer_is_up_can_send_to_it() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    let _mailbox = b.mailbox("in", 1000).unwrap();
    let mut watch = a.watch_peer(b.name());
    for round in 0..300 {
        a.set_peer(b.name(), vec![b.local_address()]);
        soon("a connection", watch.wait_for(is_up_state)).await.unwrap();
        let sent = a.try_send(&at(&b, "in"), &note(round));
        assert!(sent.is_ok(), "round {round}: {sent:?}");
        a.remove_peer(b.name());
    }
}

#[tokio::test]
async fn a_watch_says_the_latest_however_long_nobody_looked() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    let (mut events, mut watch) = (a.events(), a.watch_peer(b.name()));
    // More changes than the events' backlog holds.
    for _ in 0..3000 {
        a.set_peer(b.name(), Vec::new());
        a.remove_peer(b.name());
    }
    a.set_peer(b.name(), vec![b.local_address()]);
    soon("a connection", watch.wait_for(is_up_state)).await.unwrap();
    let instance = event(&mut events, "up", |event| match event {
        batched_comm::PeerEvent::Up { instance, .. } => Some(instance),
        _ => None,
    });
    assert_eq!(instance.await, b.instance());
    drop(b);
    soon("the loss", watch.wait_for(|state| !is_up_state(state))).await.unwrap();
}

#[tokio::test]
async fn a_silent_peer_is_suspect_and_a_lost_one_is_not_up() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    let relay = Relay::to(b.local_address()).await;
    let mut watch = a.watch_peer(b.name());
    a.set_peer(b.name(), vec![relay.address()]);
    soon("a connection", watch.wait_for(is_up_state)).await.unwrap();
    relay.cut(true);
    soon("suspicion", watch.wait_for(|state| matches!(state, Some(PeerState::Suspect { .. })))).await.unwrap();
    let lost = |state: &Option<PeerState>| matches!(state, Some(PeerState::BackingOff { .. } | PeerState::Connecting));
    soon("the loss", watch.wait_for(lost)).await.unwrap();
    relay.cut(false);
    soon("a connection", watch.wait_for(is_up_state)).await.unwrap();
}

#[tokio::test]
async fn at_the_end_a_watch_says_nobody_and_is_closed() {
    for graceful in [true, false] {
        let (a, b) = pair().await;
        let (mut one, mut all) = (a.watch_peer(b.name()), a.watch_peers());
        if graceful {
            a.shutdown().await;
            assert!(a.watch_peer(b.name()).is_ended(), "a late one is closed, too");
        }
        drop(a);
        soon("the end", async { while one.changed().await.is_ok() {} }).await;
        soon("the end", async { while all.changed().await.is_ok() {} }).await;
        assert_eq!(one.get(), None);
        assert!(all.get().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_the_states_of_all_peers_holds_up_nobody() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    echo(b.mailbox("echo", 10).unwrap());
    let nowhere = (0..20).map(|n| format!("n{n}").parse().unwrap()).collect::<Vec<_>>();
    for name in &nowhere {
        a.set_peer(name, Vec::new());
    }
    let mut watch = a.watch_peers();
    let states = watch.get();
    assert_eq!(states.len(), 20);
    for name in states.keys() {
        a.remove_peer(name);
        a.set_peer(b.name(), vec![b.local_address()]);
        assert_eq!(a.call(&at(&b, "echo"), &note(1), DEADLINE).await.unwrap(), note(1));
        a.remove_peer(b.name());
    }
    assert_eq!((states.len(), watch.get().len()), (20, 0));
    // A condition may ask the endpoint, and change what it waits for.
    let counted = watch.wait_for(|states| {
        a.set_peer(&nowhere[states.len()], Vec::new());
        states.len() == 10
    });
    assert_eq!(soon("ten peers", counted).await.unwrap().len(), 10);
}

#[tokio::test]
async fn a_connection_is_waited_for_and_then_a_message_can_be_sent() {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    let short = Duration::from_millis(20);
    let unknown = SendError::UnknownPeer { peer: b.name().clone() };
    assert_eq!(a.connected(b.name(), short).await, Err(unknown));
    a.connected(a.name(), short).await.unwrap();
    let mut mailbox = b.mailbox("in", 10).unwrap();
    let waiting = tokio::spawn({
        let (a, to) = (a.clone(), at(&b, "in"));
        async move {
            // Before anybody has said where it is.
            a.connected(&to.node, DEADLINE).await.unwrap();
            a.send(&to, &note(1)).await.unwrap();
        }
    });
    tokio::task::yield_now().await;
    a.set_peer(b.name(), vec![b.local_address()]);
    soon("the note", mailbox.recv()).await.unwrap();
    waiting.await.unwrap();
    b.connected(a.name(), DEADLINE).await.unwrap();
}

#[tokio::test]
async fn who_waits_in_vain_for_a_connection_is_told_why_there_is_none() {
    let (ca, other_ca) = (ca(), ca());
    let (a, b) = (bind(&ca, "a").await, bind(&other_ca, "b").await);
    a.set_peer(b.name(), vec![b.local_address()]);
    let error = a.connected(b.name(), Duration::from_secs(2)).await.unwrap_err();
    let SendError::NotConnected { peer, last_error: Some(reason) } = &error else { panic!("{error}") };
    assert_eq!(peer, b.name());
    assert!(reason.contains("certificate"), "{reason}");
    let waits = async |endpoint: &Endpoint| endpoint.connected(b.name(), DEADLINE).await;
    let (ended, ()) = tokio::join!(waits(&a), a.shutdown());
    assert_eq!((ended, waits(&a).await), (Err(SendError::ShutDown), Err(SendError::ShutDown)));
}
