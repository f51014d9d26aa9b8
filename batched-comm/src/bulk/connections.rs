//! The bulk connections between this node and one peer: one that is dialled from here while it is used, and
//! those that the peer dialled. They end when the peer is removed or lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{BulkSender, FIXED_BYTES, SenderWay, VERSION, check_header};
use crate::clock;
use crate::error::BulkError;
use crate::link::{Close, describe};
use crate::name::MailboxName;

/// How long a transfer may take to begin: with the connection, a stream in it, and the header.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection is kept when no transfer uses it.
const LINGER: Duration = Duration::from_secs(5);
/// Connections that a peer may have dialled: the current one, and one that it has lost.
const MAX_INCOMING: usize = 2;

/// The bulk connections to and from one peer.
#[derive(Default)]
pub(crate) struct BulkLink {
    /// Held while a connection is made, so that it is one.
    dialling: tokio::sync::Mutex<()>,
    connections: Mutex<Connections>,
    uses: Arc<Uses>,
}

#[derive(Default)]
struct Connections {
    outgoing: Option<quinn::Connection>,
    /// With the number of the peer's start; the oldest first.
    incoming: Vec<(u64, quinn::Connection)>,
    /// The peer is removed: none is taken any more.
    ended: bool,
}

#[derive(Debug)]
struct Uses {
    started: Instant,
    running: AtomicU64,
    /// When the last one ended, in milliseconds after `started`.
    last_end_ms: AtomicU64,
}

impl Default for Uses {
    fn default() -> Self {
        Uses { started: clock::now(), running: AtomicU64::new(0), last_end_ms: AtomicU64::new(0) }
    }
}

impl Uses {
    /// Whether there is none, and has been none for a while.
    fn are_over(&self, now: Instant) -> bool {
        let last_end = Duration::from_millis(self.last_end_ms.load(Ordering::SeqCst));
        self.running.load(Ordering::SeqCst) == 0
            && now.saturating_duration_since(self.started).saturating_sub(last_end) >= LINGER
    }
}

/// Keeps the connection while it lives.
#[derive(Debug)]
pub(super) struct Use(Arc<Uses>);

impl Use {
    fn new(uses: &Arc<Uses>) -> Use {
        uses.running.fetch_add(1, Ordering::SeqCst);
        Use(uses.clone())
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let ms = clock::now().saturating_duration_since(self.0.started).as_millis() as u64;
        self.0.last_end_ms.store(ms, Ordering::SeqCst);
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BulkLink {
    /// Begins a transfer; `connect` makes the connection when there is none.
    pub(crate) async fn open<C>(
        &self,
        mailbox: &MailboxName,
        header: &[u8],
        connect: impl FnOnce() -> C,
    ) -> Result<BulkSender, BulkError>
    where
        C: Future<Output = Result<quinn::Connection, BulkError>>,
    {
        check_header(header)?;
        let this_use = Use::new(&self.uses);
        let opening = async {
            let connection = self.connection(connect).await?;
            // Waits while as many transfers run as the peer allows.
            let opened = connection.open_bi().await;
            let (send, recv) = opened.map_err(|error| BulkError::Lost { reason: describe(&error) })?;
            let way = SenderWay::Remote { send, recv, _use: this_use };
            let mut sender = BulkSender::new(way, mailbox.clone());
            sender.write(encode_header(mailbox, header).into()).await?;
            sender.sent_bytes = 0;
            Ok(sender)
        };
        let late = BulkError::Timeout { after: OPEN_TIMEOUT };
        timeout(OPEN_TIMEOUT, opening).await.unwrap_or(Err(late))
    }

    async fn connection<C>(&self, connect: impl FnOnce() -> C) -> Result<quinn::Connection, BulkError>
    where
        C: Future<Output = Result<quinn::Connection, BulkError>>,
    {
        if let Some(connection) = self.live() {
            return Ok(connection);
        }
        let _dialling = self.dialling.lock().await;
        if let Some(connection) = self.live() {
            return Ok(connection);
        }
        let connection = connect().await?;
        let mut connections = self.connections();
        if connections.ended {
            Close::Removed.end(&connection);
            return Err(BulkError::Lost { reason: "the peer was removed".into() });
        }
        connections.outgoing = Some(connection.clone());
        Ok(connection)
    }

    fn live(&self) -> Option<quinn::Connection> {
        self.connections().outgoing.clone().filter(|connection| connection.close_reason().is_none())
    }

    /// Takes a connection that the start `instance` of the peer dialled, and closes the oldest one beyond the
    /// bound; `false` when the peer is removed.
    pub(crate) fn admit(&self, instance: u64, connection: &quinn::Connection) -> bool {
        let mut connections = self.connections();
        if connections.ended {
            return false;
        }
        let incoming = &mut connections.incoming;
        incoming.retain(|(_, connection)| connection.close_reason().is_none());
        while incoming.len() >= MAX_INCOMING {
            Close::Replaced.end(&incoming.remove(0).1);
        }
        incoming.push((instance, connection.clone()));
        true
    }

    /// Closes the connection when nobody has used it for a while.
    pub(crate) fn sweep(&self) {
        self.sweep_at(clock::now());
    }

    fn sweep_at(&self, now: Instant) {
        // Held while it is looked at the uses: a transfer counts as one before it looks for the connection.
        let mut connections = self.connections();
        if !self.uses.are_over(now) {
            return;
        }
        if let Some(connection) = connections.outgoing.take() {
            Close::Normal.end(&connection);
        }
    }

    /// The start `instance` of the peer is gone: closes its connections, and running transfers are lost.
    pub(crate) fn close(&self, instance: u64, why: Close) {
        let mut connections = self.connections();
        let incoming = &mut connections.incoming;
        incoming.iter().filter(|(of, _)| *of == instance).for_each(|(_, gone)| why.end(gone));
        incoming.retain(|(of, _)| *of != instance);
        if let Some(connection) = connections.outgoing.take() {
            why.end(&connection);
        }
    }

    /// Closes all connections, and takes none from here on.
    pub(crate) fn end(&self, why: Close) {
        let mut connections = self.connections();
        connections.ended = true;
        let incoming = std::mem::take(&mut connections.incoming).into_iter().map(|(_, connection)| connection);
        for connection in incoming.chain(connections.outgoing.take()) {
            why.end(&connection);
        }
    }

    /// Nothing panics under this lock.
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode_header(mailbox: &MailboxName, header: &[u8]) -> Vec<u8> {
    let name = mailbox.as_str();
    let mut bytes = Vec::with_capacity(FIXED_BYTES + name.len() + header.len());
    // Both lengths were checked: 64 bytes and 64 KiB.
    bytes.extend_from_slice(&[VERSION, name.len() as u8, 0, 0]);
    bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(header);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    /// Two ends of a connection, with what keeps them.
    async fn connection() -> (quinn::Endpoint, quinn::Connection, quinn::Connection) {
        let identity = Identity::in_memory_ca().unwrap().issue("n1").unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let quic = quinn::Endpoint::server(identity.server_config().unwrap(), address).unwrap();
        let to = quic.local_addr().unwrap();
        let connecting = quic.connect_with(identity.client_config().unwrap(), to, "node").unwrap();
        let accepting = async { quic.accept().await.unwrap().await.unwrap() };
        let (near, far) = tokio::join!(connecting, accepting);
        (quic, near.unwrap(), far)
    }

    #[tokio::test]
    async fn a_connection_is_not_taken_from_a_transfer_that_begins_while_it_is_looked_at() {
        let (_quic, near, _far) = connection().await;
        let link = BulkLink::default();
        link.connections().outgoing = Some(near.clone());
        let late = clock::now() + LINGER;
        // The moment between the two looks.
        let held = link.connections();
        let (begun, is_begun) = std::sync::mpsc::channel();
        let this_use = std::thread::scope(|scope| {
            let link = &link;
            scope.spawn(move || {
                begun.send(()).unwrap();
                link.sweep_at(late);
            });
            is_begun.recv().unwrap();
            // Time to look at the uses without the lock.
            std::thread::sleep(Duration::from_millis(50));
            let this_use = Use::new(&link.uses);
            drop(held);
            this_use
        });
        assert!(link.live().is_some() && near.close_reason().is_none());
        // Afterwards it is, once the time has come.
        drop(this_use);
        link.sweep_at(clock::now());
        assert!(link.live().is_some());
        link.sweep_at(late + LINGER);
        assert!(link.live().is_none() && near.close_reason().is_some());
    }
}
