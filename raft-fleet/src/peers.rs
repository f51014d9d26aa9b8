//! Which nodes are silent now: the transport's failure detector, in a form that many callers can look at.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use batched_comm::{Endpoint, PeerEvent, PeerState};
use tokio::sync::{broadcast, watch};

/// The silent nodes. A node that was never connected is not among them.
#[derive(Debug)]
pub(crate) struct Peers {
    silent: watch::Sender<Arc<HashSet<String>>>,
    /// All that were ever connected.
    met: RwLock<HashSet<String>>,
}

impl Peers {
    pub(crate) fn new() -> Self {
        Self { silent: watch::Sender::new(Arc::default()), met: RwLock::default() }
    }

    pub(crate) fn is_silent(&self, node: &str) -> bool {
        self.silent.borrow().contains(node)
    }

    /// Whether it was ever connected.
    pub(crate) fn was_met(&self, node: &str) -> bool {
        self.met.read().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    /// Wakes whenever a node falls silent or is heard again.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<HashSet<String>>> {
        self.silent.subscribe()
    }

    /// Waits until the node is silent.
    pub(crate) async fn wait_silent(&self, node: &str) {
        let mut silent = self.subscribe();
        if silent.wait_for(|silent| silent.contains(node)).await.is_err() {
            // The sender lives in `self`, which is borrowed here.
            std::future::pending::<()>().await;
        }
    }

    /// Follows the endpoint's events; ends with the endpoint.
    pub(crate) async fn run(&self, endpoint: &Endpoint) {
        let mut events = endpoint.events();
        loop {
            match events.recv().await {
                Ok(PeerEvent::Up { peer, .. } | PeerEvent::Alive { peer }) => self.set(peer.as_str(), false),
                Ok(PeerEvent::Suspect { peer } | PeerEvent::Down { peer, .. }) => self.set(peer.as_str(), true),
                Err(broadcast::error::RecvError::Lagged(_)) => self.look(endpoint),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Some events were missed: look at the peers themselves.
    fn look(&self, endpoint: &Endpoint) {
        let peers = endpoint.peers();
        let silent = peers.iter().filter(|peer| !matches!(peer.state, PeerState::Up { .. }));
        let silent = silent.map(|peer| peer.name.as_str().to_owned()).collect();
        self.silent.send_replace(Arc::new(silent));
    }

    fn set(&self, node: &str, is_silent: bool) {
        if !self.was_met(node) {
            self.met.write().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned());
        }
        self.silent.send_if_modified(|silent| {
            if silent.contains(node) == is_silent {
                return false;
            }
            let silent = Arc::make_mut(silent);
            if is_silent { silent.insert(node.to_owned()) } else { silent.remove(node) }
        });
    }
}
