//! The transport over batched-comm's endpoint: requests are calls to a mailbox, bodies go by the second
//! connection.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use batched_comm::{
    Address, BulkError, BulkReceiver, CallError, Endpoint, Incoming, Mailbox, MailboxError, MailboxName, NameError,
};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::rpc::{is_to_anyone, overloaded};
use crate::transport::{Body, BoxFuture, Handler, Transport, TransportError};

/// The message number of requests; the mailbox is this crate's own.
const REQUEST: u32 = 1;
/// Requests that wait in the mailbox; more are refused.
const MAILBOX_CAPACITY: usize = 8_192;
/// Requests that are taken from the mailbox at once.
const MAX_RECEIVED: usize = 256;
/// Requests of replicas that are being answered; more wait in the mailbox.
const MAX_REPLICAS_IN_FLIGHT: usize = 16_384;
/// Requests of clients that are being answered; more are refused, so that one stuck group does not keep the votes and
/// heartbeats of all others waiting.
const MAX_CLIENTS_IN_FLIGHT: usize = 16_384;
/// Snapshots that wait to be received, and those that are being received.
const BULK_BACKLOG: usize = 4;

/// Carries requests to the mailbox of one name on every node.
#[derive(Debug, Clone)]
pub struct QuicTransport {
    endpoint: Endpoint,
    /// Or why it can be none.
    mailbox: Result<MailboxName, NameError>,
}

impl QuicTransport {
    /// Requests go from this endpoint to the mailbox `mailbox` of the other nodes.
    pub fn new(endpoint: Endpoint, mailbox: &str) -> Self {
        Self { endpoint, mailbox: mailbox.parse() }
    }

    /// For a client that is no member: requests go from this endpoint to the members of the group of this name that
    /// stands alone, as [`Replica`](crate::Replica) starts them.
    pub fn to_group(endpoint: Endpoint, group: &str) -> Self {
        Self::new(endpoint, &Self::mailbox_of(group))
    }

    /// The mailbox of a group that stands alone.
    pub(crate) fn mailbox_of(group: &str) -> String {
        format!("raft.{group}")
    }

    fn address(&self, node: &str) -> Result<Address, TransportError> {
        let not_sent = |error: NameError| TransportError::NotSent(error.to_string());
        Ok(Address::from_parts(node.parse().map_err(not_sent)?, self.mailbox.clone().map_err(not_sent)?))
    }
}

impl Transport for QuicTransport {
    fn call(&self, node: &str, request: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
        let (endpoint, address) = (self.endpoint.clone(), self.address(node));
        Box::pin(async move {
            match endpoint.call_bytes(&address?, REQUEST, &request, timeout).await {
                Ok(answer) => Ok(Bytes::from_owner(answer.into_aligned())),
                Err(CallError::NotSent(error)) => Err(TransportError::NotSent(error.to_string())),
                Err(error) => Err(TransportError::Lost(error.to_string())),
            }
        })
    }

    fn call_with_body(
        &self,
        node: &str,
        request: Bytes,
        mut body: Box<dyn Body>,
        timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        let (endpoint, address) = (self.endpoint.clone(), self.address(node));
        Box::pin(async move {
            let address = address?;
            let too_late = |what: &str| format!("{what}: {timeout:?} passed");
            let opened = tokio::time::timeout(timeout, endpoint.open_bulk(&address, &request)).await;
            let opened = opened.map_err(|_| TransportError::NotSent(too_late("no connection")))?;
            let mut sender = opened.map_err(|error| TransportError::NotSent(error.to_string()))?;
            while let Some(chunk) = body.next().await.map_err(lost)? {
                let written = tokio::time::timeout(timeout, sender.write(chunk)).await;
                written.map_err(|_| lost(too_late("no room for a chunk")))?.map_err(lost)?;
            }
            let answer = tokio::time::timeout(timeout, sender.finish()).await;
            answer.map_err(|_| lost(too_late("no answer")))?.map_err(lost)
        })
    }
}

fn lost(error: impl std::fmt::Display) -> TransportError {
    TransportError::Lost(error.to_string())
}

/// Answers the requests that reach `mailbox` by `handler`, in two tasks of `tasks`.
pub fn serve(
    endpoint: &Endpoint,
    mailbox: &str,
    handler: Arc<dyn Handler>,
    tasks: &mut JoinSet<()>,
) -> Result<(), MailboxError> {
    let requests = endpoint.mailbox(mailbox, MAILBOX_CAPACITY)?;
    let mut bodies = endpoint.bulk_listener(mailbox, BULK_BACKLOG)?;
    let for_bodies = handler.clone();
    tasks.spawn(answer_requests(requests, handler));
    tasks.spawn(async move {
        let mut answering = JoinSet::new();
        loop {
            tokio::select! {
                body = bodies.accept(), if answering.len() < BULK_BACKLOG => match body {
                    Some(body) => {
                        answering.spawn(answer_body(for_bodies.clone(), body));
                    }
                    None => return,
                },
                Some(_) = answering.join_next(), if !answering.is_empty() => {}
            }
        }
    });
    Ok(())
}

/// All requests are answered by this one task: what they do here is short, and then they wait. A task for each would cost
/// several times as much as what it does.
async fn answer_requests(mut requests: Mailbox, handler: Arc<dyn Handler>) {
    let (mut replicas, mut clients) = (FuturesUnordered::new(), FuturesUnordered::new());
    let mut received = Vec::new();
    loop {
        let room = (MAX_REPLICAS_IN_FLIGHT - replicas.len()).min(MAX_RECEIVED);
        tokio::select! {
            count = requests.recv_many(&mut received, room), if room > 0 => {
                if count == 0 {
                    return;
                }
                for request in received.drain(..) {
                    if !is_to_anyone(request.body()) {
                        replicas.push(answer(handler.clone(), request));
                    } else if clients.len() < MAX_CLIENTS_IN_FLIGHT {
                        clients.push(answer(handler.clone(), request));
                    } else {
                        // Its sender sees a lost connection where even this does not leave.
                        drop(request.reply_bytes(&overloaded(MAX_CLIENTS_IN_FLIGHT)));
                    }
                }
            }
            Some(()) = replicas.next(), if !replicas.is_empty() => {}
            Some(()) = clients.next(), if !clients.is_empty() => {}
        }
    }
}

async fn answer(handler: Arc<dyn Handler>, request: Incoming) {
    let (_, _, body, reply) = request.into_parts();
    let answering = handler.handle(Bytes::from_owner(body.into_aligned()));
    let Ok(answer) = AssertUnwindSafe(answering).catch_unwind().await else {
        // The panic was printed. The caller sees a lost connection, and the others are answered as before.
        return tracing::error!("a request cannot be answered: it made this node panic");
    };
    if let Some(reply) = reply
        && let Err(error) = reply.reply_bytes_waiting(&answer).await
    {
        tracing::debug!(%error, "an answer did not leave; its caller sees a lost connection");
    }
}

async fn answer_body(handler: Arc<dyn Handler>, receiver: BulkReceiver) {
    let request = receiver.header.clone();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let answer = handler.handle_with_body(request, Box::new(Received(receiver.clone()))).await;
    let receiver = receiver.lock().await.take();
    if let Some(receiver) = receiver
        && let Err(error) = receiver.reply(&answer).await
    {
        tracing::debug!(%error, "an answer to a body did not leave");
    }
}

/// A body that comes by the second connection; the receiver is taken back for the answer.
struct Received(Arc<Mutex<Option<BulkReceiver>>>);

impl Body for Received {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Option<Bytes>>> + Send + '_>> {
        Box::pin(async move {
            match &mut *self.0.lock().await {
                Some(receiver) => receiver.read_chunk().await.map_err(|error: BulkError| io::Error::other(error)),
                None => Ok(None),
            }
        })
    }
}
