//! The two tasks of a lane: one writes batches, one reads them and delivers at once.
//!
//! The reader hands messages straight to mailboxes and answers straight to callers; it waits for nobody
//! but the network, so a slow receiver holds up no other.

use std::sync::Arc;

use quinn::{ReadError, RecvStream, SendStream, StoppedError, VarInt};
use rkyv::util::AlignedVec;

use super::delivery::Delivery;
use super::packing::Packing;
use super::{DownReason, Peer};
use crate::batcher::Gathered;
use crate::compression::{Compressions, Unpacker};
use crate::config::Compression;
use crate::error::FrameError;
use crate::frame::{ALIGNMENT, BATCH_HEADER_BYTES, MAX_BATCH_FRAMES_BYTES};
use crate::link::describe;
use crate::mailbox::Registry;
use crate::outbox::Next;

/// The receive buffer of an idle lane; it grows as bytes come, never because a length is claimed.
const IDLE_BUFFER_BYTES: usize = 64 * 1024;
/// A buffer that grew beyond this is given back once it is empty.
const MAX_IDLE_BUFFER_BYTES: usize = 1024 * 1024;
/// It never grows beyond one batch.
const MAX_BUFFER_BYTES: usize = (BATCH_HEADER_BYTES + MAX_BATCH_FRAMES_BYTES).next_multiple_of(ALIGNMENT);

/// How a task of a lane ended.
pub(super) enum Ended {
    /// All there was is written and acknowledged.
    Written,
    /// Nothing can be written any more.
    WriteFailed(DownReason),
    /// The peer has said that this was all.
    ReadToEnd,
    /// Nothing can be read any more.
    ReadFailed(DownReason),
}

/// Writes what is in the outbox until the lane ends; compressed, if that is set and among `understood`.
pub(super) async fn write(send: SendStream, peer: Arc<Peer>, lane: u64, understood: Compressions) -> Ended {
    let mut sender = Sender { send, finished: false };
    let mut gathered = Gathered::default();
    let mut packing = None;
    loop {
        gathered = match peer.outbox.next(lane, gathered).await {
            Next::Batches(gathered) => gathered,
            Next::End => return sender.finish().await,
            Next::Gone => return Ended::WriteFailed(DownReason::Lost { reason: "the lane is closed".into() }),
        };
        let raw_bytes = gathered.buffer.len();
        let written = match understood.usable(gathered.compression) {
            Compression::None => {
                packing = None;
                sender.send.write_all(&gathered.buffer).await.map(|()| raw_bytes)
            }
            compression => {
                let packing = packing.get_or_insert_with(Packing::default);
                packing.write(&mut sender.send, compression, &gathered.buffer).await
            }
        };
        match written {
            Ok(bytes) => peer.stats.sent(gathered.messages, gathered.batches, raw_bytes as u64, bytes as u64),
            Err(quinn::WriteError::ConnectionLost(error)) => return Ended::WriteFailed(lost(&error)),
            Err(other) => return Ended::WriteFailed(DownReason::Lost { reason: other.to_string() }),
        }
    }
}

/// The only owner of the stream: dropping a stream finishes it, and a lane that broke off must not look
/// like one that ended.
struct Sender {
    send: SendStream,
    finished: bool,
}

impl Sender {
    /// Waits for the acknowledgement for as long as the driver lets it.
    async fn finish(mut self) -> Ended {
        let failed = |reason: String| Ended::WriteFailed(DownReason::Lost { reason });
        if let Err(error) = self.send.finish() {
            return failed(error.to_string());
        }
        self.finished = true;
        match self.send.stopped().await {
            Ok(None) => Ended::Written,
            Ok(Some(_)) => failed("the peer stopped reading".into()),
            Err(StoppedError::ConnectionLost(error)) => Ended::WriteFailed(lost(&error)),
            Err(error) => failed(error.to_string()),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.send.reset(VarInt::from_u32(0));
        }
    }
}

/// Reads batches and delivers them until the lane ends.
pub(super) async fn read(mut recv: RecvStream, peer: Arc<Peer>, registry: Arc<Registry>, lane: u64) -> Ended {
    let mut buffer = AlignedVec::<ALIGNMENT>::new();
    buffer.resize(IDLE_BUFFER_BYTES, 0);
    let mut filled = 0;
    let mut delivery = Delivery::new(peer, registry, lane);
    let mut unpacker = Unpacker::default();
    loop {
        if filled == buffer.len() {
            let bytes = (buffer.len() * 2).min(MAX_BUFFER_BYTES);
            buffer.resize(bytes, 0);
        }
        match recv.read(&mut buffer[filled..]).await {
            Ok(Some(bytes)) => filled += bytes,
            Ok(None) if filled == 0 => return Ended::ReadToEnd,
            Ok(None) => {
                let error = FrameError::Shape("the lane ended within a batch");
                return Ended::ReadFailed(DownReason::Protocol { reason: error.to_string() });
            }
            Err(ReadError::ConnectionLost(error)) => return Ended::ReadFailed(lost(&error)),
            Err(error) => return Ended::ReadFailed(DownReason::Lost { reason: error.to_string() }),
        }
        // A stream that always has more would keep all others off this thread.
        tokio::task::consume_budget().await;
        let mut consumed = 0;
        loop {
            match delivery.deliver(&buffer[consumed..filled], &mut unpacker) {
                Ok(progress) => {
                    consumed += progress.bytes;
                    if !progress.interrupted {
                        break;
                    }
                }
                Err(error) => return Ended::ReadFailed(DownReason::Protocol { reason: error.to_string() }),
            }
            tokio::task::yield_now().await;
        }
        unpacker.rest();
        // A batch is a multiple of 16 bytes long, so that what follows stays aligned.
        buffer.copy_within(consumed..filled, 0);
        filled -= consumed;
        if filled == 0 && buffer.len() > MAX_IDLE_BUFFER_BYTES {
            buffer = AlignedVec::new();
            buffer.resize(IDLE_BUFFER_BYTES, 0);
        }
    }
}

/// Why QUIC ended the connection.
pub(super) fn lost(error: &quinn::ConnectionError) -> DownReason {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            DownReason::ClosedByPeer { reason: String::from_utf8_lossy(&close.reason).into_owned() }
        }
        quinn::ConnectionError::Reset => DownReason::Restarted,
        quinn::ConnectionError::TimedOut => DownReason::Dead,
        other => DownReason::Lost { reason: describe(other) },
    }
}
