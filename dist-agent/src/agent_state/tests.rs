//! Agents of one key, under commands, ticks and queries: a table of behaviours.

use raft_kv::Next;
use rafted_value::{decode, encode};

use super::*;
use crate::behaviour::{self, Agent};
use crate::on_tick::OnTick;

rafted_value::messages! {
    /// Counts, and does to the clock what it is told.
    pub struct Probe { count: u64, timeouts: u64 }
    pub enum ProbeCommand {
        Count,
        CountFor { ticks: u64 },
        Sleep { ticks: u64 },
        Look,
        Reset,
        Clear,
        Panic,
        /// The next timeout panics.
        Poison,
    }
}

const POISON: u64 = 666;

impl Agent for Probe {
    const MODULE: &'static str = "probe";
    type Command = ProbeCommand;
    type Reply = u64;
    type Query = ();
    type Answer = (u64, u64);

    fn handle_command(_: &AgentId, state: Option<&Self>, command: ProbeCommand) -> behaviour::Outcome<Self, u64> {
        use behaviour::Outcome;
        let Probe { count, timeouts } = state.cloned().unwrap_or(Probe { count: 0, timeouts: 0 });
        let counted = Outcome::set(Probe { count: count + 1, timeouts }, count + 1);
        match command {
            ProbeCommand::Count => counted,
            ProbeCommand::CountFor { ticks } => counted.on_tick(OnTick::Deactivate { ticks }),
            ProbeCommand::Sleep { ticks } => counted.on_tick(OnTick::Timeout { ticks }),
            ProbeCommand::Look => Outcome::keep(count),
            ProbeCommand::Reset => Outcome::keep(count).on_tick(OnTick::None),
            ProbeCommand::Clear => Outcome::remove(count),
            ProbeCommand::Panic => panic!("told to"),
            ProbeCommand::Poison => {
                Outcome::set(Probe { count: POISON, timeouts }, POISON).on_tick(OnTick::Timeout { ticks: 1 })
            }
        }
    }

    fn handle_query(&self, _: &AgentId, (): ()) -> (u64, u64) {
        (self.count, self.timeouts)
    }

    /// Two timeouts, then it goes.
    fn handle_timeout(&self, _: &AgentId) -> behaviour::Outcome<Self, ()> {
        assert_ne!(self.count, POISON, "poisoned");
        let next = Probe { timeouts: self.timeouts + 1, ..self.clone() };
        match self.timeouts {
            0 => behaviour::Outcome::set(next, ()).on_tick(OnTick::Timeout { ticks: 1 }),
            1 => behaviour::Outcome::set(next, ()),
            _ => behaviour::Outcome::remove(()),
        }
    }
}

/// One key of a shard, with a tick of a second.
struct Key {
    registry: Registry,
    key: &'static str,
    now: u64,
    index: u64,
    cell: Option<AgentCell>,
}

impl Key {
    fn new() -> Key {
        let mut registry = Registry::new();
        registry.register::<Probe>().unwrap();
        Key { registry, key: "acme/probe/k", now: 10_000, index: 0, cell: None }
    }

    fn send(&mut self, command: UserCommand) -> AgentReply {
        self.apply(AgentCommand::User(command))
    }

    fn apply(&mut self, command: AgentCommand) -> AgentReply {
        self.index += 1;
        let context = Context::new(LogTime::from_millis(self.now), self.index, Some(&self.registry));
        let outcome = AgentCell::command_in(&context, self.cell.as_ref(), self.key, command);
        self.put(outcome.next);
        outcome.reply
    }

    fn put(&mut self, next: Next<AgentCell>) {
        match next {
            Next::Keep => {}
            Next::Set(cell) => self.cell = Some(cell),
            Next::Remove => self.cell = None,
        }
    }

    /// Answers the module's reply, with a stamp that suffices.
    fn run(&mut self, command: ProbeCommand) -> u64 {
        match self.send(stamped(command)) {
            AgentReply::Ran { reply, .. } => decode(&reply).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn query(&self, query: AgentQuery) -> Option<AgentAnswer> {
        let context = Context::new(LogTime::from_millis(self.now), self.index, Some(&self.registry));
        self.cell.as_ref().map(|cell| cell.query_in(&context, self.key, query))
    }

    /// Count and timeouts.
    fn state(&self) -> Option<(u64, u64)> {
        match self.query(query())? {
            AgentAnswer::Answer(answer) => Some(decode(&answer).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// What the ticker does as time goes on.
    fn pass_seconds(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1_000;
            let due = self.cell.as_ref().and_then(KeyedValue::deadline);
            if due.is_some_and(|due| due.as_millis() <= self.now) {
                self.tick();
            }
        }
    }

    fn tick(&mut self) {
        self.index += 1;
        let context = Context::new(LogTime::from_millis(self.now), self.index, Some(&self.registry));
        let cell = self.cell.as_ref().unwrap();
        let outcome = AgentCell::timeout(&context, cell, self.key);
        self.put(outcome.next);
    }
}

fn unstamped(command: ProbeCommand) -> UserCommand {
    let command = encode(&command).unwrap().to_vec();
    UserCommand { incarnation: 5, version: 1, tick_millis: 1_000, stamp: None, command }
}

fn stamped(command: ProbeCommand) -> UserCommand {
    let stamp = Stamp { reservation: 9, holder: "s1".into(), use_by: u64::MAX };
    UserCommand { stamp: Some(stamp), ..unstamped(command) }
}

fn query() -> AgentQuery {
    AgentQuery { incarnation: 5, version: 1, query: encode(&()).unwrap().to_vec() }
}

#[test]
fn the_first_command_that_sets_a_state_activates_and_needs_a_place() {
    let mut key = Key::new();
    assert_eq!(key.send(unstamped(ProbeCommand::Count)), AgentReply::Refused(Refused::NeedsStamp));
    assert_eq!(key.cell, None, "a refused command changes nothing");
    let reply = key.send(stamped(ProbeCommand::Count));
    assert!(matches!(reply, AgentReply::Ran { activated: true, .. }), "{reply:?}");
    assert_eq!(key.cell.as_ref().unwrap().activation, Activation { incarnation: 5, reservation: 9 });
    let reply = key.send(unstamped(ProbeCommand::Count));
    assert!(matches!(reply, AgentReply::Ran { activated: false, .. }), "{reply:?}");
    assert_eq!(key.state(), Some((2, 0)));
    key.send(stamped(ProbeCommand::Count));
    assert_eq!(key.cell.unwrap().activation.reservation, 9, "an active agent takes no second place");
}

#[test]
fn a_place_is_good_up_to_its_time_in_log_time() {
    let mut key = Key::new();
    let use_by = |use_by| {
        let stamp = Stamp { reservation: 1, holder: "s1".into(), use_by };
        UserCommand { stamp: Some(stamp), ..unstamped(ProbeCommand::Count) }
    };
    let expired = AgentReply::Refused(Refused::StampExpired { log_time: 10_000 });
    assert_eq!(key.send(use_by(9_999)), expired);
    assert_eq!(key.cell, None);
    assert!(matches!(key.send(use_by(10_000)), AgentReply::Ran { activated: true, .. }));
}

#[test]
fn a_command_that_sets_no_state_needs_no_place_and_activates_nothing() {
    for command in [ProbeCommand::Look, ProbeCommand::Clear] {
        let mut key = Key::new();
        let reply = key.send(unstamped(command.clone()));
        assert!(matches!(reply, AgentReply::Ran { activated: false, .. }), "{command:?}: {reply:?}");
        assert_eq!(key.cell, None, "{command:?}");
    }
}

#[test]
fn removing_the_state_deactivates_and_the_next_command_starts_anew() {
    let mut key = Key::new();
    key.run(ProbeCommand::Count);
    key.run(ProbeCommand::Count);
    assert_eq!(key.run(ProbeCommand::Clear), 2);
    assert_eq!(key.state(), None);
    assert_eq!(key.run(ProbeCommand::Count), 1);
}

#[test]
fn what_cannot_run_is_refused_and_changes_nothing() {
    let mut key = Key::new();
    key.run(ProbeCommand::Count);
    let before = key.cell.clone();
    let other_version = UserCommand { version: 2, ..stamped(ProbeCommand::Count) };
    assert_eq!(key.send(other_version), AgentReply::Refused(Refused::OtherVersion { known: 1 }));
    let garbage = UserCommand { command: vec![0xFF; 5], ..stamped(ProbeCommand::Count) };
    assert!(matches!(key.send(garbage), AgentReply::Refused(Refused::Malformed(_))));
    let old = UserCommand { incarnation: 4, ..stamped(ProbeCommand::Count) };
    assert_eq!(key.send(old), AgentReply::Refused(Refused::OldIncarnation));
    key.key = "acme/nobody/k";
    assert_eq!(key.send(stamped(ProbeCommand::Count)), AgentReply::Refused(Refused::UnknownModule));
    key.key = "not a stored key";
    assert_eq!(key.send(stamped(ProbeCommand::Count)), AgentReply::Refused(Refused::UnknownModule));
    assert_eq!(key.cell, before);
}

#[test]
fn a_panic_is_answered_and_the_state_is_as_before() {
    let mut key = Key::new();
    let reply = key.send(stamped(ProbeCommand::Panic));
    assert!(matches!(&reply, AgentReply::Failed(reason) if reason.contains("told to")), "{reply:?}");
    assert_eq!(key.cell, None, "it activates nothing");
    key.run(ProbeCommand::Count);
    assert!(matches!(key.send(stamped(ProbeCommand::Panic)), AgentReply::Failed(_)));
    assert_eq!(key.state(), Some((1, 0)));
}

#[test]
fn an_agent_of_a_deleted_quota_counts_as_absent() {
    let mut key = Key::new();
    key.run(ProbeCommand::Count);
    key.run(ProbeCommand::Count);
    let of_new = |command: UserCommand| UserCommand { incarnation: 6, ..command };
    let answer = key.query(AgentQuery { incarnation: 6, ..query() });
    assert_eq!(answer, Some(AgentAnswer::NotFound { newer: false }));
    let answer = key.query(AgentQuery { incarnation: 4, ..query() });
    assert_eq!(answer, Some(AgentAnswer::NotFound { newer: true }));
    let reply = key.send(of_new(unstamped(ProbeCommand::Count)));
    assert_eq!(reply, AgentReply::Refused(Refused::NeedsStamp));
    let reply = key.send(of_new(stamped(ProbeCommand::Count)));
    let AgentReply::Ran { reply, activated: true } = reply else { panic!("{reply:?}") };
    assert_eq!(decode::<u64>(&reply).unwrap(), 1, "it starts without the old state");
}

#[test]
fn a_drop_ends_agents_up_to_its_incarnation() {
    for (incarnation, stays) in [(4, true), (5, false), (6, false)] {
        let mut key = Key::new();
        key.run(ProbeCommand::Count);
        assert_eq!(key.apply(AgentCommand::Drop { incarnation }), AgentReply::Dropped);
        assert_eq!(key.cell.is_some(), stays, "drop of {incarnation}");
    }
    assert_eq!(Key::new().apply(AgentCommand::Drop { incarnation: 9 }), AgentReply::Dropped);
}

#[test]
fn a_timeout_runs_after_its_ticks_and_is_set_again_by_its_handler() {
    let mut key = Key::new();
    key.run(ProbeCommand::Sleep { ticks: 3 });
    key.pass_seconds(2);
    assert_eq!(key.state(), Some((1, 0)));
    key.pass_seconds(1);
    assert_eq!(key.state(), Some((1, 1)));
    key.pass_seconds(1);
    assert_eq!(key.state(), Some((1, 2)), "it had set another, one tick later");
    key.pass_seconds(9);
    assert_eq!(key.state(), Some((1, 2)), "and no further one");
}

#[test]
fn a_command_keeps_overrides_or_clears_a_timeout() {
    let mut key = Key::new();
    key.run(ProbeCommand::Sleep { ticks: 3 });
    key.pass_seconds(2);
    key.run(ProbeCommand::Count);
    key.pass_seconds(1);
    assert_eq!(key.state(), Some((2, 1)), "kept");

    let mut key = Key::new();
    key.run(ProbeCommand::Sleep { ticks: 3 });
    key.pass_seconds(2);
    key.run(ProbeCommand::Sleep { ticks: 3 });
    key.pass_seconds(2);
    assert_eq!(key.state(), Some((2, 0)), "overridden");

    let mut key = Key::new();
    key.run(ProbeCommand::Sleep { ticks: 3 });
    key.run(ProbeCommand::Reset);
    key.pass_seconds(9);
    assert_eq!(key.state(), Some((1, 0)), "cleared");
}

#[test]
fn an_agent_without_commands_is_deactivated_and_queries_do_not_count() {
    let mut key = Key::new();
    key.run(ProbeCommand::CountFor { ticks: 3 });
    key.pass_seconds(2);
    key.run(ProbeCommand::Look);
    key.pass_seconds(2);
    assert_eq!(key.state(), Some((1, 0)), "a command was activity, though it changed nothing");
    key.pass_seconds(1);
    assert_eq!(key.state(), None, "the query in between was not");
}

#[test]
fn a_tick_that_comes_early_changes_nothing() {
    let mut key = Key::new();
    key.run(ProbeCommand::Sleep { ticks: 3 });
    let before = key.cell.clone();
    key.tick();
    assert_eq!(key.cell, before);
}

#[test]
fn a_timeout_that_panics_or_has_no_code_is_not_due_at_every_tick() {
    let mut key = Key::new();
    key.run(ProbeCommand::Poison);
    key.pass_seconds(1);
    assert_eq!(key.cell.as_ref().unwrap().schedule, Schedule::Idle);
    assert_eq!(key.state(), Some((POISON, 0)));

    let mut key = Key::new();
    key.run(ProbeCommand::Sleep { ticks: 1 });
    key.registry = Registry::new();
    key.pass_seconds(1);
    let due = key.cell.as_ref().unwrap().schedule.due().unwrap();
    assert_eq!(due, 11 + UNKNOWN_MODULE_RETRY_TICKS);
}

#[test]
fn a_changed_tick_interval_keeps_the_moment_of_what_is_due() {
    let mut key = Key::new();
    key.run(ProbeCommand::Sleep { ticks: 4 });
    key.send(UserCommand { tick_millis: 500, ..stamped(ProbeCommand::Count) });
    assert_eq!(key.cell.as_ref().unwrap().deadline(), Some(LogTime::from_millis(14_000)));
}

#[test]
fn the_archive_of_commands_and_cells_reads_back() {
    let mut key = Key::new();
    key.run(ProbeCommand::CountFor { ticks: 3 });
    let cell = key.cell.unwrap();
    assert_eq!(decode::<AgentCell>(&encode(&cell).unwrap()).unwrap(), cell);
    let command = AgentCommand::User(stamped(ProbeCommand::Count));
    assert_eq!(decode::<AgentCommand>(&encode(&command).unwrap()).unwrap(), command);
}
