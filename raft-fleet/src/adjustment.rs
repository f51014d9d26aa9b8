//! What to do next with the members of one group: (desired places, observed members) -> one step. Pure.
//!
//! ```text
//! half-done change ------------------------> FinishJoint
//! learner that nobody wants ---------------> RemoveLearner
//! place without a replica -----------------> AddLearner        its node must be reachable
//! learner caught up, a voter too many -----> ChangeVoters      the learner in, the voter out, in one change
//! learner caught up, none too many --------> Promote
//! voter too many --------------------------> ChangeVoters      or TransferLeader first, where it is the leader
//! leader not the preferred one ------------> TransferLeader
//! ```
//!
//! A step is taken only when the voters after it, and those before it, have a majority that is reachable
//! and caught up. Running a step twice does no harm: a step is compared with the members it was decided for.

use std::collections::{BTreeMap, BTreeSet};

use rafted_value::ReplicaId;

/// A node on which a replica should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The node's name.
    pub(crate) node: String,
    /// The number of its memory: a replica that belongs to another memory is lost.
    pub(crate) node_id: u64,
    /// Whether the node answers.
    pub(crate) reachable: bool,
}

/// A replica that the group's members name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) node: String,
    pub(crate) node_id: u64,
    pub(crate) voter: bool,
    /// Whether its node answers, under that `node_id`.
    pub(crate) reachable: bool,
    /// Whether its log is close to the leader's.
    pub(crate) caught_up: bool,
}

/// A group as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) leader: ReplicaId,
    /// Whether a change of voters is half done.
    pub(crate) joint: bool,
    pub(crate) replicas: BTreeMap<ReplicaId, Replica>,
}

impl Observed {
    /// Whether a majority of the voters answers and has what the leader has.
    pub(crate) fn has_majority(&self) -> bool {
        has_majority(&voters_of(self), self)
    }
}

/// The next step of a group's leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// All is as desired, or what is missing cannot be done now.
    Nothing,
    /// A learner is catching up; look again soon.
    Wait,
    /// Finish the change that is half done.
    FinishJoint,
    /// Make a replica on this node and let it follow without a vote.
    AddLearner { node: String, node_id: u64 },
    /// Give a learner a vote.
    Promote { replica: ReplicaId },
    /// Exchange the voters for these; who is not among them leaves the group.
    ChangeVoters { voters: BTreeSet<ReplicaId> },
    /// Let a replica without a vote go.
    RemoveLearner { replica: ReplicaId },
    /// Hand the leadership to this voter.
    TransferLeader { to: ReplicaId },
}

/// Decides the next step towards `desired`, whose first place is the preferred leader.
pub(crate) fn next_step(desired: &[Place], observed: &Observed) -> Step {
    if observed.joint {
        return Step::FinishJoint;
    }
    if desired.is_empty() {
        return Step::Nothing;
    }
    let wanted = wanted_replicas(desired, observed);
    if let Some(replica) = unwanted_learner(&wanted, observed) {
        return Step::RemoveLearner { replica };
    }
    if let Some(step) = advance_learner(&wanted, observed) {
        return step;
    }
    if let Some(place) = missing_place(desired, observed) {
        return Step::AddLearner { node: place.node.clone(), node_id: place.node_id };
    }
    if let Some(step) = drop_voter(desired, &wanted, observed) {
        return step;
    }
    prefer_leader(desired, observed)
}

/// The replicas that stand on a desired place: one a place, a voter before a learner.
fn wanted_replicas(desired: &[Place], observed: &Observed) -> BTreeSet<ReplicaId> {
    desired.iter().filter_map(|place| replica_at(place, observed)).collect()
}

fn replica_at(place: &Place, observed: &Observed) -> Option<ReplicaId> {
    let mut here = observed.replicas.iter().filter(|(_, r)| r.node == place.node && r.node_id == place.node_id);
    let first = here.clone().find(|(_, r)| r.voter).or_else(|| here.next());
    first.map(|(&id, _)| id)
}

fn unwanted_learner(wanted: &BTreeSet<ReplicaId>, observed: &Observed) -> Option<ReplicaId> {
    let mut learners = observed.replicas.iter().filter(|(_, r)| !r.voter);
    learners.find(|(id, _)| !wanted.contains(id)).map(|(&id, _)| id)
}

/// One learner at a time becomes a voter. While one catches up, no other is added, unless it is stuck.
fn advance_learner(wanted: &BTreeSet<ReplicaId>, observed: &Observed) -> Option<Step> {
    let learners: Vec<_> = observed.replicas.iter().filter(|(id, r)| !r.voter && wanted.contains(id)).collect();
    for &(&learner, replica) in &learners {
        if !replica.reachable || !replica.caught_up {
            continue;
        }
        let mut voters = voters_of(observed);
        voters.insert(learner);
        if let Some(leaving) = leaving_voter(wanted, observed) {
            let mut exchanged = voters.clone();
            exchanged.remove(&leaving);
            if has_majority(&exchanged, observed) {
                return Some(Step::ChangeVoters { voters: exchanged });
            }
        }
        if has_majority(&voters, observed) {
            return Some(Step::Promote { replica: learner });
        }
    }
    learners.iter().any(|(_, r)| r.reachable).then_some(Step::Wait)
}

/// The voter to let go first: one that is lost or unreachable before one that works, never the leader.
fn leaving_voter(wanted: &BTreeSet<ReplicaId>, observed: &Observed) -> Option<ReplicaId> {
    let voters = observed.replicas.iter().filter(|(id, r)| r.voter && !wanted.contains(id));
    voters.filter(|&(&id, _)| id != observed.leader).min_by_key(|(_, r)| (r.reachable, r.caught_up)).map(|(&id, _)| id)
}

fn missing_place<'a>(desired: &'a [Place], observed: &Observed) -> Option<&'a Place> {
    desired.iter().find(|place| place.reachable && replica_at(place, observed).is_none())
}

/// Lets a voter go that stands on no desired place, once every place that can have a voter has one.
fn drop_voter(desired: &[Place], wanted: &BTreeSet<ReplicaId>, observed: &Observed) -> Option<Step> {
    let mut voters = voters_of(observed);
    // A voter that works stays until its successor votes: the group keeps its number of replicas.
    let successors_vote =
        desired.iter().all(|place| replica_at(place, observed).is_some_and(|id| observed.replicas[&id].voter));
    let leaving = leaving_voter(wanted, observed).filter(|id| successors_vote || !observed.replicas[id].reachable);
    if let Some(leaving) = leaving {
        voters.remove(&leaving);
        return has_majority(&voters, observed).then_some(Step::ChangeVoters { voters });
    }
    if successors_vote && !wanted.contains(&observed.leader) {
        return first_leader(desired, observed).map(|to| Step::TransferLeader { to });
    }
    None
}

fn prefer_leader(desired: &[Place], observed: &Observed) -> Step {
    match first_leader(desired, observed) {
        Some(to) if to != observed.leader => Step::TransferLeader { to },
        _ => Step::Nothing,
    }
}

/// The first place's voter among those that could lead at once.
fn first_leader(desired: &[Place], observed: &Observed) -> Option<ReplicaId> {
    let mut replicas = desired.iter().filter(|place| place.reachable).filter_map(|place| replica_at(place, observed));
    replicas.find(|id| observed.replicas[id].voter && works(&observed.replicas[id]))
}

fn voters_of(observed: &Observed) -> BTreeSet<ReplicaId> {
    observed.replicas.iter().filter(|(_, r)| r.voter).map(|(&id, _)| id).collect()
}

fn has_majority(voters: &BTreeSet<ReplicaId>, observed: &Observed) -> bool {
    let working = voters.iter().filter(|id| works(&observed.replicas[id]));
    working.count() * 2 > voters.len()
}

fn works(replica: &Replica) -> bool {
    replica.reachable && replica.caught_up
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests {
    use super::*;

    /// How the replica on one node starts.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Start {
        None,
        Voter,
        Learner,
        /// A voter of a memory that the node has lost.
        Lost,
    }

    const STARTS: [Start; 4] = [Start::None, Start::Voter, Start::Learner, Start::Lost];
    const NODES: usize = 4;

    fn id(number: u64) -> ReplicaId {
        ReplicaId::new(number).unwrap()
    }

    fn name(node: usize) -> String {
        format!("n{node}")
    }

    fn place(node: usize, reachable: bool) -> Place {
        Place { node: name(node), node_id: 100 + node as u64, reachable }
    }

    fn replica(node: usize, start: Start, reachable: bool) -> Replica {
        let lost = start == Start::Lost;
        Replica {
            node: name(node),
            node_id: if lost { 900 + node as u64 } else { 100 + node as u64 },
            voter: start != Start::Learner,
            reachable: reachable && !lost,
            caught_up: reachable && start == Start::Voter,
        }
    }

    fn layout(starts: &[Start], up: &[bool]) -> BTreeMap<ReplicaId, Replica> {
        let replicas = starts.iter().enumerate().filter(|(_, start)| **start != Start::None);
        replicas.map(|(node, &start)| (id(1 + node as u64), replica(node, start, up[node]))).collect()
    }

    fn quorum(observed: &Observed) -> bool {
        has_majority(&voters_of(observed), observed)
    }

    /// What the world does with a step.
    fn run(observed: &mut Observed, step: Step, next_id: &mut u64) {
        let replicas = &mut observed.replicas;
        match step {
            Step::Nothing | Step::Wait => {}
            Step::FinishJoint => observed.joint = false,
            Step::AddLearner { node, node_id } => {
                *next_id += 1;
                let replica = Replica { node, node_id, voter: false, reachable: true, caught_up: false };
                replicas.insert(id(*next_id), replica);
            }
            Step::Promote { replica } => {
                let replica = replicas.get_mut(&replica).unwrap();
                assert!(replica.caught_up && !replica.voter);
                replica.voter = true;
            }
            Step::ChangeVoters { voters } => {
                assert!(voters.contains(&observed.leader), "the leader removed itself");
                replicas.retain(|id, r| !r.voter || voters.contains(id));
                for voter in voters {
                    replicas.get_mut(&voter).unwrap().voter = true;
                }
            }
            Step::RemoveLearner { replica } => {
                assert!(!replicas.remove(&replica).unwrap().voter);
            }
            Step::TransferLeader { to } => {
                assert!(works(&replicas[&to]) && replicas[&to].voter);
                assert_ne!(to, observed.leader);
                observed.leader = to;
            }
        }
        for replica in replicas.values_mut() {
            replica.caught_up |= replica.reachable;
        }
    }

    fn check(mut observed: Observed, desired: &[Place]) {
        let start = observed.clone();
        let mut next_id = 100;
        for _ in 0..20 {
            let step = next_step(desired, &observed);
            let waits = matches!(step, Step::Nothing | Step::Wait)
                && observed.replicas.values().all(|r| r.caught_up || !r.reachable);
            if waits {
                return check_end(&start, &observed, desired);
            }
            let before = observed.clone();
            run(&mut observed, step.clone(), &mut next_id);
            assert!(quorum(&observed), "{step:?} of {before:?} broke the quorum, desired {desired:?}");
        }
        panic!("no end: {start:?} -> {observed:?}, desired {desired:?}");
    }

    fn check_end(start: &Observed, end: &Observed, desired: &[Place]) {
        let context = || format!("{start:?} -> {end:?}, desired {desired:?}");
        if !desired.iter().all(|place| place.reachable) {
            return;
        }
        let voters: BTreeSet<_> = end.replicas.values().map(|r| (r.node.clone(), r.node_id)).collect();
        let places: BTreeSet<_> = desired.iter().map(|p| (p.node.clone(), p.node_id)).collect();
        assert_eq!(voters, places, "{}", context());
        assert!(end.replicas.values().all(|r| r.voter), "{}", context());
        assert_eq!(end.replicas[&end.leader].node, desired[0].node, "{}", context());
    }

    fn desired_lists() -> Vec<Vec<usize>> {
        let mut lists = Vec::new();
        for a in 0..NODES {
            lists.push(vec![a]);
            for b in (0..NODES).filter(|&b| b != a) {
                lists.push(vec![a, b]);
                lists.extend((0..NODES).filter(|&c| c != a && c != b).map(|c| vec![a, b, c]));
            }
        }
        lists
    }

    #[test]
    fn from_every_small_layout_the_steps_end_where_desired_and_keep_the_quorum() {
        let mut checked = 0;
        for code in 0..STARTS.len().pow(NODES as u32) {
            let starts: Vec<_> =
                (0..NODES).map(|node| STARTS[code / STARTS.len().pow(node as u32) % STARTS.len()]).collect();
            for mask in 0..1_u32 << NODES {
                let up: Vec<_> = (0..NODES).map(|node| mask & (1 << node) != 0).collect();
                let replicas = layout(&starts, &up);
                let leaders: Vec<_> = replicas.iter().filter(|(_, r)| r.voter && works(r)).map(|(&id, _)| id).collect();
                for leader in leaders {
                    let observed = Observed { leader, joint: false, replicas: replicas.clone() };
                    if !quorum(&observed) {
                        continue;
                    }
                    for list in desired_lists() {
                        let desired: Vec<_> = list.iter().map(|&node| place(node, up[node])).collect();
                        check(observed.clone(), &desired);
                        checked += 1;
                    }
                }
            }
        }
        assert!(checked > 10_000, "{checked}");
    }

    fn three_voters() -> Observed {
        let replicas = layout(&[Start::Voter, Start::Voter, Start::Voter], &[true; 3]);
        Observed { leader: id(1), joint: false, replicas }
    }

    fn step_of(desired: &[usize], change: impl FnOnce(&mut Observed)) -> Step {
        let mut observed = three_voters();
        change(&mut observed);
        let desired: Vec<_> = desired.iter().map(|&node| place(node, true)).collect();
        next_step(&desired, &observed)
    }

    #[test]
    fn each_situation_has_its_step() {
        assert_eq!(step_of(&[0, 1, 2], |_| {}), Step::Nothing);
        assert_eq!(step_of(&[0, 1, 3], |o| o.joint = true), Step::FinishJoint);
        assert_eq!(step_of(&[1, 0, 2], |_| {}), Step::TransferLeader { to: id(2) });
        let add = Step::AddLearner { node: "n3".into(), node_id: 103 };
        assert_eq!(step_of(&[0, 1, 3], |_| {}), add);
        let learner = |caught_up| {
            move |o: &mut Observed| {
                let replica = Replica { caught_up, ..replica(3, Start::Learner, true) };
                o.replicas.insert(id(4), replica);
            }
        };
        assert_eq!(step_of(&[0, 1, 3], learner(false)), Step::Wait, "it catches up first");
        let exchange = Step::ChangeVoters { voters: [1, 2, 4].map(id).into() };
        assert_eq!(step_of(&[0, 1, 3], learner(true)), exchange);
        assert_eq!(step_of(&[0, 1, 2, 3], learner(true)), Step::Promote { replica: id(4) });
        assert_eq!(step_of(&[0, 1, 2], learner(true)), Step::RemoveLearner { replica: id(4) });
        let fewer = Step::ChangeVoters { voters: [1, 2].map(id).into() };
        assert_eq!(step_of(&[0, 1], |_| {}), fewer);
    }

    #[test]
    fn a_place_on_an_unreachable_node_waits() {
        let desired = [place(0, true), place(1, true), place(3, false)];
        assert_eq!(next_step(&desired, &three_voters()), Step::Nothing);
    }

    #[test]
    fn a_voter_that_would_be_missed_stays() {
        let mut observed = three_voters();
        observed.replicas.get_mut(&id(2)).unwrap().reachable = false;
        let desired = [place(0, true), place(1, false)];
        assert_eq!(next_step(&desired, &observed), Step::Nothing);
    }
}
