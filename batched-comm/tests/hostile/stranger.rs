//! Somebody with QUIC and TLS, maybe with a certificate, and with bad manners.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use batched_comm::Identity;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

use crate::{DEADLINE, LOOPBACK};

const PROTOCOL: &[u8] = b"batched-comm/1";

/// What a connection is for, as the hello says.
pub const LANE: u8 = 1;
pub const BULK: u8 = 2;

const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

pub struct Stranger {
    pub quic: quinn::Endpoint,
}

impl Stranger {
    /// Trusts the CA in `dir`; with the certificate of `name` from `own`, or without any.
    pub fn new(dir: &Path, certificate: Option<(&Path, &str)>) -> Stranger {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match certificate {
            Some((own, name)) => {
                Identity::dev(own, name).unwrap();
                let certificate = CertificateDer::from_pem_file(own.join(format!("{name}.pem"))).unwrap();
                let key = PrivateKeyDer::from_pem_file(own.join(format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(1)));
        // A goodbye in the handshake may be lost, and is waited for this long.
        transport.max_idle_timeout(Some(Duration::from_secs(6).try_into().unwrap()));
        client.transport_config(Arc::new(transport));
        let socket = std::net::UdpSocket::bind(LOOPBACK).unwrap();
        // A hundred connections at once are told at once why they end; what finds no room here is lost, and a
        // connection whose goodbye was lost is reset, which says nothing of the reason.
        socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
        let runtime = quinn::default_runtime().unwrap();
        let mut quic = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime).unwrap();
        quic.set_default_client_config(client);
        Stranger { quic }
    }

    pub async fn connect(&self, to: SocketAddr) -> Result<quinn::Connection, quinn::ConnectionError> {
        soon("the handshake", self.quic.connect(to, "victim").unwrap()).await
    }

    /// Sends `bytes` as the first ones of a connection, and ends the stream if told; answers how it ended.
    pub async fn say(&self, to: SocketAddr, bytes: &[u8], finish: bool) -> String {
        let connection = self.connect(to).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        // Whoever is cut off while writing learns why below.
        let _ = send.write_all(bytes).await;
        if finish {
            let _ = send.finish();
        }
        soon("the end of the connection", connection.closed()).await.to_string()
    }

    /// A connection whose hello was answered, with its stream.
    pub async fn greeted(&self, to: SocketAddr, name: &str, purpose: u8, instance: u64) -> Greeted {
        let connection = self.connect(to).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&hello(name, 1, purpose, instance)).await.unwrap();
        let mut answer = [0; 16];
        soon("the answer", recv.read_exact(&mut answer)).await.unwrap();
        assert_eq!((&answer[..4], answer[8]), (&b"BCre"[..], 0), "accepted");
        let rest = usize::from(u16::from_le_bytes([answer[6], answer[7]])) - 16;
        soon("the rest", recv.read_exact(&mut vec![0; rest])).await.unwrap();
        Greeted { connection, send, recv }
    }
}

pub struct Greeted {
    pub connection: quinn::Connection,
    pub send: quinn::SendStream,
    pub recv: quinn::RecvStream,
}

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("no {what} within {DEADLINE:?}"))
}

/// A hello, by hand.
pub fn hello(name: &str, version: u16, purpose: u8, instance: u64) -> Vec<u8> {
    let bytes = (48 + name.len()).next_multiple_of(16);
    let mut hello = b"BChi".to_vec();
    hello.extend_from_slice(&version.to_le_bytes());
    hello.extend_from_slice(&(bytes as u16).to_le_bytes());
    hello.extend_from_slice(&[purpose, 0, name.len() as u8, 0, 0, 0, 0, 0]);
    hello.resize(40, 0);
    hello.extend_from_slice(&instance.to_le_bytes());
    hello.extend_from_slice(name.as_bytes());
    hello.resize(bytes, 0);
    hello
}

/// A frame, by hand; kind 1 is a cast, 2 a call.
pub fn frame(kind: u8, mailbox: &str, call: u64, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, mailbox.len() as u8, 0, 0, 1, 0, 0, 0];
    frame.extend_from_slice(&call.to_le_bytes());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(mailbox.as_bytes());
    frame.resize(frame.len().next_multiple_of(16), 0);
    frame.extend_from_slice(body);
    frame.resize(frame.len().next_multiple_of(16), 0);
    frame
}

/// A batch that says it has so many messages and bytes, by hand.
pub fn batch_of(messages: u32, compression: u8, wire_bytes: u32, raw_bytes: u32, frames: &[u8]) -> Vec<u8> {
    let mut batch = vec![0x7c, 0xba, 1, compression];
    for number in [messages, wire_bytes, raw_bytes] {
        batch.extend_from_slice(&number.to_le_bytes());
    }
    batch.extend_from_slice(frames);
    batch
}

/// An honest batch.
pub fn batch(frames: &[Vec<u8>]) -> Vec<u8> {
    let bytes = frames.concat();
    batch_of(frames.len() as u32, 0, bytes.len() as u32, bytes.len() as u32, &bytes)
}
