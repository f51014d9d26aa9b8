//! The states of peers, watched.

use std::time::Duration;

use batched_comm::PeerState;
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
    assert_eq!(*watch.borrow_and_update(), None, "not yet known");
    for _ in 0..5 {
        a.set_peer(b.name(), vec![b.local_address()]);
        assert_ne!(*watch.borrow(), None);
        soon("a connection", watch.wait_for(is_up_state)).await.unwrap();
        assert!(is_up_state(&a.watch_peer(b.name()).borrow()), "who comes later knows it, too");
        assert!(matches!(a.watch_peers().borrow().get(b.name()), Some(PeerState::Up { .. })));
        a.remove_peer(b.name());
        assert_eq!(*watch.borrow_and_update(), None);
        assert!(a.watch_peers().borrow().is_empty());
        // The end of the connection of the former one says nothing of who is no peer.
        let change = timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(change.is_err(), "{:?}", *watch.borrow());
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
            assert!(a.watch_peer(b.name()).has_changed().is_err(), "a late one is closed, too");
        }
        drop(a);
        soon("the end", async { while one.changed().await.is_ok() {} }).await;
        soon("the end", async { while all.changed().await.is_ok() {} }).await;
        assert_eq!(*one.borrow(), None);
        assert!(all.borrow().is_empty());
    }
}
