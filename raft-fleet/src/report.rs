//! What replicas have, and how a group goes on without those that are lost: the forms in which nodes tell it to each
//! other and the cluster group keeps it, to and from `rafted_value`'s.

use std::collections::{BTreeMap, BTreeSet};

use rafted_value::{Found, LogPosition, Member, Members, RecoveryPlan, RecoveryReport, ReplicaId, messages};

messages! {
    /// A position in a group's log.
    #[derive(Copy, Eq, PartialOrd, Ord)]
    pub(crate) struct LogEnd {
        pub(crate) term: u64,
        pub(crate) index: u64,
    }

    /// A member of a group.
    #[derive(Eq)]
    pub(crate) struct Seat {
        pub(crate) replica: u64,
        pub(crate) node: String,
        pub(crate) node_id: u64,
        pub(crate) zone: String,
        pub(crate) decided_at: u64,
    }

    /// What one replica has of its group, as its node's log says.
    #[derive(Eq)]
    pub(crate) struct Report {
        pub(crate) group: String,
        pub(crate) incarnation: u64,
        pub(crate) replica: u64,
        pub(crate) node: String,
        /// Whether it leads, and a majority answers it.
        pub(crate) leads: bool,
        pub(crate) term: u64,
        pub(crate) last: Option<LogEnd>,
        pub(crate) committed: Option<LogEnd>,
        pub(crate) seats: Vec<Seat>,
        pub(crate) voters: Vec<BTreeSet<u64>>,
        /// The entry that says who the members are.
        pub(crate) members_at: Option<LogEnd>,
        pub(crate) members_are_committed: bool,
    }

    /// How a group goes on that lost its majority.
    #[derive(Eq)]
    pub(crate) struct Recovery {
        /// The incarnation that it ends.
        pub(crate) ended: u64,
        pub(crate) term: u64,
        /// The replica whose log decides.
        pub(crate) chosen: u64,
        /// The end of its log.
        pub(crate) last: Option<LogEnd>,
        pub(crate) survivors: Vec<Survivor>,
    }

    /// A replica that goes on, as it was when it reported.
    #[derive(Eq)]
    pub(crate) struct Survivor {
        pub(crate) seat: Seat,
        pub(crate) last: Option<LogEnd>,
    }
}

impl Report {
    pub(crate) fn new(report: RecoveryReport, leads: bool) -> Self {
        let members = report.members;
        Self {
            group: report.group,
            incarnation: report.incarnation,
            replica: report.replica.get(),
            node: report.node,
            leads,
            term: report.term,
            last: report.last.map(LogEnd::from),
            committed: report.committed.map(LogEnd::from),
            seats: members.replicas.iter().map(|(&id, member)| Seat::new(id, member)).collect(),
            voters: members.voters.iter().map(|voters| voters.iter().map(|id| id.get()).collect()).collect(),
            members_at: members.position.map(LogEnd::from),
            members_are_committed: members.committed,
        }
    }

    /// `None` for what no node says.
    pub(crate) fn to_report(&self) -> Option<RecoveryReport> {
        let ids = |voters: &BTreeSet<u64>| voters.iter().copied().map(ReplicaId::new).collect::<Option<_>>();
        Some(RecoveryReport {
            group: self.group.clone(),
            incarnation: self.incarnation,
            replica: ReplicaId::new(self.replica)?,
            node: self.node.clone(),
            term: self.term,
            last: self.last.map(LogPosition::from),
            committed: self.committed.map(LogPosition::from),
            members: Members {
                replicas: self.seats.iter().map(Seat::to_member).collect::<Option<_>>()?,
                voters: self.voters.iter().map(ids).collect::<Option<_>>()?,
                position: self.members_at.map(LogPosition::from),
                committed: self.members_are_committed,
            },
        })
    }
}

impl Seat {
    pub(crate) fn new(id: ReplicaId, member: &Member) -> Self {
        let Member { name, node, zone, decided_at, addresses: _ } = member.clone();
        Self { replica: id.get(), node: name, node_id: node, zone, decided_at }
    }

    pub(crate) fn to_member(&self) -> Option<(ReplicaId, Member)> {
        let (name, zone) = (self.node.clone(), self.zone.clone());
        let member = Member { name, node: self.node_id, zone, decided_at: self.decided_at, addresses: Vec::new() };
        Some((ReplicaId::new(self.replica)?, member))
    }
}

impl Recovery {
    pub(crate) fn new(plan: &RecoveryPlan, ended: u64) -> Self {
        let survivor = |(id, member): (&ReplicaId, &Member)| Survivor {
            seat: Seat::new(*id, member),
            last: plan.found.get(id).and_then(|found| found.last).map(LogEnd::from),
        };
        Self {
            ended,
            term: plan.term,
            chosen: plan.chosen.get(),
            last: plan.last.map(LogEnd::from),
            survivors: plan.members.iter().map(survivor).collect(),
        }
    }

    /// The plan for one of the survivors, which now is as `found`; `None` for what no plan says.
    pub(crate) fn to_plan(
        &self,
        group: &str,
        incarnation: u64,
        replica: ReplicaId,
        found: Found,
    ) -> Option<RecoveryPlan> {
        Some(RecoveryPlan {
            group: group.to_owned(),
            incarnation,
            term: self.term,
            chosen: ReplicaId::new(self.chosen)?,
            last: self.last.map(LogPosition::from),
            members: self.survivors.iter().map(|survivor| survivor.seat.to_member()).collect::<Option<_>>()?,
            lost: BTreeMap::new(),
            strangers: BTreeSet::new(),
            uncertain_entries: 0,
            may_lose_acknowledged: false,
            found: BTreeMap::from([(replica, found)]),
        })
    }

    pub(crate) fn survivor(&self, replica: ReplicaId) -> Option<&Survivor> {
        self.survivors.iter().find(|survivor| survivor.seat.replica == replica.get())
    }

    /// Whether both keep the same logs: the terms of votes may have risen in between.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let kept = |recovery: &Self| -> BTreeMap<u64, Option<LogEnd>> {
            recovery.survivors.iter().map(|survivor| (survivor.seat.replica, survivor.last)).collect()
        };
        (self.ended, self.chosen, self.last) == (other.ended, other.chosen, other.last) && kept(self) == kept(other)
    }
}

impl From<LogPosition> for LogEnd {
    fn from(position: LogPosition) -> Self {
        Self { term: position.term, index: position.index }
    }
}

impl From<LogEnd> for LogPosition {
    fn from(end: LogEnd) -> Self {
        Self { term: end.term, index: end.index }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_the_same_on_the_other_side() {
        let id = |n| ReplicaId::new(n).unwrap();
        let member = |n: u64| {
            let (name, zone) = (format!("n{n}"), "z".to_owned());
            Member { name, node: n, zone, decided_at: 7, addresses: Vec::new() }
        };
        let position = |term, index| Some(LogPosition { term, index });
        let report = RecoveryReport {
            group: "g".into(),
            incarnation: 3,
            replica: id(1),
            node: "n1".into(),
            term: 9,
            last: position(8, 100),
            committed: position(8, 90),
            members: Members {
                replicas: (1..=3).map(|n| (id(n), member(n))).collect(),
                voters: vec![(1..=3).map(id).collect(), (1..=2).map(id).collect()],
                position: position(2, 5),
                committed: true,
            },
        };
        let bytes = rafted_value::encode(&Report::new(report.clone(), false)).unwrap();
        let read: Report = rafted_value::decode(&bytes).unwrap();
        assert_eq!(read.to_report(), Some(report));
        assert_eq!(Report { replica: 0, ..read }.to_report(), None);
    }
}
