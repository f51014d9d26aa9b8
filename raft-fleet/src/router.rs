//! A request of another node -> the replica that it is for. A node that does not host exactly that replica says
//! so, which its sender takes for "unreachable" and never for a vote or a log's answer.

use std::sync::Arc;

use bytes::Bytes;
use rafted_value::{Body, BoxFuture, Handler, UntypedReplica, peek, wrong_replica};

use crate::gate::Gate;
use crate::replicas::Replicas;
use crate::waking::Waking;

pub(crate) struct Router {
    pub(crate) replicas: Arc<Replicas>,
    /// Closed while this node's replica of the cluster group may not take part.
    pub(crate) gate: Gate,
    /// Where it is said that somebody waits for a sleeping group.
    pub(crate) waking: Arc<Waking>,
}

impl Router {
    fn find(&self, request: &Bytes) -> Option<UntypedReplica> {
        let envelope = peek(request).ok()?;
        let hosted = match envelope.to {
            Some(id) => self.replicas.get(id),
            None => self.replicas.of_group(&envelope.group),
        }?;
        if envelope.to.is_none() && hosted.replica.misses_leader() {
            self.waking.demand(hosted.id());
        }
        let is_open = !hosted.is_cluster() || self.gate.is_open();
        is_open.then_some(hosted.replica)
    }
}

impl Handler for Router {
    fn handle(&self, request: Bytes) -> BoxFuture<Bytes> {
        match self.find(&request) {
            Some(replica) => Handler::handle(&replica, request),
            None => Box::pin(async { wrong_replica() }),
        }
    }

    fn handle_with_body(&self, request: Bytes, body: Box<dyn Body>) -> BoxFuture<Bytes> {
        match self.find(&request) {
            Some(replica) => Handler::handle_with_body(&replica, request, body),
            None => Box::pin(async { wrong_replica() }),
        }
    }
}
