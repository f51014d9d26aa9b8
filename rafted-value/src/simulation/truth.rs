//! What must hold at every step, written down as it happens: one leader in a term, the same state at the same index.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::time::Instant;

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
    /// By index: the item and the hash of the state behind it, as the first node had it.
    applied: BTreeMap<u64, (u64, u64)>,
    leaders: BTreeMap<u64, u64>,
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
        let first = *inner.leaders.entry(term).or_insert(replica);
        if first != replica {
            inner.violations.push(format!("term {term} has two leaders: {first:016x} and {replica:016x}"));
        }
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

    pub(crate) fn leader_count(&self) -> usize {
        self.lock().leaders.len()
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
    pub(crate) fn applied(&self, index: u64, item: u64, hash: u64) {
        let mut inner = self.truth.lock();
        let first = *inner.applied.entry(index).or_insert((item, hash));
        if first != (item, hash) {
            let node = &self.node;
            inner.violations.push(format!("{node} has {item} ({hash:x}) at index {index}, another had {first:x?}"));
        }
    }
}
