//! How the connections to peers stand: watched, waited for, and as events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::timeout;

use super::Endpoint;
use crate::error::SendError;
use crate::name::NodeName;
use crate::peer::{PeerEvent, PeerState};
use crate::watches::Watch;

/// The state of one peer; `None` while the name is no peer.
pub type PeerWatch = Watch<Option<PeerState>>;

/// The states of all peers.
pub type PeersWatch = Watch<Arc<BTreeMap<NodeName, PeerState>>>;

impl Endpoint {
    /// How the connection to one peer stands, as a value to be watched: unlike [`Endpoint::events`], it is
    /// never behind the latest change, and may pass over states in between. `None` while `name` is no peer:
    /// not yet known, or removed; it may become one again. At the end of the endpoint it is `None`, and the
    /// watch has ended.
    pub fn watch_peer(&self, name: &NodeName) -> PeerWatch {
        self.shared().watches.watch(name)
    }

    /// The same for all peers. Who is no peer is not in it; at the end it is empty, and the watch has ended.
    pub fn watch_peers(&self) -> PeersWatch {
        self.shared().watches.watch_all()
    }

    /// Waits until there is a connection to `name`, `within` at most: from then on [`Endpoint::send`] finds one.
    /// `name` need not be a peer yet: it may become one by [`Endpoint::set_peer`], or by dialling. To this node itself
    /// there always is one.
    ///
    /// # Errors
    /// When there is none by then: [`SendError::NotConnected`], which says why the last attempt failed, or
    /// [`SendError::UnknownPeer`]. [`SendError::ShutDown`] when this endpoint ends.
    pub async fn connected(&self, name: &NodeName, within: Duration) -> Result<(), SendError> {
        if self.shared().is_closed() {
            return Err(SendError::ShutDown);
        }
        if name == self.name() {
            return Ok(());
        }
        let mut watch = self.watch_peer(name);
        let is_up = |state: &Option<PeerState>| matches!(state, Some(PeerState::Up { .. } | PeerState::Suspect { .. }));
        match timeout(within, watch.wait_for(is_up)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(SendError::ShutDown),
            Err(_) => Err(match self.shared().peer(name) {
                Some(peer) => {
                    SendError::NotConnected { peer: name.clone(), last_error: peer.public_status().last_error }
                }
                None => SendError::UnknownPeer { peer: name.clone() },
            }),
        }
    }

    /// What happens to peers from now on. Whoever is too slow misses the oldest and is told so.
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.shared().events.subscribe()
    }
}
