//! Changes of a lone group's members as a leader makes them, one step at a time: `(status, change) -> next step`.
//!
//! ```text
//! add:     stale replica of the name --> (gone) --> learner --> has the entries --> voter, in place of those of its name
//!          the leader's own name: replace it first
//! remove:  voter --> (gone)      learner --> (gone)      the leader: replace it first
//! ```
//!
//! Nothing is remembered between steps but the membership itself, so that another leader, or the same after a lost
//! answer, goes on where the last one stopped. A step that would leave no majority that answers is refused.

use std::collections::BTreeSet;

use crate::error::MembershipError;
use crate::status::{Member, ReplicaId, Status};

/// Entries that a replica may lack and still be given a part that others wait for: a vote, or the leadership.
pub const MAX_CATCH_UP_LAG: u64 = 1_000;

/// What is asked of a group's leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Let this replica in, in place of others on a node of its name.
    Add { replica: ReplicaId, member: Member },
    /// This member is elsewhere now.
    Describe { replica: ReplicaId, member: Member },
    /// Remove the replica on the node of this name.
    Remove { name: String },
    /// Hand the leadership to the replica on the node of this name; without one, forget an earlier request.
    ReplaceLeader { name: Option<String> },
}

/// What the leader does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The members are as asked.
    Done,
    /// Let the replica in without a vote.
    AddLearner,
    /// Write down where the replica is now.
    Describe,
    /// Drop a replica that has no vote.
    RemoveLearner(ReplicaId),
    /// Make these the voters; the others leave.
    ReplaceVoters(BTreeSet<ReplicaId>),
    /// It lacks entries.
    CatchUp,
    /// Not now, or never.
    Refuse(MembershipError),
}

/// The next step towards `change`, as the leader whose status this is sees the group.
pub(crate) fn next(status: &Status, change: &Change) -> Step {
    if status.members.is_joint() || !status.members.committed {
        return Step::Refuse(MembershipError::ChangeInProgress);
    }
    match change {
        Change::Add { replica, member } => add(status, *replica, member),
        Change::Describe { replica, member } => describe(status, *replica, member),
        Change::Remove { name } => remove(status, name),
        Change::ReplaceLeader { .. } => Step::Done,
    }
}

fn add(status: &Status, id: ReplicaId, member: &Member) -> Step {
    let members = &status.members;
    let same_name = |other: &ReplicaId| members.replicas.get(other).is_some_and(|other| other.name == member.name);
    if members.is_voter(id) {
        return Step::Refuse(MembershipError::AlreadyJoined { name: member.name.clone() });
    }
    // It would take the leader's place, which would remove itself: another leader lets it in.
    if same_name(&status.replica) {
        return Step::Refuse(MembershipError::IsLeader { name: member.name.clone() });
    }
    if !members.replicas.contains_key(&id) {
        // A replica that was let in and lost its disk before it had a vote.
        let stale = members.learner_ids().into_iter().find(same_name);
        return stale.map_or(Step::AddLearner, Step::RemoveLearner);
    }
    if !is_close(status, id) {
        return Step::CatchUp;
    }
    let mut voters: BTreeSet<ReplicaId> = members.voter_ids().into_iter().filter(|other| !same_name(other)).collect();
    voters.insert(id);
    replace_voters(status, voters)
}

fn describe(status: &Status, id: ReplicaId, member: &Member) -> Step {
    match status.members.replicas.get(&id) {
        Some(known) if known.addresses == member.addresses => Step::Done,
        Some(_) => Step::Describe,
        None => Step::Refuse(MembershipError::NotMember { name: member.name.clone(), members: names(status) }),
    }
}

fn remove(status: &Status, name: &str) -> Step {
    let members = &status.members;
    let Some((id, _)) = members.named(name) else {
        return Step::Refuse(MembershipError::NotMember { name: name.to_owned(), members: names(status) });
    };
    if id == status.replica {
        return Step::Refuse(MembershipError::IsLeader { name: name.to_owned() });
    }
    if !members.is_voter(id) {
        return Step::RemoveLearner(id);
    }
    let voters = members.voter_ids().into_iter().filter(|&other| other != id).collect();
    replace_voters(status, voters)
}

fn replace_voters(status: &Status, voters: BTreeSet<ReplicaId>) -> Step {
    let answering = voters.iter().filter(|&&id| is_answering(status, id) && is_close(status, id)).count();
    let needed = voters.len() / 2 + 1;
    if answering < needed {
        return Step::Refuse(MembershipError::WouldBreakQuorum { answering, needed, voters: voters.len() });
    }
    Step::ReplaceVoters(voters)
}

/// Judges a request to replace the leader; the id of the replica that is to lead.
pub(crate) fn heir(status: &Status, name: &str) -> Result<ReplicaId, MembershipError> {
    let Some((id, _)) = status.members.named(name) else {
        return Err(MembershipError::NotMember { name: name.to_owned(), members: names(status) });
    };
    if !status.members.is_voter(id) {
        return Err(MembershipError::NotVoter { name: name.to_owned() });
    }
    match status.unresponsive.get(&id) {
        Some(silent_for) => Err(MembershipError::Unresponsive { name: name.to_owned(), silent_for: *silent_for }),
        None => Ok(id),
    }
}

/// Entries of the leader's log that a replica is not known to have.
pub(crate) fn lag(status: &Status, id: ReplicaId) -> u64 {
    let entries = status.last_log_index.map_or(0, |last| last + 1);
    let matched = status.matched.get(&id).copied().flatten().map_or(0, |matched| matched + 1);
    if id == status.replica { 0 } else { entries.saturating_sub(matched) }
}

/// The names of the members, for messages.
fn names(status: &Status) -> Vec<String> {
    status.members.replicas.values().map(|member| member.name.clone()).collect()
}

/// Whether the leader has heard of a replica lately.
fn is_answering(status: &Status, id: ReplicaId) -> bool {
    !status.unresponsive.contains_key(&id)
}

/// Whether the leader knows that a replica has nearly all entries.
pub(crate) fn is_close(status: &Status, id: ReplicaId) -> bool {
    let is_known = status.matched.get(&id).copied().flatten().is_some();
    id == status.replica || (is_known && lag(status, id) <= MAX_CATCH_UP_LAG)
}

#[cfg(test)]
mod tests;
