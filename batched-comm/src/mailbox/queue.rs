//! The queue of a mailbox: filled by lanes a run of messages at a time, emptied by its receiver all at once.
//!
//! Messages stand in chunks, of one sender each, which change hands as they are: between the lane and who receives
//! a message, it is moved twice, and counts that two threads share are touched per chunk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::MAX_MAILBOX_BYTES;
use super::reply::ReplyHandle;
use crate::frame::Refused;
use crate::message::Body;
use crate::name::NodeName;

/// What a message costs besides its body: its place in a chunk, which may be the only one that is used.
const MESSAGE_BYTES: usize = 256;
/// A chunk has at most as many: it costs some 20 KiB, which an allocator has at hand.
const MAX_CHUNK_MESSAGES: usize = 128;
/// Emptied chunks that are kept for their memory.
const MAX_SPARE_CHUNKS: usize = 16;

/// A message that has arrived; who sent it is said of its chunk.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) type_number: u32,
    pub(crate) body: Body,
    pub(crate) reply: Option<ReplyHandle>,
}

type Messages = VecDeque<Arrived>;

/// Messages of one sender, in order.
struct Chunk {
    from: NodeName,
    messages: Messages,
}

impl Arrived {
    /// What it costs a queue.
    fn bytes(&self) -> usize {
        self.body.len() + MESSAGE_BYTES
    }
}

/// What a queue can take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Room {
    messages: usize,
    /// A queue takes one message more as long as there is a byte of room.
    bytes: usize,
}

impl Room {
    fn is_none(self) -> bool {
        self.messages == 0 || self.bytes == 0
    }

    fn less(self, bytes: usize) -> Room {
        Room { messages: self.messages.saturating_sub(1), bytes: self.bytes.saturating_sub(bytes) }
    }
}

/// Messages of a batch that go to one mailbox, one behind the other: the mailbox is looked up once, and locked
/// once for each chunk.
pub(crate) struct Run<'a> {
    mailbox: &'a str,
    from: &'a NodeName,
    queue: Option<&'a Queue>,
    /// As last seen, less what was gathered since.
    room: Room,
}

impl<'a> Run<'a> {
    pub(super) fn new(mailbox: &'a str, from: &'a NodeName, queue: Option<&'a Queue>) -> Run<'a> {
        Run { mailbox, from, queue, room: Room::default() }
    }

    pub(crate) fn mailbox(&self) -> &'a str {
        self.mailbox
    }

    pub(crate) fn from(&self) -> &'a NodeName {
        self.from
    }

    /// Adds a message to those that are gathered, and makes it only when there seems to be room for it; says why not.
    pub(crate) fn push(&mut self, gathered: &mut Gathered, arrived: impl FnOnce() -> Arrived) -> Result<(), Refused> {
        let Some(queue) = self.queue else { return Err(Refused::UnknownMailbox) };
        if self.room.is_none() {
            self.room = queue.room(&gathered.messages)?;
        }
        let arrived = arrived();
        self.room = self.room.less(arrived.bytes());
        gathered.messages.push_back(arrived);
        Ok(())
    }

    /// Delivers all that were gathered, in order; its receiver is woken by [`Gathered::wake`]. Others may have taken the room meanwhile: calls for which there
    /// is none are refused, and the result says why and how many messages it was.
    pub(crate) fn deliver(&mut self, gathered: &mut Gathered) -> Option<(Refused, u64)> {
        self.room = Room::default();
        let messages = &mut gathered.messages;
        let queue = self.queue.filter(|_| !messages.is_empty())?;
        let mut state = queue.state();
        let mut room = queue.room_in(&state);
        let (mut count, mut bytes) = (0, 0);
        for arrived in messages.iter() {
            if room.is_none() || state.closed {
                break;
            }
            room = room.less(arrived.bytes());
            bytes += arrived.bytes();
            count += 1;
        }
        let refused = if state.closed { Refused::UnknownMailbox } else { Refused::MailboxFull };
        let mut untaken = messages.split_off(count);
        if count > 0 {
            match state.chunks.back_mut() {
                // So that messages that come one by one fill their chunks, too.
                Some(last) if last.from == *self.from && last.messages.len() + count <= MAX_CHUNK_MESSAGES => {
                    last.messages.append(messages);
                }
                _ => {
                    let spare = state.spares.pop().unwrap_or_default();
                    let messages = std::mem::replace(messages, spare);
                    state.chunks.push_back(Chunk { from: self.from.clone(), messages });
                }
            }
            state.messages += count;
            state.bytes += bytes;
            if let Some(waker) = state.waker.take() {
                gathered.waker = Some(waker);
            }
        }
        drop(state);
        let refusals = untaken.len() as u64;
        for reply in untaken.drain(..).filter_map(|arrived| arrived.reply) {
            reply.refuse(refused);
        }
        (refusals > 0).then_some((refused, refusals))
    }
}

/// Messages on their way into a queue.
#[derive(Default)]
pub(crate) struct Gathered {
    messages: Messages,
    /// Of who receives what was delivered.
    waker: Option<Waker>,
}

impl Gathered {
    /// It is time to deliver them.
    pub(crate) fn is_full(&self) -> bool {
        self.messages.len() >= MAX_CHUNK_MESSAGES
    }

    /// Wakes who receives what was delivered: once, after the last of a batch, since a receiver that finds little
    /// to do and sleeps again costs more than the messages.
    pub(crate) fn wake(&mut self) {
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}

/// A mailbox as lanes see it.
pub(super) struct Queue {
    capacity: usize,
    state: Mutex<State>,
    /// What the receiver has taken from the queue and not yet given to anybody; it alone writes these.
    taken: AtomicUsize,
    taken_bytes: AtomicUsize,
    /// No more is taken, and there is no way back to callers.
    has_ended: AtomicBool,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    messages: usize,
    /// The sum of the bodies.
    bytes: usize,
    spares: Vec<Messages>,
    waker: Option<Waker>,
    closed: bool,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Queue {
        Queue {
            capacity,
            state: Mutex::default(),
            taken: AtomicUsize::new(0),
            taken_bytes: AtomicUsize::new(0),
            has_ended: AtomicBool::new(false),
        }
    }

    /// Takes no more, and keeps nobody waiting; calls that were not received end here.
    pub(super) fn end(&self) {
        let mut state = self.state();
        self.has_ended.store(true, Relaxed);
        state.closed = true;
        let mut calls = Vec::new();
        for chunk in &mut state.chunks {
            let all = std::mem::take(&mut chunk.messages).into_iter();
            let (ended, kept): (Messages, Messages) = all.partition(|arrived| arrived.reply.is_some());
            chunk.messages = kept;
            calls.push(ended);
        }
        state.messages = state.chunks.iter().map(|chunk| chunk.messages.len()).sum();
        state.bytes = state.chunks.iter().flat_map(|chunk| &chunk.messages).map(Arrived::bytes).sum();
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    fn set_taken(&self, messages: usize, bytes: usize) {
        self.taken.store(messages, Relaxed);
        self.taken_bytes.store(bytes, Relaxed);
    }

    /// What there is room for behind those that are gathered.
    fn room(&self, gathered: &Messages) -> Result<Room, Refused> {
        let state = self.state();
        if state.closed {
            return Err(Refused::UnknownMailbox);
        }
        let room = gathered.iter().fold(self.room_in(&state), |room, arrived| room.less(arrived.bytes()));
        if room.is_none() { Err(Refused::MailboxFull) } else { Ok(room) }
    }

    /// Messages that are received meanwhile make it more, never less.
    fn room_in(&self, state: &State) -> Room {
        Room {
            messages: self.capacity.saturating_sub(state.messages + self.taken.load(Relaxed)),
            bytes: MAX_MAILBOX_BYTES.saturating_sub(state.bytes + self.taken_bytes.load(Relaxed)),
        }
    }

    /// Nothing panics under this lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a receiver has taken from its queue together, and gives out one by one without the queue's lock.
#[derive(Default)]
pub(super) struct Taken {
    chunks: VecDeque<Chunk>,
    messages: usize,
    bytes: usize,
    emptied: Vec<Messages>,
}

impl Taken {
    pub(super) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Takes all that is in the queue; it counts until it is given out. `waker` is woken when there was nothing
    /// and something comes. Answers whether the queue is closed.
    pub(super) fn take(&mut self, queue: &Queue, waker: Option<&Waker>) -> bool {
        let mut state = queue.state();
        std::mem::swap(&mut self.chunks, &mut state.chunks);
        (self.messages, self.bytes) = (std::mem::take(&mut state.messages), std::mem::take(&mut state.bytes));
        queue.set_taken(self.messages, self.bytes);
        let room = MAX_SPARE_CHUNKS.saturating_sub(state.spares.len()).min(self.emptied.len());
        state.spares.extend(self.emptied.drain(..room));
        if let Some(waker) = waker.filter(|_| self.messages == 0) {
            match &mut state.waker {
                Some(waiting) => waiting.clone_from(waker),
                None => state.waker = Some(waker.clone()),
            }
        }
        state.closed
    }

    /// The next message, and who sent it.
    pub(super) fn next(&mut self, queue: &Queue) -> Option<(NodeName, Arrived)> {
        loop {
            let chunk = self.chunks.front_mut()?;
            let Some(arrived) = chunk.messages.pop_front() else {
                let emptied = self.chunks.pop_front().map(|chunk| chunk.messages);
                let room = MAX_SPARE_CHUNKS.saturating_sub(self.emptied.len());
                self.emptied.extend(emptied.into_iter().take(room));
                continue;
            };
            self.messages -= 1;
            self.bytes -= arrived.bytes();
            queue.set_taken(self.messages, self.bytes);
            // After the end, nobody can answer a call.
            if arrived.reply.is_none() || !queue.has_ended.load(Relaxed) {
                return Some((chunk.from.clone(), arrived));
            }
        }
    }

    /// The receiver goes: the queue takes no more, and callers that were not received are told so.
    pub(super) fn close(&mut self, queue: &Queue) {
        let mut state = queue.state();
        state.closed = true;
        (state.messages, state.bytes) = (0, 0);
        let untaken = std::mem::take(&mut state.chunks);
        drop(state);
        let chunks = std::mem::take(&mut self.chunks).into_iter().chain(untaken);
        for reply in chunks.flat_map(|chunk| chunk.messages).filter_map(|arrived| arrived.reply) {
            reply.refuse(Refused::UnknownMailbox);
        }
    }
}
