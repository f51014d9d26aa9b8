//! Writes batches compressed, one after the other; everybody else has a turn in between.

use quinn::{SendStream, WriteError};
use rkyv::util::AlignedVec;

use crate::compression::Packer;
use crate::config::Compression;
use crate::frame;

/// What is packed is written as soon as there is as much as this.
const WRITE_BYTES: usize = 64 * 1024;
/// Others have a turn after as many bytes: packing them takes about a millisecond.
const TURN_BYTES: usize = 256 * 1024;
/// A buffer that grew beyond this is given back once it is empty.
const MAX_IDLE_BUFFER_BYTES: usize = 1024 * 1024;

/// Packs and writes; kept for its memory.
#[derive(Default)]
pub(super) struct Packing {
    packer: Packer,
    /// What is packed and not written yet: [`WRITE_BYTES`] and one batch at most.
    packed: AlignedVec,
}

impl Packing {
    /// Writes `batches`; answers how many bytes that were.
    pub(super) async fn write(
        &mut self,
        send: &mut SendStream,
        compression: Compression,
        batches: &[u8],
    ) -> Result<usize, WriteError> {
        let mut rest = batches;
        let mut written_bytes = 0;
        let mut turn_bytes = 0;
        // The batches are our own and well-formed.
        while let Ok(Some(batch)) = frame::next_batch(rest) {
            rest = &rest[batch.total_bytes..];
            batch.pack(compression, &mut self.packer, &mut self.packed);
            if self.packed.len() >= WRITE_BYTES || rest.is_empty() {
                send.write_all(&self.packed).await?;
                written_bytes += self.packed.len();
                self.packed.clear();
            }
            turn_bytes += batch.raw_bytes;
            if turn_bytes >= TURN_BYTES {
                turn_bytes = 0;
                tokio::task::yield_now().await;
            }
        }
        debug_assert!(rest.is_empty(), "an outbox holds batches, and nothing else");
        if self.packed.capacity() > MAX_IDLE_BUFFER_BYTES {
            self.packed = AlignedVec::new();
        }
        Ok(written_bytes)
    }
}
