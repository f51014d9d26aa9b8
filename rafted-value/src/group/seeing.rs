//! How a replica sees its group: openraft's metrics in this crate's words.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Instant, ServerState};

use super::{Part, UntypedReplica};
use crate::config::GroupConfig;
use crate::openraft_types::Types;
use crate::openraft_types::{members_of, position};
use crate::status::{Members, ReplicaId, Role, Status};

type Metrics = openraft::RaftMetrics<Types>;

/// At least this long a silence is one: a machine that is short of processors is not dead.
const MIN_SILENCE: Duration = Duration::from_secs(1);
/// A member that has not answered for so many of the longest election timeouts is called unresponsive.
const SILENCE_IN_ELECTIONS: u32 = 4;

impl UntypedReplica {
    /// How this replica sees its group.
    pub fn status(&self) -> Status {
        let metrics = WatchReceiver::borrow_watched(&self.inner.raft.metrics()).clone();
        let members = members_of(&metrics.membership_config, &metrics.committed_membership_config);
        let limit = (self.inner.core_config.election().1 * SILENCE_IN_ELECTIONS).max(MIN_SILENCE);
        let role = match (
            self.inner.removed.load(Ordering::Acquire),
            self.part(),
            role(&metrics, self.heard_limit(limit), self.unanswered_for(&metrics)),
        ) {
            (true, ..) => Role::Removed,
            (_, Part::RolledBack, _) => Role::RolledBack,
            (_, _, Role::Stopped) => Role::Stopped,
            (_, Part::Waits, _) => Role::Returning,
            (_, Part::Takes, role) => role,
        };
        let config = self.inner.shared.config();
        let matched = metrics
            .replication
            .iter()
            .flatten()
            .filter_map(|(&id, log_id)| Some((ReplicaId::new(id)?, log_id.as_ref().map(|log_id| log_id.index))));
        Status {
            replica: self.inner.spec.replica,
            role,
            term: metrics.current_term,
            leader: metrics.current_leader.and_then(ReplicaId::new).filter(|_| is_served(role)),
            members,
            last_log_index: metrics.last_log_index,
            applied: metrics.last_applied.map(position),
            snapshot: metrics.snapshot.map(position),
            matched: matched.collect(),
            unresponsive: unresponsive(&metrics, self.heard_limit(limit)),
            is_asleep: self.is_asleep(),
            config_awaits_restart: self.inner.core_config.needs_restart_for(&config),
            config: GroupConfig::clone(&config),
        }
    }
}

impl UntypedReplica {
    /// Whether it leads, as far as it knows, and no majority answers it, or none has yet.
    pub fn is_unanswered(&self) -> bool {
        let status = self.status();
        let unanswered = self.inner.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        status.role == Role::Isolated || unanswered.is_some()
    }

    /// For how long it has been seen to lead without any answer of a majority.
    fn unanswered_for(&self, metrics: &Metrics) -> Duration {
        let now = self.inner.store.clock().monotonic();
        let mut unanswered = self.inner.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        if metrics.state != ServerState::Leader || metrics.last_quorum_acked.is_some() {
            *unanswered = None;
            return Duration::ZERO;
        }
        match *unanswered {
            Some((term, since)) if term == metrics.current_term => now.saturating_sub(since),
            _ => {
                *unanswered = Some((metrics.current_term, now));
                Duration::ZERO
            }
        }
    }

    /// Nobody answers a sleeping leader, which asks nobody: only once it has been awake for so long does silence say
    /// anything.
    fn heard_limit(&self, limit: Duration) -> Duration {
        match self.inner.sleeper.awake_for() {
            Some(awake_for) if awake_for >= limit => limit,
            _ => Duration::MAX,
        }
    }

    /// The newest members in its log, and the newest that it knows to be committed.
    pub(super) fn known_members(&self) -> [Members; 2] {
        let metrics = WatchReceiver::borrow_watched(&self.inner.raft.metrics()).clone();
        let (effective, committed) = (&metrics.membership_config, &metrics.committed_membership_config);
        [members_of(effective, committed), members_of(committed, committed)]
    }
}

/// Whether such a replica can know who leads.
fn is_served(role: Role) -> bool {
    !matches!(role, Role::Isolated | Role::Stopped | Role::Removed | Role::Returning | Role::RolledBack)
}

fn role(metrics: &Metrics, limit: Duration, unanswered_for: Duration) -> Role {
    match (&metrics.running_state, metrics.state) {
        (Err(_), _) | (_, ServerState::Shutdown) => Role::Stopped,
        (_, ServerState::Learner) => Role::Learner,
        (_, ServerState::Follower) => Role::Follower,
        (_, ServerState::Candidate) => Role::Candidate,
        (_, ServerState::Leader) if is_isolated(metrics, limit, unanswered_for) => Role::Isolated,
        (_, ServerState::Leader) => Role::Leader,
    }
}

/// Whether no majority has answered a leader for that long: one that was answered by none yet has been `unanswered_for`.
/// A group of one needs no answer.
fn is_isolated(metrics: &Metrics, limit: Duration, unanswered_for: Duration) -> bool {
    let is_alone = metrics.membership_config.membership().voter_ids().all(|id| id == metrics.id);
    let silent_for = metrics.last_quorum_acked.map_or(unanswered_for, |acked| acked.elapsed());
    !is_alone && silent_for > limit
}

fn unresponsive(metrics: &Metrics, limit: Duration) -> BTreeMap<ReplicaId, Option<Duration>> {
    let answered = metrics.heartbeat.iter().flatten().filter(|(id, _)| **id != metrics.id);
    answered
        .map(|(id, answered)| (ReplicaId::new(*id), answered.map(|at| at.elapsed())))
        .filter(|(_, silent_for)| silent_for.map_or(limit != Duration::MAX, |silent| silent > limit))
        .filter_map(|(id, silent_for)| Some((id?, silent_for)))
        .collect()
}
