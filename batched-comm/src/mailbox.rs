//! Named receivers with bounded queues, and delivery into them.
//!
//! Delivery never waits: a full mailbox refuses, so that one slow receiver does not hold up the lane that
//! everybody shares. Answers do not pass through here at all.

mod queue;
mod reply;

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll};

use crate::error::{DecodeError, EncodeError, MailboxError, SendError};
use crate::frame::Refused;
use crate::message::{self, Body, Message, Request, Wire};
use crate::name::{MailboxName, NodeName};

pub(crate) use queue::{Arrived, Gathered, Run};
use queue::{Queue, Taken};
pub(crate) use reply::Answer;
pub use reply::ReplyHandle;

/// A mailbox's capacity is at most this.
pub const MAX_MAILBOX_CAPACITY: usize = 1 << 20;

/// A mailbox whose messages have this many bytes is full, whatever its capacity; each counts as 256 more than its body.
pub const MAX_MAILBOX_BYTES: usize = 64 * 1024 * 1024;

/// Receives the messages that are sent to its name. Dropping it gives the name back; calls that nobody
/// took are answered as if it had never been there.
pub struct Mailbox {
    name: MailboxName,
    queue: Arc<Queue>,
    taken: Taken,
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
        // Who takes message after message would otherwise keep all others off its thread.
        tokio::task::consume_budget().await;
        poll_fn(|context| self.poll(context)).await
    }

    /// As many as there are, up to `limit`, behind what is in `buffer` already; waits for the first. What comes
    /// meanwhile is left for the next time, so that the mailbox's capacity bounds what is received at once. Answers
    /// how many: zero when the endpoint is shut down, or `limit` is zero. Nothing is lost when the future is dropped.
    pub async fn recv_many(&mut self, buffer: &mut Vec<Incoming>, limit: usize) -> usize {
        if limit == 0 {
            return 0;
        }
        let mut may_look = !self.taken.is_empty();
        let Some(first) = self.recv().await else { return 0 };
        buffer.push(first);
        let mut count = 1;
        while count < limit {
            let next = match self.next_taken() {
                // The rest of what was taken before is no look into the queue.
                None if may_look => {
                    may_look = false;
                    self.try_recv()
                }
                next => next,
            };
            let Some(next) = next else { break };
            buffer.push(next);
            count += 1;
        }
        count
    }

    /// The next message, when there is one already.
    pub fn try_recv(&mut self) -> Option<Incoming> {
        self.next_taken().or_else(|| {
            self.taken.take(&self.queue, None);
            self.next_taken()
        })
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        loop {
            if let Some(incoming) = self.next_taken() {
                return Poll::Ready(Some(incoming));
            }
            let is_closed = self.taken.take(&self.queue, Some(context.waker()));
            if self.taken.is_empty() {
                return if is_closed { Poll::Ready(None) } else { Poll::Pending };
            }
        }
    }

    fn next_taken(&mut self) -> Option<Incoming> {
        let (from, Arrived { type_number, body, reply }) = self.taken.next(&self.queue)?;
        Some(Incoming { from, type_number, body, reply })
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let mut queues = self.registry.queues.write().unwrap_or_else(PoisonError::into_inner);
        if queues.by_name.get(&self.name).is_some_and(|queue| Arc::ptr_eq(queue, &self.queue)) {
            queues.by_name.remove(&self.name);
        }
        drop(queues);
        self.taken.close(&self.queue);
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

    /// Answers a call by an `R` with what its caller expects; the answer to a cast goes nowhere. Never waits: where
    /// many large answers are on their way, [`Incoming::answer_waiting`] is the one to use. A
    /// [`TypedMailbox`](crate::TypedMailbox) needs no `R` to be named.
    ///
    /// # Errors
    /// As [`Incoming::reply`]; and when the message's number is not that of an `R`: the caller is told that it gets
    /// none.
    pub fn answer<R: Request>(self, answer: &R::Reply) -> Result<(), SendError> {
        self.is_answered_as::<R>()?;
        self.reply(answer)
    }

    /// The same, waiting while the way back is full.
    ///
    /// # Errors
    /// As [`Incoming::answer`], but for a way back that is full.
    pub async fn answer_waiting<R: Request>(self, answer: &R::Reply) -> Result<(), SendError> {
        self.is_answered_as::<R>()?;
        self.reply_waiting(answer).await
    }

    fn is_answered_as<R: Request>(&self) -> Result<(), SendError> {
        if self.type_number == R::TYPE {
            return Ok(());
        }
        let reason = format!("it answers messages of type {}, and this one is of type {}", R::TYPE, self.type_number);
        Err(EncodeError { reason }.into())
    }

    /// Answers a call with any value; the answer to a cast goes nowhere. An answer carries no number: where the caller
    /// expects another type, it gets an error or, where the bytes happen to fit, another value. So
    /// [`Incoming::answer`] is what answers a [`Request`]. Never waits.
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
        let queue = Arc::new(Queue::new(capacity));
        queues.by_name.insert(name.clone(), queue.clone());
        Ok(Mailbox { name, queue, taken: Taken::default(), registry: self.clone() })
    }

    pub(crate) fn mailboxes(&self) -> Mailboxes<'_> {
        Mailboxes(self.queues.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// No mailbox receives any more, and none is made. What was received is still to be taken, but for calls,
    /// which nobody can answer any more.
    pub(crate) fn close(&self) {
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        queues.closed = true;
        let ending: Vec<_> = queues.by_name.values().cloned().collect();
        drop(queues);
        ending.iter().for_each(|queue| queue.end());
    }
}

impl Mailboxes<'_> {
    /// Puts a message into its mailbox, and makes it only when it is taken; says why not.
    pub(crate) fn deliver(
        &self,
        mailbox: &str,
        from: &NodeName,
        arrived: impl FnOnce() -> Arrived,
    ) -> Result<(), Refused> {
        let mut gathered = Gathered::default();
        let mut run = self.run(mailbox, from);
        run.push(&mut gathered, arrived)?;
        let refused = run.deliver(&mut gathered);
        gathered.wake();
        refused.map_or(Ok(()), |(refused, _)| Err(refused))
    }

    /// Messages from one node to one mailbox that are to be delivered together.
    pub(crate) fn run<'a>(&'a self, mailbox: &'a str, from: &'a NodeName) -> Run<'a> {
        Run::new(mailbox, from, self.0.by_name.get(mailbox).map(|queue| &**queue))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    fn cast(body: &[u8]) -> Arrived {
        Arrived { type_number: 1, body: Body::copy_from(body), reply: None }
    }

    fn n1() -> NodeName {
        "n1".parse().unwrap()
    }

    #[test]
    fn a_mailbox_takes_what_it_can_hold_and_refuses_the_rest() {
        let registry = Arc::new(Registry::default());
        let mut mailbox = registry.register("a", 2).unwrap();
        assert!(matches!(registry.register("a", 2), Err(MailboxError::Exists { .. })));
        assert!(matches!(registry.register("b", 0), Err(MailboxError::Capacity { .. })));
        for n in 0..2 {
            assert!(registry.mailboxes().deliver("a", &n1(), || cast(&[n])).is_ok());
        }
        let refused = registry.mailboxes().deliver("a", &n1(), || panic!("nobody takes it")).unwrap_err();
        assert_eq!(refused, Refused::MailboxFull);
        assert_eq!(mailbox.try_recv().unwrap().body(), [0]);
        assert!(registry.mailboxes().deliver("a", &n1(), || cast(b"x")).is_ok());
        drop(mailbox);
        let refused = registry.mailboxes().deliver("a", &n1(), || cast(b"x")).unwrap_err();
        assert_eq!(refused, Refused::UnknownMailbox);
        assert!(registry.register("a", 1).is_ok());
    }

    #[test]
    fn messages_that_were_taken_together_count_until_each_is_received() {
        let registry = Arc::new(Registry::default());
        let mut mailbox = registry.register("a", 3).unwrap();
        let deliver = |n| registry.mailboxes().deliver("a", &n1(), || cast(&[n]));
        assert!((0..3).all(|n| deliver(n).is_ok()));
        for n in 0..10 {
            assert_eq!(deliver(99), Err(Refused::MailboxFull));
            assert_eq!(mailbox.try_recv().unwrap().body(), [n]);
            assert_eq!(deliver(n + 3), Ok(()));
        }
    }

    #[test]
    fn a_run_delivers_what_there_is_room_for_and_refuses_the_rest_in_order() {
        let registry = Arc::new(Registry::default());
        let mut mailbox = registry.register("a", 2).unwrap();
        let mailboxes = registry.mailboxes();
        let from = n1();
        let (mut run, mut others) = (mailboxes.run("a", &from), mailboxes.run("a", &from));
        let (mut gathered, mut gathered_by_others) = (Gathered::default(), Gathered::default());
        assert_eq!(run.push(&mut gathered, || cast(b"1")), Ok(()));
        assert_eq!(run.push(&mut gathered, || cast(b"2")), Ok(()));
        assert_eq!(run.push(&mut gathered, || panic!("there is no room")), Err(Refused::MailboxFull));
        assert_eq!(others.push(&mut gathered_by_others, || cast(b"other")), Ok(()));
        assert_eq!(others.deliver(&mut gathered_by_others), None);
        assert_eq!(run.deliver(&mut gathered), Some((Refused::MailboxFull, 1)));
        let received: Vec<_> = std::iter::from_fn(|| mailbox.try_recv()).map(|m| m.body().to_vec()).collect();
        assert_eq!(received, [b"other".to_vec(), b"1".to_vec()]);
        assert_eq!(mailboxes.run("none", &from).push(&mut gathered, || cast(b"")), Err(Refused::UnknownMailbox));
    }

    #[test]
    fn messages_without_a_body_have_a_bound_in_bytes_too() {
        let registry = Arc::new(Registry::default());
        let mut mailbox = registry.register("a", MAX_MAILBOX_CAPACITY).unwrap();
        let mailboxes = registry.mailboxes();
        let from = n1();
        let count =
            (0..MAX_MAILBOX_CAPACITY).take_while(|_| mailboxes.deliver("a", &from, || cast(b"")).is_ok()).count();
        assert_eq!(count, MAX_MAILBOX_BYTES / 256);
        assert!(mailbox.try_recv().is_some() && mailboxes.deliver("a", &from, || cast(b"")).is_ok());
    }

    #[tokio::test]
    async fn many_are_received_at_once_in_order() {
        let registry = Arc::new(Registry::default());
        let mut mailbox = registry.register("a", 10).unwrap();
        assert!((0..7).all(|n| registry.mailboxes().deliver("a", &n1(), || cast(&[n])).is_ok()));
        let mut buffer = Vec::new();
        assert_eq!(mailbox.recv_many(&mut buffer, 0).await, 0);
        assert_eq!(mailbox.recv_many(&mut buffer, 5).await, 5);
        assert_eq!(mailbox.recv_many(&mut buffer, 5).await, 2);
        assert_eq!(buffer.iter().map(|m| m.body()[0]).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
        registry.close();
        assert_eq!(mailbox.recv_many(&mut buffer, 5).await, 0);
    }

    #[test]
    fn who_receives_many_at_once_is_not_held_by_those_who_go_on_sending() {
        let registry = Arc::new(Registry::default());
        let mut mailbox = registry.register("a", 4).unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        let _ = registry.mailboxes().deliver("a", &n1(), || cast(b"x"));
                    }
                });
            }
            let (mut most, mut rounds) = (0, 0);
            while rounds < 2000 {
                let mut buffer = Vec::new();
                let receiving = async {
                    // Sometimes, something was taken before.
                    let first = usize::from(mailbox.recv().await.is_some());
                    first + mailbox.recv_many(&mut buffer, usize::MAX).await
                };
                match receiving.now_or_never() {
                    Some(count) => (most, rounds) = (most.max(count), rounds + 1),
                    None => std::thread::yield_now(),
                }
            }
            is_done.store(true, Ordering::Relaxed);
            assert!((2..=8).contains(&most), "{most} from a mailbox of 4, looked into twice");
        });
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
        let reply = ReplyHandle::local(node.clone(), sender, 100);
        let call = Arrived { type_number: 1, body: Body::default(), reply: Some(reply) };
        assert!(registry.mailboxes().deliver("a", &n1(), || call).is_ok());
        drop(mailbox);
        let answer = receiver.try_recv().unwrap();
        assert!(matches!(answer, Answer::Refused(Refused::UnknownMailbox)));
        let (sender, mut receiver) = oneshot::channel();
        drop(ReplyHandle::local(node, sender, 100));
        let answer = receiver.try_recv().unwrap();
        assert!(matches!(answer, Answer::Refused(Refused::Unanswered)));
    }
}
