//! What the replicas of a group need of a network. The crate comes with one over QUIC (feature `quic`);
//! tests and other networks bring their own.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Carries requests to replicas on other nodes. A request is opaque bytes; the node that receives it hands
/// them to [`UntypedReplica::handle`](crate::UntypedReplica::handle) and sends back what that answers.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request to the node of that name and returns its answer.
    fn call(&self, node: &str, request: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, TransportError>>;

    /// Sends a request that is followed by a large body. It may take any time as a whole: `timeout` is for each of its
    /// steps, the connection, a chunk, the answer.
    fn call_with_body(
        &self,
        node: &str,
        request: Bytes,
        body: Box<dyn Body>,
        timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>>;
}

/// A body that is read in chunks, in order.
pub trait Body: Send + 'static {
    /// The next chunk, `None` at the end. An error means that the rest is lost.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Option<Bytes>>> + Send + '_>>;
}

/// Answers the requests that reach a node: one replica, or a router in front of many.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request.
    fn handle(&self, request: Bytes) -> BoxFuture<Bytes>;
    /// Answers a request that is followed by a body.
    fn handle_with_body(&self, request: Bytes, body: Box<dyn Body>) -> BoxFuture<Bytes>;
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The request did not leave: the other node has not seen it.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It left, or may have left, and there is no answer.
    #[error("no answer: {0}")]
    Lost(String),
}
