//! What users hold: binds the socket, knows the peers, owns all tasks.

mod accept;
mod sending;
mod sender;
mod shared;
mod limits;
mod watching;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::runtime;
use tokio::time::timeout;

use crate::bulk::{BulkListener, BulkSender};
use crate::chance::Chance;
use crate::compression::Compressions;
use crate::config::{Batching, EndpointConfig};
use crate::error::{BindError, BulkError, ConfigError, ConnectError, MailboxError, SendError};
use crate::hello::{Introduction, Purpose};
use crate::link::{Close, Linker, MAX_DATAGRAM_BYTES, dialled_by_peer, dialled_by_us};
use crate::mailbox::Mailbox;
use crate::message::Message;
use crate::name::{Address, ClusterId, NodeName};
use crate::network::{Network, NetworkRuntime};
use crate::peer::{MAX_ADDRESSES, PeerStatus, Stop};
use crate::socket::ClosableSocket;
use crate::tls::Identity;
use crate::typed_mailbox::TypedMailbox;

pub use sender::Sender;
pub use shared::MAX_PEERS;
use shared::{Shared, Target};
pub use watching::{PeerWatch, PeersWatch};

/// More only lets queues grow.
const SOCKET_BUFFER_BYTES: usize = 1024 * 1024;
/// What is kept of a connection that is not accepted yet, which takes moments: its first packets.
const UNACCEPTED_BYTES: u64 = 16 * 1024;
/// The same of all of them.
const ALL_UNACCEPTED_BYTES: u64 = 1024 * 1024;
/// How long `shutdown` waits for peers to take what is left.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end waits for QUIC to say goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// A node on the network: one socket, its peers, its mailboxes.
///
/// Clones are one endpoint. Dropping the last one ends its tasks and closes its connections at once;
/// [`Endpoint::shutdown`] sends first what is waiting.
#[derive(Clone)]
pub struct Endpoint {
    handle: Arc<Handle>,
}

/// Ends everything when the last endpoint is dropped. Tasks hold `Shared`, never this.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop(Close::ShutDown);
        self.shared.release(GOODBYE_TIMEOUT);
    }
}

impl Endpoint {
    /// Listens on `address` (port 0: any free one) with the default settings.
    ///
    /// # Errors
    /// When the address cannot be had, or the identity is of no use.
    pub async fn bind(address: SocketAddr, identity: Identity) -> Result<Endpoint, BindError> {
        Self::bind_with(address, identity, EndpointConfig::default()).await
    }

    /// Listens on `address` with other settings.
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    pub async fn bind_with(
        address: SocketAddr,
        identity: Identity,
        config: EndpointConfig,
    ) -> Result<Endpoint, BindError> {
        let handle = runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let failed = |source| bind_error(address, source);
        let socket = bind_socket(address).map_err(failed)?;
        let (network, quic_handle) = match config.network_thread() {
            true => Network::on_own_thread().map_err(failed)?,
            false => (Network::on(&handle), handle.clone()),
        };
        // QUIC's socket and timers are where the network is.
        let _entered = quic_handle.enter();
        let runtime = quinn::default_runtime().ok_or(BindError::NoRuntime)?;
        let socket = runtime.wrap_udp_socket(socket).map_err(failed)?;
        Self::start((socket, runtime), (handle, network), address, identity, config, Chance::System)
    }

    /// Joins a simulated network at `address`, which is made up (port 0: any free one).
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    #[cfg(feature = "test-net")]
    pub async fn bind_in(
        net: &crate::test_net::TestNet,
        address: SocketAddr,
        identity: Identity,
        config: EndpointConfig,
    ) -> Result<Endpoint, BindError> {
        let runtime = quinn::default_runtime().ok_or(BindError::NoRuntime)?;
        let (socket, seed) = net.bind(address, &identity).map_err(|source| bind_error(address, source))?;
        let handle = runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let network = Network::on(&handle);
        Self::start((socket, runtime), (handle, network), address, identity, config, Chance::seeded(seed))
    }

    /// A node over any socket for datagrams. `address` is for errors.
    fn start(
        (socket, quic_runtime): (Arc<dyn quinn::AsyncUdpSocket>, Arc<dyn quinn::Runtime>),
        (handle, network): (runtime::Handle, Network),
        address: SocketAddr,
        identity: Identity,
        config: EndpointConfig,
        chance: Chance,
    ) -> Result<Endpoint, BindError> {
        let (server, client) = tls_configs(&identity, &config)?;
        let failed = |source: io::Error| BindError::Socket { address, source };
        let socket = Arc::new(ClosableSocket::new(socket).map_err(failed)?);
        let chance = Arc::new(chance);
        let quic_config = identity.quic_config(&chance, MAX_DATAGRAM_BYTES);
        let runtime = Arc::new(NetworkRuntime::new(network.clone(), quic_runtime));
        let quic = quinn::Endpoint::new_with_abstract_socket(quic_config, Some(server), socket.clone(), runtime);
        let quic = quic.map_err(failed)?;
        let local_address = quic.local_addr().map_err(failed)?;
        let instance = config.instance().unwrap_or_else(|| chance.number());
        let own =
            Introduction { name: identity.name().clone(), cluster: None, instance, compressions: Compressions::OWN };
        let linker = Linker::new(quic, socket, client, own, config.hello_timeout());
        let name = identity.name().clone();
        let shared = Arc::new(Shared::new(name, local_address, linker, config, (handle, network), chance));
        shared.spawn(accept::run(shared.clone()));
        Ok(Endpoint { handle: Arc::new(Handle { shared }) })
    }

    /// This node's name.
    pub fn name(&self) -> &NodeName {
        &self.shared().name
    }

    /// Where this node listens.
    pub fn local_address(&self) -> SocketAddr {
        self.shared().address
    }

    /// The number of this start of the node, as peers are told.
    pub fn instance(&self) -> u64 {
        self.shared().linker.own().instance
    }

    /// Says from now on which cluster this node belongs to. A node of none talks to every node; nodes of
    /// two clusters, or of two generations of one, refuse each other.
    pub fn set_cluster(&self, cluster: ClusterId) {
        self.shared().linker.set_cluster(cluster);
        for peer in self.shared().all_peers() {
            peer.want(|wanted| wanted.cluster = Some(cluster));
        }
    }

    /// Uses other certificates from now on; connections that stand go on. The name must be the same,
    /// and the address, the mailboxes and the peers are.
    ///
    /// # Errors
    /// When the identity is of no use, or for another node.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), BindError> {
        if identity.name() != self.name() {
            let reason = format!("it is for {}, this node is {}", identity.name(), self.name());
            return Err(BindError::Tls { reason });
        }
        let (server, client) = tls_configs(identity, &self.shared().config)?;
        if let Some(quic) = self.shared().linker.quic() {
            quic.set_server_config(Some(server));
        }
        self.shared().linker.set_client(client);
        Ok(())
    }

    /// Says where a peer is; what was said before is forgotten. It is dialled at once, and again whenever the
    /// connection is lost. Of more than [`MAX_ADDRESSES`] places, the first ones are kept, and the log says so.
    ///
    /// Answers whether it is a peer now. It is none where [`MAX_PEERS`] are known already and none of them is without
    /// connection and address, which the log says, too; nor is this node itself, nor anybody after the end.
    pub fn set_peer(&self, name: &NodeName, addresses: Vec<SocketAddr>) -> bool {
        self.note_addresses(name, |noted| *noted = addresses)
    }

    fn note_addresses(&self, name: &NodeName, note: impl FnOnce(&mut Vec<SocketAddr>)) -> bool {
        let shared = self.shared();
        if *name == shared.name || shared.is_closed() {
            return false;
        }
        let Some(peer) = shared.peer_or_new(name) else {
            tracing::warn!(peer = %name, max = MAX_PEERS, "too many peers are known to take another one");
            return false;
        };
        peer.want(|wanted| {
            note(&mut wanted.addresses);
            let given = wanted.addresses.len();
            if given > MAX_ADDRESSES {
                tracing::warn!(peer = %name, given, max = MAX_ADDRESSES, "only the first addresses are kept");
                wanted.addresses.truncate(MAX_ADDRESSES);
            }
        });
        true
    }

    /// Forgets a peer and closes its connections. It may come back by dialling.
    pub fn remove_peer(&self, name: &NodeName) {
        self.shared().remove_peer(name);
    }

    /// Where a peer was last connected, or else where it will be dialled.
    pub fn peer_address(&self, name: &NodeName) -> Option<SocketAddr> {
        self.shared().peer(name).and_then(|peer| peer.address())
    }

    /// Asks who is at `address`, with full TLS and hello, and remembers the answer: the node is a peer
    /// from then on, where [`Endpoint::set_peer`] would take it. The answer can be this node itself.
    ///
    /// # Errors
    /// When nobody answers, somebody of another CA or cluster does, or this endpoint is shut down.
    pub async fn probe(&self, address: SocketAddr, within: Duration) -> Result<NodeName, ConnectError> {
        let linker = &self.shared().linker;
        let probing = async {
            let reached = linker.reach(address, None).await?;
            linker.greet(reached, Purpose::Probe).await
        };
        let timed_out = ConnectError::Timeout { address, after: within };
        let link = timeout(within, probing).await.unwrap_or(Err(timed_out))?;
        link.connection.close(Close::Normal.code(), b"thank you");
        let name = link.peer.name;
        self.note_addresses(&name, |noted| {
            noted.retain(|known| *known != address);
            // The last one makes room.
            noted.truncate(MAX_ADDRESSES - 1);
            noted.insert(0, address);
        });
        Ok(name)
    }

    /// A mailbox that receives what is sent to `name`, and holds up to `capacity` messages.
    ///
    /// # Errors
    /// When there is one of that name, or the name or the capacity is none.
    pub fn mailbox(&self, name: &str, capacity: usize) -> Result<Mailbox, MailboxError> {
        if self.shared().is_closed() {
            return Err(MailboxError::ShutDown);
        }
        self.shared().registry.register(name, capacity)
    }

    /// A mailbox for messages of one type, which come out decoded; else as [`Endpoint::mailbox`].
    ///
    /// # Errors
    /// As [`Endpoint::mailbox`].
    pub fn typed_mailbox<M: Message>(&self, name: &str, capacity: usize) -> Result<TypedMailbox<M>, MailboxError> {
        self.mailbox(name, capacity).map(TypedMailbox::new)
    }

    /// All peers, by name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let peers = self.shared().all_peers();
        let mut peers: Vec<_> = peers.iter().map(|peer| peer.public_status()).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }

    /// When and how batches leave, for all peers that have nothing of their own.
    pub fn batching(&self) -> Batching {
        self.shared().limits().all()
    }

    /// Changes when and how batches leave, from the next message on, for all peers but those for which
    /// [`Endpoint::set_peer_batching`] said something else.
    pub fn set_batching(&self, batching: Batching) {
        self.shared().change_limits(|limits| limits.set_all(batching));
    }

    /// What was set for one peer alone; `None` when it follows [`Endpoint::batching`].
    pub fn peer_batching(&self, name: &NodeName) -> Option<Batching> {
        self.shared().limits().own(name)
    }

    /// Changes when and how batches leave to one peer, from the next message on; with `None`, it follows
    /// [`Endpoint::set_batching`] again. It holds for the name, until it is set anew: also for a peer that
    /// becomes known later, connects again, or was removed and comes back.
    ///
    /// # Errors
    /// When more than 4,096 names would have batching of their own.
    pub fn set_peer_batching(&self, name: &NodeName, batching: Option<Batching>) -> Result<(), ConfigError> {
        self.shared().change_limits(|limits| limits.set_own(name, batching))
    }

    /// Begins a bulk transfer to whoever listens at `to`, over a second connection. `header` says what
    /// it is. Seven run at once to one peer; more wait for their turn.
    ///
    /// # Errors
    /// When the peer cannot be reached, or the transfer could not begin within five seconds. That nobody listens shows at the first write or at the end.
    pub async fn open_bulk(&self, to: &Address, header: &[u8]) -> Result<BulkSender, BulkError> {
        let shared = self.shared();
        let unknown = || BulkError::UnknownPeer { peer: to.node.clone() };
        let peer = match shared.target(&to.node) {
            Ok(Target::Local) => {
                return shared.bulk_registry.open_local(&shared.name, &to.mailbox, header);
            }
            Ok(Target::Peer(peer)) => peer,
            Err(SendError::ShutDown) => return Err(BulkError::ShutDown),
            Err(_) => return Err(unknown()),
        };
        let addresses = peer.addresses();
        let connect = || async {
            let mut result = Err(unknown());
            for address in addresses {
                result = shared.connect_bulk(address, &to.node).await;
                if result.is_ok() {
                    break;
                }
            }
            result
        };
        peer.bulk().open(&to.mailbox, header, connect).await
    }

    /// Listens for bulk transfers to `mailbox`; up to `capacity` wait to be accepted. The names of bulk
    /// listeners and those of mailboxes are apart.
    ///
    /// # Errors
    /// As [`Endpoint::mailbox`].
    pub fn bulk_listener(&self, mailbox: &str, capacity: usize) -> Result<BulkListener, MailboxError> {
        if self.shared().is_closed() {
            return Err(MailboxError::ShutDown);
        }
        self.shared().bulk_registry.register(mailbox, capacity)
    }

    /// Ends in order: takes nothing new, lets handlers answer the calls that were received (half a second at
    /// most), sends what was taken, and reads what the peers have taken, until they have ended, too, or two
    /// seconds are over. Two nodes that shut down at once lose nothing. Then all tasks end. Every clone is shut
    /// down with it; mailboxes give what they have received, but for calls, and then end.
    pub async fn shutdown(&self) {
        let shared = self.shared();
        shared.begin_close();
        let peers = shared.all_peers();
        for peer in &peers {
            peer.stop(Stop::ShutDown);
        }
        let flushed = async {
            for peer in &peers {
                peer.ended().await;
            }
        };
        // Who has not taken it by then does not get it.
        let _ = timeout(SHUTDOWN_TIMEOUT, flushed).await;
        shared.stop(Close::ShutDown);
        shared.linker.release(GOODBYE_TIMEOUT).await;
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} at {})", self.name(), self.local_address())
    }
}

fn tls_configs(
    identity: &Identity,
    config: &EndpointConfig,
) -> Result<(quinn::ServerConfig, quinn::ClientConfig), BindError> {
    let mut server = identity.server_config()?;
    server
        .transport_config(dialled_by_peer(config))
        .incoming_buffer_size(UNACCEPTED_BYTES)
        .incoming_buffer_size_total(ALL_UNACCEPTED_BYTES);
    let mut client = identity.client_config()?;
    client.transport_config(dialled_by_us(config));
    Ok((server, client))
}

fn bind_error(address: SocketAddr, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::AddressInUse { address },
        _ => BindError::Socket { address, source },
    }
}

fn bind_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // The system may allow less; it works with less.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&SockAddr::from(address))?;
    Ok(socket.into())
}
