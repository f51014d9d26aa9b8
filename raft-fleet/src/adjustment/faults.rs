//! Steps from every starting layout of four nodes, while something fails between two of them: a node is not reached for a
//! while, loses its memory, or the leader goes in the middle of a change of voters. Whatever it is, no step leaves a
//! group without its quorum, none gives a vote to a replica that lacks entries, and at the end all is as desired.

use super::*;

const NODES: usize = 4;
/// Far more than any layout needs.
const MAX_STEPS: usize = 60;
/// How many faults are drawn for each layout and desire; each is drawn from the same seed in each run.
const FAULTS_EACH: usize = 4;
/// After how many steps at most a fault comes.
const LATEST: u64 = 7;

/// What stands on a node at the start.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Start {
    None,
    Voter,
    Learner,
    /// A voter of a memory that the node has lost.
    Lost,
    /// The same, and a learner that is to take its place.
    LostAndLearner,
    /// A voter, and a replica that was made beside it by mistake.
    VoterAndLearner,
    /// A voter that a half-done change lets go.
    Leaving,
    /// A learner to which a half-done change gives a vote.
    Coming,
}

const STARTS: [Start; 8] = [
    Start::None,
    Start::Voter,
    Start::Learner,
    Start::Lost,
    Start::LostAndLearner,
    Start::VoterAndLearner,
    Start::Leaving,
    Start::Coming,
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// The node is not reached until nothing more can be done without it.
    Unreachable,
    /// The node is not reached for two steps.
    Blink,
    /// The node comes back at once, without what it had.
    LosesMemory,
    /// The leader goes in the middle of the next change of voters, which another one finds half done.
    LeaderGoesHalfway,
}

const FAULTS: [Fault; 4] = [Fault::Unreachable, Fault::Blink, Fault::LosesMemory, Fault::LeaderGoesHalfway];

#[derive(Debug, Clone)]
struct Model {
    replicas: BTreeMap<ReplicaId, Member>,
    joint: bool,
    leader: ReplicaId,
    /// The number of each node's memory.
    memories: [u64; NODES],
    up: [bool; NODES],
    next_id: u64,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    node: usize,
    memory: u64,
    /// Whether it votes in the set before a half-done change, and in the one after it; equal when there is none.
    votes: [bool; 2],
    caught_up: bool,
}

/// What was checked, so that the test says so.
#[derive(Debug, Default)]
struct Checked {
    runs: u64,
    steps: u64,
    joint_starts: u64,
    two_on_a_node: u64,
    leader_places_away: u64,
    faults: BTreeMap<String, u64>,
    /// Runs that ended where desired, not only as near as a lost majority or node allows.
    ended: u64,
}

impl Model {
    fn new(starts: &[Start]) -> Self {
        let memories = std::array::from_fn(|node| 100 + node as u64);
        let mut model = Self {
            replicas: BTreeMap::new(),
            joint: starts.iter().any(|start| matches!(start, Start::Leaving | Start::Coming)),
            leader: ReplicaId::new(1).unwrap(),
            memories,
            up: [true; NODES],
            next_id: 0,
        };
        for (node, start) in starts.iter().enumerate() {
            let (own, lost) = (100 + node as u64, 900 + node as u64);
            match start {
                Start::None => {}
                Start::Voter => model.add(node, own, [true; 2], true),
                Start::Learner => model.add(node, own, [false; 2], false),
                Start::Lost => model.add(node, lost, [true; 2], false),
                Start::LostAndLearner => {
                    model.add(node, lost, [true; 2], false);
                    model.add(node, own, [false; 2], false);
                }
                Start::VoterAndLearner => {
                    model.add(node, own, [true; 2], true);
                    model.add(node, own, [false; 2], false);
                }
                Start::Leaving => model.add(node, own, [true, false], true),
                Start::Coming => model.add(node, own, [false, true], true),
            }
        }
        model
    }

    fn add(&mut self, node: usize, memory: u64, votes: [bool; 2], caught_up: bool) {
        self.next_id += 1;
        self.replicas.insert(ReplicaId::new(self.next_id).unwrap(), Member { node, memory, votes, caught_up });
    }

    fn reaches(&self, member: &Member) -> bool {
        self.up[member.node] && self.memories[member.node] == member.memory
    }

    fn works(&self, member: &Member) -> bool {
        self.reaches(member) && member.caught_up
    }

    /// Whether each set of voters has a majority that works.
    fn has_quorum(&self) -> bool {
        [0, 1].iter().all(|&set| {
            let voters: Vec<_> = self.replicas.values().filter(|member| member.votes[set]).collect();
            voters.iter().filter(|member| self.works(member)).count() * 2 > voters.len()
        })
    }

    /// Replicas that could lead: those with all entries, by the votes of the others.
    fn leaders(&self) -> Vec<ReplicaId> {
        let votes = |member: &Member| member.votes.contains(&true) && self.works(member);
        self.replicas.iter().filter(|(_, member)| votes(member)).map(|(&id, _)| id).collect()
    }

    fn observe(&self) -> Observed {
        let replica = |member: &Member| Replica {
            node: format!("n{}", member.node),
            node_id: member.memory,
            voter: member.votes.contains(&true),
            reachable: self.reaches(member),
            caught_up: member.caught_up,
        };
        let replicas = self.replicas.iter().map(|(&id, member)| (id, replica(member))).collect();
        Observed { leader: self.leader, joint: self.joint, replicas }
    }

    fn places(&self, desired: &[usize]) -> Vec<Place> {
        let place =
            |&node: &usize| Place { node: format!("n{node}"), node_id: self.memories[node], reachable: self.up[node] };
        desired.iter().map(place).collect()
    }

    fn step(&mut self, step: &Step, halfway: bool) {
        match step {
            Step::Nothing | Step::Wait => self.catch_up(),
            Step::FinishJoint => {
                self.finish_joint();
                // A leader that it let go has stepped down.
                self.elect();
            }
            Step::AddLearner { node, node_id } => {
                let node: usize = node[1..].parse().unwrap();
                assert!(self.up[node] && self.memories[node] == *node_id, "no replica is made where nobody answers");
                self.add(node, *node_id, [false; 2], false);
            }
            Step::Promote { replica } => {
                let mut voters: BTreeSet<_> = self.voters();
                voters.insert(*replica);
                self.change_voters(&voters, halfway);
            }
            Step::ChangeVoters { voters } => self.change_voters(voters, halfway),
            Step::RemoveLearner { replica } => {
                assert_eq!(self.replicas.remove(replica).unwrap().votes, [false; 2]);
            }
            Step::TransferLeader { to } => {
                assert!(self.works(&self.replicas[to]) && self.replicas[to].votes == [true; 2]);
                self.leader = *to;
            }
        }
    }

    fn voters(&self) -> BTreeSet<ReplicaId> {
        self.replicas.iter().filter(|(_, member)| member.votes[1]).map(|(&id, _)| id).collect()
    }

    fn change_voters(&mut self, voters: &BTreeSet<ReplicaId>, halfway: bool) {
        assert!(voters.contains(&self.leader), "the leader removed itself");
        for id in voters {
            let member = self.replicas[id];
            assert!(member.votes[1] || self.works(&member), "a replica that lacks entries was given a vote");
        }
        for (id, member) in &mut self.replicas {
            member.votes[1] = voters.contains(id);
        }
        self.joint = true;
        if !halfway {
            self.finish_joint();
        }
    }

    fn finish_joint(&mut self) {
        self.joint = false;
        self.replicas.retain(|_, member| member.votes != [true, false]);
        for member in self.replicas.values_mut() {
            member.votes[0] = member.votes[1];
        }
    }

    fn catch_up(&mut self) {
        let reached: Vec<_> =
            self.replicas.iter().filter(|(_, member)| self.reaches(member)).map(|(&id, _)| id).collect();
        for id in reached {
            self.replicas.get_mut(&id).unwrap().caught_up = true;
        }
    }

    fn is_caught_up(&self) -> bool {
        self.replicas.values().all(|member| member.caught_up || !self.reaches(member))
    }

    /// Another one leads where the leader does not work any more.
    fn elect(&mut self) {
        let leaders = self.leaders();
        if !leaders.contains(&self.leader) {
            self.leader = leaders[0];
        }
    }

    /// `false`: the group loses its majority by it, which is another story.
    fn strike(&mut self, fault: Fault, node: usize) -> bool {
        match fault {
            Fault::Unreachable | Fault::Blink => self.up[node] = false,
            Fault::LosesMemory => self.memories[node] += 1_000,
            Fault::LeaderGoesHalfway => {}
        }
        self.has_quorum()
    }
}

/// Runs to the end; `None` if the fault took the majority.
fn run(
    mut model: Model,
    desired: &[usize],
    fault: Option<(Fault, u64, usize)>,
    checked: &mut Checked,
) -> Option<Model> {
    let mut back_at = None;
    let mut halfway = false;
    for taken in 0..MAX_STEPS {
        if let Some((fault, after, node)) = fault
            && after == taken as u64
        {
            if !model.strike(fault, node) {
                return None;
            }
            halfway = fault == Fault::LeaderGoesHalfway;
            back_at = (fault == Fault::Blink).then_some(taken + 2);
            model.elect();
        }
        if back_at == Some(taken) {
            model.up = [true; NODES];
        }
        let step = next_step(&model.places(desired), &model.observe());
        let is_idle = matches!(step, Step::Nothing | Step::Wait) && model.is_caught_up();
        if is_idle && model.up == [true; NODES] && fault.is_none_or(|(_, after, _)| (taken as u64) > after) {
            return Some(model);
        }
        if is_idle && fault.is_some_and(|(_, after, _)| (taken as u64) > after) {
            model.up = [true; NODES];
            continue;
        }
        let before = model.clone();
        let is_change = matches!(step, Step::Promote { .. } | Step::ChangeVoters { .. });
        model.step(&step, halfway && is_change);
        checked.steps += 1;
        assert!(model.has_quorum(), "{step:?} of {before:?} broke the quorum, desired {desired:?}");
        if halfway && is_change {
            // Whoever can lead finds it, except the one that has just gone.
            let others: Vec<_> = model.leaders().into_iter().filter(|&id| id != model.leader).collect();
            model.leader = others.first().copied().unwrap_or(model.leader);
            halfway = false;
        }
    }
    panic!("no end: {model:?}, desired {desired:?}, {fault:?}");
}

fn check_end(start: &Model, end: &Model, desired: &[usize], fault: Option<(Fault, u64, usize)>) {
    let context = || format!("{start:?} -> {end:?}, desired {desired:?}, {fault:?}");
    let stand: BTreeSet<_> = end.replicas.values().map(|member| (member.node, member.memory)).collect();
    let wanted: BTreeSet<_> = desired.iter().map(|&node| (node, end.memories[node])).collect();
    assert_eq!(stand, wanted, "{}", context());
    assert_eq!(end.replicas.len(), desired.len(), "{}", context());
    assert!(end.replicas.values().all(|member| member.votes == [true; 2]), "{}", context());
    assert_eq!(end.replicas[&end.leader].node, desired[0], "{}", context());
}

fn desires() -> Vec<Vec<usize>> {
    let mut desires = Vec::new();
    for a in 0..NODES {
        desires.push(vec![a]);
        for b in (0..NODES).filter(|&b| b != a) {
            desires.push(vec![a, b]);
            desires.extend((0..NODES).filter(|&c| c != a && c != b).map(|c| vec![a, b, c]));
        }
    }
    desires
}

/// SplitMix64: the same faults in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[test]
fn from_every_layout_and_through_every_fault_the_steps_end_where_desired() {
    let mut checked = Checked::default();
    let mut random = Random(7);
    let desires = desires();
    for code in 0..STARTS.len().pow(NODES as u32) {
        let starts: Vec<_> =
            (0..NODES).map(|node| STARTS[code / STARTS.len().pow(node as u32) % STARTS.len()]).collect();
        let model = Model::new(&starts);
        if !model.has_quorum() {
            continue;
        }
        // Each layout with a tenth of the desires, each desire with a tenth of the layouts.
        for desired in desires.iter().skip(code % 10).step_by(10) {
            let leaders = model.leaders();
            let start = Model { leader: leaders[random.below(leaders.len() as u64) as usize], ..model.clone() };
            let mut faults = vec![None];
            for _ in 0..FAULTS_EACH {
                let fault = FAULTS[random.below(FAULTS.len() as u64) as usize];
                faults.push(Some((fault, random.below(LATEST), random.below(NODES as u64) as usize)));
            }
            for fault in faults {
                checked.runs += 1;
                checked.joint_starts += u64::from(start.joint);
                checked.two_on_a_node +=
                    u64::from(starts.iter().any(|s| matches!(s, Start::LostAndLearner | Start::VoterAndLearner)));
                if let Some((fault, _, node)) = fault {
                    *checked.faults.entry(format!("{fault:?}")).or_default() += 1;
                    checked.leader_places_away += u64::from(fault == Fault::Unreachable && node == desired[0]);
                }
                if let Some(end) = run(start.clone(), desired, fault, &mut checked) {
                    check_end(&start, &end, desired, fault);
                    checked.ended += 1;
                }
            }
        }
    }
    println!("{checked:?}");
    assert!(checked.runs > 30_000 && checked.ended * 3 > checked.runs, "{checked:?}");
    assert!(checked.joint_starts > 3_000 && checked.two_on_a_node > 3_000, "{checked:?}");
    assert!(checked.leader_places_away > 500, "{checked:?}");
    assert!(FAULTS.iter().all(|fault| checked.faults[&format!("{fault:?}")] > 2_000), "{checked:?}");
}
