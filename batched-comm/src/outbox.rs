//! What waits to be sent to one peer: the batcher behind a mutex, its bound, and who is woken when.
//!
//! Senders write straight into the buffer and wake the writer only when it was empty. The writer lets
//! everybody else run once, swaps the buffer for an empty one, and writes it while the next one fills.
//! There is no linger (unless `max_wait` asks for one): under load, the batches grow by themselves.
//!
//! Messages are taken only while there is a lane, and only for that lane: what did not leave with it
//! is known not to have been sent.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rkyv::util::AlignedVec;
use tokio::sync::Notify;

use crate::batcher::{Batcher, Gathered, Rejected};
use crate::config::{Batching, EndpointConfig};
use crate::error::{EncodeError, SendError};
use crate::frame::Head;
use crate::name::NodeName;

/// Replies do not wait; they may fill the buffer up to this many times its bound.
const REPLY_RESERVE_FACTOR: usize = 2;

/// The messages on their way to one peer.
pub(crate) struct Outbox {
    peer: NodeName,
    max_queued_bytes: usize,
    max_message_bytes: usize,
    state: Mutex<State>,
    /// The buffer is no longer empty. Only the writer waits.
    filled: Notify,
    /// A batch was closed: no use in waiting for more. Only the writer waits.
    batch_closed: Notify,
    /// The buffer was taken, or the lane is gone.
    room: Notify,
}

struct State {
    lane: Option<u64>,
    /// What is in the buffer still leaves; then the writer ends the lane.
    finishing: bool,
    batcher: Batcher,
    limits: Batching,
}

/// Which bound holds for a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Waits, or is refused, at the bound.
    Message,
    /// An answer on this lane: never waits.
    Answer { lane: u64 },
}

/// Why a message was not taken.
pub(crate) enum PushError {
    /// There is no lane (or, for an answer, another one).
    NoLane,
    /// The bound is reached.
    Full,
    /// It will never be taken.
    Refused(SendError),
}

impl Outbox {
    pub(crate) fn new(peer: NodeName, config: &EndpointConfig, limits: Batching) -> Outbox {
        let state = State { lane: None, finishing: false, batcher: Batcher::default(), limits };
        Outbox {
            peer,
            max_queued_bytes: config.max_queued_bytes(),
            max_message_bytes: config.max_message_bytes(),
            state: Mutex::new(state),
            filled: Notify::new(),
            batch_closed: Notify::new(),
            room: Notify::new(),
        }
    }

    pub(crate) fn peer(&self) -> &NodeName {
        &self.peer
    }

    pub(crate) fn full(&self) -> SendError {
        SendError::Full { peer: self.peer.clone(), max_queued_bytes: self.max_queued_bytes }
    }

    pub(crate) fn set_limits(&self, limits: Batching) {
        self.state().limits = limits;
    }

    /// Adds a message whose body `encode` appends.
    pub(crate) fn push(
        &self,
        head: &Head<'_>,
        urgency: Urgency,
        encode: impl FnOnce(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), PushError> {
        let mut state = self.state();
        let max_queued_bytes = match urgency {
            Urgency::Message if state.lane.is_some() => self.max_queued_bytes,
            Urgency::Answer { lane } if state.lane == Some(lane) => self.max_queued_bytes * REPLY_RESERVE_FACTOR,
            Urgency::Message | Urgency::Answer { .. } => return Err(PushError::NoLane),
        };
        if state.batcher.queued_bytes() >= max_queued_bytes {
            return Err(PushError::Full);
        }
        let limits = state.limits;
        let pushed = state
            .batcher
            .push(head, &limits, self.max_message_bytes, encode)
            .map_err(|rejected| PushError::Refused(self.refused(rejected)))?;
        drop(state);
        if pushed.first {
            self.filled.notify_one();
        }
        if pushed.closed && !limits.max_wait().is_zero() {
            self.batch_closed.notify_one();
        }
        Ok(())
    }

    /// The same, waiting for room.
    pub(crate) async fn push_waiting(
        &self,
        head: &Head<'_>,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), PushError> {
        match self.push(head, Urgency::Message, &encode) {
            Err(PushError::Full) => {}
            done => return done,
        }
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Counts as waiting from here on, so that room made before the `await` is not missed.
            room.as_mut().enable();
            match self.push(head, Urgency::Message, &encode) {
                Err(PushError::Full) => room.await,
                done => return done,
            }
        }
    }

    /// Returns when there is room, or no lane.
    pub(crate) async fn room(&self) {
        let mut room = std::pin::pin!(self.room.notified());
        room.as_mut().enable();
        let full = {
            let state = self.state();
            state.lane.is_some() && state.batcher.queued_bytes() >= self.max_queued_bytes
        };
        if full {
            room.await;
        }
    }

    /// A lane stands: messages are taken from now on.
    pub(crate) fn open(&self, lane: u64) {
        let mut state = self.state();
        state.lane = Some(lane);
        state.finishing = false;
    }

    /// No more than what is in the buffer will be sent: for an orderly end.
    pub(crate) fn finish(&self) {
        self.state().finishing = true;
        self.filled.notify_one();
        self.batch_closed.notify_one();
    }

    /// The lane is gone; answers what was never handed to it.
    pub(crate) fn close(&self) -> Gathered {
        let mut state = self.state();
        state.lane = None;
        let unsent = state.batcher.take(Gathered::default());
        drop(state);
        // The writer of the lane sees that it is gone.
        self.filled.notify_one();
        self.room.notify_waiters();
        unsent
    }

    /// For the writer of `lane`: the next batches, as soon as there are any; `None` when the lane ends.
    /// `spare` gives its buffer back.
    pub(crate) async fn next(&self, lane: u64, spare: Gathered) -> Option<Gathered> {
        let max_wait = loop {
            {
                let state = self.state();
                if state.lane != Some(lane) {
                    return None;
                }
                if state.batcher.queued_bytes() > 0 {
                    break state.limits.max_wait();
                }
                if state.finishing {
                    return None;
                }
            }
            self.filled.notified().await;
        };
        // Whoever is ready to send goes first: this is what makes batches.
        tokio::task::yield_now().await;
        if !max_wait.is_zero() {
            // Elapsing is what it is for.
            let _ = tokio::time::timeout(max_wait, self.batch_closed.notified()).await;
        }
        let gathered = {
            let mut state = self.state();
            if state.lane != Some(lane) {
                return None;
            }
            state.batcher.take(spare)
        };
        self.room.notify_waiters();
        Some(gathered)
    }

    fn refused(&self, rejected: Rejected) -> SendError {
        match rejected {
            Rejected::Encode(error) => SendError::Encode(error),
            Rejected::TooLarge { given_bytes } => {
                SendError::TooLarge { given_bytes, max_bytes: self.max_message_bytes }
            }
        }
    }

    /// A push that panicked leaves the batcher whole, so a poisoned lock is as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
