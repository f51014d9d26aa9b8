//! What must hold at every step, written down as it happens: one leader in a term, one vote of a replica in a term, and
//! what the ledger judges.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::counts::{Counts, Event};
use super::ledger::Ledger;
use super::value::Change;
use crate::status::ReplicaId;

/// What all nodes of a simulation did.
#[derive(Debug)]
pub(crate) struct Truth {
    start: Instant,
    /// Whether the story is told as it happens.
    aloud: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ledger: Ledger,
    counts: Counts,
    leaders: BTreeMap<u64, u64>,
    /// By term and voter: for whom.
    votes: BTreeMap<(u64, u64), u64>,
    /// Those to whom the newest leader was asked to hand over.
    heirs: BTreeSet<u64>,
    violations: Vec<String>,
    trace: DefaultHasher,
    events: u64,
    log: Vec<String>,
}

impl Truth {
    pub(crate) fn new(start: Instant) -> Self {
        let aloud = std::env::var("RAFTED_VALUE_SEED").is_ok();
        Self { start, aloud, inner: Mutex::default() }
    }

    /// A replica spoke as the leader of a term.
    pub(crate) fn leads(&self, term: u64, replica: u64) {
        let mut inner = self.lock();
        let Some(&first) = inner.leaders.get(&term) else {
            inner.leaders.insert(term, replica);
            inner.counts.add(Event::Led, 1);
            self.vote(&mut inner, term, replica, replica);
            if std::mem::take(&mut inner.heirs).contains(&replica) {
                inner.counts.add(Event::LeaderReplaced, 1);
            }
            return;
        };
        if first != replica {
            let violation = format!("term {term} has two leaders: {first:016x} and {replica:016x}");
            self.violated(&mut inner, violation);
        }
    }

    /// A replica told another that it has its vote.
    pub(crate) fn votes(&self, term: u64, voter: u64, candidate: u64) {
        self.vote(&mut self.lock(), term, voter, candidate);
    }

    fn vote(&self, inner: &mut Inner, term: u64, voter: u64, candidate: u64) {
        let first = *inner.votes.entry((term, voter)).or_insert(candidate);
        if first != candidate {
            let violation = format!("{voter:016x} votes for {first:016x} and {candidate:016x} in term {term}");
            self.violated(inner, violation);
        }
    }

    /// The highest term in which somebody spoke as leader.
    pub(crate) fn newest_term(&self) -> Option<u64> {
        self.lock().leaders.last_key_value().map(|(&term, _)| term)
    }

    /// The leader was asked to hand over to a replica.
    pub(crate) fn is_heir(&self, replica: ReplicaId) {
        self.lock().heirs.insert(replica.get());
    }

    pub(crate) fn count(&self, event: Event) {
        self.count_many(event, 1);
    }

    pub(crate) fn count_many(&self, event: Event, count: u64) {
        self.lock().counts.add(event, count);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Asks the ledger something.
    pub(crate) fn ledger<T>(&self, ask: impl FnOnce(&mut Ledger) -> T) -> T {
        ask(&mut self.lock().ledger)
    }

    /// Lets the ledger judge something that happens now.
    pub(crate) fn judge(&self, who: &str, judge: impl FnOnce(&mut Ledger, Duration) -> Result<(), String>) {
        let mut inner = self.lock();
        if let Err(error) = judge(&mut inner.ledger, self.start.elapsed()) {
            self.violated(&mut inner, format!("{who}: {error}"));
        }
    }

    fn violated(&self, inner: &mut Inner, violation: String) {
        inner.violations.push(format!("at {} ms, {violation}", self.start.elapsed().as_millis()));
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.lock().violations.first().cloned()
    }

    /// Makes an event part of the trace.
    pub(crate) fn trace(&self, event: &(impl Hash + ?Sized)) {
        let mut inner = self.lock();
        event.hash(&mut inner.trace);
        inner.events += 1;
    }

    /// A line for whoever looks into a failing seed; part of the trace.
    pub(crate) fn tell(&self, line: String) {
        self.trace(&line);
        let at = self.start.elapsed().as_millis();
        let line = format!("{at:>6} ms  {line}");
        if self.aloud {
            println!("{line}");
        }
        self.lock().log.push(line);
    }

    /// A number for everything that happened, and how much it was.
    pub(crate) fn fingerprint(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.trace.finish(), inner.events)
    }

    pub(crate) fn story(&self) -> String {
        self.lock().log.join("\n")
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

/// One node's eyes in the value's code.
#[derive(Debug)]
pub(crate) struct Observer {
    pub(crate) node: String,
    pub(crate) truth: Arc<Truth>,
}

impl Observer {
    pub(crate) fn applied(&self, index: u64, change: Change, length: u64, hash: u64) {
        self.truth.judge(&self.node, |ledger, _| ledger.runs(index, change, length, hash));
    }
}
