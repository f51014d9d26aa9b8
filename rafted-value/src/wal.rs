//! The write-ahead log that all replicas of a node share. One appender thread drains a queue, writes one
//! batch, syncs once and wakes every waiter; there is never more than one batch that is not synced.
//!
//! ```text
//!   callers --records--> queue --batch--> appender --write, sync--> segments
//!      \                    \               |  \--copies what is live in the oldest segment
//!       \                    \--> index <---/ places
//!        \---read----------------> index, cache, segments
//! ```
//!
//! `record` holds the bytes, `index` what is live and where, `queue` what callers and the appender share,
//! `segment` the files, `appender` the step that writes, `read` how entries are read, `recovery` the start. No term of raft's protocol is
//! interpreted here: a log with holes is refused, everything else is the caller's.
//!
//! After a failed write or sync the log is *poisoned*: all who wait and all later callers get errors, no sync
//! is tried again, and only a restart helps.

mod appender;
mod inspect;
mod recovery;
mod replay;
mod survey;
mod scan;
mod in_order;
mod progress;
mod read;
mod config;
mod together;
mod queue;
mod segment;
mod index;
mod entries;
mod record;
mod error;
mod facts;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{Notify, watch};

#[cfg(test)]
pub(crate) use self::appender::Step;
pub(crate) use self::config::MAX_SEGMENT_BYTES;
#[cfg(test)]
pub(crate) use self::config::MIN_SEGMENT_BYTES;
pub(crate) use self::config::WalConfig;
pub use self::error::WalError;
pub use self::facts::WalStats;
pub(crate) use self::facts::{
    Done, LogEntry, Pinned, Position, ReplicaLogState, ReplicaRecord, SnapshotPointer, VoteRecord,
};
pub(crate) use self::inspect::LogView;
pub use self::inspect::{InspectedSegment, LogEnd, SegmentState};

pub(crate) use self::appender::Appender;
use self::config::MAX_QUEUED_BYTES;
use self::index::Index;
use self::queue::{Backing, Life, State};
pub(crate) use self::record::Record;
pub(crate) use self::together::Together;
use crate::disk::{Disk, DiskLock};
use crate::stats;

/// The log. Clones share it; it is closed with the last one.
#[derive(Clone)]
pub(crate) struct Wal {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Held until nothing can be written any more.
    directory: Mutex<Option<DiskLock>>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    work: Condvar,
    /// A batch was written: there is room in the queue.
    room: Notify,
    poisoned: watch::Sender<Option<String>>,
}

impl Wal {
    /// Opens the log in `dir`, or makes one, and starts its thread.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, config: WalConfig) -> Result<Wal, WalError> {
        let (wal, appender) = Self::open_stepped(disk, dir, config)?;
        let thread = std::thread::Builder::new().name("wal-appender".into()).spawn(move || appender.run());
        let thread =
            thread.map_err(|source| WalError::Io { action: "start the thread for", path: dir.into(), source })?;
        *lock(&wal.handle.thread) = Some(thread);
        Ok(wal)
    }

    /// Opens the log without a thread: nothing is written until the appender is stepped.
    pub(crate) fn open_stepped(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: WalConfig,
    ) -> Result<(Wal, Appender), WalError> {
        let recovered = recovery::recover(disk, dir, &config)?;
        let segments = recovered.segments;
        let mut state = State::new(
            recovered.index,
            config.backing(),
            recovered.next_sequence,
            recovered.oldest_use,
            segments.active_use(),
        );
        state.readers = segments.used.iter().map(|(&at, used)| (at, used.segment.clone())).collect();
        let wal = Self::with_state(state);
        let appender = Appender::new(wal.handle.shared.clone(), segments, config.capacity());
        Ok((wal, appender))
    }

    /// A log without files: everything is done at once, and gone with the process.
    pub(crate) fn memory() -> Wal {
        Self::with_state(State::new(Index::new(usize::MAX), Backing::Memory, 1, 1, 1))
    }

    fn with_state(state: State) -> Wal {
        let shared = Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Notify::new(),
            poisoned: watch::Sender::new(None),
        };
        Wal {
            handle: Arc::new(Handle {
                shared: Arc::new(shared),
                thread: Mutex::new(None),
                directory: Mutex::new(None),
            }),
        }
    }

    /// The replicas that were created and not removed.
    pub(crate) fn replicas(&self) -> Vec<ReplicaRecord> {
        self.state_lock().index.replicas()
    }

    /// What was noted at the creation of a replica.
    pub(crate) fn record(&self, replica: u64) -> Option<ReplicaRecord> {
        self.state_lock().index.record(replica).cloned()
    }

    /// Creates a replica; everything below is refused for others.
    pub(crate) fn create(&self, record: ReplicaRecord, done: Done) {
        self.submit(Some(done), |state| {
            let replica = record.replica;
            if state.index.contains(replica) {
                let message = format!("replica {replica:016x} exists");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            let record = Record::Created(record);
            state.check(&record)?;
            state.push(replica, &record, None);
            Ok(())
        });
    }

    /// Replaces what was noted at a replica's creation by what `change` makes of it and of what the log holds of the replica,
    /// if it makes anything; nothing is written in between. Whether it did; `done` is called when what is noted is durable.
    pub(crate) fn amend(
        &self,
        replica: u64,
        change: impl FnOnce(&ReplicaRecord, &ReplicaLogState) -> Option<ReplicaRecord>,
        done: Done,
    ) -> bool {
        let mut amended = false;
        self.submit(Some(done), |state| {
            check_known(state, replica)?;
            let held = state.index.state(replica).unwrap_or_default();
            if let Some(record) = state.index.record(replica).and_then(|noted| change(noted, &held)) {
                let record = Record::Created(record);
                state.check(&record)?;
                state.push(replica, &record, None);
                amended = true;
            }
            Ok(())
        });
        amended
    }

    /// Forgets a replica with all that it had. Removing one that is not there is fine.
    pub(crate) fn remove(&self, replica: u64, done: Done) {
        self.submit(Some(done), |state| {
            if state.index.contains(replica) {
                state.push(replica, &Record::Removed, None);
            }
            Ok(())
        });
    }

    /// Appends entries, which follow the last one without a hole. They can be read on return, and are durable
    /// when `done` is called; the calls for one replica come in order. Entries at or below the last index take
    /// the place of those that were there and of all behind them.
    pub(crate) fn append(&self, replica: u64, entries: Vec<LogEntry>, done: Done) {
        self.submit(Some(done), |state| {
            check_entries(state, replica, &entries)?;
            let last = state.index.bounds(replica).and_then(|(_, last)| last);
            if let (Some(first), Some(last)) = (entries.first(), last)
                && first.index <= last.index
            {
                state.push(replica, &Record::Truncate(first.index.checked_sub(1)), None);
            }
            for entry in entries {
                let record = Record::Entry { term: entry.term, index: entry.index, payload: &entry.payload };
                state.push(replica, &record, Some(entry.payload.clone()));
            }
            Ok(())
        });
    }

    /// Saves a vote, in place of the one before.
    pub(crate) fn save_vote(&self, replica: u64, vote: VoteRecord, done: Done) {
        self.submit(Some(done), |state| push_known(state, replica, &Record::Vote(vote)));
    }

    /// Calls `done` when all that was queued for the replica before is durable.
    pub(crate) fn settle(&self, replica: u64, done: Done) {
        self.submit(Some(done), |state| {
            // The vote once more: there are no batches without a record.
            let vote = state.index.state(replica).and_then(|state| state.vote);
            let vote = vote.ok_or_else(|| io::Error::other("a replica that has not voted has nothing to settle"))?;
            push_known(state, replica, &Record::Vote(vote))
        });
    }

    /// Saves where the replica's snapshot is, in place of the pointer before. One that is not newer is refused
    /// with `AlreadyExists`: a slow build must not undo a snapshot that was installed meanwhile.
    pub(crate) fn save_snapshot(&self, replica: u64, pointer: SnapshotPointer, done: Done) {
        self.submit(Some(done), |state| {
            let current = state.index.state(replica).and_then(|state| state.snapshot);
            if current.is_some_and(|current| pointer.position <= current.position) {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a snapshot at or above this one"));
            }
            push_known(state, replica, &Record::Snapshot(pointer))
        });
    }

    /// Drops the entries above `index`; all of them without one. Seen by readers at once, and on disk before
    /// everything that comes later.
    pub(crate) fn truncate_after(&self, replica: u64, index: Option<u64>) {
        self.submit(None, |state| push_known(state, replica, &Record::Truncate(index)));
    }

    /// Drops the entries up to `position`, which need not be there. Seen by readers at once, and on disk before
    /// everything that comes later. A smaller position than the last one changes nothing.
    pub(crate) fn purge(&self, replica: u64, position: Position) {
        self.submit(None, |state| {
            let purged = state.index.bounds(replica).and_then(|(purged, _)| purged);
            if purged.is_some_and(|purged| purged.index >= position.index) {
                return Ok(());
            }
            push_known(state, replica, &Record::Purge(position))
        });
    }

    /// Saves how far the replica knows entries to be committed. It forces no sync and goes with the next batch,
    /// or when the log is closed; until then a crash forgets it.
    pub(crate) fn save_committed(&self, replica: u64, position: Position) {
        self.submit(None, |state| push_known(state, replica, &Record::Committed(position)));
    }

    /// What is known of a replica; none if it was not created.
    pub(crate) fn state(&self, replica: u64) -> Option<ReplicaLogState> {
        self.state_lock().index.state(replica)
    }

    /// Waits until the queue takes more; calls that do not wait here are still taken.
    pub(crate) async fn room(&self) {
        loop {
            let written = self.handle.shared.room.notified();
            let (queued, life) = {
                let state = self.state_lock();
                (state.queued_bytes, state.life.clone())
            };
            if queued <= MAX_QUEUED_BYTES || life != Life::Open {
                return;
            }
            written.await;
        }
    }

    /// Whether the disk was too full to prepare the next segments: commands are to be refused before they are
    /// proposed, so that what is prepared serves votes, truncations, purges and reclaiming.
    pub(crate) fn is_full(&self) -> bool {
        self.state_lock().full
    }

    /// Holds the directory's lock as long as anybody may write to the log.
    pub(crate) fn hold(&self, directory: DiskLock) {
        *lock(&self.handle.directory) = Some(directory);
    }

    /// Ends the log, as after a failed write of its own: another file of the node's cannot be written.
    pub(crate) fn fail(&self, reason: &str) {
        if self.state_lock().life == Life::Open {
            tracing::error!(reason, "the disk has failed");
            self.handle.shared.poison(reason, Vec::new());
            self.handle.shared.work.notify_one();
        }
    }

    /// Holds what the replica keeps in the oldest segment, whenever that keeps the segment from being used again and is
    /// more than a little. Until the replica drops it with a purge, the log copies it.
    pub(crate) fn pinned(&self, replica: u64) -> watch::Receiver<Option<Pinned>> {
        let pinned = watch::Sender::new(None);
        let receiver = pinned.subscribe();
        self.state_lock().pins.insert(replica, pinned);
        receiver
    }

    /// Figures since the log was opened.
    pub(crate) fn stats(&self) -> WalStats {
        let state = self.state_lock();
        WalStats {
            syncs: state.counters.syncs,
            batches: state.counters.batches,
            records: state.counters.records,
            entries: state.counters.entries,
            bytes: state.counters.bytes,
            copied_bytes: state.counters.copied_bytes,
            segments: state.readers.len() as u64,
            spare_segments: state.counters.spares as u64,
            live_bytes: state.index.live_bytes(),
            cached_bytes: state.index.cached_bytes() as u64,
            queued_bytes: state.queued_bytes as u64,
        }
    }

    /// The number of the newest use of a segment.
    #[cfg(test)]
    pub(crate) fn active_use(&self) -> u64 {
        self.state_lock().active_use
    }

    /// Writes what is queued and that the log was closed, and waits for it. Later calls get errors.
    pub(crate) fn close(&self) {
        self.handle.close();
    }

    /// Holds the reason after a failed write or sync. A failure from before this call counts as a change.
    pub(crate) fn poisoned(&self) -> watch::Receiver<Option<String>> {
        let mut poisoned = self.handle.shared.poisoned.subscribe();
        if poisoned.borrow().is_some() {
            poisoned.mark_changed();
        }
        poisoned
    }

    fn state_lock(&self) -> MutexGuard<'_, State> {
        lock(&self.handle.shared.state)
    }

    fn submit(&self, done: Option<Done>, queue: impl FnOnce(&mut State) -> io::Result<()>) {
        let urgent = done.is_some();
        let mut state = self.state_lock();
        let result = match &state.life {
            Life::Open => queue(&mut state),
            ended => Err(ended.error()),
        };
        if result.is_ok() && state.backing != Backing::Memory {
            let open = state.open();
            open.urgent |= urgent;
            open.waiting.extend(done);
            let wakes = state.has_work() && std::mem::take(&mut state.appender_waits);
            // Not under the lock, which is the first thing that the appender takes.
            drop(state);
            if wakes {
                self.handle.shared.work.notify_one();
            }
            return;
        }
        drop(state);
        match done {
            Some(done) => done(result),
            None => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a record was not queued");
                }
            }
        }
    }
}

fn push_known(state: &mut State, replica: u64, record: &Record<'_>) -> io::Result<()> {
    check_known(state, replica)?;
    state.check(record)?;
    state.push(replica, record, None);
    Ok(())
}

fn check_known(state: &State, replica: u64) -> io::Result<()> {
    if state.index.contains(replica) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("replica {replica:016x} is not in this log: create it first")))
}

fn check_entries(state: &State, replica: u64, entries: &[LogEntry]) -> io::Result<()> {
    check_known(state, replica)?;
    let (last_purged, known_last) = state.index.bounds(replica).unwrap_or_default();
    let refuse = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    let mut next = None;
    for entry in entries {
        state.check(&Record::Entry { term: entry.term, index: entry.index, payload: &entry.payload })?;
        if next.is_some_and(|next| next != entry.index) {
            return refuse(format!("entry {} in a row where {next:?} is due", entry.index));
        }
        next = Some(entry.index + 1);
    }
    let Some(first) = entries.first() else {
        return Ok(());
    };
    if known_last.is_some_and(|last| first.index > last.index + 1) {
        return refuse(format!("entry {} does not follow {known_last:?}", first.index));
    }
    if last_purged.is_some_and(|purged| first.index <= purged.index) {
        return refuse(format!("entry {} was purged: {last_purged:?}", first.index));
    }
    Ok(())
}

impl Handle {
    fn close(&self) {
        {
            let mut state = lock(&self.shared.state);
            if state.life == Life::Open {
                state.life = if state.backing == Backing::Memory { Life::Closed } else { Life::Closing };
            }
        }
        self.shared.work.notify_one();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // The appender poisons the log itself if it ends otherwise than asked.
            let _ = thread.join();
        }
        drop(lock(&self.directory).take());
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Ends the log: all who wait, and `waiting`, get errors.
    fn poison(&self, reason: &str, mut waiting: Vec<Done>) {
        let error = {
            let mut state = lock(&self.state);
            if matches!(state.life, Life::Open | Life::Closing) {
                metrics::counter!(stats::LOG_FAILURES).increment(1);
            }
            if state.life != Life::Closed {
                state.life = Life::Poisoned(reason.to_owned());
            }
            waiting.extend(state.take_waiting());
            state.life.clone()
        };
        self.poisoned.send_replace(Some(reason.to_owned()));
        self.room.notify_waiters();
        waiting.into_iter().for_each(|done| done(Err(error.error())));
    }
}

/// A thread that panicked while it held the lock is no reason to stop the others: nothing that is changed under
/// the lock is left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
