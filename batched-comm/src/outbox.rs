//! What waits to be sent to one peer: the batcher behind a mutex, its bound, and who is woken when.
//!
//! Senders write straight into the buffer and wake the writer only when it was empty. The writer lets
//! everybody else run once, swaps the buffer for an empty one, and writes it while the next one fills.
//! There is no linger (unless `max_wait` asks for one): under load, the batches grow by themselves.
//!
//! Messages are taken only while there is a lane, and only for that lane: what did not leave with it
//! is known not to have been sent.
//!
//! Who finds no room waits in a [`Line`], which sees to it that a sender in a loop does not take all the
//! room that is ever made.

mod owed;

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use rkyv::util::AlignedVec;
use tokio::sync::Notify;

use crate::batcher::{Batcher, Gathered, Rejected};
use crate::config::{Batching, EndpointConfig};
use crate::error::{EncodeError, SendError};
use crate::frame::Head;
use crate::line::Line;
use crate::name::NodeName;
use crate::stats::Waiting;
use owed::OwedCount;

pub(crate) use owed::Owed;

/// Refusals have room of their own, so that a caller learns at once that its answer had none. They have 32
/// bytes each; beyond this many in one buffer, callers learn it by their timeouts.
const MAX_QUEUED_REFUSALS: usize = 64 * 1024;

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
    owed: OwedCount,
    /// Whoever answers the last of them wakes the writer.
    is_finishing: AtomicBool,
}

struct State {
    lane: Option<u64>,
    /// No messages are taken any more; what is in the buffer still leaves, and then the writer ends the lane.
    finishing: Option<Finish>,
    batcher: Batcher,
    /// How much of what is in the buffer are messages, and how much answers: each has a bound of its own, so that
    /// those who answer do not keep those who call from it.
    message_bytes: usize,
    answer_bytes: usize,
    /// How many of what is in the buffer are refusals.
    queued_refusals: usize,
    limits: Batching,
    /// Who waits for room for a message, and who for room for an answer.
    messages: Line,
    answers: Line,
}

/// Which bound holds for a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Waits, or is refused, at the bound.
    Message,
    /// An answer on this lane: has a reserve.
    Answer { lane: u64 },
    /// Says on this lane that there is no answer, or whose lane it is: has room where there is none for answers.
    Refusal { lane: u64 },
}

/// When the writer ends the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// Once no answer is owed any more, and the buffer is empty.
    AfterAnswers,
    /// Once the buffer is empty.
    Now,
}

/// What the writer is to do.
pub(crate) enum Next {
    /// Write these.
    Batches(Gathered),
    /// All that was taken has been handed out: end the lane in order.
    End,
    /// The lane is gone.
    Gone,
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

impl State {
    /// The line of those who wait for the same room.
    fn line(&mut self, urgency: Urgency) -> &mut Line {
        match urgency {
            Urgency::Message => &mut self.messages,
            Urgency::Answer { .. } | Urgency::Refusal { .. } => &mut self.answers,
        }
    }

    /// Whether there is room at all.
    fn is_below(&self, urgency: Urgency, max_queued_bytes: usize) -> bool {
        match urgency {
            Urgency::Message => self.message_bytes < max_queued_bytes,
            Urgency::Answer { .. } | Urgency::Refusal { .. } => self.answer_bytes < max_queued_bytes,
        }
    }

    /// Whether whoever has `place` may push now.
    fn has_room(&self, urgency: Urgency, place: Option<u64>, max_queued_bytes: usize) -> Result<bool, PushError> {
        let lane = match urgency {
            Urgency::Message => self.lane,
            Urgency::Answer { lane } | Urgency::Refusal { lane } => Some(lane),
        };
        if self.lane.is_none() || self.lane != lane {
            return Err(PushError::NoLane);
        }
        if self.finishing.is_some() && urgency == Urgency::Message {
            return Err(PushError::NoLane);
        }
        Ok(match (urgency, place) {
            (Urgency::Message, _) => self.message_bytes < max_queued_bytes && self.messages.may_take(place),
            // An answer that cannot wait is not refused because others can.
            (Urgency::Answer { .. }, None) => self.answer_bytes < max_queued_bytes,
            (Urgency::Answer { .. }, Some(_)) => self.answer_bytes < max_queued_bytes && self.answers.may_take(place),
            (Urgency::Refusal { .. }, _) => self.queued_refusals < MAX_QUEUED_REFUSALS,
        })
    }

    /// Takes what is in the buffer; gives whom to wake, too.
    fn take(&mut self, spare: Gathered) -> (Gathered, Vec<Waker>) {
        (self.queued_refusals, self.message_bytes, self.answer_bytes) = (0, 0, 0);
        let mut wakers = self.answers.call();
        wakers.extend(self.messages.call());
        let compression = self.limits.compression();
        (Gathered { compression, ..self.batcher.take(spare) }, wakers)
    }
}

/// A place among those who wait for room; given up when it is dropped.
pub(crate) struct Place<'a> {
    outbox: &'a Outbox,
    urgency: Urgency,
    number: u64,
}

impl Place<'_> {
    /// Returns when there is room for whoever has this place, or no lane.
    pub(crate) async fn turn(&self) {
        poll_fn(|context| {
            let mut state = self.outbox.state();
            match state.has_room(self.urgency, Some(self.number), self.outbox.max_queued_bytes) {
                Ok(false) => {
                    state.line(self.urgency).wait(self.number, context.waker());
                    Poll::Pending
                }
                Ok(true) | Err(_) => Poll::Ready(()),
            }
        })
        .await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.outbox.state();
        state.line(self.urgency).leave(self.number);
        let next = match state.is_below(self.urgency, self.outbox.max_queued_bytes) {
            true => state.line(self.urgency).call_next(),
            false => Vec::new(),
        };
        drop(state);
        next.into_iter().for_each(Waker::wake);
    }
}

impl Outbox {
    pub(crate) fn new(peer: NodeName, config: &EndpointConfig, limits: Batching) -> Outbox {
        let state = State {
            lane: None,
            finishing: None,
            batcher: Batcher::default(),
            message_bytes: 0,
            answer_bytes: 0,
            queued_refusals: 0,
            limits,
            messages: Line::default(),
            answers: Line::default(),
        };
        Outbox {
            peer,
            max_queued_bytes: config.max_queued_bytes(),
            max_message_bytes: config.max_message_bytes(),
            state: Mutex::new(state),
            filled: Notify::new(),
            batch_closed: Notify::new(),
            owed: OwedCount::default(),
            is_finishing: AtomicBool::new(false),
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
        self.push_from(None, head, urgency, encode)
    }

    /// The same for who may have waited.
    pub(crate) fn push_from(
        &self,
        place: Option<&Place<'_>>,
        head: &Head<'_>,
        urgency: Urgency,
        encode: impl FnOnce(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), PushError> {
        let mut state = self.state();
        if !state.has_room(urgency, place.map(|place| place.number), self.max_queued_bytes)? {
            return Err(PushError::Full);
        }
        let limits = state.limits;
        let before = state.batcher.queued_bytes();
        let pushed = state
            .batcher
            .push(head, &limits, self.max_message_bytes, encode)
            .map_err(|rejected| PushError::Refused(self.refused(rejected)))?;
        let bytes = state.batcher.queued_bytes() - before;
        match urgency {
            Urgency::Message => state.message_bytes += bytes,
            Urgency::Answer { .. } => state.answer_bytes += bytes,
            Urgency::Refusal { .. } => state.queued_refusals += 1,
        }
        // Nobody else can join it, so there is no use in waiting for more.
        let closed = pushed.closed || !state.is_below(urgency, self.max_queued_bytes) || state.finishing.is_some();
        drop(state);
        if pushed.first {
            self.filled.notify_one();
        }
        if closed && !limits.max_wait().is_zero() {
            self.batch_closed.notify_one();
        }
        Ok(())
    }

    /// The same, waiting for room.
    pub(crate) async fn push_waiting(
        &self,
        head: &Head<'_>,
        urgency: Urgency,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), PushError> {
        match self.push(head, urgency, &encode) {
            Err(PushError::Full) => {}
            done => return done,
        }
        let place = self.line_up(urgency);
        loop {
            place.turn().await;
            match self.push_from(Some(&place), head, urgency, &encode) {
                Err(PushError::Full) => {}
                done => return done,
            }
        }
    }

    /// A place behind all who wait.
    pub(crate) fn line_up(&self, urgency: Urgency) -> Place<'_> {
        let number = self.state().line(urgency).join();
        Place { outbox: self, urgency, number }
    }

    /// To be called now and then while there is a lane: sees to it that nobody who waits holds up others for ever.
    /// Answers how much is in the buffer.
    pub(crate) fn tend(&self) -> Waiting {
        let mut state = self.state();
        let queued_bytes = state.batcher.queued_bytes();
        let waiting = Waiting { bytes: queued_bytes, messages: state.batcher.queued_messages() };
        let mut wakers = Vec::new();
        if state.is_below(Urgency::Answer { lane: 0 }, self.max_queued_bytes) {
            wakers.extend(state.answers.tend());
        }
        if state.is_below(Urgency::Message, self.max_queued_bytes) {
            wakers.extend(state.messages.tend());
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        waiting
    }

    /// A lane stands: messages are taken from now on.
    pub(crate) fn open(&self, lane: u64) {
        let mut state = self.state();
        state.lane = Some(lane);
        self.owed.open(lane);
        state.finishing = None;
        self.is_finishing.store(false, Ordering::SeqCst);
    }

    /// For an orderly end: takes no more messages, though answers until what is in the buffer has left.
    pub(crate) fn finish(&self, finish: Finish) {
        let mut state = self.state();
        state.finishing = Some(finish);
        // Before the writer looks at what is owed: either it sees that nothing is, or it is woken.
        self.is_finishing.store(true, Ordering::SeqCst);
        let wakers = state.messages.call_all();
        drop(state);
        self.filled.notify_one();
        self.batch_closed.notify_one();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The lane is gone; answers what was never handed to it.
    pub(crate) fn close(&self) -> Gathered {
        let mut state = self.state();
        state.lane = None;
        let (unsent, mut wakers) = state.take(Gathered::default());
        wakers.extend(state.answers.call_all());
        wakers.extend(state.messages.call_all());
        drop(state);
        // The writer of the lane sees that it is gone.
        self.filled.notify_one();
        wakers.into_iter().for_each(Waker::wake);
        unsent
    }

    /// For the writer of `lane`: the next batches, as soon as there are any. `spare` gives its buffer back.
    pub(crate) async fn next(&self, lane: u64, spare: Gathered) -> Next {
        let max_wait = loop {
            {
                let mut state = self.state();
                if state.lane != Some(lane) {
                    return Next::Gone;
                }
                if state.batcher.queued_bytes() > 0 {
                    break state.limits.max_wait();
                }
                let ends = match state.finishing {
                    Some(Finish::Now) => true,
                    Some(Finish::AfterAnswers) => self.owed.is_none(),
                    None => false,
                };
                if ends {
                    // An answer that comes now is told that it does not leave.
                    state.lane = None;
                    let wakers = state.answers.call_all();
                    drop(state);
                    wakers.into_iter().for_each(Waker::wake);
                    return Next::End;
                }
            }
            self.filled.notified().await;
        };
        // Whoever is ready to send goes first: this is what makes batches. One message at a time is most likely one
        // caller at a time, whom it would only delay.
        if spare.messages > 1 {
            tokio::task::yield_now().await;
        }
        if !max_wait.is_zero() {
            // Elapsing is what it is for.
            let _ = tokio::time::timeout(max_wait, self.batch_closed.notified()).await;
        }
        let (gathered, wakers) = {
            let mut state = self.state();
            if state.lane != Some(lane) {
                return Next::Gone;
            }
            state.take(spare)
        };
        wakers.into_iter().for_each(Waker::wake);
        Next::Batches(gathered)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::frame::Kind;

    const BOUND: usize = 4096;
    const HEAD: Head<'static> = Head { kind: Kind::Cast, mailbox: "in", type_number: 1, call: 0 };
    const REPLY: Head<'static> = Head { kind: Kind::Reply, mailbox: "", type_number: 0, call: 1 };
    const REFUSED: Head<'static> = Head { kind: Kind::Refused, mailbox: "", type_number: 3, call: 1 };

    fn outbox() -> Outbox {
        let config = EndpointConfig::new().with_max_queued_bytes(BOUND).unwrap();
        let outbox = Outbox::new("n2".parse().unwrap(), &config, config.batching());
        outbox.open(1);
        outbox
    }

    fn bytes(count: usize) -> impl Fn(&mut AlignedVec) -> Result<(), EncodeError> {
        move |buffer| {
            buffer.extend_from_slice(&vec![0; count]);
            Ok(())
        }
    }

    #[test]
    fn a_refusal_has_room_where_an_answer_has_none() {
        let outbox = outbox();
        let answer = Urgency::Answer { lane: 1 };
        let count = (0..1000).take_while(|_| outbox.push(&REPLY, answer, bytes(100)).is_ok()).count();
        assert!(count < 100, "{count}");
        assert!(matches!(outbox.push(&REPLY, answer, bytes(0)), Err(PushError::Full)));
        assert!(outbox.push(&HEAD, Urgency::Message, bytes(0)).is_ok(), "messages have room of their own");
        for _ in 0..MAX_QUEUED_REFUSALS {
            assert!(outbox.push(&REFUSED, Urgency::Refusal { lane: 1 }, bytes(0)).is_ok());
        }
        let refused = outbox.push(&REFUSED, Urgency::Refusal { lane: 1 }, bytes(0));
        assert!(matches!(refused, Err(PushError::Full)), "their number has a bound, too");
        let other_lane = outbox.push(&REFUSED, Urgency::Refusal { lane: 2 }, bytes(0));
        assert!(matches!(other_lane, Err(PushError::NoLane)));
    }

    #[tokio::test]
    async fn a_sender_in_a_loop_does_not_take_all_the_room_from_others() {
        let outbox = Arc::new(outbox());
        let greedy = tokio::spawn({
            let outbox = outbox.clone();
            async move { while outbox.push_waiting(&HEAD, Urgency::Message, bytes(BOUND)).await.is_ok() {} }
        });
        tokio::task::yield_now().await;
        let meek_is_done = Arc::new(AtomicBool::new(false));
        let meek = tokio::spawn({
            let (outbox, done) = (outbox.clone(), meek_is_done.clone());
            async move {
                assert!(outbox.push_waiting(&HEAD, Urgency::Message, bytes(BOUND)).await.is_ok());
                done.store(true, Ordering::SeqCst);
            }
        });
        let mut taken = 0;
        while !meek_is_done.load(Ordering::SeqCst) {
            assert!(matches!(outbox.next(1, Gathered::default()).await, Next::Batches(_)));
            tokio::task::yield_now().await;
            taken += 1;
            assert!(taken < 10, "the meek one never had its turn");
        }
        outbox.close();
        meek.await.unwrap();
        greedy.await.unwrap();
    }

    #[tokio::test]
    async fn a_waiting_future_that_is_not_polled_does_not_hold_up_the_others() {
        let outbox = outbox();
        let idle = outbox.line_up(Urgency::Message);
        let mut waiting = std::pin::pin!(idle.turn());
        let mut turns = 0;
        // Others take the room again and again, until it is the turn of the one that waits.
        while outbox.push(&HEAD, Urgency::Message, bytes(BOUND)).is_ok() {
            assert!(std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await.is_pending());
            assert!(matches!(outbox.next(1, Gathered::default()).await, Next::Batches(_)));
            turns += 1;
            assert!(turns < 10, "it never had its turn");
        }
        outbox.tend();
        outbox.tend();
        assert!(outbox.push_waiting(&HEAD, Urgency::Message, bytes(1)).await.is_ok());
    }

    #[tokio::test]
    async fn the_end_takes_no_messages_and_waits_for_answers_that_are_owed() {
        let outbox = Arc::new(outbox());
        let owed = Owed::new(outbox.clone(), 1);
        assert!(outbox.push(&HEAD, Urgency::Message, bytes(1)).is_ok());
        outbox.finish(Finish::AfterAnswers);
        assert!(matches!(outbox.push(&HEAD, Urgency::Message, bytes(1)), Err(PushError::NoLane)));
        assert!(matches!(outbox.next(1, Gathered::default()).await, Next::Batches(_)));
        let writer = tokio::spawn({
            let outbox = outbox.clone();
            async move {
                let answer = outbox.next(1, Gathered::default()).await;
                (answer, outbox.next(1, Gathered::default()).await)
            }
        });
        tokio::task::yield_now().await;
        assert!(!writer.is_finished());
        let answer = Urgency::Answer { lane: 1 };
        assert!(owed.push(&REPLY, answer, bytes(1)).is_ok());
        drop(owed);
        assert!(matches!(writer.await.unwrap(), (Next::Batches(_), Next::End)));
        assert!(matches!(outbox.push(&REPLY, answer, bytes(1)), Err(PushError::NoLane)), "it would not leave");
        // A handler that never answers: not for ever.
        outbox.open(2);
        let _owed = Owed::new(outbox.clone(), 2);
        outbox.finish(Finish::AfterAnswers);
        let next = tokio::time::timeout(std::time::Duration::from_millis(20), outbox.next(2, Gathered::default()));
        assert!(next.await.is_err());
        outbox.finish(Finish::Now);
        assert!(matches!(outbox.next(2, Gathered::default()).await, Next::End));
        // What it owes over that lane does not hold up the end of the next one.
        outbox.open(3);
        outbox.finish(Finish::AfterAnswers);
        let next = tokio::time::timeout(std::time::Duration::from_secs(10), outbox.next(3, Gathered::default()));
        assert!(matches!(next.await, Ok(Next::End)));
    }
}
