//! Batching and compression, changed while messages flow, for all peers and for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use batched_comm::{Batching, Compression, Endpoint, EndpointConfig, Mailbox, Traffic};

use crate::refusals::{hello, victim};
use crate::support::*;

#[cfg(feature = "zstd")]
const COMPRESSIONS: [Compression; 2] = [Compression::Lz4, Compression::Zstd];
#[cfg(not(feature = "zstd"))]
const COMPRESSIONS: [Compression; 1] = [Compression::Lz4];

fn compressed(compression: Compression) -> Batching {
    Batching::default().with_compression(compression).unwrap()
}

fn traffic(of: &Endpoint, to: &Endpoint) -> Traffic {
    of.peers().into_iter().find(|peer| peer.name == *to.name()).unwrap().traffic
}

/// What a sends to b, and what b receives, while so many messages arrive.
async fn period(a: &Endpoint, b: &Endpoint, mailbox: &mut Mailbox, next: &mut u64, count: u64) -> (Traffic, Traffic) {
    let (sent, received) = (traffic(a, b), traffic(b, a));
    for _ in 0..count {
        let incoming = soon("a message", mailbox.recv()).await.unwrap();
        assert_eq!(incoming.decode::<Note>().unwrap(), long_note(*next));
        *next += 1;
    }
    (traffic(a, b).since(&sent), traffic(b, a).since(&received))
}

fn long_note(number: u64) -> Note {
    Note { number, text: format!("a note that says {number} and then goes on about it ").repeat(4) }
}

#[tokio::test]
async fn compression_is_set_while_messages_flow_and_makes_the_bytes_fewer() {
    // All in one thread's turns: else much is in the mailbox that was sent before a setting was changed.
    let as_task = EndpointConfig::new().with_network_thread(false);
    let ca = ca();
    let (a, b) = (bind_with(&ca, "a", as_task.clone()).await, bind_with(&ca, "b", as_task).await);
    connect(&a, &b).await;
    let mut mailbox = b.mailbox("in", 1_000_000).unwrap();
    let ends = Arc::new(AtomicBool::new(false));
    let sender = tokio::spawn({
        let (a, to, ends) = (a.clone(), at(&b, "in"), ends.clone());
        async move {
            let mut count = 0;
            while !ends.load(Ordering::SeqCst) {
                // Several at once, so that there is something to compress.
                for _ in 0..20 {
                    a.send(&to, &long_note(count)).await.unwrap();
                    count += 1;
                }
                tokio::task::yield_now().await;
            }
            count
        }
    });
    let mut next = 0;
    for compression in COMPRESSIONS.into_iter().chain([Compression::None]) {
        a.set_batching(compressed(compression));
        assert_eq!(a.batching().compression(), compression);
        // What was on its way before.
        let backlog = traffic(&a, &b).messages_sent.max(next) + 20_000 - next;
        period(&a, &b, &mut mailbox, &mut next, backlog).await;
        let (sent, received) = period(&a, &b, &mut mailbox, &mut next, 2000).await;
        match compression {
            Compression::None => {
                assert_eq!(sent.bytes_sent, sent.raw_bytes_sent);
                assert_eq!(received.bytes_received, received.raw_bytes_received);
            }
            _ => {
                assert!(sent.bytes_sent * 2 < sent.raw_bytes_sent, "{compression:?}: {sent:?}");
                assert!(received.bytes_received * 2 < received.raw_bytes_received, "{compression:?}: {received:?}");
                let per_batch = sent.per_batch_sent().unwrap();
                assert!(per_batch.messages > 1.0 && per_batch.bytes * 2.0 < per_batch.raw_bytes, "{per_batch:?}");
            }
        }
    }
    ends.store(true, Ordering::SeqCst);
    let count = soon("the sender", sender).await.unwrap();
    let rest = count - next;
    period(&a, &b, &mut mailbox, &mut next, rest).await;
    let (sent, received) = (traffic(&a, &b), traffic(&b, &a));
    assert_eq!((sent.messages_sent, sent.messages_dropped, sent.connections), (count, 0, 1));
    assert_eq!(
        (sent.messages_sent, sent.batches_sent, sent.raw_bytes_sent, sent.bytes_sent),
        (received.messages_received, received.batches_received, received.raw_bytes_received, received.bytes_received),
    );
    assert_eq!(sent.since(&sent).per_batch_sent(), None, "empty when idle");
}

#[tokio::test]
async fn small_large_and_incompressible_messages_pass_through_compression() {
    for compression in COMPRESSIONS {
        let (a, b) = pair().await;
        a.set_batching(compressed(compression));
        let mut mailbox = b.mailbox("in", 100).unwrap();
        let noise: Vec<u8> = (0..2_000_000u32).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
        let bodies = [vec![], vec![1; 10], vec![2; batched_comm::MAX_MESSAGE_BYTES], noise, vec![3; 5000]];
        for body in &bodies {
            a.send_bytes(&at(&b, "in"), 1, body).await.unwrap();
        }
        for body in &bodies {
            let incoming = soon("a message", mailbox.recv()).await.unwrap();
            assert!(incoming.body() == &body[..], "{compression:?}: {} bytes", body.len());
            assert!(body.is_empty() || (incoming.body().as_ptr() as usize).is_multiple_of(16));
        }
        let sent = traffic(&a, &b);
        let saved = sent.raw_bytes_sent - sent.bytes_sent;
        assert!(saved > batched_comm::MAX_MESSAGE_BYTES as u64 * 9 / 10, "{compression:?}: {sent:?}");
    }
}

#[tokio::test]
async fn a_peer_with_batching_of_its_own_keeps_it_until_it_is_taken_back() {
    let ca = ca();
    let as_task = EndpointConfig::new().with_network_thread(false);
    let [a, b, c] = [bind_with(&ca, "a", as_task).await, bind(&ca, "b").await, bind(&ca, "c").await];
    let small = Batching::default().with_max_batch_messages(10).unwrap();
    let all = Batching::default().with_max_batch_messages(50).unwrap();
    // Before it is known.
    a.set_peer_batching(b.name(), Some(small)).unwrap();
    connect(&a, &b).await;
    connect(&a, &c).await;
    a.set_batching(all);
    assert_eq!((a.peer_batching(b.name()), a.peer_batching(c.name()), a.batching()), (Some(small), None, all));
    let mut mailboxes = [b.mailbox("in", 1000).unwrap(), c.mailbox("in", 1000).unwrap()];
    let mut batches = async |to: &Endpoint, mailbox: usize| {
        let before = traffic(&a, to);
        // Nobody else runs between these, so that they gather.
        for n in 0..100 {
            a.try_send(&at(to, "in"), &note(n)).unwrap();
        }
        for _ in 0..100 {
            soon("a message", mailboxes[mailbox].recv()).await.unwrap();
        }
        traffic(&a, to).since(&before).batches_sent
    };
    assert_eq!((batches(&b, 0).await, batches(&c, 1).await), (10, 2));
    // It stays when the connection is another one, and when the peer is.
    for removed in [false, true] {
        let connections = if removed { 0 } else { traffic(&a, &b).connections };
        if removed {
            a.remove_peer(b.name());
        } else {
            b.remove_peer(a.name());
        }
        a.set_peer(b.name(), vec![b.local_address()]);
        let again = || is_up(&a, &b) && is_up(&b, &a) && traffic(&a, &b).connections > connections;
        eventually("a new connection", again).await;
        assert_eq!((a.peer_batching(b.name()), batches(&b, 0).await), (Some(small), 10), "{removed}");
    }
    a.set_peer_batching(b.name(), None).unwrap();
    assert_eq!((a.peer_batching(b.name()), batches(&b, 0).await), (None, 2));
}

/// The first batch that a node sends to somebody who says `flags` in its hello; the byte of its compression.
async fn compression_for(flags: u8, set: Compression) -> u8 {
    let victim = victim().await;
    victim.endpoint.set_batching(compressed(set));
    let connection = victim.stranger(Some("mallory")).connect(&victim.endpoint).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let mut own_hello = hello("mallory", 1, 1);
    own_hello[9] |= flags;
    send.write_all(&own_hello).await.unwrap();
    let mut answer = vec![0; 64];
    soon("the answer", recv.read_exact(&mut answer)).await.unwrap();
    assert_eq!((&answer[..4], u16::from_le_bytes([answer[6], answer[7]])), (&b"BCre"[..], 64));
    let own_flags = if cfg!(feature = "zstd") { 6 } else { 2 };
    assert_eq!(answer[9], own_flags, "it says what it understands");
    let to = batched_comm::Address::new(&"mallory".parse().unwrap(), "in").unwrap();
    let sending = async {
        while victim.endpoint.send_bytes(&to, 1, &[7; 1000]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon("a connection", sending).await;
    let mut header = [0; 16];
    soon("a batch", recv.read_exact(&mut header)).await.unwrap();
    assert_eq!(header[..3], [0x7c, 0xba, 1]);
    header[3]
}

#[tokio::test]
async fn a_peer_is_sent_only_what_it_said_it_understands() {
    assert_eq!(compression_for(0, Compression::Lz4).await, 0);
    assert_eq!(compression_for(2, Compression::Lz4).await, 1);
    assert_eq!(compression_for(4, Compression::Lz4).await, 0);
    #[cfg(feature = "zstd")]
    for (flags, expected) in [(0, 0), (2, 0), (4, 2), (0xfe, 2)] {
        assert_eq!(compression_for(flags, Compression::Zstd).await, expected, "flags {flags}");
    }
}
