//! Packs and unpacks the frames of a batch, within bounds.
//!
//! An LZ4 batch is one block without a size before it; a zstd batch is one frame or several. How long either
//! becomes is in the batch's header, and what unpacks to another length is damaged.
//!
//! # Memory
//! Whoever packs has a table of 16 KiB for LZ4, or zstd's context (about 1 MiB at this level). Whoever unpacks
//! has one buffer, never longer than the largest batch, for zstd a context of about 200 KiB besides, and no
//! window: frames are unpacked in one piece. All of it is made when it is first needed.

use lz4_flex::block::{self, CompressTable};
use rkyv::util::AlignedVec;

use crate::config::Compression;
use crate::error::FrameError;

/// What is shorter is not worth the attempt.
const MIN_RAW_BYTES: usize = 128;
/// A buffer that grew beyond this is given back once it is empty.
const MAX_IDLE_BUFFER_BYTES: usize = 1024 * 1024;
/// A byte of LZ4 stands for at most 255: what claims more is refused before there is room for it.
const MAX_LZ4_RATIO: usize = 255;
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 1;

/// The compressions that somebody can unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Compressions {
    pub(crate) lz4: bool,
    pub(crate) zstd: bool,
}

impl Compressions {
    /// What this side can unpack.
    pub(crate) const OWN: Compressions = Compressions { lz4: true, zstd: cfg!(feature = "zstd") };

    /// What is sent to somebody who can unpack these, when `wanted` is set.
    pub(crate) fn usable(self, wanted: Compression) -> Compression {
        match wanted {
            Compression::Lz4 if self.lz4 => Compression::Lz4,
            Compression::Zstd if self.zstd => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// Whether a batch is sent packed, which makes `wire_bytes` of its `raw_bytes`.
pub(crate) fn pays(raw_bytes: usize, wire_bytes: usize) -> bool {
    wire_bytes <= raw_bytes - raw_bytes.div_ceil(10)
}

/// Packs; kept for its tables.
#[derive(Default)]
pub(crate) struct Packer {
    lz4: Option<CompressTable>,
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Packer {
    /// Appends `raw` packed to `out`, and answers how many bytes that are; `None`, and nothing appended, when
    /// it cannot be made shorter.
    pub(crate) fn pack(&mut self, compression: Compression, raw: &[u8], out: &mut AlignedVec) -> Option<usize> {
        if raw.len() < MIN_RAW_BYTES {
            return None;
        }
        let start = out.len();
        let room = match compression {
            Compression::None => return None,
            Compression::Lz4 => block::get_maximum_output_size(raw.len()),
            // What would be longer is refused by zstd itself.
            Compression::Zstd => raw.len(),
        };
        out.resize(start + room, 0);
        let packed_bytes = match compression {
            Compression::None => None,
            Compression::Lz4 => self.lz4(raw, &mut out[start..]),
            Compression::Zstd => self.zstd(raw, &mut out[start..]),
        };
        let packed_bytes = packed_bytes.filter(|bytes| *bytes < raw.len());
        out.resize(start + packed_bytes.unwrap_or(0), 0);
        packed_bytes
    }

    fn lz4(&mut self, raw: &[u8], out: &mut [u8]) -> Option<usize> {
        let table = self.lz4.get_or_insert_with(CompressTable::large);
        block::compress_into_with_table(raw, out, table).ok()
    }

    #[cfg(feature = "zstd")]
    fn zstd(&mut self, raw: &[u8], out: &mut [u8]) -> Option<usize> {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        self.zstd.as_mut()?.compress_to_buffer(raw, out).ok()
    }

    #[cfg(not(feature = "zstd"))]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    fn zstd(&mut self, _raw: &[u8], _out: &mut [u8]) -> Option<usize> {
        None
    }
}

/// Unpacks into a buffer of its own, which is used again.
#[derive(Default)]
pub(crate) struct Unpacker {
    buffer: AlignedVec,
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Unpacker {
    /// The `raw_bytes` bytes that `packed` stands for. Whoever calls has compared `raw_bytes` with a bound:
    /// the buffer becomes as long as that, and no longer, whatever comes out.
    pub(crate) fn unpack(
        &mut self,
        compression: Compression,
        packed: &[u8],
        raw_bytes: usize,
    ) -> Result<&[u8], FrameError> {
        if compression == Compression::Lz4 && raw_bytes > packed.len().saturating_mul(MAX_LZ4_RATIO) {
            return Err(FrameError::Compressed("it claims more than it can hold"));
        }
        if self.buffer.len() < raw_bytes {
            // Nothing in it is needed, so nothing is copied.
            self.buffer.clear();
            self.buffer.reserve_exact(raw_bytes);
            self.buffer.resize(raw_bytes, 0);
        }
        let out = &mut self.buffer[..raw_bytes];
        let unpacked_bytes = match compression {
            Compression::None => None,
            Compression::Lz4 => block::decompress_into(packed, out).ok(),
            #[cfg(feature = "zstd")]
            Compression::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Decompressor::new().ok();
                }
                self.zstd.as_mut().and_then(|zstd| zstd.decompress_to_buffer(packed, out).ok())
            }
            #[cfg(not(feature = "zstd"))]
            Compression::Zstd => None,
        };
        match unpacked_bytes {
            Some(bytes) if bytes == raw_bytes => Ok(&self.buffer[..raw_bytes]),
            Some(_) => Err(FrameError::Compressed("it unpacks to less than it claims")),
            None => Err(FrameError::Compressed("it is damaged, or unpacks to more than it claims")),
        }
    }

    /// Gives an unusually large buffer back.
    pub(crate) fn rest(&mut self) {
        if self.buffer.capacity() > MAX_IDLE_BUFFER_BYTES {
            self.buffer = AlignedVec::new();
        }
    }

    #[cfg(test)]
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}
