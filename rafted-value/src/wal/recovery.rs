//! Opens a log's directory: finds what was synced, and tells a torn tail, which nobody was promised, from
//! damage, which must stop the node.
//!
//! 1. Every segment's header; the newest one's batches, the last of which says where to start.
//! 2. All segments from there, in the order of their uses, batch by batch. It ends at the first that is not
//!    valid and next. There was never more than one batch that was not synced, so whatever follows it is proof
//!    that it was synced once: a later segment that starts with a later sequence, or behind it the header of a
//!    later batch of the same use. Then it is damage.
//! 3. What was read last may be in the page cache only: it is written again in place, with a zeroed header
//!    behind it, and synced, before anybody is served. So what was found stays, and what was dropped stays
//!    dropped.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::index::{Index, Place};
use super::record::{
    ALIGNMENT, BATCH_HEADER_BYTES, BatchHeader, FIRST_OFFSET, FORMAT_VERSION, SEGMENT_HEADER_BYTES, Salt,
    SegmentHeader, SegmentHeaderError, UNUSED, find_magic, records,
};
use super::segment::{SegmentFile, Segments, Spare, Used, segment_number, segment_path};
use super::{WalConfig, WalError};
use crate::disk::Disk;

/// What was found, or made.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) segments: Segments,
    pub(super) next_sequence: u64,
    pub(super) oldest_use: u64,
}

/// A segment that was found.
struct Found {
    segment: SegmentFile,
    length: u64,
    header: Option<SegmentHeader>,
}

impl Found {
    fn into_spare(self) -> Spare {
        Spare { filled: self.length, segment: Arc::new(self.segment) }
    }

    fn damage(&self, offset: u64, what: impl Into<String>) -> WalError {
        damage(&self.segment, offset, what)
    }
}

fn damage(segment: &SegmentFile, offset: u64, what: impl Into<String>) -> WalError {
    WalError::Damage { file: segment.path.clone(), offset, what: what.into() }
}

pub(super) fn recover(disk: Arc<dyn Disk>, dir: &Path, config: &WalConfig) -> Result<Recovered, WalError> {
    disk.create_dir_all(dir).map_err(failed("create", dir))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent).map_err(failed("sync", parent))?;
    }
    let found = find(&*disk, dir)?;
    let next_number = found.iter().filter_map(|(name, _)| segment_number(name)).max().unwrap_or(0) + 1;
    let found: Vec<Found> = found.into_iter().map(|(_, found)| found).collect();
    let salt = common_salt(&found)?;
    let mut segments = Segments {
        disk,
        dir: dir.to_owned(),
        salt: salt.or(config.salt).unwrap_or_else(crate::runtime::random),
        segment_bytes: config.segment_bytes,
        reserve: config.reserve_segments,
        used: BTreeMap::new(),
        spares: Vec::new(),
        next_number,
        syncs: 0,
        full: None,
    };
    let mut used = BTreeMap::new();
    let mut suspects = Vec::new();
    for found in found {
        match found.header {
            Some(header) if header.segment_use == UNUSED => segments.spares.push(found.into_spare()),
            Some(header) => {
                if let Some(twin) = used.insert(header.segment_use, found) {
                    return Err(twin.damage(32, format!("two segments have use {}", header.segment_use)));
                }
            }
            None => suspects.push(found),
        }
    }
    let newest = used.last_key_value().map(|(&segment_use, _)| segment_use);
    for suspect in suspects {
        check_unused(&suspect, salt, newest.unwrap_or(UNUSED) + 1)?;
        segments.spares.push(suspect.into_spare());
    }
    if let (None, Some(spare)) = (newest, segments.spares.first().filter(|_| salt.is_some())) {
        // Spares are made after the first segment's header was synced.
        return Err(damage(&spare.segment, 0, "all segments are prepared for use, and those in use are missing"));
    }
    match newest {
        Some(newest) => Recovery::read(segments, used, newest, config),
        None => create(segments, config),
    }
}

/// A new log.
fn create(mut segments: Segments, config: &WalConfig) -> Result<Recovered, WalError> {
    let dir = segments.dir.clone();
    let segment_use = UNUSED + 1;
    let spare = match segments.spares.pop() {
        Some(spare) => spare,
        None => {
            let path = segment_path(&dir, segments.next_number);
            segments.next_number += 1;
            let file = segments.disk.create(&path).map_err(failed("create", &path))?;
            Spare { segment: Arc::new(SegmentFile { path, file }), filled: 0 }
        }
    };
    let header =
        SegmentHeader { salt: segments.salt, segment_use, first_sequence: 1, oldest_use: segment_use }.encode();
    let file = &spare.segment.file;
    let written = file.write_at(&header, 0).and_then(|()| file.sync());
    written.map_err(failed("write", &spare.segment.path))?;
    segments.disk.sync_dir(&dir).map_err(failed("sync", &dir))?;
    let filled = spare.filled.max(header.len() as u64);
    segments.used.insert(segment_use, Used { segment: spare.segment, end: FIRST_OFFSET, filled });
    Ok(Recovered { index: Index::new(config.cache_bytes), segments, next_sequence: 1, oldest_use: segment_use })
}

fn find(disk: &dyn Disk, dir: &Path) -> Result<Vec<(String, Found)>, WalError> {
    let mut all = Vec::new();
    for name in disk.list(dir).map_err(failed("list", dir))? {
        if segment_number(&name).is_none() {
            continue;
        }
        let path = dir.join(&name);
        let file = disk.open(&path).map_err(failed("open", &path))?;
        let length = file.len().map_err(failed("read", &path))?;
        let mut header = vec![0; SEGMENT_HEADER_BYTES.min(length as usize)];
        file.read_at(&mut header, 0).map_err(failed("read", &path))?;
        let header = match SegmentHeader::decode(&header) {
            Ok(header) => Some(header),
            Err(SegmentHeaderError::Invalid) => None,
            Err(SegmentHeaderError::Version(found)) => {
                return Err(WalError::Version { file: path, found, supported: u32::from(FORMAT_VERSION) });
            }
        };
        all.push((name, Found { segment: SegmentFile { path, file }, length, header }));
    }
    Ok(all)
}

fn common_salt(found: &[Found]) -> Result<Option<Salt>, WalError> {
    let mut common: Option<Salt> = None;
    for found in found {
        match (found.header, common) {
            (Some(header), None) => common = Some(header.salt),
            (Some(header), Some(salt)) if header.salt != salt => {
                return Err(WalError::Foreign { file: found.segment.path.clone() });
            }
            _ => {}
        }
    }
    Ok(common)
}

/// A segment without a header may be one that was being made or reused at a crash; then nothing was written to
/// it for `next_use`. If something was, its header was synced before, and is damaged now.
fn check_unused(suspect: &Found, salt: Option<Salt>, next_use: u64) -> Result<(), WalError> {
    let bytes = read_all(suspect)?;
    let body = bytes.get(SEGMENT_HEADER_BYTES..).unwrap_or_default();
    let written = match salt {
        Some(salt) => find_header(&bytes, FIRST_OFFSET as usize, &salt, next_use, |_| true).is_some(),
        None => body.iter().any(|&byte| byte != 0),
    };
    if written { Err(suspect.damage(0, "the segment's header is not valid")) } else { Ok(()) }
}

fn find_header(
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

fn read_all(found: &Found) -> Result<Vec<u8>, WalError> {
    let mut bytes = vec![0; found.length as usize];
    found.segment.file.read_at(&mut bytes, 0).map_err(failed("read", &found.segment.path))?;
    Ok(bytes)
}

/// A batch that was read last.
struct LastBatch {
    segment_use: u64,
    offset: u64,
    bytes: Vec<u8>,
}

struct Recovery {
    index: Index,
    segments: Segments,
    next_sequence: u64,
    last: Option<LastBatch>,
}

impl Recovery {
    fn read(
        segments: Segments,
        mut used: BTreeMap<u64, Found>,
        newest: u64,
        config: &WalConfig,
    ) -> Result<Recovered, WalError> {
        let salt = segments.salt;
        let oldest = match used.get(&newest) {
            Some(found) => oldest_needed(found, &salt)?.min(newest),
            None => newest,
        };
        let mut recovery = Recovery { index: Index::new(config.cache_bytes), segments, next_sequence: 0, last: None };
        let needed = used.split_off(&oldest);
        recovery.segments.spares.extend(used.into_values().map(Found::into_spare));
        let first_path = needed.values().next().map(|found| found.segment.path.clone());
        let mut before: Option<(u64, Arc<SegmentFile>)> = None;
        for (expected_use, (segment_use, found)) in (oldest..).zip(needed) {
            if segment_use != expected_use {
                return Err(found.damage(32, format!("the segment before it, of use {expected_use}, is missing")));
            }
            recovery.check_start(&found, before.as_ref())?;
            let segment = recovery.read_segment(found, segment_use, segment_use == newest)?;
            before = recovery.segments.used.get(&segment_use).map(|used| (used.end, segment));
        }
        if let Err(inconsistent) = recovery.index.check() {
            let file = first_path.unwrap_or_else(|| recovery.segments.dir.clone());
            return Err(WalError::Damage { file, offset: FIRST_OFFSET, what: inconsistent.to_string() });
        }
        recovery.settle()?;
        let Recovery { index, segments, next_sequence, .. } = recovery;
        Ok(Recovered { index, segments, next_sequence, oldest_use: oldest })
    }

    /// The segment must begin where the one before it ended.
    fn check_start(&mut self, found: &Found, before: Option<&(u64, Arc<SegmentFile>)>) -> Result<(), WalError> {
        let first = found.header.map_or(0, |header| header.first_sequence);
        match before {
            None => self.next_sequence = first,
            Some((end, segment)) if first > self.next_sequence => {
                let what = format!("batch {} is not valid, but batch {first} was written later", self.next_sequence);
                return Err(damage(segment, *end, what));
            }
            Some(_) if first < self.next_sequence => {
                return Err(found.damage(40, format!("batch {first} is there twice")));
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn read_segment(&mut self, found: Found, segment_use: u64, newest: bool) -> Result<Arc<SegmentFile>, WalError> {
        let bytes = read_all(&found)?;
        let salt = self.segments.salt;
        let mut at = FIRST_OFFSET as usize;
        while let Some((header, end)) = next_batch(&bytes, at, &salt, segment_use, self.next_sequence) {
            let body_offset = at + BATCH_HEADER_BYTES;
            let mut count = 0;
            for record in records(&bytes[body_offset..end]) {
                let record = record.map_err(|bad| {
                    found.damage((body_offset + bad.offset as usize) as u64, "a record of an unknown kind")
                })?;
                count += 1;
                // Offsets in a segment have 32 bits.
                let offset = body_offset as u32 + record.offset;
                let place = Place::Written { segment_use, offset, length: record.length };
                self.index.apply(record.replica, &record.record, place, None);
            }
            if count != header.count {
                return Err(found.damage(at as u64, format!("a batch of {} records has {count}", header.count)));
            }
            self.last = Some(LastBatch { segment_use, offset: at as u64, bytes: bytes[at..end].to_vec() });
            self.next_sequence += 1;
            at = end;
        }
        if newest {
            let expected = self.next_sequence;
            let later = find_header(&bytes, at, &salt, segment_use, |header| header.sequence > expected);
            if let Some(later) = later {
                let what = format!("batch {expected} is not valid, but at byte {later} there is a later one");
                return Err(found.damage(at as u64, what));
            }
        }
        let filled = found.length;
        let segment = Arc::new(found.segment);
        self.segments.used.insert(segment_use, Used { segment: segment.clone(), end: at as u64, filled });
        Ok(segment)
    }

    /// Makes what was found certain.
    fn settle(&mut self) -> Result<(), WalError> {
        if let Some(last) = self.last.take() {
            self.settle_at(last.segment_use, last.offset, last.bytes)?;
        }
        let newest = self.segments.active_use();
        if let Some(active) = self.segments.used.get(&newest)
            && active.end == FIRST_OFFSET
        {
            let path = active.segment.path.clone();
            let mut header = vec![0; SEGMENT_HEADER_BYTES];
            active.segment.file.read_at(&mut header, 0).map_err(failed("read", &path))?;
            self.settle_at(newest, 0, header)?;
            self.settle_at(newest, FIRST_OFFSET, Vec::new())?;
        }
        let dir = self.segments.dir.clone();
        self.segments.disk.sync_dir(&dir).map_err(failed("sync", &dir))
    }

    /// Writes `bytes`, which are there already, and zeros for a header behind them.
    fn settle_at(&mut self, segment_use: u64, offset: u64, mut bytes: Vec<u8>) -> Result<(), WalError> {
        let limit = self.segments.segment_bytes;
        let Some(used) = self.segments.used.get_mut(&segment_use) else {
            return Ok(());
        };
        let end = offset + bytes.len() as u64;
        let zeros = (BATCH_HEADER_BYTES as u64).min(limit.max(used.filled).saturating_sub(end));
        bytes.resize(bytes.len() + zeros as usize, 0);
        let file = &used.segment.file;
        let written = file.write_at(&bytes, offset).and_then(|()| file.sync());
        written.map_err(failed("write", &used.segment.path))?;
        self.segments.syncs += 1;
        used.filled = used.filled.max(end + zeros);
        Ok(())
    }
}

/// The batch at `at`, if it is valid and has this sequence, and where it ends.
fn next_batch(bytes: &[u8], at: usize, salt: &Salt, segment_use: u64, sequence: u64) -> Option<(BatchHeader, usize)> {
    let header = BatchHeader::decode(bytes.get(at..)?, salt, segment_use, at as u64)?;
    let body_offset = at + BATCH_HEADER_BYTES;
    let end = body_offset.checked_add(header.body_length as usize)?;
    let body = bytes.get(body_offset..end)?;
    (header.sequence == sequence && header.matches(body, salt, at as u64)).then_some((header, end))
}

/// The oldest segment that is needed, as the newest one's last valid batch says, or its header.
fn oldest_needed(found: &Found, salt: &Salt) -> Result<u64, WalError> {
    let Some(header) = found.header else {
        return Err(found.damage(0, "the segment's header is not valid"));
    };
    let bytes = read_all(found)?;
    let (mut oldest, mut sequence) = (header.oldest_use, header.first_sequence);
    let mut at = FIRST_OFFSET as usize;
    while let Some((batch, end)) = next_batch(&bytes, at, salt, header.segment_use, sequence) {
        (oldest, sequence, at) = (batch.oldest_use, sequence + 1, end);
    }
    Ok(oldest)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalError {
    let path: PathBuf = path.to_owned();
    move |source| WalError::Io { action, path, source }
}
