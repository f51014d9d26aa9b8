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

/// How far a leader's stamps may run ahead of the time that has passed since the last one was applied, while no
/// majority says the time.
pub(crate) const MAX_STEP_AHEAD: Duration = Duration::from_millis(500);

/// A leader's next stamp. It never goes back. Where a majority's clocks agree on the time, it is that, so that no single
/// wrong clock moves it, however long the group was down; and where the last stamp is ahead of that, it goes on at half
/// the speed of time, so that nothing stands still. Where no majority has said the time, it is near the own wall clock,
/// but no further ahead of the last stamp than time has really passed; and zero, "not known", if there is no last one.
pub(crate) fn next_stamp(last: LogTime, since_last: Duration, agreed: Option<LogTime>, wall: LogTime) -> LogTime {
    match agreed {
        Some(agreed) => agreed.max(if agreed < last { last.saturating_add(since_last / 2) } else { last }),
        None if last == LogTime::default() => last,
        None => last.max(wall.min(last.saturating_add(since_last).saturating_add(MAX_STEP_AHEAD))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_a_majoritys_clocks_and_neither_go_back_nor_leap_with_one() {
        let at = LogTime::from_millis;
        let second = Duration::from_secs(1);
        let table = [
            ("the first is a majority's", at(0), Some(at(70_000)), at(1), at(70_000)),
            ("the first, without a majority, is not known", at(0), None, at(70_000), at(0)),
            ("the usual case", at(10_000), Some(at(10_900)), at(1), at(10_900)),
            ("after a day without commands", at(10_000), Some(at(86_410_000)), at(1), at(86_410_000)),
            ("time that was ahead", at(10_000), Some(at(3_000)), at(99_999), at(10_500)),
            ("a clock by itself", at(10_000), None, at(10_900), at(10_900)),
            ("a clock by itself that went back", at(10_000), None, at(3_000), at(10_000)),
            ("a clock by itself that leapt ahead", at(10_000), None, at(99_999_999), at(11_500)),
        ];
        for (name, last, agreed, wall, expected) in table {
            assert_eq!(next_stamp(last, second, agreed, wall), expected, "{name}");
        }
    }
}
