//! The task of one peer: connects, watches, ends lanes in order.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

use super::lane::{self, Ended};
use super::{DownReason, LaneState, Offer, Peer, PeerEvent, PeerState, Stop, Wanted};
use crate::chance::Chance;
use crate::clock;
use crate::closing::{Closing, ClosingEvent};
use crate::config::EndpointConfig;
use crate::connection::{Connection, Dialled, Event, Starts, Verdict, backoff};
use crate::error::{ConnectError, Refusal};
use crate::frame::{self, Head, Kind};
use crate::hello::Purpose;
use crate::link::{Close, Link, Linker, Reached};
use crate::mailbox::{Answer, Registry};
use crate::name::ClusterId;
use crate::network::{Failed, Network, PartSet};
use crate::outbox::{Finish, Urgency};
use crate::stats::{DropReason, Waiting};
use crate::watches::Watches;

/// How often silence is looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
/// The least time between two looks through the table of calls.
const SWEEP_INTERVAL: Duration = Duration::from_millis(1);
/// How long an orderly end waits for the handlers of calls that were received before it.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// A connection that stood for this many times the longest wait before an attempt was none that failed.
const LASTING_FACTOR: u32 = 2;
/// How long an orderly end may take as a whole; then it is cut off.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(1500);

/// What a driver works with.
pub(crate) struct Parts {
    pub(crate) linker: Arc<Linker>,
    pub(crate) network: Network,
    pub(crate) registry: Arc<Registry>,
    pub(crate) events: broadcast::Sender<PeerEvent>,
    pub(crate) watches: Arc<Watches<PeerState>>,
    pub(crate) config: EndpointConfig,
    pub(crate) chance: Arc<Chance>,
}

/// The task of one peer.
pub(crate) struct Driver {
    peer: Arc<Peer>,
    parts: Parts,
    own_is_lower: bool,
    wanted: watch::Receiver<Wanted>,
    offers: mpsc::Receiver<Box<Offer>>,
    connection: Connection,
    starts: Starts,
    /// Two nodes of the peer's name were seen, and it was said.
    warned: bool,
    /// Lanes so far: the number of the current one.
    lanes: u64,
    /// Addresses are tried in turn.
    next_address: usize,
}

/// What came of a step towards a connection.
enum Step {
    Reached(Reached),
    Greeted(Box<Link>),
    Failed(ConnectError),
}

type Dial = Pin<Box<dyn Future<Output = Step> + Send>>;

/// A link whose hello was answered.
struct Established {
    link: Link,
    dialled: Dialled,
}

/// What ends a lane.
enum End {
    /// The peer dialled anew.
    Replaced(Box<Offer>),
    Down(DownReason),
    /// In order; how far that is, and why it began.
    Closing(Closing, DownReason),
}

impl Driver {
    pub(crate) fn new(peer: Arc<Peer>, offers: mpsc::Receiver<Box<Offer>>, parts: Parts, own_is_lower: bool) -> Driver {
        let wanted = peer.wanted.subscribe();
        Driver {
            peer,
            parts,
            own_is_lower,
            wanted,
            offers,
            connection: Connection::Idle,
            starts: Starts::default(),
            warned: false,
            lanes: 0,
            next_address: 0,
        }
    }

    /// Runs until the peer is removed or the endpoint shut down.
    pub(crate) async fn run(mut self) {
        while let Some(mut established) = self.establish().await {
            loop {
                let end = self.serve(established).await;
                let Some(End::Replaced(offer)) = end else { break };
                match self.take(offer).await {
                    Some(next) => established = next,
                    None => break,
                }
            }
        }
    }

    /// A connection, dialled from either side; `None` to stop.
    async fn establish(&mut self) -> Option<Established> {
        let mut dial: Option<Dial> = None;
        // Where that goes.
        let mut dialled = None;
        loop {
            if self.wanted.borrow_and_update().stop.is_some() {
                return None;
            }
            let dial_at = self.dial_at();
            tokio::select! {
                Some(offer) = self.offers.recv() => {
                    let Some(offer) = self.judge(offer) else { continue };
                    // Dropping the dialling closes what it has: the two must not both be taken.
                    let dialling = dial.take().is_some();
                    if let Some(established) = self.take(offer).await {
                        return Some(established);
                    }
                    if dialling {
                        let retry_at = self.retry_at(self.connection.attempt());
                        self.advance(Event::Failed { retry_at });
                    }
                }
                () = sleep_until(dial_at.unwrap_or_else(clock::now).into()), if dial_at.is_some() => {
                    self.advance(Event::Dial);
                    dialled = self.next_address();
                    dial = Some(self.reach(dialled));
                }
                step = progress(&mut dial), if dial.is_some() => match step {
                    Step::Reached(reached) => {
                        self.advance(Event::Reached);
                        dial = Some(self.greet(reached));
                    }
                    Step::Greeted(link) => {
                        self.peer.stats.dialled(true);
                        return Some(Established { link: *link, dialled: Dialled::ByUs });
                    }
                    Step::Failed(error) => {
                        dial = None;
                        self.peer.stats.dialled(false);
                        tracing::debug!(peer = %self.peer.name, %error, "dialling failed");
                        self.peer.status().last_error = Some(error.to_string());
                        let retry_at = self.retry_at(self.connection.attempt());
                        self.advance(Event::Failed { retry_at });
                    }
                },
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                    self.next_address = 0;
                    if dial.is_some() && !self.is_wanted(dialled) {
                        // The peer is no longer said to be there.
                        dial = None;
                        self.advance(Event::Failed { retry_at: None });
                    }
                    if let Connection::BackingOff { until, .. } = &mut self.connection {
                        // New addresses are tried at once.
                        *until = clock::now();
                    }
                }
            }
        }
    }

    /// When to dial; `None` while dialling, or without an address.
    fn dial_at(&self) -> Option<Instant> {
        let has_address = !self.wanted.borrow().addresses.is_empty();
        match &self.connection {
            Connection::Idle if has_address => Some(clock::now()),
            Connection::BackingOff { until, .. } if has_address => Some(*until),
            _ => None,
        }
    }

    fn retry_at(&self, attempt: u32) -> Option<Instant> {
        let config = &self.parts.config;
        let wait = backoff(attempt, config.lower_backoff(), config.upper_backoff(), self.parts.chance.fraction());
        (!self.wanted.borrow().addresses.is_empty()).then(|| clock::now() + wait)
    }

    fn next_address(&mut self) -> Option<SocketAddr> {
        let addresses = &self.wanted.borrow().addresses;
        let address = addresses.get(self.next_address % addresses.len().max(1)).copied();
        self.next_address = self.next_address.wrapping_add(1);
        address
    }

    fn is_wanted(&self, address: Option<SocketAddr>) -> bool {
        address.is_some_and(|address| self.wanted.borrow().addresses.contains(&address))
    }

    fn reach(&self, address: Option<SocketAddr>) -> Dial {
        let (linker, name) = (self.parts.linker.clone(), self.peer.name.clone());
        Box::pin(async move {
            // Dialling begins only with an address; if it has just been taken away, the attempt fails.
            let Some(address) = address else { return Step::Failed(ConnectError::ShutDown) };
            match linker.reach(address, Some(&name)).await {
                Ok(reached) => Step::Reached(reached),
                Err(error) => Step::Failed(error),
            }
        })
    }

    fn greet(&self, reached: Reached) -> Dial {
        let linker = self.parts.linker.clone();
        Box::pin(async move {
            match linker.greet(reached, Purpose::Lane).await {
                Ok(link) => Step::Greeted(Box::new(link)),
                Err(error) => Step::Failed(error),
            }
        })
    }

    /// Whether to take what the peer dialled; when not, it goes back to be told.
    fn judge(&self, offer: Box<Offer>) -> Option<Box<Offer>> {
        if offer.link.connection.close_reason().is_some() {
            // It ended while it waited, and must not end the one there is.
            return None;
        }
        let verdict = self.connection.offered(self.own_is_lower, offer.link.peer.instance);
        if verdict == Verdict::Accept {
            return Some(offer);
        }
        // Whoever waits for it has given up when this fails.
        let _ = offer.refused.send((offer.link, Refusal::Duplicate));
        None
    }

    async fn take(&self, offer: Box<Offer>) -> Option<Established> {
        let mut link = offer.link;
        if self.parts.linker.accept(&mut link).await {
            return Some(Established { link, dialled: Dialled::ByPeer });
        }
        None
    }

    /// Runs a lane from its beginning to its end.
    async fn serve(&mut self, established: Established) -> Option<End> {
        let Established { link, dialled } = established;
        let Link { connection, send, recv, peer: introduction, told, .. } = link;
        let instance = introduction.instance;
        self.lanes += 1;
        let two_nodes = self.starts.connected(instance).then(|| self.two_nodes());
        {
            let mut status = self.peer.status();
            status.last_address = Some(connection.remote_address());
            status.instance = Some(instance);
            status.cluster = introduction.cluster;
            status.last_error = two_nodes;
        }
        self.peer.stats.connected();
        self.peer.outbox.open(self.lanes);
        self.peer.lane_state.send_replace(LaneState::Up);
        // Only now: who sees in a watch that it is up may send.
        self.advance(Event::Established { dialled, instance, now: clock::now() });
        self.publish(PeerEvent::Up { peer: self.peer.name.clone(), instance });
        let mut tasks = PartSet::new(self.parts.network.clone());
        tasks.spawn(lane::write(send, self.peer.clone(), self.lanes, introduction.compressions));
        let registry = self.parts.registry.clone();
        tasks.spawn(lane::read(recv, self.peer.clone(), registry, self.lanes));
        let mut end = self.watch(&connection, told, &mut tasks).await;
        let mut offered = None;
        if let End::Closing(closing, reason) = end {
            offered = self.close(closing, &mut tasks).await;
            end = End::Down(reason);
        }
        self.end_lane(&connection, tasks, &end).await;
        Some(offered.map_or(end, End::Replaced))
    }

    /// A start of the peer is back after another one: says, once, that both run, and what to show.
    fn two_nodes(&mut self) -> String {
        let error = format!("two nodes are named {}, and take each other's place: stop one", self.peer.name);
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!("{error}");
        }
        error
    }

    /// Watches a lane until something ends it. `told`: the cluster of this node, as the hello said.
    async fn watch(
        &mut self,
        connection: &quinn::Connection,
        mut told: Option<ClusterId>,
        tasks: &mut PartSet<Ended>,
    ) -> End {
        let mut ticks = interval(self.watch_interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Heard { datagrams: 0, at: clock::now() };
        let mut last_sweep = clock::now();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            match wanted.stop {
                Some(Stop::ShutDown) => return End::Closing(Closing::Finishing, DownReason::ShutDown),
                Some(Stop::Removed) => return End::Down(DownReason::Removed),
                None => {}
            }
            let peer_cluster = self.peer.status().cluster;
            if let (Some(own), Some(peer)) = (wanted.cluster, peer_cluster)
                && own != peer
            {
                return End::Down(DownReason::OtherCluster);
            }
            if let Some(own) = wanted.cluster
                && told != wanted.cluster
                && self.tell_cluster(own)
            {
                told = wanted.cluster;
            }
            let sweep_at = self.peer.calls().next_deadline();
            let sweep_at = sweep_at.map(|at| at.max(last_sweep + SWEEP_INTERVAL));
            let sweep = sleep_until(sweep_at.unwrap_or(last_sweep).into());
            tokio::select! {
                ended = tasks.join_next() => {
                    let (event, reason) = seen(ended);
                    let closing = advance_closing(Closing::Flowing, event);
                    return End::Closing(closing, reason);
                }
                Some(offer) = self.offers.recv() => {
                    if let Some(offer) = self.judge(offer) {
                        return End::Replaced(offer);
                    }
                }
                _ = ticks.tick() => {
                    if let Some(reason) = self.look(connection, &mut heard) {
                        return End::Down(reason);
                    }
                    self.peer.bulk.sweep();
                    self.look_at_queues();
                }
                () = sweep, if sweep_at.is_some() => {
                    last_sweep = clock::now();
                    let wakers = self.peer.calls().expire(last_sweep, || Answer::Expired);
                    wakers.into_iter().for_each(std::task::Waker::wake);
                }
                () = self.peer.sooner.notified() => {}
                _ = self.wanted.changed() => {}
            }
        }
    }

    /// Ends a lane in order: what both sides have taken arrives, within a bound. Gives a connection that the
    /// peer has dialled meanwhile.
    async fn close(&mut self, mut closing: Closing, tasks: &mut PartSet<Ended>) -> Option<Box<Offer>> {
        if closing == Closing::Closed {
            return None;
        }
        let stops = closing == Closing::Finishing;
        self.peer.outbox.finish(if stops { Finish::AfterAnswers } else { Finish::Now });
        // Calls that find no lane wait for the next one.
        self.peer.lane_state.send_replace(LaneState::Down);
        let begun = clock::now();
        let mut waits_for_answers = stops;
        let mut ticks = interval(self.watch_interval());
        let peer = self.peer.clone();
        let mut expiring = pin!(expire_calls(&peer));
        while closing != Closing::Closed {
            let event = tokio::select! {
                ended = tasks.join_next() => seen(ended).0,
                () = sleep_until((begun + CLOSING_TIMEOUT).into()) => ClosingEvent::Overdue,
                () = sleep_until((begun + ANSWER_TIMEOUT).into()), if waits_for_answers => {
                    waits_for_answers = false;
                    self.peer.outbox.finish(Finish::Now);
                    continue;
                }
                Some(offer) = self.offers.recv(), if !stops => match self.judge(offer) {
                    Some(offer) => return Some(offer),
                    None => continue,
                },
                _ = self.wanted.changed() => match self.wanted.borrow_and_update().stop {
                    Some(Stop::Removed) => return None,
                    Some(Stop::ShutDown) => ClosingEvent::Stop,
                    None => continue,
                },
                // Has no end.
                () = &mut expiring => continue,
                _ = ticks.tick() => {
                    self.look_at_queues();
                    continue;
                }
            };
            closing = advance_closing(closing, event);
        }
        None
    }

    /// Tends them, and publishes what waits.
    fn look_at_queues(&self) {
        let waiting = self.peer.outbox.tend();
        self.peer.stats.waits(waiting, self.peer.calls().pending());
    }

    fn watch_interval(&self) -> Duration {
        WATCH_INTERVAL.min(self.parts.config.suspect_after() / 4)
    }

    /// Says over the lane which cluster this node has joined since its hello; when there is no room, it is to
    /// be tried again.
    fn tell_cluster(&self, cluster: ClusterId) -> bool {
        let head = Head { kind: Kind::Cluster, mailbox: "", type_number: 0, call: 0 };
        let urgency = Urgency::Refusal { lane: self.lanes };
        let told = self.peer.outbox.push(&head, urgency, |buffer| {
            buffer.extend_from_slice(&frame::cluster_body(cluster));
            Ok(())
        });
        told.is_ok()
    }

    /// Looks for silence: `Some` when the peer is dead.
    fn look(&mut self, connection: &quinn::Connection, heard: &mut Heard) -> Option<DownReason> {
        let now = clock::now();
        let quic = connection.stats();
        self.peer.stats.round_trip(quic.path.rtt);
        let datagrams = quic.udp_rx.datagrams;
        if datagrams != heard.datagrams {
            *heard = Heard { datagrams, at: now };
            if matches!(self.connection, Connection::Suspect { .. }) {
                self.advance(Event::Heard);
                self.publish(PeerEvent::Alive { peer: self.peer.name.clone() });
            }
            return None;
        }
        let silence = now.saturating_duration_since(heard.at);
        let config = &self.parts.config;
        // Silence began up to one interval before it was seen, and the next look is one later.
        if silence + self.watch_interval() * 2 > config.dead_after() {
            return Some(DownReason::Dead);
        }
        if silence >= config.suspect_after() && matches!(self.connection, Connection::Up { .. }) {
            self.advance(Event::Silent { now });
            self.publish(PeerEvent::Suspect { peer: self.peer.name.clone() });
        }
        None
    }

    /// Ends a lane at once.
    async fn end_lane(&mut self, connection: &quinn::Connection, mut tasks: PartSet<Ended>, end: &End) {
        let reason = match end {
            End::Replaced(_) => DownReason::Replaced,
            End::Down(reason) | End::Closing(_, reason) => reason.clone(),
        };
        let close = close_code(&reason);
        let instance = self.peer.status().instance.unwrap_or_default();
        // First of all: a writer that finds its outbox closed resets its stream, which says nothing of the reason.
        connection.close(close.code(), reason.to_string().as_bytes());
        let unsent = self.peer.outbox.close();
        self.peer.lane_state.send_replace(LaneState::Down);
        tasks.shutdown().await;
        self.fail_calls(&unsent);
        self.peer.stats.dropped(DropReason::NoConnection, unsent.messages);
        self.peer.stats.waits(Waiting::default(), 0);
        // A new connection of the same start leaves transfers alone; a new start knows nothing of them.
        let start_lives_on = matches!(end, End::Replaced(offer) if offer.link.peer.instance == instance);
        if !start_lives_on {
            self.peer.bulk.close(instance, close);
        }
        tracing::debug!(peer = %self.peer.name, %reason, "a connection ended");
        self.peer.status().last_error = Some(reason.to_string());
        let stood = self.connection.up_since().map(|since| clock::now().saturating_duration_since(since));
        let lasted = stood >= Some(self.parts.config.upper_backoff() * LASTING_FACTOR);
        let retry_at = self.retry_at(if lasted { 0 } else { self.connection.attempt() });
        self.advance(Event::Down { retry_at, lasted });
        self.publish(PeerEvent::Down { peer: self.peer.name.clone(), reason });
    }

    /// What never left was not sent; whatever else is pending may have been handled.
    fn fail_calls(&self, unsent: &crate::batcher::Gathered) {
        let mut calls = self.peer.calls();
        let mut wakers = Vec::new();
        for call in unsent.calls() {
            if let crate::calls::Delivered::To(waker) = calls.answer(call, Answer::NotSent) {
                wakers.extend(waker);
            }
        }
        wakers.extend(calls.answer_all(|| Answer::Lost));
        drop(calls);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    fn publish(&self, event: PeerEvent) {
        // Nobody may be listening.
        let _ = self.parts.events.send(event);
    }

    fn advance(&mut self, event: Event) {
        match self.connection.clone().next(event) {
            Ok(next) => self.connection = next,
            Err(illegal) => {
                // A bug of this file. Starting over is always right.
                tracing::error!(peer = %self.peer.name, %illegal, "a connection starts over");
                debug_assert!(false, "{illegal}");
                self.connection = Connection::Idle;
            }
        }
        let state = match &self.connection {
            Connection::Idle => PeerState::Idle,
            Connection::BackingOff { until, .. } => PeerState::BackingOff { until: *until },
            Connection::Dialling { .. } | Connection::Greeting { .. } => PeerState::Connecting,
            Connection::Up { since, .. } => PeerState::Up { since: *since },
            Connection::Suspect { since, .. } => PeerState::Suspect { since: *since },
        };
        self.peer.status().state = state;
        // Who is being removed is no peer any more, and another one may have the name already.
        let goes_on = || self.wanted.borrow().stop.is_none();
        self.parts.watches.set(&self.peer.name, Some(state), goes_on);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let unsent = self.peer.outbox.close();
        self.fail_calls(&unsent);
        let removed = self.wanted.borrow().stop == Some(Stop::Removed);
        self.peer.bulk.end(if removed { Close::Removed } else { Close::ShutDown });
        self.peer.lane_state.send_replace(LaneState::Ended);
    }
}

/// When something last came, and how many datagrams there were then.
struct Heard {
    datagrams: u64,
    at: Instant,
}

/// Sees to it that calls end by their timeouts, for as long as it is polled.
async fn expire_calls(peer: &Peer) {
    loop {
        let deadline = peer.calls().next_deadline();
        let Some(deadline) = deadline else {
            peer.sooner.notified().await;
            continue;
        };
        tokio::select! {
            () = sleep_until(deadline.into()) => {}
            () = peer.sooner.notified() => continue,
        }
        let wakers = peer.calls().expire(clock::now(), || Answer::Expired);
        wakers.into_iter().for_each(std::task::Waker::wake);
        sleep(SWEEP_INTERVAL).await;
    }
}

async fn progress(dial: &mut Option<Dial>) -> Step {
    match dial {
        Some(dial) => dial.await,
        None => std::future::pending().await,
    }
}

/// What the end of a task says of the lane's end, and why the lane ends when nothing else was the reason.
fn seen(ended: Option<Result<Ended, Failed>>) -> (ClosingEvent, DownReason) {
    match ended {
        Some(Ok(Ended::Written)) => (ClosingEvent::OwnEnded, DownReason::ShutDown),
        Some(Ok(Ended::WriteFailed(reason))) => (ClosingEvent::OwnEnded, reason),
        Some(Ok(Ended::ReadToEnd)) => {
            (ClosingEvent::PeerEnded, DownReason::ClosedByPeer { reason: "it is shutting down".into() })
        }
        Some(Ok(Ended::ReadFailed(reason))) => (ClosingEvent::Broken, reason),
        Some(Err(_)) | None => (ClosingEvent::Overdue, DownReason::Lost { reason: "a task of the lane failed".into() }),
    }
}

fn advance_closing(closing: Closing, event: ClosingEvent) -> Closing {
    closing.next(event).unwrap_or_else(|illegal| {
        // Closing is always right.
        tracing::debug!(%illegal, "a lane is closed at once");
        Closing::Closed
    })
}

fn close_code(reason: &DownReason) -> Close {
    match reason {
        DownReason::Replaced => Close::Replaced,
        DownReason::Protocol { .. } => Close::Protocol,
        DownReason::Dead => Close::Dead,
        DownReason::OtherCluster => Close::Refused,
        DownReason::Removed => Close::Removed,
        DownReason::ShutDown => Close::ShutDown,
        DownReason::Restarted | DownReason::ClosedByPeer { .. } | DownReason::Lost { .. } => Close::Normal,
    }
}
