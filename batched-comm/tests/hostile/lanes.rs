//! Strangers whose certificate and hello are good, and who misuse what they get.

use std::time::{Duration, Instant};

use batched_comm::{CallError, SendError};
use tokio::time::timeout;

use crate::stranger::{BULK, LANE, batch, batch_of, frame, hello, soon};
use crate::victim::DEAF_CAPACITY;
use crate::{DEADLINE, KIB, MIB, Scene, address};

const ABSURD: u32 = 0xffff_fff0;

pub async fn garbage_on_a_lane_ends_it_with_a_reason(scene: &mut Scene) {
    let stranger = scene.stranger("mallory");
    let ping = frame(1, "echo", 0, b"hello");
    let mut wrong_magic = batch(std::slice::from_ref(&ping));
    wrong_magic[0] = 0xee;
    let mut wrong_version = batch(std::slice::from_ref(&ping));
    wrong_version[2] = 9;
    let mut long_message = frame(1, "echo", 0, b"hello");
    long_message[16..20].copy_from_slice(&ABSURD.to_le_bytes());
    let mut long_name = ping.clone();
    long_name[1] = 65;
    let size = ping.len() as u32;
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (wrong_magic, "a batch begins with 0xbaee"),
        (wrong_version, "batch version 9"),
        (batch_of(1, 0xee, size, size, &ping), "compression 238 is not known"),
        (batch_of(1, 0, ABSURD, ABSURD, &ping), "a batch of"),
        (batch_of(1, 0, size, size + 16, &[ping.clone(), vec![0; 16]].concat()), "two sizes"),
        (batch_of(1, 0, size + 1, size + 1, &ping), "no multiple of 16"),
        (batch(&[long_message]), "a message of"),
        (batch(&[long_name]), "mailbox"),
        (batch(&[frame(1, "", 0, b"to nobody")]), "mailbox"),
        (batch(&[frame(99, "echo", 0, b"")]), "99"),
        (batch(&[frame(6, "", 0, b"no cluster")]), "a cluster has 24 bytes"),
        (batch(&[ping[..32].to_vec()]), "a frame is longer than its batch"),
        (batch_of(1, 0, 2 * size, 2 * size, &ping.repeat(2)), "bytes after the last frame"),
        (batch_of(ABSURD, 0, size, size, &ping), "more than 65,536 messages"),
        (batch(&[frame(5, &",".repeat(255), 0, b"")]), "mailbox"),
    ];
    let tasks = scene.victim.status().tasks;
    for round in 0..10 {
        for (garbage, expected) in &rows {
            let bytes = [hello("mallory", 1, LANE, round), garbage.clone()].concat();
            let reason = stranger.say(scene.victim.address, &bytes, false).await;
            assert!(reason.contains(expected), "{expected:?} is not in {reason:?}");
        }
    }
    // The driver of a peer without a connection stays.
    scene.tasks_are_back_at(tasks + 1).await;
}

pub async fn bombs_are_seen_before_they_go_off(scene: &mut Scene) {
    const LZ4: u8 = 1;
    let stranger = scene.stranger("mallory");
    let large = frame(1, "nobody", 0, &vec![0; crate::MAX_MESSAGE_BYTES]);
    let raw_bytes = large.len() as u32;
    let bomb = lz4_flex::block::compress(&large);
    assert!(bomb.len() < 40 * KIB);
    let packed = |claimed: u32, bytes: &[u8]| {
        let mut batch = batch_of(1, LZ4, bytes.len() as u32, claimed, bytes);
        batch.resize(batch.len().next_multiple_of(16), 0);
        batch
    };
    let rows = [
        (packed(64 * KIB as u32, &bomb), "unpacks to more than it claims"),
        (packed(raw_bytes + 16, &bomb), "unpacks to less than it claims"),
        (packed(raw_bytes, &[0x1f; 100]), "claims more than it can hold"),
        (packed(raw_bytes, &[0x1f; 40 * KIB]), "it is damaged"),
        (packed(ABSURD, &bomb), "a batch of"),
        (packed(16, &bomb), "it is no shorter"),
    ];
    for instance in 0..5 {
        for (garbage, expected) in &rows {
            let bytes = [hello("mallory", 1, LANE, instance), garbage.clone()].concat();
            let reason = stranger.say(scene.victim.address, &bytes, false).await;
            assert!(reason.contains(expected), "{expected:?} is not in {reason:?}");
        }
    }
    // Those that keep to the rules are work, and no more than that: 800 MiB out of 3.
    let mut mallory = stranger.greeted(scene.victim.address, "mallory", LANE, 9).await;
    let honest = packed(raw_bytes, &bomb);
    let sending = async {
        for _ in 0..100 {
            mallory.send.write_all(&honest).await.unwrap();
        }
        mallory.send.write_all(&batch(&[frame(2, "echo", 5, b"done")])).await.unwrap();
    };
    soon("room", sending).await;
    let mut answer = [0; 64];
    soon("the answer", mallory.recv.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer[48..52], b"done");
}

pub async fn a_lane_that_ends_within_a_batch_is_an_error(scene: &mut Scene) {
    let stranger = scene.stranger("mallory");
    let whole = batch(&[frame(1, "echo", 0, b"hello")]);
    for cut in [1, 15, 16, 30, whole.len() - 1] {
        let bytes = [&hello("mallory", 1, LANE, 1), &whole[..cut]].concat();
        let reason = stranger.say(scene.victim.address, &bytes, true).await;
        assert!(reason.contains("the lane ended within a batch"), "{cut}: {reason}");
    }
}

/// The largest batch there is, all but its last byte.
pub async fn a_message_that_never_ends_is_held_once(scene: &mut Scene) {
    let stranger = scene.stranger("mallory");
    for instance in 0..3 {
        let mut mallory = stranger.greeted(scene.victim.address, "mallory", LANE, instance).await;
        let whole = batch(&[frame(1, "echo", 0, &vec![9; crate::MAX_MESSAGE_BYTES])]);
        soon("room", mallory.send.write_all(&whole[..whole.len() - 1])).await.unwrap();
        // It waits as long as pings are answered, and then is gone in one step.
        assert!(timeout(Duration::from_millis(300), mallory.connection.closed()).await.is_err());
        mallory.connection.close(0u32.into(), b"");
    }
}

pub async fn streams_beyond_the_limit_wait(scene: &mut Scene) {
    let stranger = scene.stranger("mallory");
    let mut mallory = stranger.greeted(scene.victim.address, "mallory", LANE, 1).await;
    let more = timeout(Duration::from_millis(500), mallory.connection.open_bi()).await;
    assert!(more.is_err(), "a lane has one stream");
    assert!(timeout(Duration::from_millis(500), mallory.connection.open_uni()).await.is_err());
    mallory.send.write_all(&batch(&[frame(2, "echo", 5, b"hello")])).await.unwrap();
    let mut answer = [0; 64];
    soon("the answer", mallory.recv.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer[48..53], b"hello", "the stream it has works");
}

pub async fn a_peer_that_never_reads_is_held_up(scene: &mut Scene) {
    // What one stream may send before it is read, the queue twice (one is being written), and what QUIC keeps.
    const MOST: u64 = (8 * MIB) as u64;
    let stranger = scene.stranger("mallory");
    let mut mallory = stranger.greeted(scene.victim.address, "mallory", LANE, 1).await;
    scene.victim.flood("mallory");
    let calls = batch(&vec![frame(2, "echo", 1, &[3; 10 * KIB]); 50]);
    let asking = async {
        for _ in 0..200 {
            mallory.send.write_all(&calls).await.unwrap();
        }
    };
    soon("room for all the calls", asking).await;
    let deadline = Instant::now() + DEADLINE;
    let mut before = u64::MAX;
    loop {
        let flooded = scene.victim.status().flooded;
        assert!(flooded * 1024 < MOST, "{flooded} messages were sent to somebody who reads nothing");
        if flooded == before {
            break;
        }
        before = flooded;
        assert!(Instant::now() < deadline, "the sender is never held up");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before > 0);
    assert!(mallory.connection.close_reason().is_none(), "slow is no crime");
}

pub async fn a_mailbox_that_nobody_reads_takes_so_much(scene: &mut Scene) {
    // The honest ones learn at once that it is full.
    let (mut waiting, mut full) = (tokio::task::JoinSet::new(), 0);
    for _ in 0..DEAF_CAPACITY + 500 {
        let friend = scene.friend.clone();
        waiting.spawn(async move { friend.call_bytes(&address("deaf"), 1, b"", DEADLINE).await });
    }
    while full < 500 {
        let answered = soon("the refusals", waiting.join_next()).await.unwrap().unwrap();
        assert!(matches!(answered, Err(CallError::NotSent(SendError::MailboxFull { .. }))), "{answered:?}");
        full += 1;
    }
    waiting.shutdown().await;
    let stranger = scene.stranger("mallory");
    let mut mallory = stranger.greeted(scene.victim.address, "mallory", LANE, 1).await;
    // 150 MiB by number of bytes, and one frame that asks for 128 copies of 1 MiB.
    let many = vec!["deaf_wide"; 25].join(",");
    let large = vec![1; MIB];
    let casts = [frame(1, "deaf_wide", 0, &large), frame(5, &many, 0, &large)].map(|frame| batch(&[frame]));
    let sending = async {
        for cast in &casts {
            for _ in 0..75 {
                mallory.send.write_all(cast).await.unwrap();
            }
        }
        mallory.send.write_all(&batch(&[frame(2, "deaf_wide", 5, b"hello")])).await.unwrap();
    };
    soon("room", sending).await;
    let mut answer = [0; 48];
    soon("the refusal", mallory.recv.read_exact(&mut answer)).await.unwrap();
    assert_eq!((answer[16], answer[20]), (4, 2), "a refusal, because the mailbox is full");
}

pub async fn lanes_that_replace_each_other_leave_nothing(scene: &mut Scene) {
    let stranger = scene.stranger("mallory");
    let tasks = scene.victim.status().tasks;
    let mut former: Option<crate::stranger::Greeted> = None;
    for instance in 0..200 {
        let mallory = stranger.greeted(scene.victim.address, "mallory", LANE, instance).await;
        if let Some(former) = former.replace(mallory) {
            let reason = soon("the end", former.connection.closed()).await.to_string();
            assert!(reason.contains("replaced"), "{reason}");
        }
    }
    drop(former);
    // The driver of a peer without a connection stays.
    scene.tasks_are_back_at(tasks + 1).await;
}

/// More than may wait to be judged (`MAX_OFFERS` in peer.rs).
pub async fn many_lanes_at_once_end_as_one(scene: &mut Scene) {
    const LANES: u64 = 100;
    let stranger = std::sync::Arc::new(scene.stranger("mallory"));
    let tasks = scene.victim.status().tasks;
    let mut lanes = tokio::task::JoinSet::new();
    for instance in 0..LANES {
        let (stranger, to) = (stranger.clone(), scene.victim.address);
        lanes.spawn(async move {
            let connection = stranger.connect(to).await.unwrap();
            let (mut send, recv) = connection.open_bi().await.unwrap();
            // Whoever is cut off while writing learns why below.
            let _ = send.write_all(&hello("mallory", 1, LANE, instance)).await;
            let ended = timeout(Duration::from_secs(5), connection.closed()).await;
            (ended.map(|reason| reason.to_string()).ok(), connection, send, recv)
        });
    }
    let ended = lanes.join_all().await;
    let reasons = ended.iter().filter_map(|(reason, ..)| reason.as_deref());
    let told = |reason: &str| ["replaced", "too busy"].iter().any(|known| reason.contains(known));
    let unknown: Vec<_> = reasons.filter(|reason| !told(reason)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(ended.iter().filter(|(reason, ..)| reason.is_none()).count(), 1, "one stands");
    drop(ended);
    // The driver of a peer without a connection stays.
    scene.tasks_are_back_at(tasks + 1).await;
}

pub async fn bulk_that_nobody_reads_is_held_up(scene: &mut Scene) {
    let stranger = scene.stranger("mallory");
    let transfer = [&[1, 4, 0, 0, 0, 0, 0, 0], &b"deaf"[..], &[5; 2 * MIB]].concat();
    let mut kept = Vec::new();
    for instance in 0..3 {
        let mut mallory = stranger.greeted(scene.victim.address, "mallory", BULK, instance).await;
        // The hello's stream is one of those that may be open, until it is given up.
        mallory.send.reset(0u32.into()).unwrap();
        let mut streams = Vec::new();
        // All the streams there are, each with more than fits.
        while let Ok(Ok((mut send, recv))) = timeout(Duration::from_millis(200), mallory.connection.open_bi()).await {
            let written = timeout(Duration::from_millis(200), send.write_all(&transfer)).await;
            assert!(written.is_err(), "nobody reads it: {written:?}");
            streams.push((send, recv));
            assert!(streams.len() <= 7, "no bound");
        }
        assert_eq!(streams.len(), 7);
        kept.push((mallory, streams));
    }
    let reason = soon("the end of the oldest", kept[0].0.connection.closed()).await.to_string();
    assert!(reason.contains("newer"), "{reason}");
    assert!(kept[1..].iter().all(|(mallory, _)| mallory.connection.close_reason().is_none()), "slow is no crime");
}

pub async fn a_bulk_header_that_never_ends_is_given_up(scene: &mut Scene) {
    let stranger = scene.stranger("mallory");
    let mallory = stranger.greeted(scene.victim.address, "mallory", BULK, 1).await;
    let (mut send, mut recv) = mallory.connection.open_bi().await.unwrap();
    send.write_all(&[1, 200, 0, 0]).await.unwrap();
    match soon("the end of the stream", recv.read_to_end(1000)).await {
        Ok(reply) => assert!(reply.is_empty() || reply[0] == 3, "malformed: {reply:?}"),
        Err(error) => assert!(matches!(error, quinn::ReadToEndError::Read(quinn::ReadError::Reset(_))), "{error}"),
    }
    assert!(mallory.connection.close_reason().is_none(), "other transfers go on");
}
