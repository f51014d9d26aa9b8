//! What a lane's reader does with batches: messages to mailboxes, answers to callers.
//!
//! Messages of a batch that go to one mailbox, one behind the other, are delivered together, and so are all
//! answers: each of them takes a lock once.

use std::sync::Arc;

use super::Peer;
use crate::calls::Delivered;
use crate::compression::Unpacker;
use crate::config::{Compression, MAX_BATCH_MESSAGES};
use crate::error::FrameError;
use crate::frame::{self, BATCH_HEADER_BYTES, Frame, Frames, Kind, MAX_JOINED_NAMES, Refused};
use crate::mailbox::{Answer, Arrived, Gathered, Mailboxes, Registry, ReplyHandle, Run};
use crate::message::Body;
use crate::stats::DropReason;

/// Others have a turn after as many bytes were unpacked: a few bytes can stand for very many.
const TURN_BYTES: usize = 1024 * 1024;
/// And after as many messages, at the end of the batch.
const TURN_DELIVERIES: usize = 16 * 1024;
/// What the messages of a batch may be, those to several mailboxes counted as several: some 10 ms of work.
const MAX_BATCH_DELIVERIES: usize = MAX_BATCH_MESSAGES as usize + MAX_JOINED_NAMES;
/// Answers that are handed to their callers together.
const MAX_GATHERED_ANSWERS: usize = 1024;

pub(super) struct Delivery {
    peer: Arc<Peer>,
    registry: Arc<Registry>,
    lane: u64,
    /// Messages to one mailbox, and the answers of one batch; both kept for their memory.
    gathered: Gathered,
    answers: Vec<(u64, Answer)>,
    /// Messages since the last turn of others; those to several mailboxes are several.
    deliveries: usize,
}

/// How far a delivery came.
pub(super) struct Progress {
    /// Of the bytes that were given.
    pub(super) bytes: usize,
    /// To let others have a turn: there may be more.
    pub(super) interrupted: bool,
}

impl Delivery {
    pub(super) fn new(peer: Arc<Peer>, registry: Arc<Registry>, lane: u64) -> Delivery {
        Delivery { peer, registry, lane, gathered: Gathered::default(), answers: Vec::new(), deliveries: 0 }
    }

    /// Delivers the complete batches in `bytes`, until it is the turn of others.
    pub(super) fn deliver(&mut self, bytes: &[u8], unpacker: &mut Unpacker) -> Result<Progress, FrameError> {
        let mut consumed = 0;
        let mut unpacked_bytes = 0;
        self.deliveries = 0;
        while let Some(batch) = frame::next_batch(&bytes[consumed..])? {
            let delivered = self.deliver_batch(batch.frames(unpacker)?);
            self.answer_calls();
            delivered?;
            let raw_bytes = BATCH_HEADER_BYTES + batch.raw_bytes;
            self.peer.stats.received(u64::from(batch.messages), raw_bytes as u64, batch.total_bytes as u64);
            consumed += batch.total_bytes;
            if batch.compression != Compression::None {
                unpacked_bytes += batch.raw_bytes;
            }
            if unpacked_bytes >= TURN_BYTES || self.deliveries >= TURN_DELIVERIES {
                return Ok(Progress { bytes: consumed, interrupted: true });
            }
        }
        Ok(Progress { bytes: consumed, interrupted: false })
    }

    /// What came before a frame that is none is delivered all the same.
    fn deliver_batch(&mut self, frames: Frames<'_>) -> Result<(), FrameError> {
        let (registry, peer) = (self.registry.clone(), self.peer.clone());
        let mailboxes = registry.mailboxes();
        let mut run = mailboxes.run("", &peer.name);
        let mut result = Ok(());
        let before = self.deliveries;
        for frame in frames {
            result = frame.and_then(|frame| self.deliver_frame(&mailboxes, &mut run, &frame));
            if result.is_ok() && self.deliveries - before > MAX_BATCH_DELIVERIES {
                result = Err(FrameError::Shape("messages to more mailboxes than a batch may have messages"));
            }
            if result.is_err() {
                break;
            }
            if self.answers.len() >= MAX_GATHERED_ANSWERS {
                self.answer_calls();
            }
        }
        self.end(&mut run);
        self.gathered.wake();
        result
    }

    fn deliver_frame<'a>(
        &mut self,
        mailboxes: &'a Mailboxes<'_>,
        run: &mut Run<'a>,
        frame: &Frame<'a>,
    ) -> Result<(), FrameError> {
        let head = frame.head;
        self.deliveries += 1;
        match head.kind {
            Kind::Reply => self.answers.push((head.call, Answer::Reply(Body::copy_from(frame.body)))),
            Kind::Refused => {
                let refused = Refused::from_number(head.type_number);
                self.answers.push((head.call, Answer::Refused(refused)));
            }
            Kind::Cluster => {
                // The driver compares it.
                self.peer.status().cluster = Some(frame::cluster_in(frame.body)?);
                self.peer.sooner.notify_one();
            }
            Kind::Cast => self.gather(mailboxes, run, head.mailbox, frame, None),
            Kind::CastMany => {
                for mailbox in head.mailbox.split(frame::MAILBOX_SEPARATOR) {
                    self.deliveries += 1;
                    self.gather(mailboxes, run, mailbox, frame, None);
                }
            }
            Kind::Call => self.gather(mailboxes, run, head.mailbox, frame, Some(head.call)),
        }
        Ok(())
    }

    /// Adds a message to those that go to the same mailbox.
    fn gather<'a>(
        &mut self,
        mailboxes: &'a Mailboxes<'_>,
        run: &mut Run<'a>,
        mailbox: &'a str,
        frame: &Frame<'_>,
        call: Option<u64>,
    ) {
        if run.mailbox() != mailbox {
            self.end(run);
            self.gathered.wake();
            *run = mailboxes.run(mailbox, run.from());
        } else if self.gathered.is_full() {
            self.end(run);
        }
        let (peer, lane) = (&self.peer, self.lane);
        let reply = || call.map(|call| ReplyHandle::remote(peer.outbox.clone(), lane, call));
        let arrived = || {
            let body = Body::copy_from(frame.body);
            Arrived { type_number: frame.head.type_number, body, reply: reply() }
        };
        if let Err(refused) = run.push(&mut self.gathered, arrived) {
            reply().into_iter().for_each(|reply| reply.refuse(refused));
            self.peer.stats.dropped(drop_reason(refused), 1);
        }
    }

    /// Delivers what was gathered, and wakes nobody yet.
    fn end(&mut self, run: &mut Run<'_>) {
        if let Some((refused, count)) = run.deliver(&mut self.gathered) {
            self.peer.stats.dropped(drop_reason(refused), count);
        }
    }

    /// Hands the answers of a batch to their callers, under one lock.
    fn answer_calls(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let mut late = 0;
        let mut wakers = Vec::with_capacity(self.answers.len());
        let mut calls = self.peer.calls();
        for (call, answer) in self.answers.drain(..) {
            match calls.answer(call, answer) {
                Delivered::To(waker) => wakers.extend(waker),
                Delivered::Late => late += 1,
            }
        }
        drop(calls);
        wakers.into_iter().for_each(std::task::Waker::wake);
        self.peer.stats.dropped(DropReason::LateReply, late);
    }
}

fn drop_reason(refused: Refused) -> DropReason {
    match refused {
        Refused::MailboxFull => DropReason::MailboxFull,
        Refused::NotUnderstood => DropReason::Unsendable,
        Refused::UnknownMailbox | Refused::Unanswered => DropReason::UnknownMailbox,
    }
}
