//! A snapshot's bytes: frames with a checksum each, written and read one after the other.
//!
//! ```text
//! snapshot:  "rvsnap" 0 format | id u64 | frame ..
//! frame:     kind u8 | more u8 | length u32 | body | checksum u32
//! order:     head, sessions .., value .., end; nothing behind it
//! head:      value's version u32 | log time u64 | version in use | settings | meta
//! settings:  0, or 1 | their version u32 | length u32 | bytes
//! end:       pieces u64
//! ```
//!
//! A piece of any size is cut into frames of at most [`FRAME_BYTES`]; `more` says that it goes on in the next one. A
//! checksum is the CRC32C of all that stands before it in the snapshot, but for other checksums: so a frame of another
//! snapshot, one that is missing and one that stands elsewhere are as wrong as a changed byte. The id is random: two
//! snapshots of one state differ in it.

use std::io::{self, Read, Write};

use rkyv::util::AlignedVec;

use crate::codec::{Malformed, Reader, Writer};
use crate::config::{ENCODING_VERSION, GroupConfig};
use crate::openraft_types::SnapshotMeta;
use crate::rpc::{read_snapshot_meta, write_snapshot_meta};
use crate::value::LogTime;

const MAGIC: [u8; 8] = *b"rvsnap\0\x03";
/// Where the format's number stands in [`MAGIC`].
const FORMAT_AT: usize = 7;
/// Frames are written with bodies up to this size.
const FRAME_BYTES: usize = 256 << 10;
/// A larger body in a frame's head is damage, whatever the checksum would say: it is not read.
const MAX_FRAME_BYTES: usize = 1 << 20;
const HEADER_BYTES: usize = 6;
const CHECKSUM_BYTES: usize = 4;

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Head = 1,
    Sessions = 2,
    Value = 3,
    End = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Head, Self::Sessions, Self::Value, Self::End].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The first piece.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Head {
    pub(super) version: u32,
    pub(super) log_time: LogTime,
    /// The newest version of which a command was applied.
    pub(super) version_in_use: Option<u32>,
    /// The settings that the group has agreed on, if it has.
    pub(super) config: Option<GroupConfig>,
    pub(super) meta: SnapshotMeta,
}

impl Head {
    pub(super) fn encode(&self) -> bytes::Bytes {
        let mut writer = Writer::default();
        writer.u32(self.version);
        writer.u64(self.log_time.as_millis());
        writer.option(self.version_in_use, Writer::u32);
        writer.option(self.config.as_ref(), |writer, config| {
            writer.u32(ENCODING_VERSION);
            writer.slice(&config.encode());
        });
        write_snapshot_meta(&mut writer, &self.meta);
        writer.into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes::Bytes::copy_from_slice(bytes), "head of a snapshot");
        let (version, log_time) = (reader.u32()?, LogTime::from_millis(reader.u64()?));
        let version_in_use = reader.option(Reader::u32)?;
        let config = reader.option(|reader| {
            let (version, bytes) = (reader.u32()?, reader.slice()?);
            GroupConfig::decode(version, &bytes).map_err(|_| Malformed("settings in the head of a snapshot"))
        })?;
        let meta = read_snapshot_meta(&mut reader)?;
        reader.end()?;
        Ok(Self { version, log_time, version_in_use, config, meta })
    }
}

/// Writes one snapshot.
pub(super) struct FrameWriter<W> {
    out: W,
    checksum: u32,
    pieces: u64,
}

impl<W: Write> FrameWriter<W> {
    pub(super) fn begin(out: W, id: u64) -> io::Result<Self> {
        let mut writer = Self { out, checksum: 0, pieces: 0 };
        writer.summed(&MAGIC)?;
        writer.summed(&id.to_le_bytes())?;
        Ok(writer)
    }

    pub(super) fn piece(&mut self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        loop {
            let (body, rest) = left.split_at(left.len().min(FRAME_BYTES));
            left = rest;
            let mut header = [kind as u8, u8::from(!rest.is_empty()), 0, 0, 0, 0];
            // At most FRAME_BYTES, so that the cast loses nothing.
            header[2..].copy_from_slice(&(body.len() as u32).to_le_bytes());
            self.summed(&header)?;
            self.summed(body)?;
            self.out.write_all(&self.checksum.to_le_bytes())?;
            if rest.is_empty() {
                break;
            }
        }
        self.pieces += 1;
        Ok(())
    }

    pub(super) fn end(mut self) -> io::Result<W> {
        let pieces = self.pieces;
        self.piece(Kind::End, &pieces.to_le_bytes())?;
        Ok(self.out)
    }

    fn summed(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        self.out.write_all(bytes)
    }
}

/// The number of the format that this program writes and reads.
pub(super) const fn format() -> u8 {
    MAGIC[FORMAT_AT]
}

/// What a snapshot's writer drew at random, and the first piece.
pub(super) fn beginning(mut input: impl Read) -> io::Result<(u64, Head)> {
    let mut start = [0; MAGIC.len() + 8];
    input.read_exact(&mut start)?;
    let [.., a, b, c, d, e, f, g, h] = start;
    let id = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let mut frames = FrameReader::begin(start.chain(input))?;
    let mut head = AlignedVec::new();
    frames.piece(Kind::Head, &mut head)?;
    Ok((id, Head::decode(&head).map_err(|error| invalid(error.to_string()))?))
}

/// Reads one snapshot. What is wrong with it is an error of the kind `InvalidData`, which says so.
pub(super) struct FrameReader<R> {
    input: R,
    checksum: u32,
    pieces: u64,
    /// Bytes read so far.
    position: u64,
    /// Where the frame starts whose header was read last.
    frame_at: u64,
    /// The header of the frame that comes next, once it was read.
    next: Option<Header>,
}

#[derive(Clone, Copy)]
struct Header {
    kind: Kind,
    more: bool,
    length: usize,
}

impl<R: Read> FrameReader<R> {
    pub(super) fn begin(input: R) -> io::Result<Self> {
        let mut reader = Self { input, checksum: 0, pieces: 0, position: 0, frame_at: 0, next: None };
        let mut magic = [0; MAGIC.len()];
        reader.summed(&mut magic)?;
        if magic[..FORMAT_AT] != MAGIC[..FORMAT_AT] {
            return Err(invalid("it is no snapshot"));
        }
        if magic != MAGIC {
            let (found, known) = (magic[FORMAT_AT], MAGIC[FORMAT_AT]);
            let other = format!("it has format {found}, this program knows {known}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, other));
        }
        // The id: it counts for the checksums alone.
        reader.summed(&mut [0; 8])?;
        Ok(reader)
    }

    /// Where the frame starts that was read last, or is being read: what is wrong is wrong there.
    pub(super) fn frame_at(&self) -> u64 {
        self.frame_at
    }

    /// What the next piece is for.
    pub(super) fn peek(&mut self) -> io::Result<Kind> {
        Ok(self.header()?.kind)
    }

    /// Puts the next piece into an empty buffer, which grows only as frames prove to be right.
    pub(super) fn piece(&mut self, kind: Kind, buffer: &mut AlignedVec) -> io::Result<()> {
        loop {
            let Header { kind: found, more, length } = self.header()?;
            if found != kind {
                return Err(invalid(format!("{found:?} stands where {kind:?} is due")));
            }
            self.next = None;
            let at = buffer.len();
            buffer.resize(at + length, 0);
            self.summed(&mut buffer[at..])?;
            let mut checksum = [0; CHECKSUM_BYTES];
            self.exact(&mut checksum)?;
            if u32::from_le_bytes(checksum) != self.checksum {
                return Err(invalid("its checksum does not match"));
            }
            if !more {
                self.pieces += 1;
                return Ok(());
            }
        }
    }

    /// Reads the end, and that there is nothing behind it.
    pub(super) fn end(mut self) -> io::Result<()> {
        let pieces = self.pieces;
        let mut buffer = AlignedVec::new();
        self.piece(Kind::End, &mut buffer)?;
        if buffer[..] != pieces.to_le_bytes() {
            return Err(invalid(format!("{pieces} pieces stand in it, and its end names another number")));
        }
        match self.input.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(invalid("there are bytes behind its end")),
        }
    }

    fn header(&mut self) -> io::Result<Header> {
        if let Some(header) = self.next {
            return Ok(header);
        }
        let mut bytes = [0; HEADER_BYTES];
        self.frame_at = self.position;
        self.summed(&mut bytes)?;
        let [kind, more, length @ ..] = bytes;
        let length = u32::from_le_bytes(length) as usize;
        let (Some(kind), true, true) = (Kind::of(kind), more <= 1, length <= MAX_FRAME_BYTES) else {
            return Err(invalid("a frame's head is damaged"));
        };
        let header = Header { kind, more: more == 1, length };
        self.next = Some(header);
        Ok(header)
    }

    fn summed(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.exact(bytes)?;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        Ok(())
    }

    fn exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => invalid("it is cut short"),
            _ => error,
        })?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(id: u64, pieces: &[(Kind, &[u8])]) -> Vec<u8> {
        let mut writer = FrameWriter::begin(Vec::new(), id).unwrap();
        for (kind, bytes) in pieces {
            writer.piece(*kind, bytes).unwrap();
        }
        writer.end().unwrap()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<(Kind, Vec<u8>)>> {
        let mut reader = FrameReader::begin(bytes)?;
        let mut pieces = Vec::new();
        while reader.peek()? != Kind::End {
            let (kind, mut buffer) = (reader.peek()?, AlignedVec::new());
            reader.piece(kind, &mut buffer)?;
            pieces.push((kind, buffer.to_vec()));
        }
        reader.end()?;
        Ok(pieces)
    }

    #[test]
    fn the_bytes_are_these() {
        let bytes = written(0x0102, &[(Kind::Head, b"head"), (Kind::Value, b"")]);
        let mut golden = b"rvsnap\0\x03\x02\x01\0\0\0\0\0\0".to_vec();
        let mut summed = golden.clone();
        let frames: [&[u8]; 3] = [b"\x01\0\x04\0\0\0head", b"\x03\0\0\0\0\0", b"\x04\0\x08\0\0\0\x02\0\0\0\0\0\0\0"];
        for frame in frames {
            summed.extend_from_slice(frame);
            golden.extend_from_slice(frame);
            golden.extend_from_slice(&crc32c::crc32c(&summed).to_le_bytes());
        }
        assert_eq!(bytes, golden);
    }

    #[test]
    fn the_head_is_these_bytes() {
        let head = Head {
            version: 7,
            log_time: LogTime::from_millis(9),
            version_in_use: Some(5),
            config: None,
            meta: SnapshotMeta::default(),
        };
        let bytes = head.encode();
        assert_eq!(bytes[..], [7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]);
        assert_eq!(Head::decode(&bytes).unwrap(), head);
        let agreed = Head { config: Some(GroupConfig::default()), ..head };
        let with_settings = agreed.encode();
        let mut golden = bytes[..17].to_vec();
        golden.extend([1, 1, 0, 0, 0, 48, 0, 0, 0]);
        golden.extend_from_slice(&GroupConfig::default().encode());
        golden.extend_from_slice(&bytes[18..]);
        assert_eq!(with_settings[..], golden[..]);
        assert_eq!(Head::decode(&with_settings).unwrap(), agreed);
    }

    #[test]
    fn pieces_of_any_size_come_back() {
        let sizes = [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES];
        let pieces: Vec<Vec<u8>> = sizes.iter().map(|&size| (0..size).map(|at| at as u8).collect()).collect();
        let named: Vec<(Kind, &[u8])> = pieces.iter().map(|piece| (Kind::Value, &piece[..])).collect();
        let found = read(&written(1, &named)).unwrap();
        assert!(found.iter().map(|(_, bytes)| bytes).eq(pieces.iter()));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_found() {
        let bytes = written(3, &[(Kind::Head, b"head"), (Kind::Sessions, b"s"), (Kind::Value, &[5; 700])]);
        assert!(read(&bytes).is_ok());
        for at in 0..bytes.len() {
            let cut = read(&bytes[..at]).unwrap_err();
            assert_eq!(cut.kind(), io::ErrorKind::InvalidData, "cut at {at}: {cut}");
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(read(&changed).is_err(), "byte {at}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(read(&longer).unwrap_err().to_string().contains("behind its end"));
    }

    #[test]
    fn parts_of_two_snapshots_make_none() {
        // As a transfer that goes on with another snapshot than the one it began would make.
        let pieces: [(Kind, &[u8]); 3] = [(Kind::Head, b"head"), (Kind::Value, &[5; 100]), (Kind::Value, &[6; 100])];
        let (one, other) = (written(1, &pieces), written(2, &pieces));
        for at in 9..one.len() {
            let mixed = [&one[..at], &other[at..]].concat();
            assert!(mixed == one || read(&mixed).is_err(), "from byte {at}");
        }
    }

    #[test]
    fn another_format_is_named() {
        let mut bytes = written(1, &[]);
        bytes[FORMAT_AT] = 9;
        assert!(read(&bytes).unwrap_err().to_string().contains("format 9"));
    }
}
