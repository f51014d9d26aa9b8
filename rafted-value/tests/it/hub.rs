//! A network in memory: the replicas of one process, with links that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rafted_value::{Body, BoxFuture, ReplicaId, Transport, TransportError, UntypedReplica, wrong_replica};

type Replicas = BTreeMap<(String, String), UntypedReplica>;

/// All nodes' replicas by node and group, and the links that are cut.
#[derive(Clone, Default)]
pub struct Hub {
    replicas: Arc<Mutex<Replicas>>,
    cut: Arc<Mutex<BTreeSet<(String, String)>>>,
    /// By node and the number in a request: the replica that gets the request in place of the one it is for.
    aliases: Arc<Mutex<BTreeMap<(String, u64), u64>>>,
    /// By sender and receiver: requests that were answered with "not hosted here".
    strangers: Arc<Mutex<BTreeMap<(String, String), u64>>>,
    /// By sender and receiver: requests that were sent.
    sent: Arc<Mutex<BTreeMap<(String, String), u64>>>,
}

/// Where a request says for which replica it is.
const TO_AT: std::ops::Range<usize> = 41..49;

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

    /// Cuts one direction: what `from` sends to `to` does not arrive, and neither do the answers to it.
    pub fn cut(&self, from: &str, to: &str) {
        self.cut.lock().unwrap().insert((from.to_owned(), to.to_owned()));
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }

    /// As if the replica on `node` had the id `old` as well as its own.
    pub fn reuse_id(&self, node: &str, old: ReplicaId, own: ReplicaId) {
        self.aliases.lock().unwrap().insert((node.to_owned(), old.get()), own.get());
    }

    /// How many requests of `from` reached a replica on `to` that they were not for.
    pub fn strangers(&self, from: &str, to: &str) -> u64 {
        self.strangers.lock().unwrap().get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0)
    }

    /// How many requests `from` has sent to `to`.
    pub fn sent(&self, from: &str, to: &str) -> u64 {
        self.sent.lock().unwrap().get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0)
    }

    fn aliased(&self, node: &str, request: Bytes) -> Bytes {
        let to = request.get(TO_AT).and_then(|to| to.try_into().ok()).map_or(0, u64::from_le_bytes);
        let Some(own) = self.aliases.lock().unwrap().get(&(node.to_owned(), to)).copied() else { return request };
        let mut request = request.to_vec();
        request[TO_AT].copy_from_slice(&own.to_le_bytes());
        request.into()
    }

    fn note(&self, from: &str, to: &str, answer: &Bytes) {
        if *answer == wrong_replica() {
            *self.strangers.lock().unwrap().entry((from.to_owned(), to.to_owned())).or_default() += 1;
        }
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
            *hub.sent.lock().unwrap().entry((here.clone(), node.clone())).or_default() += 1;
            let request = hub.aliased(&node, request);
            let answer = tokio::time::timeout(timeout, replica.handle(request, timeout)).await;
            let answer = answer.map_err(|_| TransportError::Lost(format!("{timeout:?} passed")))?;
            hub.note(&here, &node, &answer);
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
