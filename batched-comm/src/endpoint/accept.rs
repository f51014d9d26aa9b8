//! Takes connections, up to their hellos, and hands them to those they are for.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::shared::Shared;
use crate::bulk;
use crate::error::Refusal;
use crate::hello::Purpose;
use crate::link::{Close, Link};
use crate::peer::{Offer, Peer};

/// Connections that may be between their first packet and their hello.
const MAX_HANDSHAKES: usize = 256;
/// With fewer places left than this, a sender first has to show that it receives at its address: first
/// packets with made-up senders take no more places then.
const UNCHECKED_ABOVE: usize = MAX_HANDSHAKES / 2;

/// Accepts until the endpoint is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    // Held by this task alone, and let go when it ends: a shutdown waits for that.
    let Some(quic) = shared.linker.quic() else { return };
    while let Some(incoming) = quic.accept().await {
        if handshakes.available_permits() < UNCHECKED_ABOVE && !incoming.remote_address_validated() {
            // An unchecked sender may always be told to come again.
            let _ = incoming.retry();
            continue;
        }
        match handshakes.clone().try_acquire_owned() {
            Ok(permit) => shared.spawn(receive(shared.clone(), incoming, permit)),
            Err(_) => incoming.refuse(),
        }
    }
}

async fn receive(shared: Arc<Shared>, incoming: quinn::Incoming, permit: OwnedSemaphorePermit) {
    let Some(mut link) = shared.linker.receive(incoming).await else { return };
    drop(permit);
    match link.purpose {
        Purpose::Lane => offer(&shared, link).await,
        Purpose::Bulk => serve_bulk(&shared, link).await,
        Purpose::Probe => {
            if shared.linker.accept(&mut link).await {
                // The other side closes once it has read the answer.
                let _ = timeout(shared.linker.hello_timeout(), link.connection.closed()).await;
                link.connection.close(Close::Normal.code(), b"");
            }
        }
    }
}

/// The peer that a connection is from; with the connection's refusal when it cannot be one.
fn peer_of(shared: &Shared, link: &Link) -> Result<Arc<Peer>, Refusal> {
    if link.peer.name == shared.name {
        return Err(Refusal::OwnName { name: shared.name.clone() });
    }
    let refusal = if shared.is_closed() { Refusal::ShuttingDown } else { Refusal::Busy };
    shared.peer_or_new(&link.peer.name).ok_or(refusal)
}

/// Serves bulk transfers for as long as the peer is one.
async fn serve_bulk(shared: &Shared, mut link: Link) {
    let peer = match peer_of(shared, &link) {
        Ok(peer) => peer,
        Err(refusal) => return shared.linker.refuse(link, &refusal).await,
    };
    if shared.linker.accept(&mut link).await && peer.bulk().admit(link.peer.instance, &link.connection) {
        let Link { connection, peer, .. } = link;
        bulk::serve(connection, peer.name, shared.bulk_registry.clone()).await;
    }
}

/// Lets the peer's driver decide.
async fn offer(shared: &Shared, link: Link) {
    let peer = match peer_of(shared, &link) {
        Ok(peer) => peer,
        Err(refusal) => return shared.linker.refuse(link, &refusal).await,
    };
    let (refused, answer) = oneshot::channel();
    if let Err(offer) = peer.offer(Box::new(Offer { link, refused })) {
        return shared.linker.refuse(offer.link, &Refusal::Busy).await;
    }
    if let Ok((link, refusal)) = answer.await {
        shared.linker.refuse(link, &refusal).await;
    }
}
