//! The log's bytes. Numbers are little endian; records and batches are padded with zeros to 8 bytes.
//!
//! ```text
//! segment  0        4096                                                   segment_bytes
//!          | header | batch | batch | batch | bytes of an earlier use, or zeros |
//!
//! segment header (64 bytes; the rest of its 4096 is free)
//!   0 magic 8 | 8 version 4 | 12 zero 4 | 16 salt 16 | 32 use 8 | 40 first sequence 8
//!   48 oldest use 8 | 56 zero 4 | 60 crc of 0..60
//!
//! batch header (48 bytes), then the body: `count` records
//!   0 magic 4 | 4 version 2 | 6 zero 2 | 8 use 8 | 16 sequence 8 | 24 oldest use 8
//!   32 count 4 | 36 body length 4 | 40 crc of the body 4 | 44 crc of 0..44
//!
//! record (24 bytes and a body by kind)
//!   0 body length 4 | 4 crc of all but itself 4 | 8 replica 8 | 16 kind 1 | 17 flag 1 | 18 zero 6
//!   created    incarnation 8 | group length 4 | group | detail
//!   removed    nothing
//!   entry      term 8 | index 8 | payload
//!   vote       term 8 | voted for 8                                   flag: committed
//!   truncate   index 8: what is above goes                            flag: 0 = everything goes
//!   purge      term 8 | index 8
//!   committed  term 8 | index 8
//!   snapshot   term 8 | index 8 | file length 4 | meta length 4 | file | meta | inline
//!                                                                     flag: 0 = no position
//!   closed     nothing (replica 0): the log was closed in order
//! ```
//!
//! A *use* numbers a segment file's uses: every new one gets the next number of the directory. The checksums
//! of headers and bodies start from the directory's salt, the use and the file offset, so that neither
//! leftovers of an earlier use nor bytes of users pass for a batch. A record's own checksum is for reading it
//! alone; it does not know its place, so that records can be copied.

use super::{Position, ReplicaRecord, SnapshotPointer, VoteRecord};
use bytes::Bytes;

pub(crate) const FORMAT_VERSION: u16 = 1;
/// Where a segment's first batch starts: another sector than its header's on every disk.
pub(crate) const FIRST_OFFSET: u64 = 4096;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
pub(crate) const BATCH_HEADER_BYTES: usize = 48;
pub(crate) const RECORD_HEADER_BYTES: usize = 24;
/// Batches and records start at multiples of this.
pub(crate) const ALIGNMENT: usize = 8;
/// The use of a segment that was prepared and holds nothing yet.
pub(crate) const UNUSED: u64 = 0;

const SEGMENT_MAGIC: [u8; 8] = *b"RV-WAL\r\n";
const BATCH_MAGIC: [u8; 4] = *b"RVb\n";

pub(crate) type Salt = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) salt: Salt,
    /// [`UNUSED`], or above every use before it.
    pub(crate) segment_use: u64,
    /// The sequence of its first batch.
    pub(crate) first_sequence: u64,
    /// The segment from which recovery must start as long as this one holds no batch.
    pub(crate) oldest_use: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SegmentHeaderError {
    /// No segment header, or a damaged one.
    Invalid,
    /// A segment of a newer program.
    Version(u32),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&u32::from(FORMAT_VERSION).to_le_bytes());
        bytes[16..32].copy_from_slice(&self.salt);
        put_u64(&mut bytes, 32, self.segment_use);
        put_u64(&mut bytes, 40, self.first_sequence);
        put_u64(&mut bytes, 48, self.oldest_use);
        let crc = crc32c::crc32c(&bytes[..60]);
        put_u32(&mut bytes, 60, crc);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SegmentHeaderError> {
        if bytes.len() < SEGMENT_HEADER_BYTES || bytes[0..8] != SEGMENT_MAGIC {
            return Err(SegmentHeaderError::Invalid);
        }
        let version = get_u32(bytes, 8);
        if version > u32::from(FORMAT_VERSION) {
            return Err(SegmentHeaderError::Version(version));
        }
        if get_u32(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return Err(SegmentHeaderError::Invalid);
        }
        let mut salt = [0; 16];
        salt.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            salt,
            segment_use: get_u64(bytes, 32),
            first_sequence: get_u64(bytes, 40),
            oldest_use: get_u64(bytes, 48),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) segment_use: u64,
    /// One more than the batch before it, over all segments.
    pub(crate) sequence: u64,
    /// Segments of a smaller use hold nothing that is needed once this batch is synced.
    pub(crate) oldest_use: u64,
    pub(crate) count: u32,
    pub(crate) body_length: u32,
    pub(crate) body_crc: u32,
}

impl BatchHeader {
    /// Writes the header into the free bytes at the front of `batch`, which is to be written at `offset`.
    pub(crate) fn seal(mut self, batch: &mut [u8], salt: &Salt, offset: u64) {
        let (header, body) = batch.split_at_mut(BATCH_HEADER_BYTES);
        self.body_length = u32_of(body.len());
        self.body_crc = placed_crc(salt, self.segment_use, offset + BATCH_HEADER_BYTES as u64, body);
        header.fill(0);
        header[0..4].copy_from_slice(&BATCH_MAGIC);
        header[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        put_u64(header, 8, self.segment_use);
        put_u64(header, 16, self.sequence);
        put_u64(header, 24, self.oldest_use);
        put_u32(header, 32, self.count);
        put_u32(header, 36, self.body_length);
        put_u32(header, 40, self.body_crc);
        let crc = placed_crc(salt, self.segment_use, offset, &header[..44]);
        put_u32(header, 44, crc);
    }

    /// The header of a batch of `segment_use` at `offset`; none if anything about it is wrong.
    pub(crate) fn decode(bytes: &[u8], salt: &Salt, segment_use: u64, offset: u64) -> Option<Self> {
        let magic = bytes.len() >= BATCH_HEADER_BYTES && bytes[0..4] == BATCH_MAGIC;
        if !magic
            || bytes[4..6] != FORMAT_VERSION.to_le_bytes()
            || get_u64(bytes, 8) != segment_use
            || get_u32(bytes, 44) != placed_crc(salt, segment_use, offset, &bytes[..44])
        {
            return None;
        }
        Some(Self {
            segment_use,
            sequence: get_u64(bytes, 16),
            oldest_use: get_u64(bytes, 24),
            count: get_u32(bytes, 32),
            body_length: get_u32(bytes, 36),
            body_crc: get_u32(bytes, 40),
        })
    }

    /// The format of a batch of `segment_use` at `offset` whose header is right, and which this program does not know: a
    /// header of any format has its version, its use and its checksum where they are in this one.
    pub(crate) fn other_version(bytes: &[u8], salt: &Salt, segment_use: u64, offset: u64) -> Option<u16> {
        let magic = bytes.len() >= BATCH_HEADER_BYTES && bytes[0..4] == BATCH_MAGIC;
        let is_whole = magic
            && get_u64(bytes, 8) == segment_use
            && get_u32(bytes, 44) == placed_crc(salt, segment_use, offset, &bytes[..44]);
        let version = is_whole.then(|| u16::from_le_bytes([bytes[4], bytes[5]]));
        version.filter(|&version| version != FORMAT_VERSION)
    }

    /// Whether `body` is the one that this header, at `offset`, was written with.
    pub(crate) fn matches(&self, body: &[u8], salt: &Salt, offset: u64) -> bool {
        let offset = offset + BATCH_HEADER_BYTES as u64;
        placed_crc(salt, self.segment_use, offset, body) == self.body_crc
    }
}

/// The offset, counted from `first`, of the first place in `bytes` where a batch header may start.
pub(crate) fn find_magic(bytes: &[u8], first: usize) -> Option<usize> {
    let mut at = first;
    while at + BATCH_HEADER_BYTES <= bytes.len() {
        if bytes[at..at + 4] == BATCH_MAGIC {
            return Some(at);
        }
        at += ALIGNMENT;
    }
    None
}

/// As a program of another format would write the header of a batch.
#[cfg(test)]
pub(crate) fn change_version(header: &mut [u8], version: u16, salt: &Salt, segment_use: u64, offset: u64) {
    header[4..6].copy_from_slice(&version.to_le_bytes());
    let crc = placed_crc(salt, segment_use, offset, &header[..44]);
    put_u32(header, 44, crc);
}

fn placed_crc(salt: &Salt, segment_use: u64, offset: u64, bytes: &[u8]) -> u32 {
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(salt);
    seed[16..24].copy_from_slice(&segment_use.to_le_bytes());
    seed[24..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&seed), bytes)
}

/// One fact about a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Created(ReplicaRecord),
    Removed,
    Entry {
        term: u64,
        index: u64,
        payload: &'a [u8],
    },
    Vote(VoteRecord),
    /// Entries above this index go; all of them without one.
    Truncate(Option<u64>),
    Purge(Position),
    Committed(Position),
    Snapshot(SnapshotPointer),
    Closed,
}

const CREATED: u8 = 1;
const REMOVED: u8 = 2;
const ENTRY: u8 = 3;
const VOTE: u8 = 4;
const TRUNCATE: u8 = 5;
const PURGE: u8 = 6;
const COMMITTED: u8 = 7;
const SNAPSHOT: u8 = 8;
const CLOSED: u8 = 9;

impl Record<'_> {
    /// Appends the record to `bytes` and returns its length, without the padding.
    pub(crate) fn encode(&self, replica: u64, bytes: &mut Vec<u8>) -> u32 {
        let start = bytes.len();
        bytes.resize(start + RECORD_HEADER_BYTES, 0);
        let (kind, flag) = self.encode_body(bytes);
        let end = bytes.len();
        let record = &mut bytes[start..];
        put_u32(record, 0, u32_of(end - start - RECORD_HEADER_BYTES));
        put_u64(record, 8, replica);
        record[16] = kind;
        record[17] = u8::from(flag);
        let crc = record_crc(record);
        put_u32(record, 4, crc);
        pad(bytes);
        u32_of(end - start)
    }

    fn encode_body(&self, bytes: &mut Vec<u8>) -> (u8, bool) {
        match self {
            Record::Created(created) => {
                bytes.extend_from_slice(&created.incarnation.to_le_bytes());
                bytes.extend_from_slice(&u32_of(created.group.len()).to_le_bytes());
                bytes.extend_from_slice(created.group.as_bytes());
                bytes.extend_from_slice(&created.detail);
                (CREATED, false)
            }
            Record::Removed => (REMOVED, false),
            Record::Entry { term, index, payload } => {
                push_pair(bytes, *term, *index);
                bytes.extend_from_slice(payload);
                (ENTRY, false)
            }
            Record::Vote(vote) => {
                push_pair(bytes, vote.term, vote.voted_for);
                (VOTE, vote.committed)
            }
            Record::Truncate(after) => {
                bytes.extend_from_slice(&after.unwrap_or(0).to_le_bytes());
                (TRUNCATE, after.is_some())
            }
            Record::Purge(position) => {
                push_pair(bytes, position.term, position.index);
                (PURGE, false)
            }
            Record::Committed(position) => {
                push_pair(bytes, position.term, position.index);
                (COMMITTED, false)
            }
            Record::Snapshot(pointer) => {
                let position = pointer.position.unwrap_or(Position { term: 0, index: 0 });
                push_pair(bytes, position.term, position.index);
                bytes.extend_from_slice(&u32_of(pointer.file.len()).to_le_bytes());
                bytes.extend_from_slice(&u32_of(pointer.meta.len()).to_le_bytes());
                bytes.extend_from_slice(pointer.file.as_bytes());
                bytes.extend_from_slice(&pointer.meta);
                bytes.extend_from_slice(&pointer.inline);
                (SNAPSHOT, pointer.position.is_some())
            }
            Record::Closed => (CLOSED, false),
        }
    }

    /// An upper bound of the bytes that [`Record::encode`] appends.
    pub(crate) fn encoded_bound(&self) -> usize {
        let variable = match self {
            Record::Created(created) => created.group.len() + created.detail.len(),
            Record::Entry { payload, .. } => payload.len(),
            Record::Snapshot(pointer) => pointer.file.len() + pointer.meta.len() + pointer.inline.len(),
            _ => 0,
        };
        RECORD_HEADER_BYTES + 24 + variable + ALIGNMENT
    }
}

/// A record as it was found in a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FoundRecord<'a> {
    /// From the body's start.
    pub(crate) offset: u32,
    /// Without the padding.
    pub(crate) length: u32,
    pub(crate) replica: u64,
    pub(crate) record: Record<'a>,
}

/// What stands at an offset of a body is no record, though the body's checksum is right.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadRecord {
    pub(crate) offset: u32,
}

/// Reads a body's records in order; ends after the first that is none.
pub(crate) fn records(body: &[u8]) -> impl Iterator<Item = Result<FoundRecord<'_>, BadRecord>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= body.len() {
            return None;
        }
        let offset = u32_of(at);
        let Some((replica, record, length)) = decode(&body[at..]) else {
            at = body.len();
            return Some(Err(BadRecord { offset }));
        };
        at += padded(length);
        Some(Ok(FoundRecord { offset, length: u32_of(length), replica, record }))
    })
}

/// The record at the start of `bytes`, its replica and its length without the padding.
pub(crate) fn decode(bytes: &[u8]) -> Option<(u64, Record<'_>, usize)> {
    if bytes.len() < RECORD_HEADER_BYTES {
        return None;
    }
    let length = RECORD_HEADER_BYTES.checked_add(get_u32(bytes, 0) as usize)?;
    let bytes = bytes.get(..length)?;
    if record_crc(bytes) != get_u32(bytes, 4) || bytes[17] > 1 {
        return None;
    }
    let replica = get_u64(bytes, 8);
    let record = decode_body(replica, bytes[16], bytes[17] == 1, &bytes[RECORD_HEADER_BYTES..])?;
    Some((replica, record, length))
}

fn decode_body(replica: u64, kind: u8, flag: bool, body: &[u8]) -> Option<Record<'_>> {
    let fixed = match kind {
        CREATED => 12,
        REMOVED | CLOSED => 0,
        TRUNCATE => 8,
        ENTRY | VOTE | PURGE | COMMITTED => 16,
        SNAPSHOT => 24,
        _ => return None,
    };
    if body.len() < fixed {
        return None;
    }
    let (body, rest) = body.split_at(fixed);
    if !rest.is_empty() && !matches!(kind, CREATED | ENTRY | SNAPSHOT) {
        return None;
    }
    let position = || Position { term: get_u64(body, 0), index: get_u64(body, 8) };
    Some(match kind {
        CREATED => {
            let (group, detail) = rest.split_at_checked(get_u32(body, 8) as usize)?;
            Record::Created(ReplicaRecord {
                replica,
                group: String::from_utf8(group.to_vec()).ok()?,
                incarnation: get_u64(body, 0),
                detail: Bytes::copy_from_slice(detail),
            })
        }
        REMOVED => Record::Removed,
        ENTRY => Record::Entry { term: get_u64(body, 0), index: get_u64(body, 8), payload: rest },
        VOTE => Record::Vote(VoteRecord { term: get_u64(body, 0), voted_for: get_u64(body, 8), committed: flag }),
        TRUNCATE => Record::Truncate(flag.then(|| get_u64(body, 0))),
        PURGE => Record::Purge(position()),
        COMMITTED => Record::Committed(position()),
        SNAPSHOT => {
            let (file, rest) = rest.split_at_checked(get_u32(body, 16) as usize)?;
            let (meta, inline) = rest.split_at_checked(get_u32(body, 20) as usize)?;
            Record::Snapshot(SnapshotPointer {
                position: flag.then(position),
                meta: Bytes::copy_from_slice(meta),
                file: String::from_utf8(file.to_vec()).ok()?,
                inline: Bytes::copy_from_slice(inline),
            })
        }
        _ => Record::Closed,
    })
}

fn record_crc(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..4]), &record[8..])
}

/// `length` and the zeros that follow it.
pub(crate) fn padded(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(padded(bytes.len()), 0);
}

fn push_pair(bytes: &mut Vec<u8>, first: u64, second: u64) {
    bytes.extend_from_slice(&first.to_le_bytes());
    bytes.extend_from_slice(&second.to_le_bytes());
}

/// Lengths inside a segment: a segment is at most 1 GiB, and what does not fit one is refused before.
fn u32_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const SALT: Salt = *b"0123456789abcdef";

    fn hex(bytes: &[u8]) -> String {
        let words: Vec<String> =
            bytes.chunks(8).map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        words.chunks(4).map(|line| line.join(" ")).collect::<Vec<_>>().join("\n")
    }

    fn check(record: &Record<'_>, expected: Expect) {
        let mut bytes = Vec::new();
        let length = record.encode(0x1122_3344_5566_7788, &mut bytes);
        assert!(bytes.len() <= record.encoded_bound() && bytes.len() % ALIGNMENT == 0);
        expected.assert_eq(&hex(&bytes));
        let (replica, found, found_length) = decode(&bytes).unwrap();
        assert_eq!(replica, 0x1122_3344_5566_7788);
        assert_eq!((&found, found_length), (record, length as usize));
        for bit in 0..length as usize * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&changed), None, "bit {bit} of {record:?}");
        }
    }

    #[test]
    fn the_bytes_of_each_record_are_fixed() {
        check(
            &Record::Created(ReplicaRecord {
                replica: 0x1122_3344_5566_7788,
                group: "orders".into(),
                incarnation: 3,
                detail: Bytes::from_static(b"\x01\x02"),
            }),
            expect![[r#"
                14000000975c90d4 8877665544332211 0100000000000000 0300000000000000
                060000006f726465 7273010200000000"#]],
        );
        check(&Record::Removed, expect!["000000009e593c00 8877665544332211 0200000000000000"]);
        check(
            &Record::Entry { term: 5, index: 6, payload: b"hello" },
            expect![[r#"
            15000000d6008e61 8877665544332211 0300000000000000 0500000000000000
            0600000000000000 68656c6c6f000000"#]],
        );
        check(
            &Record::Vote(VoteRecord { term: 5, voted_for: 9, committed: true }),
            expect![[r#"
            1000000099ec130e 8877665544332211 0401000000000000 0500000000000000
            0900000000000000"#]],
        );
        check(
            &Record::Truncate(Some(4)),
            expect!["08000000de33560b 8877665544332211 0501000000000000 0400000000000000"],
        );
        check(&Record::Truncate(None), expect!["08000000b24cc54d 8877665544332211 0500000000000000 0000000000000000"]);
        check(
            &Record::Purge(Position { term: 5, index: 6 }),
            expect![[r#"
            1000000092eed1b2 8877665544332211 0600000000000000 0500000000000000
            0600000000000000"#]],
        );
        check(
            &Record::Committed(Position { term: 5, index: 6 }),
            expect![[r#"
            100000001c2c9e08 8877665544332211 0700000000000000 0500000000000000
            0600000000000000"#]],
        );
        check(
            &Record::Snapshot(SnapshotPointer {
                position: Some(Position { term: 5, index: 6 }),
                meta: Bytes::from_static(b"meta"),
                file: "7.snapshot".into(),
                inline: Bytes::new(),
            }),
            expect![[r#"
                26000000b28321f6 8877665544332211 0801000000000000 0500000000000000
                0600000000000000 0a00000004000000 372e736e61707368 6f746d6574610000"#]],
        );
    }

    #[test]
    fn the_bytes_of_a_batch_are_fixed() {
        let mut bytes = vec![0; BATCH_HEADER_BYTES];
        Record::Closed.encode(0, &mut bytes);
        let header = BatchHeader { segment_use: 3, sequence: 17, oldest_use: 2, count: 1, body_length: 0, body_crc: 0 };
        header.seal(&mut bytes, &SALT, 4096);
        expect![[r#"
            5256620a01000000 0300000000000000 1100000000000000 0200000000000000
            0100000018000000 6a7d5ba000d4e77f 00000000c32fc2b7 0000000000000000
            0900000000000000"#]]
        .assert_eq(&hex(&bytes));
        let found = BatchHeader::decode(&bytes, &SALT, 3, 4096).unwrap();
        assert_eq!((found.sequence, found.oldest_use, found.count, found.body_length), (17, 2, 1, 24));
        assert!(found.matches(&bytes[BATCH_HEADER_BYTES..], &SALT, 4096));
        let records: Vec<_> = records(&bytes[BATCH_HEADER_BYTES..]).map(|found| found.unwrap().record).collect();
        assert_eq!(records, [Record::Closed]);
        // Another place, use or directory: no batch.
        assert_eq!(BatchHeader::decode(&bytes, &SALT, 3, 4104), None);
        assert_eq!(BatchHeader::decode(&bytes, &SALT, 4, 4096), None);
        assert_eq!(BatchHeader::decode(&bytes, b"fedcba9876543210", 3, 4096), None);
        for bit in 0..BATCH_HEADER_BYTES * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BatchHeader::decode(&changed, &SALT, 3, 4096), None, "bit {bit}");
        }
    }

    #[test]
    fn the_bytes_of_a_segment_header_are_fixed() {
        let header = SegmentHeader { salt: SALT, segment_use: 3, first_sequence: 17, oldest_use: 2 };
        let bytes = header.encode();
        expect![[r#"
            52562d57414c0d0a 0100000000000000 3031323334353637 3839616263646566
            0300000000000000 1100000000000000 0200000000000000 000000007b229912"#]]
        .assert_eq(&hex(&bytes));
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..SEGMENT_HEADER_BYTES * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_no_record() {
        let mut bytes = Vec::new();
        Record::Entry { term: 1, index: 1, payload: b"" }.encode(1, &mut bytes);
        assert_eq!(decode(&bytes[..RECORD_HEADER_BYTES]), None);
        assert_eq!(decode(&[]), None);
        bytes[0..4].fill(0xff);
        assert_eq!(decode(&bytes), None);
        assert_eq!(records(&bytes).collect::<Vec<_>>(), [Err(BadRecord { offset: 0 })]);
    }
}
