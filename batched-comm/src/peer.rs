//! One peer: what users ask of it, and the task that drives its connection.
//!
//! The [`Driver`] is the only one that changes the connection's state: it dials, judges what the other
//! side dials, watches for silence, and ends a lane in order: no more messages in, tasks stopped, what
//! never left told as not sent, everything else as lost. Only then the next lane opens, so nothing of an
//! old lane arrives after the new one has begun, and nothing arrives twice.

mod driver;
mod lane;
mod delivery;
mod packing;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rkyv::util::AlignedVec;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout_at;

use crate::bulk::BulkLink;
use crate::calls::{Calls, MAX_CALLS};
use crate::clock;
use crate::config::{Batching, EndpointConfig};
use crate::error::{CallError, EncodeError, Refusal, SendError};
use crate::frame::{Head, Kind, MAILBOX_SEPARATOR, MAX_JOINED_NAMES, MAX_JOINED_NAMES_BYTES, Refused};
use crate::link::Link;
use crate::mailbox::Answer;
use crate::message::Body;
use crate::name::{ClusterId, MailboxName, NodeName};
use crate::outbox::{Outbox, PushError, Urgency};
use crate::stats::{DropReason, Stats, Traffic};

pub(crate) use driver::{Driver, Parts};

/// Addresses that are tried for one peer.
pub const MAX_ADDRESSES: usize = 16;
/// Connections of one peer that wait to be judged.
const MAX_OFFERS: usize = 8;
/// The end of a call whose timeout is longer than time can be counted.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What is known of a peer now.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its name.
    pub name: NodeName,
    /// Where it was last connected, or else where it will be dialled.
    pub address: Option<SocketAddr>,
    /// How the connection stands.
    pub state: PeerState,
    /// The number of its start, once it was connected.
    pub instance: Option<u64>,
    /// Why the last attempt to connect failed, or the last connection ended; while connected, whether two nodes of
    /// this name take each other's place.
    pub last_error: Option<String>,
    /// What was sent and received.
    pub traffic: Traffic,
    /// Calls to it whose futures wait for their answers.
    pub pending_calls: usize,
}

/// How the connection to a peer stands. A watch says `None` of who is no peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// Not connected, and no address to dial.
    Idle,
    /// Being dialled.
    Connecting,
    /// Messages flow.
    Up {
        /// Since when.
        since: Instant,
    },
    /// Connected, and nothing was heard for a while.
    Suspect {
        /// Since when.
        since: Instant,
    },
    /// Waits before it is dialled again.
    BackingOff {
        /// Until when.
        until: Instant,
    },
}

/// A change in what is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// Messages flow: its hello was answered.
    Up {
        /// Who.
        peer: NodeName,
        /// The number of its start: another one than before means that it was restarted.
        instance: u64,
    },
    /// Nothing was heard for a while.
    Suspect {
        /// Who.
        peer: NodeName,
    },
    /// A suspect peer was heard again.
    Alive {
        /// Who.
        peer: NodeName,
    },
    /// The connection is gone; its pending calls have failed.
    Down {
        /// Who.
        peer: NodeName,
        /// Why.
        reason: DownReason,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// The peer made a new connection, which took its place.
    #[error("replaced by a newer connection")]
    Replaced,
    /// The peer was restarted and knows nothing of the connection.
    #[error("the peer was restarted")]
    Restarted,
    /// The peer closed it.
    #[error("closed by the peer: {reason}")]
    ClosedByPeer {
        /// What it said.
        reason: String,
    },
    /// Nothing was heard for too long.
    #[error("nothing was heard for too long")]
    Dead,
    /// What came is no batch.
    #[error("the peer broke the protocol: {reason}")]
    Protocol {
        /// What is wrong.
        reason: String,
    },
    /// The peer turned out to belong to another cluster.
    #[error("the peer belongs to another cluster")]
    OtherCluster,
    /// The peer was removed here.
    #[error("the peer was removed")]
    Removed,
    /// This endpoint was shut down.
    #[error("this endpoint was shut down")]
    ShutDown,
    /// QUIC gave up.
    #[error("lost: {reason}")]
    Lost {
        /// What was said.
        reason: String,
    },
}

/// Whether messages can leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneState {
    Down,
    Up,
    /// The peer was removed, or the endpoint shut down.
    Ended,
}

/// Why a peer's driver shall stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Removed,
    ShutDown,
}

/// What the driver is to bring about; only the latest counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) stop: Option<Stop>,
}

/// A connection that the peer dialled, up to its hello.
pub(crate) struct Offer {
    pub(crate) link: Link,
    /// Takes it back when it is turned away.
    pub(crate) refused: oneshot::Sender<(Link, Refusal)>,
}

/// One peer.
pub(crate) struct Peer {
    name: NodeName,
    outbox: Arc<Outbox>,
    calls: Mutex<Calls<Answer>>,
    /// There is something to see to: a call that expires sooner than all others, or the peer's cluster.
    sooner: Notify,
    stats: Stats,
    status: Mutex<Status>,
    lane_state: watch::Sender<LaneState>,
    wanted: watch::Sender<Wanted>,
    removed: AtomicBool,
    offers: mpsc::Sender<Box<Offer>>,
    bulk: BulkLink,
}

struct Status {
    state: PeerState,
    last_address: Option<SocketAddr>,
    instance: Option<u64>,
    /// The cluster that it says it belongs to.
    cluster: Option<ClusterId>,
    last_error: Option<String>,
}

impl Peer {
    /// A peer, and what its driver needs of it.
    pub(crate) fn new(
        name: NodeName,
        config: &EndpointConfig,
        limits: Batching,
        wanted: Wanted,
    ) -> (Arc<Peer>, mpsc::Receiver<Box<Offer>>) {
        let (offers, received_offers) = mpsc::channel(MAX_OFFERS);
        let status =
            Status { state: PeerState::Idle, last_address: None, instance: None, cluster: None, last_error: None };
        let peer = Peer {
            outbox: Arc::new(Outbox::new(name.clone(), config, limits)),
            calls: Mutex::new(Calls::new()),
            sooner: Notify::new(),
            stats: Stats::new(&name),
            status: Mutex::new(status),
            lane_state: watch::Sender::new(LaneState::Down),
            wanted: watch::Sender::new(wanted),
            removed: AtomicBool::new(false),
            offers,
            bulk: BulkLink::default(),
            name,
        };
        (Arc::new(peer), received_offers)
    }

    pub(crate) fn name(&self) -> &NodeName {
        &self.name
    }

    pub(crate) fn bulk(&self) -> &BulkLink {
        &self.bulk
    }

    pub(crate) fn set_limits(&self, limits: Batching) {
        self.outbox.set_limits(limits);
    }

    pub(crate) fn want(&self, change: impl FnOnce(&mut Wanted)) {
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.clone();
            change(wanted);
            *wanted != before
        });
    }

    /// Ends the peer; nobody who holds it sends any more.
    pub(crate) fn stop(&self, why: Stop) {
        if why == Stop::Removed {
            self.removed.store(true, Ordering::SeqCst);
        }
        self.want(|wanted| wanted.stop = Some(why));
    }

    /// Whether it was removed: another one may have its name.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// A cast was not taken, and nobody is told.
    pub(crate) fn dropped_cast(&self, error: &SendError) {
        self.stats.dropped(DropReason::of(error), 1);
    }

    /// Hands the driver a connection that the peer dialled; gives it back when the driver is too busy.
    pub(crate) fn offer(&self, offer: Box<Offer>) -> Result<(), Box<Offer>> {
        self.offers.try_send(offer).map_err(|error| match error {
            mpsc::error::TrySendError::Full(offer) | mpsc::error::TrySendError::Closed(offer) => offer,
        })
    }

    /// Whether nothing is lost with it: it is not connected, and has no address to dial.
    pub(crate) fn is_forgettable(&self) -> bool {
        // Who waits to dial and lost its address meanwhile will not dial.
        let is_idle = matches!(self.status().state, PeerState::Idle | PeerState::BackingOff { .. });
        is_idle && self.wanted.borrow().addresses.is_empty()
    }

    /// Returns once the driver has stopped.
    pub(crate) async fn ended(&self) {
        let mut lane_state = self.lane_state.subscribe();
        // An error would mean that the sender is gone, and it is in `self`.
        let _ = lane_state.wait_for(|state| *state == LaneState::Ended).await;
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let last = self.status().last_address;
        last.or_else(|| self.wanted.borrow().addresses.first().copied())
    }

    /// All addresses that may be tried, the last good one first.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.status().last_address.into_iter().collect();
        for address in &self.wanted.borrow().addresses {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        addresses
    }

    pub(crate) fn public_status(&self) -> PeerStatus {
        let address = self.address();
        let status = self.status();
        PeerStatus {
            name: self.name.clone(),
            address,
            state: status.state,
            instance: status.instance,
            last_error: status.last_error.clone(),
            traffic: self.stats.traffic(),
            pending_calls: self.calls().pending(),
        }
    }

    /// Sends a message that wants no answer, waiting for room.
    pub(crate) async fn send(
        &self,
        mailbox: &MailboxName,
        type_number: u32,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), SendError> {
        let head = Head { kind: Kind::Cast, mailbox: mailbox.as_str(), type_number, call: 0 };
        self.sent(self.outbox.push_waiting(&head, Urgency::Message, encode).await)
    }

    /// The same without waiting.
    pub(crate) fn try_send(
        &self,
        mailbox: &MailboxName,
        type_number: u32,
        encode: impl FnOnce(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), SendError> {
        let head = Head { kind: Kind::Cast, mailbox: mailbox.as_str(), type_number, call: 0 };
        self.sent(self.outbox.push(&head, Urgency::Message, encode))
    }

    /// The same to several mailboxes: one copy, unless their names are too many for one frame.
    pub(crate) fn try_send_many(
        &self,
        mailboxes: &[&MailboxName],
        type_number: u32,
        body: &[u8],
    ) -> Vec<Result<(), SendError>> {
        let mut results = Vec::with_capacity(mailboxes.len());
        let mut rest = mailboxes;
        while let Some((first, others)) = rest.split_first() {
            let mut names = first.to_string();
            let mut count = 1;
            for name in others {
                if count == MAX_JOINED_NAMES || names.len() + 1 + name.as_str().len() > MAX_JOINED_NAMES_BYTES {
                    break;
                }
                names.push(MAILBOX_SEPARATOR);
                names.push_str(name.as_str());
                count += 1;
            }
            let kind = if count == 1 { Kind::Cast } else { Kind::CastMany };
            let head = Head { kind, mailbox: &names, type_number, call: 0 };
            let pushed = self.outbox.push(&head, Urgency::Message, |buffer| {
                buffer.extend_from_slice(body);
                Ok(())
            });
            let result = self.sent(pushed);
            results.extend(std::iter::repeat_n(result, count));
            rest = &rest[count..];
        }
        results
    }

    fn sent(&self, pushed: Result<(), PushError>) -> Result<(), SendError> {
        match pushed {
            Ok(()) => Ok(()),
            Err(PushError::Full) => Err(self.outbox.full()),
            Err(PushError::Refused(error)) => Err(error),
            Err(PushError::NoLane) if self.wanted.borrow().stop == Some(Stop::ShutDown) => Err(SendError::ShutDown),
            Err(PushError::NoLane) => Err(self.not_connected()),
        }
    }

    /// Sends a request and waits for its answer; first, within `timeout`, for a connection and for room.
    pub(crate) async fn call(
        &self,
        mailbox: &MailboxName,
        type_number: u32,
        timeout: Duration,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<Body, CallError> {
        let now = clock::now();
        let deadline = now.checked_add(timeout.min(FAR)).unwrap_or(now);
        let mut place = None;
        loop {
            let pending = self.enter(deadline)?;
            let call = pending.id;
            let head = Head { kind: Kind::Call, mailbox: mailbox.as_str(), type_number, call };
            let full = match self.outbox.push_from(place.as_ref(), &head, Urgency::Message, &encode) {
                Ok(()) => {
                    drop(place);
                    let answer = pending.await;
                    if let Answer::Reply(_) = answer {
                        self.stats.answered(clock::now().saturating_duration_since(now));
                    }
                    return self.outcome(answer, mailbox, timeout);
                }
                Err(PushError::Refused(error)) => return Err(error.into()),
                Err(PushError::Full) => true,
                Err(PushError::NoLane) => false,
            };
            drop(pending);
            if full {
                let place = place.get_or_insert_with(|| self.outbox.line_up(Urgency::Message));
                let room = timeout_at(deadline.into(), place.turn()).await;
                room.map_err(|_| self.outbox.full())?;
            } else {
                place = None;
                self.lane_up(deadline).await?;
            }
        }
    }

    fn enter(&self, deadline: Instant) -> Result<Pending<'_>, SendError> {
        let entered = self.calls().enter(deadline);
        let too_many = || SendError::TooManyCalls { peer: self.name.clone(), max_calls: MAX_CALLS };
        let entered = entered.ok_or_else(too_many)?;
        if entered.sooner {
            self.sooner.notify_one();
        }
        Ok(Pending { peer: self, id: entered.id, answered: false })
    }

    async fn lane_up(&self, deadline: Instant) -> Result<(), SendError> {
        let mut lane_state = self.lane_state.subscribe();
        let changed = lane_state.wait_for(|state| *state != LaneState::Down);
        match timeout_at(deadline.into(), changed).await {
            Ok(Ok(state)) if *state == LaneState::Up => Ok(()),
            Ok(_) if self.wanted.borrow().stop == Some(Stop::Removed) => {
                Err(SendError::UnknownPeer { peer: self.name.clone() })
            }
            Ok(_) => Err(SendError::ShutDown),
            Err(_) => Err(self.not_connected()),
        }
    }

    fn outcome(&self, answer: Answer, mailbox: &MailboxName, timeout: Duration) -> Result<Body, CallError> {
        let peer = self.name.clone();
        match answer {
            Answer::Reply(body) => Ok(body),
            Answer::Refused(refused) => Err(refused_call(peer, mailbox, refused)),
            Answer::NotSent => Err(self.not_connected().into()),
            Answer::Lost => Err(CallError::Lost { peer }),
            Answer::Expired => Err(CallError::Timeout { peer, after: timeout }),
        }
    }

    fn not_connected(&self) -> SendError {
        let last_error = self.status().last_error.clone();
        SendError::NotConnected { peer: self.name.clone(), last_error }
    }

    /// Nothing panics under this lock.
    fn calls(&self) -> MutexGuard<'_, Calls<Answer>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a call that its receiver refused.
pub(crate) fn refused_call(node: NodeName, mailbox: &MailboxName, refused: Refused) -> CallError {
    let mailbox = mailbox.to_string();
    match refused {
        Refused::UnknownMailbox => SendError::UnknownMailbox { node, mailbox }.into(),
        Refused::MailboxFull => SendError::MailboxFull { node, mailbox }.into(),
        Refused::NotUnderstood => SendError::NotUnderstood { node, mailbox }.into(),
        Refused::Unanswered => CallError::Unanswered { peer: node },
    }
}

/// A call's place in the table; given back when it is answered or dropped.
struct Pending<'a> {
    peer: &'a Peer,
    id: u64,
    answered: bool,
}

impl Future for Pending<'_> {
    type Output = Answer;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let polled = self.peer.calls().poll(self.id, context.waker());
        polled.map(|answer| {
            self.answered = true;
            // A call is forgotten by nobody but its own future.
            answer.unwrap_or(Answer::Lost)
        })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.peer.calls().forget(self.id);
        }
    }
}
