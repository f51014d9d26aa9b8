//! A network in memory: the replicas of one process, with links that can be cut or silenced.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
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
    /// Links that lose every request without a word.
    silent: Arc<Mutex<BTreeSet<(String, String)>>>,
    /// By node and the number in a request: the replica that gets the request in place of the one it is for.
    aliases: Arc<Mutex<BTreeMap<(String, u64), u64>>>,
    /// By sender and receiver: requests that were answered with "not hosted here".
    strangers: Arc<Mutex<BTreeMap<(String, String), u64>>>,
    /// By sender and receiver: snapshots that the receiver's program cannot read.
    unreadable: Arc<Mutex<BTreeMap<(String, String), u64>>>,
    /// By sender and receiver: requests that were sent.
    sent: Arc<Mutex<BTreeMap<(String, String), u64>>>,
    bodies: Arc<Mutex<Bodies>>,
}

/// What was sent of bodies, by sender and receiver.
#[derive(Default)]
struct Bodies {
    bytes: BTreeMap<(String, String), u64>,
    begun: BTreeMap<(String, String), u64>,
    /// The next bodies break off after so many chunks.
    breaks: Vec<usize>,
}

/// How the answer to a snapshot begins that cannot be read.
const UNREADABLE: [u8; 2] = [1, 35];
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

    /// What `from` asks `to` is lost without a word: whoever asks waits for as long as it has patience.
    pub fn silence(&self, from: &str, to: &str) {
        self.silent.lock().unwrap().insert((from.to_owned(), to.to_owned()));
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
        self.silent.lock().unwrap().clear();
    }

    /// As if the replica on `node` had the id `old` as well as its own.
    pub fn reuse_id(&self, node: &str, old: ReplicaId, own: ReplicaId) {
        self.aliases.lock().unwrap().insert((node.to_owned(), old.get()), own.get());
    }

    /// How many requests of `from` reached a replica on `to` that they were not for.
    pub fn strangers(&self, from: &str, to: &str) -> u64 {
        self.strangers.lock().unwrap().get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0)
    }

    /// How many snapshots `from` has offered to `to` of which that cannot read a byte.
    pub fn unreadable(&self, from: &str, to: &str) -> u64 {
        self.unreadable.lock().unwrap().get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0)
    }

    /// How many requests `from` has sent to `to`.
    pub fn sent(&self, from: &str, to: &str) -> u64 {
        self.sent.lock().unwrap().get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0)
    }

    /// How many bytes of bodies `from` has sent to `to`.
    pub fn body_bytes(&self, from: &str, to: &str) -> u64 {
        self.bodies.lock().unwrap().bytes.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0)
    }

    /// How many bodies `from` has begun to send to `to`.
    pub fn bodies(&self, from: &str, to: &str) -> u64 {
        self.bodies.lock().unwrap().begun.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0)
    }

    /// The next bodies break off, each after so many chunks.
    pub fn break_bodies(&self, chunks: &[usize]) {
        self.bodies.lock().unwrap().breaks = chunks.iter().rev().copied().collect();
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
        if answer.starts_with(&UNREADABLE) {
            *self.unreadable.lock().unwrap().entry((from.to_owned(), to.to_owned())).or_default() += 1;
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
            if hub.silent.lock().unwrap().contains(&(here.clone(), node.clone())) {
                tokio::time::sleep(timeout).await;
                return Err(TransportError::Lost(format!("{timeout:?} passed")));
            }
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
            let chunks_left = {
                let mut bodies = hub.bodies.lock().unwrap();
                *bodies.begun.entry((here.clone(), node.clone())).or_default() += 1;
                bodies.breaks.pop().unwrap_or(usize::MAX)
            };
            let is_cut = Arc::new(Mutex::new(None));
            let (cut, hub_of_body) = (is_cut.clone(), hub.clone());
            let body = Cuttable { hub: hub_of_body, from: here, to: node, chunks_left, body, is_cut: cut };
            let answer = replica.handle_with_body(request, Box::new(body)).await;
            match is_cut.lock().unwrap().take() {
                Some(reason) => Err(TransportError::Lost(format!("{reason}; {timeout:?} is for each step"))),
                None => Ok(answer),
            }
        })
    }
}

/// A body on a link that may be cut while it is on its way.
struct Cuttable {
    hub: Hub,
    from: String,
    to: String,
    chunks_left: usize,
    body: Box<dyn Body>,
    is_cut: Arc<Mutex<Option<String>>>,
}

impl Body for Cuttable {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Option<Bytes>>> + Send + '_>> {
        Box::pin(async move {
            let chunk = self.body.next().await?;
            if self.chunks_left == 0 || self.hub.is_cut(&self.from, &self.to) {
                *self.is_cut.lock().unwrap() = Some("the link was cut".into());
                return Err(io::Error::other("the link was cut"));
            }
            self.chunks_left -= 1;
            let bytes = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            let way = (self.from.clone(), self.to.clone());
            *self.hub.bodies.lock().unwrap().bytes.entry(way).or_default() += bytes;
            Ok(chunk)
        })
    }
}
