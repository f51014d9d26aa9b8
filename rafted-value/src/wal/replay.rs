//! Reads all segments that are needed and applies their records in order. Nothing is written.
//!
//! Segments are read, checked and parsed by several threads at once, see `in_order`; the index takes their facts one
//! segment after another, so that the result, and the damage that is found, do not depend on the threads.

use std::collections::BTreeMap;
use std::time::Instant;

use super::WalError;
use super::in_order::in_order;
use super::index::{Index, Place};
use super::progress::Progress;
use super::record::{FIRST_OFFSET, FoundRecord, Record, Salt};
use super::scan::{Extent, find_header, scan};
use super::survey::{FoundUsed, damage};

/// The result.
pub(super) struct Replay {
    pub(super) index: Index,
    /// Segments from this use on are needed.
    pub(super) oldest_use: u64,
    pub(super) next_sequence: u64,
    /// By use: the needed segments, and how far they are valid.
    pub(super) extents: BTreeMap<u64, Extent>,
    /// The batch that was read last.
    pub(super) last: Option<LastBatch>,
}

pub(super) struct LastBatch {
    pub(super) segment_use: u64,
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// One segment's records, as far as recovery needs them.
struct Scanned {
    facts: Vec<PlacedFact>,
    extent: Extent,
    last: Vec<u8>,
    /// Why it ends there, if it should not.
    flaw: Option<WalError>,
}

struct PlacedFact {
    replica: u64,
    offset: u32,
    length: u32,
    fact: Fact,
}

/// A record without the bytes of entries, which stay in the file: most records are entries.
enum Fact {
    Entry { term: u64, index: u64 },
    Other(Box<Record<'static>>),
}

impl Fact {
    fn of(record: Record<'_>) -> Self {
        Self::Other(Box::new(match record {
            Record::Entry { term, index, .. } => return Self::Entry { term, index },
            Record::Created(created) => Record::Created(created),
            Record::Removed => Record::Removed,
            Record::Vote(vote) => Record::Vote(vote),
            Record::Truncate(after) => Record::Truncate(after),
            Record::Purge(position) => Record::Purge(position),
            Record::Committed(position) => Record::Committed(position),
            Record::Snapshot(pointer) => Record::Snapshot(pointer),
            Record::Closed => Record::Closed,
        }))
    }
}

/// Reads the segments of a log, of which the newest is `newest`.
pub(super) fn replay(
    salt: &Salt,
    used: &BTreeMap<u64, FoundUsed>,
    newest: &FoundUsed,
    cache_bytes: usize,
    threads: usize,
) -> Result<Replay, WalError> {
    let (replay, flaw) = replay_what_can_be(salt, used, newest, cache_bytes, threads)?;
    flaw.map_or(Ok(replay), Err)
}

/// The same, but of a log that is flawed, also what stands before the flaw.
pub(super) fn replay_what_can_be(
    salt: &Salt,
    used: &BTreeMap<u64, FoundUsed>,
    newest: &FoundUsed,
    cache_bytes: usize,
    threads: usize,
) -> Result<(Replay, Option<WalError>), WalError> {
    let started = Instant::now();
    let mut buffer = Vec::new();
    // First, because it says where to start. It is applied last.
    let mut newest_scanned = scan_segment(newest, salt, &mut buffer)?;
    let flaw = newest_scanned.flaw.take();
    let flaw = flaw.or_else(|| check_tail(newest, &newest_scanned.extent, &buffer, salt).err());
    drop(buffer);
    let newest_use = newest.header.segment_use;
    let oldest_use = newest_scanned.extent.oldest_use.min(newest_use);
    let older: Vec<&FoundUsed> = used.range(oldest_use..newest_use).map(|(_, found)| found).collect();
    let bytes = older.iter().map(|found| found.length).sum::<u64>() + newest.length;
    let mut progress = Progress::new(older.len() as u64 + 1, bytes);
    let mut replay =
        Replay { index: Index::new(cache_bytes), oldest_use, next_sequence: 0, extents: BTreeMap::new(), last: None };
    let mut records = 0;
    let work = |found: &&FoundUsed, buffer: &mut Vec<u8>| scan_segment(found, salt, buffer);
    let mut take = |found: &FoundUsed, scanned: Result<Scanned, WalError>| {
        replay.check_start(found, used)?;
        let scanned = scanned?;
        records += scanned.facts.len() as u64;
        if let Some(flaw) = replay.apply(found, scanned) {
            return Err(flaw);
        }
        if let Some(read) = progress.segment_read(found.length, started.elapsed()) {
            let super::progress::Report { segments, bytes, percent } = read;
            tracing::info!(segments, bytes, percent, "the log is being read");
        }
        Ok(())
    };
    let mut read = in_order(&older, threads, work, |found, scanned| take(found, scanned));
    if read.is_ok() {
        read = take(newest, Ok(newest_scanned));
    }
    if let Some(flaw) = flaw.or_else(|| read.and_then(|()| replay.check_whole(used)).err()) {
        return Ok((replay, Some(flaw)));
    }
    let (segments, replicas) = (replay.extents.len(), replay.index.replica_count());
    tracing::info!(segments, bytes, records, replicas, took = ?started.elapsed(), "the log was read");
    Ok((replay, None))
}

/// Reads and checks a segment. The buffer holds its bytes on return.
fn scan_segment(found: &FoundUsed, salt: &Salt, buffer: &mut Vec<u8>) -> Result<Scanned, WalError> {
    found.read_into(buffer)?;
    let mut facts = Vec::new();
    let visit = |offset: u32, found: FoundRecord<'_>| {
        let FoundRecord { length, replica, record, .. } = found;
        facts.push(PlacedFact { replica, offset, length, fact: Fact::of(record) });
    };
    let (extent, flaw) = scan(buffer, salt, &found.header, visit);
    let flaw = flaw.map(|flaw| found.flawed(flaw));
    let last = extent.last.map(|start| buffer[start..extent.end].to_vec()).unwrap_or_default();
    Ok(Scanned { facts, extent, last, flaw })
}

/// There was never more than one batch that was not synced: a later one behind the end is proof that what is not
/// valid there was synced once.
fn check_tail(newest: &FoundUsed, extent: &Extent, bytes: &[u8], salt: &Salt) -> Result<(), WalError> {
    let expected = newest.header.first_sequence + extent.batches;
    let is_later = |header: &super::record::BatchHeader| header.sequence > expected;
    match find_header(bytes, extent.end, salt, newest.header.segment_use, is_later) {
        Some(later) => {
            let what = format!("batch {expected} is not valid, but at byte {later} there is a later one");
            Err(newest.damage(extent.end as u64, what))
        }
        None => Ok(()),
    }
}

impl Replay {
    /// The segment must be the one behind those that were read, and begin where they ended.
    fn check_start(&mut self, found: &FoundUsed, used: &BTreeMap<u64, FoundUsed>) -> Result<(), WalError> {
        let expected_use = self.extents.last_key_value().map_or(self.oldest_use, |(before, _)| before + 1);
        if found.header.segment_use != expected_use {
            return Err(found.damage(32, format!("the segment before it, of use {expected_use}, is missing")));
        }
        let first = found.header.first_sequence;
        let before = self.extents.last_key_value().and_then(|(before, extent)| Some((used.get(before)?, extent)));
        match before {
            None => self.next_sequence = first,
            Some((before, extent)) if first > self.next_sequence => {
                let what = format!("batch {} is not valid, but batch {first} was written later", self.next_sequence);
                return Err(damage(&before.segment, extent.end as u64, what));
            }
            Some(_) if first < self.next_sequence => {
                return Err(found.damage(40, format!("batch {first} is there twice")));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Takes what was read, and gives out the flaw at its end.
    fn apply(&mut self, found: &FoundUsed, scanned: Scanned) -> Option<WalError> {
        let segment_use = found.header.segment_use;
        for PlacedFact { replica, offset, length, fact } in scanned.facts {
            let place = Place::Written { segment_use, offset, length };
            match fact {
                Fact::Entry { term, index } => {
                    let record = Record::Entry { term, index, payload: &[] };
                    self.index.apply(replica, &record, place, None);
                }
                Fact::Other(record) => self.index.apply(replica, &record, place, None),
            }
        }
        self.next_sequence += scanned.extent.batches;
        if let Some(start) = scanned.extent.last {
            self.last = Some(LastBatch { segment_use, offset: start as u64, bytes: scanned.last });
        }
        self.extents.insert(segment_use, scanned.extent);
        scanned.flaw
    }

    fn check_whole(&self, used: &BTreeMap<u64, FoundUsed>) -> Result<(), WalError> {
        let Err(inconsistent) = self.index.check() else {
            return Ok(());
        };
        let oldest = used.get(&self.oldest_use).map(|found| found.segment.path.clone());
        let file = oldest.unwrap_or_default();
        Err(WalError::Damage { file, offset: FIRST_OFFSET, what: inconsistent.to_string() })
    }
}
