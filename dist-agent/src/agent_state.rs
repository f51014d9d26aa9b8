//! One agent as the keyspace of agents keeps it: its encoded state, its quota's incarnation, what is due.
//!
//! ```text
//!   absent --- command that sets a state, stamped with a reservation ---> active --- command ---> active
//!     ^                                                                      |   --- timeout ---> active
//!     +------ command or timeout that removes it, deactivation, drop --------+
//! ```
//!
//! An agent of an older incarnation of its quota counts as absent: its quota was deleted.

use std::time::Duration;

use raft_kv::{KeyedValue, Outcome};
use rafted_value::{Context, LogTime};

use crate::behaviour::{Moment, Next};
use crate::id::AgentId;
use crate::on_tick::{Schedule, tick_begins};
use crate::registry::{Handled, HandlerError, Module, Registry, StoredState};

/// The keyspace in which agents live.
pub const AGENTS_KEYSPACE: &str = "agents";

/// The type's name in the keyspaces group.
pub(crate) const TYPE_NAME: &str = "agent";

/// A timeout of an agent whose module nobody knows is tried again after so many ticks, so that it stands in
/// nobody's way.
const UNKNOWN_MODULE_RETRY_TICKS: u64 = 60;

rafted_value::messages! {
    /// An active agent.
    pub(crate) struct AgentCell {
        pub(crate) activation: Activation,
        /// The module's version that wrote `state`.
        pub(crate) version: u32,
        /// The tick interval of the last command, in which `schedule` counts. It is kept here, because nodes may be
        /// set differently for a while, and replicas must agree.
        pub(crate) tick_millis: u64,
        pub(crate) schedule: Schedule,
        pub(crate) state: Vec<u8>,
    }

    /// How it came into being.
    #[derive(Copy, Eq)]
    pub(crate) struct Activation {
        /// Of the quota that counts it.
        pub(crate) incarnation: u64,
        /// Whose place it took.
        pub(crate) reservation: u64,
    }

    /// What changes an agent.
    pub(crate) enum AgentCommand {
        /// A command of the module's.
        User(UserCommand),
        /// Ends the agent if its quota's incarnation is not above this one.
        Drop { incarnation: u64 },
    }

    /// A module's command, and what the runtime must know beside it.
    pub(crate) struct UserCommand {
        /// Of the quota, as the sender knows it.
        pub(crate) incarnation: u64,
        /// The module's version at the sender.
        pub(crate) version: u32,
        /// The sender's tick interval.
        pub(crate) tick_millis: u64,
        /// A place to take, should the agent come into being.
        pub(crate) stamp: Option<Stamp>,
        pub(crate) command: Vec<u8>,
    }

    /// A place of a reservation.
    pub(crate) struct Stamp {
        /// Of which reservation of the quota group.
        pub(crate) reservation: u64,
        /// The shard that the place was reserved for.
        pub(crate) holder: String,
        /// The last log time of the shard, in ms, at which the place may be taken.
        pub(crate) use_by: u64,
    }

    /// What became of a command.
    pub(crate) enum AgentReply {
        /// It ran.
        Ran { reply: Vec<u8>, activated: bool },
        /// Its handler panicked, or the state cannot be read; nothing changed.
        Failed(String),
        /// It was a [`AgentCommand::Drop`].
        Dropped,
        /// It did not run: see there.
        Refused(Refused),
    }

    /// Why a command did not run.
    pub(crate) enum Refused {
        /// It would activate the agent, and has no place.
        NeedsStamp,
        /// Its place could be taken until `use_by`, and the shard is at `log_time`.
        StampExpired { log_time: u64 },
        /// The agent belongs to a newer incarnation of the quota than the sender knows.
        OldIncarnation,
        UnknownModule,
        OtherVersion { known: u32 },
        Malformed(String),
    }

    /// What reads an agent.
    pub(crate) struct AgentQuery {
        pub(crate) incarnation: u64,
        pub(crate) version: u32,
        pub(crate) query: Vec<u8>,
    }

    /// What a query answers.
    pub(crate) enum AgentAnswer {
        Answer(Vec<u8>),
        /// There is an agent, but of another incarnation of the quota.
        NotFound { newer: bool },
        UnknownModule,
        OtherVersion { known: u32 },
        Malformed(String),
        Failed(String),
    }
}

impl KeyedValue for AgentCell {
    const NAME: &'static str = TYPE_NAME;
    type Command = AgentCommand;
    type Reply = AgentReply;
    type Query = AgentQuery;
    type Answer = AgentAnswer;

    /// Not called: an agent's command needs the registry, which [`KeyedValue::command_in`] has.
    fn command(_: Option<&Self>, _: &str, _: AgentCommand) -> Outcome<Self, AgentReply> {
        refuse(Refused::UnknownModule)
    }

    /// Not called, as above.
    fn query(&self, _: &str, _: AgentQuery) -> AgentAnswer {
        AgentAnswer::UnknownModule
    }

    fn command_in(
        context: &Context<'_>,
        current: Option<&Self>,
        key: &str,
        command: AgentCommand,
    ) -> Outcome<Self, AgentReply> {
        match command {
            AgentCommand::User(command) => run_user_command(context, current, key, &command),
            AgentCommand::Drop { incarnation } => match current {
                Some(cell) if cell.activation.incarnation <= incarnation => Outcome::remove(AgentReply::Dropped),
                _ => Outcome::keep(AgentReply::Dropped),
            },
        }
    }

    fn query_in(&self, context: &Context<'_>, key: &str, query: AgentQuery) -> AgentAnswer {
        if self.activation.incarnation != query.incarnation {
            return AgentAnswer::NotFound { newer: self.activation.incarnation > query.incarnation };
        }
        let Some((id, module)) = find_module(context, key) else { return AgentAnswer::UnknownModule };
        if module.version() != query.version {
            return AgentAnswer::OtherVersion { known: module.version() };
        }
        match module.query(&id, self.stored(), &query.query) {
            Ok(answer) => AgentAnswer::Answer(answer),
            Err(HandlerError::Malformed(reason)) => AgentAnswer::Malformed(reason),
            Err(HandlerError::Failed(reason)) => AgentAnswer::Failed(reason),
        }
    }

    fn size(&self) -> u64 {
        self.state.len() as u64
    }

    fn deadline(&self) -> Option<LogTime> {
        self.schedule.due().map(|tick| tick_begins(tick, self.tick_interval()))
    }

    fn account(key: &str) -> Option<&str> {
        key.split_once('/').map(|(quota, _)| quota)
    }

    fn timeout(context: &Context<'_>, current: &Self, key: &str) -> Outcome<Self, ()> {
        let moment = current.moment(context);
        match current.schedule {
            Schedule::Deactivate { due, .. } if due <= moment.tick() => Outcome::remove(()),
            Schedule::Timeout { due } if due <= moment.tick() => fire(context, current, key, moment),
            _ => Outcome::keep(()),
        }
    }
}

impl AgentCell {
    fn stored(&self) -> StoredState<'_> {
        StoredState { version: self.version, bytes: &self.state }
    }

    fn tick_interval(&self) -> Duration {
        Duration::from_millis(self.tick_millis)
    }

    fn moment(&self, context: &Context<'_>) -> Moment {
        moment(context, self.tick_interval())
    }
}

fn run_user_command(
    context: &Context<'_>,
    current: Option<&AgentCell>,
    key: &str,
    command: &UserCommand,
) -> Outcome<AgentCell, AgentReply> {
    if current.is_some_and(|cell| cell.activation.incarnation > command.incarnation) {
        return refuse(Refused::OldIncarnation);
    }
    let Some((id, module)) = find_module(context, key) else { return refuse(Refused::UnknownModule) };
    if module.version() != command.version {
        return refuse(Refused::OtherVersion { known: module.version() });
    }
    let active = current.filter(|cell| cell.activation.incarnation == command.incarnation);
    let moment = moment(context, Duration::from_millis(command.tick_millis));
    let handled = match module.command(moment, &id, active.map(AgentCell::stored), &command.command) {
        Ok(handled) => handled,
        Err(HandlerError::Malformed(reason)) => return refuse(Refused::Malformed(reason)),
        Err(HandlerError::Failed(reason)) => return Outcome::keep(AgentReply::Failed(reason)),
    };
    match active {
        Some(cell) => change(cell, handled, command, module.version(), moment),
        None => activate(handled, command, module.version(), moment),
    }
}

fn change(
    cell: &AgentCell,
    handled: Handled,
    command: &UserCommand,
    version: u32,
    moment: Moment,
) -> Outcome<AgentCell, AgentReply> {
    let reply = AgentReply::Ran { reply: handled.reply, activated: false };
    let tick_millis = command.tick_millis;
    let counted = cell.schedule.rescaled(cell.tick_interval(), Duration::from_millis(tick_millis));
    let schedule = counted.after_command(handled.on_tick, moment.tick());
    let (version, state) = match handled.next {
        Next::Keep if schedule == cell.schedule => return Outcome::keep(reply),
        Next::Keep => (cell.version, cell.state.clone()),
        Next::Set(state) => (version, state),
        Next::Remove => return Outcome::remove(reply),
    };
    let activation = cell.activation;
    Outcome::set(AgentCell { activation, version, tick_millis, schedule, state }, reply)
}

fn activate(handled: Handled, command: &UserCommand, version: u32, moment: Moment) -> Outcome<AgentCell, AgentReply> {
    let Next::Set(state) = handled.next else {
        return Outcome::keep(AgentReply::Ran { reply: handled.reply, activated: false });
    };
    let Some(stamp) = &command.stamp else { return refuse(Refused::NeedsStamp) };
    let log_time = moment.log_time().as_millis();
    if log_time > stamp.use_by {
        return refuse(Refused::StampExpired { log_time });
    }
    let cell = AgentCell {
        activation: Activation { incarnation: command.incarnation, reservation: stamp.reservation },
        version,
        tick_millis: command.tick_millis,
        schedule: Schedule::Idle.after_command(handled.on_tick, moment.tick()),
        state,
    };
    Outcome::set(cell, AgentReply::Ran { reply: handled.reply, activated: true })
}

fn fire(context: &Context<'_>, cell: &AgentCell, key: &str, moment: Moment) -> Outcome<AgentCell, ()> {
    let Some((id, module)) = find_module(context, key) else {
        let due = moment.tick().saturating_add(UNKNOWN_MODULE_RETRY_TICKS);
        return Outcome::set(AgentCell { schedule: Schedule::Timeout { due }, ..cell.clone() }, ());
    };
    let Ok(handled) = module.timeout(moment, &id, cell.stored()) else {
        // It would fail again at every tick, and hold up the others that are due.
        return Outcome::set(AgentCell { schedule: Schedule::Idle, ..cell.clone() }, ());
    };
    let schedule = Schedule::after_timeout(handled.on_tick, moment.tick());
    let (version, state) = match handled.next {
        Next::Keep => (cell.version, cell.state.clone()),
        Next::Set(state) => (module.version(), state),
        Next::Remove => return Outcome::remove(()),
    };
    let AgentCell { activation, tick_millis, .. } = *cell;
    Outcome::set(AgentCell { activation, version, tick_millis, schedule, state }, ())
}

fn refuse(why: Refused) -> Outcome<AgentCell, AgentReply> {
    Outcome::refuse(AgentReply::Refused(why))
}

fn moment(context: &Context<'_>, interval: Duration) -> Moment {
    Moment { log_time: context.log_time(), tick_interval: interval }
}

fn find_module<'a>(context: &Context<'a>, key: &str) -> Option<(AgentId, &'a dyn Module)> {
    let id = AgentId::from_stored(key).ok()?;
    let module = context.environment::<Registry>()?.module(id.module())?;
    Some((id, module))
}

#[cfg(test)]
mod tests;
