//! Groups in which nothing happens sleep: no heartbeats, no election timers, no timers at all. Who watches the nodes, and
//! not the groups one by one, decides when; this is what one replica does about it.
//!
//! ```text
//!                 at_rest, asked of the members, all of whom agree: follow_to_sleep
//!   leader awake ------------------------------------------------------------------> leader asleep (the last to fall asleep)
//!        ^                                                                               |
//!        '---- a command, a change of members, a vote, somebody who asks for votes ------'
//!
//!                 follow_to_sleep: same leader, same term, same log, all applied
//!   member awake ------------------------------------------------------------------> member asleep
//!        ^                                                                               |
//!        '---- entries, a snapshot, a vote, a hand-over, `wake` (its leader's node is gone)
//! ```
//!
//! A heartbeat wakes nobody, so that a query, which needs a round of them, leaves the group asleep. A sleeping replica
//! refuses pre-votes, as one does that has just heard its leader, as long as that one lives as far as this node knows. A
//! sleeping leader is woken by them: its heartbeats calm whoever asked. Until they are answered, it refuses, too.
//!
//! Nothing of this is needed for safety: a sleeping replica answers votes, entries and rounds like any other. A replica
//! that sleeps although its leader is gone costs time, not data.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;

use super::{Part, UntypedReplica};
use crate::openraft_types::position;
use crate::rpc::{Answer, RequestBody};
use crate::status::{LogPosition, ReplicaId, Role};

/// A group at rest, as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// The leader.
    pub leader: ReplicaId,
    /// Its term.
    pub term: u64,
    /// The last entry of its log, which it has applied.
    pub last: LogPosition,
    /// All other members of the group, and the names of their nodes; those that lack entries are among `lagging`.
    pub others: Vec<(ReplicaId, String)>,
    /// Members that are not known to have the last entry: the group may only sleep without them if they cannot be reached.
    pub lagging: BTreeSet<ReplicaId>,
    /// The members that vote, this leader among them.
    pub voters: BTreeSet<ReplicaId>,
    /// What had happened by then.
    activity: u64,
}

impl UntypedReplica {
    /// Whether it sleeps.
    pub fn is_asleep(&self) -> bool {
        self.inner.sleeper.is_asleep()
    }

    /// For how long nothing has happened that keeps it awake: a command, an entry, a vote, a change of members.
    pub fn idle_for(&self) -> Duration {
        self.inner.sleeper.idle_for()
    }

    /// Called each time that it wakes, on the thread of whoever wakes it: keep it short. Set once.
    pub fn on_wake(&self, call: impl Fn() + Send + Sync + 'static) {
        self.inner.sleeper.on_wake(Box::new(call));
    }

    /// What this leader would ask the other members before the group sleeps, if nothing has happened for that long and
    /// nothing is under way. `None` if something is, or if it does not lead or sleeps already.
    pub fn at_rest(&self, for_at_least: Duration) -> Option<Rest> {
        // Read first: what happens from here on keeps it awake.
        let activity = self.inner.sleeper.activity();
        if self.is_asleep() || self.idle_for() < for_at_least {
            return None;
        }
        let status = self.status();
        let (members, last) = (&status.members, status.applied?);
        let is_settled = members.committed && !members.is_joint() && status.last_log_index == Some(last.index);
        let is_busy = self.inner.limits.is_under_way();
        if status.role != Role::Leader || !is_settled || is_busy || !members.is_voter(status.replica) {
            return None;
        }
        let others = members.replicas.iter().filter(|(id, _)| **id != status.replica);
        let others: Vec<_> = others.map(|(id, member)| (*id, member.name.clone())).collect();
        let has_all = |id: &ReplicaId| status.matched.get(id).copied().flatten() == Some(last.index);
        let lagging: BTreeSet<_> = others.iter().map(|(id, _)| *id).filter(|id| !has_all(id)).collect();
        let voters = members.voter_ids();
        Some(Rest { leader: status.replica, term: status.term, last, others, lagging, voters, activity })
    }

    /// Falls asleep as the leader of a group whose other members do; `false` if something has happened since.
    pub fn fall_asleep(&self, rest: &Rest) -> bool {
        let metrics = self.inner.raft.metrics();
        let (term, leads) = {
            let metrics = metrics.borrow_watched();
            (metrics.current_term, metrics.state.is_leader())
        };
        leads && term == rest.term && self.inner.sleeper.sleep_unless_active_since(rest.activity)
    }

    /// Falls asleep as a member, if it has all that its leader has and knows of no other; `false` if not.
    pub fn follow_to_sleep(&self, leader: ReplicaId, term: u64, last: LogPosition) -> bool {
        let activity = self.inner.sleeper.activity();
        let metrics = self.inner.raft.metrics();
        let agrees = {
            let metrics = metrics.borrow_watched();
            metrics.current_term == term
                && metrics.current_leader == Some(leader.get())
                && metrics.running_state.is_ok()
                && metrics.last_log_index == Some(last.index)
                && metrics.last_applied.map(position) == Some(last)
        };
        if !agrees || self.part() != Part::Takes {
            return false;
        }
        if self.is_asleep() {
            return true;
        }
        // It may have been said while it was awake, of a leader before this one.
        self.set_leader_gone(false);
        self.inner.sleeper.sleep_unless_active_since(activity)
    }

    /// The node of the leader that it knows, which may be its own.
    pub fn leader_node(&self) -> Option<String> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        metrics.membership_config.membership().get_node(&leader).map(|member| member.name.clone())
    }

    /// The leader that it knows, which may be itself, and its term.
    pub fn leader_and_term(&self) -> Option<(ReplicaId, u64)> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        Some((ReplicaId::new(metrics.current_leader?)?, metrics.current_term))
    }

    /// Whether it leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.inner.raft.is_leader()
    }

    /// Says whether the leader that a sleeping member knows is gone: its node does not answer, or has restarted. Whoever
    /// asks for votes then wakes the member. It is forgotten when the member wakes.
    pub fn set_leader_gone(&self, is_gone: bool) {
        self.inner.sleeper.set_leader_gone(is_gone);
    }

    /// Whether it sleeps without a leader.
    pub fn misses_leader(&self) -> bool {
        self.is_asleep() && self.inner.sleeper.is_leader_gone() && !self.leads()
    }

    /// Sleeps from its start on, as long as nothing happens: a node with thousands of replicas wakes them by and by.
    pub fn doze(&self) {
        if !self.leads() {
            self.set_leader_gone(true);
            self.inner.sleeper.sleep_unless_active_since(self.inner.sleeper.activity());
        }
    }

    /// Wakes it: a leader sends heartbeats again, a member asks for votes once its leader has been silent for too long,
    /// which it has been if it slept. `false` if it was awake.
    pub fn wake(&self) -> bool {
        self.inner.sleeper.wake()
    }

    /// Has the members that were given up for the while tried again at once: they can be reached again.
    pub async fn retry_members(&self, members: impl IntoIterator<Item = ReplicaId>) {
        let members: Vec<_> = members.into_iter().map(ReplicaId::get).collect();
        // A stopped replica has nobody to try.
        let _ = self.inner.raft.trigger().reset_backoff(members).await;
    }

    /// Whether it leads, and has not had the time to be heard since it woke.
    fn has_just_woken_to_lead(&self) -> bool {
        self.leads() && self.inner.sleeper.awake_for().is_some_and(|awake_for| awake_for < self.longest_election())
    }

    /// A request of another member comes: whether it is answered here, without raft.
    pub(super) fn stir_for(&self, body: &RequestBody) -> Option<Answer> {
        match body {
            RequestBody::Append(append) if append.entries.is_empty() => {}
            RequestBody::Append(_)
            | RequestBody::Vote { .. }
            | RequestBody::TransferLeader { .. }
            | RequestBody::SnapshotOffer { .. }
            | RequestBody::Snapshot { .. } => self.inner.sleeper.stir(),
            RequestBody::PreVote { .. } if self.misses_leader() => {
                self.wake();
            }
            RequestBody::PreVote { .. } if self.is_asleep() || self.has_just_woken_to_lead() => {
                self.inner.sleeper.wake_leader();
                let metrics = self.inner.raft.metrics();
                let metrics = metrics.borrow_watched();
                return Some(Answer::Vote { vote: metrics.vote, granted: false, last: metrics.last_applied });
            }
            _ => {}
        }
        None
    }
}
