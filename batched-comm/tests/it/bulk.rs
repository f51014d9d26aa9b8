//! Bulk transfers.

use batched_comm::test_net::{Link, TestNet};
use batched_comm::{BulkError, BulkReceiver, Endpoint, EndpointConfig, PeerEvent};
use std::time::Duration;

use crate::support::*;

const CHUNKS: u8 = 64;

fn chunk(n: u8) -> Vec<u8> {
    vec![n; 128 * 1024]
}

async fn read_all(receiver: &mut BulkReceiver) -> Result<Vec<u8>, BulkError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = receiver.read_chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn with_each_target(test: impl AsyncFn(&Endpoint, &Endpoint)) {
    let (a, b) = pair().await;
    test(&a, &b).await;
    test(&a, &a).await;
}

#[tokio::test]
async fn many_megabytes_arrive_whole_with_header_and_reply() {
    with_each_target(async |a, b| {
        let mut listener = b.bulk_listener("snapshots", 4).unwrap();
        let mut sender = a.open_bulk(&at(b, "snapshots"), b"the header").await.unwrap();
        let from = a.name().clone();
        let receiving = tokio::spawn(async move {
            let mut receiver = listener.accept().await.unwrap();
            assert_eq!((&receiver.from, &receiver.header[..]), (&from, &b"the header"[..]));
            let bytes = read_all(&mut receiver).await.unwrap();
            receiver.reply(format!("{} bytes", bytes.len()).as_bytes()).await.unwrap();
            (bytes, listener)
        });
        for n in 0..CHUNKS {
            soon("room", sender.write(chunk(n).into())).await.unwrap();
        }
        let reply = soon("the reply", sender.finish()).await.unwrap();
        assert_eq!(&reply[..], b"8388608 bytes");
        let (bytes, _listener) = receiving.await.unwrap();
        let expected: Vec<u8> = (0..CHUNKS).flat_map(chunk).collect();
        assert!(bytes == expected);
    })
    .await;
}

#[tokio::test]
async fn a_sender_that_is_dropped_is_an_error_for_the_receiver_never_an_end() {
    with_each_target(async |a, b| {
        let mut listener = b.bulk_listener("snapshots", 4).unwrap();
        let mut sender = a.open_bulk(&at(b, "snapshots"), b"").await.unwrap();
        sender.write(chunk(1).into()).await.unwrap();
        let mut receiver = soon("a transfer", listener.accept()).await.unwrap();
        soon("a chunk", receiver.read_chunk()).await.unwrap().unwrap();
        drop(sender);
        // However often it asks.
        for _ in 0..3 {
            let error = soon("the abort", read_all(&mut receiver)).await.unwrap_err();
            assert!(matches!(error, BulkError::Aborted), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_write_that_is_given_up_gives_the_transfer_up() {
    with_each_target(async |a, b| {
        for writes_on in [true, false] {
            let mut listener = b.bulk_listener("snapshots", 4).unwrap();
            let mut sender = a.open_bulk(&at(b, "snapshots"), b"").await.unwrap();
            let mut receiver = soon("a transfer", listener.accept()).await.unwrap();
            // Nobody reads, so that one of them waits in its middle.
            let short = Duration::from_millis(100);
            while let Ok(written) = tokio::time::timeout(short, sender.write(chunk(1).into())).await {
                written.unwrap();
            }
            let error = if writes_on {
                let error = soon("an error", sender.write(chunk(2).into())).await.unwrap_err();
                let reading = soon("the abort", read_all(&mut receiver)).await;
                assert!(matches!(reading, Err(BulkError::Aborted)));
                error
            } else {
                let (finished, read) = tokio::join!(sender.finish(), read_all(&mut receiver));
                assert!(matches!(read, Err(BulkError::Aborted)));
                finished.unwrap_err()
            };
            assert!(matches!(error, BulkError::Aborted), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_is_dropped_is_an_error_for_the_sender() {
    with_each_target(async |a, b| {
        let mut listener = b.bulk_listener("snapshots", 4).unwrap();
        let mut sender = a.open_bulk(&at(b, "snapshots"), b"").await.unwrap();
        sender.write(chunk(1).into()).await.unwrap();
        drop(soon("a transfer", listener.accept()).await.unwrap());
        let error = soon("the abort", sender.finish()).await.unwrap_err();
        assert!(matches!(error, BulkError::Aborted), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_receiver_may_reply_before_the_end() {
    with_each_target(async |a, b| {
        for writes in [0, 1000] {
            let mut listener = b.bulk_listener("snapshots", 4).unwrap();
            let mut sender = a.open_bulk(&at(b, "snapshots"), b"no need").await.unwrap();
            let receiver = soon("a transfer", listener.accept()).await.unwrap();
            receiver.reply(b"have it").await.unwrap();
            for _ in 0..writes {
                soon("room", sender.write(chunk(1).into())).await.unwrap();
            }
            assert_eq!(&soon("the reply", sender.finish()).await.unwrap()[..], b"have it");
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_listening_and_too_many_waiting_are_told() {
    with_each_target(async |a, b| {
        let open = async |mailbox: &str| {
            soon("an answer", async { a.open_bulk(&at(b, mailbox), b"x").await?.finish().await }).await
        };
        let error = open("none").await.unwrap_err();
        assert!(matches!(error, BulkError::UnknownMailbox { .. }), "{error}");
        let _listener = b.bulk_listener("one", 1).unwrap();
        let _first = a.open_bulk(&at(b, "one"), b"x").await.unwrap();
        // The first may still be on its way when the next ones are judged: then one of them waits.
        let mut errors = Vec::new();
        for _ in 0..2 {
            let attempt = tokio::time::timeout(Duration::from_millis(500), open("one")).await;
            errors.extend(attempt.ok().and_then(Result::err));
        }
        assert!(errors.iter().any(|e| matches!(e, BulkError::Busy { .. })), "{errors:?}");
        let header = vec![0; batched_comm::MAX_BULK_HEADER_BYTES + 1];
        let error = a.open_bulk(&at(b, "one"), &header).await.unwrap_err();
        assert!(matches!(error, BulkError::HeaderTooLarge { .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn transfers_that_nobody_reads_do_not_stop_the_others() {
    let (a, b) = pair().await;
    let mut listener = b.bulk_listener("snapshots", 100).unwrap();
    let short = Duration::from_millis(100);
    let mut stuck = Vec::new();
    // More wait for a place, and are told when there is none.
    let refused = loop {
        let mut sender = match soon("a transfer or an error", a.open_bulk(&at(&b, "snapshots"), b"")).await {
            Ok(sender) => sender,
            Err(error) => break error,
        };
        while let Ok(written) = tokio::time::timeout(short, sender.write(chunk(1).into())).await {
            written.unwrap();
        }
        stuck.push((sender, soon("a transfer", listener.accept()).await.unwrap()));
        assert!(stuck.len() < 8, "they have taken the whole window");
    };
    assert!(matches!(refused, BulkError::Timeout { .. }), "{refused}");
    assert_eq!(stuck.len(), 7);
    drop(stuck.pop());
    let mut sender = soon("a place", a.open_bulk(&at(&b, "snapshots"), b"")).await.unwrap();
    let mut receiver = soon("a transfer", listener.accept()).await.unwrap();
    let reading = tokio::spawn(async move {
        let bytes = read_all(&mut receiver).await.unwrap().len();
        receiver.reply(bytes.to_string().as_bytes()).await.unwrap();
    });
    for n in 0..CHUNKS {
        soon("room", sender.write(chunk(n).into())).await.unwrap();
    }
    assert_eq!(&soon("the reply", sender.finish()).await.unwrap()[..], b"8388608");
    reading.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_transfer_to_a_restarted_peer_does_not_go_to_its_former_start() {
    let net = TestNet::new(1);
    let ca = ca();
    let identity = ca.issue("b").unwrap();
    let bind = async |identity, address: &str| {
        Endpoint::bind_in(&net, address.parse().unwrap(), identity, EndpointConfig::new()).await.unwrap()
    };
    let a = bind(ca.issue("a").unwrap(), "10.0.0.1:1").await;
    let first = bind(identity.clone(), "10.0.0.2:1").await;
    connect(&a, &first).await;
    let transfer = async |to: &Endpoint| {
        let mut listener = to.bulk_listener("files", 4).unwrap();
        let mut sender = a.open_bulk(&at(to, "files"), b"").await?;
        sender.write(chunk(1).into()).await?;
        let mut receiver = listener.accept().await.unwrap();
        let (reply, received) = tokio::join!(sender.finish(), async {
            let bytes = read_all(&mut receiver).await?.len();
            receiver.reply(b"ok").await?;
            Ok::<_, BulkError>(bytes)
        });
        reply.and(received)
    };
    let chunk_bytes = chunk(1).len();
    assert_eq!(soon("a transfer", transfer(&first)).await.unwrap(), chunk_bytes);
    // It says nothing, and comes back elsewhere before anybody misses it.
    net.crash(first.local_address());
    let mut events = a.events();
    let second = bind(identity, "10.0.0.3:1").await;
    second.set_peer(a.name(), vec![a.local_address()]);
    let is_up = |event| matches!(event, PeerEvent::Up { instance, .. } if instance == second.instance()).then_some(());
    event(&mut events, "the new start", is_up).await;
    assert_eq!(soon("a transfer", transfer(&second)).await.unwrap(), chunk_bytes);
}

#[tokio::test]
async fn calls_go_on_beside_a_bulk_transfer() {
    let (a, b) = pair().await;
    echo(b.mailbox("echo", 10).unwrap());
    let mut listener = b.bulk_listener("snapshots", 4).unwrap();
    let mut sender = a.open_bulk(&at(&b, "snapshots"), b"").await.unwrap();
    // Nobody reads: the transfer fills all windows and stops.
    let stuck = tokio::spawn(async move { while sender.write(chunk(1).into()).await.is_ok() {} });
    let _receiver = soon("a transfer", listener.accept()).await.unwrap();
    for n in 0..100 {
        assert_eq!(a.call(&at(&b, "echo"), &note(n), DEADLINE).await.unwrap(), note(n));
    }
    stuck.abort();
}

#[tokio::test]
async fn a_peer_known_by_its_dialling_only_is_reached_in_bulk_too() {
    let (a, b) = pair().await;
    let mut listener = a.bulk_listener("in", 1).unwrap();
    let sender = b.open_bulk(&at(&a, "in"), b"x").await.unwrap();
    let receiver = soon("a transfer", listener.accept()).await.unwrap();
    receiver.reply(b"ok").await.unwrap();
    assert_eq!(&soon("the reply", sender.finish()).await.unwrap()[..], b"ok");
}

#[tokio::test]
async fn both_ends_say_how_far_a_transfer_is() {
    with_each_target(async |a, b| {
        let mut listener = b.bulk_listener("files", 4).unwrap();
        let mut sender = a.open_bulk(&at(b, "files"), b"a header that does not count").await.unwrap();
        let mut receiver = soon("a transfer", listener.accept()).await.unwrap();
        assert_eq!((sender.sent_bytes(), receiver.received_bytes()), (0, 0));
        let chunk_bytes = chunk(0).len() as u64;
        for n in 1..=u64::from(CHUNKS) {
            soon("room", sender.write(chunk(1).into())).await.unwrap();
            assert_eq!(sender.sent_bytes(), n * chunk_bytes);
            while receiver.received_bytes() < n * chunk_bytes {
                let before = receiver.received_bytes();
                let read = soon("a chunk", receiver.read_chunk()).await.unwrap().unwrap();
                assert_eq!(receiver.received_bytes(), before + read.len() as u64);
            }
        }
        let finishing = tokio::spawn(sender.finish());
        assert!(soon("the end", receiver.read_chunk()).await.unwrap().is_none());
        assert_eq!(receiver.received_bytes(), u64::from(CHUNKS) * chunk_bytes);
        receiver.reply(b"").await.unwrap();
        soon("the reply", finishing).await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_cancels_midway_stops_a_sender_in_its_write() {
    with_each_target(async |a, b| {
        let mut listener = b.bulk_listener("files", 4).unwrap();
        let mut sender = a.open_bulk(&at(b, "files"), b"").await.unwrap();
        let mut receiver = soon("a transfer", listener.accept()).await.unwrap();
        let writing = tokio::spawn(async move {
            loop {
                if let Err(error) = sender.write(chunk(1).into()).await {
                    return (error, sender.sent_bytes());
                }
            }
        });
        while receiver.received_bytes() < 1024 * 1024 {
            soon("a chunk", receiver.read_chunk()).await.unwrap().unwrap();
        }
        // Nobody reads any more: the sender fills all windows and waits.
        tokio::task::yield_now().await;
        let received = receiver.received_bytes();
        drop(receiver);
        let (error, sent) = soon("the abort", writing).await.unwrap();
        assert!(matches!(error, BulkError::Aborted), "{error}");
        assert!(sent >= received, "{sent} {received}");
        // The name and the connection go on.
        let next = a.open_bulk(&at(b, "files"), b"next").await.unwrap();
        let receiver = soon("a transfer", listener.accept()).await.unwrap();
        assert_eq!(&receiver.header[..], b"next");
        drop(next);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_transfer_over_a_bad_link_arrives_whole_while_calls_go_on() {
    let net = TestNet::new(1);
    let ms = Duration::from_millis;
    net.set_default_link(Link::with_delay(ms(5)..ms(25)).with_loss(0.03).with_duplicates(0.03));
    let ca = ca();
    let bind = async |name, address: &str| {
        let identity = ca.issue(name).unwrap();
        Endpoint::bind_in(&net, address.parse().unwrap(), identity, EndpointConfig::new()).await.unwrap()
    };
    let (a, b) = (bind("a", "10.0.0.1:0").await, bind("b", "10.0.0.1:0").await);
    connect(&a, &b).await;
    echo(b.mailbox("echo", 10).unwrap());
    let mut listener = b.bulk_listener("files", 4).unwrap();
    let mut sender = a.open_bulk(&at(&b, "files"), b"").await.unwrap();
    let receiving = tokio::spawn(async move { read_all(&mut listener.accept().await.unwrap()).await });
    for n in 0..8 {
        soon("room", sender.write(chunk(n).into())).await.unwrap();
        assert_eq!(a.call(&at(&b, "echo"), &note(n.into()), DEADLINE).await.unwrap(), note(n.into()));
    }
    // The receiver goes without a reply, after it has read all.
    let _ = soon("the end", sender.finish()).await;
    let received = soon("the bytes", receiving).await.unwrap().unwrap();
    assert!(received == (0..8).flat_map(chunk).collect::<Vec<_>>());
    let traffic = net.traffic();
    assert!(traffic.lost > 0 && traffic.duplicated > 0, "{traffic:?}");
}
