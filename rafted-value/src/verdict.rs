//! Whether a restarted member of a lone group may take part, from what the others say of its directory: a pure function.
//!
//! A directory that was rolled back has forgotten votes and entries that others count on; its replica must neither vote
//! nor take entries. Others know two things of a directory: its latest start (`starts.rs`), which every start tells all
//! members, and, the leader, how many entries the replica has said to have. Both refute; nobody can prove. So a replica
//! takes part once as many other voters as make a majority with it have been asked and none refutes it: a group has no
//! use for it before in any case. A start is missed only if all members to which it was told are down.
//!
//! A leader counts only if a majority has confirmed it after it was asked. A deposed one may remember entries that its
//! successor has replaced; while a leader is confirmed, there has been no successor.

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
    /// From a leader that a majority has confirmed after it was asked: so many entries are in the replica's log, as the
    /// replica has said itself in this leader's term.
    pub(crate) entries: Option<u64>,
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

/// Judges replica `me`, whose log holds `entries` entries and says that `own` are the members.
pub(crate) fn judge(me: ReplicaId, entries: u64, own: &Members, told: &Told, words: &[Word]) -> Verdict {
    if let Some(evidence) = words.iter().find_map(|word| refute(word, entries)) {
        return Verdict::RolledBack(evidence);
    }
    // The own log may be long behind, and those that it names gone. One that leaves this replica out has no say for it.
    let known = words.iter().map(|word| &word.members).filter(|members| members.replicas.contains_key(&me));
    let newest = known.chain([own]).max_by_key(|members| members.position).filter(|members| members.position.is_some());
    let is_enough = match newest {
        Some(members) => members.voters.iter().all(|set| has_majority(me, set, words)),
        // A leader that does not count it as a member does not count its votes either.
        None => words.iter().any(|word| word.entries.is_some()) || have_spoken(told, words),
    };
    if is_enough { Verdict::TakesPart } else { Verdict::Waits }
}

fn refute(word: &Word, found: u64) -> Option<Evidence> {
    if word.knows_more {
        return Some(Evidence::Start { node: word.node.clone() });
    }
    let said = word.entries.filter(|&said| said > found)?;
    Some(Evidence::Entries { node: word.node.clone(), said, found })
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
