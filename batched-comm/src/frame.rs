//! Batches and frames: what a lane carries after the hello. **A format: golden bytes below.**
//!
//! ```text
//! lane   = hello, batch, batch, ...
//! batch  = magic u16 | version u8 | compression u8 | messages u32 | wire_bytes u32 | raw_bytes u32, frame, ...
//! frame  = kind u8 | mailbox_bytes u8 | 0 u16 | type u32 | call u64 | body_bytes u32 | 0 u32,
//!          mailbox, zeros to 16, body, zeros to 16
//! ```
//!
//! Compression is 0 (none), 1 (LZ4) or 2 (zstd), see [`compression`](crate::compression). `messages` frames
//! have `raw_bytes` bytes. Without compression they follow the header, and `wire_bytes` is the same number.
//! With it, `wire_bytes` bytes follow, fewer than `raw_bytes`, and zeros to 16: they unpack to `raw_bytes`
//! bytes of frames, to the byte.
//!
//! All numbers are little-endian. Every batch, frame and body begins at a multiple of 16 bytes, counted
//! from the first batch: whoever receives into a buffer that is aligned so reads archived messages in
//! place. A mailbox's name of up to 8 bytes fits into the padding of the header.

use rkyv::util::AlignedVec;

use crate::compression::{self, Packer, Unpacker};
use crate::config::{Compression, MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES};
use crate::error::FrameError;
use crate::name::{ClusterId, MAX_MAILBOX_NAME_BYTES};

/// Everything begins at a multiple of this.
pub(crate) const ALIGNMENT: usize = 16;

/// The bytes of a batch before its first frame.
pub(crate) const BATCH_HEADER_BYTES: usize = 16;

/// The bytes of a frame before the mailbox's name.
pub(crate) const FRAME_HEADER_BYTES: usize = 24;

/// The bytes of frames that a batch may have: one message more than its limit, with header and padding.
pub(crate) const MAX_BATCH_FRAMES_BYTES: usize = MAX_BATCH_BYTES
    + MAX_MESSAGE_BYTES
    + (FRAME_HEADER_BYTES + MAX_JOINED_NAMES_BYTES).next_multiple_of(ALIGNMENT)
    + ALIGNMENT;

/// A [`Kind::CastMany`] has at most as many mailboxes.
pub(crate) const MAX_JOINED_NAMES: usize = 64;

/// Stands between the mailboxes of a [`Kind::CastMany`]; no mailbox's name contains it.
pub(crate) const MAILBOX_SEPARATOR: char = ',';

/// The names of a [`Kind::CastMany`] are together at most this long.
pub(crate) const MAX_JOINED_NAMES_BYTES: usize = 255;

const MAGIC: u16 = 0xba7c;
const VERSION: u8 = 1;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A message that wants no answer.
    Cast = 1,
    /// A message that wants the answer with its call number.
    Call = 2,
    /// The answer to a call.
    Reply = 3,
    /// No answer to a call, and why: a [`Refused`] in the type's place.
    Refused = 4,
    /// A cast to several mailboxes, whose names are joined by [`MAILBOX_SEPARATOR`].
    CastMany = 5,
    /// The sender belongs to a cluster from now on: its number (u128) and generation (u64) are the body.
    Cluster = 6,
}

const CLUSTER_BYTES: usize = 24;

/// The body of a [`Kind::Cluster`].
pub(crate) fn cluster_body(cluster: ClusterId) -> [u8; CLUSTER_BYTES] {
    let mut body = [0; CLUSTER_BYTES];
    body[..16].copy_from_slice(&cluster.id.to_le_bytes());
    body[16..].copy_from_slice(&cluster.generation.to_le_bytes());
    body
}

/// What the body of a [`Kind::Cluster`] says.
pub(crate) fn cluster_in(body: &[u8]) -> Result<ClusterId, FrameError> {
    let id = body.first_chunk().map(|bytes| u128::from_le_bytes(*bytes));
    let generation = body.last_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    match (id, generation) {
        (Some(id), Some(generation)) if body.len() == CLUSTER_BYTES => Ok(ClusterId { id, generation }),
        _ => Err(FrameError::Shape("a cluster has 24 bytes")),
    }
}

/// Why a call gets no answer from its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Refused {
    /// There is no such mailbox; nothing happened.
    UnknownMailbox = 1,
    /// The mailbox is full; nothing happened.
    MailboxFull = 2,
    /// It was taken from the mailbox, and nobody answered.
    Unanswered = 3,
    /// The receiver cannot read it; nothing happened.
    NotUnderstood = 4,
}

impl Refused {
    /// A number that is not known says the least: taken, and not answered.
    pub(crate) fn from_number(number: u32) -> Refused {
        match number {
            1 => Refused::UnknownMailbox,
            2 => Refused::MailboxFull,
            4 => Refused::NotUnderstood,
            _ => Refused::Unanswered,
        }
    }
}

/// A frame without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    pub kind: Kind,
    /// Empty for answers; several for [`Kind::CastMany`].
    pub mailbox: &'a str,
    /// The message's number, or the number of a [`Refused`].
    pub type_number: u32,
    /// Zero for casts.
    pub call: u64,
}

/// A frame in a received batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub head: Head<'a>,
    pub body: &'a [u8],
}

/// A batch at the beginning of the received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch<'a> {
    pub messages: u32,
    pub compression: Compression,
    /// What follows the header, without zeros at its end.
    pub payload: &'a [u8],
    /// The bytes of the frames.
    pub raw_bytes: usize,
    /// The bytes of the batch with its header: the next one begins there.
    pub total_bytes: usize,
}

/// The header of a batch of `messages` frames in `frames_bytes` bytes.
pub(crate) fn batch_header(messages: u32, frames_bytes: u32) -> [u8; BATCH_HEADER_BYTES] {
    let mut header = [0; BATCH_HEADER_BYTES];
    header[0..2].copy_from_slice(&MAGIC.to_le_bytes());
    header[2] = VERSION;
    header[3] = compression_number(Compression::None);
    header[4..8].copy_from_slice(&messages.to_le_bytes());
    header[8..12].copy_from_slice(&frames_bytes.to_le_bytes());
    header[12..16].copy_from_slice(&frames_bytes.to_le_bytes());
    header
}

/// The header of a compressed batch: `wire_bytes` unpack to `raw_bytes`.
fn packed_header(messages: u32, compression: Compression, wire_bytes: u32, raw_bytes: u32) -> [u8; BATCH_HEADER_BYTES] {
    let mut header = batch_header(messages, raw_bytes);
    header[3] = compression_number(compression);
    header[8..12].copy_from_slice(&wire_bytes.to_le_bytes());
    header
}

fn compression_number(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Lz4 => 1,
        Compression::Zstd => 2,
    }
}

/// The header of a frame, whose body has `body_bytes` bytes.
pub(crate) fn frame_header(head: &Head<'_>, body_bytes: u32) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = [0; FRAME_HEADER_BYTES];
    header[0] = head.kind as u8;
    // One name has at most 64 bytes, joined ones 255.
    header[1] = head.mailbox.len() as u8;
    header[4..8].copy_from_slice(&head.type_number.to_le_bytes());
    header[8..16].copy_from_slice(&head.call.to_le_bytes());
    header[16..20].copy_from_slice(&body_bytes.to_le_bytes());
    header
}

/// Where the body begins, counted from the beginning of the frame.
pub(crate) fn body_offset(mailbox: &str) -> usize {
    (FRAME_HEADER_BYTES + mailbox.len()).next_multiple_of(ALIGNMENT)
}

/// The batch at the beginning of `bytes`, or `None` while it is not complete.
pub(crate) fn next_batch(bytes: &[u8]) -> Result<Option<Batch<'_>>, FrameError> {
    let Some(header) = bytes.first_chunk::<BATCH_HEADER_BYTES>() else { return Ok(None) };
    let magic = u16::from_le_bytes([header[0], header[1]]);
    if magic != MAGIC {
        return Err(FrameError::Magic { given: magic, expected: MAGIC });
    }
    if header[2] != VERSION {
        return Err(FrameError::Version { given: header[2], known: VERSION });
    }
    let compression = match header[3] {
        0 => Compression::None,
        1 => Compression::Lz4,
        2 if cfg!(feature = "zstd") => Compression::Zstd,
        given => return Err(FrameError::Compression { given }),
    };
    let messages = number_u32(header, 4);
    if messages > MAX_BATCH_MESSAGES {
        return Err(FrameError::Shape("it has more than 65,536 messages"));
    }
    let wire_bytes = number_u32(header, 8) as usize;
    let raw_bytes = number_u32(header, 12) as usize;
    for given in [wire_bytes, raw_bytes] {
        if given > MAX_BATCH_FRAMES_BYTES {
            let max = MAX_BATCH_FRAMES_BYTES as u64;
            return Err(FrameError::Length { what: "a batch", given: given as u64, max });
        }
    }
    match compression {
        Compression::None if wire_bytes != raw_bytes => {
            return Err(FrameError::Shape("two sizes without compression"));
        }
        Compression::Lz4 | Compression::Zstd if wire_bytes >= raw_bytes => {
            return Err(FrameError::Compressed("it is no shorter"));
        }
        _ => {}
    }
    if !raw_bytes.is_multiple_of(ALIGNMENT) {
        return Err(FrameError::Shape("the size is no multiple of 16"));
    }
    // What is shorter than a multiple of 16 fills up to no more than that.
    let total_bytes = BATCH_HEADER_BYTES + wire_bytes.next_multiple_of(ALIGNMENT);
    let Some(following) = bytes.get(BATCH_HEADER_BYTES..total_bytes) else { return Ok(None) };
    let payload = &following[..wire_bytes];
    Ok(Some(Batch { messages, compression, payload, raw_bytes, total_bytes }))
}

impl<'a> Batch<'a> {
    /// The frames in order; compressed ones lie in the buffer of `unpacker`. After an error there are no more.
    pub(crate) fn frames<'b>(&self, unpacker: &'b mut Unpacker) -> Result<Frames<'b>, FrameError>
    where
        'a: 'b,
    {
        let frames = match self.compression {
            Compression::None => self.payload,
            Compression::Lz4 | Compression::Zstd => unpacker.unpack(self.compression, self.payload, self.raw_bytes)?,
        };
        Ok(Frames { rest: frames, left: self.messages })
    }

    /// Appends this batch, which is not compressed, to `out`: compressed if that pays, else as it is.
    pub(crate) fn pack(&self, compression: Compression, packer: &mut Packer, out: &mut AlignedVec) {
        let start = out.len();
        out.extend_from_slice(&[0; BATCH_HEADER_BYTES]);
        // All sizes are below 10 MiB.
        let raw_bytes = self.raw_bytes as u32;
        let wire_bytes = packer.pack(compression, self.payload, out);
        let paying = wire_bytes.filter(|bytes| compression::pays(self.raw_bytes, bytes.next_multiple_of(ALIGNMENT)));
        let header = match paying {
            Some(wire_bytes) => {
                let padding = wire_bytes.next_multiple_of(ALIGNMENT);
                out.resize(start + BATCH_HEADER_BYTES + padding, 0);
                packed_header(self.messages, compression, wire_bytes as u32, raw_bytes)
            }
            None => {
                out.resize(start + BATCH_HEADER_BYTES, 0);
                out.extend_from_slice(self.payload);
                batch_header(self.messages, raw_bytes)
            }
        };
        out[start..start + BATCH_HEADER_BYTES].copy_from_slice(&header);
    }
}

/// The frames of a batch.
pub(crate) struct Frames<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let rest = std::mem::take(&mut self.rest);
            let error = FrameError::Shape("bytes after the last frame");
            return (!rest.is_empty()).then_some(Err(error));
        }
        let split = split_frame(self.rest);
        match &split {
            Ok((_, rest)) => {
                self.rest = rest;
                self.left -= 1;
            }
            Err(_) => *self = Frames { rest: &[], left: 0 },
        }
        Some(split.map(|(frame, _)| frame))
    }
}

fn split_frame(bytes: &[u8]) -> Result<(Frame<'_>, &[u8]), FrameError> {
    let short = FrameError::Shape("a frame is longer than its batch");
    let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else { return Err(short) };
    let kind = match header[0] {
        1 => Kind::Cast,
        2 => Kind::Call,
        3 => Kind::Reply,
        4 => Kind::Refused,
        5 => Kind::CastMany,
        6 => Kind::Cluster,
        other => return Err(FrameError::Kind(other)),
    };
    let mailbox_bytes = header[1] as usize;
    let allowed = match kind {
        Kind::Cast | Kind::Call => 1..=MAX_MAILBOX_NAME_BYTES,
        Kind::CastMany => 1..=MAX_JOINED_NAMES_BYTES,
        Kind::Reply | Kind::Refused | Kind::Cluster => 0..=0,
    };
    if !allowed.contains(&mailbox_bytes) {
        return Err(FrameError::MailboxName);
    }
    let body_bytes = number_u32(header, 16) as usize;
    if body_bytes > MAX_MESSAGE_BYTES {
        let max = MAX_MESSAGE_BYTES as u64;
        return Err(FrameError::Length { what: "a message", given: body_bytes as u64, max });
    }
    let mailbox = bytes
        .get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + mailbox_bytes)
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .ok_or(FrameError::MailboxName)?;
    if kind == Kind::CastMany && !are_names(mailbox) {
        return Err(FrameError::MailboxName);
    }
    let body_start = body_offset(mailbox);
    let end = (body_start + body_bytes).next_multiple_of(ALIGNMENT);
    let (Some(body), Some(rest)) = (bytes.get(body_start..body_start + body_bytes), bytes.get(end..)) else {
        return Err(short);
    };
    let head = Head { kind, mailbox, type_number: number_u32(header, 4), call: number_u64(header, 8) };
    Ok((Frame { head, body }, rest))
}

/// Whether these are mailboxes of a [`Kind::CastMany`]: an empty one is none.
fn are_names(joined: &str) -> bool {
    let mut names = joined.split(MAILBOX_SEPARATOR);
    names.by_ref().take(MAX_JOINED_NAMES).all(|name| !name.is_empty()) && names.next().is_none()
}

/// The number at `offset`; zero beyond the end, which no caller asks for.
fn number_u32(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn number_u64(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(head: &Head<'_>, body: &[u8]) -> Vec<u8> {
        let mut bytes = frame_header(head, body.len() as u32).to_vec();
        bytes.extend_from_slice(head.mailbox.as_bytes());
        bytes.resize(body_offset(head.mailbox), 0);
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn batch(frames: &[Vec<u8>]) -> Vec<u8> {
        let frames_bytes: usize = frames.iter().map(Vec::len).sum();
        let mut bytes = batch_header(frames.len() as u32, frames_bytes as u32).to_vec();
        frames.iter().for_each(|frame| bytes.extend_from_slice(frame));
        bytes
    }

    fn hex(bytes: &[u8]) -> String {
        bytes
            .chunks(16)
            .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>())
            .collect::<Vec<_>>()
            .join("\n")
    }

    const CALL: Head<'_> = Head { kind: Kind::Call, mailbox: "raft", type_number: 0x0102_0304, call: 7 };
    const REPLY: Head<'_> = Head { kind: Kind::Reply, mailbox: "", type_number: 0, call: 0x0a0b_0c0d_0e0f };

    #[test]
    fn golden_numbers_of_refusals() {
        let numbers: Vec<_> = (0..6).map(|number| format!("{number} {:?}", Refused::from_number(number))).collect();
        let expected =
            ["0 Unanswered", "1 UnknownMailbox", "2 MailboxFull", "3 Unanswered", "4 NotUnderstood", "5 Unanswered"];
        assert_eq!(numbers, expected);
    }

    #[test]
    fn golden_bytes() {
        let bytes = batch(&[frame(&CALL, b"hello"), frame(&REPLY, b"")]);
        expect_test::expect![[r#"
            7cba0100020000005000000050000000
            02040000040302010700000000000000
            05000000000000007261667400000000
            68656c6c6f0000000000000000000000
            03000000000000000f0e0d0c0b0a0000
            00000000000000000000000000000000"#]]
        .assert_eq(&hex(&bytes));
    }

    #[test]
    fn golden_headers_of_compressed_batches() {
        let headers = [Compression::Lz4, Compression::Zstd].map(|c| hex(&packed_header(3, c, 0x0121, 0x0203_0400)));
        expect_test::expect![[r#"
            7cba0101030000002101000000040302
            7cba0102030000002101000000040302"#]]
        .assert_eq(&headers.join("\n"));
    }

    #[cfg(feature = "zstd")]
    const COMPRESSIONS: [Compression; 2] = [Compression::Lz4, Compression::Zstd];
    #[cfg(not(feature = "zstd"))]
    const COMPRESSIONS: [Compression; 1] = [Compression::Lz4];

    fn pack(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut out = AlignedVec::new();
        next_batch(bytes).unwrap().unwrap().pack(compression, &mut Packer::default(), &mut out);
        out.to_vec()
    }

    #[test]
    fn a_compressed_batch_is_shorter_and_has_the_same_frames() {
        let frames: Vec<_> = (0..50).map(|n| frame(&CALL, &[n; 100])).collect();
        let bytes = batch(&frames);
        for compression in COMPRESSIONS {
            let packed = pack(compression, &bytes);
            assert!(packed.len() < bytes.len() / 2);
            assert!(packed.len().is_multiple_of(ALIGNMENT), "what follows stays aligned");
            for cut in 0..packed.len() {
                assert_eq!(next_batch(&packed[..cut]).unwrap(), None, "cut at {cut}");
            }
            let two = [packed.clone(), bytes.clone()].concat();
            let first = next_batch(&two).unwrap().unwrap();
            assert_eq!((first.compression, first.total_bytes), (compression, packed.len()));
            let mut unpacker = Unpacker::default();
            let read: Vec<_> = first.frames(&mut unpacker).unwrap().collect::<Result<_, _>>().unwrap();
            assert!(read.iter().enumerate().all(|(n, frame)| frame.head == CALL && frame.body == [n as u8; 100]));
            assert_eq!(read.len(), 50);
            assert!(read.iter().all(|frame| (frame.body.as_ptr() as usize).is_multiple_of(ALIGNMENT)));
            assert_eq!(next_batch(&two[first.total_bytes..]).unwrap().unwrap().compression, Compression::None);
        }
    }

    #[test]
    fn a_batch_that_would_shrink_by_less_than_a_tenth_goes_as_it_is() {
        // Every byte is another one than a few before: nothing repeats.
        let noise = |count: u32| (0..count).flat_map(|n| n.wrapping_mul(0x9e37_79b1).rotate_left(11).to_le_bytes());
        for compression in COMPRESSIONS {
            for (zeros, goes_packed) in [(0, false), (600, false), (1800, true)] {
                let body: Vec<u8> = noise(2500).chain(std::iter::repeat_n(0, zeros)).collect();
                let bytes = batch(&[frame(&CALL, &body)]);
                let packed = pack(compression, &bytes);
                if goes_packed {
                    assert!(packed.len() * 10 <= bytes.len() * 9 + 10 * ALIGNMENT, "{compression:?} {zeros}");
                } else {
                    assert!(packed == bytes, "{compression:?} {zeros}: {} of {}", packed.len(), bytes.len());
                }
            }
        }
    }

    #[test]
    fn claims_of_a_compressed_batch_are_compared_with_the_bounds() {
        let header = |wire_bytes, raw_bytes| packed_header(1, Compression::Lz4, wire_bytes, raw_bytes);
        let largest = MAX_BATCH_FRAMES_BYTES as u32;
        let rows = [
            (header(100, largest + 16), "a batch of 9437504 bytes: at most 9437488 are allowed"),
            (header(u32::MAX, 1600), "a batch of 4294967295 bytes: at most 9437488 are allowed"),
            (header(100, u32::MAX), "a batch of 4294967295 bytes: at most 9437488 are allowed"),
            (header(1600, 1600), "a compressed batch cannot be unpacked: it is no shorter"),
            (header(0, 0), "a compressed batch cannot be unpacked: it is no shorter"),
            (header(100, 1601), "the frames of a batch do not fill it: the size is no multiple of 16"),
        ];
        for (header, expected) in rows {
            assert_eq!(next_batch(&header).unwrap_err().to_string(), expected);
        }
        assert_eq!(next_batch(&header(100, largest)), Ok(None), "the largest is waited for");
    }

    #[test]
    fn golden_bytes_of_a_cluster() {
        let cluster = ClusterId { id: 0x0102, generation: 3 };
        let body = cluster_body(cluster);
        let head = Head { kind: Kind::Cluster, mailbox: "", type_number: 0, call: 0 };
        expect_test::expect![[r#"
            06000000000000000000000000000000
            18000000000000000000000000000000
            02010000000000000000000000000000
            03000000000000000000000000000000"#]]
        .assert_eq(&hex(&frame(&head, &body)));
        assert_eq!(cluster_in(&body), Ok(cluster));
        for bytes in [&body[..0], &body[..23], &[0; 25]] {
            assert!(cluster_in(bytes).is_err());
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let long = "m".repeat(MAX_MAILBOX_NAME_BYTES);
        let many = vec!["m"; MAX_JOINED_NAMES].join(",");
        let heads = [
            CALL,
            REPLY,
            Head { kind: Kind::Cast, mailbox: &long, type_number: 9, call: 0 },
            Head { kind: Kind::CastMany, mailbox: &many, type_number: 9, call: 0 },
        ];
        let frames: Vec<_> = heads.iter().map(|head| frame(head, b"0123456789abcdefg")).collect();
        let bytes = batch(&frames);
        for cut in 0..bytes.len() {
            assert_eq!(next_batch(&bytes[..cut]).unwrap(), None, "cut at {cut}");
        }
        let read = next_batch(&bytes).unwrap().unwrap();
        assert_eq!(read.total_bytes, bytes.len());
        let mut unpacker = Unpacker::default();
        let read: Vec<_> = read.frames(&mut unpacker).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(read.iter().map(|f| f.head).collect::<Vec<_>>(), heads);
        assert!(read.iter().all(|f| f.body == b"0123456789abcdefg"));
    }

    #[test]
    fn a_message_to_several_mailboxes_names_each_and_not_too_many() {
        let many = |count| vec!["m"; count].join(",");
        for (names, is_allowed) in [
            ("a,b".to_owned(), true),
            (many(MAX_JOINED_NAMES), true),
            (many(MAX_JOINED_NAMES + 1), false),
            (",".repeat(MAX_JOINED_NAMES_BYTES), false),
            ("a,".to_owned(), false),
            (",a".to_owned(), false),
        ] {
            let head = Head { kind: Kind::CastMany, mailbox: &names, type_number: 9, call: 0 };
            assert_eq!(split_frame(&frame(&head, b"")).is_ok(), is_allowed, "{names}");
        }
    }

    #[test]
    fn a_batch_of_too_many_messages_is_refused_before_they_are_looked_at() {
        let mut bytes = batch(&[frame(&CALL, b"hello")]);
        bytes[4..8].copy_from_slice(&(MAX_BATCH_MESSAGES + 1).to_le_bytes());
        let error = next_batch(&bytes).unwrap_err().to_string();
        assert!(error.ends_with("it has more than 65,536 messages"), "{error}");
    }

    #[test]
    fn garbage_is_an_error_that_says_what_is_wrong() {
        let good = batch(&[frame(&CALL, b"hello")]);
        let rows: [(usize, u8, &str); 13] = [
            (0, 0xff, "a batch begins with 0xbaff instead of 0xba7c"),
            (2, 9, "batch version 9 is not known, 1 is"),
            (3, 1, "a compressed batch cannot be unpacked: it is no shorter"),
            (3, 3, "compression 3 is not known here"),
            (12, 0x51, "the frames of a batch do not fill it: two sizes without compression"),
            (11, 0xff, "a batch of 4278190128 bytes: at most 9437488 are allowed"),
            (8, 0x40, "the frames of a batch do not fill it: two sizes without compression"),
            (4, 0, "the frames of a batch do not fill it: bytes after the last frame"),
            (4, 2, "the frames of a batch do not fill it: a frame is longer than its batch"),
            (16, 0, "frame kind 0 is not known"),
            (17, 0, "a mailbox's name is not one"),
            (17, 200, "a mailbox's name is not one"),
            (35, 0xff, "a message of 4278190085 bytes: at most 8388608 are allowed"),
        ];
        for (offset, value, expected) in rows {
            let mut bytes = good.clone();
            bytes[offset] = value;
            let error = match next_batch(&bytes) {
                Err(error) => error,
                Ok(batch) => {
                    let mut unpacker = Unpacker::default();
                    batch.unwrap().frames(&mut unpacker).unwrap().find_map(Result::err).unwrap()
                }
            };
            assert_eq!(error.to_string(), expected, "byte {offset} = {value}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let good = batch(&[frame(&CALL, b"hello"), frame(&REPLY, b"there")]);
        for offset in 0..good.len() {
            for value in [0, 1, 3, 0x10, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[offset] = value;
                if let Ok(Some(batch)) = next_batch(&bytes) {
                    let mut unpacker = Unpacker::default();
                    let count = batch.frames(&mut unpacker).map(Iterator::count);
                    assert!(count.is_ok_and(|count| count <= batch.messages as usize + 1));
                }
            }
        }
    }
}
