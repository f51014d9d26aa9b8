//! A network in virtual time: messages take a while, overtake each other, get lost, and meet cut links, all by a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;

use super::plant::Plant;
use super::truth::Truth;
use crate::group::{UntypedReplica, wrong_replica};
use crate::rpc::{Answer, Request, RequestBody, peek};
use crate::runtime::Scope;
use crate::transport::{Body, BoxFuture, Transport, TransportError};

/// How long a host answers a request at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// The network; clones are the same.
#[derive(Clone)]
pub(crate) struct Network {
    state: Arc<Mutex<State>>,
    /// Owns the messages that are under way: they outlive their senders.
    scope: Scope,
    truth: Arc<Truth>,
    plant: Plant,
}

struct State {
    random: StdRng,
    hosts: BTreeMap<String, Host>,
    /// From, to.
    cut: BTreeSet<(String, String)>,
    /// How often a message is lost, and how often it is late.
    loss: f64,
    late: f64,
}

#[derive(Clone)]
struct Host {
    replicas: Vec<UntypedReplica>,
    scope: Scope,
}

/// What happens to one message.
enum Fate {
    Arrives(Duration),
    Lost,
}

impl Network {
    pub(crate) fn new(seed: u64, truth: Arc<Truth>, plant: Plant) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let state = State { random, hosts: BTreeMap::new(), cut: BTreeSet::new(), loss: 0.0, late: 0.0 };
        Self { state: Arc::new(Mutex::new(state)), scope: Scope::new(seed ^ 1), truth, plant }
    }

    /// Whatever node `here` sends.
    pub(crate) fn transport(&self, here: &str) -> Arc<dyn Transport> {
        Arc::new(Link { network: self.clone(), here: here.to_owned() })
    }

    pub(crate) fn attach(&self, node: &str, replica: UntypedReplica, scope: &Scope) {
        let mut state = self.lock();
        let host = Host { replicas: Vec::new(), scope: scope.clone() };
        state.hosts.entry(node.to_owned()).or_insert(host).replicas.push(replica);
    }

    pub(crate) fn detach(&self, node: &str) {
        self.lock().hosts.remove(node);
    }

    /// Cuts every link from one of `from` to one of `to`.
    pub(crate) fn cut(&self, from: &BTreeSet<String>, to: &BTreeSet<String>) {
        let mut state = self.lock();
        for one in from {
            for other in to.iter().filter(|other| *other != one) {
                state.cut.insert((one.clone(), other.clone()));
            }
        }
    }

    pub(crate) fn heal(&self) {
        let mut state = self.lock();
        state.cut.clear();
        (state.loss, state.late) = (0.0, 0.0);
    }

    pub(crate) fn trouble(&self, loss: f64, late: f64) {
        let mut state = self.lock();
        (state.loss, state.late) = (loss, late);
    }

    fn fate(&self, from: &str, to: &str) -> Fate {
        let mut state = self.lock();
        let (loss, late) = (state.loss, state.late);
        if state.cut.contains(&(from.to_owned(), to.to_owned())) || state.random.random_bool(loss) {
            return Fate::Lost;
        }
        let micros = match state.random.random_bool(late) {
            true => state.random.random_range(1_000..400_000),
            false => state.random.random_range(100..3_000),
        };
        Fate::Arrives(Duration::from_micros(micros))
    }

    fn host(&self, node: &str) -> Option<Host> {
        self.lock().hosts.get(node).cloned()
    }

    /// A leader's words show that it thinks it leads.
    fn observe(&self, from: &str, to: &str, request: &Bytes) {
        self.truth.trace(&(from, to, &request[..]));
        let Ok(request) = Request::decode(request.clone()) else { return };
        if let RequestBody::Append(crate::rpc::Append { vote, .. }) | RequestBody::Snapshot { vote, .. } = request.body
        {
            self.truth.leads(vote.leader_id.term, vote.leader_id.voted_for);
        }
    }

    fn send(
        &self,
        from: &str,
        to: &str,
        request: Bytes,
        body: Option<Box<dyn Body>>,
        timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        self.observe(from, to, &request);
        let (network, from, to) = (self.clone(), from.to_owned(), to.to_owned());
        let (answer, answered) = oneshot::channel();
        self.scope.spawn(async move {
            match network.deliver(&from, &to, request, body).await {
                Some(result) => drop(answer.send(result)),
                // Nobody tells the caller.
                None => tokio::time::sleep(timeout).await,
            }
        });
        Box::pin(async move {
            let lost = || TransportError::Lost(format!("no answer within {timeout:?}"));
            tokio::time::timeout(timeout, answered).await.map_err(|_| lost())?.map_err(|_| lost())?
        })
    }

    /// `None` if no answer ever comes.
    async fn deliver(
        &self,
        from: &str,
        to: &str,
        request: Bytes,
        body: Option<Box<dyn Body>>,
    ) -> Option<Result<Bytes, TransportError>> {
        let Fate::Arrives(after) = self.fate(from, to) else { return None };
        tokio::time::sleep(after).await;
        let Some(host) = self.host(to) else {
            return Some(Err(TransportError::NotSent(format!("nothing listens at {to}"))));
        };
        let answer = self.handle(from, to, host, request, body).await?;
        let Fate::Arrives(after) = self.fate(to, from) else { return None };
        tokio::time::sleep(after).await;
        Some(Ok(answer))
    }

    /// The host's answer; none if it dies first.
    async fn handle(
        &self,
        from: &str,
        to: &str,
        host: Host,
        request: Bytes,
        body: Option<Box<dyn Body>>,
    ) -> Option<Bytes> {
        let envelope = peek(&request).ok()?;
        let is_meant = |replica: &&UntypedReplica| envelope.to.is_none_or(|to| replica.spec().replica == to);
        let Some(replica) = host.replicas.iter().rev().find(is_meant).cloned() else { return Some(wrong_replica()) };
        if let Some(answer) = self.plant.answers(&replica, &request).await {
            return Some(answer);
        }
        let plant = self.plant;
        let handled = match body {
            None => host.scope.spawn(async move { replica.handle(request, PATIENCE).await }),
            Some(body) => {
                let body = Box::new(Chunks { network: self.clone(), from: from.into(), to: to.into(), body });
                host.scope.spawn(async move {
                    let answer = replica.handle_with_body(request, body).await;
                    if let (Plant::DropSessions, Ok(Answer::Snapshot { .. })) = (plant, Answer::decode(answer.clone()))
                    {
                        replica.forget_sessions();
                    }
                    answer
                })
            }
        };
        handled.await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

struct Link {
    network: Network,
    here: String,
}

impl Transport for Link {
    fn call(&self, node: &str, request: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
        self.network.send(&self.here, node, request, None, timeout)
    }

    fn call_with_body(
        &self,
        node: &str,
        request: Bytes,
        body: Box<dyn Body>,
        timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        self.network.send(&self.here, node, request, Some(body), timeout)
    }
}

/// A body whose chunks travel one by one, and end with the link or the sender.
struct Chunks {
    network: Network,
    from: String,
    to: String,
    body: Box<dyn Body>,
}

impl Body for Chunks {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Option<Bytes>>> + Send + '_>> {
        Box::pin(async move {
            let lost = || io::Error::other("the sender is gone");
            let Fate::Arrives(after) = self.network.fate(&self.from, &self.to) else { return Err(lost()) };
            tokio::time::sleep(after).await;
            if self.network.host(&self.from).is_none() {
                return Err(lost());
            }
            self.body.next().await
        })
    }
}
