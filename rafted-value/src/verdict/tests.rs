//! Who must have spoken, and what refutes.

use super::*;
use crate::status::{LogPosition, Member};

fn id(id: u64) -> ReplicaId {
    ReplicaId::new(id).unwrap()
}

fn sets(sets: &[&[u64]]) -> Vec<BTreeSet<ReplicaId>> {
    sets.iter().map(|set| set.iter().copied().map(id).collect()).collect()
}

/// As of some entry; the voters are all members.
fn members_at(index: u64, voters: &[&[u64]]) -> Members {
    let voters = sets(voters);
    let member = Member { name: String::new(), node: 0, zone: String::new(), decided_at: 0, addresses: Vec::new() };
    let replicas = voters.iter().flatten().map(|&id| (id, member.clone())).collect();
    Members { replicas, voters, position: Some(LogPosition { term: 1, index }), committed: true }
}

fn members(voters: &[&[u64]]) -> Members {
    members_at(3, voters)
}

/// Nothing is known against the directory.
fn word(from: u64) -> Word {
    let (node, members) = (format!("n{from}"), Members::default());
    Word { from: id(from), node, knows_more: false, members, told: None }
}

fn led(from: u64, term: u64, entries: u64) -> Word {
    Word { told: Some(ToldLeader { term, entries }), ..word(from) }
}

/// Replica 1 with 10 entries and a vote of term 5.
fn found(members: [Members; 2]) -> Found {
    Found { replica: id(1), entries: 10, term: 5, members }
}

fn verdict(own: &Members, words: &[Word]) -> Verdict {
    judge(&found([own.clone(), own.clone()]), &Told::Sponsors(BTreeSet::new()), words)
}

#[test]
fn a_majority_with_itself_is_asked_and_nobody_more() {
    let said = |count: u64| (2..2 + count).map(word).collect::<Vec<_>>();
    for (voters, needed) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (7, 3)] {
        let all: Vec<u64> = (1..=voters).collect();
        let own = members(&[&all]);
        for count in 0..voters {
            let expected = if count >= needed { Verdict::TakesPart } else { Verdict::Waits };
            assert_eq!(verdict(&own, &said(count)), expected, "{count} of {voters}");
        }
    }
}

#[test]
fn who_does_not_vote_counts_for_nothing() {
    assert_eq!(verdict(&members(&[&[1, 2, 3]]), &[word(4), word(5), word(6)]), Verdict::Waits);
    assert_eq!(verdict(&members(&[&[2, 3, 4]]), &[word(2)]), Verdict::Waits, "itself does not vote");
    assert_eq!(verdict(&members(&[&[2, 3, 4]]), &[word(2), word(4)]), Verdict::TakesPart);
    let twice = [word(2), word(2)];
    assert_eq!(verdict(&members(&[&[1, 2, 3, 4, 5]]), &twice), Verdict::Waits, "one voter is one");
}

#[test]
fn both_halves_of_a_change_must_be_asked() {
    let own = members(&[&[1, 2, 3], &[1, 4, 5]]);
    assert_eq!(verdict(&own, &[word(2), word(3)]), Verdict::Waits);
    assert_eq!(verdict(&own, &[word(2), word(5)]), Verdict::TakesPart);
}

#[test]
fn one_that_knows_more_is_enough_to_refute() {
    let knows_more = Word { knows_more: true, ..word(9) };
    let own = members(&[&[1, 2, 3]]);
    let expected = Verdict::RolledBack(Evidence::Start { node: "n9".into() });
    assert_eq!(verdict(&own, &[word(2), word(3), knows_more]), expected);
}

#[test]
fn whoever_led_knows_how_many_entries_there_were() {
    let own = members(&[&[1, 2, 3]]);
    let refuted = Verdict::RolledBack(Evidence::Entries { node: "n2".into(), said: 11, found: 10 });
    assert_eq!(verdict(&own, &[led(2, 5, 10)]), Verdict::TakesPart);
    assert_eq!(verdict(&own, &[led(2, 7, 3)]), Verdict::TakesPart, "this leader was told of less so far");
    assert_eq!(verdict(&own, &[word(3), led(2, 5, 11)]), refuted);
    assert_eq!(verdict(&own, &[led(2, 9, 11), word(3)]), refuted, "its vote is forgotten, too");
    assert_eq!(verdict(&own, &[led(2, 4, 11)]), Verdict::TakesPart, "a later leader may have replaced them");
}

#[test]
fn a_change_that_may_not_hold_is_no_obstacle() {
    let (before, change) = (members_at(3, &[&[1, 2, 3]]), members_at(6, &[&[1, 2, 3], &[1, 2, 3, 4, 5]]));
    let own = [Members { committed: false, ..change }, before];
    let judged = |words: &[Word]| judge(&found(own.clone()), &Told::Sponsors(BTreeSet::new()), words);
    assert_eq!(judged(&[]), Verdict::Waits);
    assert_eq!(judged(&[word(4)]), Verdict::Waits);
    assert_eq!(judged(&[word(2)]), Verdict::TakesPart);
}

#[test]
fn the_newest_members_that_anybody_knows_count() {
    let gone = members(&[&[1, 8, 9]]);
    let knows = |from, members| Word { members, ..word(from) };
    assert_eq!(verdict(&gone, &[knows(2, members_at(7, &[&[1, 2, 3]]))]), Verdict::TakesPart);
    assert_eq!(verdict(&gone, &[knows(2, members_at(7, &[&[1, 2, 3, 4, 5]]))]), Verdict::Waits, "one more is needed");
    assert_eq!(verdict(&gone, &[knows(2, members_at(7, &[&[2, 3, 4]]))]), Verdict::Waits, "it is none of them");
    assert_eq!(verdict(&gone, &[knows(2, members_at(2, &[&[1, 2, 3]]))]), Verdict::Waits, "they are older");
    let several = [knows(2, members_at(7, &[&[1, 2, 3]])), knows(4, members_at(9, &[&[1, 4, 5, 6, 7]]))];
    assert_eq!(verdict(&gone, &several), Verdict::Waits);
}

#[test]
fn without_members_those_count_of_whom_it_was_told() {
    let judged = |told: &Told, words: &[Word]| judge(&found(Default::default()), told, words);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    for (others, needed) in [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2)] {
        let told: BTreeSet<String> = (2..2 + others).map(|n| format!("n{n}")).collect();
        for count in 0..=others {
            let words: Vec<_> = (2..2 + count).map(word).collect();
            let expected = if count >= needed { Verdict::TakesPart } else { Verdict::Waits };
            assert_eq!(judged(&Told::Founders(told.clone()), &words), expected, "{count} of {others} others");
        }
    }
    let sponsors = Told::Sponsors(names(&["n2", "n3"]));
    assert_eq!(judged(&sponsors, &[]), Verdict::Waits);
    assert_eq!(judged(&sponsors, &[word(4)]), Verdict::Waits, "nobody told of that one");
    assert_eq!(judged(&sponsors, &[word(3)]), Verdict::TakesPart);
    let nobody = Told::Sponsors(names(&[]));
    assert_eq!(judged(&nobody, &[word(2)]), Verdict::Waits);
    let knows_me = Word { members: members(&[&[1, 2, 3]]), ..word(2) };
    assert_eq!(judged(&nobody, &[knows_me]), Verdict::TakesPart, "a member says who they are");
}
