//! A rate in bytes per second, shared by all who use it: pure.

use std::time::Duration;

/// How far a use that was not made may be made up for.
const BURST: Duration = Duration::from_millis(50);

/// Says how long to wait, so that all uses together keep to the rate.
#[derive(Debug, Clone)]
pub(super) struct Rate {
    bytes_per_second: u64,
    /// On a monotonic clock: when all that was taken so far is within the rate.
    free_at: Duration,
}

impl Rate {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free_at: Duration::ZERO }
    }

    pub(super) fn set(&mut self, bytes_per_second: u64) {
        self.bytes_per_second = bytes_per_second.max(1);
    }

    /// Takes `bytes` at `now`; how long to wait before they are used.
    pub(super) fn take(&mut self, bytes: u64, now: Duration) -> Duration {
        let start = self.free_at.max(now.saturating_sub(BURST));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free_at = start.saturating_add(cost);
        self.free_at.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_together_keep_to_the_rate_and_idle_time_is_not_saved_up() {
        let mut rate = Rate::new(1_000);
        let mut now = Duration::from_secs(100);
        let start = now;
        for _ in 0..50 {
            now += rate.take(100, now);
        }
        let passed = now - start;
        assert!(passed >= Duration::from_millis(4_900) && passed <= Duration::from_secs(5), "{passed:?}");
        now += Duration::from_secs(1_000);
        assert_eq!(rate.take(50, now), Duration::ZERO, "the burst");
        assert_eq!(rate.take(1_000, now), Duration::from_secs(1));
        rate.set(u64::MAX);
        assert_eq!(rate.take(u64::MAX, now + Duration::from_secs(2)), Duration::from_millis(950));
    }
}
