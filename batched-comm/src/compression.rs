//! Packs and unpacks the frames of a batch, within bounds.
//!
//! An LZ4 batch is one block without a size before it; a zstd batch is one frame or several. How long either
//! becomes is in the batch's header, and what unpacks to another length is damaged.
//!
//! # Memory
//! Whoever packs has a table of 16 KiB for LZ4, or zstd's context (about 600 KiB at this level). Whoever unpacks
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

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "zstd")]
    const ALL: [Compression; 2] = [Compression::Lz4, Compression::Zstd];
    #[cfg(not(feature = "zstd"))]
    const ALL: [Compression; 1] = [Compression::Lz4];

    fn text(bytes: usize) -> Vec<u8> {
        "the same words again and again, ".bytes().cycle().take(bytes).collect()
    }

    /// Bytes that nothing makes fewer.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next).take(bytes).collect()
    }

    fn packed(compression: Compression, raw: &[u8]) -> Vec<u8> {
        let mut out = AlignedVec::new();
        let bytes = Packer::default().pack(compression, raw, &mut out).unwrap();
        assert_eq!(out.len(), bytes);
        out.to_vec()
    }

    #[test]
    fn what_is_packed_is_unpacked_with_the_same_tables_and_buffers() {
        let half = [noise(5000), vec![0; 5000]].concat();
        let raws = [text(MIN_RAW_BYTES), vec![0; 3_000_000], half, text(70_000), text(1000)];
        for compression in ALL {
            let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
            for raw in &raws {
                let mut out = AlignedVec::new();
                out.extend_from_slice(b"before");
                let bytes = packer.pack(compression, raw, &mut out).unwrap();
                assert!(bytes < raw.len() && out.starts_with(b"before"), "{compression:?}: {bytes}");
                assert!(unpacker.unpack(compression, &out[6..], raw.len()).unwrap() == &raw[..]);
            }
            unpacker.rest();
            assert_eq!(unpacker.buffer_bytes(), 0, "a large buffer is given back");
        }
    }

    #[test]
    fn what_would_not_be_shorter_is_left() {
        for compression in ALL {
            for raw in [noise(10_000), text(MIN_RAW_BYTES - 1), Vec::new()] {
                let mut out = AlignedVec::new();
                out.extend_from_slice(b"before");
                assert_eq!(Packer::default().pack(compression, &raw, &mut out), None);
                assert_eq!(&out[..], b"before");
            }
        }
        let mut out = AlignedVec::new();
        assert_eq!(Packer::default().pack(Compression::None, &text(1000), &mut out), None);
    }

    #[test]
    fn a_tenth_is_the_least_that_pays() {
        let rows = [
            (100, 90, true),
            (100, 91, false),
            (1000, 900, true),
            (1000, 901, false),
            (96, 80, true),
            (112, 112, false),
            (0, 0, true),
            (8_000_000, 7_200_000, true),
        ];
        for (raw_bytes, wire_bytes, expected) in rows {
            assert_eq!(pays(raw_bytes, wire_bytes), expected, "{raw_bytes} to {wire_bytes}");
        }
    }

    #[test]
    fn a_bomb_takes_no_more_room_than_it_claims() {
        let real_bytes = 4 * 1024 * 1024;
        for compression in ALL {
            let bomb = packed(compression, &vec![0; real_bytes]);
            for claimed in [16, 128, 64 * 1024, real_bytes - 16] {
                let mut unpacker = Unpacker::default();
                let error = unpacker.unpack(compression, &bomb, claimed).unwrap_err();
                assert_eq!(error, FrameError::Compressed("it is damaged, or unpacks to more than it claims"));
                assert!(unpacker.buffer_bytes() <= claimed, "{}", unpacker.buffer_bytes());
            }
            let mut unpacker = Unpacker::default();
            let error = unpacker.unpack(compression, &bomb, real_bytes + 16).unwrap_err();
            assert!(error.to_string().contains("claims"), "{error}");
            assert!(unpacker.buffer_bytes() <= real_bytes + 16);
        }
        let mut unpacker = Unpacker::default();
        let error = unpacker.unpack(Compression::Lz4, &[0x1f; 100], 9_000_000).unwrap_err();
        assert_eq!(error, FrameError::Compressed("it claims more than it can hold"));
        assert_eq!(unpacker.buffer_bytes(), 0, "nothing was made for it");
    }

    #[test]
    fn what_is_cut_or_damaged_is_refused_or_has_the_length_that_was_claimed() {
        let raw = [text(400), noise(100)].concat();
        for compression in ALL {
            let whole = packed(compression, &raw);
            let mut unpacker = Unpacker::default();
            for cut in 0..whole.len() {
                let unpacked = unpacker.unpack(compression, &whole[..cut], raw.len());
                assert!(unpacked.is_err(), "{compression:?} cut at {cut}");
            }
            for at in 0..whole.len() {
                for flip in [1, 0x10, 0x80, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[at] ^= flip;
                    if let Ok(unpacked) = unpacker.unpack(compression, &damaged, raw.len()) {
                        assert_eq!(unpacked.len(), raw.len());
                    }
                }
            }
            for garbage in [noise(100), vec![0; 100], vec![0xff; 100]] {
                assert!(unpacker.unpack(compression, &garbage, raw.len()).is_err());
            }
            assert!(unpacker.unpack(compression, &whole, raw.len()).unwrap() == &raw[..], "it works after all that");
        }
        assert!(Unpacker::default().unpack(Compression::None, &raw, raw.len()).is_err());
    }

    #[test]
    fn only_what_the_other_side_unpacks_is_used() {
        let mut table = String::new();
        for (lz4, zstd) in [(false, false), (true, false), (false, true), (true, true)] {
            let used = [Compression::None, Compression::Lz4, Compression::Zstd]
                .map(|wanted| format!("{:?}", Compressions { lz4, zstd }.usable(wanted)));
            table += &format!("lz4 {lz4}, zstd {zstd}: {}\n", used.join(", "));
        }
        expect_test::expect![[r#"
            lz4 false, zstd false: None, None, None
            lz4 true, zstd false: None, Lz4, None
            lz4 false, zstd true: None, None, Zstd
            lz4 true, zstd true: None, Lz4, Zstd
        "#]]
        .assert_eq(&table);
    }
}
