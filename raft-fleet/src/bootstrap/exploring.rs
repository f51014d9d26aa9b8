//! Every way in which five nodes can begin: a breadth-first search over the state machine, with what it may meet.
//!
//! What a node has once told can reach anyone at any later time, any number of times, or never: that is a network that
//! loses, repeats, delays and reorders, and one that is cut in any way for any time. A crash brings back what was synced,
//! and a person may wipe a node at any moment. What has been said only grows, so that it is a part of the state as
//! a set; nodes of the same part that have gone through the same are the same, whatever their names: a state is
//! compared without them. The search ends when there is no new state.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::*;

/// A fault that the search must find.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Planted {
    Nothing,
    /// A node that has promised promises again to who asks next.
    PromisesAgain,
    /// The initiator begins again after it has decided.
    BeginsAgain,
    /// A node tells its promise before it is stored.
    PromiseIsNotSynced,
    /// The initiator tells its id before it is stored.
    IdIsNotSynced,
}

/// What is explored.
#[derive(Debug, Clone, Copy)]
struct Setting {
    initiators: usize,
    founders: usize,
    joiners: usize,
    expect: usize,
    /// How many nodes are wiped at most, and whether an initiator may be among them.
    wipes: usize,
    wipes_initiators: bool,
    planted: Planted,
}

const FIVE_OF_FIVE: Setting = Setting {
    initiators: 1,
    founders: 4,
    joiners: 0,
    expect: 5,
    wipes: 2,
    wipes_initiators: true,
    planted: Planted::Nothing,
};

/// A step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Begin(usize),
    Hear(usize, Standing),
    /// The promise of a node's memory to this cluster arrives at an initiator.
    TakePromise(usize, ClusterKey, usize, u64),
    /// The decided members are written into the replica of the cluster group.
    Initialize(usize),
    /// That this is done is stored.
    Initialized(usize),
    Crash(usize),
    Wipe(usize),
}

#[derive(Debug, Clone, PartialEq)]
struct Node {
    part: Part,
    state: Bootstrap,
    synced: Bootstrap,
    /// How often it was wiped: with each memory it is another one.
    memory: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct World {
    nodes: Vec<Node>,
    /// What nodes have said of themselves.
    said: BTreeSet<(u128, bool)>,
    /// Cluster, node and memory.
    promises: BTreeSet<(u128, usize, u64)>,
    /// The members of each cluster that was decided, by node and memory.
    decided: BTreeMap<u128, BTreeMap<usize, u64>>,
    initialized: BTreeSet<u128>,
    minted: u128,
    wipes: usize,
}

fn key(id: u128) -> ClusterKey {
    ClusterKey { id, generation: 0 }
}

fn promise(node: usize, memory: u64) -> Promise {
    Promise { node: node.to_string(), node_id: memory, zone: String::new(), replica: 1 }
}

fn by_node<'a>(promises: impl IntoIterator<Item = &'a Promise>) -> BTreeMap<usize, u64> {
    promises.into_iter().map(|promise| (promise.node.parse().unwrap(), promise.node_id)).collect()
}

/// The state machine, or what is planted in its place.
fn next(state: Bootstrap, part: Part, event: Event, planted: Planted) -> Result<Bootstrap, Foreign> {
    match (planted, &state, &event) {
        (Planted::PromisesAgain, Bootstrap::Promised { .. }, Event::Heard(Standing::Asking { cluster })) => {
            Ok(Bootstrap::Promised { cluster: *cluster })
        }
        (Planted::BeginsAgain, Bootstrap::Decided { .. } | Bootstrap::Member { .. }, Event::Begin { .. }) => {
            Bootstrap::Fresh.next(part, event)
        }
        _ => state.next(part, event),
    }
}

impl World {
    fn new(setting: &Setting) -> Self {
        let parts = [
            (Part::Initiator { expect: setting.expect }, setting.initiators),
            (Part::Founder, setting.founders),
            (Part::Joiner, setting.joiners),
        ];
        let node = |part| Node { part, state: Bootstrap::Fresh, synced: Bootstrap::Fresh, memory: 0 };
        let nodes = parts.into_iter().flat_map(|(part, count)| std::iter::repeat_n(node(part), count)).collect();
        Self {
            nodes,
            said: BTreeSet::new(),
            promises: BTreeSet::new(),
            decided: BTreeMap::new(),
            initialized: BTreeSet::new(),
            minted: 0,
            wipes: setting.wipes,
        }
    }

    /// All that may happen next, and much that changes nothing.
    fn steps(&self, setting: &Setting) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let is_initiator = matches!(node.part, Part::Initiator { .. });
            if is_initiator {
                steps.push(Step::Begin(at));
                let arriving = self.promises.iter();
                steps.extend(arriving.map(|&(id, from, memory)| Step::TakePromise(at, key(id), from, memory)));
            }
            steps.extend(self.said.iter().map(|&(id, is_member)| {
                let cluster = key(id);
                Step::Hear(at, if is_member { Standing::Member { cluster } } else { Standing::Asking { cluster } })
            }));
            match &node.state {
                Bootstrap::Decided { .. } => steps.extend([Step::Initialize(at), Step::Initialized(at)]),
                // Its replica has the first entry: that tells it as well as a member would.
                Bootstrap::Promised { cluster } if self.initialized.contains(&cluster.id) => {
                    steps.push(Step::Hear(at, Standing::Member { cluster: *cluster }));
                }
                _ => {}
            }
            if node.state != node.synced {
                steps.push(Step::Crash(at));
            }
            if self.wipes > 0 && (setting.wipes_initiators || !is_initiator) {
                steps.push(Step::Wipe(at));
            }
        }
        steps
    }

    fn take(&mut self, step: Step, planted: Planted) {
        match step {
            Step::Begin(at) => {
                let own = promise(at, self.nodes[at].memory);
                self.event(at, Event::Begin { cluster: key(self.minted + 1), own }, planted);
                let begun = matches!(&self.nodes[at].state, Bootstrap::Collecting { cluster, .. }
                    | Bootstrap::Decided { cluster, .. } if cluster.id > self.minted);
                self.minted += u128::from(begun);
            }
            Step::Hear(at, standing) => self.event(at, Event::Heard(standing), planted),
            Step::TakePromise(at, cluster, from, memory) => {
                self.event(at, Event::PromiseArrived { cluster, promise: promise(from, memory) }, planted);
            }
            Step::Initialize(at) => {
                let cluster = self.nodes[at].state.bound_to().unwrap();
                self.initialized.insert(cluster.id);
            }
            Step::Initialized(at) => {
                // Not before it is done.
                let cluster = self.nodes[at].state.bound_to().unwrap();
                if self.initialized.contains(&cluster.id) {
                    self.event(at, Event::Initialized, planted);
                }
            }
            Step::Crash(at) => self.nodes[at].state = self.nodes[at].synced.clone(),
            Step::Wipe(at) => {
                let node = &mut self.nodes[at];
                (node.state, node.synced) = (Bootstrap::Fresh, Bootstrap::Fresh);
                node.memory += 1;
                self.wipes -= 1;
            }
        }
    }

    fn event(&mut self, at: usize, event: Event, planted: Planted) {
        let node = &mut self.nodes[at];
        let Ok(after) = next(node.state.clone(), node.part, event, planted) else { return };
        let bound = (node.state.bound_to(), after.bound_to());
        if let ((Some(before), Some(after)), Planted::Nothing) = (bound, planted) {
            assert_eq!(before, after, "a node is bound to a second cluster");
        }
        let is_synced = match &after {
            Bootstrap::Promised { .. } => planted != Planted::PromiseIsNotSynced,
            Bootstrap::Collecting { .. } | Bootstrap::Decided { .. } => planted != Planted::IdIsNotSynced,
            _ => true,
        };
        if is_synced {
            node.synced = after.clone();
        }
        node.state = after;
        match node.state.standing() {
            Standing::Waiting => {}
            Standing::Asking { cluster } => drop(self.said.insert((cluster.id, false))),
            Standing::Member { cluster } => drop(self.said.insert((cluster.id, true))),
        }
        match &node.state {
            Bootstrap::Promised { cluster } => drop(self.promises.insert((cluster.id, at, node.memory))),
            Bootstrap::Decided { cluster, members } => {
                let members = by_node(members);
                let first = self.decided.entry(cluster.id).or_insert_with(|| members.clone());
                assert_eq!(*first, members, "the first members have changed");
            }
            _ => {}
        }
    }

    /// Clusters that can work: most of their first members are still who they were.
    fn working(&self) -> usize {
        let works = |id: &&u128| {
            let members = &self.decided[*id];
            let present = members.iter().filter(|&(&at, &memory)| self.nodes[at].memory == memory);
            present.count() * 2 > members.len()
        };
        self.initialized.iter().filter(works).count()
    }

    /// The state without the names of nodes.
    fn canonical(&self) -> Vec<u8> {
        let mut nodes: Vec<Vec<u8>> = (0..self.nodes.len()).map(|at| self.view_of(at)).collect();
        nodes.sort();
        let mut bytes = vec![self.wipes as u8, self.minted as u8];
        bytes.extend(self.said.iter().flat_map(|&(id, is_member)| [id as u8, u8::from(is_member)]));
        bytes.push(u8::MAX);
        bytes.extend(self.initialized.iter().map(|&id| id as u8));
        bytes.push(u8::MAX);
        bytes.extend(nodes.concat());
        bytes
    }

    /// All that there is of one node, also in what others have of it.
    fn view_of(&self, at: usize) -> Vec<u8> {
        let node = &self.nodes[at];
        let part = match node.part {
            Part::Initiator { .. } => at as u8,
            Part::Founder => 100,
            Part::Joiner => 101,
        };
        let mut bytes = vec![part, node.memory as u8];
        for state in [&node.state, &node.synced] {
            bytes.extend(match state {
                Bootstrap::Fresh => [0, 0],
                Bootstrap::Collecting { cluster, .. } => [1, cluster.id as u8],
                Bootstrap::Decided { cluster, .. } => [2, cluster.id as u8],
                Bootstrap::Promised { cluster } => [3, cluster.id as u8],
                Bootstrap::Member { cluster } => [4, cluster.id as u8],
            });
        }
        let given = self.promises.iter().filter(|(_, from, _)| *from == at);
        bytes.extend(given.flat_map(|&(id, _, memory)| [5, id as u8, memory as u8]));
        let decided = self.decided.iter().filter_map(|(&id, members)| Some((id, *members.get(&at)?)));
        bytes.extend(decided.flat_map(|(id, memory)| [6, id as u8, memory as u8]));
        let name = at.to_string();
        for (other, holder) in self.nodes.iter().enumerate() {
            for state in [&holder.state, &holder.synced] {
                if let Bootstrap::Collecting { promises, .. } = state
                    && let Some(held) = promises.get(&name)
                {
                    bytes.extend([7, other as u8, held.node_id as u8]);
                }
            }
        }
        bytes.push(u8::MAX);
        bytes
    }
}

/// What a search has found.
#[derive(Debug)]
enum Outcome {
    /// No two clusters work, in any of so many states.
    One { states: usize, steps: usize },
    /// Two do, after these steps.
    Two(Vec<Step>),
}

fn explore(setting: &Setting) -> Outcome {
    let first = World::new(setting);
    let mut seen = HashSet::from([first.canonical()]);
    let mut path: Vec<(usize, Option<Step>)> = vec![(0, None)];
    let mut queue = VecDeque::from([(0, first)]);
    let mut count = 0;
    while let Some((at, world)) = queue.pop_front() {
        for step in world.steps(setting) {
            let mut after = world.clone();
            after.take(step, setting.planted);
            count += 1;
            if after == world || !seen.insert(after.canonical()) {
                continue;
            }
            path.push((at, Some(step)));
            if after.working() > 1 {
                let mut steps = Vec::new();
                let mut from = path.len() - 1;
                while let (before, Some(step)) = path[from] {
                    steps.push(step);
                    from = before;
                }
                steps.reverse();
                return Outcome::Two(steps);
            }
            assert!(path.len() <= MAX_STATES, "more than {MAX_STATES} states: {setting:?}");
            queue.push_back((path.len() - 1, after));
        }
    }
    Outcome::One { states: path.len(), steps: count }
}

/// A search that finds more is set wrongly.
const MAX_STATES: usize = 1_000_000;

#[test]
fn five_nodes_never_make_two_clusters() {
    let settings = [
        ("all five", FIVE_OF_FIVE, 2_000),
        ("four of five", Setting { expect: 4, ..FIVE_OF_FIVE }, 5_000),
        ("three of five", Setting { expect: 3, wipes_initiators: false, ..FIVE_OF_FIVE }, 4_000),
        ("one that only joins", Setting { founders: 3, joiners: 1, expect: 4, ..FIVE_OF_FIVE }, 2_000),
        ("two initiators", Setting { initiators: 2, founders: 3, expect: 3, wipes: 0, ..FIVE_OF_FIVE }, 400),
    ];
    for (what, setting, least) in settings {
        match explore(&setting) {
            Outcome::One { states, steps } => {
                println!("{what}: {states} states, {steps} steps");
                assert!(states >= least, "{what}: {states} states: something is not explored any more");
            }
            Outcome::Two(steps) => panic!("{what}: two clusters after {steps:#?}"),
        }
    }
}

#[test]
fn the_search_finds_what_is_planted() {
    let three = Setting { expect: 3, wipes: 0, ..FIVE_OF_FIVE };
    let two_initiators = Setting { initiators: 2, founders: 3, ..three };
    let planted = [
        (Planted::PromisesAgain, two_initiators),
        (Planted::PromisesAgain, Setting { wipes: 1, ..FIVE_OF_FIVE }),
        (Planted::BeginsAgain, three),
        (Planted::PromiseIsNotSynced, two_initiators),
        (Planted::IdIsNotSynced, three),
    ];
    for (planted, setting) in planted {
        let setting = Setting { planted, ..setting };
        let Outcome::Two(steps) = explore(&setting) else { panic!("{setting:?}: nothing was found") };
        assert!(steps.len() <= 40, "{planted:?}: {steps:?}");
    }
}

/// Why more than half of the nodes should be expected: nobody tells an initiator that has lost its disk, and that is cut
/// off from its cluster, of that cluster; those whom it reaches may be enough for another one.
#[test]
fn an_initiator_that_lost_its_disk_can_make_a_second_cluster_where_half_of_the_nodes_are_enough() {
    let lost = |expect| Setting { expect, wipes: 1, ..FIVE_OF_FIVE };
    assert!(matches!(explore(&lost(3)), Outcome::Two(_)));
    assert!(matches!(explore(&lost(4)), Outcome::One { .. }));
}
