//! What is found out about groups, and how a plan is kept.

use std::collections::BTreeMap;

use rafted_value::{Context, Value};

use super::*;
use crate::cluster::{Command, Registration};
use crate::report::LogEnd;

/// Nodes n1 to n5 with memories 1 to 5, and a group that runs.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    let mut commands = Vec::new();
    for n in 1..=5_u64 {
        commands.push(Command::Register(Registration {
            node: format!("n{n}"),
            node_id: n,
            starts: vec![(1, 100)],
            start: n,
            zone: "z".into(),
            address: "127.0.0.1:1".into(),
            attributes: BTreeMap::new(),
            replace: false,
        }));
    }
    commands.push(Command::AddGroup { group: "g".into(), type_name: "t".into(), replicas: 3 });
    for command in commands {
        run(&mut cluster, command);
    }
    let GroupPhase::Forming { founders } = cluster.group("g").unwrap().phase.clone() else { panic!() };
    let node_id = |name: &String| name[1..].parse().unwrap();
    let replicas = founders.iter().map(|name| (name.clone(), node_id(name), 10 * node_id(name))).collect();
    let incarnation = incarnation(&cluster);
    run(&mut cluster, Command::Found { group: "g".into(), incarnation, replicas });
    run(&mut cluster, Command::SetRunning { group: "g".into(), incarnation });
    cluster
}

fn run(cluster: &mut Cluster, command: Command) {
    let what = format!("{command:?}");
    let reply = cluster.command_in(&Context::new(Default::default(), cluster.changed_at + 1, None), command);
    assert!(matches!(reply, crate::cluster::Reply::Done { .. }), "{what}: {reply:?}");
}

fn incarnation(cluster: &Cluster) -> u64 {
    cluster.group("g").unwrap().incarnation
}

fn seat(n: u64) -> Seat {
    Seat { replica: 10 * n, node: format!("n{n}"), node_id: n, zone: "z".into(), decided_at: 0 }
}

/// The report of the replica on node `n` of a group on n1, n2 and n3.
fn report(n: u64, incarnation: u64, last: u64) -> Report {
    Report {
        group: "g".into(),
        incarnation,
        replica: 10 * n,
        node: format!("n{n}"),
        leads: false,
        term: 5,
        last: Some(LogEnd { term: 4, index: last }),
        committed: Some(LogEnd { term: 4, index: 90 }),
        seats: (1..=3).map(seat).collect(),
        voters: vec![BTreeSet::from([10, 20, 30])],
        members_at: Some(LogEnd { term: 1, index: 0 }),
        members_are_committed: true,
    }
}

fn survey(reports: Vec<Report>, answered: &[u64]) -> Survey {
    Survey { reports, answered: answered.iter().copied().collect() }
}

fn judged(cluster: &Cluster, survey: &Survey) -> Finding {
    judge(cluster, survey, "g", cluster.group("g").unwrap())
}

fn planned(cluster: &Cluster, survey: &Survey) -> GroupRecovery {
    match judged(cluster, survey) {
        Finding::Recoverable(recovery) => *recovery,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_a_group_without_a_majority_is_planned_for() {
    let cluster = cluster();
    let now = incarnation(&cluster);
    let all = survey(vec![report(1, now, 100), report(2, now, 99)], &[1, 2, 3, 4, 5]);
    assert_eq!(judged(&cluster, &all), Finding::GoesOn);
    let mut led = survey(vec![report(1, now, 100)], &[1]);
    led.reports[0].leads = true;
    assert_eq!(judged(&cluster, &led), Finding::Led);
    let nobody = survey(Vec::new(), &[4, 5]);
    assert!(matches!(judged(&cluster, &nobody), Finding::Hopeless(_)));
    let old = survey(vec![report(1, now - 1, 100)], &[1]);
    assert!(matches!(judged(&cluster, &old), Finding::Hopeless(_)), "a replica of an ended incarnation is none of it");
}

#[test]
fn a_plan_says_whose_log_decides_and_why_each_of_the_others_is_given_up() {
    let mut cluster = cluster();
    let now = incarnation(&cluster);
    run(&mut cluster, Command::SetReachable { node: "n1".into(), node_id: 1, reachable: false });
    run(&mut cluster, Command::Purge { node: "n1".into(), node_id: 1 });
    let one = survey(vec![report(2, now, 100)], &[2, 3, 4, 5]);
    let plan = planned(&cluster, &one);
    assert_eq!((plan.chosen.as_str(), &*plan.survivors), ("n2", ["n2".to_owned()].as_slice()));
    assert_eq!((plan.entries, plan.uncertain_entries, plan.may_lose_acknowledged), (101, 10, true));
    let absences: Vec<_> = plan.fenced.iter().map(|fenced| (fenced.node.as_str(), fenced.absence)).collect();
    assert_eq!(absences, [("n1", Absence::Dead), ("n3", Absence::Missing)]);
    let (members, is_lost) = members_of(&cluster, &one, "g", cluster.group("g").unwrap());
    assert_eq!(members[1], ("n2".to_owned(), None));
    assert!(is_lost, "n1 is dead, and n3 has no replica any more");
    let (members, is_lost) =
        members_of(&cluster, &survey(vec![report(2, now, 100)], &[2]), "g", cluster.group("g").unwrap());
    assert_eq!(members[2], ("n3".to_owned(), Some(Absence::Unreachable)));
    assert!(!is_lost, "n2 and n3 would be a majority");
    let text = plan.to_string();
    for part in ["goes on with n2", "101 entries", "n1 (dead)", "MAY BE LOST"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_written_plan_is_read_and_anything_else_is_refused() {
    let cluster = cluster();
    let mut plan = RecoveryPlan::new(ClusterKey { id: 7, generation: 1 });
    plan.add("g", judged(&cluster, &survey(vec![report(2, incarnation(&cluster), 100)], &[2])));
    plan.add("h", Finding::Hopeless("nothing".into()));
    plan.add("i", Finding::GoesOn);
    assert_eq!((plan.groups.len(), plan.hopeless.len()), (1, 1));
    let text = plan.to_text();
    assert_eq!(RecoveryPlan::from_text(&text), Ok(plan));
    assert!(RecoveryPlan::from_text(&format!("{}\n{}\n", &text[..40], &text[40..])).is_ok(), "lines may be broken");
    for wrong in ["", "0", "zz", "02ff", &text[..text.len() - 2], "01"] {
        assert!(RecoveryPlan::from_text(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_decided_recovery_is_not_planned_again_unless_a_survivor_changed_or_went() {
    let mut cluster = cluster();
    let ended = incarnation(&cluster);
    let two = survey(vec![report(1, ended, 100)], &[1]);
    let recovery = planned(&cluster, &two).recovery().clone();
    run(&mut cluster, Command::Recover { group: "g".into(), recovery: recovery.clone() });
    let now = incarnation(&cluster);
    assert!(now > ended);
    assert_eq!(judged(&cluster, &two), Finding::BeingRecovered);
    assert_eq!(judged(&cluster, &survey(vec![report(1, now, 101)], &[1])), Finding::BeingRecovered);
    let again = planned(&cluster, &survey(vec![report(1, ended, 105)], &[1]));
    assert_eq!((again.recovery().ended, again.entries), (now, 106), "it has changed in between");
    // One that was given up is no witness of anything any more.
    let fenced = survey(vec![report(2, ended, 200), report(3, ended, 200)], &[2, 3]);
    assert!(matches!(judged(&cluster, &fenced), Finding::Hopeless(_)));
    // The same recovery again changes nothing; another one of the ended incarnation is refused.
    let before = cluster.clone();
    run(&mut cluster, Command::Recover { group: "g".into(), recovery: recovery.clone() });
    assert_eq!(cluster, before);
    let other = Recovery { last: None, ..recovery };
    let context = Context::new(Default::default(), cluster.changed_at + 1, None);
    let reply = cluster.command_in(&context, Command::Recover { group: "g".into(), recovery: other });
    assert_eq!(reply, crate::cluster::Reply::Refused(crate::cluster::Refusal::Outdated));
    run(&mut cluster, Command::SetRunning { group: "g".into(), incarnation: now });
    assert_eq!(cluster.group("g").unwrap().phase, GroupPhase::Running);
}
