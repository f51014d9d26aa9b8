//! Takes a snapshot in from another replica: says how much of it is here, stores what comes, judges it as a whole, and
//! gives it to openraft.
//!
//! ```text
//! sender                                     this replica
//!   offer(snapshot) ------------------------->
//!   <----- at offset | busy | not needed
//!   bytes from offset ----------------------->  part (snapshot/parts.rs) --> judged --> openraft
//!   <----- installed
//! ```

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;

use crate::error::NotHappened;
use crate::machine::{Raft, Shared};
use crate::openraft_types::{SnapshotMeta, Vote};
use crate::rpc::{Answer, SnapshotId};
use crate::snapshot::{ReceiveError, Refusal, SnapshotStore};
use crate::transport::Body;

/// A replica's receiving end.
pub(crate) struct Installer {
    pub(crate) group: String,
    pub(crate) raft: Raft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) snapshots: SnapshotStore,
}

impl Installer {
    /// Answers a sender that has not begun yet.
    pub(crate) fn offered(&self, vote: Vote, meta: &SnapshotMeta, id: SnapshotId) -> Answer {
        if let Some(answer) = self.not_needed(vote, meta) {
            return answer;
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
        if let Some(answer) = self.not_needed(vote, &meta) {
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
            Err(ReceiveError::Failed(error)) => return self.stopped(&error),
        };
        match self.raft.install_full_snapshot(vote, openraft::storage::Snapshot { meta, snapshot }).await {
            Ok(response) => Answer::Snapshot { vote: response.vote },
            Err(error) => self.stopped(&error),
        }
    }

    /// What openraft would answer without looking at the snapshot: its sender leads no more, or all of it is here.
    fn not_needed(&self, vote: Vote, meta: &SnapshotMeta) -> Option<Answer> {
        let own = self.raft.server_metrics().borrow_watched().vote;
        let applied = *self.shared.applied_count().borrow();
        if own > vote || applied >= meta.last_log_id.map_or(0, |last| last.index + 1) {
            return Some(Answer::Snapshot { vote: own });
        }
        let full = || Answer::NotHappened(NotHappened::DiskFull { group: self.group.clone() });
        self.snapshots.is_full().then(full)
    }

    fn stopped(&self, error: &dyn std::fmt::Display) -> Answer {
        Answer::NotHappened(NotHappened::Stopped { group: self.group.clone(), reason: error.to_string() })
    }
}
