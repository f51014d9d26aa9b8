//! Whether a restarted replica of a lone group takes part: not before others have said that its directory was not rolled
//! back (`verdict.rs`). Until then nothing that it says can count, as a vote, as a copy of an entry or for a leader's
//! confirmation; it says what it knows of other directories, so that a group whose members all restart does not wait for
//! itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::ReadPolicy;

use super::UntypedReplica;
use crate::error::StoreError;
use crate::rpc::{Answer, RequestBody, Seen};
use crate::runtime::watch;
use crate::starts::Start;
use crate::status::{Member, ReplicaId, Role};

/// How long a leader asks its majority before it answers as somebody who may have been deposed.
const CONFIRMATION: Duration = Duration::from_millis(300);

/// A replica's part in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// It has restarted, and waits for what the others say.
    Waits,
    Takes,
    /// Its directory was rolled back: it never takes part again.
    RolledBack,
}

/// What the task that asks the others and the requests of the others have in common.
pub(super) struct Participation {
    part: watch::Sender<Part>,
    /// A leader that has said where it is.
    leader: watch::Sender<Option<Member>>,
}

impl Participation {
    pub(super) fn new(part: Part) -> Self {
        Self { part: watch::Sender::new(part), leader: watch::Sender::new(None) }
    }

    pub(super) fn part(&self) -> Part {
        *self.part.borrow()
    }
}

impl UntypedReplica {
    pub(crate) fn part(&self) -> Part {
        self.inner.participation.part()
    }

    /// Returns once it takes part; `false` if it never will.
    pub(crate) async fn takes_part(&self) -> bool {
        let mut part = self.inner.participation.part.subscribe();
        // The sender lives as long as the replica.
        part.wait_for(|part| *part != Part::Waits).await.is_ok_and(|part| *part == Part::Takes)
    }

    pub(crate) fn take_part(&self) {
        self.inner.participation.part.send_replace(Part::Takes);
        self.inner.raft.runtime_config().elect(true);
    }

    /// Stops for good, and so does the directory: it is not opened again.
    pub(crate) async fn set_aside(&self) -> Result<(), StoreError> {
        self.shutdown().await;
        let noted = self.inner.store.note_rolled_back().await;
        self.inner.participation.part.send_replace(Part::RolledBack);
        noted
    }

    /// The entries in its log and in its snapshot.
    pub(crate) fn stored_entries(&self) -> u64 {
        let state = self.inner.store.wal().state(self.inner.spec.replica.get()).unwrap_or_default();
        let of_snapshot = state.snapshot.and_then(|pointer| pointer.position);
        let last = state.last.max(of_snapshot).max(state.last_purged);
        last.map_or(0, |last| last.index + 1)
    }

    /// The number of this node's memory, and this start of it.
    pub(crate) fn this_start(&self) -> (u64, Start) {
        self.inner.store.this_start()
    }

    /// Whether somebody has seen a start of this directory that it has forgotten.
    pub(crate) fn lacks_start(&self, seen: Start) -> bool {
        self.inner.store.lacks_start(seen)
    }

    /// The leader that has introduced itself last.
    pub(crate) fn introduced(&self) -> watch::Receiver<Option<Member>> {
        self.inner.participation.leader.subscribe()
    }

    pub(super) fn meet(&self, leader: Member) -> Answer {
        if self.part() == Part::Waits && *self.inner.participation.leader.borrow() != Some(leader.clone()) {
            self.inner.participation.leader.send_replace(Some(leader));
        }
        Answer::Done
    }

    /// Whether an answer to this could count for something.
    pub(super) fn must_wait_for(&self, body: &RequestBody) -> bool {
        let counts = matches!(
            body,
            RequestBody::Append(_)
                | RequestBody::Vote { .. }
                | RequestBody::PreVote { .. }
                | RequestBody::TransferLeader { .. }
                | RequestBody::SnapshotOffer { .. }
                | RequestBody::Snapshot { .. }
        );
        counts && self.part() != Part::Takes
    }

    /// What it knows of the directory from which another replica has started.
    pub(super) async fn seen(&self, from: ReplicaId, node: u64, start: Start, after: Option<Start>) -> Answer {
        if self.inner.removed.load(Ordering::Acquire) || self.part() == Part::RolledBack {
            return Answer::WrongReplica;
        }
        match self.inner.store.note_start(node, start, after).await {
            Ok(start) => {
                let entries = tokio::time::timeout(CONFIRMATION, self.entries_as_leader(from)).await.ok().flatten();
                let (replica, members) = (self.inner.spec.replica, self.status().members);
                Answer::Seen(Seen { replica, start, members, entries })
            }
            Err(error) => self.stopped(&error),
        }
    }

    /// So many entries a replica has said to have, if this is a leader that a majority confirms.
    async fn entries_as_leader(&self, replica: ReplicaId) -> Option<u64> {
        if self.status().role != Role::Leader {
            return None;
        }
        // That it leads is what is asked; nothing is read.
        let _ = self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.ok()?;
        let status = self.status();
        let entries = status.matched.get(&replica).copied().flatten().map_or(0, |last| last + 1);
        (status.role == Role::Leader).then_some(entries)
    }
}
