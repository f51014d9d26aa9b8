//! A node's clocks in virtual time; its wall clock may be wrong.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::value::LogTime;

/// Where wall time begins: some day in 2023.
const BEGINNING: u64 = 1_700_000_000_000;

#[derive(Debug)]
pub(crate) struct VirtualClock {
    start: Instant,
    wrong_by_millis: AtomicI64,
}

impl VirtualClock {
    pub(crate) fn new(start: Instant) -> Self {
        Self { start, wrong_by_millis: AtomicI64::new(0) }
    }

    pub(crate) fn set_wrong_by(&self, millis: i64) {
        self.wrong_by_millis.store(millis, Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn wall(&self) -> LogTime {
        let right = BEGINNING + self.start.elapsed().as_millis() as u64;
        LogTime::from_millis(right.saturating_add_signed(self.wrong_by_millis.load(Ordering::Relaxed)))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}
