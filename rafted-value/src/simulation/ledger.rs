//! What has run, and what clients were told: judged as it happens, so that what is wrong is known at the step at which
//! it goes wrong.
//!
//! ```text
//! an entry runs       it is the next of the list, on each node the same, and was asked for, once, and not refused
//! a value is looked at it is exactly the list up to the entry that it has applied
//! a command is answered  it is where the answer says, behind all that was told before it was asked for
//! a read is answered  the list was so once, and then all was in it that was told before the read was asked for
//! ```
//!
//! The list is the order in which commands took effect, so that these are all the conditions of linearizability (Herlihy
//! and Wing 1990): nothing has to be searched.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::value::{Change, chained};

/// A run of virtual time, from its start.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// By index of the log: what ran, as the first node ran it.
    ran: BTreeMap<u64, Ran>,
    /// The list: by place, the first being 1, the hash up to there.
    hashes: Vec<u64>,
    /// Where each item is.
    places: BTreeMap<u64, u64>,
    /// Items from 1 up to this were asked for.
    asked_for: u64,
    /// Items of which a client was told that they were not appended.
    refused: BTreeSet<u64>,
    /// When it was told that the list is so long; both grow.
    told: Vec<(Duration, u64)>,
    /// The settings, by the index up to which entries were applied where they were seen; settings are known by number.
    settings: BTreeMap<u64, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Ran {
    change: Change,
    /// The list behind it.
    length: u64,
    hash: u64,
}

impl Ledger {
    /// A client is about to ask for an item; items are numbered from 1 on.
    pub(crate) fn next_item(&mut self) -> u64 {
        self.asked_for += 1;
        self.asked_for
    }

    /// The length of which somebody was told.
    pub(crate) fn told(&self) -> u64 {
        self.told.last().map_or(0, |&(_, length)| length)
    }

    /// The length of which somebody was told before a moment.
    pub(crate) fn told_before(&self, at: Duration) -> u64 {
        let before = self.told.partition_point(|&(told_at, _)| told_at < at);
        before.checked_sub(1).map_or(0, |last| self.told[last].1)
    }

    /// The last index of the log that holds a command which ran.
    pub(crate) fn last_index(&self) -> u64 {
        self.ran.last_key_value().map_or(0, |(&index, _)| index)
    }

    /// A node has run an entry, and has this list now.
    pub(crate) fn runs(&mut self, index: u64, change: Change, length: u64, hash: u64) -> Result<(), String> {
        let ran = Ran { change, length, hash };
        if let Some(first) = self.ran.get(&index) {
            return if *first == ran {
                Ok(())
            } else {
                Err(format!("{ran:x?} at index {index}, where {first:x?} ran"))
            };
        }
        let last = self.last_index();
        if index < last {
            return Err(format!("{change:?} runs at index {index}, which others that are at {last} passed over"));
        }
        let (before, hash_before) = (self.length(), self.hash(self.length()));
        let expected = match change {
            Change::Append(item) => Ran { change, length: before + 1, hash: chained(hash_before, item) },
            Change::Pad(_) => Ran { change, length: before, hash: hash_before },
        };
        if ran != expected {
            return Err(format!("{ran:x?} at index {index}, where {expected:x?} is next"));
        }
        if let Change::Append(item) = change {
            self.append(item, hash)?;
        }
        self.ran.insert(index, ran);
        Ok(())
    }

    fn append(&mut self, item: u64, hash: u64) -> Result<(), String> {
        let place = self.length() + 1;
        if item == 0 || item > self.asked_for {
            return Err(format!("nobody asked for {item}, which is at {place}"));
        }
        if self.refused.contains(&item) {
            return Err(format!("{item} is at {place}, and its client was told that it did not happen"));
        }
        if let Some(before) = self.places.insert(item, place) {
            return Err(format!("{item} runs twice: it is at {before} and at {place}"));
        }
        self.hashes.push(hash);
        Ok(())
    }

    /// A node that has applied all up to `index` has this list.
    pub(crate) fn sees_state(&self, index: u64, length: u64, hash: u64) -> Result<(), String> {
        let expected = self.ran.range(..=index).next_back().map_or((0, 0), |(_, ran)| (ran.length, ran.hash));
        if (length, hash) == expected {
            return Ok(());
        }
        Err(format!("{length} items ({hash:x}) at index {index}, where others have {} ({:x})", expected.0, expected.1))
    }

    /// Nobody leads in a higher term than a replica whose log ends at `last`: it must have all that ever ran.
    pub(crate) fn sees_newest_leader(&self, last: Option<u64>) -> Result<(), String> {
        if self.ran.is_empty() || last >= Some(self.last_index()) {
            return Ok(());
        }
        Err(format!("its log ends at {last:?} though it leads, and entry {} ran", self.last_index()))
    }

    /// A replica that has applied all up to `index` has these settings.
    pub(crate) fn sees_settings(&mut self, index: u64, settings: u64) -> Result<(), String> {
        match *self.settings.entry(index).or_insert(settings) {
            first if first == settings => Ok(()),
            first => Err(format!("settings {settings} at index {index}, where others have {first}")),
        }
    }

    /// A client is told that its item is at a place; `told` is what was told when it asked.
    pub(crate) fn acknowledges(&mut self, item: u64, place: u64, told: u64, now: Duration) -> Result<(), String> {
        match self.places.get(&item) {
            Some(&found) if found == place => {}
            found => return Err(format!("{item} is acknowledged as number {place}, and is at {found:?}")),
        }
        if place <= told {
            return Err(format!("{item} is at {place}, but {told} were told before it was asked for"));
        }
        self.tell(place, now);
        Ok(())
    }

    /// A client is told that its item was not appended, and never will be.
    pub(crate) fn refuses(&mut self, item: u64) -> Result<(), String> {
        self.refused.insert(item);
        match self.places.get(&item) {
            Some(place) => Err(format!("{item} is at {place}, and its client is told that it did not happen")),
            None => Ok(()),
        }
    }

    /// A client is told what the list is; it must have `needed` items.
    pub(crate) fn answers(&mut self, length: u64, hash: u64, needed: u64) -> Result<(), String> {
        if length > self.length() || self.hash(length) != hash {
            return Err(format!("a read sees {length} items ({hash:x}), which never were"));
        }
        if length < needed {
            return Err(format!("a read sees {length} items, but {needed} were told before it was asked for"));
        }
        Ok(())
    }

    /// Somebody knows now that the list is so long. Of reads that may be old, this is not said: they promise nobody
    /// anything.
    pub(crate) fn tell(&mut self, length: u64, now: Duration) {
        if length > self.told() {
            self.told.push((now, length));
        }
    }

    fn length(&self) -> u64 {
        self.hashes.len() as u64
    }

    fn hash(&self, length: u64) -> u64 {
        let last = length.checked_sub(1).and_then(|last| self.hashes.get(last as usize));
        last.copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens; each is judged when it does.
    #[derive(Clone, Copy)]
    enum Event {
        Ask,
        Runs(u64, Change),
        /// The first node's value was not what a node runs on now.
        RunsElsewhere(u64, Change, u64),
        State(u64, u64),
        Acknowledge(u64, u64, u64),
        Refuse(u64),
        /// Length, needed.
        Read(u64, u64),
        ReadWithin(u64, u64),
    }

    fn hash_of(length: u64) -> u64 {
        (1..=length).fold(0, chained)
    }

    fn judge(events: &[Event]) -> Result<(), String> {
        let mut ledger = Ledger::default();
        let mut length = 0;
        for (at, &event) in (1..).zip(events) {
            let now = Duration::from_millis(10 * at);
            match event {
                Event::Ask => drop(ledger.next_item()),
                Event::Runs(index, change) => {
                    let is_append = matches!(change, Change::Append(_));
                    length += u64::from(is_append);
                    let before = hash_of(length - u64::from(is_append));
                    let hash = if let Change::Append(item) = change { chained(before, item) } else { before };
                    ledger.runs(index, change, length, hash)?;
                }
                Event::RunsElsewhere(index, change, length) => ledger.runs(index, change, length, hash_of(length))?,
                Event::State(index, length) => ledger.sees_state(index, length, hash_of(length))?,
                Event::Acknowledge(item, place, told) => ledger.acknowledges(item, place, told, now)?,
                Event::Refuse(item) => ledger.refuses(item)?,
                Event::Read(length, needed) => {
                    ledger.answers(length, hash_of(length), needed)?;
                    ledger.tell(length, now);
                }
                Event::ReadWithin(length, age) => {
                    let needed = ledger.told_before(now.saturating_sub(Duration::from_millis(age)));
                    ledger.answers(length, hash_of(length), needed)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_said_when_it_happens() {
        use Event::{Acknowledge, Ask, Read, ReadWithin, Refuse, Runs, RunsElsewhere, State};
        let (one, two, pad) = (Change::Append(1), Change::Append(2), Change::Pad(7));
        let table: [(&str, &[Event], Option<&str>); 18] = [
            ("in order", &[Ask, Runs(3, one), Acknowledge(1, 1, 0), Ask, Runs(4, two), Acknowledge(2, 2, 1)], None),
            ("on two nodes", &[Ask, Runs(3, one), RunsElsewhere(3, one, 1), Runs(4, pad)], None),
            ("not asked for", &[Runs(3, one)], Some("nobody asked for 1")),
            ("twice", &[Ask, Runs(3, one), Runs(4, one)], Some("1 runs twice")),
            ("another at the same index", &[Ask, Ask, Runs(3, one), RunsElsewhere(3, two, 1)], Some("where Ran")),
            ("behind another list", &[Ask, RunsElsewhere(3, one, 2)], Some("is next")),
            ("passed over by others", &[Ask, Ask, Runs(4, one), RunsElsewhere(3, two, 1)], Some("passed over")),
            ("refused before", &[Ask, Refuse(1), Runs(3, one)], Some("told that it did not happen")),
            ("refused after", &[Ask, Runs(3, one), Refuse(1)], Some("told that it did not happen")),
            ("acknowledged and not there", &[Ask, Acknowledge(1, 1, 0)], Some("is acknowledged as number 1")),
            ("before what was told", &[Ask, Runs(3, one), Acknowledge(1, 1, 1)], Some("told before it was asked")),
            ("a state as it was", &[Ask, Runs(3, one), State(2, 0), State(3, 1), State(9, 1)], None),
            ("a state that lacks an entry", &[Ask, Runs(3, one), State(3, 0)], Some("where others have 1")),
            ("a read", &[Ask, Runs(3, one), Acknowledge(1, 1, 0), Read(1, 1)], None),
            ("a stale read", &[Ask, Runs(3, one), Acknowledge(1, 1, 0), Read(0, 1)], Some("told before it was asked")),
            ("what never was", &[Ask, Read(1, 0)], Some("never were")),
            ("as old as it may be", &[Ask, Runs(3, one), Acknowledge(1, 1, 0), ReadWithin(0, 10)], None),
            ("older", &[Ask, Runs(3, one), Acknowledge(1, 1, 0), ReadWithin(0, 9)], Some("told before it was asked")),
        ];
        for (name, events, wrong) in table {
            match (judge(events), wrong) {
                (Ok(()), None) => {}
                (Err(error), Some(wrong)) => assert!(error.contains(wrong), "{name}: {error}"),
                (outcome, _) => panic!("{name}: {outcome:?}"),
            }
        }
    }
}
