//! Changes of a group's members: compare-and-set on the entry that the caller looked at, and never a step that
//! was decided before one that was taken already.

use std::collections::BTreeSet;

use openraft::ChangeMembers;
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, InitializeError as Refused, PreconditionFailed, RaftError,
};
use openraft::raft::Precondition;

use crate::error::{InitializeError, MembersError};
use crate::machine::Raft;
use crate::openraft_types::{LogId, StoredMembership, Types, log_id};
use crate::status::{LogPosition, Member, Members, ReplicaId, Status};

pub(crate) fn position(id: LogId) -> LogPosition {
    LogPosition { term: **id.committed_leader_id(), index: id.index }
}

pub(crate) fn members_of(effective: &StoredMembership, committed: &StoredMembership) -> Members {
    let membership = effective.membership();
    let ids = |voters: &BTreeSet<u64>| voters.iter().copied().filter_map(ReplicaId::new).collect();
    let replica = |(&id, member): (&u64, &Member)| Some((ReplicaId::new(id)?, member.clone()));
    Members {
        replicas: membership.nodes().filter_map(replica).collect(),
        voters: membership.get_joint_config().iter().map(ids).collect(),
        position: effective.log_id().map(position),
        committed: effective.log_id() == committed.log_id(),
    }
}

/// Makes one change on the leader. Voters that are left out leave the group.
pub(crate) async fn change(
    raft: &Raft,
    status: &Status,
    change: ChangeMembers<u64, Member>,
    expected: Option<LogPosition>,
    decided_at: u64,
) -> Result<(), MembersError> {
    let taken = status.members.replicas.values().map(|member| member.decided_at).max().unwrap_or(0);
    if decided_at < taken {
        return Err(MembersError::Outdated { given: decided_at, taken });
    }
    let last_membership_log_id = expected.map(|position| log_id(position.term, position.index));
    let unchanged = Precondition::LastMembershipLogId { last_membership_log_id };
    let changed = raft.change_membership_if(change, false, [unchanged]).await;
    changed.map(drop).map_err(|error| members_error(error, expected))
}

/// Admits a replica in place of others on a node of its name.
pub(crate) async fn let_in(raft: &Raft, status: &Status, id: ReplicaId, member: Member) -> Result<(), MembersError> {
    let members = &status.members;
    if !members.replicas.contains_key(&id) {
        raft.add_learner(id.get(), member.clone(), true).await.map_err(|error| members_error(error, None))?;
    }
    let same_name = |other: &ReplicaId| members.replicas.get(other).is_some_and(|other| other.name == member.name);
    let mut voters: BTreeSet<u64> =
        members.voter_ids().into_iter().filter(|other| !same_name(other)).map(ReplicaId::get).collect();
    voters.insert(id.get());
    let changed = raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), false).await;
    changed.map(drop).map_err(|error| members_error(error, None))
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
