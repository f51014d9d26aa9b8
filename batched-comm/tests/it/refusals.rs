//! Who is turned away, and what bad bytes do: an error that says why, and a node that lives on.

use std::sync::Arc;

use batched_comm::{ClusterId, ConnectError, DownReason, Endpoint, EndpointConfig, Identity, PeerEvent, Refusal};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::support::*;

const fn cluster(id: u128, generation: u64) -> ClusterId {
    ClusterId { id, generation }
}

fn last_error(endpoint: &Endpoint) -> String {
    endpoint.peers().first().and_then(|peer| peer.last_error.clone()).unwrap_or_default()
}

async fn refusal(from: &Endpoint, to: &Endpoint) -> Refusal {
    match from.probe(to.local_address(), DEADLINE).await {
        Err(ConnectError::Refused { refusal, .. }) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nodes_of_different_clusters_or_generations_refuse_each_other() {
    let ca = ca();
    for other in [cluster(2, 1), cluster(1, 2)] {
        let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
        a.set_cluster(cluster(1, 1));
        b.set_cluster(other);
        assert_eq!(refusal(&a, &b).await, Refusal::OtherCluster { given: cluster(1, 1), own: other });
        assert_eq!(refusal(&b, &a).await, Refusal::OtherCluster { given: other, own: cluster(1, 1) });
        a.set_peer(b.name(), vec![b.local_address()]);
        let sides =
            format!("the node that dialled belongs to cluster {}, the one that was dialled to {other}:", cluster(1, 1));
        eventually("the reason", || last_error(&a).contains(&sides)).await;
        assert!(!is_up(&b, &a));
    }
}

#[tokio::test]
async fn a_node_of_no_cluster_talks_to_all_until_it_joins_one() {
    let ca = ca();
    let [a, b, fresh] = [bind(&ca, "a").await, bind(&ca, "b").await, bind(&ca, "fresh").await];
    a.set_cluster(cluster(1, 1));
    b.set_cluster(cluster(2, 1));
    connect(&fresh, &a).await;
    connect(&fresh, &b).await;
    let mut events = fresh.events();
    fresh.set_cluster(cluster(1, 1));
    let (peer, reason) = event(&mut events, "the end of a connection", |event| match event {
        PeerEvent::Down { peer, reason } => Some((peer, reason)),
        _ => None,
    })
    .await;
    assert_eq!((peer, reason), (b.name().clone(), DownReason::OtherCluster));
    assert!(is_up(&fresh, &a));
}

#[tokio::test]
async fn two_fresh_nodes_part_when_they_join_different_clusters() {
    let (a, b) = pair().await;
    a.set_cluster(cluster(1, 1));
    b.set_cluster(cluster(2, 1));
    for endpoint in [&a, &b] {
        eventually("the reason", || last_error(endpoint).contains("belongs to")).await;
    }
    assert!(!is_up(&a, &b) && !is_up(&b, &a));
}

#[tokio::test]
async fn two_fresh_nodes_keep_their_connection_when_they_join_one_cluster() {
    let (a, b) = pair().await;
    echo(b.mailbox("echo", 10).unwrap());
    a.set_cluster(cluster(1, 1));
    b.set_cluster(cluster(1, 1));
    // What was told came before the answer.
    assert_eq!(a.call(&at(&b, "echo"), &note(1), DEADLINE).await.unwrap(), note(1));
    // A recovery raises the generation on both, one after the other: they part for that moment.
    assert_eq!(a.peers()[0].traffic.connections, 1);
    a.set_cluster(cluster(1, 2));
    eventually("the reason", || last_error(&b).contains("belongs to")).await;
    b.set_cluster(cluster(1, 2));
    eventually("a connection", || is_up(&a, &b) && is_up(&b, &a)).await;
}

#[tokio::test]
async fn somebody_else_at_a_peers_address_is_refused() {
    let ca = ca();
    let (a, c) = (bind(&ca, "a").await, bind(&ca, "c").await);
    let b = "b".parse().unwrap();
    a.set_peer(&b, vec![c.local_address()]);
    eventually("the reason", || last_error(&a).contains("not b")).await;
    assert!(last_error(&a).contains("correct the address of b"), "{}", last_error(&a));
    assert!(c.peers().is_empty());
}

#[tokio::test]
async fn a_second_node_of_ones_own_name_is_refused() {
    let ca = ca();
    let (first, second) = (bind(&ca, "a").await, bind(&ca, "a").await);
    let refused = refusal(&second, &first).await;
    assert_eq!(refused, Refusal::OwnName { name: first.name().clone() });
    assert!(refused.to_string().contains("are both called a:"), "{refused}");
}

#[tokio::test]
async fn an_unknown_ca_is_refused_by_both_sides() {
    let (a, b) = (bind(&ca(), "a").await, bind(&ca(), "b").await);
    a.set_peer(b.name(), vec![b.local_address()]);
    b.set_peer(a.name(), vec![a.local_address()]);
    for endpoint in [&a, &b] {
        eventually("the reason", || last_error(endpoint).contains("certificate")).await;
    }
    assert!(!is_up(&a, &b) && !is_up(&b, &a));
}

/// Somebody with QUIC, TLS and maybe a certificate, and bad manners.
pub struct Stranger {
    quic: quinn::Endpoint,
}

impl Stranger {
    /// With the certificate of `name` from `dir`, or without any.
    fn new(dir: &std::path::Path, name: Option<&str>, protocol: &[u8]) -> Stranger {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match name {
            Some(name) => {
                Identity::dev(dir, name).unwrap();
                let certificate = CertificateDer::from_pem_file(dir.join(format!("{name}.pem"))).unwrap();
                let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let mut quic = quinn::Endpoint::client(any_port()).unwrap();
        quic.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        Stranger { quic }
    }

    pub async fn connect(&self, to: &Endpoint) -> Result<quinn::Connection, quinn::ConnectionError> {
        self.quic.connect(to.local_address(), to.name().as_str()).unwrap().await
    }

    /// Sends `bytes` as the first ones of a connection; answers how the connection ended.
    async fn say(&self, to: &Endpoint, bytes: &[u8]) -> String {
        let connection = self.connect(to).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        // Whoever is cut off while writing learns why below.
        let _ = send.write_all(bytes).await;
        soon("the end of the connection", connection.closed()).await.to_string()
    }
}

const PROTOCOL: &[u8] = b"batched-comm/1";

/// A hello as DESIGN fixes it, by hand.
pub fn hello(name: &str, version: u16, purpose: u8) -> Vec<u8> {
    let bytes = (48 + name.len()).next_multiple_of(16);
    let mut hello = b"BChi".to_vec();
    hello.extend_from_slice(&version.to_le_bytes());
    hello.extend_from_slice(&(bytes as u16).to_le_bytes());
    hello.extend_from_slice(&[purpose, 0, name.len() as u8, 0, 0, 0, 0, 0]);
    hello.resize(40, 0);
    hello.extend_from_slice(&77u64.to_le_bytes());
    hello.extend_from_slice(name.as_bytes());
    hello.resize(bytes, 0);
    hello
}

pub struct Victim {
    dir: tempfile::TempDir,
    pub endpoint: Endpoint,
    friend: Endpoint,
}

/// A node with a friend, whose connection must survive whatever strangers do.
pub async fn victim() -> Victim {
    victim_with(EndpointConfig::new()).await
}

async fn victim_with(config: EndpointConfig) -> Victim {
    let dir = tempfile::tempdir().unwrap();
    let [endpoint, friend] = ["victim", "friend"].map(|name| Identity::dev(dir.path(), name).unwrap());
    let endpoint = Endpoint::bind_with(any_port(), endpoint, config.clone()).await.unwrap();
    let friend = Endpoint::bind_with(any_port(), friend, config).await.unwrap();
    connect(&friend, &endpoint).await;
    echo(endpoint.mailbox("echo", 10).unwrap());
    Victim { dir, endpoint, friend }
}

impl Victim {
    pub fn stranger(&self, name: Option<&str>) -> Stranger {
        Stranger::new(self.dir.path(), name, PROTOCOL)
    }

    async fn lives(&self) {
        let answer = self.friend.call(&at(&self.endpoint, "echo"), &note(1), DEADLINE).await;
        assert_eq!(answer.unwrap(), note(1));
        assert_eq!(self.friend.peers()[0].traffic.connections, 1);
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_or_of_another_protocol_is_refused() {
    let victim = victim().await;
    let plain = victim.stranger(None);
    // TLS 1.3 lets the client believe for a moment that it is in.
    if let Ok(connection) = plain.connect(&victim.endpoint).await {
        soon("the refusal", connection.closed()).await;
    }
    let other = Stranger::new(victim.dir.path(), Some("other"), b"h3");
    assert!(other.connect(&victim.endpoint).await.is_err());
    victim.lives().await;
}

#[tokio::test]
async fn a_claim_to_another_name_than_the_certificates_is_refused() {
    let victim = victim().await;
    let stranger = victim.stranger(Some("mallory"));
    let reason = stranger.say(&victim.endpoint, &hello("friend", 1, 1)).await;
    assert!(reason.contains("calls itself friend"), "{reason}");
    victim.lives().await;
}

#[tokio::test]
async fn another_version_and_a_malformed_hello_are_told_so() {
    let victim = victim().await;
    let stranger = victim.stranger(Some("mallory"));
    let mut endless = hello("mallory", 1, 1);
    endless[6..8].copy_from_slice(&[0xff, 0xff]);
    let rows: [(Vec<u8>, &str); 4] = [
        (hello("mallory", 9, 1), "protocol version 9 was heard where 1 is spoken"),
        (hello("mallory", 1, 99), "its purpose is not known"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "it begins with something else"),
        (endless, "its length is out of range"),
    ];
    for (bytes, expected) in rows {
        let reason = stranger.say(&victim.endpoint, &bytes).await;
        assert!(reason.contains(expected), "{reason}");
    }
    victim.lives().await;
}

#[tokio::test]
async fn a_stranger_that_never_says_hello_is_cut_off() {
    let victim = victim().await;
    let connection = victim.stranger(Some("mallory")).connect(&victim.endpoint).await.unwrap();
    soon("the end", connection.closed()).await;
    victim.lives().await;
}

/// A connection after its hello for `purpose`, which was answered.
async fn greeted(stranger: &Stranger, victim: &Victim, purpose: u8) -> quinn::Connection {
    let connection = stranger.connect(&victim.endpoint).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&hello("mallory", 1, purpose)).await.unwrap();
    let mut answer = [0; 16];
    soon("the answer", recv.read_exact(&mut answer)).await.unwrap();
    assert_eq!((&answer[..4], answer[8]), (&b"BCre"[..], 0));
    connection
}

#[tokio::test]
async fn a_probe_that_stays_is_cut_off() {
    let victim = victim().await;
    let connection = greeted(&victim.stranger(Some("mallory")), &victim, 3).await;
    soon("the end", connection.closed()).await;
    victim.lives().await;
}

#[tokio::test]
async fn bulk_connections_are_few_and_end_with_their_peer() {
    let victim = victim().await;
    let stranger = victim.stranger(Some("mallory"));
    let mut connections = Vec::new();
    for _ in 0..3 {
        connections.push(greeted(&stranger, &victim, 2).await);
    }
    soon("the end of the oldest", connections[0].closed()).await;
    assert!(connections[1..].iter().all(|connection| connection.close_reason().is_none()));
    victim.endpoint.remove_peer(&"mallory".parse().unwrap());
    for connection in &connections {
        soon("the end", connection.closed()).await;
    }
    victim.lives().await;
}

#[tokio::test]
async fn first_packets_with_made_up_senders_lock_nobody_out() {
    const PACKETS: usize = 400;
    let victim = victim().await;
    let stranger = victim.stranger(Some("mallory"));
    // Takes the first packets of many connections, and never answers what comes back.
    let relay = tokio::net::UdpSocket::bind(any_port()).await.unwrap();
    let mut dialling = Vec::new();
    let mut packet = [0; 2048];
    for _ in 0..PACKETS {
        dialling.push(stranger.quic.connect(relay.local_addr().unwrap(), "victim").unwrap());
        loop {
            let (bytes, from) = soon("a packet", relay.recv_from(&mut packet)).await.unwrap();
            if from != victim.endpoint.local_address() {
                relay.send_to(&packet[..bytes], victim.endpoint.local_address()).await.unwrap();
                break;
            }
        }
    }
    let late = Endpoint::bind(any_port(), Identity::dev(victim.dir.path(), "late").unwrap()).await.unwrap();
    assert_eq!(late.probe(victim.endpoint.local_address(), DEADLINE).await.unwrap(), *victim.endpoint.name());
    victim.lives().await;
}

#[tokio::test]
async fn garbage_after_the_hello_closes_the_connection_with_a_reason() {
    let victim = victim().await;
    let stranger = victim.stranger(Some("mallory"));
    let batch = |bytes: [u8; 16]| bytes.to_vec();
    let rows: [(Vec<u8>, &str); 5] = [
        (vec![0xee; 100], "a batch begins with 0xeeee"),
        (batch([0x7c, 0xba, 9, 0, 1, 0, 0, 0, 32, 0, 0, 0, 32, 0, 0, 0]), "batch version 9"),
        (batch([0x7c, 0xba, 1, 7, 1, 0, 0, 0, 32, 0, 0, 0, 32, 0, 0, 0]), "compression 7 is not known"),
        (batch([0x7c, 0xba, 1, 0, 1, 0, 0, 0, 0xf0, 0xff, 0xff, 0xff, 0xf0, 0xff, 0xff, 0xff]), "a batch of"),
        (
            [batch([0x7c, 0xba, 1, 0, 1, 0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0]), vec![1; 16]].concat(),
            "a frame is longer than its batch",
        ),
    ];
    for (garbage, expected) in rows {
        let bytes = [hello("mallory", 1, 1), garbage].concat();
        let reason = stranger.say(&victim.endpoint, &bytes).await;
        assert!(reason.contains(expected), "{reason}");
    }
    victim.lives().await;
}

/// A batch with so many bytes, said to have `raw_bytes` when unpacked.
fn packed_batch(compression: u8, packed: &[u8], raw_bytes: u32) -> Vec<u8> {
    let mut batch = vec![0x7c, 0xba, 1, compression, 1, 0, 0, 0];
    batch.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    batch.extend_from_slice(&raw_bytes.to_le_bytes());
    batch.extend_from_slice(packed);
    batch.resize(batch.len().next_multiple_of(16), 0);
    batch
}

#[tokio::test]
async fn compressed_bombs_close_the_connection_with_a_reason() {
    const LARGEST: u32 = 9_437_488;
    let victim = victim().await;
    let stranger = victim.stranger(Some("mallory"));
    // One zero, which is repeated 15 + 4 + 255 * 40,000 times.
    let lz4 = [&[0x1f, 0, 1, 0][..], &[0xff; 40_000], &[0, 0]].concat();
    // A frame of 80 blocks, each of them one zero repeated 131,072 times.
    let block = [2, 0, 0x10, 0];
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x58][..], &[block; 79].concat(), &[3, 0, 0x10, 0]].concat();
    let cannot = "a compressed batch cannot be unpacked";
    let mut rows = vec![
        (packed_batch(1, &lz4, 64 * 1024), cannot),
        (packed_batch(1, &lz4, LARGEST), cannot),
        (packed_batch(1, &lz4[..100], LARGEST), "it claims more than it can hold"),
        (packed_batch(1, &lz4[..100], LARGEST + 16), "at most 9437488 are allowed"),
        (packed_batch(1, &[0xa5; 100], 1600), cannot),
        (packed_batch(1, &lz4[..100], 96), "it is no shorter"),
    ];
    if cfg!(feature = "zstd") {
        rows.extend([
            (packed_batch(2, &zstd, 1024), cannot),
            (packed_batch(2, &zstd, LARGEST), cannot),
            // It is what it claims to be: zeros, which are no frames.
            (packed_batch(2, &[&zstd[..6], &[3, 0, 0x10, 0]].concat(), 131_072), "frame kind 0"),
            (packed_batch(2, &[&zstd[..6], &[3, 0, 0x10, 0]].concat(), 131_088), "less than it claims"),
            (packed_batch(2, &zstd, u32::MAX), "at most 9437488 are allowed"),
            (packed_batch(2, &[0xa5; 100], 1600), cannot),
        ]);
    }
    for (bomb, expected) in rows {
        let bytes = [hello("mallory", 1, 1), bomb].concat();
        let reason = stranger.say(&victim.endpoint, &bytes).await;
        assert!(reason.contains(expected), "{reason} instead of {expected}");
    }
    victim.lives().await;
}

#[cfg(feature = "zstd")]
#[tokio::test]
async fn few_bytes_that_stand_for_very_many_let_others_have_their_turns() {
    const COUNT: usize = 60;
    let victim = victim_with(EndpointConfig::new().with_network_thread(false)).await;
    // A cast of 8 MiB of zeros: a block of 32 bytes as they are, and 64 of one zero repeated 131,072 times.
    let mut head = [0; 32];
    head[..2].copy_from_slice(&[1, 4]);
    head[16..20].copy_from_slice(&(8u32 << 20).to_le_bytes());
    head[24..28].copy_from_slice(b"none");
    let zeros = [[2, 0, 0x10, 0]; 63].concat();
    let packed = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x58, 0, 1, 0][..], &head, &zeros, &[3, 0, 0x10, 0]].concat();
    let bytes = [hello("mallory", 1, 1), packed_batch(2, &packed, 32 + (8 << 20)).repeat(COUNT)].concat();
    let connection = victim.stranger(Some("mallory")).connect(&victim.endpoint).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&bytes).await.unwrap();
    let received = || {
        let peers = victim.endpoint.peers();
        peers.iter().find(|peer| peer.name.as_str() == "mallory").map_or(0, |peer| peer.traffic.messages_received)
    };
    let mut longest_run = 0;
    let mut before = 0;
    while before < COUNT as u64 {
        // Everything is on this thread: a call is answered in between, or not at all.
        victim.lives().await;
        longest_run = longest_run.max(received() - before);
        before = received();
    }
    assert!(longest_run <= COUNT as u64 / 4, "{longest_run} batches in a row");
    assert_eq!(connection.close_reason(), None, "there is nothing wrong with them");
}

#[tokio::test]
async fn bad_bulk_headers_are_refused_and_the_next_transfer_works() {
    let victim = victim().await;
    let mut listener = victim.endpoint.bulk_listener("in", 1).unwrap();
    let stranger = victim.stranger(Some("mallory"));
    let connection = greeted(&stranger, &victim, 2).await;
    for bad in
        [&[9u8, 2, 0, 0, 0, 0, 0, 0][..], &[1, 2, 0, 0, 0xff, 0xff, 0xff, 0xff], &[1, 2, 0, 0, 0, 0, 0, 0, 0xff, 0]]
    {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(bad).await.unwrap();
        let reply = soon("the refusal", recv.read_to_end(1000)).await.unwrap();
        assert_eq!(reply[0], 3, "malformed");
    }
    let sender = victim.friend.open_bulk(&at(&victim.endpoint, "in"), b"x").await.unwrap();
    let receiver = soon("a transfer", listener.accept()).await.unwrap();
    receiver.reply(b"ok").await.unwrap();
    assert_eq!(&soon("the reply", sender.finish()).await.unwrap()[..], b"ok");
    victim.lives().await;
}

#[tokio::test]
async fn datagrams_that_are_not_quic_are_ignored() {
    let victim = victim().await;
    let socket = std::net::UdpSocket::bind(any_port()).unwrap();
    for n in 0..200u32 {
        let noise: Vec<u8> = (0..(n * 7) % 1400).map(|i| (i * 31 + n * 17) as u8).collect();
        socket.send_to(&noise, victim.endpoint.local_address()).unwrap();
    }
    // The call comes behind them, through the same socket.
    victim.lives().await;
}
