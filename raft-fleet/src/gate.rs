//! Keeps the cluster group's replica of a restarted node apart until the node knows that its directory was not
//! rolled back.
//!
//! Why: a directory that was rolled back has forgotten votes and entries that others count on. Every other
//! group's replicas start only after the node's boot number is registered in the cluster group. The cluster
//! group itself cannot wait for that: when all nodes restart, it needs votes before anything can be registered.
//!
//! The rule: a restarted voter of the cluster group takes part once as many other voters as make a majority with
//! it have said which start of it they last saw registered, and its directory knows of each of them: starts are
//! numbered at random, so that a copy that was started again has others in their place. They answer from their
//! stored copy of the cluster's nodes, without taking part themselves, so that a full restart does not wait for
//! itself. A registration reaches every voter within milliseconds of its commit, and each stores it; it is missed
//! only if every voter that saw it is down, too. What cannot be told so is a copy that was made during the last start
//! that was registered, while that one ran.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rafted_value::{Body, BoxFuture, Transport, TransportError};

/// Open or closed; it opens once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate {
    open: Arc<AtomicBool>,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}

/// A transport that sends nothing while the gate is closed.
pub(crate) struct Gated {
    pub(crate) gate: Gate,
    pub(crate) transport: Arc<dyn Transport>,
}

impl Transport for Gated {
    fn call(&self, node: &str, request: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
        if self.gate.is_open() { self.transport.call(node, request, timeout) } else { closed() }
    }

    fn call_with_body(
        &self,
        node: &str,
        request: Bytes,
        body: Box<dyn Body>,
        timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        if self.gate.is_open() { self.transport.call_with_body(node, request, body, timeout) } else { closed() }
    }
}

fn closed() -> BoxFuture<Result<Bytes, TransportError>> {
    Box::pin(async {
        Err(TransportError::NotSent("this node has not yet heard whether its directory is the newest".into()))
    })
}
