//! A look into the data directory of a node that does not run: what its files say, and whether they are what was
//! written. Nothing is written, and the boot number is not raised.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::read_only::ReadOnly;
use crate::disk::{Disk, DiskLock, RealDisk};
use crate::error::StoreError;
use crate::node_file;
use crate::openraft_types::decode_payload;
use crate::snapshot;
use crate::status::{LogPosition, ReplicaId};
use crate::store::NodeIdentity;
use crate::wal::{InspectedSegment, LogEnd, LogView, Position, Record, ReplicaLogState, ReplicaRecord, WalError};

/// The data directory of a node that does not run. The directory stays locked against a node while this lives; others
/// may inspect it, too.
pub struct Inspection {
    identity: Option<NodeIdentity>,
    damage: Vec<Finding>,
    log: LogView,
    _lock: Option<DiskLock>,
}

/// A vote that a replica gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InspectedVote {
    /// In which term.
    pub term: u64,
    /// For whom.
    pub voted_for: Option<ReplicaId>,
    /// Whether that replica is known to have become the leader.
    pub committed: bool,
}

/// A replica that was created in this directory and not removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedReplica {
    /// Its id.
    pub replica: ReplicaId,
    /// Its group.
    pub group: String,
    /// Its group's incarnation.
    pub incarnation: u64,
    /// Its last vote.
    pub vote: Option<InspectedVote>,
    /// The index of the first entry that is there.
    pub first_index: Option<u64>,
    /// The last entry, or else the last that was purged.
    pub last: Option<LogPosition>,
    /// Entries that are there.
    pub entries: u64,
    /// Entries up to here were dropped, as a snapshot holds what they made.
    pub purged: Option<LogPosition>,
    /// It knew entries up to here to be committed.
    pub committed: Option<LogPosition>,
    /// The last entry in its snapshot; none without a snapshot, and for one of an empty log.
    pub snapshot: Option<LogPosition>,
    /// The snapshot's file; none if it is a record of the log.
    pub snapshot_file: Option<String>,
}

/// One record of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedRecord {
    /// The segment.
    pub file: PathBuf,
    /// Where the record starts in it.
    pub offset: u64,
    /// Its length.
    pub bytes: u32,
    /// Whether it is still needed.
    pub is_live: bool,
    /// What it says.
    pub content: RecordContent,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordContent {
    /// The replica was created.
    Created,
    /// The replica was removed.
    Removed,
    /// An entry.
    Entry {
        /// Its term and index.
        position: LogPosition,
        /// `command`, `membership`, `blank`, or `unreadable`.
        kind: &'static str,
        /// The length of what it holds.
        payload_bytes: u64,
    },
    /// A vote.
    Vote(InspectedVote),
    /// Entries above this index were dropped; all of them without one.
    Truncated(Option<u64>),
    /// Entries up to here were dropped.
    Purged(LogPosition),
    /// Entries up to here are committed.
    Committed(LogPosition),
    /// A snapshot.
    Snapshot {
        /// The last entry in it.
        position: Option<LogPosition>,
        /// Its file; none if it is the record itself.
        file: Option<String>,
    },
    /// The log was closed in order.
    Closed,
}

/// Something in a directory that is not what was written, or is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// The byte in it where reading stopped.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, byte {}: {}", self.file.display(), self.offset, self.what)
    }
}

/// What reading all of a directory has shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verification {
    /// The damage; none in a directory with which a node can start.
    pub findings: Vec<Finding>,
    /// Segments that were read.
    pub segments: u64,
    /// Bytes of batches in them.
    pub log_bytes: u64,
    /// Replicas that the log holds.
    pub replicas: u64,
    /// Snapshots that were read.
    pub snapshots: u64,
    /// Bytes of them.
    pub snapshot_bytes: u64,
    /// How the log ends; none if it is damaged.
    pub end: Option<LogEnd>,
}

impl Inspection {
    /// Reads the node file and the log in `dir`, as far as they are not damaged: see [`Inspection::damage`]. Blocks for as
    /// long as that takes.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(RealDisk), dir.as_ref())
    }

    pub(crate) fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StoreError> {
        let (disk, lock) = locked(disk, dir)?;
        let mut damage = Vec::new();
        let identity = match node_file::inspect(&disk, dir) {
            Ok(node) => node.map(NodeIdentity::from),
            Err(StoreError::Damaged { file, offset, reason }) => {
                damage.push(Finding { file, offset, what: reason });
                None
            }
            Err(other) => return Err(other),
        };
        let wal = dir.join("wal");
        let log = LogView::read(&disk, &wal).map_err(|error| unreadable(&wal, error))?;
        damage.extend(log.damage().map(finding));
        Ok(Self { identity, damage, log, _lock: lock })
    }

    /// Reads everything in `dir` that a node would start from, and judges every byte of it. Blocks for as long as that
    /// takes. An error means that it could not be read; damage is in the result.
    pub fn verify(dir: impl AsRef<Path>) -> Result<Verification, StoreError> {
        Self::verify_on(Arc::new(RealDisk), dir.as_ref())
    }

    pub(crate) fn verify_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Verification, StoreError> {
        let (disk, _lock) = locked(disk, dir)?;
        let mut found = Verification::default();
        let wal = dir.join("wal");
        match node_file::inspect(&disk, dir) {
            Ok(Some(_)) => {}
            Ok(None) => {
                let segments = disk.list(&wal).map_err(|error| StoreError::Io { path: wal.clone(), error })?;
                if !segments.is_empty() {
                    let what = "it is missing, but the directory has a log".to_owned();
                    found.findings.push(Finding { file: dir.join("node"), offset: 0, what });
                }
            }
            Err(StoreError::Damaged { file, offset, reason }) => {
                found.findings.push(Finding { file, offset, what: reason });
            }
            Err(other) => return Err(other),
        }
        let log = LogView::read(&disk, &wal).map_err(|error| unreadable(&wal, error))?;
        (found.segments, found.log_bytes) = log.size();
        if let Some(damage) = log.damage() {
            // What it says of snapshots may be old.
            found.findings.push(finding(damage));
            return Ok(found);
        }
        found.end = Some(log.end().map_err(|error| unreadable(&wal, error))?);
        for (record, state, ..) in log.replicas() {
            found.replicas += 1;
            found.check_snapshot(&disk, dir, &record, &state)?;
        }
        Ok(found)
    }

    /// What is damaged of what was read, and where reading stopped: all else that this tells is of what stands before it.
    /// None in a directory with which a node can start; [`Inspection::verify`] reads the snapshots, too.
    pub fn damage(&self) -> &[Finding] {
        &self.damage
    }

    /// Who the node is; none if the directory has no node file that can be read.
    pub fn node(&self) -> Option<&NodeIdentity> {
        self.identity.as_ref()
    }

    /// The log's segments, in the order of their use; those that are not in use last.
    pub fn segments(&self) -> Vec<InspectedSegment> {
        self.log.segments()
    }

    /// How the log ends.
    pub fn end(&self) -> Result<LogEnd, WalError> {
        self.log.end()
    }

    /// The replicas, in the order of their ids.
    pub fn replicas(&self) -> Vec<InspectedReplica> {
        let from = |(record, state, first_index, entries): (ReplicaRecord, ReplicaLogState, _, _)| {
            let (snapshot, file) = state.snapshot.map(|pointer| (pointer.position, pointer.file)).unzip();
            Some(InspectedReplica {
                replica: ReplicaId::new(record.replica)?,
                group: record.group,
                incarnation: record.incarnation,
                vote: state.vote.map(vote),
                first_index,
                last: state.last.map(position),
                entries,
                purged: state.last_purged.map(position),
                committed: state.committed.map(position),
                snapshot: snapshot.flatten().map(position),
                snapshot_file: file.filter(|file| !file.is_empty()),
            })
        };
        self.log.replicas().into_iter().filter_map(from).collect()
    }

    /// Gives each record of a replica to `visit`, in the order of the log. Reads the log once more.
    pub fn records(&self, replica: ReplicaId, mut visit: impl FnMut(InspectedRecord)) -> Result<(), WalError> {
        self.log.records(replica.get(), |file, offset, found, is_live| {
            let content = content(&found.record);
            visit(InspectedRecord { file: file.to_owned(), offset, bytes: found.length, is_live, content });
        })
    }
}

impl std::fmt::Debug for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspection").field("node", &self.identity).finish_non_exhaustive()
    }
}

impl Verification {
    fn check_snapshot(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        record: &ReplicaRecord,
        state: &ReplicaLogState,
    ) -> Result<(), StoreError> {
        let Some(pointer) = &state.snapshot else {
            // What was purged is nowhere else.
            if let Some(purged) = state.last_purged {
                let what = format!(
                    "replica {:016x} of group {} has no snapshot, but its entries up to {} are gone",
                    record.replica, record.group, purged.index
                );
                self.findings.push(Finding { file: dir.join("wal"), offset: 0, what });
            }
            return Ok(());
        };
        self.snapshots += 1;
        let snapshots = dir.join("snapshots");
        let judged = snapshot::verify(disk, &snapshots, pointer);
        match judged.map_err(|error| StoreError::Io { path: snapshots.join(&pointer.file), error })? {
            Ok(bytes) => self.snapshot_bytes += bytes,
            Err(flaw) => {
                let what =
                    format!("the snapshot of replica {:016x} of group {}: {}", record.replica, record.group, flaw.what);
                self.findings.push(Finding {
                    file: flaw.file.unwrap_or_else(|| dir.join("wal")),
                    offset: flaw.offset,
                    what,
                });
            }
        }
        Ok(())
    }
}

/// A disk that can only be read, and a lock that keeps a node from starting.
fn locked(disk: Arc<dyn Disk>, dir: &Path) -> Result<(ReadOnly, Option<DiskLock>), StoreError> {
    let disk = ReadOnly(disk);
    let lock = disk.lock_to_read(&dir.join("lock")).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => StoreError::Locked { path: dir.to_owned() },
        _ => StoreError::Io { path: dir.join("lock"), error },
    })?;
    Ok((disk, lock))
}

/// What is wrong with a log, where.
fn finding(damage: &WalError) -> Finding {
    match damage {
        WalError::Damage { file, offset, what } => Finding { file: file.clone(), offset: *offset, what: what.clone() },
        // Its salt is another one.
        WalError::Foreign { file } => Finding { file: file.clone(), offset: 16, what: damage.to_string() },
        WalError::Version { file, offset, .. } => {
            Finding { file: file.clone(), offset: *offset, what: damage.to_string() }
        }
        WalError::Io { path, .. } => Finding { file: path.clone(), offset: 0, what: damage.to_string() },
    }
}

fn unreadable(wal: &Path, error: WalError) -> StoreError {
    match error {
        WalError::Io { path, source, .. } => StoreError::Io { path, error: source },
        other => StoreError::Log { path: wal.to_owned(), reason: other.to_string() },
    }
}

fn position(position: Position) -> LogPosition {
    LogPosition { term: position.term, index: position.index }
}

fn vote(vote: crate::wal::VoteRecord) -> InspectedVote {
    InspectedVote { term: vote.term, voted_for: ReplicaId::new(vote.voted_for), committed: vote.committed }
}

fn content(record: &Record<'_>) -> RecordContent {
    match record {
        Record::Created(_) => RecordContent::Created,
        Record::Removed => RecordContent::Removed,
        Record::Entry { term, index, payload } => RecordContent::Entry {
            position: LogPosition { term: *term, index: *index },
            kind: match decode_payload(bytes::Bytes::copy_from_slice(payload)) {
                Ok(openraft::EntryPayload::Blank) => "blank",
                Ok(openraft::EntryPayload::Normal(_)) => "command",
                Ok(openraft::EntryPayload::Membership(_)) => "membership",
                Err(_) => "unreadable",
            },
            payload_bytes: payload.len() as u64,
        },
        Record::Vote(record) => RecordContent::Vote(vote(*record)),
        Record::Truncate(after) => RecordContent::Truncated(*after),
        Record::Purge(purged) => RecordContent::Purged(position(*purged)),
        Record::Committed(committed) => RecordContent::Committed(position(*committed)),
        Record::Snapshot(pointer) => RecordContent::Snapshot {
            position: pointer.position.map(position),
            file: (!pointer.file.is_empty()).then(|| pointer.file.clone()),
        },
        Record::Closed => RecordContent::Closed,
    }
}

#[cfg(test)]
mod tests;
