//! Gathers frames into batches, in one buffer that is sent as it is.
//!
//! The buffer always holds complete batches: every push brings the header of the last one up to date.
//! Taking them is therefore a swap of two buffers, and nothing is copied or walked.

use rkyv::util::AlignedVec;

use crate::compression::Unpacker;
use crate::config::{Batching, Compression};
use crate::error::EncodeError;
use crate::frame::{self, ALIGNMENT, BATCH_HEADER_BYTES, Head, Kind};

/// A buffer that grew beyond this is given back to the system once it is empty.
const MAX_IDLE_BUFFER_BYTES: usize = 2 * 1024 * 1024;

/// Frames on their way into batches.
#[derive(Default)]
pub(crate) struct Batcher {
    buffer: AlignedVec,
    /// What follows is what a push that panicked left behind.
    complete_bytes: usize,
    /// Where the last batch begins; it can take more frames while `open`.
    last_start: usize,
    last_messages: u32,
    /// Messages to several mailboxes counted as several.
    last_deliveries: u32,
    open: bool,
    messages: u64,
    batches: u64,
}

/// Batches that left the batcher.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(crate) buffer: AlignedVec,
    pub(crate) messages: u64,
    pub(crate) batches: u64,
    /// What was set when they were taken; they are not compressed yet.
    pub(crate) compression: Compression,
}

/// What a push did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// The batcher was empty before: somebody has to be woken.
    pub(crate) first: bool,
    /// The push closed a batch: there is no use in waiting for more.
    pub(crate) closed: bool,
}

/// Why a frame was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    TooLarge { given_bytes: usize },
    Encode(EncodeError),
}

impl Batcher {
    /// The bytes that wait.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.complete_bytes
    }

    /// The messages that wait.
    pub(crate) fn queued_messages(&self) -> u64 {
        self.messages
    }

    /// Adds a frame whose body `encode` appends. When it is refused, nothing has changed.
    pub(crate) fn push(
        &mut self,
        head: &Head<'_>,
        limits: &Batching,
        max_message_bytes: usize,
        encode: impl FnOnce(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<Pushed, Rejected> {
        let end = self.complete_bytes;
        self.buffer.resize(end, 0);
        if !self.open {
            self.buffer.extend_from_slice(&[0; BATCH_HEADER_BYTES]);
        }
        let frame_start = self.buffer.len();
        self.buffer.resize(frame_start + frame::body_offset(head.mailbox), 0);
        let body_start = self.buffer.len();
        if let Err(error) = encode(&mut self.buffer) {
            self.buffer.resize(end, 0);
            return Err(Rejected::Encode(error));
        }
        let body_bytes = self.buffer.len() - body_start;
        if body_bytes > max_message_bytes {
            self.buffer.resize(end, 0);
            return Err(Rejected::TooLarge { given_bytes: body_bytes });
        }
        self.buffer.resize(self.buffer.len().next_multiple_of(ALIGNMENT), 0);
        if !self.open {
            self.open = true;
            self.last_start = end;
            self.last_messages = 0;
            self.last_deliveries = 0;
            self.batches += 1;
        }
        self.last_messages += 1;
        self.last_deliveries += match head.kind {
            Kind::CastMany => 1 + head.mailbox.split(frame::MAILBOX_SEPARATOR).count() as u32,
            _ => 1,
        };
        self.messages += 1;
        let batch_bytes = self.write_headers(head, frame_start, body_bytes);
        self.complete_bytes = self.buffer.len();
        let closed = self.last_deliveries >= limits.max_batch_messages() || batch_bytes >= limits.max_batch_bytes();
        self.open = !closed;
        Ok(Pushed { first: end == 0, closed })
    }

    /// Writes the headers of a new frame and of its batch; answers the batch's size.
    fn write_headers(&mut self, head: &Head<'_>, frame_start: usize, body_bytes: usize) -> usize {
        // Both sizes are far below 4 GiB: a message has at most 8 MiB, a batch one message more than 1 MiB.
        let frames_bytes = self.buffer.len() - self.last_start - BATCH_HEADER_BYTES;
        let batch_header = frame::batch_header(self.last_messages, frames_bytes as u32);
        let frame_header = frame::frame_header(head, body_bytes as u32);
        let name_start = frame_start + frame_header.len();
        let buffer = self.buffer.as_mut_slice();
        buffer[frame_start..name_start].copy_from_slice(&frame_header);
        buffer[name_start..name_start + head.mailbox.len()].copy_from_slice(head.mailbox.as_bytes());
        buffer[self.last_start..self.last_start + BATCH_HEADER_BYTES].copy_from_slice(&batch_header);
        BATCH_HEADER_BYTES + frames_bytes
    }

    /// Takes all batches; gathering goes on in the buffer of `spare`.
    pub(crate) fn take(&mut self, mut spare: Gathered) -> Gathered {
        if spare.buffer.capacity() > MAX_IDLE_BUFFER_BYTES {
            spare.buffer = AlignedVec::new();
        }
        spare.buffer.clear();
        let next = Batcher { buffer: spare.buffer, ..Batcher::default() };
        let mut full = std::mem::replace(self, next);
        full.buffer.resize(full.complete_bytes, 0);
        Gathered { buffer: full.buffer, messages: full.messages, batches: full.batches, compression: Compression::None }
    }
}

impl Gathered {
    /// The numbers of the calls in these batches.
    pub(crate) fn calls(&self) -> Vec<u64> {
        let mut calls = Vec::new();
        let mut rest = &self.buffer[..];
        // The batches are our own and well-formed, and not compressed yet; whatever is not ends the walk.
        let mut unpacker = Unpacker::default();
        while let Ok(Some(batch)) = frame::next_batch(rest) {
            let frames = batch.frames(&mut unpacker).into_iter().flatten();
            let heads = frames.filter_map(Result::ok).map(|frame| frame.head);
            calls.extend(heads.filter(|head| head.kind == Kind::Call).map(|head| head.call));
            rest = &rest[batch.total_bytes..];
        }
        calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1000;

    fn head(call: u64) -> Head<'static> {
        let kind = if call == 0 { Kind::Cast } else { Kind::Call };
        Head { kind, mailbox: "m", type_number: 1, call }
    }

    fn push(batcher: &mut Batcher, limits: &Batching, call: u64, body: &[u8]) -> Result<Pushed, Rejected> {
        batcher.push(&head(call), limits, MAX, |buffer| {
            buffer.extend_from_slice(body);
            Ok(())
        })
    }

    fn sizes(gathered: &Gathered) -> Vec<u32> {
        let mut sizes = Vec::new();
        let mut rest = &gathered.buffer[..];
        while let Some(batch) = frame::next_batch(rest).unwrap() {
            let mut unpacker = Unpacker::default();
            let frames = batch.frames(&mut unpacker).unwrap();
            assert_eq!(frames.map(Result::unwrap).count(), batch.messages as usize);
            sizes.push(batch.messages);
            rest = &rest[batch.total_bytes..];
        }
        assert!(rest.is_empty());
        sizes
    }

    #[test]
    fn messages_gather_until_they_are_taken() {
        let limits = Batching::default();
        let mut batcher = Batcher::default();
        assert_eq!(push(&mut batcher, &limits, 0, b"a"), Ok(Pushed { first: true, closed: false }));
        assert_eq!(push(&mut batcher, &limits, 5, b"b"), Ok(Pushed { first: false, closed: false }));
        let gathered = batcher.take(Gathered::default());
        assert_eq!((gathered.messages, gathered.batches), (2, 1));
        assert_eq!(sizes(&gathered), [2]);
        assert_eq!(gathered.calls(), [5]);
        assert_eq!(batcher.queued_bytes(), 0);
        assert!(push(&mut batcher, &limits, 0, b"c").unwrap().first);
    }

    #[test]
    fn a_full_batch_is_followed_by_another_in_the_same_buffer() {
        let rows = [
            (Batching::default().with_max_batch_messages(2).unwrap(), vec![2, 2, 1]),
            (Batching::default().with_max_batch_bytes(1024).unwrap(), vec![3, 2]),
        ];
        for (limits, expected) in rows {
            let mut batcher = Batcher::default();
            for call in 1..=5 {
                push(&mut batcher, &limits, call, &[7; 400]).unwrap();
            }
            let gathered = batcher.take(Gathered::default());
            assert_eq!(sizes(&gathered), expected);
            assert_eq!(gathered.batches, expected.len() as u64);
            assert_eq!(gathered.calls(), [1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn a_value_that_panics_leaves_no_trace() {
        let limits = Batching::default();
        let mut batcher = Batcher::default();
        push(&mut batcher, &limits, 1, b"x").unwrap();
        let panicking = std::panic::AssertUnwindSafe(|| {
            batcher.push(&head(2), &limits, MAX, |buffer| {
                buffer.extend_from_slice(b"half");
                panic!("planted")
            })
        });
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert_eq!(sizes(&batcher.take(Gathered::default())), [1]);
    }

    #[test]
    fn a_refused_message_leaves_no_trace() {
        let limits = Batching::default();
        let mut batcher = Batcher::default();
        let too_large = push(&mut batcher, &limits, 1, &[0; MAX + 1]);
        assert_eq!(too_large, Err(Rejected::TooLarge { given_bytes: MAX + 1 }));
        assert_eq!(batcher.queued_bytes(), 0);
        push(&mut batcher, &limits, 2, b"x").unwrap();
        let reason = EncodeError { reason: "no".into() };
        let failed = batcher.push(&head(3), &limits, MAX, |buffer| {
            buffer.extend_from_slice(b"half");
            Err(reason.clone())
        });
        assert_eq!(failed, Err(Rejected::Encode(reason)));
        assert_eq!(sizes(&batcher.take(Gathered::default())), [1]);
    }
}
