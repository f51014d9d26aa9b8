//! Takes connections, up to their hellos, and hands them to those they are for.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::shared::Shared;
use crate::bulk;
use crate::error::Refusal;
use crate::hello::Purpose;
use crate::link::{Close, Link};
use crate::peer::{Offer, Peer};

/// Connections that may be between their first packet and their hello.
const MAX_HANDSHAKES: usize = 256;
/// With more under way than this, a sender first has to show that it receives at its address: first
/// packets with made-up senders take no more places then.
const MAX_UNCHECKED: usize = MAX_HANDSHAKES / 2;
/// Connections that need not be those of peers: what was cut off takes memory for three more seconds, in which
/// QUIC still answers it. Beyond, newcomers are refused.
const MAX_UNSETTLED: usize = 4 * MAX_HANDSHAKES;
/// A lane, and bulk in both directions; while they are replaced, each twice.
const CONNECTIONS_PER_PEER: usize = 6;

/// Accepts until the endpoint is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut handshakes = Handshakes::default();
    // Held by this task alone, and let go when it ends: a shutdown waits for that.
    let Some(quic) = shared.linker.quic() else { return };
    while let Some(incoming) = quic.accept().await {
        if handshakes.count() > MAX_UNCHECKED && !incoming.remote_address_validated() {
            // An unchecked sender may always be told to come again.
            let _ = incoming.retry();
            continue;
        }
        let settled = shared.peer_count() * CONNECTIONS_PER_PEER;
        if quic.open_connections() >= settled + MAX_UNSETTLED {
            incoming.refuse();
            continue;
        }
        let place = handshakes.enter();
        shared.spawn(receive(shared.clone(), incoming, place));
    }
}

/// The handshakes under way.
#[derive(Default)]
struct Handshakes {
    places: Vec<oneshot::Sender<()>>,
}

impl Handshakes {
    fn count(&mut self) -> usize {
        self.places.retain(|place| !place.is_closed());
        self.places.len()
    }

    /// A place, to be kept until the hello was heard: it is lost when the other side of it goes. When there is
    /// none, one of the others loses its own, whichever it is: who is honest needs it for milliseconds, and is
    /// seldom hit; who stalls is hit in the end. (As sshd's MaxStartups drops at random.)
    fn enter(&mut self) -> oneshot::Receiver<()> {
        if self.count() >= MAX_HANDSHAKES {
            self.places.swap_remove(rand::random_range(0..self.places.len()));
        }
        let (kept, place) = oneshot::channel();
        self.places.push(kept);
        place
    }
}

async fn receive(shared: Arc<Shared>, incoming: quinn::Incoming, mut place: oneshot::Receiver<()>) {
    let cut_off = async { drop((&mut place).await) };
    let Some(mut link) = shared.linker.receive(incoming, cut_off).await else { return };
    drop(place);
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
        let Link { connection, peer, send, recv, .. } = link;
        // Else the hello's stream takes the place of a transfer.
        drop((send, recv));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_a_new_handshake_takes_the_place_of_another() {
        let mut handshakes = Handshakes::default();
        let mut places: Vec<_> = (0..MAX_HANDSHAKES).map(|_| handshakes.enter()).collect();
        assert_eq!(handshakes.count(), MAX_HANDSHAKES);
        let mut newest = handshakes.enter();
        assert_eq!(handshakes.count(), MAX_HANDSHAKES);
        let lost = places.iter_mut().filter_map(|place| place.try_recv().err());
        assert_eq!(lost.filter(|error| *error == oneshot::error::TryRecvError::Closed).count(), 1);
        assert_eq!(newest.try_recv(), Err(oneshot::error::TryRecvError::Empty), "the new one has its place");
        places.truncate(MAX_HANDSHAKES / 2);
        assert!(handshakes.count() <= MAX_HANDSHAKES / 2 + 1, "who is done gives its place back");
    }
}
