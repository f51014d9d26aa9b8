//! What the log holds and tells, without its bytes and places.

use std::io;

use bytes::Bytes;

/// One entry; the log does not look into its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) payload: Bytes,
}

/// An entry's term and index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// A replica's vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VoteRecord {
    pub(crate) term: u64,
    pub(crate) voted_for: u64,
    pub(crate) committed: bool,
}

/// That a replica was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicaRecord {
    pub(crate) replica: u64,
    pub(crate) group: String,
    pub(crate) incarnation: u64,
    /// The caller's own.
    pub(crate) detail: Bytes,
}

/// Where a replica's snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotPointer {
    /// The last entry in it.
    pub(crate) position: Option<Position>,
    pub(crate) meta: Bytes,
    /// A name in `snapshots/`; empty if the snapshot is `inline`.
    pub(crate) file: String,
    pub(crate) inline: Bytes,
}

/// What the log knows of a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ReplicaLogState {
    pub(crate) last_purged: Option<Position>,
    /// The last entry, or else the last that was purged.
    pub(crate) last: Option<Position>,
    pub(crate) vote: Option<VoteRecord>,
    pub(crate) committed: Option<Position>,
    pub(crate) snapshot: Option<SnapshotPointer>,
}

/// What a replica keeps in the oldest segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// Its last entry there.
    pub(crate) last: u64,
    /// What its records take there.
    pub(crate) bytes: u64,
}

/// Called once, on the appender's thread or on the caller's, when a record is synced or will never be. It must
/// not block.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Figures since the log was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Syncs of files, also those that prepare segments.
    pub syncs: u64,
    /// Batches written: each was one write and one sync.
    pub batches: u64,
    /// Records that callers gave.
    pub records: u64,
    /// Entries among them.
    pub entries: u64,
    /// Bytes of batches written.
    pub bytes: u64,
    /// Bytes of them that were copied from the oldest segment.
    pub copied_bytes: u64,
    /// Segments that are needed.
    pub segments: u64,
    /// Segments that are prepared for use.
    pub spare_segments: u64,
    /// Bytes of records that are needed.
    pub live_bytes: u64,
    /// Bytes of recent entries in memory.
    pub cached_bytes: u64,
    /// Bytes that wait to be written.
    pub queued_bytes: u64,
}
