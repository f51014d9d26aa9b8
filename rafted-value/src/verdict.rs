//! Whether a restarted member of a lone group may take part, from what the others say of its directory: a pure function.
//!
//! A directory that was rolled back has forgotten votes and entries that others count on; its replica must neither vote
//! nor take entries. Others know two things of a directory: its latest start (`starts.rs`), which every start tells all
//! members, and, whoever leads or led, how many entries the replica has said to have. Both refute; nobody can prove. So a
//! replica takes part once as many other voters as make a majority with it have been asked and none refutes it: without a
//! majority the group would do nothing in any case. What is missed: a start of which all that heard are down, a copy that
//! lacks nothing but votes of the start in which it was taken, a copy from a time when the group had no other member, and
//! one whose members of that time were all removed while they were down, and come back with it before a present one calls.
//!
//! What a leader of term T was told holds for ever for a replica whose latest vote is of T or an earlier term: entries that
//! it has said in T to have could only be replaced by the leader of a later term, and its vote is written before.

use std::collections::BTreeSet;

use crate::status::{Members, ReplicaId};

/// What another member says.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    pub(crate) from: ReplicaId,
    /// The node that was asked.
    pub(crate) node: String,
    /// It has seen a start of the directory that the directory does not know.
    pub(crate) knows_more: bool,
    /// The members as it knows them.
    pub(crate) members: Members,
    /// What the replica has told it as its leader.
    pub(crate) told: Option<ToldLeader>,
}

/// So many entries the replica has said to have, in this term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ToldLeader {
    pub(crate) term: u64,
    pub(crate) entries: u64,
}

/// The replica as it was when it started.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) replica: ReplicaId,
    /// Entries in its log, with those in its snapshot.
    pub(crate) entries: u64,
    /// Of its latest vote; 0 without one.
    pub(crate) term: u64,
    /// The newest members in its log, and the newest that it knows to be committed.
    pub(crate) members: [Members; 2],
}

/// Who is asked where no membership is known, besides the replica itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// The other founding members.
    Founders(BTreeSet<String>),
    /// Those through whom it joins; none if it waits to be added.
    Sponsors(BTreeSet<String>),
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    TakesPart,
    /// Too few have said something.
    Waits,
    RolledBack(Evidence),
}

/// What refutes that a directory is the newest of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// A member has seen a start that the directory does not know.
    Start { node: String },
    /// The replica has said to have more entries than there are.
    Entries { node: String, said: u64, found: u64 },
}

/// Judges a replica.
pub(crate) fn judge(found: &Found, told: &Told, words: &[Word]) -> Verdict {
    if let Some(evidence) = words.iter().find_map(|word| refute(word, found)) {
        return Verdict::RolledBack(evidence);
    }
    let me = found.replica;
    // The own log may be long behind, and those that it names gone. One that leaves this replica out has no say for it.
    let said = words.iter().map(|word| &word.members).filter(|members| members.replicas.contains_key(&me));
    let known = said.chain(&found.members).filter(|members| members.position.is_some());
    let newest = known.clone().max_by_key(|members| members.position);
    // A change that a lost leader left uncommitted may be known here only; the group goes by the one before it.
    let committed = known.filter(|members| members.committed).max_by_key(|members| members.position);
    let is_enough = match newest {
        Some(newest) => {
            [Some(newest), committed].into_iter().flatten().any(|members| have_majorities(me, members, words))
        }
        None => have_spoken(told, words),
    };
    if is_enough { Verdict::TakesPart } else { Verdict::Waits }
}

fn refute(word: &Word, found: &Found) -> Option<Evidence> {
    if word.knows_more {
        return Some(Evidence::Start { node: word.node.clone() });
    }
    let said = word.told.filter(|told| told.term >= found.term && told.entries > found.entries)?;
    Some(Evidence::Entries { node: word.node.clone(), said: said.entries, found: found.entries })
}

fn have_majorities(me: ReplicaId, members: &Members, words: &[Word]) -> bool {
    members.voters.iter().all(|set| has_majority(me, set, words))
}

fn has_majority(me: ReplicaId, set: &BTreeSet<ReplicaId>, words: &[Word]) -> bool {
    let has_spoken = |id: &&ReplicaId| **id == me || words.iter().any(|word| word.from == **id);
    set.iter().filter(has_spoken).count() > set.len() / 2
}

/// Whether enough of those have that it was told of, while it knows no members.
fn have_spoken(told: &Told, words: &[Word]) -> bool {
    let count =
        |names: &BTreeSet<String>| names.iter().filter(|name| words.iter().any(|word| word.node == **name)).count();
    match told {
        Told::Founders(others) => 2 * (count(others) + 1) > others.len() + 1,
        Told::Sponsors(names) => count(names) > 0,
    }
}

#[cfg(test)]
mod tests;
