//! Whether a restarted replica of a lone group takes part: not before others have said that its directory was not rolled
//! back (`verdict.rs`). Until then nothing that it says can count, as a vote, as a copy of an entry or for a leader's
//! confirmation; it says what it knows of other directories, so that a group whose members all restart does not wait for
//! itself.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::UntypedReplica;
use crate::error::StoreError;
use crate::rpc::{Answer, RequestBody, Seen};
use crate::runtime::watch;
use crate::starts::Start;
use crate::status::{Member, ReplicaId};
use crate::verdict::{Found, ToldLeader};

/// Members that have said where they are and are remembered until the replica takes part: more than a group has.
const MAX_MET: usize = 64;

/// See [`UntypedReplica::knows_members`].
const REREAD: Duration = Duration::from_millis(50);

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
    /// Members that have said where they are, by node.
    met: watch::Sender<BTreeMap<String, Member>>,
}

impl Participation {
    pub(super) fn new(part: Part) -> Self {
        Self { part: watch::Sender::new(part), met: watch::Sender::new(BTreeMap::new()) }
    }

    pub(super) fn part(&self) -> Part {
        *self.part.borrow()
    }
}

impl UntypedReplica {
    pub(crate) fn part(&self) -> Part {
        // What one group learns of the directory holds for all.
        if *self.inner.store.rolled_back().borrow() { Part::RolledBack } else { self.inner.participation.part() }
    }

    /// Returns once it takes part; `false` if it never will.
    pub(crate) async fn takes_part(&self) -> bool {
        let mut part = self.inner.participation.part.subscribe();
        let mut rolled_back = self.inner.store.rolled_back();
        let mut changes = self.status_changes();
        while self.part() == Part::Waits {
            let goes_on = tokio::select! {
                biased;
                changed = part.changed() => changed.is_ok(),
                changed = rolled_back.changed() => changed.is_ok(),
                is_running = changes.changed() => is_running,
            };
            if !goes_on {
                return false;
            }
        }
        self.part() == Part::Takes
    }

    pub(crate) fn take_part(&self) {
        self.inner.participation.part.send_replace(Part::Takes);
        if self.part() == Part::Takes {
            self.inner.raft.runtime_config().elect(true);
        }
    }

    /// Whether this replica's directory is known to be rolled back, from now on.
    pub(crate) fn rolled_back(&self) -> tokio::sync::watch::Receiver<bool> {
        self.inner.store.rolled_back()
    }

    /// Stops for good, and so do all replicas of the directory: it is not opened again.
    pub(crate) async fn set_aside(&self) -> Result<(), StoreError> {
        let noted = self.inner.store.note_rolled_back().await;
        self.shutdown().await;
        noted
    }

    /// Waits until raft has told which members the log names: that is a moment after its start. `false` if it has stopped.
    pub(crate) async fn knows_members(&self) -> bool {
        let mut changes = self.status_changes();
        while self.has_log() && self.status().members.position.is_none() {
            // What is read right after a change may be of the moment before it: it is read again.
            match tokio::time::timeout(REREAD, changes.changed()).await {
                Ok(true) | Err(_) => {}
                Ok(false) => return false,
            }
        }
        true
    }

    /// The replica as it is stored.
    pub(crate) fn found(&self) -> Found {
        let replica = self.inner.spec.replica;
        let term = self.inner.store.wal().state(replica.get()).and_then(|state| state.vote).map_or(0, |vote| vote.term);
        Found { replica, entries: self.stored_entries(), term, members: self.known_members() }
    }

    /// The entries in its log and in its snapshot.
    fn stored_entries(&self) -> u64 {
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

    /// Members that have said where they are.
    pub(crate) fn met(&self) -> watch::Receiver<BTreeMap<String, Member>> {
        self.inner.participation.met.subscribe()
    }

    pub(super) fn meet(&self, member: Member) -> Answer {
        let met = &self.inner.participation.met;
        let (known, count) = (met.borrow().get(&member.name).cloned(), met.borrow().len());
        let is_new = known.as_ref() != Some(&member) && (known.is_some() || count < MAX_MET);
        if is_new {
            met.send_modify(|met| drop(met.insert(member.name.clone(), member)));
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
    pub(super) async fn seen(
        &self,
        from: ReplicaId,
        node: u64,
        start: Start,
        after: Option<Start>,
        asker: Member,
    ) -> Answer {
        if self.inner.removed.load(Ordering::Acquire) || self.part() == Part::RolledBack {
            return Answer::WrongReplica;
        }
        if self.part() == Part::Waits {
            self.meet(asker);
        }
        match self.inner.store.note_start(node, start, after).await {
            Ok(start) => {
                let status = self.status();
                let matched = status.matched.get(&from).copied().flatten();
                // Openraft tells it of leaders only, also of those that nobody answers any more.
                let told = matched.map(|last| ToldLeader { term: status.term, entries: last + 1 });
                Answer::Seen(Seen { replica: self.inner.spec.replica, start, members: status.members, told })
            }
            Err(error) => self.stopped(&error),
        }
    }
}
