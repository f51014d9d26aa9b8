//! Where time comes from: the outside, so that a simulation can bring its own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::value::LogTime;

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// Wall time: it may jump. Only a leader's stamps use it, and they bound it.
    fn wall(&self) -> LogTime;
    /// Time since some start: it never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> LogTime {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        LogTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// How far a leader's stamps may run ahead of the time that has passed since the last one was applied.
pub(crate) const MAX_STEP_AHEAD: Duration = Duration::from_millis(500);

/// A leader's next stamp: near wall time, never below the last, and never further ahead of it than time has
/// really passed, so that one wrong clock cannot throw a group's time far ahead.
pub(crate) fn next_stamp(last: LogTime, wall: LogTime, since_last: Duration) -> LogTime {
    if last == LogTime::default() {
        return wall;
    }
    last.max(wall.min(last.saturating_add(since_last).saturating_add(MAX_STEP_AHEAD)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_the_wall_but_neither_go_back_nor_leap() {
        let at = LogTime::from_millis;
        let second = Duration::from_secs(1);
        let table = [
            ("the first is the wall's", at(0), at(70_000), Duration::ZERO, at(70_000)),
            ("the usual case", at(10_000), at(10_900), second, at(10_900)),
            ("a clock that went back", at(10_000), at(3_000), second, at(10_000)),
            ("a clock that leapt ahead", at(10_000), at(99_999_999), second, at(11_500)),
        ];
        for (name, last, wall, since, expected) in table {
            assert_eq!(next_stamp(last, wall, since), expected, "{name}");
        }
    }
}
