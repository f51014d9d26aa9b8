//! What an agent asks of the clock, and what is kept of it.
//!
//! Time is counted in ticks: a tick's number is log time divided by the tick interval, rounded down. After `n`
//! ticks means: when the number is greater by `n`; between `n - 1` and `n` intervals from now.
//!
//! ```text
//!            Timeout                    due: handle_timeout, then its own OnTick
//!   Idle <------------> Timeout{due} ------------------------------------------> (as it says; Keep: Idle)
//!     ^  None   Keep: as it was
//!     |
//!     +---- None ------ Deactivate{ticks, due} --- due: the agent is gone
//!                       Keep: due again after `ticks` from now
//! ```

use std::time::Duration;

use rafted_value::LogTime;

/// What to do with the clock after a handler ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnTick {
    /// A timeout that is set stays as it is; one that has just fired is over. A deactivation counts from now:
    /// the command was activity.
    #[default]
    Keep,
    /// Nothing is due any more.
    None,
    /// [`handle_timeout`](crate::Agent::handle_timeout) after so many ticks, at least 1.
    Timeout {
        /// How many.
        ticks: u64,
    },
    /// The agent is deactivated after so many ticks without a command, at least 1. Queries do not count.
    Deactivate {
        /// How many.
        ticks: u64,
    },
}

rafted_value::messages! {
    /// What is due, and at which tick.
    #[derive(Copy, Eq)]
    pub(crate) enum Schedule {
        /// Nothing.
        Idle,
        /// The handler of timeouts.
        Timeout { due: u64 },
        /// The agent's end, unless a command comes before.
        Deactivate { ticks: u64, due: u64 },
    }
}

impl Schedule {
    /// After a command at tick `now`.
    pub(crate) fn after_command(self, on_tick: OnTick, now: u64) -> Self {
        match (on_tick, self) {
            (OnTick::Keep, Self::Deactivate { ticks, .. }) => {
                Self::Deactivate { ticks, due: now.saturating_add(ticks) }
            }
            (OnTick::Keep, kept) => kept,
            (set, _) => Self::set(set, now),
        }
    }

    /// After a timeout fired at tick `now`.
    pub(crate) fn after_timeout(on_tick: OnTick, now: u64) -> Self {
        Self::set(on_tick, now)
    }

    /// The same moments, counted in ticks of another length.
    pub(crate) fn rescaled(self, from: Duration, to: Duration) -> Self {
        if from == to {
            return self;
        }
        let scale = |due| tick_begins(due, from).as_millis().div_ceil(millis(to));
        match self {
            Self::Idle => Self::Idle,
            Self::Timeout { due } => Self::Timeout { due: scale(due) },
            Self::Deactivate { ticks, due } => Self::Deactivate { ticks, due: scale(due) },
        }
    }

    /// The tick at which something is due.
    pub(crate) fn due(self) -> Option<u64> {
        match self {
            Self::Idle => None,
            Self::Timeout { due } | Self::Deactivate { due, .. } => Some(due),
        }
    }

    fn set(on_tick: OnTick, now: u64) -> Self {
        match on_tick {
            OnTick::Keep | OnTick::None => Self::Idle,
            OnTick::Timeout { ticks } => Self::Timeout { due: now.saturating_add(ticks.max(1)) },
            OnTick::Deactivate { ticks } => {
                let ticks = ticks.max(1);
                Self::Deactivate { ticks, due: now.saturating_add(ticks) }
            }
        }
    }
}

/// The tick at `time`.
pub(crate) fn tick_at(time: LogTime, interval: Duration) -> u64 {
    time.as_millis() / millis(interval)
}

/// When the tick begins.
pub(crate) fn tick_begins(tick: u64, interval: Duration) -> LogTime {
    LogTime::from_millis(tick.saturating_mul(millis(interval)))
}

fn millis(interval: Duration) -> u64 {
    u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wish_in_every_schedule() {
        let idle = Schedule::Idle;
        let timeout = Schedule::Timeout { due: 7 };
        let deactivate = Schedule::Deactivate { ticks: 3, due: 7 };
        // (schedule before, wish of a command at tick 5, schedule after)
        let rows = [
            (idle, OnTick::Keep, idle),
            (timeout, OnTick::Keep, timeout),
            (deactivate, OnTick::Keep, Schedule::Deactivate { ticks: 3, due: 8 }),
            (idle, OnTick::None, idle),
            (timeout, OnTick::None, idle),
            (deactivate, OnTick::None, idle),
            (idle, OnTick::Timeout { ticks: 4 }, Schedule::Timeout { due: 9 }),
            (timeout, OnTick::Timeout { ticks: 0 }, Schedule::Timeout { due: 6 }),
            (deactivate, OnTick::Timeout { ticks: 1 }, Schedule::Timeout { due: 6 }),
            (timeout, OnTick::Deactivate { ticks: 2 }, Schedule::Deactivate { ticks: 2, due: 7 }),
            (idle, OnTick::Deactivate { ticks: 0 }, Schedule::Deactivate { ticks: 1, due: 6 }),
            (idle, OnTick::Timeout { ticks: u64::MAX }, Schedule::Timeout { due: u64::MAX }),
        ];
        for (before, wish, after) in rows {
            assert_eq!(before.after_command(wish, 5), after, "{before:?} {wish:?}");
        }
    }

    #[test]
    fn a_timeout_that_fired_is_over_unless_it_is_set_again() {
        assert_eq!(Schedule::after_timeout(OnTick::Keep, 5), Schedule::Idle);
        assert_eq!(Schedule::after_timeout(OnTick::Timeout { ticks: 2 }, 5), Schedule::Timeout { due: 7 });
    }

    #[test]
    fn ticks_of_another_length_are_due_at_the_same_time() {
        let (second, half) = (Duration::from_secs(1), Duration::from_millis(500));
        let timeout = Schedule::Timeout { due: 7 };
        assert_eq!(timeout.rescaled(second, half), Schedule::Timeout { due: 14 });
        assert_eq!(timeout.rescaled(half, second), Schedule::Timeout { due: 4 });
        assert_eq!(timeout.rescaled(second, second), timeout);
    }

    #[test]
    fn ticks_are_numbered_by_rounding_down() {
        let second = Duration::from_secs(1);
        assert_eq!(tick_at(LogTime::from_millis(999), second), 0);
        assert_eq!(tick_at(LogTime::from_millis(1_000), second), 1);
        assert_eq!(tick_begins(2, second), LogTime::from_millis(2_000));
        assert_eq!(tick_at(tick_begins(41, second), second), 41);
    }
}
