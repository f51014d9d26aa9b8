//! Strangers up to their hello.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::stranger::{LANE, Stranger, hello, soon};
use crate::{DEADLINE, LOOPBACK, Scene};

/// Nodes that come in while handshakes stall.
const NEWCOMERS: usize = 4;

pub async fn hellos_that_are_wrong_are_told_so(scene: &mut Scene) {
    let stranger = scene.stranger("mallory");
    let good = hello("mallory", 1, LANE, 1);
    // It says that it has 64 KiB, and has.
    let mut large = good.clone();
    large[6..8].copy_from_slice(&[0xff, 0xff]);
    large.resize(64 * 1024, 0);
    let mut nameless = good.clone();
    nameless[10] = 0;
    let rows: [(Vec<u8>, bool, &str); 7] = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), false, "it begins with something else"),
        (hello("mallory", 9, LANE, 1), false, "protocol version 9 was heard where 1 is spoken"),
        (hello("mallory", 1, 77, 1), false, "its purpose is not known"),
        (hello("friend", 1, LANE, 1), false, "calls itself friend"),
        (large, false, "its length is out of range"),
        (nameless, false, "its name is no node's name"),
        (good[..40].to_vec(), true, "it is too short"),
    ];
    for _ in 0..2 {
        for (bytes, finish, expected) in &rows {
            let reason = stranger.say(scene.victim.address, bytes, *finish).await;
            assert!(reason.contains(expected), "{expected:?} is not in {reason:?}");
        }
    }
    scene.newcomer("newcomer").await;
}

/// 400 connections, more than may be on their way to a hello, that finish TLS; every second one begins a hello, none ends it.
pub async fn hellos_that_never_end_are_cut_off(scene: &mut Scene) {
    let tasks = scene.victim.status().tasks;
    let stranger = Arc::new(scene.stranger("mallory"));
    let early = stranger.connect(scene.victim.address).await.unwrap();
    let _only = early.open_bi().await.unwrap();
    let second = timeout(Duration::from_millis(200), early.open_bi()).await;
    assert!(second.is_err(), "before the hello there is one stream, so nothing piles up in others");
    let mut ends = JoinSet::new();
    for n in 0..400 {
        let (stranger, to) = (stranger.clone(), scene.victim.address);
        ends.spawn(async move {
            let connection = stranger.connect(to).await.map_err(|error| error.to_string())?;
            let opened = match n % 2 {
                0 => Some(connection.open_bi().await.map_err(|error| error.to_string())?),
                _ => None,
            };
            if let Some((mut send, _)) = opened {
                let _ = send.write_all(&hello("mallory", 1, LANE, 1)[..20]).await;
                return Err(soon("the end", connection.closed()).await.to_string());
            }
            Err::<(), _>(soon("the end", connection.closed()).await.to_string())
        });
        if n % 8 == 0 {
            // Else packets are lost, and the test waits for the silence after them.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    scene.newcomer("newcomer").await;
    let mut reasons: HashMap<String, usize> = HashMap::new();
    while let Some(ended) = ends.join_next().await {
        *reasons.entry(ended.unwrap().unwrap_err()).or_default() += 1;
    }
    let told = |part: &str| -> usize {
        reasons.iter().filter(|(reason, _)| reason.contains(part)).map(|(_, count)| count).sum()
    };
    assert!(told("no hello came within") > 0, "{reasons:?}");
    let expected = told("no hello came within") + told("too many connections") + told("it is too short");
    // Who was cut off before TLS had ended has no key yet by which it could be told more.
    let silent = told("closed by peer") - expected + told("timed out");
    assert!(expected > silent, "{reasons:?}");
    scene.tasks_are_back_at(tasks + 1).await;
}

pub async fn those_whom_the_ca_does_not_know_are_refused(scene: &mut Scene) {
    let strangers = [scene.outsider("mallory"), scene.outsider("friend"), scene.nobody()];
    for round in 0..60 {
        let stranger = &strangers[round % strangers.len()];
        // TLS 1.3 lets a client believe for a moment that it is in.
        let reason = match stranger.connect(scene.victim.address).await {
            Ok(connection) => soon("the refusal", connection.closed()).await.to_string(),
            Err(error) => error.to_string(),
        };
        let expected = if round % strangers.len() == 2 { "CertificateRequired" } else { "UnknownCA" };
        let alike = |text: &str| text.to_lowercase().replace([' ', '_', '-'], "");
        assert!(
            alike(&reason).contains(&alike(expected)) || reason.contains("certificate"),
            "{expected:?} is not in {reason:?}"
        );
    }
    scene.newcomer("newcomer").await;
}

/// Answers of the victim never arrive: each costs it a handshake, or a token that nobody brings back.
pub async fn first_packets_from_made_up_senders(scene: &mut Scene) {
    stall(scene, 2_000, Answers::None).await;
}

/// They show that they receive at their addresses, and then say no more.
pub async fn ten_thousand_handshakes_stall(scene: &mut Scene) {
    let tasks = scene.victim.status().tasks;
    stall(scene, 10_000, Answers::Tokens).await;
    // The drivers of the newcomers stay, as peers without a connection.
    scene.tasks_are_back_at(tasks + NEWCOMERS + 1).await;
}

pub async fn datagrams_of_garbage_are_dropped(scene: &mut Scene) {
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    let mut number = 0x2545_f491_4f6c_dd1du64;
    for n in 0..50_000usize {
        let mut noise: Vec<u8> = (0..n % 1400)
            .map(|_| {
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                number as u8
            })
            .collect();
        // Some look like QUIC: first packets, of versions known and unknown, and packets of connections.
        if let (true, Some(head)) = (n % 4 != 0, noise.first_chunk_mut::<5>()) {
            *head = [[0xc3, 0, 0, 0, 1], [0xc3, 0xba, 0xba, 0xba, 0xba], [0x43, 1, 2, 3, 4]][n % 3];
        }
        let _ = socket.send_to(&noise, scene.victim.address).await;
    }
    scene.newcomer("newcomer").await;
}

/// What the relay lets through to those who stall.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    None,
    /// Those with which a sender shows that it receives (RFC 9000, 8.1.2).
    Tokens,
}

/// `attempts` connections through relays of many ports, which drop the rest of the handshake.
async fn stall(scene: &mut Scene, attempts: usize, answers: Answers) {
    const RELAYS: usize = 16;
    /// Connections that are tried at once; the oldest is given up for a new one.
    const AT_ONCE: usize = 256;
    let mut relays = Vec::new();
    for _ in 0..RELAYS {
        relays.push(Stalling::start(scene.victim.address, answers).await);
    }
    let strangers: Vec<Stranger> = (0..RELAYS).map(|_| scene.nobody()).collect();
    let mut dialling = VecDeque::new();
    let mut slowest_newcomer = Duration::ZERO;
    let mut newcomers = 0;
    for n in 0..attempts {
        let (stranger, relay) = (&strangers[n % RELAYS], &relays[n % RELAYS]);
        let connecting = stranger.quic.connect(relay.address, "victim").unwrap();
        dialling.push_back(tokio::spawn(async move { timeout(DEADLINE, connecting).await.is_ok_and(|r| r.is_ok()) }));
        if dialling.len() > AT_ONCE
            && let Some(oldest) = dialling.pop_front()
        {
            oldest.abort();
        }
        if n % 16 == 0 {
            // As many as the machine bears, but no backlog of packets that would be lost unseen.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if n % (attempts / NEWCOMERS) == attempts / (2 * NEWCOMERS) {
            newcomers += 1;
            slowest_newcomer = slowest_newcomer.max(scene.newcomer(&format!("newcomer{newcomers}")).await);
        }
    }
    let deadline = Instant::now() + DEADLINE;
    let count = |which: fn(&Counts) -> &AtomicUsize| -> usize {
        relays.iter().map(|relay| which(&relay.counts).load(Ordering::SeqCst)).sum()
    };
    while count(|counts| &counts.stalled) < attempts * 9 / 10 {
        assert!(Instant::now() < deadline, "{} of {attempts} arrived", count(|counts| &counts.stalled));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!(
        "{} of {attempts} first packets, {} tokens, {} other answers dropped; slowest newcomer {slowest_newcomer:.1?}",
        count(|counts| &counts.stalled),
        count(|counts| &counts.tokens),
        count(|counts| &counts.dropped),
    );
    for connecting in dialling {
        connecting.abort();
        assert!(!connecting.await.unwrap_or(false), "nobody got in");
    }
    scene.newcomer("after").await;
}

#[derive(Default)]
struct Counts {
    /// Connections whose first packet went to the victim.
    stalled: AtomicUsize,
    tokens: AtomicUsize,
    dropped: AtomicUsize,
}

/// A relay that lets a handshake begin and never end.
struct Stalling {
    address: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Stalling {
    async fn start(target: SocketAddr, answers: Answers) -> Stalling {
        let near = UdpSocket::bind(LOOPBACK).await.unwrap();
        let far = UdpSocket::bind(LOOPBACK).await.unwrap();
        let address = near.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn(stall_all(near, far, target, answers, counts.clone()));
        Stalling { address, counts, task }
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn stall_all(near: UdpSocket, far: UdpSocket, target: SocketAddr, answers: Answers, counts: Arc<Counts>) {
    let (mut there, mut back) = ([0; 2048], [0; 2048]);
    let mut dialler = None;
    // By the id that the dialler chose for itself: how many of its packets have passed.
    let mut passed: HashMap<Vec<u8>, usize> = HashMap::new();
    // The first packet, and the one with the token.
    let most = if answers == Answers::Tokens { 2 } else { 1 };
    loop {
        tokio::select! {
            received = near.recv_from(&mut there) => {
                let Ok((bytes, from)) = received else { continue };
                dialler = Some(from);
                let Some(id) = source_id(&there[..bytes]) else { continue };
                let packets = passed.entry(id).or_default();
                *packets += 1;
                if *packets == 1 {
                    counts.stalled.fetch_add(1, Ordering::SeqCst);
                }
                if *packets <= most {
                    let _ = far.send_to(&there[..bytes], target).await;
                }
            }
            received = far.recv_from(&mut back) => {
                let Ok((bytes, _)) = received else { continue };
                // A long header with a token: "Retry".
                let is_token = back[0] & 0xf0 == 0xf0;
                match (dialler, is_token && answers == Answers::Tokens) {
                    (Some(dialler), true) => {
                        counts.tokens.fetch_add(1, Ordering::SeqCst);
                        let _ = near.send_to(&back[..bytes], dialler).await;
                    }
                    _ => {
                        counts.dropped.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        }
    }
}

/// The sender's connection id in a packet with a long header (RFC 9000, 17.2).
fn source_id(packet: &[u8]) -> Option<Vec<u8>> {
    let is_long = packet.first()? & 0x80 != 0;
    let target_bytes = usize::from(*packet.get(5)?);
    let source_bytes = usize::from(*packet.get(6 + target_bytes)?);
    let start = 7 + target_bytes;
    packet.get(start..start + source_bytes).filter(|_| is_long).map(<[u8]>::to_vec)
}
