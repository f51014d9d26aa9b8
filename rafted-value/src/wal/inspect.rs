//! A look into a log that nobody has open. Nothing is written, not even what a start would repair.

use std::path::{Path, PathBuf};

use super::WalError;
use super::config::WalConfig;
use super::facts::{ReplicaLogState, ReplicaRecord};
use super::index::{Item, Place};
use super::record::{FoundRecord, Salt, UNUSED};
use super::replay::{Replay, replay_what_can_be};
use super::scan::{is_begun, scan};
use super::survey::{FoundUsed, Survey, survey};
use crate::disk::Disk;

/// What a segment's file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// The newest one, to which batches are written.
    Active,
    /// It holds, or may hold, what is needed.
    Used,
    /// It was used, and nothing in it is needed any more.
    Freed,
    /// It comes behind damage, and was not read.
    Unread,
    /// Prepared for use.
    Spare,
    /// It was being prepared when the node stopped, and holds nothing.
    Unfinished,
}

/// One segment of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedSegment {
    /// Its file.
    pub file: PathBuf,
    /// What it is for.
    pub state: SegmentState,
    /// The number of its use, unique in the directory; 0 before the first.
    pub segment_use: u64,
    /// The sequences of its first and last batch; none if it holds none that is needed.
    pub sequences: Option<(u64, u64)>,
    /// The file's length in bytes.
    pub file_bytes: u64,
    /// Bytes up to the end of its last batch.
    pub used_bytes: u64,
    /// Bytes of records that are needed.
    pub live_bytes: u64,
}

/// How a log ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEnd {
    /// There is no log.
    Empty,
    /// The node closed it in order.
    Closed,
    /// The node stopped without closing it, and was not writing.
    NotClosed {
        /// The file.
        file: PathBuf,
        /// Where its last batch ends.
        offset: u64,
    },
    /// The node stopped while it wrote a batch, of which a part is there. This is no damage: nobody was told that it
    /// was durable, and the next start drops it.
    Torn {
        /// The file.
        file: PathBuf,
        /// Where the batch starts.
        offset: u64,
    },
}

/// Damage is one thing, and what cannot be read another.
fn judged(error: WalError) -> Result<WalError, WalError> {
    match error {
        WalError::Damage { .. } | WalError::Foreign { .. } => Ok(error),
        WalError::Version { .. } | WalError::Io { .. } => Err(error),
    }
}

/// A log as its files are.
pub(crate) struct LogView {
    survey: Survey,
    /// None if there is no log, or nothing of it can be read.
    replayed: Option<(Salt, Replay)>,
    /// Where reading stopped, and why.
    damage: Option<WalError>,
}

impl LogView {
    /// Reads all that is needed of the log in `dir`, as far as it is not damaged. An error says that it cannot be read.
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Self, WalError> {
        let survey = match survey(disk, dir) {
            Ok(survey) => survey,
            Err(error) => return Ok(Self { survey: Survey::default(), replayed: None, damage: Some(judged(error)?) }),
        };
        let largest = survey.used.values().map(|found| found.length).max().unwrap_or(0);
        let threads = WalConfig::default().recovery_threads(largest);
        let (Some(salt), Some((_, newest))) = (survey.salt, survey.used.last_key_value()) else {
            return Ok(Self { survey, replayed: None, damage: None });
        };
        let (replay, flaw) = replay_what_can_be(&salt, &survey.used, newest, 0, threads)?;
        let damage = flaw.map(judged).transpose()?;
        Ok(Self { replayed: Some((salt, replay)), survey, damage })
    }

    /// The damage; none in a log with which a node can start.
    pub(crate) fn damage(&self) -> Option<&WalError> {
        self.damage.as_ref()
    }

    /// All segments, in the order of their use; those that are not in use last.
    pub(crate) fn segments(&self) -> Vec<InspectedSegment> {
        let used = self.survey.used.values().map(|found| self.used_segment(found));
        let spares = self.survey.spares.iter().map(|found| InspectedSegment {
            file: found.segment.path.clone(),
            state: if found.header.is_some() { SegmentState::Spare } else { SegmentState::Unfinished },
            segment_use: UNUSED,
            sequences: None,
            file_bytes: found.length,
            used_bytes: 0,
            live_bytes: 0,
        });
        used.chain(spares).collect()
    }

    fn used_segment(&self, found: &FoundUsed) -> InspectedSegment {
        let segment_use = found.header.segment_use;
        let replay = self.replayed.as_ref().map(|(_, replay)| replay);
        let extent = replay.and_then(|replay| replay.extents.get(&segment_use));
        let is_newest = self.survey.used.last_key_value().is_some_and(|(&newest, _)| newest == segment_use);
        let first = found.header.first_sequence;
        let batches = extent.map_or(0, |extent| extent.batches);
        InspectedSegment {
            file: found.segment.path.clone(),
            state: match extent {
                Some(_) if is_newest => SegmentState::Active,
                Some(_) => SegmentState::Used,
                None if replay.is_some_and(|replay| segment_use >= replay.oldest_use) => SegmentState::Unread,
                None => SegmentState::Freed,
            },
            segment_use,
            sequences: (batches > 0).then(|| (first, first + batches - 1)),
            file_bytes: found.length,
            used_bytes: extent.map_or(0, |extent| extent.end as u64),
            live_bytes: replay.map_or(0, |replay| replay.index.live_in(segment_use)),
        }
    }

    /// How it ends.
    pub(crate) fn end(&self) -> Result<LogEnd, WalError> {
        let newest = self.survey.used.last_key_value().map(|(_, found)| found);
        let (Some((_, replay)), Some(newest)) = (&self.replayed, newest) else {
            return Ok(LogEnd::Empty);
        };
        let segment_use = newest.header.segment_use;
        let Some(extent) = replay.extents.get(&segment_use) else {
            return Ok(LogEnd::Empty);
        };
        let mut bytes = Vec::new();
        newest.read_into(&mut bytes)?;
        let (file, offset) = (newest.segment.path.clone(), extent.end as u64);
        if is_begun(&bytes, extent.end, segment_use) {
            return Ok(LogEnd::Torn { file, offset });
        }
        // A segment without a batch: the last word stands at the end of the one before.
        let last = replay.extents.values().rev().find(|extent| extent.batches > 0);
        let closed = last.is_some_and(|extent| extent.closed);
        Ok(if closed { LogEnd::Closed } else { LogEnd::NotClosed { file, offset } })
    }

    /// The replicas that were created and not removed, what is known of each, its first entry, and how many it has.
    pub(crate) fn replicas(&self) -> Vec<(ReplicaRecord, ReplicaLogState, Option<u64>, u64)> {
        let Some((_, replay)) = &self.replayed else {
            return Vec::new();
        };
        let all = replay.index.replicas().into_iter().map(|record| {
            let state = replay.index.state(record.replica).unwrap_or_default();
            let (first, count) = replay.index.extent(record.replica);
            (record, state, first, count)
        });
        all.collect()
    }

    /// Gives each record of a replica, in the order of the log: its file, its offset there, itself, and whether it is
    /// needed. Reads the log once more.
    pub(crate) fn records(
        &self,
        replica: u64,
        mut visit: impl FnMut(&Path, u64, &FoundRecord<'_>, bool),
    ) -> Result<(), WalError> {
        let Some((salt, replay)) = &self.replayed else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        for found in replay.extents.keys().filter_map(|segment_use| self.survey.used.get(segment_use)) {
            found.read_into(&mut bytes)?;
            let segment_use = found.header.segment_use;
            let each = |offset: u32, record: FoundRecord<'_>| {
                if record.replica != replica {
                    return;
                }
                let place = Place::Written { segment_use, offset, length: record.length };
                let item = Item::of(&record.record);
                let is_live = item.is_some_and(|item| replay.index.place(replica, item) == Some(place));
                visit(&found.segment.path, u64::from(offset), &record, is_live);
            };
            // What is wrong with it was found when it was read first.
            let _ = scan(&bytes, salt, &found.header, each);
        }
        Ok(())
    }

    /// Bytes and segments that a start reads.
    pub(crate) fn size(&self) -> (u64, u64) {
        let needed = self.segments().into_iter().filter(|segment| segment.used_bytes > 0);
        needed.fold((0, 0), |(segments, bytes), segment| (segments + 1, bytes + segment.used_bytes))
    }
}
