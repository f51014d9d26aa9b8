//! The answers that are owed over a lane: its orderly end waits for them.
//!
//! Counted for the current lane alone, since what is owed over a lane that is gone can be sent no more. Lane and
//! count are one number, so that counting takes no lock.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Outbox;

/// The lower half of the number counts. It cannot overflow: what is counted takes memory.
const COUNT_BITS: u32 = 32;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// How many answers are owed over the current lane.
#[derive(Default)]
pub(super) struct OwedCount(AtomicU64);

impl OwedCount {
    /// `lane` is the current one. Lanes are numbered upwards from 1; 2^32 of them later the numbers come again.
    pub(super) fn open(&self, lane: u64) {
        self.0.store(lane << COUNT_BITS, Ordering::SeqCst);
    }

    pub(super) fn is_none(&self) -> bool {
        self.0.load(Ordering::SeqCst) & COUNT_MASK == 0
    }

    fn add(&self, lane: u64) {
        // Of another lane, nothing is noted.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |owed| is_of(owed, lane).then(|| owed + 1));
    }

    /// Takes back what was added for `lane`; whether it was the last of the current lane.
    fn remove(&self, lane: u64) -> bool {
        let less = |owed| is_of(owed, lane).then(|| owed - 1);
        let before = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        before.is_ok_and(|before| before & COUNT_MASK == 1)
    }
}

fn is_of(owed: u64, lane: u64) -> bool {
    owed & !COUNT_MASK == lane << COUNT_BITS
}

/// The outbox over which an answer is owed, until it is dropped.
pub(crate) struct Owed {
    outbox: Arc<Outbox>,
    lane: u64,
}

impl Owed {
    /// Over `lane`, the current one or a former one.
    pub(crate) fn new(outbox: Arc<Outbox>, lane: u64) -> Owed {
        outbox.owed.add(lane);
        Owed { outbox, lane }
    }
}

impl Deref for Owed {
    type Target = Outbox;

    fn deref(&self) -> &Outbox {
        &self.outbox
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let was_last = self.outbox.owed.remove(self.lane);
        if was_last && self.outbox.is_finishing.load(Ordering::SeqCst) {
            self.outbox.filled.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_owed_over_the_current_lane_counts() {
        let owed = OwedCount::default();
        owed.open(1);
        assert!(owed.is_none());
        owed.add(1);
        owed.add(1);
        assert!(!owed.remove(1) && !owed.is_none());
        // One stays with the old lane.
        owed.open(2);
        assert!(owed.is_none());
        owed.add(2);
        owed.add(1);
        assert!(!owed.remove(1) && !owed.remove(1) && !owed.is_none(), "of the old lane");
        assert!(owed.remove(2) && owed.is_none());
    }
}
