//! The log's files. Segments are prepared ahead (written with zeros, so that a sync has no blocks to find and a
//! full disk shows itself before anything is lost), used in order, freed strictly oldest first, and used again.
//!
//! ```text
//!   nothing --create--> spare --roll--> active --roll--> used --free--> spare, or removed
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{FIRST_OFFSET, SEGMENT_HEADER_BYTES, Salt, SegmentHeader, UNUSED};
use crate::disk::{Disk, DiskFile};

/// Zeros written ahead of the batches in the active segment, and to a spare after each batch: small enough not
/// to be felt by the batch.
const FILL_BYTES: u64 = 256 * 1024;
/// Zeros written to a spare between two syncs of it, so that the first sync of a batch in it is short.
const FILL_SYNC_BYTES: u64 = 4 * 1024 * 1024;
/// After a full disk, preparing is tried again after this many batches.
const FULL_RETRY_BATCHES: u32 = 64;
/// Steps of preparing that are made at once while nothing else is to be written.
const FULL_RETRY_STEPS: u32 = 64;

/// One file of the log.
pub(crate) struct SegmentFile {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// A file that holds batches.
pub(crate) struct Used {
    pub(crate) segment: Arc<SegmentFile>,
    /// Where its last batch ends.
    pub(crate) end: u64,
    /// Written at least once up to here.
    pub(crate) filled: u64,
}

/// A file that holds nothing needed.
pub(crate) struct Spare {
    pub(crate) segment: Arc<SegmentFile>,
    pub(crate) filled: u64,
}

/// Why there is no place for a batch.
#[derive(Debug)]
pub(crate) enum SpaceError {
    /// The disk is full; nothing was changed.
    Full,
    /// The disk failed.
    Failed(io::Error),
}

impl From<io::Error> for SpaceError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Failed(error),
        }
    }
}

/// What the log is to do at the place that [`Segments::reserve`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) segment_use: u64,
    pub(crate) offset: u64,
}

pub(crate) struct Segments {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) salt: Salt,
    pub(crate) segment_bytes: u64,
    /// How many spares to keep.
    pub(crate) reserve: usize,
    /// By use, without gaps; the last one is active. Never empty.
    pub(crate) used: BTreeMap<u64, Used>,
    pub(crate) spares: Vec<Spare>,
    pub(crate) next_number: u32,
    pub(crate) syncs: u64,
    /// Batches until preparing is tried again; none unless the disk was full.
    pub(crate) full: Option<u32>,
}

impl Segments {
    pub(crate) fn active_use(&self) -> u64 {
        self.used.last_key_value().map_or(UNUSED, |(&segment_use, _)| segment_use)
    }

    /// Finds the place for a batch of `length` bytes, in the next segment if it does not fit into this one.
    pub(crate) fn reserve(&mut self, length: u64, sequence: u64) -> Result<Slot, SpaceError> {
        let segment_use = self.active_use();
        let limit = self.segment_bytes;
        if let Some(active) = self.used.get_mut(&segment_use)
            && active.end + length <= limit
        {
            let filled = fill(&active.segment, active.filled, active.end + length, limit)?;
            active.filled = filled;
            return Ok(Slot { segment_use, offset: active.end });
        }
        self.roll(length, sequence)
    }

    /// Writes a batch at the place that was reserved for it, and syncs it.
    pub(crate) fn write(&mut self, slot: Slot, batch: &[u8]) -> io::Result<()> {
        let Some(active) = self.used.get_mut(&slot.segment_use) else {
            return Err(io::Error::other("the batch's segment is not in use"));
        };
        active.segment.file.write_at(batch, slot.offset)?;
        self.syncs += 1;
        active.segment.file.sync()?;
        active.end = slot.offset + batch.len() as u64;
        Ok(())
    }

    /// The next segment: its header is synced before anything else is written to it.
    fn roll(&mut self, length: u64, sequence: u64) -> Result<Slot, SpaceError> {
        let segment_use = self.active_use() + 1;
        let fullest = (0..self.spares.len()).rev().max_by_key(|&at| self.spares[at].filled);
        let at = match fullest {
            Some(at) => at,
            None => {
                let spare = self.create()?;
                self.spares.push(spare);
                self.spares.len() - 1
            }
        };
        // Not what the batch that comes next says: it is not synced yet, and may never be.
        let oldest_use = self.used.first_key_value().map_or(segment_use, |(&first, _)| first);
        let header = SegmentHeader { salt: self.salt, segment_use, first_sequence: sequence, oldest_use };
        let spare = &mut self.spares[at];
        spare.filled = fill(&spare.segment, spare.filled, FIRST_OFFSET + length, self.segment_bytes)?;
        // Over bytes that are there: not even a full disk stops this. And no second try, which might take another
        // file: two of one use would be left.
        spare.segment.file.write_at(&header.encode(), 0).map_err(SpaceError::Failed)?;
        self.syncs += 1;
        spare.segment.file.sync().map_err(SpaceError::Failed)?;
        let Spare { segment, filled } = self.spares.remove(at);
        self.used.insert(segment_use, Used { segment, end: FIRST_OFFSET, filled });
        Ok(Slot { segment_use, offset: FIRST_OFFSET })
    }

    /// Frees the segments before `oldest_use`. A batch that says so must have been synced.
    pub(crate) fn free(&mut self, oldest_use: u64) -> Vec<u64> {
        let mut freed = Vec::new();
        while let Some(first) = self.used.first_entry()
            && *first.key() < oldest_use
        {
            let (segment_use, used) = first.remove_entry();
            freed.push(segment_use);
            self.spares.push(Spare { segment: used.segment, filled: used.filled });
        }
        while self.spares.len() > self.reserve && !freed.is_empty() {
            let Some(at) = (0..self.spares.len()).min_by_key(|&at| self.spares[at].filled) else {
                break;
            };
            let spare = self.spares.remove(at);
            if let Err(error) = self.disk.remove(&spare.segment.path) {
                tracing::warn!(path = %spare.segment.path.display(), %error, "a spare segment cannot be removed");
                self.spares.push(spare);
                break;
            }
        }
        freed
    }

    /// Brings the spares nearer to being ready, by at least as many bytes as were written: they are ready before they are
    /// needed, also where batches are long. A full disk is remembered, see [`Segments::is_full`].
    pub(crate) fn prepare(&mut self, written: u64) -> io::Result<()> {
        for _ in 0..=written / FILL_BYTES {
            self.prepare_once()?;
            if self.full.is_some() || self.ready() >= self.reserve {
                break;
            }
        }
        Ok(())
    }

    fn prepare_once(&mut self) -> io::Result<()> {
        if let Some(batches) = &mut self.full {
            *batches = batches.saturating_sub(1);
            if *batches > 0 {
                return Ok(());
            }
        }
        match self.prepare_step() {
            // A disk that was full is so until everything is ready, lest commands be taken and refused in turns.
            Ok(()) if self.full.is_some() && self.ready() < self.reserve => self.full = Some(0),
            Ok(()) => self.full = None,
            Err(SpaceError::Full) => self.full = Some(FULL_RETRY_BATCHES),
            Err(SpaceError::Failed(error)) => return Err(error),
        }
        Ok(())
    }

    /// After a full disk: prepares on while that succeeds, for a while.
    pub(crate) fn prepare_again(&mut self) -> io::Result<()> {
        for _ in 0..FULL_RETRY_STEPS {
            if self.full.is_none() {
                return Ok(());
            }
            self.full = Some(0);
            self.prepare_once()?;
            if self.full.is_some_and(|batches| batches > 0) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn ready(&self) -> usize {
        self.spares.iter().filter(|spare| spare.filled >= self.segment_bytes).count()
    }

    fn prepare_step(&mut self) -> Result<(), SpaceError> {
        let limit = self.segment_bytes;
        if let Some(spare) = self.spares.iter_mut().find(|spare| spare.filled < limit) {
            let before = spare.filled / FILL_SYNC_BYTES;
            spare.filled = fill(&spare.segment, spare.filled, (spare.filled + 1).min(limit), limit)?;
            if spare.filled / FILL_SYNC_BYTES > before || spare.filled >= limit {
                self.syncs += 1;
                spare.segment.file.sync().map_err(SpaceError::Failed)?;
            }
        } else if self.spares.len() < self.reserve {
            // Not begun unless it can be finished: what little is left is for snapshots and the node's own file.
            if self.disk.available_bytes(&self.dir)? < limit {
                return Err(SpaceError::Full);
            }
            let spare = self.create()?;
            self.spares.push(spare);
        }
        Ok(())
    }

    /// Whether the disk was full when a spare was to be prepared, and spares are missing since.
    pub(crate) fn is_full(&self) -> bool {
        self.full.is_some() && self.ready() < self.reserve
    }

    fn create(&mut self) -> Result<Spare, SpaceError> {
        let path = segment_path(&self.dir, self.next_number);
        self.next_number += 1;
        let file = self.disk.create(&path)?;
        let header = SegmentHeader { salt: self.salt, segment_use: UNUSED, first_sequence: 0, oldest_use: 0 };
        let written = file.write_at(&header.encode(), 0).and_then(|()| self.disk.sync_dir(&self.dir));
        if let Err(error) = written {
            // Of no use, and harmless if it stays.
            let _ = self.disk.remove(&path);
            return Err(error.into());
        }
        let segment = Arc::new(SegmentFile { path, file });
        Ok(Spare { segment, filled: SEGMENT_HEADER_BYTES as u64 })
    }
}

/// Writes zeros from `filled` up to `needed` or a step more, and returns how far; `filled` if nothing is needed.
fn fill(segment: &SegmentFile, filled: u64, needed: u64, limit: u64) -> Result<u64, SpaceError> {
    let mut filled = filled;
    if filled >= needed {
        return Ok(filled);
    }
    let end = needed.next_multiple_of(FILL_BYTES).min(limit).max(needed);
    let zeros = vec![0; (end - filled).min(FILL_BYTES) as usize];
    while filled < end {
        let length = (end - filled).min(FILL_BYTES);
        segment.file.write_at(&zeros[..length as usize], filled)?;
        filled += length;
    }
    Ok(filled)
}

const NAME_PREFIX: &str = "segment-";

pub(crate) fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{NAME_PREFIX}{number:06}"))
}

/// The number in a segment file's name; none for other files.
pub(crate) fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(NAME_PREFIX)?;
    (digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}
