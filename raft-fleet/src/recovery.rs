//! Groups that lost their majority: what is left of them, and how they would go on. A person looks at the plan and has it
//! applied; nothing here happens by itself. Pure.
//!
//! ```text
//! reports of all nodes that answer --judge, group by group--> led, or can go on by itself
//!                                                          \-> GroupRecovery: whose log decides, what may be lost, who is fenced
//!                                                           \-> nothing of it is left
//! plan --recover--> reports again: the same? --> cluster group: a new incarnation (cluster/recoveries.rs)
//!                                                 --> every survivor's node makes it true (recovering.rs)
//! ```
//!
//! Replicas of an ended incarnation get no answers from those of the new one. Their nodes stop and delete them as soon as
//! they hear of it from the cluster group. Until then, a node that is cut off may go on serving what it has: apply a plan
//! when the nodes that it gives up are gone, and not only out of sight.

use std::collections::BTreeSet;
use std::fmt;

use rafted_value::{LogTime, PlanError, messages, plan_recovery};

use crate::bootstrap::ClusterKey;
use crate::cluster::{Cluster, Group, GroupPhase, NodePhase};
use crate::error::PlanUnreadable;
use crate::report::{Recovery, Report, Seat};
use crate::written;

/// Groups in one plan; where more have lost their majority, another plan follows.
pub const MAX_PLANNED_GROUPS: usize = 500;

messages! {
    /// How groups that lost their majority would go on: see [`Fleet::recovery_plan`](crate::Fleet::recovery_plan). It is
    /// printed for people, and written with [`RecoveryPlan::to_text`].
    pub struct RecoveryPlan {
        cluster: ClusterKey,
        /// One for each group of which something is left.
        pub groups: Vec<GroupRecovery>,
        /// Groups of which nothing is left on the nodes that answer.
        pub hopeless: Vec<HopelessGroup>,
        /// Groups that have no leader either, and are not in this plan because it is full.
        pub left_out: u64,
    }

    /// How one group would go on.
    pub struct GroupRecovery {
        /// The group.
        pub group: String,
        /// The node with the newest log among the survivors: what it has is kept, and nothing else.
        pub chosen: String,
        /// The nodes whose replicas go on.
        pub survivors: Vec<String>,
        /// The replicas that are given up. Should they come back, they get no answers, and are deleted.
        pub fenced: Vec<FencedReplica>,
        /// The entries of the chosen log.
        pub entries: u64,
        /// Entries that were not known to be committed, and will be: who wrote them was told that the outcome is unknown,
        /// or nothing yet.
        pub uncertain_entries: u64,
        /// Whether commands that were acknowledged may be lost: some majority has no survivor.
        pub may_lose_acknowledged: bool,
        recovery: Recovery,
    }

    /// A replica that a plan gives up.
    #[derive(Eq)]
    pub struct FencedReplica {
        /// Its node's name.
        pub node: String,
        /// The number of its node's memory.
        pub node_id: u64,
        /// Why it did not report.
        pub absence: Absence,
    }

    /// A group that no plan can bring back.
    #[derive(Eq)]
    pub struct HopelessGroup {
        /// The group.
        pub group: String,
        /// Why.
        pub reason: String,
    }

    /// Why a member of a group does not answer.
    #[derive(Copy, Eq, PartialOrd, Ord)]
    pub enum Absence {
        /// Its node does not answer now; it may return.
        Unreachable,
        /// Its node was unreachable for so long that its replicas are replaced.
        Dead,
        /// Its node answers, and has no such replica.
        Missing,
        /// Its node was removed from the cluster, or has lost its memory.
        Gone,
    }
}

/// A group without a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderlessGroup {
    /// Its name.
    pub name: String,
    /// Since when this node has heard of none.
    pub since: LogTime,
    /// Its members, as the newest of its replicas that answers knows them, with the reason why one does not answer; empty
    /// where none answers.
    pub members: Vec<(String, Option<Absence>)>,
    /// Whether it cannot have a leader again by itself: no majority of its members is left, also if all nodes that are
    /// unreachable came back.
    pub is_majority_lost: bool,
}

/// What became of one group of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryOutcome {
    /// It has a leader again.
    Recovered,
    /// It was recovered by this plan before.
    AlreadyRecovered,
    /// It is decided, and goes on by itself as the survivors' nodes answer.
    Begun,
    /// Nothing was changed: the group is not any more as it was when the plan was made.
    Outdated {
        /// In which way.
        reason: String,
    },
    /// Nothing was changed, and the same plan may be applied again.
    NotHappened {
        /// Why.
        reason: String,
    },
    /// It may have been decided; the same plan may be applied again.
    Unknown {
        /// What was seen.
        reason: String,
    },
}

/// What was found out about a group.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Finding {
    /// One of its replicas leads.
    Led,
    /// As many of its members answer as make a majority.
    GoesOn,
    /// A recovery is decided, and the survivors are there.
    BeingRecovered,
    /// It lost its majority.
    Recoverable(Box<GroupRecovery>),
    /// Nothing is left of it.
    Hopeless(String),
}

/// What all nodes said that answered.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) reports: Vec<Report>,
    /// The memories that answered.
    pub(crate) answered: BTreeSet<u64>,
}

impl Survey {
    /// The reports of the group's own replicas, and of those that are to become so.
    fn of<'a>(&'a self, name: &'a str, group: &'a Group) -> impl Iterator<Item = &'a Report> {
        let is_spared = |report: &Report| {
            let mut survivors = group.recovery.iter().flat_map(|recovery| &recovery.survivors);
            report.incarnation < group.incarnation && survivors.any(|survivor| survivor.seat.replica == report.replica)
        };
        let reports = self.reports.iter().filter(move |report| report.group == name);
        reports.filter(move |report| report.incarnation == group.incarnation || is_spared(report))
    }

    /// Why a member does not answer; `None` if it does.
    fn absence(&self, cluster: &Cluster, own: &[&Report], seat: &Seat) -> Option<Absence> {
        if own.iter().any(|report| report.replica == seat.replica) {
            return None;
        }
        let record = cluster.node(&seat.node).filter(|record| record.node_id == seat.node_id);
        Some(match record {
            None => Absence::Gone,
            Some(_) if self.answered.contains(&seat.node_id) => Absence::Missing,
            Some(record) if record.phase == NodePhase::Dead => Absence::Dead,
            Some(_) => Absence::Unreachable,
        })
    }
}

/// Judges one group.
pub(crate) fn judge(cluster: &Cluster, survey: &Survey, name: &str, group: &Group) -> Finding {
    let own: Vec<&Report> = survey.of(name, group).collect();
    if own.iter().any(|report| report.leads && report.incarnation == group.incarnation) {
        return Finding::Led;
    }
    if let (GroupPhase::Recovering, Some(recovery)) = (&group.phase, &group.recovery)
        && goes_on_as_decided(recovery, group.incarnation, &own)
    {
        return Finding::BeingRecovered;
    }
    let reports: Vec<_> = own.iter().filter_map(|report| report.to_report()).collect();
    let plan = match plan_recovery(&reports) {
        Ok(plan) => plan,
        Err(PlanError::MajoritySurvives { .. }) => return Finding::GoesOn,
        Err(PlanError::NoReports) => return Finding::Hopeless("no node that answers has a replica of it".into()),
        Err(error) => return Finding::Hopeless(error.to_string()),
    };
    let name_of = |seat: &Seat| seat.node.clone();
    let recovery = Recovery::new(&plan, group.incarnation);
    let lost = plan.lost.iter().map(|(&id, member)| Seat::new(id, member));
    let fenced = lost.map(|seat| FencedReplica {
        absence: survey.absence(cluster, &own, &seat).unwrap_or(Absence::Missing),
        node: seat.node,
        node_id: seat.node_id,
    });
    Finding::Recoverable(Box::new(GroupRecovery {
        group: name.to_owned(),
        chosen: plan.members.get(&plan.chosen).map(|member| member.name.clone()).unwrap_or_default(),
        survivors: recovery.survivors.iter().map(|survivor| name_of(&survivor.seat)).collect(),
        fenced: fenced.collect(),
        entries: plan.last.map_or(0, |last| last.index + 1),
        uncertain_entries: plan.uncertain_entries,
        may_lose_acknowledged: plan.may_lose_acknowledged,
        recovery,
    }))
}

/// Whether all survivors are there, as they were or as they should be.
fn goes_on_as_decided(recovery: &Recovery, incarnation: u64, own: &[&Report]) -> bool {
    recovery.survivors.iter().all(|survivor| {
        let report = own.iter().find(|report| report.replica == survivor.seat.replica);
        report.is_some_and(|report| report.incarnation == incarnation || report.last == survivor.last)
    })
}

/// The members, with the reasons why they do not answer, and whether no majority is left of them for good.
pub(crate) fn members_of(
    cluster: &Cluster,
    survey: &Survey,
    name: &str,
    group: &Group,
) -> (Vec<(String, Option<Absence>)>, bool) {
    let own: Vec<&Report> = survey.of(name, group).collect();
    let Some(newest) = own.iter().max_by_key(|report| (report.incarnation, report.last)) else {
        return (Vec::new(), false);
    };
    let absence = |seat: &Seat| survey.absence(cluster, &own, seat);
    let members = newest.seats.iter().map(|seat| (seat.node.clone(), absence(seat))).collect();
    let may_vote = |id: &u64| {
        let seat = newest.seats.iter().find(|seat| seat.replica == *id);
        seat.is_some_and(|seat| matches!(absence(seat), None | Some(Absence::Unreachable)))
    };
    let is_lost =
        newest.voters.iter().any(|voters| voters.iter().filter(|id| may_vote(id)).count() * 2 <= voters.len());
    (members, is_lost)
}

impl RecoveryPlan {
    pub(crate) fn new(cluster: ClusterKey) -> Self {
        Self { cluster, groups: Vec::new(), hopeless: Vec::new(), left_out: 0 }
    }

    pub(crate) fn add(&mut self, group: &str, finding: Finding) {
        match finding {
            Finding::Recoverable(recovery) => self.groups.push(*recovery),
            Finding::Hopeless(reason) => self.hopeless.push(HopelessGroup { group: group.to_owned(), reason }),
            Finding::Led | Finding::GoesOn | Finding::BeingRecovered => {}
        }
    }

    pub(crate) fn cluster(&self) -> ClusterKey {
        self.cluster
    }

    /// Whether no group needs a recovery.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.hopeless.is_empty()
    }

    /// The plan as hexadecimal digits, to keep it until it is applied.
    pub fn to_text(&self) -> String {
        written::to_text(rafted_value::encode(self))
    }

    /// Reads what [`RecoveryPlan::to_text`] wrote.
    pub fn from_text(text: &str) -> Result<Self, PlanUnreadable> {
        Ok(rafted_value::decode(&written::from_text(text)?)?)
    }
}

impl GroupRecovery {
    pub(crate) fn recovery(&self) -> &Recovery {
        &self.recovery
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "unreachable, may return",
            Self::Dead => "dead",
            Self::Missing => "answers, without the replica",
            Self::Gone => "removed, or without its memory",
        })
    }
}

impl fmt::Display for GroupRecovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "group {}: goes on with {}", self.group, self.survivors.join(", "))?;
        writeln!(f, "  the log of {} decides: {} entries", self.chosen, self.entries)?;
        let fenced = self.fenced.iter().map(|fenced| format!("{} ({})", fenced.node, fenced.absence));
        writeln!(f, "  given up: {}", fenced.collect::<Vec<_>>().join(", "))?;
        writeln!(f, "  {} entries of unknown outcome are made valid", self.uncertain_entries)?;
        match self.may_lose_acknowledged {
            true => {
                writeln!(f, "  acknowledged commands MAY BE LOST: a majority may have had them without the survivors")
            }
            false => writeln!(f, "  no acknowledged command is lost"),
        }
    }
}

impl fmt::Display for RecoveryPlan {
    /// For the person who decides.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            writeln!(f, "no group has lost its majority")?;
        }
        self.groups.iter().try_for_each(|group| group.fmt(f))?;
        for hopeless in &self.hopeless {
            writeln!(f, "group {}: cannot be recovered: {}", hopeless.group, hopeless.reason)?;
        }
        if self.left_out > 0 {
            writeln!(f, "{} more groups have no leader: apply this plan, then make another", self.left_out)?;
        }
        Ok(())
    }
}

impl fmt::Display for RecoveryOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recovered => f.write_str("recovered"),
            Self::AlreadyRecovered => f.write_str("was recovered by this plan before"),
            Self::Begun => f.write_str("decided; it goes on as the survivors' nodes answer"),
            Self::Outdated { reason } => write!(f, "outdated, nothing was changed: {reason}; make a new plan"),
            Self::NotHappened { reason } => write!(f, "nothing was changed: {reason}; apply the plan again"),
            Self::Unknown { reason } => write!(f, "may or may not be decided: {reason}; apply the plan again"),
        }
    }
}

#[cfg(test)]
mod tests;
