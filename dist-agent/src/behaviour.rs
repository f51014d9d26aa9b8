//! The trait that a user implements: the code of one module of agents.

use std::time::Duration;

use rafted_value::{LogTime, UpgradeError, Wire};

use crate::id::AgentId;
use crate::on_tick::{OnTick, tick_at, tick_begins};

/// One kind of agent. The type itself is the state of one agent.
///
/// All functions are pure: they read no clock (see [`Moment`]), no randomness, no order of a hash map and
/// nothing outside; the same arguments give the same result on every replica, for ever. One that panics is
/// answered as an error, and the agent's state is as it was before.
///
/// An agent comes into being with the first command that sets a state, and it is gone when a handler removes
/// its state: there is no other life cycle.
pub trait Agent: Wire {
    /// The module's name in an agent's address: 1 to 128 of `[A-Za-z0-9_.-]`. Never reuse one for other code.
    const MODULE: &'static str;
    /// Raised when the archived form of the state, or of commands and queries, changes; see [`Agent::upgrade`].
    const VERSION: u32 = 1;
    /// What changes an agent.
    type Command: Wire;
    /// What a command answers.
    type Reply: Wire;
    /// What reads an agent.
    type Query: Wire;
    /// What a query answers.
    type Answer: Wire;

    /// Runs a committed command. `state` is `None` where there is no such agent yet.
    fn handle_command(id: &AgentId, state: Option<&Self>, command: Self::Command) -> Outcome<Self, Self::Reply>;

    /// Reads. It is not called where there is no such agent.
    fn handle_query(&self, id: &AgentId, query: Self::Query) -> Self::Answer;

    /// Runs when a [`OnTick::Timeout`] is due. [`OnTick::Keep`] sets no further one.
    fn handle_timeout(&self, id: &AgentId) -> Outcome<Self, ()> {
        let _ = id;
        Outcome::keep(())
    }

    /// As [`Agent::handle_command`], with the moment: what the runtime calls. Override it where time matters.
    fn handle_command_at(
        moment: Moment,
        id: &AgentId,
        state: Option<&Self>,
        command: Self::Command,
    ) -> Outcome<Self, Self::Reply> {
        let _ = moment;
        Self::handle_command(id, state, command)
    }

    /// As [`Agent::handle_timeout`], with the moment: what the runtime calls.
    fn handle_timeout_at(&self, moment: Moment, id: &AgentId) -> Outcome<Self, ()> {
        let _ = moment;
        self.handle_timeout(id)
    }

    /// Reads a state that was written by another [`Agent::VERSION`]. The default knows none.
    fn upgrade(version: u32, bytes: &[u8]) -> Result<Self, UpgradeError> {
        let _ = bytes;
        Err(UpgradeError::UnknownVersion { found: version, known: Self::VERSION })
    }
}

/// When a handler runs, by the log and not by any clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub(crate) log_time: LogTime,
    pub(crate) tick_interval: Duration,
}

impl Moment {
    /// The log time.
    pub fn log_time(&self) -> LogTime {
        self.log_time
    }

    /// When so many ticks have passed: when an [`OnTick`] of as many is due.
    pub fn after(&self, ticks: u64) -> LogTime {
        tick_begins(self.tick().saturating_add(ticks), self.tick_interval)
    }

    /// The fewest ticks, at least 1, after which log time has reached `time`.
    pub fn ticks_until(&self, time: LogTime) -> u64 {
        let due = tick_at(time, self.tick_interval);
        let begins = tick_begins(due, self.tick_interval) >= time;
        due.saturating_add(u64::from(!begins)).saturating_sub(self.tick()).max(1)
    }

    /// Log time divided by the tick interval, rounded down.
    pub(crate) fn tick(&self) -> u64 {
        tick_at(self.log_time, self.tick_interval)
    }
}

/// What a handler wants: a reply, the next state, and what to do with the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome<S, R> {
    pub(crate) next: Next<S>,
    pub(crate) reply: R,
    pub(crate) on_tick: OnTick,
}

/// What becomes of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next<S> {
    /// As it was; an agent that does not exist does not come into being.
    Keep,
    /// This.
    Set(S),
    /// The agent is gone.
    Remove,
}

impl<S, R> Outcome<S, R> {
    /// The state stays as it is. An agent that does not exist is not activated.
    pub fn keep(reply: R) -> Self {
        Self { next: Next::Keep, reply, on_tick: OnTick::Keep }
    }

    /// The next state. An agent that does not exist is activated, if its quota allows.
    pub fn set(state: S, reply: R) -> Self {
        Self { next: Next::Set(state), reply, on_tick: OnTick::Keep }
    }

    /// The agent is deactivated: it has no state any more.
    pub fn remove(reply: R) -> Self {
        Self { next: Next::Remove, reply, on_tick: OnTick::Keep }
    }

    /// What to do with the clock; [`OnTick::Keep`] unless said.
    #[must_use]
    pub fn on_tick(mut self, on_tick: OnTick) -> Self {
        self.on_tick = on_tick;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_until_a_time_are_those_after_which_it_is_reached() {
        let moment = Moment { log_time: LogTime::from_millis(10_400), tick_interval: Duration::from_secs(1) };
        assert_eq!(moment.after(3), LogTime::from_millis(13_000));
        for (time, ticks) in [(13_000, 3), (13_001, 4), (12_999, 3), (10_400, 1), (0, 1), (11_000, 1)] {
            assert_eq!(moment.ticks_until(LogTime::from_millis(time)), ticks, "until {time}");
        }
    }
}
