//! Named receivers with bounded queues, and delivery into them.
//!
//! Delivery never waits: a full mailbox refuses, so that one slow receiver does not hold up the lane that
//! everybody shares. Answers do not pass through here at all.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Poll, Waker};

use rkyv::util::AlignedVec;
use tokio::sync::oneshot;

use crate::error::{DecodeError, EncodeError, MailboxError, SendError};
use crate::frame::{Head, Kind, Refused};
use crate::message::{self, Body, Message, Wire};
use crate::name::{MailboxName, NodeName};
use crate::outbox::{Outbox, Owed, PushError, Urgency};

/// A mailbox's capacity is at most this.
pub const MAX_MAILBOX_CAPACITY: usize = 1 << 20;

/// A mailbox whose messages have this many bytes is full, whatever its capacity.
pub const MAX_MAILBOX_BYTES: usize = 64 * 1024 * 1024;

/// Receives the messages that are sent to its name. Dropping it gives the name back; calls that nobody
/// took are answered as if it had never been there.
pub struct Mailbox {
    name: MailboxName,
    queue: Arc<Queue>,
    registry: Arc<Registry>,
}

impl Mailbox {
    /// The mailbox's name.
    pub fn name(&self) -> &MailboxName {
        &self.name
    }

    /// The next message; `None` when the endpoint is shut down. Nothing is lost when the future is
    /// dropped.
    pub async fn recv(&mut self) -> Option<Incoming> {
        poll_fn(|context| {
            let mut state = self.queue.state();
            match state.pop() {
                Some(incoming) => Poll::Ready(Some(incoming)),
                None if state.closed => Poll::Ready(None),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next message, when there is one already.
    pub fn try_recv(&mut self) -> Option<Incoming> {
        self.queue.state().pop()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let mut queues = self.registry.queues.write().unwrap_or_else(PoisonError::into_inner);
        if queues.by_name.get(&self.name).is_some_and(|queue| Arc::ptr_eq(queue, &self.queue)) {
            queues.by_name.remove(&self.name);
        }
        drop(queues);
        let untaken = self.queue.close();
        for reply in untaken.into_iter().filter_map(|incoming| incoming.reply) {
            reply.refuse(Refused::UnknownMailbox);
        }
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mailbox({})", self.name)
    }
}

/// A received message. A call that is dropped without a reply is answered "unanswered".
#[derive(Debug)]
pub struct Incoming {
    /// The node that sent it, as its certificate says.
    pub from: NodeName,
    /// The message's number.
    pub type_number: u32,
    body: Body,
    reply: Option<ReplyHandle>,
}

impl Incoming {
    pub(crate) fn new(from: NodeName, type_number: u32, body: Body, reply: Option<ReplyHandle>) -> Incoming {
        Incoming { from, type_number, body, reply }
    }

    /// The message's bytes; they begin at a multiple of 16.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Whether the sender waits for an answer.
    pub fn is_call(&self) -> bool {
        self.reply.is_some()
    }

    /// The message as an `M`.
    ///
    /// # Errors
    /// When its number is another one, or its bytes are no `M`.
    pub fn decode<M: Message>(&self) -> Result<M, DecodeError> {
        if self.type_number != M::TYPE {
            return Err(DecodeError::OtherType { given: self.type_number, expected: M::TYPE });
        }
        message::decode(&self.body)
    }

    /// Answers a call; the answer to a cast goes nowhere. Never waits: where many large answers are on
    /// their way, [`Incoming::reply_waiting`] is the one to use.
    ///
    /// # Errors
    /// When the answer cannot be encoded, or the way back is full: the caller is told that it gets none. When
    /// the connection is gone, which the caller sees, too.
    pub fn reply<R: Wire>(self, answer: &R) -> Result<(), SendError> {
        self.reply.map_or(Ok(()), |reply| reply.reply(answer))
    }

    /// The same with bytes.
    ///
    /// # Errors
    /// As [`Incoming::reply`].
    pub fn reply_bytes(self, answer: &[u8]) -> Result<(), SendError> {
        self.reply.map_or(Ok(()), |reply| reply.reply_bytes(answer))
    }

    /// Answers a call, waiting while the way back is full; the answer to a cast goes nowhere.
    ///
    /// # Errors
    /// As [`Incoming::reply`], but for a way back that is full.
    pub async fn reply_waiting<R: Wire>(self, answer: &R) -> Result<(), SendError> {
        match self.reply {
            Some(reply) => reply.reply_waiting(answer).await,
            None => Ok(()),
        }
    }

    /// The same with bytes.
    ///
    /// # Errors
    /// As [`Incoming::reply_waiting`].
    pub async fn reply_bytes_waiting(self, answer: &[u8]) -> Result<(), SendError> {
        match self.reply {
            Some(reply) => reply.reply_bytes_waiting(answer).await,
            None => Ok(()),
        }
    }

    /// Sender, number, body and the way back, to be used apart.
    pub fn into_parts(self) -> (NodeName, u32, Body, Option<ReplyHandle>) {
        (self.from, self.type_number, self.body, self.reply)
    }
}

/// The way back to a caller. Dropping it unused tells the caller that nobody answers.
pub struct ReplyHandle {
    /// `None` once it was used.
    route: Option<Route>,
}

enum Route {
    Remote { outbox: Owed, lane: u64, call: u64 },
    Local { caller: oneshot::Sender<Answer>, node: NodeName },
}

/// What a caller gets.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Body),
    Refused(Refused),
    /// The request never left.
    NotSent,
    /// The connection is gone.
    Lost,
    /// Time is up.
    Expired,
}

impl ReplyHandle {
    pub(crate) fn remote(outbox: Arc<Outbox>, lane: u64, call: u64) -> ReplyHandle {
        ReplyHandle { route: Some(Route::Remote { outbox: Owed::new(outbox), lane, call }) }
    }

    pub(crate) fn local(node: NodeName, caller: oneshot::Sender<Answer>) -> ReplyHandle {
        ReplyHandle { route: Some(Route::Local { caller, node }) }
    }

    /// Answers the call. Never waits.
    ///
    /// # Errors
    /// As [`Incoming::reply`].
    pub fn reply<R: Wire>(self, answer: &R) -> Result<(), SendError> {
        self.answer(Kind::Reply, 0, |buffer| message::encode_into(answer, buffer))
    }

    /// The same with bytes.
    ///
    /// # Errors
    /// As [`Incoming::reply`].
    pub fn reply_bytes(self, answer: &[u8]) -> Result<(), SendError> {
        self.answer(Kind::Reply, 0, |buffer| {
            buffer.extend_from_slice(answer);
            Ok(())
        })
    }

    /// Answers the call, waiting while the way back is full. Dropping the future tells the caller that nobody
    /// answers.
    ///
    /// # Errors
    /// As [`Incoming::reply_waiting`].
    pub async fn reply_waiting<R: Wire>(self, answer: &R) -> Result<(), SendError> {
        self.answer_waiting(|buffer| message::encode_into(answer, buffer)).await
    }

    /// The same with bytes.
    ///
    /// # Errors
    /// As [`Incoming::reply_waiting`].
    pub async fn reply_bytes_waiting(self, answer: &[u8]) -> Result<(), SendError> {
        self.answer_waiting(|buffer| {
            buffer.extend_from_slice(answer);
            Ok(())
        })
        .await
    }

    async fn answer_waiting(
        mut self,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), SendError> {
        let Some(Route::Remote { outbox, lane, call }) = &self.route else {
            return self.answer(Kind::Reply, 0, encode);
        };
        let head = Head { kind: Kind::Reply, mailbox: "", type_number: 0, call: *call };
        match outbox.push_waiting(&head, Urgency::Answer { lane: *lane }, encode).await {
            Ok(()) => {
                self.route = None;
                Ok(())
            }
            Err(PushError::NoLane) => {
                let peer = outbox.peer().clone();
                self.route = None;
                Err(SendError::NotConnected { peer, last_error: None })
            }
            // Dropping the rest tells the caller.
            Err(PushError::Full) => Err(outbox.full()),
            Err(PushError::Refused(error)) => Err(error),
        }
    }

    /// Tells the caller why there is no answer.
    pub(crate) fn refuse(self, refused: Refused) {
        // A caller that cannot be told notices by its timeout.
        let _ = self.answer(Kind::Refused, refused as u32, |_| Ok(()));
    }

    fn answer(
        mut self,
        kind: Kind,
        type_number: u32,
        encode: impl FnOnce(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), SendError> {
        let Some(route) = self.route.take() else { return Ok(()) };
        match route {
            Route::Remote { outbox, lane, call } => {
                let head = Head { kind, mailbox: "", type_number, call };
                let urgency = match kind {
                    Kind::Refused => Urgency::Refusal { lane },
                    _ => Urgency::Answer { lane },
                };
                let pushed = outbox.push(&head, urgency, encode);
                let error = match pushed {
                    Ok(()) => return Ok(()),
                    Err(PushError::NoLane) => {
                        let peer = outbox.peer().clone();
                        return Err(SendError::NotConnected { peer, last_error: None });
                    }
                    Err(PushError::Full) => outbox.full(),
                    Err(PushError::Refused(error)) => error,
                };
                self.route = Some(Route::Remote { outbox, lane, call });
                Err(error)
            }
            Route::Local { caller, node } => {
                let mut buffer = AlignedVec::new();
                encode(&mut buffer)?;
                let answer = match kind {
                    Kind::Refused => Answer::Refused(Refused::from_number(type_number)),
                    _ => Answer::Reply(buffer.into()),
                };
                let gone = SendError::NotConnected { peer: node, last_error: None };
                caller.send(answer).map_err(|_| gone)
            }
        }
    }
}

impl Drop for ReplyHandle {
    fn drop(&mut self) {
        if let Some(route) = self.route.take() {
            ReplyHandle { route: Some(route) }.refuse_quietly();
        }
    }
}

impl ReplyHandle {
    /// For `drop`, which must not come back here when there is no room even for a refusal.
    fn refuse_quietly(mut self) {
        match self.route.take() {
            Some(Route::Remote { outbox, lane, call }) => {
                let type_number = Refused::Unanswered as u32;
                let head = Head { kind: Kind::Refused, mailbox: "", type_number, call };
                let _ = outbox.push(&head, Urgency::Refusal { lane }, |_| Ok(()));
            }
            Some(Route::Local { caller, .. }) => {
                let _ = caller.send(Answer::Refused(Refused::Unanswered));
            }
            None => {}
        }
    }
}

impl fmt::Debug for ReplyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyHandle")
    }
}

/// The mailboxes of an endpoint.
#[derive(Default)]
pub(crate) struct Registry {
    queues: RwLock<Queues>,
}

#[derive(Default)]
struct Queues {
    by_name: HashMap<MailboxName, Arc<Queue>>,
    /// No more are taken.
    closed: bool,
}

/// The mailboxes, held still for the deliveries of one batch.
pub(crate) struct Mailboxes<'a>(RwLockReadGuard<'a, Queues>);

impl Registry {
    pub(crate) fn register(self: &Arc<Self>, name: &str, capacity: usize) -> Result<Mailbox, MailboxError> {
        let name: MailboxName = name.parse()?;
        if capacity == 0 || capacity > MAX_MAILBOX_CAPACITY {
            return Err(MailboxError::Capacity { given: capacity, max: MAX_MAILBOX_CAPACITY });
        }
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        if queues.closed {
            return Err(MailboxError::ShutDown);
        }
        if queues.by_name.contains_key(&name) {
            return Err(MailboxError::Exists { name: name.to_string() });
        }
        let queue = Arc::new(Queue { capacity, state: Mutex::default() });
        queues.by_name.insert(name.clone(), queue.clone());
        Ok(Mailbox { name, queue, registry: self.clone() })
    }

    pub(crate) fn mailboxes(&self) -> Mailboxes<'_> {
        Mailboxes(self.queues.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// No mailbox receives any more, and none is made. What was received is still to be taken, but for calls,
    /// which nobody can answer any more.
    pub(crate) fn close(&self) {
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        queues.closed = true;
        let calls: Vec<_> = queues.by_name.values().flat_map(|queue| queue.end()).collect();
        drop(queues);
        drop(calls);
    }
}

impl Mailboxes<'_> {
    /// Puts a message into its mailbox, and makes it only when it is taken; gives whom to wake, or why not.
    pub(crate) fn deliver(&self, mailbox: &str, incoming: impl FnOnce() -> Incoming) -> Result<Option<Waker>, Refused> {
        let Some(queue) = self.0.by_name.get(mailbox) else {
            return Err(Refused::UnknownMailbox);
        };
        let mut state = queue.state();
        if state.closed {
            return Err(Refused::UnknownMailbox);
        }
        let full = state.incoming.len() >= queue.capacity || state.bytes >= MAX_MAILBOX_BYTES;
        if full {
            return Err(Refused::MailboxFull);
        }
        let incoming = incoming();
        state.bytes += incoming.body.len();
        state.incoming.push_back(incoming);
        Ok(state.waker.take())
    }
}

struct Queue {
    capacity: usize,
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    incoming: VecDeque<Incoming>,
    /// The sum of the bodies.
    bytes: usize,
    waker: Option<Waker>,
    closed: bool,
}

impl Queue {
    /// Takes no more; gives the calls back.
    fn end(&self) -> VecDeque<Incoming> {
        let mut state = self.state();
        state.closed = true;
        let untaken = std::mem::take(&mut state.incoming).into_iter();
        let (calls, messages): (VecDeque<_>, VecDeque<_>) = untaken.partition(Incoming::is_call);
        state.bytes = messages.iter().map(|incoming| incoming.body.len()).sum();
        state.incoming = messages;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        calls
    }

    /// Takes no more; gives everything back.
    fn close(&self) -> VecDeque<Incoming> {
        let mut state = self.state();
        state.closed = true;
        state.bytes = 0;
        let untaken = std::mem::take(&mut state.incoming);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        untaken
    }

    /// Nothing panics under this lock.
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    fn pop(&mut self) -> Option<Incoming> {
        let incoming = self.incoming.pop_front()?;
        self.bytes -= incoming.body.len();
        Some(incoming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast(body: &[u8]) -> Incoming {
        Incoming::new("n1".parse().unwrap(), 1, Body::copy_from(body), None)
    }

    #[test]
    fn a_mailbox_takes_what_it_can_hold_and_refuses_the_rest() {
        let registry = Arc::new(Registry::default());
        let mut mailbox = registry.register("a", 2).unwrap();
        assert!(matches!(registry.register("a", 2), Err(MailboxError::Exists { .. })));
        assert!(matches!(registry.register("b", 0), Err(MailboxError::Capacity { .. })));
        for n in 0..2 {
            assert!(registry.mailboxes().deliver("a", || cast(&[n])).is_ok());
        }
        let refused = registry.mailboxes().deliver("a", || panic!("nobody takes it")).unwrap_err();
        assert_eq!(refused, Refused::MailboxFull);
        assert_eq!(mailbox.try_recv().unwrap().body(), [0]);
        assert!(registry.mailboxes().deliver("a", || cast(b"x")).is_ok());
        drop(mailbox);
        let refused = registry.mailboxes().deliver("a", || cast(b"x")).unwrap_err();
        assert_eq!(refused, Refused::UnknownMailbox);
        assert!(registry.register("a", 1).is_ok());
    }

    #[test]
    fn a_mailbox_is_not_made_after_the_end_when_nobody_would_end_it() {
        let registry = Arc::new(Registry::default());
        registry.close();
        assert!(matches!(registry.register("late", 1), Err(MailboxError::ShutDown)));
    }

    #[test]
    fn calls_that_nobody_took_are_answered_when_the_mailbox_goes() {
        let registry = Arc::new(Registry::default());
        let mailbox = registry.register("a", 2).unwrap();
        let node: NodeName = "n1".parse().unwrap();
        let (sender, mut receiver) = oneshot::channel();
        let reply = ReplyHandle::local(node.clone(), sender);
        let call = Incoming::new(node.clone(), 1, Body::default(), Some(reply));
        registry.mailboxes().deliver("a", || call).unwrap();
        drop(mailbox);
        let answer = receiver.try_recv().unwrap();
        assert!(matches!(answer, Answer::Refused(Refused::UnknownMailbox)));
        let (sender, mut receiver) = oneshot::channel();
        drop(ReplyHandle::local(node, sender));
        let answer = receiver.try_recv().unwrap();
        assert!(matches!(answer, Answer::Refused(Refused::Unanswered)));
    }
}
