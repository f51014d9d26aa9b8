//! Unsafe recovery of a group that lost its majority for good: the plan. A person makes it from what the surviving
//! replicas report, looks at what it may lose, and applies it; nothing here happens by itself.
//!
//! ```text
//! stopped survivors --Store::recovery_reports--> reports --plan--> plan --Store::recover, on each node--> start again
//!
//! the newest log among the survivors decides; on its replica:   .. | last entry | membership: the survivors, term + 2^20
//! on every survivor:                                            vote in that term, incarnation + 1
//! ```
//!
//! The newest log, by the term and index of its last entry, has everything that any survivor knows to be committed
//! (Raft's paper, section 5.4). What only lost replicas had is lost; what was not known to be committed will be.
//! Replicas of the old incarnation that come back get no answers from those of the new one: they are set aside.
//! **One** plan may be applied, from the reports of **all** survivors: two plans would make two groups.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::status::{LogPosition, Member, Members, ReplicaId};

/// How far above all terms that were seen a recovered group goes on: far beyond what lost replicas may have reached.
pub const RECOVERY_TERM_STEP: u64 = 1 << 20;

/// What one surviving replica has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The group.
    pub group: String,
    /// The replica's incarnation of it.
    pub incarnation: u64,
    /// The replica.
    pub replica: ReplicaId,
    /// The name of its node.
    pub node: String,
    /// The term of its vote.
    pub term: u64,
    /// The last entry of its log.
    pub last: Option<LogPosition>,
    /// The last entry that it knows to be committed.
    pub committed: Option<LogPosition>,
    /// The members as of its log.
    pub members: Members,
}

/// What is to be done on the survivors' nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// The group.
    pub group: String,
    /// The incarnation that the survivors get.
    pub incarnation: u64,
    /// The term in which the group goes on.
    pub term: u64,
    /// The replica whose log decides.
    pub chosen: ReplicaId,
    /// The last entry of its log: what was written behind it is lost.
    pub last: Option<LogPosition>,
    /// The members of the recovered group, all of which vote.
    pub members: BTreeMap<ReplicaId, Member>,
    /// Members that sent no report; should they come back, they are set aside.
    pub lost: BTreeMap<ReplicaId, Member>,
    /// Replicas that sent a report and are no members, or of an older incarnation.
    pub strangers: BTreeSet<ReplicaId>,
    /// Entries that were not known to be committed, and will be: their writers were told that the outcome is unknown,
    /// or nothing yet.
    pub uncertain_entries: u64,
    /// Whether commands that were acknowledged may be lost: some majority has no survivor.
    pub may_lose_acknowledged: bool,
    /// The survivors as they were when they reported: recovery is refused on one that has changed since.
    pub found: BTreeMap<ReplicaId, Found>,
}

/// What a plan was made from, of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its incarnation.
    pub incarnation: u64,
    /// The term of its vote.
    pub term: u64,
    /// The last entry of its log.
    pub last: Option<LogPosition>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nobody reported.
    #[error("no report was given; give the reports of all surviving replicas of one group")]
    NoReports,
    /// One plan is for one group.
    #[error("reports of {one} and of {other} were given; make a plan for each group")]
    TwoGroups {
        /// A group.
        one: String,
        /// Another.
        other: String,
    },
    /// A replica reported twice; it may have run in between.
    #[error("replica {replica} on {node} reported twice; stop it, and give its last report")]
    ReportedTwice {
        /// The replica.
        replica: ReplicaId,
        /// Its node.
        node: String,
    },
    /// No survivor's log says that it is a member.
    #[error("none of the reports is of a member of group {group}; nothing of it survives")]
    NoMember {
        /// The group.
        group: String,
    },
    /// The group can go on by itself.
    #[error("{survivors} of {voters} voting members of group {group} survive, which is a majority; start them")]
    MajoritySurvives {
        /// The group.
        group: String,
        /// How many of the voters reported.
        survivors: usize,
        /// How many there are.
        voters: usize,
    },
}

/// Plans the recovery of one group from the reports of all its surviving replicas, which are stopped.
pub fn plan(reports: &[RecoveryReport]) -> Result<RecoveryPlan, PlanError> {
    let first = reports.first().ok_or(PlanError::NoReports)?;
    check_reports(first, reports)?;
    let group = first.group.clone();
    let incarnation = reports.iter().map(|report| report.incarnation).max().unwrap_or(0);
    let is_current = |report: &&RecoveryReport| {
        report.incarnation == incarnation && report.members.replicas.contains_key(&report.replica)
    };
    // Of equal logs, whichever: the ids make it the same for everybody.
    let newest = reports.iter().filter(is_current).max_by_key(|report| (report.last, report.replica));
    let newest = newest.ok_or_else(|| PlanError::NoMember { group: group.clone() })?;
    let is_survivor = |id: &ReplicaId| reports.iter().filter(is_current).any(|report| report.replica == *id);
    let (mut members, lost): (BTreeMap<_, _>, BTreeMap<_, _>) =
        newest.members.replicas.clone().into_iter().partition(|(id, _)| is_survivor(id));
    // Whoever carries it may be lost, and no step that was decided before it may be taken.
    let decided_at = newest.members.decided_at();
    members.values_mut().for_each(|member| member.decided_at = decided_at);
    let surviving = |voters: &BTreeSet<ReplicaId>| voters.iter().filter(|id| members.contains_key(id)).count();
    if newest.members.voters.iter().all(|voters| surviving(voters) > voters.len() / 2) {
        let voters = newest.members.voter_ids();
        return Err(PlanError::MajoritySurvives { group, survivors: surviving(&voters), voters: voters.len() });
    }
    let meets_every_majority = |voters: &BTreeSet<ReplicaId>| surviving(voters) + voters.len() / 2 + 1 > voters.len();
    let may_lose_acknowledged = !newest.members.committed || !newest.members.voters.iter().any(meets_every_majority);
    let highest_term = reports.iter().map(|report| report.term.max(report.last.map_or(0, |last| last.term))).max();
    let found = reports.iter().filter(|report| members.contains_key(&report.replica)).map(|report| {
        (report.replica, Found { incarnation: report.incarnation, term: report.term, last: report.last })
    });
    let known = reports.iter().filter(is_current).filter_map(|report| report.committed).max();
    Ok(RecoveryPlan {
        group,
        incarnation: incarnation + 1,
        term: highest_term.unwrap_or(0).saturating_add(RECOVERY_TERM_STEP),
        chosen: newest.replica,
        last: newest.last,
        uncertain_entries: entries(newest.last).saturating_sub(entries(known)),
        may_lose_acknowledged,
        found: found.collect(),
        strangers: reports.iter().map(|report| report.replica).filter(|id| !members.contains_key(id)).collect(),
        members,
        lost,
    })
}

fn check_reports(first: &RecoveryReport, reports: &[RecoveryReport]) -> Result<(), PlanError> {
    let mut seen = BTreeSet::new();
    for report in reports {
        if report.group != first.group {
            return Err(PlanError::TwoGroups { one: first.group.clone(), other: report.group.clone() });
        }
        if !seen.insert(report.replica) {
            return Err(PlanError::ReportedTwice { replica: report.replica, node: report.node.clone() });
        }
    }
    Ok(())
}

fn entries(last: Option<LogPosition>) -> u64 {
    last.map_or(0, |last| last.index + 1)
}

impl RecoveryPlan {
    /// The index of the entry that says who the members are.
    pub(crate) fn entry_index(&self) -> u64 {
        entries(self.last)
    }
}

impl fmt::Display for RecoveryPlan {
    /// For the person who decides.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |members: &BTreeMap<ReplicaId, Member>| {
            members.values().map(|member| member.name.clone()).collect::<Vec<_>>().join(", ")
        };
        let chosen = self.members.get(&self.chosen).map_or("?", |member| &member.name);
        writeln!(f, "group {}: goes on as incarnation {} with {}", self.group, self.incarnation, names(&self.members))?;
        writeln!(f, "  the log of {chosen} decides: {} entries", entries(self.last))?;
        writeln!(f, "  given up: {}", names(&self.lost))?;
        writeln!(f, "  {} entries of unknown outcome are made valid", self.uncertain_entries)?;
        match self.may_lose_acknowledged {
            true => {
                write!(f, "  acknowledged commands MAY BE LOST: a majority may have had them without the survivors")
            }
            false => write!(f, "  no acknowledged command is lost"),
        }
    }
}

#[cfg(test)]
mod tests;
