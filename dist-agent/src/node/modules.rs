//! The modules that the node binary carries: counter, register, log, lease, timer.

use rafted_value::LogTime;

use crate::behaviour::{Agent, Moment, Outcome};
use crate::id::AgentId;
use crate::node::json::Json;
use crate::on_tick::OnTick;

/// A lease that nobody holds is forgotten after so many ticks without a command: an hour with ticks of a second.
pub const FREE_LEASE_TICKS: u64 = 3_600;

crate::messages! {
    /// A number; `counter`.
    pub struct Counter { value: i64 }
    /// What changes a [`Counter`].
    pub enum CounterCommand {
        /// Adds, up to the largest and down to the smallest number of 64 bits; answers the new value.
        Add(i64),
    }
    /// What reads a value.
    pub enum Get {
        /// Answers it.
        Get,
    }

    /// Any value; `register`.
    pub struct Register { value: Json }
    /// What changes a [`Register`].
    pub enum RegisterCommand {
        /// Answers the previous value, or null.
        Set(Json),
        /// Sets the second if the value equals the first, where an absent one counts as null; answers whether.
        Cas(Json, Json),
        /// Ends the agent; answers null.
        Clear,
    }

    /// Values in order; `log`.
    pub struct Log { entries: Vec<Json> }
    /// What changes a [`Log`].
    pub enum LogCommand {
        /// Answers how many there are then.
        Append(Json),
    }
    /// What reads a [`Log`].
    pub enum LogQuery {
        /// Answers the entries from this one on; the first is 0.
        From(u64),
    }

    /// Who holds something, for a while; `lease`.
    pub struct Lease { owner: Option<Json> }
    /// What changes a [`Lease`].
    pub enum LeaseCommand {
        /// Takes a free one, or holds one's own for longer; answers whether.
        Acquire(Acquire),
        /// Gives it back; answers whether it was the owner's.
        Release(Release),
    }
    /// Who takes a lease.
    pub struct Acquire {
        /// Who.
        pub owner: Json,
        /// For how long, at least 1.
        pub ticks: u64,
    }
    /// Who gives a lease back.
    pub struct Release {
        /// Who.
        pub owner: Json,
    }
    /// What reads a [`Lease`].
    pub enum LeaseQuery {
        /// Answers who holds it, or null.
        Owner,
    }

    /// Notes that come up later; `timer`.
    pub struct Timer {
        /// By time, those of one time in the order in which they were set.
        pending: Vec<Pending>,
        fired: Vec<Json>,
    }
    /// What changes a [`Timer`].
    pub enum TimerCommand {
        /// Answers null.
        After(After),
    }
    /// What comes up later.
    pub struct After {
        /// When, at least 1.
        pub ticks: u64,
        /// What.
        pub note: Json,
    }
    /// What reads a [`Timer`].
    pub enum TimerQuery {
        /// Answers the notes that have come up, in order.
        Fired,
    }
    /// A note that has not come up.
    pub struct Pending {
        /// In ms of log time.
        due: u64,
        note: Json,
    }
}

impl Agent for Counter {
    const MODULE: &'static str = "counter";
    type Command = CounterCommand;
    type Reply = i64;
    type Query = Get;
    type Answer = i64;

    fn handle_command(_: &AgentId, state: Option<&Self>, command: CounterCommand) -> Outcome<Self, i64> {
        let CounterCommand::Add(number) = command;
        let value = state.map_or(0, |state| state.value).saturating_add(number);
        Outcome::set(Self { value }, value)
    }

    fn handle_query(&self, _: &AgentId, Get::Get: Get) -> i64 {
        self.value
    }
}

impl Agent for Register {
    const MODULE: &'static str = "register";
    type Command = RegisterCommand;
    type Reply = Json;
    type Query = Get;
    type Answer = Json;

    fn handle_command(_: &AgentId, state: Option<&Self>, command: RegisterCommand) -> Outcome<Self, Json> {
        let previous = state.map_or(&Json::Null, |state| &state.value);
        match command {
            RegisterCommand::Set(value) => Outcome::set(Self { value }, previous.clone()),
            RegisterCommand::Cas(old, value) if old == *previous => Outcome::set(Self { value }, Json::Bool(true)),
            RegisterCommand::Cas(..) => Outcome::keep(Json::Bool(false)),
            RegisterCommand::Clear => Outcome::remove(Json::Null),
        }
    }

    fn handle_query(&self, _: &AgentId, Get::Get: Get) -> Json {
        self.value.clone()
    }
}

impl Agent for Log {
    const MODULE: &'static str = "log";
    type Command = LogCommand;
    type Reply = u64;
    type Query = LogQuery;
    type Answer = Vec<Json>;

    fn handle_command(_: &AgentId, state: Option<&Self>, command: LogCommand) -> Outcome<Self, u64> {
        let LogCommand::Append(entry) = command;
        let mut entries = state.map(|state| state.entries.clone()).unwrap_or_default();
        entries.push(entry);
        let length = entries.len() as u64;
        Outcome::set(Self { entries }, length)
    }

    fn handle_query(&self, _: &AgentId, LogQuery::From(first): LogQuery) -> Vec<Json> {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        self.entries.get(first..).map(<[Json]>::to_vec).unwrap_or_default()
    }
}

impl Agent for Lease {
    const MODULE: &'static str = "lease";
    type Command = LeaseCommand;
    type Reply = bool;
    type Query = LeaseQuery;
    type Answer = Option<Json>;

    fn handle_command(_: &AgentId, state: Option<&Self>, command: LeaseCommand) -> Outcome<Self, bool> {
        let holder = state.and_then(|state| state.owner.as_ref());
        match command {
            LeaseCommand::Acquire(Acquire { owner, ticks }) if holder.is_none_or(|holder| *holder == owner) => {
                Outcome::set(Self { owner: Some(owner) }, true).on_tick(OnTick::Timeout { ticks })
            }
            LeaseCommand::Release(Release { owner }) if holder == Some(&owner) => Self::free(true),
            LeaseCommand::Acquire(_) | LeaseCommand::Release(_) => Outcome::keep(false),
        }
    }

    fn handle_query(&self, _: &AgentId, LeaseQuery::Owner: LeaseQuery) -> Option<Json> {
        self.owner.clone()
    }

    fn handle_timeout(&self, _: &AgentId) -> Outcome<Self, ()> {
        Self::free(())
    }
}

impl Lease {
    fn free<R>(reply: R) -> Outcome<Self, R> {
        Outcome::set(Self { owner: None }, reply).on_tick(OnTick::Deactivate { ticks: FREE_LEASE_TICKS })
    }
}

impl Agent for Timer {
    const MODULE: &'static str = "timer";
    type Command = TimerCommand;
    type Reply = ();
    type Query = TimerQuery;
    type Answer = Vec<Json>;

    /// Not called: what is due needs the moment.
    fn handle_command(_: &AgentId, _: Option<&Self>, _: TimerCommand) -> Outcome<Self, ()> {
        Outcome::keep(())
    }

    fn handle_query(&self, _: &AgentId, TimerQuery::Fired: TimerQuery) -> Vec<Json> {
        self.fired.clone()
    }

    fn handle_command_at(
        moment: Moment,
        _: &AgentId,
        state: Option<&Self>,
        command: TimerCommand,
    ) -> Outcome<Self, ()> {
        let TimerCommand::After(After { ticks, note }) = command;
        let mut timer = state.cloned().unwrap_or(Self { pending: Vec::new(), fired: Vec::new() });
        let due = moment.after(ticks.max(1)).as_millis();
        let at = timer.pending.partition_point(|pending| pending.due <= due);
        timer.pending.insert(at, Pending { due, note });
        timer.wait(moment)
    }

    fn handle_timeout_at(&self, moment: Moment, _: &AgentId) -> Outcome<Self, ()> {
        let mut timer = self.clone();
        let now = moment.log_time().as_millis();
        let due = timer.pending.partition_point(|pending| pending.due <= now);
        timer.fired.extend(timer.pending.drain(..due).map(|pending| pending.note));
        timer.wait(moment)
    }
}

impl Timer {
    fn wait(self, moment: Moment) -> Outcome<Self, ()> {
        let next = self.pending.first().map(|pending| LogTime::from_millis(pending.due));
        let on_tick = next.map_or(OnTick::None, |due| OnTick::Timeout { ticks: moment.ticks_until(due) });
        Outcome::set(self, ()).on_tick(on_tick)
    }
}

#[cfg(test)]
mod tests;
