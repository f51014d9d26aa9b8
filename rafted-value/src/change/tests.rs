//! Every kind of group, and what a leader does next for each request.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::config::GroupConfig;
use crate::status::{LogPosition, Members, Role};

const LAST: u64 = 5_000;

fn id(n: u64) -> ReplicaId {
    ReplicaId::new(n).unwrap()
}

fn member(n: u64, name: &str) -> Member {
    Member { name: name.into(), node: n, zone: String::new(), decided_at: 0, addresses: Vec::new() }
}

/// As replica 1 leads it: voters 1 to `voters`, on nodes of their numbers, all of which answer and have all.
fn group(voters: u64) -> Status {
    let replicas: BTreeMap<_, _> = (1..=voters).map(|n| (id(n), member(n, &format!("n{n}")))).collect();
    Status {
        replica: id(1),
        role: Role::Leader,
        term: 2,
        leader: Some(id(1)),
        matched: replicas.keys().map(|&id| (id, Some(LAST))).collect(),
        members: Members {
            voters: vec![replicas.keys().copied().collect()],
            replicas,
            position: Some(LogPosition { term: 2, index: 9 }),
            committed: true,
        },
        last_log_index: Some(LAST),
        applied: None,
        snapshot: None,
        unresponsive: BTreeMap::new(),
        is_asleep: false,
        config: GroupConfig::default(),
        config_awaits_restart: false,
    }
}

fn silent(mut status: Status, ids: &[u64]) -> Status {
    status.unresponsive.extend(ids.iter().map(|&n| (id(n), Some(Duration::from_secs(9)))));
    status
}

/// With replica `n` on `name` that has entries up to `matched` and no vote.
fn with_learner(mut status: Status, n: u64, name: &str, matched: Option<u64>) -> Status {
    status.members.replicas.insert(id(n), member(n, name));
    status.matched.insert(id(n), matched);
    status
}

fn voters(ids: &[u64]) -> Step {
    Step::ReplaceVoters(ids.iter().map(|&n| id(n)).collect())
}

fn add(n: u64, name: &str) -> Change {
    Change::Add { replica: id(n), member: member(n, name) }
}

fn remove(name: &str) -> Change {
    Change::Remove { name: name.into() }
}

#[test]
fn a_change_is_made_step_by_step() {
    let name = |name: &str| name.to_owned();
    let too_few =
        |answering, needed, voters| Step::Refuse(MembershipError::WouldBreakQuorum { answering, needed, voters });
    let moved = Change::Describe {
        replica: id(2),
        member: Member { addresses: vec![([127, 0, 0, 1], 7).into()], ..member(2, "n2") },
    };
    let mut joint = group(3);
    joint.members.voters.push([id(1), id(2)].into());
    let mut uncommitted = group(3);
    uncommitted.members.committed = false;
    let in_progress = Step::Refuse(MembershipError::ChangeInProgress);
    let already = Step::Refuse(MembershipError::AlreadyJoined { name: name("n2") });
    let leads = Step::Refuse(MembershipError::IsLeader { name: name("n1") });
    let stranger = MembershipError::NotMember { name: name("n9"), members: vec![name("n1"), name("n2"), name("n3")] };
    let table = [
        ("a stranger is let in without a vote", group(3), add(4, "n4"), Step::AddLearner),
        (
            "a replica in place of one that never had a vote",
            with_learner(group(3), 4, "n4", None),
            add(5, "n4"),
            Step::RemoveLearner(id(4)),
        ),
        ("one that was not heard of yet", with_learner(group(3), 4, "n4", None), add(4, "n4"), Step::CatchUp),
        ("one that lacks much", with_learner(group(3), 4, "n4", Some(LAST - 1_001)), add(4, "n4"), Step::CatchUp),
        (
            "one that lacks little",
            with_learner(group(3), 4, "n4", Some(LAST - 1_000)),
            add(4, "n4"),
            voters(&[1, 2, 3, 4]),
        ),
        ("a second member", with_learner(group(1), 2, "n2", Some(LAST)), add(2, "n2"), voters(&[1, 2])),
        (
            "a member whose disk was lost, from a fresh one",
            with_learner(group(3), 4, "n3", Some(LAST)),
            add(4, "n3"),
            voters(&[1, 2, 4]),
        ),
        (
            "a third where one of two is silent",
            silent(with_learner(group(2), 3, "n3", Some(LAST)), &[2]),
            add(3, "n3"),
            voters(&[1, 2, 3]),
        ),
        (
            "a fourth where two of three are silent",
            silent(with_learner(group(3), 4, "n4", Some(LAST)), &[2, 3]),
            add(4, "n4"),
            too_few(2, 3, 4),
        ),
        ("one that has the leader's own name", group(3), add(4, "n1"), leads.clone()),
        (
            "one with a vote to come in the leader's place",
            with_learner(group(3), 4, "n1", Some(LAST)),
            add(4, "n1"),
            leads,
        ),
        ("a member", group(3), add(2, "n2"), already),
        ("a member that is elsewhere now", group(3), moved, Step::Describe),
        (
            "a removed one that is elsewhere now",
            group(3),
            Change::Describe { replica: id(9), member: member(9, "n9") },
            Step::Refuse(stranger.clone()),
        ),
        ("a follower leaves", group(3), remove("n3"), voters(&[1, 2])),
        ("a silent follower leaves", silent(group(3), &[3]), remove("n3"), voters(&[1, 2])),
        ("a live one where the other is silent", silent(group(3), &[3]), remove("n2"), too_few(1, 2, 2)),
        ("one of two", group(2), remove("n2"), voters(&[1])),
        ("the silent one of two", silent(group(2), &[2]), remove("n2"), voters(&[1])),
        ("a learner leaves", with_learner(group(3), 4, "n4", None), remove("n4"), Step::RemoveLearner(id(4))),
        ("the leader", group(3), remove("n1"), Step::Refuse(MembershipError::IsLeader { name: name("n1") })),
        ("the only member", group(1), remove("n1"), Step::Refuse(MembershipError::IsLeader { name: name("n1") })),
        ("a stranger", group(3), remove("n9"), Step::Refuse(stranger)),
        ("while a change is half done", joint, remove("n3"), in_progress.clone()),
        ("while a change is not committed", uncommitted, add(4, "n4"), in_progress),
    ];
    for (case, status, change, expected) in table {
        assert_eq!(next(&status, &change), expected, "{case}");
    }
}

#[test]
fn only_a_voter_that_answers_becomes_the_heir() {
    let status = with_learner(silent(group(3), &[3]), 4, "n4", Some(LAST));
    assert_eq!(heir(&status, "n1"), Ok(id(1)));
    assert_eq!(heir(&status, "n2"), Ok(id(2)));
    let silent_for = Some(Duration::from_secs(9));
    assert_eq!(heir(&status, "n3"), Err(MembershipError::Unresponsive { name: "n3".into(), silent_for }));
    assert_eq!(heir(&status, "n4"), Err(MembershipError::NotVoter { name: "n4".into() }));
    assert!(matches!(heir(&status, "n9"), Err(MembershipError::NotMember { .. })));
}
