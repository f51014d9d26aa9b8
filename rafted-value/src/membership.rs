//! Changes of a group's members: compare-and-set on the entry that the caller looked at, and never a step that
//! was decided before one that was taken already.

use std::collections::{BTreeMap, BTreeSet};

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, InitializeError as Refused, PreconditionFailed, RaftError,
};
use openraft::raft::Precondition;

use crate::change::is_close;
use crate::error::{InitializeError, MembersError};
use crate::machine::Raft;
use crate::openraft_types::{Types, log_id, position};
use crate::status::{LogPosition, Member, Members, ReplicaId, Status};

/// Makes one change on the leader. Voters that are left out leave the group. The step's index is written into a
/// member that stays, so that a step which was decided before it is refused from then on.
pub(crate) async fn change(
    raft: &Raft,
    status: &Status,
    change: ChangeMembers<u64, Member>,
    expected: Option<LogPosition>,
    decided_at: u64,
) -> Result<(), MembersError> {
    // What was looked at here is what the change is made to, by the precondition below.
    if status.members.position != expected {
        return Err(MembersError::Changed { expected, found: status.members.position });
    }
    // Removed, and soon to notice: openraft's core does not expect it to change members any more.
    if !status.members.is_voter(status.replica) {
        return Err(MembersError::NotLeader { leader: None });
    }
    let change = carrying(&status.members, change, decided_at)?;
    let last_membership_log_id = expected.map(|position| log_id(position.term, position.index));
    let unchanged = Precondition::LastMembershipLogId { last_membership_log_id };
    let changed = raft.change_membership_if(change, false, [unchanged]).await;
    changed.map(drop).map_err(|error| {
        let metrics = raft.metrics();
        let now = *WatchReceiver::borrow_watched(&metrics).membership_config.log_id();
        match members_error(error, expected) {
            // The first half of a joint change was made: it will be finished, by this leader or another.
            error @ MembersError::NotLeader { .. } if now.map(position) != expected => {
                MembersError::Unknown(format!("the change was begun, then: {error}"))
            }
            error => error,
        }
    })
}

/// The change with the index at which it was decided, in a member that it leaves in the group; refused if a step that was
/// decided later was taken already. The group so remembers the highest index whoever leaves it.
fn carrying(
    members: &Members,
    change: ChangeMembers<u64, Member>,
    decided_at: u64,
) -> Result<ChangeMembers<u64, Member>, MembersError> {
    let taken = members.decided_at();
    if decided_at < taken {
        return Err(MembersError::Outdated { given: decided_at, taken });
    }
    let stays = |id: &u64| match &change {
        ChangeMembers::ReplaceAllVoters(voters) => voters.contains(id),
        ChangeMembers::RemoveNodes(removed) => !removed.contains(id),
        _ => true,
    };
    let mut staying = members.replicas.iter().map(|(id, member)| (id.get(), member)).filter(|(id, _)| stays(id));
    let mark = staying.next().filter(|(_, member)| member.decided_at < decided_at).map(|(id, member)| {
        let member = Member { decided_at, ..member.clone() };
        ChangeMembers::SetNodes(BTreeMap::from([(id, member)]))
    });
    Ok(match mark {
        Some(mark) => ChangeMembers::Batch(vec![mark, change]),
        None => change,
    })
}

/// Refuses a set of voters of which no majority has the entries: such a change would never be committed.
pub(crate) fn check_voters(status: &Status, voters: &BTreeSet<ReplicaId>) -> Result<(), MembersError> {
    let strangers: Vec<_> = voters.iter().filter(|id| !status.members.replicas.contains_key(id)).collect();
    if voters.is_empty() || !strangers.is_empty() {
        return Err(MembersError::NotAllowed(format!(
            "{voters:?} was given; at least one, and only members, may vote"
        )));
    }
    let close = voters.iter().filter(|&&id| is_close(status, id)).count();
    if close * 2 <= voters.len() {
        let message = format!("{close} of {} voters have the entries, a majority must", voters.len());
        return Err(MembersError::NotAllowed(message));
    }
    Ok(())
}

fn members_error(error: RaftError<Types, ClientWriteError<Types>>, expected: Option<LogPosition>) -> MembersError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            MembersError::NotLeader { leader: to.leader_id.and_then(ReplicaId::new) }
        }
        RaftError::APIError(ClientWriteError::PreconditionFailed(
            PreconditionFailed::LastMembershipLogIdMismatch { actual, .. },
        )) => MembersError::Changed { expected, found: actual.map(position) },
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(progress))) => {
            MembersError::Changed { expected, found: progress.membership_log_id.map(position) }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            MembersError::NotAllowed(error.to_string())
        }
        other => MembersError::Unknown(other.to_string()),
    }
}

pub(crate) fn initialize_error(error: RaftError<Types, Refused<Types>>) -> InitializeError {
    match error {
        RaftError::APIError(Refused::NotAllowed(_)) => InitializeError::AlreadyInitialized,
        RaftError::APIError(other) => InitializeError::NotAllowed(other.to_string()),
        RaftError::Fatal(fatal) => InitializeError::Storage(fatal.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = ChangeMembers<u64, Member>;

    fn id(n: u64) -> ReplicaId {
        ReplicaId::new(n).unwrap()
    }

    fn member(n: u64, decided_at: u64) -> Member {
        Member { name: format!("n{n}"), node: n, zone: String::new(), decided_at, addresses: Vec::new() }
    }

    /// Replicas with the indexes in them; all but the last `learners` vote.
    fn members(decided_at: &[u64], learners: usize) -> Members {
        let replicas = (1..).zip(decided_at).map(|(n, &at)| (id(n), member(n, at))).collect();
        let voters = (1..=(decided_at.len() - learners) as u64).map(id).collect();
        Members { replicas, voters: vec![voters], position: None, committed: true }
    }

    /// What a change makes of the replicas; the only place here that knows what openraft does.
    fn apply(replicas: &mut BTreeMap<ReplicaId, Member>, voters: &BTreeSet<ReplicaId>, change: Change) {
        match change {
            ChangeMembers::Batch(changes) => changes.into_iter().for_each(|change| apply(replicas, voters, change)),
            ChangeMembers::AddNodes(nodes) | ChangeMembers::SetNodes(nodes) => {
                replicas.extend(nodes.into_iter().map(|(n, member)| (id(n), member)));
            }
            ChangeMembers::RemoveNodes(removed) => replicas.retain(|id, _| !removed.contains(&id.get())),
            ChangeMembers::ReplaceAllVoters(to) => {
                replicas.retain(|id, _| to.contains(&id.get()) || !voters.contains(id));
            }
            other => panic!("{other:?} is not among the steps"),
        }
    }

    #[test]
    fn the_highest_index_stays_in_the_group_whoever_leaves_it() {
        let add = |at: u64| ChangeMembers::AddNodes(BTreeMap::from([(9, member(9, at))]));
        let voters = |ids: &[u64]| ChangeMembers::ReplaceAllVoters(ids.iter().copied().collect());
        let remove = |n: u64| ChangeMembers::RemoveNodes(BTreeSet::from([n]));
        let table: [(&str, Members, Change); 10] = [
            ("a learner comes", members(&[0, 0, 0], 0), add(20)),
            ("a learner comes to one that stands alone", members(&[5], 0), add(20)),
            ("a learner that carries the index votes", members(&[0, 0, 0, 20], 1), voters(&[1, 2, 3, 4])),
            ("the voter that carries the index leaves", members(&[0, 20, 0], 0), voters(&[1, 3])),
            ("the first voter, which carries the index, leaves", members(&[20, 0, 0], 0), voters(&[2, 3])),
            ("a learner that carries the index takes a voter's place", members(&[20, 3, 0, 20], 1), voters(&[2, 3, 4])),
            ("all but one leave", members(&[20, 0, 20, 20, 0], 0), voters(&[5])),
            ("the learner that carries the index leaves", members(&[0, 0, 0, 20], 1), remove(4)),
            ("one of two learners leaves", members(&[1, 1, 20, 20], 2), remove(3)),
            ("the only other member leaves", members(&[0, 20], 1), remove(2)),
        ];
        for (case, before, change) in table {
            for decided_at in [20, 21, 1_000] {
                let mut after = before.clone();
                let carried = carrying(&before, change.clone(), decided_at).unwrap();
                apply(&mut after.replicas, &before.voter_ids(), carried);
                assert_eq!(after.decided_at(), decided_at, "{case}");
                let older = carrying(&after, add(decided_at - 1), decided_at - 1).unwrap_err();
                assert_eq!(older, MembersError::Outdated { given: decided_at - 1, taken: decided_at }, "{case}");
            }
        }
    }

    #[test]
    fn an_older_step_of_every_kind_is_refused() {
        let members = members(&[0, 7, 0, 0], 1);
        let steps: [Change; 4] = [
            ChangeMembers::AddNodes(BTreeMap::from([(9, member(9, 6))])),
            ChangeMembers::ReplaceAllVoters(BTreeSet::from([1, 2, 3, 4])),
            ChangeMembers::ReplaceAllVoters(BTreeSet::from([1, 2])),
            ChangeMembers::RemoveNodes(BTreeSet::from([4])),
        ];
        for step in steps {
            let refused = carrying(&members, step.clone(), 6).unwrap_err();
            assert_eq!(refused, MembersError::Outdated { given: 6, taken: 7 }, "{step:?}");
            assert!(carrying(&members, step, 7).is_ok());
        }
    }
}
