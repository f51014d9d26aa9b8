//! The built-in modules as conversations in JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::behaviour::Next;
use crate::node::codec::{Codecs, HttpAgent};
use crate::on_tick::Schedule;
use crate::registry::{Registry, StoredState};

/// One agent with a clock of one second per tick, spoken to in JSON.
struct Desk {
    registry: Registry,
    codecs: Codecs,
    id: AgentId,
    state: Option<Vec<u8>>,
    schedule: Schedule,
    now: u64,
}

impl Desk {
    fn new<A: HttpAgent>() -> Desk {
        let mut registry = Registry::new();
        registry.register::<A>().unwrap();
        let mut codecs = Codecs::default();
        codecs.insert::<A>();
        let id = AgentId::new("q", A::MODULE, "k").unwrap();
        Desk { registry, codecs, id, state: None, schedule: Schedule::Idle, now: 5_300 }
    }

    fn moment(&self) -> Moment {
        Moment { log_time: LogTime::from_millis(self.now), tick_interval: Duration::from_secs(1) }
    }

    fn command(&mut self, command: Value) -> Value {
        let codec = self.codecs.get(self.id.module()).unwrap();
        let bytes = codec.command(command.to_string().as_bytes()).unwrap();
        let state = self.state.as_deref().map(|bytes| StoredState { version: 1, bytes });
        let module = self.registry.module(self.id.module()).unwrap();
        let handled = module.command(self.moment(), &self.id, state, &bytes).unwrap();
        self.schedule = self.schedule.after_command(handled.on_tick, self.moment().tick());
        self.put(handled.next);
        codec.reply(&handled.reply).unwrap()
    }

    fn put(&mut self, next: Next<Vec<u8>>) {
        match next {
            Next::Keep => {}
            Next::Set(state) => self.state = Some(state),
            Next::Remove => self.state = None,
        }
    }

    /// Null where there is no agent.
    fn query(&self, query: Value) -> Value {
        let Some(bytes) = &self.state else { return json!("no agent") };
        let codec = self.codecs.get(self.id.module()).unwrap();
        let query = codec.query(query.to_string().as_bytes()).unwrap();
        let module = self.registry.module(self.id.module()).unwrap();
        codec.answer(&module.query(&self.id, StoredState { version: 1, bytes }, &query).unwrap()).unwrap()
    }

    fn pass_seconds(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1_000;
            if self.schedule.due().is_some_and(|due| due <= self.moment().tick()) {
                self.fire();
            }
        }
    }

    fn fire(&mut self) {
        if matches!(self.schedule, Schedule::Deactivate { .. }) {
            self.state = None;
            self.schedule = Schedule::Idle;
            return;
        }
        let module = self.registry.module(self.id.module()).unwrap();
        let bytes = self.state.as_deref().unwrap();
        let handled = module.timeout(self.moment(), &self.id, StoredState { version: 1, bytes }).unwrap();
        self.schedule = Schedule::after_timeout(handled.on_tick, self.moment().tick());
        self.put(handled.next);
    }

    fn converse(&mut self, lines: &[(&str, Value, Value)]) {
        for (what, given, expected) in lines {
            let answer = match *what {
                "command" => self.command(given.clone()),
                "query" => self.query(given.clone()),
                _ => {
                    self.pass_seconds(given.as_u64().unwrap());
                    Value::Null
                }
            };
            assert_eq!(&answer, expected, "{what} {given}");
        }
    }
}

#[test]
fn a_counter_adds() {
    Desk::new::<Counter>().converse(&[
        ("query", json!("get"), json!("no agent")),
        ("command", json!({"add": 1}), json!(1)),
        ("command", json!({"add": -5}), json!(-4)),
        ("query", json!("get"), json!(-4)),
        ("command", json!({"add": i64::MIN}), json!(i64::MIN)),
    ]);
}

#[test]
fn a_register_sets_compares_and_clears() {
    Desk::new::<Register>().converse(&[
        ("command", json!({"cas": [1, 2]}), json!(false)),
        ("query", json!("get"), json!("no agent")),
        ("command", json!({"cas": [null, {"a": 1, "b": 2}]}), json!(true)),
        ("command", json!({"cas": [{"b": 2, "a": 1.0}, "x"]}), json!(true)),
        ("command", json!({"set": [1, null]}), json!("x")),
        ("query", json!("get"), json!([1, null])),
        ("command", json!("clear"), json!(null)),
        ("query", json!("get"), json!("no agent")),
        ("command", json!({"set": null}), json!(null)),
        ("query", json!("get"), json!(null)),
    ]);
}

#[test]
fn a_log_keeps_the_order() {
    Desk::new::<Log>().converse(&[
        ("command", json!({"append": "a"}), json!(1)),
        ("command", json!({"append": {"b": []}}), json!(2)),
        ("query", json!({"from": 0}), json!(["a", {"b": []}])),
        ("query", json!({"from": 1}), json!([{"b": []}])),
        ("query", json!({"from": 2}), json!([])),
        ("query", json!({"from": u64::MAX}), json!([])),
    ]);
}

#[test]
fn a_lease_is_held_by_one_until_it_expires() {
    Desk::new::<Lease>().converse(&[
        ("command", json!({"release": {"owner": "ann"}}), json!(false)),
        ("query", json!("owner"), json!("no agent")),
        ("command", json!({"acquire": {"owner": "ann", "ticks": 3}}), json!(true)),
        ("command", json!({"acquire": {"owner": "bob", "ticks": 3}}), json!(false)),
        ("pass", json!(2), json!(null)),
        ("query", json!("owner"), json!("ann")),
        ("command", json!({"acquire": {"owner": "ann", "ticks": 3}}), json!(true)),
        ("pass", json!(2), json!(null)),
        ("query", json!("owner"), json!("ann")),
        ("command", json!({"release": {"owner": "bob"}}), json!(false)),
        ("pass", json!(1), json!(null)),
        ("query", json!("owner"), json!(null)),
        ("command", json!({"acquire": {"owner": "bob", "ticks": 9}}), json!(true)),
        ("command", json!({"release": {"owner": "bob"}}), json!(true)),
        ("query", json!("owner"), json!(null)),
        ("pass", json!(FREE_LEASE_TICKS), json!(null)),
        ("query", json!("owner"), json!("no agent")),
    ]);
}

#[test]
fn a_timer_brings_up_its_notes_in_the_order_of_their_times() {
    Desk::new::<Timer>().converse(&[
        ("command", json!({"after": {"ticks": 5, "note": "late"}}), json!(null)),
        ("pass", json!(1), json!(null)),
        ("command", json!({"after": {"ticks": 2, "note": "soon"}}), json!(null)),
        ("command", json!({"after": {"ticks": 4, "note": ["late", 2]}}), json!(null)),
        ("query", json!("fired"), json!([])),
        ("pass", json!(2), json!(null)),
        ("query", json!("fired"), json!(["soon"])),
        ("pass", json!(2), json!(null)),
        ("query", json!("fired"), json!(["soon", "late", ["late", 2]])),
        ("pass", json!(9), json!(null)),
        ("query", json!("fired"), json!(["soon", "late", ["late", 2]])),
    ]);
}

#[test]
fn what_is_not_of_the_module_is_refused_in_words() {
    let mut codecs = Codecs::default();
    codecs.insert::<Counter>();
    codecs.insert::<Lease>();
    codecs.insert::<Timer>();
    let wrong = [
        ("counter", r#"{"sub": 1}"#),
        ("counter", r#"{"add": "1"}"#),
        ("counter", r#"{"add": 1, "add2": 2}"#),
        ("counter", r#"{"add": 9223372036854775808}"#),
        ("counter", r#"{"add": 1"#),
        ("counter", "{\"add\": 1}x"),
        ("counter", ""),
        ("lease", r#"{"acquire": {"owner": "ann"}}"#),
        ("lease", r#"{"acquire": {"owner": "ann", "ticks": -1}}"#),
        ("lease", r#"{"acquire": {"owner": "ann", "ticks": 1, "more": 2}}"#),
        ("timer", r#"{"after": {"ticks": 1}}"#),
    ];
    for (module, text) in wrong {
        let error = codecs.get(module).unwrap().command(text.as_bytes()).unwrap_err();
        assert!(!error.to_string().is_empty(), "{module} {text}");
    }
}
