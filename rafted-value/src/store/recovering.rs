//! Unsafe recovery on one node: what its stopped replicas have, and how a plan becomes true for one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Store;
use crate::codec::Reader;
use crate::error::StoreError;
use crate::openraft_types::{Membership, StoredMembership, decode_payload, encode_payload, log_id, members_of};
use crate::recovery::{Found, RecoveryPlan, RecoveryReport};
use crate::rpc::read_snapshot_meta;
use crate::status::{LogPosition, Members, ReplicaId};
use crate::wal::{Position, ReplicaLogState, ReplicaRecord, Together, VoteRecord, Wal};

/// Entries that are read at once in search of the members.
const SEARCH_BYTES: usize = 1 << 20;

/// What a plan was to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// It is done, and durable: the replica can be started.
    Done,
    /// It was done before.
    AlreadyDone,
    /// The plan keeps no replica of this node.
    NotHere,
}

/// Why a plan was not applied. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The replica runs.
    #[error("replica {replica} of group {group} runs; stop it first")]
    Running {
        /// The group.
        group: String,
        /// The replica.
        replica: ReplicaId,
    },
    /// The replica is not as it was when it reported.
    #[error("replica {replica} of group {group} has changed since it reported; make a new plan from new reports")]
    Changed {
        /// The group.
        group: String,
        /// The replica.
        replica: ReplicaId,
    },
    /// The storage refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// What each replica of this node could bring into a recovery of its group. Stop the replicas first.
    pub async fn recovery_reports(&self) -> Result<Vec<RecoveryReport>, StoreError> {
        self.reports(|_| true).await
    }

    /// The same for replicas of these groups only. They may run: then the report is of one moment.
    pub async fn recovery_reports_of(&self, groups: BTreeSet<String>) -> Result<Vec<RecoveryReport>, StoreError> {
        self.reports(move |group| groups.contains(group)).await
    }

    async fn reports(
        &self,
        is_asked_for: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Vec<RecoveryReport>, StoreError> {
        let store = self.clone();
        let read = move || {
            let replicas = store.inner.wal.replicas().into_iter().filter(|record| is_asked_for(&record.group));
            replicas.map(|record| store.report(record)).collect::<io::Result<Vec<_>>>()
        };
        let reports = self.threads().run(read).await.and_then(|reports| reports);
        reports.map_err(|error| StoreError::Io { path: self.wal_dir(), error })
    }

    /// Makes a plan true for this node's replica: its incarnation, its vote and, on the chosen one, the members, in one
    /// batch of the log, so that a crash leaves all of it or nothing. Durable on return; doing it twice is fine.
    pub async fn recover(&self, plan: &RecoveryPlan) -> Result<Recovered, RecoveryError> {
        let group = || plan.group.clone();
        let replicas = self.inner.wal.replicas().into_iter();
        let ours = replicas.filter_map(|record| Some((ReplicaId::new(record.replica)?, record)));
        let Some((replica, record)) = ours.into_iter().find(|(id, _)| plan.members.contains_key(id)) else {
            return Ok(Recovered::NotHere);
        };
        // Held until the end, so that nobody starts it meanwhile.
        let claim = self.claim(replica).ok_or_else(|| RecoveryError::Running { group: group(), replica })?;
        let state = self.inner.wal.state(replica.get()).unwrap_or_default();
        let now = found(&record, &state);
        let is_chosen = replica == plan.chosen;
        let position = Position { term: plan.term, index: plan.entry_index() };
        let done = Found {
            incarnation: plan.incarnation,
            term: plan.term,
            last: if is_chosen { Some(logged(position)) } else { now.last },
        };
        if now == done {
            self.forget_removed(replica).await?;
            return Ok(Recovered::AlreadyDone);
        }
        if plan.found.get(&replica) != Some(&now) {
            return Err(RecoveryError::Changed { group: group(), replica });
        }
        let payload = match is_chosen {
            true => Some(membership_payload(plan).map_err(|error| StoreError::Io { path: self.wal_dir(), error })?),
            false => None,
        };
        let (told, synced) = oneshot::channel();
        let told = Box::new(move |result| drop(told.send(result)));
        let vote = VoteRecord { term: plan.term, voted_for: plan.chosen.get(), committed: false };
        let record = ReplicaRecord { incarnation: plan.incarnation, ..record };
        // A crash while a snapshot was installed leaves a log that ends before it, or another one: it gives way, as it
        // would at the replica's start, so that the new entry follows the snapshot.
        let of_snapshot = state.snapshot.as_ref().and_then(|pointer| pointer.position);
        let follows = of_snapshot.filter(|&snapshot| is_chosen && state.last < Some(snapshot));
        let together = Together { record, vote, follows, entry: payload.map(|payload| (position, payload)) };
        self.inner.wal.write_together(replica.get(), together, told);
        self.synced(synced).await?;
        // It may have been started before this, and have heard that the group goes on without its incarnation.
        self.forget_removed(replica).await?;
        drop(claim);
        Ok(Recovered::Done)
    }

    fn report(&self, record: ReplicaRecord) -> io::Result<RecoveryReport> {
        let state = self.inner.wal.state(record.replica).unwrap_or_default();
        let Found { incarnation, term, last } = found(&record, &state);
        let replica = ReplicaId::new(record.replica).ok_or_else(|| io::Error::other("a replica has the id 0"))?;
        // An applied entry is committed, and a snapshot holds applied ones only.
        let of_snapshot = state.snapshot.as_ref().and_then(|pointer| pointer.position);
        let committed = state.committed.max(of_snapshot);
        let members = members_in(&self.inner.wal, record.replica, &state, committed)?;
        let node = self.inner.name.clone();
        let committed = committed.map(logged);
        Ok(RecoveryReport { group: record.group, incarnation, replica, node, term, last, committed, members })
    }
}

fn found(record: &ReplicaRecord, state: &ReplicaLogState) -> Found {
    let term = state.vote.map_or(0, |vote| vote.term);
    let of_snapshot = state.snapshot.as_ref().and_then(|pointer| pointer.position);
    Found { incarnation: record.incarnation, term, last: state.last.max(of_snapshot).map(logged) }
}

fn logged(position: Position) -> LogPosition {
    LogPosition { term: position.term, index: position.index }
}

fn membership_payload(plan: &RecoveryPlan) -> io::Result<Bytes> {
    let voters = plan.members.keys().map(|id| id.get()).collect();
    let nodes: BTreeMap<u64, _> = plan.members.iter().map(|(id, member)| (id.get(), member.clone())).collect();
    let membership = Membership::new(vec![voters], nodes).map_err(io::Error::other)?;
    Ok(encode_payload(&openraft::EntryPayload::Membership(membership)))
}

/// The members as of the last entry that names them, in the log or else in the snapshot.
fn members_in(wal: &Wal, replica: u64, state: &ReplicaLogState, committed: Option<Position>) -> io::Result<Members> {
    let mut latest = match &state.snapshot {
        Some(pointer) => {
            let mut reader = Reader::new(pointer.meta.clone(), "snapshot pointer");
            read_snapshot_meta(&mut reader).map_err(io::Error::other)?.last_membership
        }
        None => StoredMembership::default(),
    };
    let mut next = state.last_purged.map_or(0, |purged| purged.index + 1);
    loop {
        let found = wal.read(replica, next..u64::MAX, SEARCH_BYTES)?;
        let Some(last) = found.last() else { break };
        next = last.index + 1;
        for entry in found {
            // A crash while a snapshot was installed leaves entries that it has in it.
            let is_newer = latest.log_id().is_none_or(|id| entry.index > id.index);
            if let openraft::EntryPayload::Membership(membership) =
                decode_payload(entry.payload).map_err(io::Error::other)?
                && is_newer
            {
                latest = StoredMembership::new(Some(log_id(entry.term, entry.index)), membership);
            }
        }
    }
    let at = latest.log_id().map(|id| id.index);
    let is_committed = at <= committed.map(|position| position.index);
    let known = if is_committed { latest.clone() } else { StoredMembership::default() };
    Ok(members_of(&latest, &known))
}

#[cfg(test)]
mod tests;
