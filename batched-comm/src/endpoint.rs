//! What users hold: binds the socket, knows the peers, owns all tasks.

mod accept;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rkyv::util::AlignedVec;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bulk::{BulkListener, BulkRegistry, BulkSender};
use crate::config::{Batching, EndpointConfig};
use crate::error::{BindError, BulkError, CallError, ConnectError, EncodeError, MailboxError, SendError};
use crate::hello::{Introduction, Purpose};
use crate::link::{Close, Linker, transport};
use crate::mailbox::{Answer, Incoming, Mailbox, Registry, ReplyHandle};
use crate::message::{self, Body, Message, Request};
use crate::name::{Address, ClusterId, NodeName};
use crate::peer::{Driver, MAX_ADDRESSES, Parts, Peer, PeerEvent, PeerStatus, Stop, Wanted, refused_call};
use crate::tls::Identity;

/// Peers that are known at once; who comes beyond is turned away.
pub const MAX_PEERS: usize = 4096;

/// Events that a slow listener may fall behind before it misses some.
const EVENT_BACKLOG: usize = 1024;
/// More only lets queues grow.
const SOCKET_BUFFER_BYTES: usize = 1024 * 1024;
/// How long `shutdown` waits for peers to take what is left.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long `shutdown` waits for QUIC to say goodbye.
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
    }
}

struct Shared {
    name: NodeName,
    address: SocketAddr,
    config: EndpointConfig,
    batching: Mutex<Batching>,
    linker: Arc<Linker>,
    registry: Arc<Registry>,
    bulk_registry: Arc<BulkRegistry>,
    peers: RwLock<HashMap<NodeName, Arc<Peer>>>,
    events: broadcast::Sender<PeerEvent>,
    /// All tasks; `None` once the endpoint is shut down.
    tasks: Mutex<Option<JoinSet<()>>>,
    closed: AtomicBool,
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
        let (server, client) = tls_configs(&identity, &config)?;
        let runtime = quinn::default_runtime().ok_or(BindError::NoRuntime)?;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::AddressInUse { address },
            _ => BindError::Socket { address, source },
        };
        let socket = bind_socket(address).map_err(failed)?;
        let quic = quinn::Endpoint::new(identity.quic_config(), Some(server), socket, runtime);
        let quic = quic.map_err(failed)?;
        let local_address = quic.local_addr().map_err(failed)?;
        let instance = config.instance().unwrap_or_else(rand::random);
        let own = Introduction { name: identity.name().clone(), cluster: None, instance };
        let shared = Arc::new(Shared {
            name: identity.name().clone(),
            address: local_address,
            batching: Mutex::new(config.batching()),
            linker: Arc::new(Linker::new(quic, client, own, config.hello_timeout())),
            registry: Arc::default(),
            bulk_registry: Arc::default(),
            peers: RwLock::default(),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            tasks: Mutex::new(Some(JoinSet::new())),
            closed: AtomicBool::new(false),
            config,
        });
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
        self.shared().linker.quic().set_server_config(Some(server));
        self.shared().linker.set_client(client);
        Ok(())
    }

    /// Says where a peer is, at most [`MAX_ADDRESSES`] places; what was said before is forgotten. It is
    /// dialled at once, and again whenever the connection is lost. Of this node itself, nothing is noted.
    pub fn set_peer(&self, name: &NodeName, addresses: Vec<SocketAddr>) {
        let shared = self.shared();
        if let Some(peer) = shared.peer_or_new(name) {
            peer.want(|wanted| {
                wanted.addresses = addresses;
                wanted.addresses.truncate(MAX_ADDRESSES);
            });
        }
    }

    /// Forgets a peer and closes its connections. It may come back by dialling.
    pub fn remove_peer(&self, name: &NodeName) {
        let mut peers = self.shared().peers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.remove(name) {
            peer.want(|wanted| wanted.stop = Some(Stop::Removed));
        }
    }

    /// Where a peer was last connected, or else where it will be dialled.
    pub fn peer_address(&self, name: &NodeName) -> Option<SocketAddr> {
        self.shared().peer(name).and_then(|peer| peer.address())
    }

    /// Asks who is at `address`, with full TLS and hello, and remembers the answer: the node is a peer
    /// from then on. The answer can be this node itself.
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
        if let Some(peer) = self.shared().peer_or_new(&name) {
            peer.want(|wanted| {
                wanted.addresses.retain(|known| *known != address);
                wanted.addresses.insert(0, address);
                wanted.addresses.truncate(MAX_ADDRESSES);
            });
        }
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

    /// Sends a message that wants no answer; waits while too much is waiting already. `Ok` says that it
    /// is on its way, not that it arrives: it is dropped when the connection is lost, or the mailbox is
    /// full or unknown. Messages from here to one mailbox arrive in order.
    ///
    /// # Errors
    /// When it was certainly not sent; at once when there is no connection.
    pub async fn cast<M: Message>(&self, to: &Address, message: &M) -> Result<(), SendError> {
        match self.shared().target(&to.node)? {
            Target::Local => self.shared().cast_local(to, M::TYPE, message::encode(message)?),
            Target::Peer(peer) => {
                let encode = |buffer: &mut _| message::encode_into(message, buffer);
                peer.cast(&to.mailbox, M::TYPE, encode).await
            }
        }
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// [`SendError::Full`] where [`Endpoint::cast`] waits.
    pub fn try_cast<M: Message>(&self, to: &Address, message: &M) -> Result<(), SendError> {
        match self.shared().target(&to.node)? {
            Target::Local => self.shared().cast_local(to, M::TYPE, message::encode(message)?),
            Target::Peer(peer) => {
                let encode = |buffer: &mut _| message::encode_into(message, buffer);
                peer.try_cast(&to.mailbox, M::TYPE, encode)
            }
        }
    }

    /// [`Endpoint::cast`] for bytes in an encoding of the caller's own.
    ///
    /// # Errors
    /// As [`Endpoint::cast`].
    pub async fn cast_bytes(&self, to: &Address, type_number: u32, body: &[u8]) -> Result<(), SendError> {
        match self.shared().target(&to.node)? {
            Target::Local => self.shared().cast_local(to, type_number, Body::copy_from(body)),
            Target::Peer(peer) => peer.cast(&to.mailbox, type_number, copy(body)).await,
        }
    }

    /// [`Endpoint::try_cast`] for bytes in an encoding of the caller's own.
    ///
    /// # Errors
    /// As [`Endpoint::try_cast`].
    pub fn try_cast_bytes(&self, to: &Address, type_number: u32, body: &[u8]) -> Result<(), SendError> {
        match self.shared().target(&to.node)? {
            Target::Local => self.shared().cast_local(to, type_number, Body::copy_from(body)),
            Target::Peer(peer) => peer.try_cast(&to.mailbox, type_number, copy(body)),
        }
    }

    /// Sends a request and waits for its answer, `timeout` at most; that includes waiting for a
    /// connection that does not stand yet. Dropping the future gives the answer up, not the request.
    ///
    /// # Errors
    /// [`CallError::NotSent`] when it certainly was not handled; see [`CallError::is_unknown`].
    pub async fn call<R: Request>(&self, to: &Address, request: &R, timeout: Duration) -> Result<R::Reply, CallError> {
        let body = match self.shared().target(&to.node)? {
            Target::Local => {
                let body = message::encode(request).map_err(SendError::Encode)?;
                self.shared().call_local(to, R::TYPE, body, timeout).await?
            }
            Target::Peer(peer) => {
                let encode = |buffer: &mut _| message::encode_into(request, buffer);
                peer.call(&to.mailbox, R::TYPE, timeout, encode).await?
            }
        };
        Ok(message::decode(&body)?)
    }

    /// [`Endpoint::call`] for bytes in an encoding of the caller's own. The answer's bytes begin at a
    /// multiple of 16.
    ///
    /// # Errors
    /// As [`Endpoint::call`].
    pub async fn call_bytes(
        &self,
        to: &Address,
        type_number: u32,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Body, CallError> {
        match self.shared().target(&to.node)? {
            Target::Local => {
                let body = Body::copy_from(body);
                self.shared().call_local(to, type_number, body, timeout).await
            }
            Target::Peer(peer) => peer.call(&to.mailbox, type_number, timeout, copy(body)).await,
        }
    }

    /// Casts one message to many; it is encoded once. Waits for nobody: a peer with too much waiting is
    /// answered [`SendError::Full`].
    pub async fn broadcast<M: Message>(&self, to: &[Address], message: &M) -> Vec<(Address, Result<(), SendError>)> {
        let encoded = message::encode(message).map_err(SendError::Encode);
        let send = |address: &Address| match &encoded {
            Ok(body) => self.try_cast_bytes(address, M::TYPE, body),
            Err(error) => Err(error.clone()),
        };
        to.iter().map(|address| (address.clone(), send(address))).collect()
    }

    /// All peers, by name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let peers = self.shared().all_peers();
        let mut peers: Vec<_> = peers.iter().map(|peer| peer.public_status()).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }

    /// What happens to peers from now on. Whoever is too slow misses the oldest and is told so.
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.shared().events.subscribe()
    }

    /// When batches leave.
    pub fn batching(&self) -> Batching {
        *self.shared().batching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes when batches leave, for all peers, from the next message on.
    pub fn set_batching(&self, batching: Batching) {
        *self.shared().batching.lock().unwrap_or_else(PoisonError::into_inner) = batching;
        for peer in self.shared().all_peers() {
            peer.set_limits(batching);
        }
    }

    /// Begins a bulk transfer to whoever listens at `to`, over a second connection. `header` says what
    /// it is.
    ///
    /// # Errors
    /// When the peer cannot be reached. That nobody listens shows at the first write or at the end.
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

    /// Sends what is waiting, says goodbye to the peers, and ends all tasks. Every clone is shut down
    /// with it; mailboxes end.
    pub async fn shutdown(&self) {
        let shared = self.shared();
        shared.closed.store(true, Ordering::SeqCst);
        let peers = shared.all_peers();
        for peer in &peers {
            peer.want(|wanted| wanted.stop = Some(Stop::ShutDown));
        }
        let flushed = async {
            for peer in &peers {
                peer.ended().await;
            }
        };
        // Who has not taken it by then does not get it.
        let _ = timeout(SHUTDOWN_TIMEOUT, flushed).await;
        shared.stop(Close::ShutDown);
        let _ = timeout(GOODBYE_TIMEOUT, shared.linker.quic().wait_idle()).await;
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

enum Target {
    Local,
    Peer(Arc<Peer>),
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn peer(&self, name: &NodeName) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn all_peers(&self) -> Vec<Arc<Peer>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().cloned().collect()
    }

    /// `None` for this node itself, beyond the bound, and after the end.
    fn peer_or_new(&self, name: &NodeName) -> Option<Arc<Peer>> {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(name) {
            return Some(peer.clone());
        }
        if *name == self.name || peers.len() >= MAX_PEERS || self.is_closed() {
            return None;
        }
        let cluster = self.linker.own().cluster;
        let wanted = Wanted { cluster, ..Wanted::default() };
        let batching = *self.batching.lock().unwrap_or_else(PoisonError::into_inner);
        let (peer, offers) = Peer::new(name.clone(), &self.config, batching, wanted);
        let parts = Parts {
            linker: self.linker.clone(),
            registry: self.registry.clone(),
            events: self.events.clone(),
            config: self.config.clone(),
        };
        let driver = Driver::new(peer.clone(), offers, parts, self.name < *name);
        self.spawn(driver.run());
        peers.insert(name.clone(), peer.clone());
        Some(peer)
    }

    fn target(&self, node: &NodeName) -> Result<Target, SendError> {
        if self.is_closed() {
            return Err(SendError::ShutDown);
        }
        if *node == self.name {
            return Ok(Target::Local);
        }
        let peer = self.peer(node).ok_or_else(|| SendError::UnknownPeer { peer: node.clone() })?;
        Ok(Target::Peer(peer))
    }

    fn cast_local(&self, to: &Address, type_number: u32, body: Body) -> Result<(), SendError> {
        self.deliver_local(to, type_number, body, None)
    }

    async fn call_local(
        &self,
        to: &Address,
        type_number: u32,
        body: Body,
        within: Duration,
    ) -> Result<Body, CallError> {
        let (sender, answer) = oneshot::channel();
        let reply = ReplyHandle::local(self.name.clone(), sender);
        self.deliver_local(to, type_number, body, Some(reply))?;
        let peer = self.name.clone();
        match timeout(within, answer).await {
            Ok(Ok(Answer::Reply(body))) => Ok(body),
            Ok(Ok(Answer::Refused(refused))) => Err(refused_call(peer, &to.mailbox, refused)),
            Ok(_) => Err(CallError::Unanswered { peer }),
            Err(_) => Err(CallError::Timeout { peer, after: within }),
        }
    }

    fn deliver_local(
        &self,
        to: &Address,
        type_number: u32,
        body: Body,
        reply: Option<ReplyHandle>,
    ) -> Result<(), SendError> {
        let max_bytes = self.config.max_message_bytes();
        if body.len() > max_bytes {
            return Err(SendError::TooLarge { given_bytes: body.len(), max_bytes });
        }
        let incoming = Incoming::new(self.name.clone(), type_number, body, reply);
        let delivered = self.registry.mailboxes().deliver(to.mailbox.as_str(), incoming);
        match delivered {
            Ok(waker) => {
                waker.into_iter().for_each(std::task::Waker::wake);
                Ok(())
            }
            Err((_, refused)) => match refused_call(self.name.clone(), &to.mailbox, refused) {
                CallError::NotSent(error) => Err(error),
                _ => Err(SendError::ShutDown),
            },
        }
    }

    async fn connect_bulk(&self, address: SocketAddr, name: &NodeName) -> Result<quinn::Connection, BulkError> {
        let reached = self.linker.reach(address, Some(name)).await?;
        let link = self.linker.greet(reached, Purpose::Bulk).await?;
        Ok(link.connection)
    }

    /// Runs a task until the endpoint ends; after that, does nothing.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tasks) = tasks.as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    /// Ends all tasks and connections now.
    fn stop(&self, why: Close) {
        self.closed.store(true, Ordering::SeqCst);
        self.linker.quic().close(why.code(), b"the node is shut down");
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Dropping the set aborts what is in it.
        drop(tasks);
        self.registry.close();
        self.bulk_registry.close();
    }
}

fn copy(body: &[u8]) -> impl Fn(&mut AlignedVec) -> Result<(), EncodeError> {
    move |buffer| {
        buffer.extend_from_slice(body);
        Ok(())
    }
}

fn tls_configs(
    identity: &Identity,
    config: &EndpointConfig,
) -> Result<(quinn::ServerConfig, quinn::ClientConfig), BindError> {
    let transport = transport(config);
    let mut server = identity.server_config()?;
    server.transport_config(transport.clone());
    let mut client = identity.client_config()?;
    client.transport_config(transport);
    Ok((server, client))
}

fn bind_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // The system may allow less; it works with less.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&SockAddr::from(address))?;
    Ok(socket.into())
}
