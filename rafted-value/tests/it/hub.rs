//! A network in memory: the replicas of one process, with links that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rafted_value::{Body, BoxFuture, Transport, TransportError, UntypedReplica, wrong_replica};

type Replicas = BTreeMap<(String, String), UntypedReplica>;

/// All nodes' replicas by node and group, and the links that are cut.
#[derive(Clone, Default)]
pub struct Hub {
    replicas: Arc<Mutex<Replicas>>,
    cut: Arc<Mutex<BTreeSet<(String, String)>>>,
}

impl Hub {
    pub fn transport(&self, here: &str) -> Arc<dyn Transport> {
        Arc::new(Link { hub: self.clone(), here: here.to_owned() })
    }

    pub fn attach(&self, node: &str, replica: UntypedReplica) {
        let key = (node.to_owned(), replica.spec().group.clone());
        self.replicas.lock().unwrap().insert(key, replica);
    }

    pub fn detach(&self, node: &str, group: &str) {
        self.replicas.lock().unwrap().remove(&(node.to_owned(), group.to_owned()));
    }

    pub fn find(&self, node: &str, group: &str) -> Option<UntypedReplica> {
        self.replicas.lock().unwrap().get(&(node.to_owned(), group.to_owned())).cloned()
    }

    /// Cuts a node off from all others, in both directions.
    pub fn isolate(&self, node: &str, nodes: &[&str]) {
        let mut cut = self.cut.lock().unwrap();
        for other in nodes.iter().filter(|other| **other != node) {
            cut.insert((node.to_owned(), (*other).to_owned()));
            cut.insert(((*other).to_owned(), node.to_owned()));
        }
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cut.lock().unwrap().contains(&(from.to_owned(), to.to_owned()))
    }

    fn target(&self, from: &str, to: &str, request: &Bytes) -> Result<Option<UntypedReplica>, TransportError> {
        if self.is_cut(from, to) {
            return Err(TransportError::NotSent(format!("the link from {from} to {to} is cut")));
        }
        let envelope = rafted_value::peek(request).expect("a request of this crate");
        Ok(self.find(to, &envelope.group))
    }
}

struct Link {
    hub: Hub,
    here: String,
}

impl Transport for Link {
    fn call(&self, node: &str, request: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
        let (hub, here, node) = (self.hub.clone(), self.here.clone(), node.to_owned());
        Box::pin(async move {
            let Some(replica) = hub.target(&here, &node, &request)? else { return Ok(wrong_replica()) };
            let answer = tokio::time::timeout(timeout, replica.handle(request, timeout)).await;
            let answer = answer.map_err(|_| TransportError::Lost(format!("{timeout:?} passed")))?;
            if hub.is_cut(&node, &here) { Err(TransportError::Lost("cut meanwhile".into())) } else { Ok(answer) }
        })
    }

    fn call_with_body(
        &self,
        node: &str,
        request: Bytes,
        body: Box<dyn Body>,
        timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        let (hub, here, node) = (self.hub.clone(), self.here.clone(), node.to_owned());
        Box::pin(async move {
            let Some(replica) = hub.target(&here, &node, &request)? else { return Ok(wrong_replica()) };
            let answer = tokio::time::timeout(timeout, replica.handle_with_body(request, body)).await;
            answer.map_err(|_| TransportError::Lost(format!("{timeout:?} passed")))
        })
    }
}
