//! What happens at the bounds that are numbers in the code: refused with a reason, and room again afterwards.

use std::net::SocketAddr;

use batched_comm::{
    CallError, MAX_ADDRESSES, MAX_BULK_BACKLOG, MAX_MAILBOX_CAPACITY, MAX_PEERS, MailboxError, NodeName, SendError,
};

use crate::support::*;

fn name(number: usize) -> NodeName {
    format!("p{number}").parse().unwrap()
}

/// An address that no packet can go to, so that nothing is sent.
fn nowhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn with_all_places_taken_a_peer_is_refused_until_one_is_free() {
    let ca = ca();
    let (full, late) = (bind(&ca, "full").await, bind(&ca, "late").await);
    echo(full.mailbox("echo", 10).unwrap());
    for number in 0..MAX_PEERS {
        assert!(full.set_peer(&name(number), vec![nowhere()]));
    }
    assert_eq!(full.peers().len(), MAX_PEERS);
    assert!(!full.set_peer(late.name(), vec![late.local_address()]), "it is said at once");
    assert!(!full.set_peer(full.name(), vec![nowhere()]), "one is no peer of one's own");
    assert!(full.set_peer(&name(0), vec![nowhere()]), "who is one already stays one");
    let error = full.call(&at(&late, "echo"), &note(1), DEADLINE).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent(SendError::UnknownPeer { .. })), "{error}");
    // Who comes from outside is told.
    late.set_peer(full.name(), vec![full.local_address()]);
    let reason = || late.peers()[0].last_error.clone().unwrap_or_default();
    eventually("the refusal", || reason().contains("too busy")).await;
    // A peer that has no address any more gives its place to whoever comes.
    assert!(full.set_peer(&name(7), Vec::new()));
    assert_eq!(late.call(&at(&full, "echo"), &note(2), DEADLINE).await.unwrap(), note(2));
    assert_eq!(full.peers().len(), MAX_PEERS);
    assert!(full.peers().iter().all(|peer| peer.name != name(7)));
    full.shutdown().await;
    assert!(!full.set_peer(&name(8), Vec::new()), "nobody is a peer after the end");
}

#[tokio::test]
async fn more_addresses_than_are_tried_are_not_kept() {
    let a = bind(&ca(), "a").await;
    let b: NodeName = "b".parse().unwrap();
    let addresses = (0..MAX_ADDRESSES + 5).map(|n| SocketAddr::from(([127, 0, 0, 1], 1 + n as u16))).collect();
    a.set_peer(&b, addresses);
    assert_eq!(a.peer_address(&b), Some("127.0.0.1:1".parse().unwrap()));
    assert_eq!(a.peers().len(), 1);
}

#[tokio::test]
async fn capacities_beyond_their_bounds_are_refused() {
    let a = bind(&ca(), "a").await;
    for capacity in [0, MAX_MAILBOX_CAPACITY + 1] {
        let refused = a.mailbox("in", capacity).unwrap_err();
        assert!(matches!(refused, MailboxError::Capacity { given, .. } if given == capacity), "{refused}");
    }
    a.mailbox("in", MAX_MAILBOX_CAPACITY).unwrap();
    for capacity in [0, MAX_BULK_BACKLOG + 1] {
        let refused = a.bulk_listener("in", capacity).unwrap_err();
        assert!(matches!(refused, MailboxError::Capacity { given, .. } if given == capacity), "{refused}");
    }
    a.bulk_listener("in", MAX_BULK_BACKLOG).unwrap();
}
