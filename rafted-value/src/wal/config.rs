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
    recovery_bytes: u64,
}

/// The smallest segment: some batches must fit.
pub(crate) const MIN_SEGMENT_BYTES: u64 = 16 * 1024;
/// The largest segment: offsets in it are 32 bits wide.
pub(crate) const MAX_SEGMENT_BYTES: u64 = 1024 * 1024 * 1024;
/// A batch's body stays below this, or below half a segment, so that one sync does not take for ever.
const MAX_BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// Beyond these, a disk gives little more.
const MAX_RECOVERY_THREADS: usize = 8;
/// A thread that reads segments when the log is opened holds as many in memory.
const SEGMENTS_PER_RECOVERY_THREAD: u64 = 3;
/// Callers wait in [`Wal::room`] while more than this is queued.
pub(super) const MAX_QUEUED_BYTES: usize = 32 * 1024 * 1024;

impl Default for WalConfig {
    /// Segments of 64 MiB, two of them in reserve for a full disk, 64 MiB of recent entries in memory, and 768 MiB for the
    /// threads that read the log when it is opened: four of them.
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            cache_bytes: 64 * 1024 * 1024,
            reserve_segments: 2,
            salt: None,
            recovery_threads: None,
            recovery_bytes: 768 * 1024 * 1024,
        }
    }
}

impl WalConfig {
    /// The size of a segment's file. An existing log may be opened with another size.
    pub(crate) fn with_segment_bytes(mut self, bytes: u64) -> Self {
        assert!((MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&bytes));
        self.segment_bytes = bytes;
        self
    }

    /// How many bytes of recent entries are kept in memory, over all replicas; older ones are read from disk.
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

    /// How much memory the threads that read segments when the log is opened may take together; one always reads.
    pub(crate) fn with_recovery_bytes(mut self, bytes: u64) -> Self {
        self.recovery_bytes = bytes;
        self
    }

    /// How many threads read segments of which the largest has so many bytes.
    pub(super) fn recovery_threads(&self, largest_bytes: u64) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        self.recovery_threads.unwrap_or_else(|| threads(processors(), largest_bytes, self.recovery_bytes))
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

/// One thread for each processor, up to a bound, as far as they have memory for their segments; at least one.
fn threads(processors: usize, largest_bytes: u64, recovery_bytes: u64) -> usize {
    let each = SEGMENTS_PER_RECOVERY_THREAD.saturating_mul(largest_bytes).max(1);
    let affordable = usize::try_from(recovery_bytes / each).unwrap_or(usize::MAX);
    processors.min(MAX_RECOVERY_THREADS).min(affordable).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_that_read_a_log_have_memory_for_their_segments() {
        const MIB: u64 = 1024 * 1024;
        let table = [
            ("as many as processors", 2, 64 * MIB, 768 * MIB, 2),
            ("what they may take", 16, 64 * MIB, 768 * MIB, 4),
            ("more memory", 16, 64 * MIB, 4096 * MIB, 8),
            ("large segments", 16, 1024 * MIB, 768 * MIB, 1),
            ("small ones", 16, MIB, 768 * MIB, 8),
            ("an empty log", 16, 0, 0, 1),
        ];
        for (name, processors, largest, budget, expected) in table {
            assert_eq!(threads(processors, largest, budget), expected, "{name}");
        }
    }
}
