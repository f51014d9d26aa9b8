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

use super::counts::Event;
use super::plant::Plant;
use super::truth::Truth;
use crate::disk::faulty::{Fault, FaultyDisk};
use crate::group::{UntypedReplica, wrong_replica};
use crate::rpc::{Answer, Request, RequestBody, peek};
use crate::runtime::Scope;
use crate::status::{Role, Status};
use crate::transport::{Body, BoxFuture, Transport, TransportError};

/// The receiver of a snapshot loses power at one of so many writes and syncs of its disk.
const LAST_ENDANGERED: u64 = 16;
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
    trouble: Trouble,
    /// How often a node loses power in the midst of receiving a snapshot.
    receivers_end: f64,
}

/// What befalls messages, and how often.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Trouble {
    pub(crate) lost: f64,
    pub(crate) late: f64,
    pub(crate) twice: f64,
}

#[derive(Clone)]
struct Host {
    replicas: Vec<UntypedReplica>,
    scope: Scope,
    disk: FaultyDisk,
}

/// What happens to one message.
enum Fate {
    Arrives(Duration),
    Lost,
}

impl Network {
    pub(crate) fn new(seed: u64, truth: Arc<Truth>, plant: Plant) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let receivers_end = [0.0, 0.1, 0.4][random.random_range(0..3)];
        let (hosts, cut, trouble) = (BTreeMap::new(), BTreeSet::new(), Trouble::default());
        let state = State { random, hosts, cut, trouble, receivers_end };
        Self { state: Arc::new(Mutex::new(state)), scope: Scope::new(seed ^ 1), truth, plant }
    }

    /// Whatever node `here` sends.
    pub(crate) fn transport(&self, here: &str) -> Arc<dyn Transport> {
        Arc::new(Link { network: self.clone(), here: here.to_owned() })
    }

    pub(crate) fn attach(&self, node: &str, replica: UntypedReplica, scope: &Scope, disk: &FaultyDisk) {
        let mut state = self.lock();
        let host = Host { replicas: Vec::new(), scope: scope.clone(), disk: disk.clone() };
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
        state.trouble = Trouble::default();
    }

    pub(crate) fn trouble(&self, trouble: Trouble) {
        self.lock().trouble = trouble;
    }

    /// From now on, nodes may receive snapshots in peace.
    pub(crate) fn spare_receivers(&self) {
        self.lock().receivers_end = 0.0;
    }

    fn fate(&self, from: &str, to: &str) -> Fate {
        let mut state = self.lock();
        let Trouble { lost, late, .. } = state.trouble;
        if state.cut.contains(&(from.to_owned(), to.to_owned())) {
            return Fate::Lost;
        }
        if state.random.random_bool(lost) {
            self.truth.count(Event::MessageLost);
            return Fate::Lost;
        }
        let micros = match state.random.random_bool(late) {
            true => {
                self.truth.count(Event::MessageLate);
                state.random.random_range(1_000..400_000)
            }
            false => state.random.random_range(100..3_000),
        };
        Fate::Arrives(Duration::from_micros(micros))
    }

    /// Whether a message arrives twice; each of them may be late, or lost.
    fn is_doubled(&self) -> bool {
        let mut state = self.lock();
        let twice = state.trouble.twice;
        let is_doubled = state.random.random_bool(twice);
        if is_doubled {
            self.truth.count(Event::MessageTwice);
        }
        is_doubled
    }

    /// Lets the receiver of a snapshot lose power soon, or not.
    fn endanger(&self, disk: &FaultyDisk) {
        let mut state = self.lock();
        let receivers_end = state.receivers_end;
        if state.random.random_bool(receivers_end) {
            let operation = disk.operations() + state.random.random_range(0..LAST_ENDANGERED);
            disk.fail_at(operation, Fault::Crash);
        }
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
        // No transport delivers a command twice: that one which was refused has not happened depends on it.
        let is_command = matches!(Request::decode(request.clone()).map(|it| it.body), Ok(RequestBody::Command(_)));
        if body.is_none() && !is_command && self.is_doubled() {
            let (network, from, to, request) = (network.clone(), from.clone(), to.clone(), request.clone());
            self.scope.spawn(async move { drop(network.deliver(&from, &to, request, None).await) });
        }
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
        self.observe_query(&replica, &request);
        let asked = request.clone();
        if let Some(answer) = self.plant.answers(&replica, &request).await {
            return Some(answer);
        }
        let (plant, is_snapshot) = (self.plant, body.is_some());
        let snapshot_before = is_snapshot.then(|| replica.status().snapshot);
        let receiver = replica.clone();
        let handled = match body {
            None => host.scope.spawn(async move { replica.handle(request, PATIENCE).await }),
            Some(body) => {
                self.endanger(&host.disk);
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
        let answer = handled.await.ok();
        if let Some(before) = snapshot_before {
            if answer.is_none() || host.disk.crashed() {
                self.truth.count(Event::SnapshotBrokenOff);
            } else if receiver.status().snapshot > before {
                self.truth.count(Event::SnapshotInstalled);
            }
        }
        self.observe_vote(&receiver, asked, answer.as_ref());
        answer
    }

    /// A replica's word that a candidate has its vote.
    fn observe_vote(&self, voter: &UntypedReplica, asked: Bytes, answer: Option<&Bytes>) {
        if let Ok(Request { body: RequestBody::Vote { vote, .. }, .. }) = Request::decode(asked)
            && let Some(Ok(Answer::Vote { granted: true, .. })) = answer.map(|answer| Answer::decode(answer.clone()))
        {
            self.truth.votes(vote.leader_id.term, voter.spec().replica.get(), vote.leader_id.voted_for);
        }
    }

    /// A query meets a replica that does not know that it leads no more.
    fn observe_query(&self, replica: &UntypedReplica, request: &Bytes) {
        let is_query = || matches!(Request::decode(request.clone()), Ok(Request { body: RequestBody::Query(_), .. }));
        let is_deposed = |status: Status| status.role == Role::Leader && Some(status.term) < self.truth.newest_term();
        if is_query() && is_deposed(replica.status()) {
            self.truth.count(Event::QueryAtDeposedLeader);
        }
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
