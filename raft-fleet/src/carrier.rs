//! The transport for commands and queries: it gives a call up when its node falls silent, so that a failover
//! costs the failure detector's 400 ms and not the call's whole patience. What was given up may have happened;
//! the caller sends it again under the same id.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rafted_value::{Body, BoxFuture, Transport, TransportError};

use crate::peers::Peers;

pub(crate) struct Carrier {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) peers: Arc<Peers>,
}

impl Transport for Carrier {
    fn call(&self, node: &str, request: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
        if self.peers.is_silent(node) {
            return Box::pin(async { Err(TransportError::NotSent("the node is silent".into())) });
        }
        let call = self.transport.call(node, request, timeout);
        let (peers, node) = (self.peers.clone(), node.to_owned());
        Box::pin(async move {
            tokio::select! {
                answer = call => answer,
                () = peers.wait_silent(&node) => Err(TransportError::Lost(format!("{node} fell silent"))),
            }
        })
    }

    fn call_with_body(
        &self,
        node: &str,
        request: Bytes,
        body: Box<dyn Body>,
        timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        self.transport.call_with_body(node, request, body, timeout)
    }
}
