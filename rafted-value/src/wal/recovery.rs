//! Opens a log's directory: finds what was synced, and tells a torn tail, which nobody was promised, from
//! damage, which must stop the node.
//!
//! 1. `survey`: every segment's header.
//! 2. `replay`: the newest segment's batches, the last of which says where to start; then all segments from there, in
//!    the order of their uses, batch by batch. It ends at the first that is not valid and next. There was never more
//!    than one batch that was not synced, so whatever follows it is proof that it was synced once: a later segment
//!    that starts with a later sequence, or behind it the header of a later batch of the same use. Then it is damage.
//! 3. Here: what was read last may be in the page cache only. It is written again in place, with a zeroed header
//!    behind it, and synced, before anybody is served. So what was found stays, and what was dropped stays
//!    dropped.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::index::Index;
use super::record::{BATCH_HEADER_BYTES, FIRST_OFFSET, SEGMENT_HEADER_BYTES, SegmentHeader, UNUSED};
use super::replay::{LastBatch, Replay, replay};
use super::segment::{SegmentFile, Segments, Spare, Used, segment_path};
use super::survey::{FoundUsed, failed, survey};
use super::{WalConfig, WalError};
use crate::disk::Disk;

/// What was found, or made.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) segments: Segments,
    pub(super) next_sequence: u64,
    pub(super) oldest_use: u64,
}

pub(super) fn recover(disk: Arc<dyn Disk>, dir: &Path, config: &WalConfig) -> Result<Recovered, WalError> {
    disk.create_dir_all(dir).map_err(failed("create", dir))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent).map_err(failed("sync", parent))?;
    }
    let found = survey(&*disk, dir)?;
    let spare = |segment, filled| Spare { segment: Arc::new(segment), filled };
    let mut segments = Segments {
        disk,
        dir: dir.to_owned(),
        salt: found.salt.or(config.salt).unwrap_or_else(crate::runtime::random),
        segment_bytes: config.segment_bytes,
        reserve: config.reserve_segments,
        used: BTreeMap::new(),
        spares: found.spares.into_iter().map(|found| spare(found.segment, found.length)).collect(),
        next_number: found.next_number,
        syncs: 0,
        full: None,
    };
    let Some((_, newest)) = found.used.last_key_value() else {
        return create(segments, config);
    };
    let largest = found.used.values().map(|used| used.length).max().unwrap_or(0);
    let threads = config.recovery_threads(largest);
    let replay = replay(&segments.salt, &found.used, newest, config.cache_bytes, threads)?;
    let Replay { index, oldest_use, next_sequence, extents, last } = replay;
    for (segment_use, FoundUsed { segment, length, .. }) in found.used {
        match extents.get(&segment_use) {
            Some(extent) => {
                let used = Used { segment: Arc::new(segment), end: extent.end as u64, filled: length };
                segments.used.insert(segment_use, used);
            }
            None => segments.spares.push(spare(segment, length)),
        }
    }
    settle(&mut segments, last)?;
    Ok(Recovered { index, segments, next_sequence, oldest_use })
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

/// Makes what was found certain.
fn settle(segments: &mut Segments, last: Option<LastBatch>) -> Result<(), WalError> {
    if let Some(last) = last {
        settle_at(segments, last.segment_use, last.offset, last.bytes)?;
    }
    let newest = segments.active_use();
    if let Some(active) = segments.used.get(&newest)
        && active.end == FIRST_OFFSET
    {
        let path = active.segment.path.clone();
        let mut header = vec![0; SEGMENT_HEADER_BYTES];
        active.segment.file.read_at(&mut header, 0).map_err(failed("read", &path))?;
        settle_at(segments, newest, 0, header)?;
        settle_at(segments, newest, FIRST_OFFSET, Vec::new())?;
    }
    let dir = segments.dir.clone();
    segments.disk.sync_dir(&dir).map_err(failed("sync", &dir))
}

/// Writes `bytes`, which are there already, and zeros for a header behind them.
fn settle_at(segments: &mut Segments, segment_use: u64, offset: u64, mut bytes: Vec<u8>) -> Result<(), WalError> {
    let limit = segments.segment_bytes;
    let Some(used) = segments.used.get_mut(&segment_use) else {
        return Ok(());
    };
    let end = offset + bytes.len() as u64;
    let zeros = (BATCH_HEADER_BYTES as u64).min(limit.max(used.filled).saturating_sub(end));
    bytes.resize(bytes.len() + zeros as usize, 0);
    let file = &used.segment.file;
    let written = file.write_at(&bytes, offset).and_then(|()| file.sync());
    written.map_err(failed("write", &used.segment.path))?;
    segments.syncs += 1;
    used.filled = used.filled.max(end + zeros);
    Ok(())
}
