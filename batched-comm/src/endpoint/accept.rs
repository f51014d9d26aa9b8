//! Takes connections, up to their hellos, and hands them to those they are for.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::shared::Shared;
use crate::bulk;
use crate::error::Refusal;
use crate::hello::Purpose;
use crate::link::Link;
use crate::peer::Offer;

/// Connections that may be between their first packet and their hello.
const MAX_HANDSHAKES: usize = 256;

/// Accepts until the endpoint is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    // Held by this task alone, and let go when it ends: a shutdown waits for that.
    let Some(quic) = shared.linker.quic() else { return };
    while let Some(incoming) = quic.accept().await {
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
        Purpose::Bulk => {
            if shared.linker.accept(&mut link).await {
                let Link { connection, peer, .. } = link;
                bulk::serve(connection, peer.name, shared.bulk_registry.clone()).await;
            }
        }
        Purpose::Probe => {
            if shared.linker.accept(&mut link).await {
                // The other side closes once it has read the answer; the idle timeout does else.
                link.connection.closed().await;
            }
        }
    }
}

/// Lets the peer's driver decide.
async fn offer(shared: &Shared, link: Link) {
    if link.peer.name == shared.name {
        let refusal = Refusal::OwnName { name: shared.name.clone() };
        return shared.linker.refuse(link, &refusal).await;
    }
    let Some(peer) = shared.peer_or_new(&link.peer.name) else {
        let closed = shared.is_closed();
        let refusal = if closed { Refusal::ShuttingDown } else { Refusal::Busy };
        return shared.linker.refuse(link, &refusal).await;
    };
    let (refused, answer) = oneshot::channel();
    if let Err(offer) = peer.offer(Box::new(Offer { link, refused })) {
        return shared.linker.refuse(offer.link, &Refusal::Busy).await;
    }
    if let Ok((link, refusal)) = answer.await {
        shared.linker.refuse(link, &refusal).await;
    }
}
