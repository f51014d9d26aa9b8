//! The whole protocol on one screen, and a model: nodes that ask each other where they stand, over a network
//! that loses, repeats and reorders, while they crash and start again.

use std::collections::BTreeSet;

use super::*;

fn tag(id: u128) -> ClusterKey {
    ClusterKey { id, generation: 0 }
}

fn promise(node: usize) -> Promise {
    Promise { node: format!("n{node}"), node_id: 100 + node as u64, zone: String::new(), replica: 1 + node as u64 }
}

fn collecting(id: u128, nodes: &[usize]) -> Bootstrap {
    let promises = nodes.iter().map(|&node| (format!("n{node}"), promise(node))).collect();
    Bootstrap::Collecting { cluster: tag(id), promises }
}

fn decided(id: u128, nodes: &[usize]) -> Bootstrap {
    Bootstrap::Decided { cluster: tag(id), members: nodes.iter().map(|&node| promise(node)).collect() }
}

fn promised(id: u128) -> Bootstrap {
    Bootstrap::Promised { cluster: tag(id) }
}

fn member(id: u128) -> Bootstrap {
    Bootstrap::Member { cluster: tag(id) }
}

#[test]
fn every_state_with_every_event() {
    use Bootstrap::Fresh;
    use Part::{Founder, Joiner};
    let initiator = Part::Initiator { expect: 3 };
    let begin = || Event::Begin { cluster: tag(7), own: promise(1) };
    let asked = |id| Event::Heard(Standing::Asking { cluster: tag(id) });
    let member_of = |id| Event::Heard(Standing::Member { cluster: tag(id) });
    let arrives = |id, node| Event::PromiseArrived { cluster: tag(id), promise: promise(node) };
    let foreign = Err(Foreign { own: 7, other: 8 });
    let table = [
        ("only the initiator begins", initiator, Fresh, begin(), Ok(collecting(7, &[1]))),
        ("a founder waits", Founder, Fresh, begin(), Ok(Fresh)),
        ("a joiner waits", Joiner, Fresh, begin(), Ok(Fresh)),
        ("one alone is complete", Part::Initiator { expect: 1 }, Fresh, begin(), Ok(decided(7, &[1]))),
        ("a founder promises", Founder, Fresh, asked(7), Ok(promised(7))),
        ("a joiner does not promise", Joiner, Fresh, asked(7), Ok(Fresh)),
        ("an initiator does not promise", initiator, Fresh, asked(7), Ok(Fresh)),
        ("a fresh node joins", Joiner, Fresh, member_of(7), Ok(member(7))),
        ("a wiped initiator joins", initiator, Fresh, member_of(7), Ok(member(7))),
        ("it begins once", initiator, collecting(8, &[1]), begin(), Ok(collecting(8, &[1]))),
        ("a promise counts", initiator, collecting(7, &[1]), arrives(7, 2), Ok(collecting(7, &[1, 2]))),
        ("a promise counts once", initiator, collecting(7, &[1, 2]), arrives(7, 2), Ok(collecting(7, &[1, 2]))),
        ("the last promise decides", initiator, collecting(7, &[1, 2]), arrives(7, 3), Ok(decided(7, &[1, 2, 3]))),
        ("another's promise", initiator, collecting(7, &[1, 2]), arrives(8, 3), Ok(collecting(7, &[1, 2]))),
        ("nobody is bound yet", initiator, collecting(7, &[1]), member_of(8), Ok(member(8))),
        ("somebody is bound", initiator, collecting(7, &[1, 2]), member_of(8), foreign.clone()),
        ("the members never change", initiator, decided(7, &[1, 2, 3]), arrives(7, 4), Ok(decided(7, &[1, 2, 3]))),
        ("it is done", initiator, decided(7, &[1, 2, 3]), Event::Initialized, Ok(member(7))),
        ("decided elsewhere", initiator, decided(7, &[1, 2, 3]), member_of(8), foreign.clone()),
        ("a promise binds", Founder, promised(7), asked(8), Ok(promised(7))),
        ("the promised cluster is there", Founder, promised(7), member_of(7), Ok(member(7))),
        ("another cluster is there", Founder, promised(7), member_of(8), foreign.clone()),
        ("promised, then set to join only", Joiner, promised(7), member_of(7), Ok(member(7))),
        ("a member stays", Joiner, member(7), member_of(7), Ok(member(7))),
        ("a member of another", Joiner, member(7), member_of(8), foreign),
        ("nobody initializes but who decided", Founder, promised(7), Event::Initialized, Ok(promised(7))),
    ];
    for (what, part, state, event, expected) in table {
        assert_eq!(state.next(part, event), expected, "{what}");
    }
}

#[derive(Debug, Clone)]
enum Message {
    Where,
    Here(Standing),
    Promise(ClusterKey, Promise),
}

/// A fault that the model must find.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Planted {
    Nothing,
    /// A node tells its promise before it is stored.
    PromiseIsNotSynced,
    /// The initiator mints a new id at each start.
    IdIsNotSynced,
}

struct Model {
    random: u64,
    parts: Vec<Part>,
    states: Vec<Bootstrap>,
    network: Vec<(usize, usize, Message)>,
    clusters: BTreeSet<ClusterKey>,
    next_id: u128,
    planted: Planted,
}

impl Model {
    fn new(seed: u64, parts: Vec<Part>, planted: Planted) -> Self {
        let states = vec![Bootstrap::Fresh; parts.len()];
        Self { random: seed, parts, states, network: Vec::new(), clusters: BTreeSet::new(), next_id: 0, planted }
    }

    /// SplitMix64.
    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) as usize % bound
    }

    fn event(&mut self, node: usize, event: Event) {
        let before = std::mem::take(&mut self.states[node]);
        let after = before.clone().next(self.parts[node], event).unwrap_or_else(|_| before.clone());
        if let (Some(old), Some(new)) = (before.bound_to(), after.bound_to()) {
            assert_eq!(old, new, "node {node} is bound to a second cluster");
        }
        self.states[node] = after;
    }

    /// What a node's own loop does: begins, initializes, asks everybody.
    fn turn(&mut self, node: usize) {
        self.next_id += 1;
        let begin = Event::Begin { cluster: tag(self.next_id), own: promise(node) };
        self.event(node, begin);
        if let Bootstrap::Decided { cluster, .. } = self.states[node] {
            self.clusters.insert(cluster);
            if self.below(2) == 0 {
                self.event(node, Event::Initialized);
            }
        }
        for other in (0..self.states.len()).filter(|&other| other != node) {
            self.network.push((node, other, Message::Where));
        }
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        match message {
            Message::Where => {
                let standing = self.states[to].standing();
                self.network.push((to, from, Message::Here(standing)));
            }
            Message::Here(standing) => {
                self.event(to, Event::Heard(standing));
                if let (Standing::Asking { cluster }, Bootstrap::Promised { cluster: own }) =
                    (standing, &self.states[to])
                    && cluster == *own
                {
                    self.network.push((to, from, Message::Promise(cluster, promise(to))));
                }
            }
            Message::Promise(cluster, promise) => self.event(to, Event::PromiseArrived { cluster, promise }),
        }
    }

    fn crash(&mut self, node: usize) {
        let forgets = matches!(
            (&self.states[node], self.planted),
            (Bootstrap::Promised { .. }, Planted::PromiseIsNotSynced)
                | (Bootstrap::Collecting { .. } | Bootstrap::Decided { .. }, Planted::IdIsNotSynced)
        );
        if forgets {
            self.states[node] = Bootstrap::Fresh;
        }
    }

    fn random_steps(&mut self, count: usize) {
        for _ in 0..count {
            let node = self.below(self.states.len());
            match self.below(12) {
                0 | 1 => self.turn(node),
                2 => self.crash(node),
                _ if self.network.is_empty() => self.turn(node),
                kind => {
                    let at = self.below(self.network.len());
                    let (from, to, message) = match kind {
                        3 => self.network[at].clone(),
                        _ => self.network.swap_remove(at),
                    };
                    if kind > 4 {
                        self.deliver(from, to, message);
                    }
                }
            }
            self.network.truncate(64);
            if self.clusters.len() > 1 {
                return;
            }
        }
    }

    /// Nothing is lost any more, everybody has its turn.
    fn calm(&mut self) {
        for _ in 0..40 {
            for node in 0..self.states.len() {
                self.turn(node);
            }
            while let Some((from, to, message)) = self.network.pop() {
                self.deliver(from, to, message);
            }
        }
    }
}

/// One initiator, founders, and joiners behind them.
fn parts(founders: usize, joiners: usize) -> Vec<Part> {
    let mut parts = vec![Part::Initiator { expect: founders }];
    parts.resize(founders, Part::Founder);
    parts.resize(founders + joiners, Part::Joiner);
    parts
}

#[test]
fn however_it_goes_there_is_one_cluster_and_all_come_to_it() {
    for seed in 0..3_000 {
        let founders = 1 + seed as usize % 5;
        let mut model = Model::new(seed, parts(founders, seed as usize % 3), Planted::Nothing);
        model.random_steps(200);
        model.calm();
        assert_eq!(model.clusters.len(), 1, "seed {seed}: {:?}", model.states);
        let cluster = *model.clusters.first().unwrap();
        let all = vec![Bootstrap::Member { cluster }; model.states.len()];
        assert_eq!(model.states, all, "seed {seed}");
    }
}

#[test]
fn two_initiators_by_mistake_make_at_most_one_cluster_when_they_expect_a_majority() {
    for seed in 0..2_000 {
        let count = 3 + seed as usize % 3;
        let mut parts = parts(count, 0);
        for initiator in &mut parts[..2] {
            *initiator = Part::Initiator { expect: count / 2 + 1 };
        }
        let mut model = Model::new(seed, parts, Planted::Nothing);
        model.random_steps(300);
        model.calm();
        assert!(model.clusters.len() <= 1, "seed {seed}: {:?}", model.states);
    }
}

#[test]
fn the_model_finds_what_is_planted() {
    let two_clusters = |planted, parts: Vec<Part>| {
        (0..2_000).any(|seed| {
            let mut model = Model::new(seed, parts.clone(), planted);
            model.random_steps(400);
            model.clusters.len() > 1
        })
    };
    let mut two_initiators = parts(3, 0);
    two_initiators[1] = Part::Initiator { expect: 2 };
    two_initiators[0] = Part::Initiator { expect: 2 };
    assert!(two_clusters(Planted::PromiseIsNotSynced, two_initiators));
    let mut alone_and_more = parts(1, 0);
    alone_and_more.push(Part::Founder);
    assert!(two_clusters(Planted::IdIsNotSynced, alone_and_more));
}
