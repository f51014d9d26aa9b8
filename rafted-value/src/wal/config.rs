//! The log's sizes.

use super::queue::Backing;
use super::record::{BATCH_HEADER_BYTES, FIRST_OFFSET, Salt};

/// Sizes of the log.
#[derive(Debug, Clone)]
pub(crate) struct WalConfig {
    pub(super) segment_bytes: u64,
    pub(super) cache_bytes: usize,
    pub(super) reserve_segments: usize,
    pub(super) salt: Option<Salt>,
    recovery_threads: Option<usize>,
}

/// The smallest segment: some batches must fit.
#[cfg(test)]
pub(crate) const MIN_SEGMENT_BYTES: u64 = 16 * 1024;
/// The largest segment: offsets in it are 32 bits wide.
#[cfg(test)]
pub(crate) const MAX_SEGMENT_BYTES: u64 = 1024 * 1024 * 1024;
/// A batch's body stays below this, or below half a segment, so that one sync does not take for ever.
const MAX_BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// Beyond these, a disk gives little more.
const MAX_RECOVERY_THREADS: usize = 8;
/// Callers wait in [`Wal::room`] while more than this is queued.
pub(super) const MAX_QUEUED_BYTES: usize = 32 * 1024 * 1024;

impl Default for WalConfig {
    /// Segments of 64 MiB, two of them in reserve for a full disk, and 64 MiB of recent entries in memory.
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            cache_bytes: 64 * 1024 * 1024,
            reserve_segments: 2,
            salt: None,
            recovery_threads: None,
        }
    }
}

impl WalConfig {
    /// The size of a segment's file. An existing log may be opened with another size.
    #[cfg(test)]
    pub(crate) fn with_segment_bytes(mut self, bytes: u64) -> Self {
        assert!((MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&bytes));
        self.segment_bytes = bytes;
        self
    }

    /// How many bytes of recent entries are kept in memory, over all replicas; older ones are read from disk.
    #[cfg(test)]
    pub(crate) fn with_cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// The salt of a new directory, for tests that need the same bytes again; random otherwise.
    #[cfg(test)]
    pub(crate) fn with_salt(mut self, salt: Salt) -> Self {
        self.salt = Some(salt);
        self
    }

    /// How many threads read segments when the log is opened.
    #[cfg(test)]
    pub(crate) fn with_recovery_threads(mut self, threads: usize) -> Self {
        self.recovery_threads = Some(threads);
        self
    }

    /// One for each processor, up to a bound: each holds two segments or three in memory.
    pub(super) fn recovery_threads(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        self.recovery_threads.unwrap_or_else(|| processors().min(MAX_RECOVERY_THREADS))
    }

    /// The most that an empty segment takes, in bytes of one batch's body.
    pub(super) fn capacity(&self) -> u64 {
        self.segment_bytes - FIRST_OFFSET - BATCH_HEADER_BYTES as u64
    }

    pub(super) fn backing(&self) -> Backing {
        let half = self.capacity() / 2;
        Backing::Files { batch_bytes: half.min(MAX_BATCH_BYTES) as usize, record_bytes: half as usize }
    }
}
