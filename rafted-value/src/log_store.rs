//! openraft's log storage over the node's shared write-ahead log: one replica's view of it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures_util::{Stream, TryStreamExt, stream};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use crate::codec::Malformed;
use crate::openraft_types::{Entry, LogId, Types, Vote, decode_payload, encode_payload, entry, log_id, vote};
use crate::store::Running;
use crate::threads::Threads;
use crate::wal::{LogEntry, Position, ReplicaLogState, VoteRecord, Wal};

/// One read for replication: an append of this size fits into a message of the transport.
const MAX_READ_BYTES: usize = 1 << 20;

/// One replica's log.
pub(crate) struct LogStore {
    wal: Wal,
    replica: u64,
    /// Where it waits for a disk.
    threads: Threads,
    /// Of the one that openraft's core owns; readers have none, and may outlive the core.
    #[allow(dead_code, reason = "held for its drop")]
    claim: Option<Running>,
}

impl LogStore {
    pub(crate) fn new(wal: Wal, replica: u64, threads: Threads) -> Self {
        Self { wal, replica, threads, claim: None }
    }

    /// Keeps the replica from running a second time for as long as whoever writes here does.
    pub(crate) fn claiming(self, claim: Running) -> Self {
        Self { claim: Some(claim), ..self }
    }

    /// The same log, to be read.
    fn reader(&self) -> Self {
        Self::new(self.wal.clone(), self.replica, self.threads.clone())
    }

    fn state(&self) -> Result<ReplicaLogState, io::Error> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no replica {:016x} here", self.replica));
        self.wal.state(self.replica).ok_or_else(missing)
    }

    /// What is in memory is given at once; a disk is read on a thread that may wait for it, which those of raft and
    /// network must not.
    async fn read(&self, start: u64, end: u64, max_bytes: usize) -> Result<Vec<Entry>, io::Error> {
        let found = match self.wal.read_cached(self.replica, start..end, max_bytes) {
            Some(found) => found,
            None => {
                let (wal, replica) = (self.wal.clone(), self.replica);
                // openraft's core ends on it: the node is to say why, and not to go on with a replica that does nothing.
                let read = self.threads.run(move || wal.read(replica, start..end, max_bytes)).await?;
                read.inspect_err(|error| self.wal.fail(&format!("the log cannot be read: {error}")))?
            }
        };
        let decoded = |found: LogEntry| {
            let payload = decode_payload(found.payload)?;
            Ok(entry(found.term, found.index, payload))
        };
        found.into_iter().map(decoded).collect::<Result<_, Malformed>>().map_err(io::Error::other)
    }
}

/// First and one behind the last.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn to_log_id(position: Position) -> LogId {
    log_id(position.term, position.index)
}

fn to_position(id: LogId) -> Position {
    Position { term: **id.committed_leader_id(), index: id.index }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    /// In steps: what is to be applied after a restart may be more than memory holds.
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let store = self.reader();
        let steps = stream::try_unfold(start, move |next| {
            let store = store.reader();
            async move {
                let entries = if next < end { store.read(next, end, MAX_READ_BYTES).await? } else { Vec::new() };
                let Some(last) = entries.last() else { return Ok(None) };
                let after = last.log_id.index + 1;
                Ok::<_, io::Error>(Some((stream::iter(entries.into_iter().map(Ok)), after)))
            }
        });
        Box::pin(steps.try_flatten())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let record = self.state()?.vote;
        Ok(record.map(|record| vote(record.term, record.voted_for, record.committed)))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, MAX_READ_BYTES).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = self.state()?;
        let last_purged_log_id = state.last_purged.map(to_log_id);
        Ok(LogState { last_purged_log_id, last_log_id: state.last.map(to_log_id).or(last_purged_log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let record =
            VoteRecord { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed };
        let (done, synced) = oneshot::channel();
        self.wal.save_vote(self.replica, record, Box::new(move |result| drop(done.send(result))));
        synced.await.unwrap_or_else(|_| Err(io::Error::other("the log has stopped")))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.wal.save_committed(self.replica, to_position(committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.state()?.committed.map(to_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries
            .into_iter()
            .map(|entry| {
                let Position { term, index } = to_position(entry.log_id);
                LogEntry { term, index, payload: encode_payload(&entry.payload) }
            })
            .collect();
        self.wal.room().await;
        self.wal.append(self.replica, entries, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.wal.truncate_after(self.replica, last.map(|id| id.index));
        Ok(())
    }

    async fn purge(&mut self, up_to: LogId) -> Result<(), io::Error> {
        self.wal.purge(self.replica, to_position(up_to));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
