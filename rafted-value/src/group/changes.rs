//! A replica's part in changes of a lone group's members: the leader makes them, step by step.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::{ChangeMembers, ReadPolicy};
use tokio::time::Instant;

use super::UntypedReplica;
use super::answering::not_leader;
use crate::change::{self, Change, Step};
use crate::error::{DeleteError, MembersError, MembershipError, NotHappened, StoreError, UnknownOutcome};
use crate::rpc::{ANY_INCARNATION, Answer, Request, RequestBody};
use crate::status::{Member, ReplicaId, Role, Status};

/// How often the leader looks whether a replica has caught up, or the leadership has gone.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a change waits for what may pass soon: another change, or answers of members to a new leader.
const GRACE: Duration = Duration::from_secs(3);
/// What an answer needs to reach the asking node before that one gives up.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);
/// An heir that lacks no more entries than this takes over without a halt that is worth speaking of.
const HEIR_LAG: u64 = 16;
/// Under steady load an heir is never nearer than what is under way: after this time, near is near enough.
const HEIR_PATIENCE: Duration = Duration::from_secs(1);

/// What became of a change here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Changed {
    /// It is made.
    Done,
    /// It goes on; ask again.
    NotYet,
    /// Nothing was done here.
    NotLeader {
        /// The leader that this replica knows.
        leader: Option<(ReplicaId, Member)>,
    },
    /// Refused, or not known.
    Failed(MembershipError),
}

impl From<Changed> for Answer {
    fn from(changed: Changed) -> Self {
        match changed {
            Changed::Done => Self::Done,
            Changed::NotYet => Self::NotYet,
            Changed::NotLeader { leader } => not_leader(leader),
            Changed::Failed(error) => Self::NotChanged(error),
        }
    }
}

/// Which request to replace the leader is the latest: all earlier ones end.
#[derive(Debug, Default)]
pub(super) struct Succession {
    latest: AtomicU64,
}

impl Succession {
    fn begin(&self) -> u64 {
        self.latest.fetch_add(1, Ordering::AcqRel) + 1
    }

    fn is_latest(&self, turn: u64) -> bool {
        self.latest.load(Ordering::Acquire) == turn
    }
}

impl UntypedReplica {
    /// Changes the members, or hands over, if this leads. Asking again for the same is always safe.
    pub(crate) async fn change(&self, change: Change, within: Duration) -> Changed {
        let deadline = Instant::now() + within.saturating_sub(ANSWER_MARGIN).max(PAUSE);
        match change {
            Change::ReplaceLeader { name } => self.replace_leader(name, deadline).await,
            change => {
                let stepping = self.change_step_by_step(&change, deadline);
                let timeout = || Changed::Failed(UnknownOutcome::Timeout(within).into());
                tokio::time::timeout_at(deadline + PAUSE, stepping).await.unwrap_or_else(|_| timeout())
            }
        }
    }

    async fn change_step_by_step(&self, change: &Change, deadline: Instant) -> Changed {
        let patience = deadline.min(Instant::now() + GRACE);
        let mut stepped = false;
        loop {
            let status = self.status();
            if status.role != Role::Leader {
                return Changed::NotLeader { leader: known_leader(&status) };
            }
            let hindrance = match change::next(&status, change) {
                Step::Done => return Changed::Done,
                Step::Refuse(refusal) if stepped && refusal.says_that_it_was_made() => return Changed::Done,
                Step::Refuse(refusal) => Some(refusal),
                Step::CatchUp => None,
                step => match self.take(step, change, &status).await {
                    Ok(()) => {
                        stepped = true;
                        continue;
                    }
                    Err(error) => Some(error),
                },
            };
            match hindrance {
                Some(error) if !may_pass(&error) || Instant::now() >= patience => return Changed::Failed(error),
                _ if Instant::now() >= deadline => return Changed::NotYet,
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn take(&self, step: Step, change: &Change, status: &Status) -> Result<(), MembershipError> {
        let expected = status.members.position;
        let latest = status.members.decided_at();
        let taken = match (step, change) {
            (Step::AddLearner, Change::Add { replica, member }) => {
                let member = Member { decided_at: latest, ..member.clone() };
                self.add_learner(*replica, member, expected).await
            }
            (Step::Describe, Change::Describe { replica, member }) => {
                let member = Member { decided_at: latest, ..member.clone() };
                let describe = ChangeMembers::SetNodes(BTreeMap::from([(replica.get(), member)]));
                self.change_members(describe, expected, latest).await
            }
            (Step::RemoveLearner(id), _) => self.remove_learner(id, expected, latest).await,
            (Step::ReplaceVoters(voters), _) => self.change_voters(voters, expected, latest).await,
            _ => Ok(()),
        };
        taken.map_err(|error| match error {
            // Either the leadership has gone, which the next look tells, or it is about to go.
            MembersError::NotLeader { .. } | MembersError::Changed { .. } | MembersError::Outdated { .. } => {
                MembershipError::ChangeInProgress
            }
            MembersError::NotAllowed(reason) => NotHappened::Malformed(reason).into(),
            MembersError::Unknown(reason) => UnknownOutcome::Interrupted(reason).into(),
        })
    }

    /// Hands over to the replica on the node of this name, once it has the entries; without a name, only ends
    /// earlier requests.
    async fn replace_leader(&self, name: Option<String>, deadline: Instant) -> Changed {
        let status = self.status();
        if status.role != Role::Leader {
            return Changed::NotLeader { leader: known_leader(&status) };
        }
        let turn = self.inner.succession.begin();
        let Some(name) = name else { return Changed::Done };
        match self.wait_for_heir(&name, turn, deadline).await {
            Ok(Some(heir)) => self.hand_over(heir, turn, deadline).await,
            Ok(None) => Changed::Done,
            Err(ended) => ended,
        }
    }

    /// Waits until the heir has nearly all entries; `None` if it leads.
    async fn wait_for_heir(&self, name: &str, turn: u64, deadline: Instant) -> Result<Option<ReplicaId>, Changed> {
        let near_enough = Instant::now() + HEIR_PATIENCE;
        loop {
            if !self.inner.succession.is_latest(turn) {
                return Err(Changed::Failed(MembershipError::Superseded));
            }
            let status = self.status();
            if status.role != Role::Leader {
                return Err(Changed::NotLeader { leader: known_leader(&status) });
            }
            let heir = change::heir(&status, name).map_err(Changed::Failed)?;
            let lag = change::lag(&status, heir);
            if heir == status.replica {
                return Ok(None);
            }
            let is_near = lag <= HEIR_LAG || (Instant::now() >= near_enough && change::is_close(&status, heir));
            if is_near {
                return Ok(Some(heir));
            }
            if Instant::now() >= deadline {
                return Err(Changed::Failed(MembershipError::Behind { name: name.to_owned(), entries: lag }));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn hand_over(&self, heir: ReplicaId, turn: u64, deadline: Instant) -> Changed {
        if let Err(error) = self.transfer_leader(heir).await {
            return match error {
                MembersError::NotLeader { .. } => Changed::NotLeader { leader: known_leader(&self.status()) },
                error => Changed::Failed(UnknownOutcome::Interrupted(error.to_string()).into()),
            };
        }
        let started = Instant::now();
        loop {
            let status = self.status();
            match known_leader(&status) {
                Some((leader, _)) if leader == heir => return Changed::Done,
                Some((leader, member)) if leader != status.replica => {
                    return Changed::Failed(MembershipError::LedByAnother { name: member.name });
                }
                _ if !self.inner.succession.is_latest(turn) => return Changed::Failed(MembershipError::Superseded),
                _ if Instant::now() >= deadline => {
                    return Changed::Failed(UnknownOutcome::Timeout(started.elapsed()).into());
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Tells those who ask by themselves that their incarnation has ended; a hello may be for any. A replica that holds
    /// nothing follows one of a later incarnation: it waits to be added to that.
    pub(super) async fn judge_incarnation(&self, request: &mut Request) -> Option<Answer> {
        let spec = self.spec();
        let envelope = &mut request.envelope;
        let asks =
            matches!(request.body, RequestBody::Hello { .. } | RequestBody::Seat { .. } | RequestBody::Returned { .. });
        if !asks || !self.inner.is_alone || envelope.group != spec.group || envelope.cluster != spec.cluster {
            return None;
        }
        if envelope.incarnation == ANY_INCARNATION {
            envelope.incarnation = self.sender().incarnation();
        }
        if envelope.incarnation > self.sender().incarnation() {
            self.follow_incarnation(envelope.incarnation).await;
        }
        let incarnation = self.sender().incarnation();
        (envelope.incarnation < incarnation).then_some(Answer::Ended { incarnation })
    }

    /// Becomes one of a later incarnation, as long as this replica holds nothing of the earlier one.
    pub(crate) async fn follow_incarnation(&self, incarnation: u64) {
        match self.inner.store.raise_incarnation(self.spec().replica, incarnation).await {
            Ok(true) => self.sender().rise(incarnation),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the group's incarnation could not be written down"),
        }
    }

    /// Whether a replica is a member, as the leader knows it from a majority.
    pub(super) async fn seat(&self, replica: u64) -> Answer {
        let proven = self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
        let status = self.status();
        if proven.is_err() || status.role != Role::Leader {
            return not_leader(known_leader(&status).filter(|(leader, _)| *leader != status.replica));
        }
        if !status.members.committed || status.members.is_joint() {
            return Answer::NotYet;
        }
        let is_member = ReplicaId::new(replica).is_some_and(|id| status.members.replicas.contains_key(&id));
        Answer::Seat { member: is_member }
    }

    /// Whether the lone group has ever let this replica in for sure, in this process or before.
    pub(crate) async fn was_admitted(&self) -> bool {
        if self.inner.admitted.load(Ordering::Acquire) {
            return true;
        }
        let status = self.status();
        let (replica, members) = (status.replica, &status.members);
        // Nobody is given a vote before its admission is committed.
        let is_admitted = members.is_voter(replica) || (members.committed && members.replicas.contains_key(&replica));
        if !is_admitted && !self.inner.shared.was_member() {
            return false;
        }
        match self.inner.store.note_admitted(replica).await {
            Ok(()) => self.inner.admitted.store(true, Ordering::Release),
            Err(error) => tracing::error!(%error, "that the group has let this member in could not be written down"),
        }
        true
    }

    /// For how long no leader was heard; since the start, if none was.
    pub(crate) fn leader_silent_for(&self) -> Duration {
        let heard = Duration::from_micros(self.inner.heard_at.load(Ordering::Acquire));
        self.inner.store.clock().monotonic().saturating_sub(heard)
    }

    /// The longest silence after which this replica asks for votes.
    pub(crate) fn longest_election(&self) -> Duration {
        self.inner.core_config.election().1
    }

    /// Notes that a leader was heard.
    pub(super) fn hear_leader(&self) {
        let now = self.inner.store.clock().monotonic().as_micros();
        self.inner.heard_at.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Deletes what a removed replica has stored. Its node can then join as new.
    pub(crate) async fn delete_data(&self) -> Result<(), DeleteError> {
        let spec = self.spec();
        if !self.inner.removed.load(Ordering::Acquire) {
            return Err(DeleteError::NotRemoved { group: spec.group.clone() });
        }
        self.shutdown().await;
        Ok(self.inner.store.remove_replica(spec.replica).await?)
    }

    /// Stops for good: the group removed this replica. What it has stored stays.
    pub(crate) async fn retire(&self) -> Result<(), StoreError> {
        self.inner.store.note_removed(self.inner.spec.replica).await?;
        self.inner.removed.store(true, Ordering::Release);
        self.shutdown().await;
        Ok(())
    }
}

fn known_leader(status: &Status) -> Option<(ReplicaId, Member)> {
    status.leader_member().map(|(id, member)| (id, member.clone()))
}

/// Whether it is worth a moment's wait.
fn may_pass(error: &MembershipError) -> bool {
    matches!(error, MembershipError::ChangeInProgress | MembershipError::WouldBreakQuorum { .. })
}
