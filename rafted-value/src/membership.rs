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
use crate::status::{LogPosition, Member, ReplicaId, Status};

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
    let taken = status.members.replicas.values().map(|member| member.decided_at).max().unwrap_or(0);
    if decided_at < taken {
        return Err(MembersError::Outdated { given: decided_at, taken });
    }
    let change = match mark(status, &change, decided_at) {
        Some(mark) => ChangeMembers::Batch(vec![mark, change]),
        None => change,
    };
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

/// Writes the step's index into a voter that stays.
fn mark(status: &Status, change: &ChangeMembers<u64, Member>, decided_at: u64) -> Option<ChangeMembers<u64, Member>> {
    let stays = |id: &u64| match change {
        ChangeMembers::ReplaceAllVoters(voters) => voters.contains(id),
        ChangeMembers::RemoveNodes(removed) => !removed.contains(id),
        _ => true,
    };
    let members = status.members.replicas.iter().map(|(id, member)| (id.get(), member));
    let (id, member) = members.into_iter().find(|(id, _)| stays(id))?;
    (member.decided_at < decided_at).then(|| {
        let member = Member { decided_at, ..member.clone() };
        ChangeMembers::SetNodes(BTreeMap::from([(id, member)]))
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
