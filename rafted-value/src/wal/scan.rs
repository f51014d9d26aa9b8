//! One segment by itself: its batches as far as they are valid and in sequence, and their records. It needs nothing
//! of other segments, so that many can be gone through at once.

use super::record::{
    ALIGNMENT, BATCH_HEADER_BYTES, BatchHeader, FIRST_OFFSET, FoundRecord, Record, Salt, SegmentHeader, find_magic,
    records,
};

/// How far a segment is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) batches: u64,
    /// Where the last valid batch starts; none if the segment holds none.
    pub(super) last: Option<usize>,
    /// Where it ends, or else where the first one would start.
    pub(super) end: usize,
    /// Segments of a smaller use are not needed, as the last valid batch says, or else the segment's header.
    pub(super) oldest_use: u64,
    /// The last record says that the log was closed in order.
    pub(super) closed: bool,
}

/// Something that was written as it stands, and is not what a program of this version writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flaw {
    Damage {
        offset: u64,
        what: String,
    },
    /// Another program knows what it is.
    Version {
        offset: u64,
        found: u16,
    },
}

/// Goes through a segment's batches until the first that is not valid or not next, or is flawed. `visit` gets each
/// record, with its offset in the segment.
pub(super) fn scan(
    bytes: &[u8],
    salt: &Salt,
    header: &SegmentHeader,
    mut visit: impl FnMut(u32, FoundRecord<'_>),
) -> (Extent, Option<Flaw>) {
    let end = FIRST_OFFSET as usize;
    let mut extent = Extent { batches: 0, last: None, end, oldest_use: header.oldest_use, closed: false };
    while let Some((batch, end)) = next_batch(bytes, salt, header, &extent) {
        let start = extent.end;
        let body_offset = start + BATCH_HEADER_BYTES;
        let mut count = 0;
        for record in records(&bytes[body_offset..end]) {
            let record = match record {
                Ok(record) => record,
                Err(bad) => {
                    let offset = (body_offset + bad.offset as usize) as u64;
                    let what = "a record of an unknown kind".into();
                    return (Extent { closed: false, ..extent }, Some(Flaw::Damage { offset, what }));
                }
            };
            count += 1;
            extent.closed = record.record == Record::Closed;
            // Offsets in a segment have 32 bits.
            visit(body_offset as u32 + record.offset, record);
        }
        if count != batch.count {
            let what = format!("a batch of {} records has {count}", batch.count);
            return (Extent { closed: false, ..extent }, Some(Flaw::Damage { offset: start as u64, what }));
        }
        extent = Extent { batches: extent.batches + 1, last: Some(start), end, oldest_use: batch.oldest_use, ..extent };
    }
    // No torn tail: its header is right, and so it is to be read by who knows it.
    let rest = bytes.get(extent.end..).unwrap_or_default();
    let offset = extent.end as u64;
    let other = BatchHeader::other_version(rest, salt, header.segment_use, offset);
    (extent, other.map(|found| Flaw::Version { offset, found }))
}

/// The next batch, if it is valid and has the sequence that is due, and where it ends.
fn next_batch(bytes: &[u8], salt: &Salt, header: &SegmentHeader, extent: &Extent) -> Option<(BatchHeader, usize)> {
    let at = extent.end;
    let batch = BatchHeader::decode(bytes.get(at..)?, salt, header.segment_use, at as u64)?;
    let body_offset = at + BATCH_HEADER_BYTES;
    let end = body_offset.checked_add(batch.body_length as usize)?;
    let body = bytes.get(body_offset..end)?;
    let is_next = batch.sequence == header.first_sequence + extent.batches;
    (is_next && batch.matches(body, salt, at as u64)).then_some((batch, end))
}

/// The offset, at or behind `from`, of the first valid header of a batch of this use that is `wanted`.
pub(super) fn find_header(
    bytes: &[u8],
    from: usize,
    salt: &Salt,
    segment_use: u64,
    wanted: impl Fn(&BatchHeader) -> bool,
) -> Option<usize> {
    let mut at = from;
    while let Some(candidate) = find_magic(bytes, at) {
        match BatchHeader::decode(&bytes[candidate..], salt, segment_use, candidate as u64) {
            Some(header) if wanted(&header) => return Some(candidate),
            _ => at = candidate + ALIGNMENT,
        }
    }
    None
}

/// Whether the header of a batch of this use, or its beginning, stands at `at`, where no valid batch is: a write that
/// was cut off. Leftovers of an earlier use bear another number.
pub(super) fn is_begun(bytes: &[u8], at: usize, segment_use: u64) -> bool {
    let header = bytes.get(at..at + BATCH_HEADER_BYTES).unwrap_or_default();
    find_magic(header, 0) == Some(0) && header[8..16] == segment_use.to_le_bytes()
}
