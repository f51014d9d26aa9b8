//! The cluster group's value: what each command does and refuses, and that copies follow.

use super::*;
use rafted_value::LogTime;

/// A state and the log that leads to it.
#[derive(Default)]
struct Run {
    cluster: Cluster,
    index: u64,
}

impl Run {
    fn with_nodes(count: usize) -> Self {
        let mut run = Self::default();
        for node in 1..=count {
            run.done(register(&format!("n{node}"), 100 + node as u64, 1));
        }
        run
    }

    fn reply(&mut self, command: Command) -> Reply {
        self.index += 1;
        let now = LogTime::from_millis(self.index * 1_000);
        self.cluster.command_in(&Context::new(now, self.index, None), command)
    }

    fn done(&mut self, command: Command) {
        let what = format!("{command:?}");
        assert!(matches!(self.reply(command), Reply::Done { .. }), "{what}");
    }

    fn refused(&mut self, command: Command) -> Refusal {
        let before = self.cluster.clone();
        match self.reply(command) {
            Reply::Refused(refusal) => {
                assert_eq!(self.cluster, before, "{refusal:?} changed something");
                refusal
            }
            done => panic!("{done:?}"),
        }
    }

    fn incarnation(&self, group: &str) -> u64 {
        self.cluster.group(group).unwrap().incarnation
    }

    fn founders(&self, group: &str) -> Vec<(String, u64, u64)> {
        let GroupPhase::Forming { founders } = &self.cluster.group(group).unwrap().phase else { panic!() };
        let replica = |name: &String| (name.clone(), self.cluster.node(name).unwrap().node_id, 7);
        founders.iter().map(replica).collect()
    }
}

fn register(node: &str, node_id: u64, boot: u64) -> Command {
    Command::Register(Registration {
        node: node.into(),
        node_id,
        starts: (1..=boot).map(|boot| (boot, boot * 100)).collect(),
        start: boot * 10,
        zone: format!("z{}", node_id % 2),
        address: "127.0.0.1:1".into(),
        attributes: BTreeMap::new(),
        replace: false,
    })
}

fn replacing(node: &str, node_id: u64) -> Command {
    let Command::Register(registration) = register(node, node_id, 1) else { unreachable!() };
    Command::Register(Registration { replace: true, ..registration })
}

fn reachable(node: &str, node_id: u64, reachable: bool) -> Command {
    Command::SetReachable { node: node.into(), node_id, reachable }
}

fn purge(node: &str, node_id: u64) -> Command {
    Command::Purge { node: node.into(), node_id }
}

fn add(group: &str, replicas: u32) -> Command {
    Command::AddGroup { group: group.into(), type_name: "int".into(), replicas }
}

fn remove(group: &str) -> Command {
    Command::RemoveGroup { group: group.into() }
}

fn cleaned_up(node: &str, group: &str, incarnation: u64) -> Command {
    Command::CleanedUp { node: node.into(), groups: vec![(group.into(), incarnation)] }
}

#[test]
fn a_directory_is_refused_that_does_not_know_of_its_registered_start() {
    let with = |starts: &[(u64, u64)]| {
        let Command::Register(given) = register("n1", 101, 1) else { unreachable!() };
        Command::Register(Registration { starts: starts.to_vec(), ..given })
    };
    let mut run = Run::with_nodes(1);
    run.done(with(&[(1, 100)]));
    run.done(with(&[(1, 100), (2, 200), (3, 300)]));
    run.done(with(&[(1, 100), (2, 200), (3, 300)]));
    assert_eq!(run.cluster.node("n1").unwrap().boot, 3);
    let refused = |given, registered| Refusal::RolledBack { given, registered };
    assert_eq!(run.refused(with(&[(1, 100)])), refused(1, 3), "a copy from before");
    assert_eq!(run.refused(with(&[(1, 100), (2, 201), (3, 301)])), refused(3, 3), "started since, twice");
    assert_eq!(run.refused(with(&[(1, 100), (2, 201), (3, 301), (4, 401)])), refused(4, 3), "and once more");
    let crashed = [(1, 100), (2, 200), (3, 300), (4, 400), (5, 500), (6, 600), (7, 700)];
    run.done(with(&crashed));
    assert_eq!(run.refused(with(&crashed[..6])), refused(6, 7), "starts before their registration count, too");
    let long: Vec<_> = (3..2_000).map(|boot| (boot, boot * 100)).collect();
    run.done(with(&long));
}

#[test]
fn a_removed_memory_never_comes_back_nor_do_those_that_its_name_had_before() {
    let mut run = Run::with_nodes(2);
    run.done(reachable("n1", 101, false));
    run.done(replacing("n1", 999));
    run.done(Command::Drain { node: "n1".into() });
    run.done(Command::RemoveNode { node: "n1".into() });
    for memory in [101, 999] {
        assert_eq!(run.refused(register("n1", memory, 2)), Refusal::Removed);
        assert_eq!(run.refused(replacing("n1", memory)), Refusal::Removed);
    }
    run.done(register("n1", 1_000, 1));
    run.done(register("n2", 102, 2));
}

#[test]
fn removed_memories_are_bounded() {
    let mut run = Run::default();
    for memory in 1..=MAX_GONE as u64 + 1 {
        run.done(register("n1", memory, 1));
        run.done(reachable("n1", memory, false));
        run.done(Command::RemoveNode { node: "n1".into() });
    }
    assert_eq!(run.refused(register("n1", 2, 1)), Refusal::Removed);
    run.done(register("n1", 1, 1));
}

#[test]
fn a_second_memory_under_a_live_name_is_refused_and_under_a_dead_one_takes_over() {
    let mut run = Run::with_nodes(2);
    assert!(matches!(run.refused(register("n1", 999, 1)), Refusal::NameInUse { node_id: 101, .. }));
    assert!(matches!(run.refused(replacing("n1", 999)), Refusal::NameInUse { .. }));
    run.done(reachable("n1", 101, false));
    assert!(matches!(run.refused(register("n1", 999, 1)), Refusal::WaitsForPurge { node_id: 101, since: 5_000 }));
    run.done(purge("n1", 101));
    run.done(register("n1", 999, 1));
    assert_eq!(run.cluster.node("n1").unwrap().phase, NodePhase::Active);
    run.done(reachable("n1", 999, false));
    assert_eq!(run.refused(register("n1", 101, 2)), Refusal::Fenced, "its successor is only unreachable");
    run.done(replacing("n1", 998));
    assert_eq!(run.refused(purge("n1", 999)), Refusal::Outdated);
}

#[test]
fn a_node_that_returns_in_time_keeps_its_place_and_one_that_was_purged_is_active_again() {
    let mut run = Run::with_nodes(3);
    run.done(reachable("n2", 102, false));
    assert_eq!(run.cluster.node("n2").unwrap().unreachable_since, Some(4_000));
    assert_eq!(run.cluster.places("g", 9).len(), 3, "nothing moves before the purge");
    run.done(reachable("n2", 102, false));
    assert_eq!(run.cluster.node("n2").unwrap().unreachable_since, Some(4_000), "since the first time");
    run.done(reachable("n2", 102, true));
    assert_eq!(run.refused(purge("n2", 102)), Refusal::NodeInUse);
    run.done(reachable("n2", 102, false));
    run.done(purge("n2", 102));
    assert_eq!(run.cluster.places("g", 9).len(), 2);
    run.done(register("n2", 102, 2));
    assert_eq!(run.cluster.places("g", 9).len(), 3);
}

#[test]
fn a_working_node_is_drained_before_it_is_removed() {
    let mut run = Run::with_nodes(3);
    let remove_node = |node: &str| Command::RemoveNode { node: node.into() };
    assert_eq!(run.refused(remove_node("n1")), Refusal::NodeInUse);
    assert_eq!(run.refused(remove_node("n9")), Refusal::NodeNotFound);
    let (drain, activate) = (Command::Drain { node: "n1".into() }, Command::Activate { node: "n1".into() });
    assert_eq!(run.refused(activate.clone()), Refusal::AlreadyActive);
    run.done(drain.clone());
    assert_eq!(run.refused(drain.clone()), Refusal::AlreadyDraining);
    assert_eq!(run.cluster.places("g", 9).len(), 2);
    run.done(activate.clone());
    assert_eq!(run.refused(activate), Refusal::AlreadyActive);
    assert_eq!(run.cluster.places("g", 9).len(), 3);
    run.done(drain);
    run.done(register("n1", 101, 2));
    assert_eq!(run.cluster.node("n1").unwrap().phase, NodePhase::Draining, "a restart does not bring it back");
    run.done(remove_node("n1"));
    assert!(run.cluster.node("n1").is_none());
}

#[test]
fn a_draining_node_tells_how_far_it_is_and_the_last_that_answers_is_not_drained() {
    let mut run = Run::with_nodes(3);
    let drain = |node: &str| Command::Drain { node: node.into() };
    let report = |node_id, replicas| Command::ReportDrain { node: "n1".into(), node_id, replicas, leaderships: 1 };
    let told = |run: &Run| run.cluster.node("n1").unwrap().drain.map(|drain| (drain.replicas, drain.since));
    assert_eq!(run.refused(report(101, 5)), Refusal::Outdated, "it is not draining");
    run.done(drain("n1"));
    assert_eq!(told(&run), None);
    run.done(report(101, 5));
    let since = run.index * 1_000;
    run.done(report(101, 5));
    assert_eq!(told(&run), Some((5, since)), "nothing has changed since");
    assert_eq!(run.refused(report(999, 0)), Refusal::Outdated, "another memory of this name");
    run.done(register("n1", 101, 2));
    assert_eq!(told(&run), Some((5, since)), "a restart is no progress");
    run.done(reachable("n2", 102, false));
    assert_eq!(run.refused(drain("n3")), Refusal::LastNode);
    run.done(purge("n2", 102));
    assert_eq!(run.refused(drain("n2")), Refusal::NodeDead);
    run.done(Command::Activate { node: "n1".into() });
    assert_eq!(told(&run), None);
    run.done(drain("n3"));
}

#[test]
fn a_group_is_founded_once_by_exactly_its_founders() {
    let mut run = Run::with_nodes(4);
    run.done(add("g", 3));
    assert_eq!(run.refused(add("g", 3)), Refusal::GroupExists);
    assert_eq!(run.refused(add(CLUSTER_GROUP, 3)), Refusal::GroupExists);
    let (first, replicas) = (run.incarnation("g"), run.founders("g"));
    assert_eq!(replicas.len(), 3);
    let found =
        |incarnation, replicas: &[_]| Command::Found { group: "g".into(), incarnation, replicas: replicas.to_vec() };
    assert_eq!(run.refused(found(first, &replicas[1..])), Refusal::Outdated, "not all of them");
    run.done(Command::Reform { group: "g".into(), incarnation: first });
    assert_eq!(run.refused(found(first, &replicas)), Refusal::Outdated, "an older attempt");
    let (second, replicas) = (run.incarnation("g"), run.founders("g"));
    assert!(second > first);
    run.done(found(second, &replicas));
    assert_eq!(run.refused(found(second, &replicas)), Refusal::Outdated, "founded already");
    let reform = Command::Reform { group: "g".into(), incarnation: second };
    assert_eq!(run.refused(reform), Refusal::Outdated, "it may have data");
    run.done(Command::SetRunning { group: "g".into(), incarnation: second });
    run.done(Command::SetRunning { group: "g".into(), incarnation: second });
}

#[test]
fn of_new_groups_the_one_that_was_added_first_comes_first() {
    let mut run = Run::with_nodes(3);
    for name in ["z", "b", "a"] {
        run.done(add(name, 3));
    }
    let names: Vec<_> = run.cluster.new_groups().into_iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["z", "b", "a"]);
}

#[test]
fn a_founder_that_lost_its_memory_meanwhile_founds_nothing() {
    let mut run = Run::with_nodes(3);
    run.done(add("g", 3));
    let (incarnation, replicas) = (run.incarnation("g"), run.founders("g"));
    run.done(reachable("n1", 101, false));
    run.done(replacing("n1", 999));
    assert_eq!(run.refused(Command::Found { group: "g".into(), incarnation, replicas }), Refusal::Outdated);
}

#[test]
fn a_removed_group_keeps_its_name_until_every_node_has_cleaned_up() {
    let mut run = Run::with_nodes(3);
    run.done(add("g", 2));
    let incarnation = run.incarnation("g");
    assert_eq!(run.refused(remove("h")), Refusal::GroupNotFound);
    run.done(remove("g"));
    assert_eq!(run.refused(remove("g")), Refusal::GroupNotFound);
    run.done(cleaned_up("n1", "g", incarnation));
    run.done(cleaned_up("n1", "g", incarnation));
    run.done(cleaned_up("n2", "g", incarnation + 1));
    let pending = vec!["n2".to_owned(), "n3".to_owned()];
    assert_eq!(run.refused(add("g", 2)), Refusal::CleanupOngoing { pending });
    run.done(cleaned_up("n2", "g", incarnation));
    run.done(reachable("n3", 103, false));
    run.done(Command::RemoveNode { node: "n3".into() });
    run.done(add("g", 2));
    assert!(run.incarnation("g") > incarnation);
}

#[test]
fn a_dead_node_is_not_waited_for() {
    let mut run = Run::with_nodes(2);
    run.done(add("g", 2));
    run.done(reachable("n1", 101, false));
    run.done(remove("g"));
    run.done(cleaned_up("n2", "g", 3));
    assert!(matches!(run.refused(add("g", 2)), Refusal::CleanupOngoing { .. }));
    run.done(purge("n1", 101));
    run.done(add("g", 2));
    run.done(remove("g"));
    run.done(cleaned_up("n2", "g", 9));
    run.done(add("g", 2));
}

#[test]
fn groups_are_founded_on_nodes_that_answer() {
    let mut run = Run::with_nodes(3);
    run.done(reachable("n1", 101, false));
    run.done(add("g", u32::MAX));
    assert_eq!(run.founders("g").len(), 2);
    run.done(reachable("n2", 102, false));
    run.done(reachable("n3", 103, false));
    assert_eq!(run.refused(add("h", 1)), Refusal::NoNodes);
}

#[test]
fn the_number_of_voters_is_odd_where_that_helps() {
    let expected = [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (6, 5), (100, 5)];
    for (nodes, voters) in expected {
        assert_eq!(voter_count(nodes, 5), voters, "{nodes} nodes");
    }
    assert_eq!(voter_count(100, 7), 7);
    assert_eq!(voter_count(100, 3), 3);
    let mut run = Run::with_nodes(6);
    let zones = |run: &Run| -> BTreeSet<String> {
        run.cluster.voters(3).iter().map(|name| run.cluster.node(name).unwrap().zone.clone()).collect()
    };
    assert_eq!(zones(&run).len(), 2);
    run.done(reachable("n1", 101, false));
    assert_eq!(run.cluster.voters(5).len(), 5);
    run.done(purge("n1", 101));
    assert!(!run.cluster.voters(5).contains(&"n1"));
}

/// A small generator of our own (SplitMix64), so that a seed in a failure message is enough.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn command(&mut self, cluster: &Cluster) -> Command {
        let node = 1 + self.below(4);
        let (name, node_id) = (format!("n{node}"), 100 + node + 10 * self.below(2));
        let group = format!("g{}", self.below(4));
        let incarnation = cluster.group(&group).map_or(0, |group| group.incarnation);
        match self.below(11) {
            0 => register(&name, node_id, self.below(50)),
            1 => replacing(&name, node_id),
            2 => reachable(&name, node_id, false),
            3 => reachable(&name, node_id, true),
            4 => purge(&name, node_id),
            5 => Command::RemoveNode { node: name },
            6 => add(&group, 2),
            7 => Command::Reform { group, incarnation },
            8 => remove(&group),
            9 => {
                let removed: Vec<_> =
                    cluster.removed().map(|(name, group)| (name.clone(), group.incarnation)).collect();
                Command::CleanedUp { node: name, groups: removed }
            }
            _ => Command::Drain { node: name },
        }
    }
}

#[test]
fn a_copy_that_follows_now_and_then_is_equal() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut run = Run::default();
        let mut copies = [Cluster::default(), Cluster::default(), Cluster::default()];
        for _ in 0..random.below(400) {
            let command = random.command(&run.cluster);
            run.reply(command);
            let which = random.below(30) as usize;
            let Some(copy) = copies.get_mut(which) else {
                continue;
            };
            if let Some(delta) = run.cluster.delta(copy.changed_at) {
                let bytes = rafted_value::encode(&delta).unwrap();
                copy.follow(rafted_value::decode(&bytes).unwrap());
                copy.follow(delta);
            }
            let all_but_gone = Cluster { gone: VecDeque::new(), ..run.cluster.clone() };
            assert_eq!(*copy, all_but_gone, "seed {seed}");
        }
    }
}

#[test]
fn a_copy_that_is_far_behind_gets_everything() {
    let mut run = Run::with_nodes(1);
    let mut copy = Cluster::default();
    copy.follow(run.cluster.delta(0).unwrap());
    for _ in 0..MAX_FORGOTTEN {
        run.done(add("g", 1));
        let incarnation = run.incarnation("g");
        run.done(remove("g"));
        run.done(cleaned_up("n1", "g", incarnation));
    }
    assert!(run.cluster.forgotten.len() <= MAX_FORGOTTEN);
    copy.follow(run.cluster.delta(copy.changed_at).unwrap());
    assert_eq!(copy, run.cluster);
}

#[test]
fn the_state_survives_its_encoding() {
    let mut run = Run::with_nodes(3);
    run.done(add("g", 3));
    let bytes = rafted_value::encode(&run.cluster).unwrap();
    assert_eq!(rafted_value::decode::<Cluster>(&bytes).unwrap(), run.cluster);
}
