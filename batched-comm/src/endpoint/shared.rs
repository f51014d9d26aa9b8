//! What an endpoint and its tasks share: the peers, the mailboxes, and the tasks themselves.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use rkyv::util::AlignedVec;
use tokio::runtime;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::limits::Limits;
use crate::bulk::BulkRegistry;
use crate::chance::Chance;
use crate::config::EndpointConfig;
use crate::error::{BulkError, CallError, EncodeError, SendError};
use crate::hello::Purpose;
use crate::link::{Close, Linker};
use crate::mailbox::{Answer, Arrived, Registry, ReplyHandle};
use crate::message::Body;
use crate::name::{Address, NodeName};
use crate::network::Network;
use crate::peer::{Driver, Parts, Peer, PeerEvent, PeerState, Stop, Wanted, refused_call};
use crate::stats::{DropReason, Drops};
use crate::watches::Watches;

/// Peers that are known at once; who comes beyond is turned away.
pub const MAX_PEERS: usize = 4096;

/// Events that a slow listener may fall behind before it misses some.
const EVENT_BACKLOG: usize = 1024;

pub(super) struct Shared {
    pub(super) name: NodeName,
    pub(super) address: SocketAddr,
    pub(super) config: EndpointConfig,
    limits: Mutex<Limits>,
    /// Held while a change of limits reaches the peers, so that the last one is what holds.
    changing_limits: Mutex<()>,
    pub(super) linker: Arc<Linker>,
    pub(super) registry: Arc<Registry>,
    pub(super) bulk_registry: Arc<BulkRegistry>,
    peers: RwLock<Peers>,
    pub(super) events: broadcast::Sender<PeerEvent>,
    pub(super) watches: Arc<Watches<PeerState>>,
    /// All tasks; `None` once the endpoint is shut down.
    tasks: Mutex<Option<JoinSet<()>>>,
    closed: AtomicBool,
    /// Casts that no peer counts: to this node itself, or to nobody known.
    dropped_casts: Drops,
    /// Peers may be named from outside of any runtime; their tasks run in the endpoint's.
    runtime: runtime::Handle,
    /// Gone with the end: who still holds this, as a `Sender` does, holds no thread.
    network: Mutex<Option<Network>>,
    chance: Arc<Chance>,
}

#[derive(Default)]
struct Peers {
    by_name: HashMap<NodeName, Arc<Peer>>,
    /// Peers that were removed and may not have ended yet.
    ending: HashMap<NodeName, Weak<Peer>>,
}

impl Peers {
    /// The lock is held, so that whoever takes the name next is watched after this one.
    fn remove(&mut self, name: &NodeName, watches: &Watches<PeerState>) {
        let Some(peer) = self.by_name.remove(name) else { return };
        // Its driver holds it to the end.
        self.ending.retain(|_, ending| ending.strong_count() > 0);
        self.ending.insert(name.clone(), Arc::downgrade(&peer));
        peer.stop(Stop::Removed);
        watches.set(name, None, || true);
    }

    /// Forgets one that is not connected and has no address.
    fn evict(&mut self, watches: &Watches<PeerState>) {
        let idle = self.by_name.iter().find(|(_, peer)| peer.is_forgettable());
        if let Some(name) = idle.map(|(name, _)| name.clone()) {
            self.remove(&name, watches);
        }
    }
}

/// Where a message goes.
#[derive(Clone)]
pub(super) enum Target {
    Local,
    Peer(Arc<Peer>),
}

impl Target {
    pub(super) async fn send(
        &self,
        shared: &Shared,
        to: &Address,
        type_number: u32,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), SendError> {
        match self {
            Target::Local => shared.send_local(to, type_number, body_of(encode)?),
            Target::Peer(peer) => peer.send(&to.mailbox, type_number, encode).await,
        }
    }

    pub(super) fn try_send(
        &self,
        shared: &Shared,
        to: &Address,
        type_number: u32,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), SendError> {
        match self {
            Target::Local => shared.send_local(to, type_number, body_of(encode)?),
            Target::Peer(peer) => peer.try_send(&to.mailbox, type_number, encode),
        }
    }

    pub(super) async fn call(
        &self,
        shared: &Shared,
        to: &Address,
        type_number: u32,
        within: Duration,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<Body, CallError> {
        match self {
            Target::Local => shared.call_local(to, type_number, body_of(encode)?, within).await,
            Target::Peer(peer) => peer.call(&to.mailbox, type_number, within, encode).await,
        }
    }
}

fn body_of(encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>) -> Result<Body, SendError> {
    let mut buffer = AlignedVec::new();
    encode(&mut buffer)?;
    Ok(buffer.into())
}

impl Shared {
    pub(super) fn new(
        name: NodeName,
        address: SocketAddr,
        linker: Linker,
        config: EndpointConfig,
        (runtime, network): (runtime::Handle, Network),
        chance: Arc<Chance>,
    ) -> Shared {
        Shared {
            dropped_casts: Drops::new(&name),
            name,
            address,
            limits: Mutex::new(Limits::new(config.batching())),
            changing_limits: Mutex::default(),
            linker: Arc::new(linker),
            registry: Arc::default(),
            bulk_registry: Arc::default(),
            peers: RwLock::default(),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            watches: Arc::new(Watches::new()),
            tasks: Mutex::new(Some(JoinSet::new())),
            closed: AtomicBool::new(false),
            config,
            runtime,
            network: Mutex::new(Some(network)),
            chance,
        }
    }

    /// Nothing new begins from here on.
    pub(super) fn begin_close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn peer(&self, name: &NodeName) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).by_name.get(name).cloned()
    }

    /// Forgets a peer, which ends.
    pub(super) fn remove_peer(&self, name: &NodeName) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(name, &self.watches);
    }

    pub(super) fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the limits, and brings them to the peers there are.
    pub(super) fn change_limits<T>(&self, change: impl FnOnce(&mut Limits) -> T) -> T {
        let _changing = self.changing_limits.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut self.limits());
        for peer in self.all_peers() {
            let limits = self.limits().of(peer.name());
            peer.set_limits(limits);
        }
        changed
    }

    pub(super) fn all_peers(&self) -> Vec<Arc<Peer>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.by_name.values().cloned().collect()
    }

    pub(super) fn peer_count(&self) -> usize {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).by_name.len()
    }

    /// `None` for this node itself, beyond the bound, and after the end.
    pub(super) fn peer_or_new(&self, name: &NodeName) -> Option<Arc<Peer>> {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.by_name.get(name) {
            return Some(peer.clone());
        }
        if *name == self.name || self.is_closed() {
            return None;
        }
        if peers.by_name.len() >= MAX_PEERS {
            peers.evict(&self.watches);
        }
        if peers.by_name.len() >= MAX_PEERS {
            return None;
        }
        let cluster = self.linker.own().cluster;
        let wanted = Wanted { cluster, ..Wanted::default() };
        let limits = self.limits().of(name);
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (peer, offers) = Peer::new(name.clone(), &self.config, limits, wanted);
        let parts = Parts {
            network,
            linker: self.linker.clone(),
            registry: self.registry.clone(),
            events: self.events.clone(),
            watches: self.watches.clone(),
            config: self.config.clone(),
            chance: self.chance.clone(),
        };
        let driver = Driver::new(peer.clone(), offers, parts, self.name < *name);
        self.watches.set(name, Some(PeerState::Idle), || true);
        let predecessor = peers.ending.remove(name).and_then(|ending| ending.upgrade());
        self.spawn(async move {
            // Else its last event would come after the first ones of the new one.
            if let Some(predecessor) = predecessor {
                predecessor.ended().await;
            }
            driver.run().await;
        });
        peers.by_name.insert(name.clone(), peer.clone());
        Some(peer)
    }

    pub(super) fn target(&self, node: &NodeName) -> Result<Target, SendError> {
        if self.is_closed() {
            return Err(SendError::ShutDown);
        }
        if *node == self.name {
            return Ok(Target::Local);
        }
        let peer = self.peer(node).ok_or_else(|| SendError::UnknownPeer { peer: node.clone() })?;
        Ok(Target::Peer(peer))
    }

    /// Sends without waiting; counts what is not taken.
    pub(super) fn cast(
        &self,
        target: Result<impl Borrow<Target>, SendError>,
        to: &Address,
        type_number: u32,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) {
        let sent = target.and_then(|target| {
            let target = target.borrow();
            let sent = target.try_send(self, to, type_number, encode);
            if let (Err(error), Target::Peer(peer)) = (&sent, target) {
                peer.dropped_cast(error);
                return Ok(());
            }
            sent
        });
        if let Err(error) = sent {
            self.dropped_casts.add(DropReason::of(&error), 1);
        }
    }

    pub(super) fn dropped_casts(&self) -> u64 {
        self.dropped_casts.total()
    }

    pub(super) fn send_local(&self, to: &Address, type_number: u32, body: Body) -> Result<(), SendError> {
        self.deliver_local(to, type_number, body, None)
    }

    pub(super) async fn call_local(
        &self,
        to: &Address,
        type_number: u32,
        body: Body,
        within: Duration,
    ) -> Result<Body, CallError> {
        let (sender, answer) = oneshot::channel();
        let reply = ReplyHandle::local(self.name.clone(), sender, self.config.max_message_bytes());
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
        let arrived = || Arrived { type_number, body, reply };
        let delivered = self.registry.mailboxes().deliver(to.mailbox.as_str(), &self.name, arrived);
        match delivered {
            Ok(()) => Ok(()),
            Err(refused) => match refused_call(self.name.clone(), &to.mailbox, refused) {
                CallError::NotSent(error) => Err(error),
                _ => Err(SendError::ShutDown),
            },
        }
    }

    pub(super) async fn connect_bulk(
        &self,
        address: SocketAddr,
        name: &NodeName,
    ) -> Result<quinn::Connection, BulkError> {
        let reached = self.linker.reach(address, Some(name)).await?;
        let link = self.linker.greet(reached, Purpose::Bulk).await?;
        Ok(link.connection)
    }

    /// Runs a task until the endpoint ends; after that, does nothing.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tasks) = tasks.as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn_on(task, &self.runtime);
        }
    }

    /// Ends all tasks and connections now.
    pub(super) fn stop(&self, why: Close) {
        self.begin_close();
        if let Some(quic) = self.linker.quic() {
            quic.close(why.code(), b"the node is shut down");
        }
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Dropping the set aborts what is in it.
        drop(tasks);
        self.watches.close();
        self.registry.close();
        self.bulk_registry.close();
    }

    /// Lets the socket go, also while somebody still holds this; after [`Shared::stop`]. It takes `patience` at most
    /// twice, and nobody waits for it.
    pub(super) fn release(&self, patience: Duration) {
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Without one, it was done before.
        let Some(network) = network else { return };
        let linker = self.linker.clone();
        network.spawn(async move { linker.release(patience).await });
    }
}
