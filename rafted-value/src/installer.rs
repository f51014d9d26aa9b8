//! Takes a snapshot in from another replica: says how much of it is here, stores what comes, judges it as a whole, and
//! gives it to openraft.
//!
//! ```text
//! sender                                     this replica
//!   offer(snapshot, its form) --------------->
//!   <----- at offset | busy | not needed | not readable
//!   bytes from offset ----------------------->  part (snapshot/parts.rs) --> judged --> openraft
//!   <----- installed
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use openraft::async_runtime::watch::WatchReceiver;

use crate::error::NotHappened;
use crate::machine::{Raft, Shared};
use crate::openraft_types::{SnapshotMeta, Vote};
use crate::rpc::{Answer, SnapshotForm, SnapshotId};
use crate::snapshot::{ReceiveError, Refusal, SnapshotStore};
use crate::transport::Body;

/// A replica's receiving end.
pub(crate) struct Installer {
    pub(crate) group: String,
    pub(crate) raft: Raft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) unreadable: Unreadable,
}

/// The last snapshot that this program could not read: of it, no more is taken in, and its sender is told why.
#[derive(Default)]
pub(crate) struct Unreadable(Mutex<Option<(SnapshotId, String)>>);

impl Unreadable {
    fn reason(&self, id: SnapshotId) -> Option<String> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(last, _)| *last == id).map(|(_, reason)| reason.clone())
    }

    /// Whether this is news.
    fn note(&self, id: SnapshotId, reason: &str) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = last.as_ref().is_none_or(|(_, last)| last != reason);
        *last = Some((id, reason.to_owned()));
        is_news
    }
}

impl Installer {
    /// Answers a sender that has not begun yet.
    pub(crate) async fn offered(&self, vote: Vote, meta: &SnapshotMeta, id: SnapshotId, form: SnapshotForm) -> Answer {
        if let Some(answer) = self.not_needed(vote, meta).await {
            return answer;
        }
        let reason = SnapshotStore::cannot_read(form, self.shared.factory()).or_else(|| self.unreadable.reason(id));
        if let Some(reason) = reason {
            return self.not_readable(id, reason);
        }
        match self.snapshots.offset(id) {
            Some(offset) => Answer::SnapshotAt { offset },
            None => Answer::SnapshotBusy,
        }
    }

    /// Receives a snapshot from `offset` on, and installs it once it is whole.
    pub(crate) async fn receive(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        id: SnapshotId,
        offset: u64,
        body: Box<dyn Body>,
    ) -> Answer {
        if let Some(answer) = self.not_needed(vote, &meta).await {
            return answer;
        }
        // Judged before openraft sees it: what it has accepted must not turn out to be damaged or unreadable.
        let received = self.snapshots.receive(id, offset, body, &meta, self.shared.factory()).await;
        let snapshot = match received {
            Ok(snapshot) => snapshot,
            Err(ReceiveError::Refused(Refusal::Busy)) => return Answer::SnapshotBusy,
            Err(ReceiveError::Refused(Refusal::At(offset))) => return Answer::SnapshotAt { offset },
            Err(ReceiveError::Failed(error)) if error.kind() == std::io::ErrorKind::StorageFull => {
                return Answer::NotHappened(NotHappened::DiskFull { group: self.group.clone() });
            }
            Err(ReceiveError::Unreadable(reason)) => return self.not_readable(id, reason),
            Err(ReceiveError::Failed(error)) => return self.stopped(&error),
        };
        match self.raft.install_full_snapshot(vote, openraft::storage::Snapshot { meta, snapshot }).await {
            // openraft says so also where it only has the entries, which may not be synced yet.
            Ok(response) => self.has_it(response.vote).await,
            Err(error) => self.stopped(&error),
        }
    }

    /// What openraft would answer without looking at the snapshot: its sender leads no more, or all of it is here.
    async fn not_needed(&self, vote: Vote, meta: &SnapshotMeta) -> Option<Answer> {
        let own = self.raft.server_metrics().borrow_watched().vote;
        let applied = *self.shared.applied_count().borrow();
        if own > vote {
            return Some(Answer::Snapshot { vote: own });
        }
        // First: what is here is durable only once there is room again.
        if self.snapshots.is_full() {
            return Some(Answer::NotHappened(NotHappened::DiskFull { group: self.group.clone() }));
        }
        let is_here = applied >= meta.last_log_id.map_or(0, |last| last.index + 1);
        if is_here { Some(self.has_it(own).await) } else { None }
    }

    /// That all of it is here, once it is durable: what is applied may not be synced yet, and a leader never again sends
    /// what it was told is there.
    async fn has_it(&self, vote: Vote) -> Answer {
        match self.snapshots.settle().await {
            Ok(()) => Answer::Snapshot { vote },
            Err(error) => self.stopped(&error),
        }
    }

    fn not_readable(&self, id: SnapshotId, reason: String) -> Answer {
        if self.unreadable.note(id, &reason) {
            tracing::error!(group = %self.group, reason, "the leader's snapshot cannot be read: the replica stays behind");
        }
        Answer::SnapshotUnreadable { reason }
    }

    fn stopped(&self, error: &dyn std::fmt::Display) -> Answer {
        Answer::NotHappened(NotHappened::Stopped { group: self.group.clone(), reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_cannot_be_read_is_known_again_and_its_reason_is_news_once() {
        let (unreadable, id) = (Unreadable::default(), |id| SnapshotId { id, length: 9 });
        assert_eq!(unreadable.reason(id(1)), None);
        assert!(unreadable.note(id(1), "version 1"));
        assert_eq!(unreadable.reason(id(1)).as_deref(), Some("version 1"));
        assert_eq!(unreadable.reason(id(2)), None, "another one may be of another version");
        assert!(!unreadable.note(id(2), "version 1"));
        assert_eq!((unreadable.reason(id(1)), unreadable.reason(id(2)).is_some()), (None, true));
        assert!(unreadable.note(id(3), "version 3"));
    }
}
