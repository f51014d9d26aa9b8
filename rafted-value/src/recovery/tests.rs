//! Plans: who decides, who stays, what may be lost, and when there is none.

use super::*;

fn id(n: u64) -> ReplicaId {
    ReplicaId::new(n).unwrap()
}

fn at(term: u64, index: u64) -> Option<LogPosition> {
    Some(LogPosition { term, index })
}

fn member(n: u64) -> Member {
    Member { name: format!("n{n}"), node: n, zone: String::new(), decided_at: 0, addresses: Vec::new() }
}

/// Replica `n` of a group of `voters`, which voted in term 7 and has entries up to `last`, of which it knows the
/// first 91 to be committed.
fn report(n: u64, voters: u64, last: Option<LogPosition>) -> RecoveryReport {
    RecoveryReport {
        group: "g".into(),
        incarnation: 3,
        replica: id(n),
        node: format!("n{n}"),
        term: 7,
        last,
        committed: at(5, 90),
        members: Members {
            replicas: (1..=voters).map(|n| (id(n), member(n))).collect(),
            voters: vec![(1..=voters).map(id).collect()],
            position: at(1, 0),
            committed: true,
        },
    }
}

#[test]
fn the_newest_log_decides_by_term_then_index() {
    let table = [
        ("a later term beats a longer log", at(6, 100), at(5, 200), 1),
        ("in the same term the longer one", at(6, 100), at(6, 101), 2),
        ("any log beats none", None, at(1, 0), 2),
    ];
    for (case, one, two, chosen) in table {
        let plan = plan(&[report(1, 5, one), report(2, 5, two)]).unwrap();
        assert_eq!(plan.chosen, id(chosen), "{case}");
        assert_eq!(plan.last, one.max(two), "{case}");
    }
}

#[test]
fn a_plan_says_who_stays_who_is_given_up_and_what_may_be_lost() {
    let plan = plan(&[report(4, 5, at(6, 120)), report(2, 5, at(6, 99))]).unwrap();
    assert_eq!((plan.incarnation, plan.term), (4, 7 + (1 << 20)));
    assert_eq!(plan.members.keys().copied().collect::<Vec<_>>(), [id(2), id(4)]);
    assert_eq!(plan.lost.keys().copied().collect::<Vec<_>>(), [id(1), id(3), id(5)]);
    assert_eq!(plan.uncertain_entries, 30, "121 entries, of which 91 are known to be committed");
    assert!(plan.may_lose_acknowledged, "three of five may have had a command without these two");
    let text = plan.to_string();
    for part in ["incarnation 4 with n2, n4", "log of n4", "given up: n1, n3, n5", "30 entries", "MAY BE LOST"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn half_of_an_even_group_has_all_that_was_acknowledged() {
    let two_of_four = plan(&[report(1, 4, at(6, 99)), report(2, 4, at(6, 99))]).unwrap();
    assert!(!two_of_four.may_lose_acknowledged, "each three of four meet them");
    let mut pending = report(1, 4, at(6, 99));
    pending.members.committed = false;
    let unsure = plan(&[pending, report(2, 4, at(6, 98))]).unwrap();
    assert!(unsure.may_lose_acknowledged, "who the members are is not known for sure");
}

#[test]
fn the_term_is_above_all_that_reported() {
    let mut voted = report(1, 5, at(6, 10));
    voted.term = 90;
    assert_eq!(plan(&[voted, report(2, 5, at(6, 99))]).unwrap().term, 90 + RECOVERY_TERM_STEP);
    let mut behind = report(1, 5, at(200, 10));
    behind.term = 0;
    assert_eq!(plan(&[behind]).unwrap().term, 200 + RECOVERY_TERM_STEP);
}

#[test]
fn replicas_of_an_older_incarnation_and_removed_ones_are_strangers() {
    let mut older = report(2, 5, at(9, 999));
    older.incarnation = 2;
    let removed = report(9, 5, at(9, 999));
    let plan = plan(&[report(1, 5, at(6, 99)), older, removed]).unwrap();
    assert_eq!(plan.chosen, id(1));
    assert_eq!(plan.members.len(), 1);
    assert_eq!(plan.strangers, [id(2), id(9)].into());
}

#[test]
fn there_is_no_plan_where_none_is_needed_or_possible() {
    assert_eq!(plan(&[]), Err(PlanError::NoReports));
    let majority = plan(&[report(1, 3, None), report(2, 3, None)]);
    assert_eq!(majority, Err(PlanError::MajoritySurvives { group: "g".into(), survivors: 2, voters: 3 }));
    let mut other = report(2, 5, None);
    other.group = "h".into();
    assert_eq!(plan(&[report(1, 5, None), other]), Err(PlanError::TwoGroups { one: "g".into(), other: "h".into() }));
    let twice = plan(&[report(1, 5, None), report(1, 5, None)]);
    assert_eq!(twice, Err(PlanError::ReportedTwice { replica: id(1), node: "n1".into() }));
    let mut stranger = report(1, 5, None);
    stranger.members.replicas.clear();
    assert_eq!(plan(&[stranger]), Err(PlanError::NoMember { group: "g".into() }));
}

#[test]
fn the_survivors_remember_at_which_index_a_lost_member_was_decided() {
    let mut report = report(1, 3, at(6, 120));
    report.members.replicas.insert(id(3), Member { decided_at: 77, ..member(3) });
    let plan = plan(&[report]).unwrap();
    assert_eq!(plan.members[&id(1)].decided_at, 77);
}
