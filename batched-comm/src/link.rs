//! A QUIC connection whose two sides know each other: TLS, names compared, hello answered.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{IdleTimeout, MtuDiscoveryConfig, RecvStream, SendStream, TransportConfig, VarInt};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config::EndpointConfig;
use crate::error::{ConnectError, Refusal};
use crate::hello::{self, HelloError, Introduction, PREFIX_BYTES, Purpose};
use crate::name::{ClusterId, NodeName};
use crate::socket::ClosableSocket;
use crate::tls;

/// Bulk transfers that may run at once over one connection. Below the connection's
/// window by one stream's: transfers that nobody reads do not stop those that somebody reads.
const MAX_STREAMS: u32 = CONNECTION_WINDOW_BYTES / STREAM_WINDOW_BYTES - 1;
/// What one stream may send before it is read.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// What all streams of a connection may send before it is read.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// What may come over a connection before its hello was answered: one stream with a hello in it.
const STRANGER_WINDOW_BYTES: u32 = 16 * 1024;
/// What waits in QUIC to be acknowledged: the depth of this queue is what bulk costs calls.
const SEND_WINDOW_BYTES: u64 = 2 * 1024 * 1024;
/// The largest datagram that is looked for on a path; networks with jumbo frames, and loopback, carry it, and it saves
/// a third of the CPU time per byte. The ten that quinn hands to the system at once stay below the 64 KiB that it takes:
/// with larger ones they would all be lost, and QUIC would go back to its smallest size.
pub(crate) const MAX_DATAGRAM_BYTES: u16 = 6_500;
/// What may be on its way before anything is known of a path: ten datagrams (RFC 6928 has ten segments). With quinn's
/// default of two large ones, the looking for a size alone could fill it, and then not even a goodbye leaves.
const INITIAL_WINDOW_BYTES: u64 = 10 * MAX_DATAGRAM_BYTES as u64;
/// How long who was refused may take to read why.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);
/// How often it is looked whether nobody is within a call into the socket any more.
const SOCKET_POLL: Duration = Duration::from_millis(1);
/// A client has to name the server; nobody looks at it, because names are compared by certificate.
const SERVER_NAME: &str = "node";

/// Why a connection was closed, as the other side is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    Normal = 0,
    Replaced = 1,
    Protocol = 2,
    Refused = 3,
    Dead = 4,
    Removed = 5,
    ShutDown = 6,
}

impl Close {
    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// Closes `connection`, and says why.
    pub(crate) fn end(self, connection: &quinn::Connection) {
        let reason = match self {
            Close::Normal => "not needed any more",
            Close::Replaced => "replaced by a newer connection",
            Close::Protocol => "the protocol was broken",
            Close::Refused => "refused",
            Close::Dead => "nothing was heard for too long",
            Close::Removed => "the peer was removed",
            Close::ShutDown => "the node is shut down",
        };
        connection.close(self.code(), reason.as_bytes());
    }
}

/// A connection with the stream over which the hellos went.
pub(crate) struct Link {
    pub(crate) connection: quinn::Connection,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    /// Who is on the other side; the name is in its certificate.
    pub(crate) peer: Introduction,
    pub(crate) purpose: Purpose,
    /// The cluster of this node, as the other side was told.
    pub(crate) told: Option<ClusterId>,
}

/// A connection that stands, before the hello.
pub(crate) struct Reached {
    address: SocketAddr,
    expected: Option<NodeName>,
    connection: quinn::Connection,
    names: Vec<NodeName>,
}

/// Makes links from the socket of an endpoint.
pub(crate) struct Linker {
    /// Gone once it was released.
    quic: RwLock<Option<quinn::Endpoint>>,
    socket: Arc<ClosableSocket>,
    client: RwLock<quinn::ClientConfig>,
    own: RwLock<Introduction>,
    hello_timeout: Duration,
}

impl Linker {
    pub(crate) fn new(
        quic: quinn::Endpoint,
        socket: Arc<ClosableSocket>,
        client: quinn::ClientConfig,
        own: Introduction,
        hello_timeout: Duration,
    ) -> Linker {
        let quic = RwLock::new(Some(quic));
        Linker { quic, socket, client: RwLock::new(client), own: RwLock::new(own), hello_timeout }
    }

    pub(crate) fn quic(&self) -> Option<quinn::Endpoint> {
        self.quic.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the socket go, whoever still holds this or a connection: waits for goodbyes to leave, at most
    /// `patience`, and closes it, so that the address can be bound again.
    pub(crate) async fn release(&self, patience: Duration) {
        let quic = self.quic.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(quic) = quic else { return };
        // A handshake that nobody answers drains for seconds. It may do so without a socket.
        let _ = timeout(patience, quic.wait_idle()).await;
        drop(quic);
        let Some(socket) = self.socket.close() else { return };
        let gone = async {
            while socket.strong_count() > 0 {
                sleep(SOCKET_POLL).await;
            }
        };
        let _ = timeout(patience, gone).await;
    }

    /// What this node says of itself.
    pub(crate) fn own(&self) -> Introduction {
        self.own.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_cluster(&self, cluster: ClusterId) {
        self.own.write().unwrap_or_else(PoisonError::into_inner).cluster = Some(cluster);
    }

    pub(crate) fn set_client(&self, client: quinn::ClientConfig) {
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// Dials. With a name, only that node will do.
    pub(crate) async fn reach(
        &self,
        address: SocketAddr,
        expected: Option<&NodeName>,
    ) -> Result<Reached, ConnectError> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let handshake = |reason: String| ConnectError::Handshake { address, reason };
        let Some(quic) = self.quic() else { return Err(ConnectError::ShutDown) };
        let connecting = match quic.connect_with(client, address, SERVER_NAME) {
            Ok(connecting) => connecting,
            Err(quinn::ConnectError::EndpointStopping) => return Err(ConnectError::ShutDown),
            Err(error) => return Err(handshake(error.to_string())),
        };
        let connection = match timeout(self.hello_timeout, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => {
                return Err(ConnectError::Timeout { address, after: self.hello_timeout });
            }
            Ok(Err(error)) => return Err(handshake(describe(&error))),
        };
        let names = tls::peer_names(&connection);
        match expected {
            Some(expected) if !names.contains(expected) => {
                connection.close(Close::Refused.code(), b"another node was expected here");
                let found = names.iter().map(NodeName::to_string).collect();
                Err(ConnectError::WrongName { address, found, expected: expected.clone() })
            }
            _ => Ok(Reached { address, expected: expected.cloned(), connection, names }),
        }
    }

    /// Sends the hello and waits for its answer.
    pub(crate) async fn greet(&self, reached: Reached, purpose: Purpose) -> Result<Link, ConnectError> {
        let Reached { address, expected, connection, names } = reached;
        let greeting = async {
            let lost = |reason: String| ConnectError::Handshake { address, reason };
            let opened = connection.open_bi().await;
            let (mut send, mut recv) = opened.map_err(|error| lost(describe(&error)))?;
            let own = self.own();
            // Whether it could be written shows in the answer, with a better reason.
            let _ = send.write_all(&hello::encode_hello(&own, purpose)).await;
            let bytes = match read_hello(&mut recv).await {
                Ok(bytes) => bytes,
                Err(ReadHello::Lost(error)) => {
                    let reason = connection.close_reason().map(|reason| describe(&reason));
                    return Err(lost(reason.unwrap_or(error)));
                }
                Err(ReadHello::Wrong(error)) => return Err(not_understood(address, error)),
            };
            let (peer, answer) = hello::decode_answer(&bytes, &own).map_err(|error| not_understood(address, error))?;
            answer.map_err(|refusal| ConnectError::Refused { address, refusal })?;
            check_answer(&own, &peer, &names).map_err(|refusal| ConnectError::Refused { address, refusal })?;
            // A certificate may be for several names: only the one that was dialled will do.
            if let Some(expected) = expected.filter(|expected| *expected != peer.name) {
                return Err(ConnectError::WrongName { address, found: vec![peer.name.to_string()], expected });
            }
            Ok(Link { connection: connection.clone(), send, recv, peer, purpose, told: own.cluster })
        };
        let timed_out = ConnectError::Timeout { address, after: self.hello_timeout };
        let result = timeout(self.hello_timeout, greeting).await.unwrap_or(Err(timed_out));
        if let Err(error) = &result {
            connection.close(Close::Refused.code(), error.to_string().as_bytes());
        }
        result
    }

    /// Takes a connection up to its hello, which is still to be answered; `None` when it was refused, or had to
    /// make room for others: then `cut_off` has ended.
    pub(crate) async fn receive(&self, incoming: quinn::Incoming, cut_off: impl Future<Output = ()>) -> Option<Link> {
        let address = incoming.remote_address();
        let deadline = Instant::now() + self.hello_timeout;
        let mut cut_off = pin!(cut_off);
        let connecting = incoming.accept().ok()?;
        let connection = tokio::select! {
            connection = timeout_at(deadline, connecting) => connection.ok()?.ok()?,
            () = &mut cut_off => return None,
        };
        let reason = tokio::select! {
            heard = timeout_at(deadline, self.hear(connection.clone(), address)) => match heard {
                Ok(link) => return link,
                Err(_) => format!("no hello came within {:?}", self.hello_timeout),
            },
            () = cut_off => "too many connections are being made".into(),
        };
        connection.close(Close::Refused.code(), reason.as_bytes());
        None
    }

    async fn hear(&self, connection: quinn::Connection, address: SocketAddr) -> Option<Link> {
        let (send, mut recv) = connection.accept_bi().await.ok()?;
        let names = tls::peer_names(&connection);
        let own = self.own();
        let heard = match read_hello(&mut recv).await {
            Ok(bytes) => hello::decode_hello(&bytes),
            Err(ReadHello::Wrong(error)) => Err(error),
            // Whoever is still there ended its stream.
            Err(ReadHello::Lost(_)) => Err(HelloError::Malformed("it is too short")),
        };
        let checked = match heard {
            Ok((peer, purpose)) => check(&own, &peer, &names).map(|()| (peer, purpose)),
            Err(HelloError::Version { given }) => Err(Refusal::OtherVersion { given, spoken: hello::VERSION }),
            Err(HelloError::Malformed(reason)) => Err(Refusal::Malformed(reason.into())),
        };
        match checked {
            Ok((peer, purpose)) => Some(Link { connection, send, recv, peer, purpose, told: None }),
            Err(refusal) => {
                tracing::warn!(%address, %refusal, "a connection was refused");
                refuse(connection, send, &own, &refusal).await;
                None
            }
        }
    }

    /// How long a connection may take until its hello is answered.
    pub(crate) fn hello_timeout(&self) -> Duration {
        self.hello_timeout
    }

    /// Answers the hello of a received link: from here on it is up.
    pub(crate) async fn accept(&self, link: &mut Link) -> bool {
        let own = self.own();
        let answer = hello::encode_answer(&own, Ok(()));
        link.told = own.cluster;
        link.connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
        if link.purpose == Purpose::Bulk {
            link.connection.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_STREAMS));
        }
        let written = timeout(self.hello_timeout, link.send.write_all(&answer)).await;
        matches!(written, Ok(Ok(())))
    }

    /// Turns a received link away.
    pub(crate) async fn refuse(&self, link: Link, refusal: &Refusal) {
        refuse(link.connection, link.send, &self.own(), refusal).await;
    }
}

/// How connections behave that somebody dials to this node. It may do little until its hello was answered, and
/// with a lane it needs no other stream than the one it greeted over.
pub(crate) fn dialled_by_peer(config: &EndpointConfig) -> Arc<TransportConfig> {
    let mut transport = transport(config);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(1)).receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES));
    Arc::new(transport)
}

/// How connections behave that this node dials: only it opens streams.
pub(crate) fn dialled_by_us(config: &EndpointConfig) -> Arc<TransportConfig> {
    Arc::new(transport(config))
}

/// What both have in common: the figures were measured, see the constants.
fn transport(config: &EndpointConfig) -> TransportConfig {
    let mut transport = TransportConfig::default();
    // The config's range is far below what QUIC can say.
    let idle = IdleTimeout::try_from(config.dead_after()).ok();
    let mut mtu_discovery = MtuDiscoveryConfig::default();
    mtu_discovery.upper_bound(MAX_DATAGRAM_BYTES);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW_BYTES);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .keep_alive_interval(Some(config.ping_interval()))
        .max_idle_timeout(idle)
        .mtu_discovery_config(Some(mtu_discovery))
        .congestion_controller_factory(Arc::new(congestion));
    transport
}

/// What quinn says of an ended connection, with the reason the other side gave.
pub(crate) fn describe(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            format!("closed by the other side: {}", String::from_utf8_lossy(&close.reason))
        }
        quinn::ConnectionError::ConnectionClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            format!("refused by the other side: {} {reason}", close.error_code)
        }
        other => other.to_string(),
    }
}

/// Whether a peer may be talked to that was dialled.
fn check_answer(own: &Introduction, peer: &Introduction, certified: &[NodeName]) -> Result<(), Refusal> {
    check(own, peer, certified).map_err(|refusal| match refusal {
        Refusal::OtherCluster { given, own } => Refusal::OtherCluster { given: own, own: given },
        refusal => refusal,
    })
}

/// Whether a peer may be talked to that has dialled.
fn check(own: &Introduction, peer: &Introduction, certified: &[NodeName]) -> Result<(), Refusal> {
    if !certified.contains(&peer.name) {
        return Err(Refusal::WrongName {
            claimed: peer.name.to_string(),
            certified: certified.iter().map(NodeName::to_string).collect(),
        });
    }
    if peer.name == own.name && peer.instance != own.instance {
        return Err(Refusal::OwnName { name: own.name.clone() });
    }
    match (own.cluster, peer.cluster) {
        (Some(own), Some(given)) if own != given => Err(Refusal::OtherCluster { given, own }),
        _ => Ok(()),
    }
}

async fn refuse(connection: quinn::Connection, mut send: SendStream, own: &Introduction, refusal: &Refusal) {
    let told = async {
        send.write_all(&hello::encode_answer(own, Err(refusal))).await.ok()?;
        send.finish().ok()?;
        connection.closed().await;
        Some(())
    };
    // Who does not read why is closed all the same.
    let _ = timeout(REFUSAL_TIMEOUT, told).await;
    connection.close(Close::Refused.code(), refusal.to_string().as_bytes());
}

fn not_understood(address: SocketAddr, error: HelloError) -> ConnectError {
    match error {
        HelloError::Version { given } => {
            let refusal = Refusal::OtherVersion { given, spoken: hello::VERSION };
            ConnectError::Refused { address, refusal }
        }
        HelloError::Malformed(reason) => ConnectError::Malformed { address, reason: reason.to_owned() },
    }
}

enum ReadHello {
    Lost(String),
    Wrong(HelloError),
}

async fn read_hello(recv: &mut RecvStream) -> Result<Vec<u8>, ReadHello> {
    let lost = |error: quinn::ReadExactError| ReadHello::Lost(error.to_string());
    let mut prefix = [0; PREFIX_BYTES];
    recv.read_exact(&mut prefix).await.map_err(lost)?;
    let length = hello::length(&prefix).map_err(ReadHello::Wrong)?;
    let mut bytes = prefix.to_vec();
    bytes.resize(length, 0);
    recv.read_exact(&mut bytes[PREFIX_BYTES..]).await.map_err(lost)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::Compressions;

    #[test]
    fn whoever_checks_the_clusters_names_the_one_that_dialled_first() {
        let who = |name: &str, id| Introduction {
            name: name.parse().unwrap(),
            cluster: Some(ClusterId { id, generation: 1 }),
            instance: 1,
            compressions: Compressions::default(),
        };
        let (dialler, dialled) = (who("a", 0xa), who("b", 0xb));
        let names = |of: &Introduction| [of.name.clone()];
        let by_dialled = check(&dialled, &dialler, &names(&dialler)).unwrap_err();
        let by_dialler = check_answer(&dialler, &dialled, &names(&dialled)).unwrap_err();
        assert_eq!(by_dialled, by_dialler);
        expect_test::expect!["the node that dialled belongs to cluster 0000000000000000000000000000000a.1, the one that was dialled to 0000000000000000000000000000000b.1: check the addresses, or wipe the node that is wrong"]
            .assert_eq(&by_dialler.to_string());
    }
}
