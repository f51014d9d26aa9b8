//! From a module's name to its code, erased to bytes: the replicated type of all agents finds it in its
//! environment, so that no global is needed.

use std::any::Any;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rafted_value::{decode, encode};

use crate::behaviour::{Agent, Moment, Next};
use crate::id::{AgentId, IdError, check_name};
use crate::on_tick::OnTick;

/// The modules that a node knows. Every node of a cluster must know the same.
#[derive(Clone, Default)]
pub struct Registry {
    modules: BTreeMap<&'static str, Arc<dyn Module>>,
}

/// A module that cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Its name is not allowed.
    #[error(transparent)]
    Name(#[from] IdError),
    /// Another type has the name.
    #[error("the module {module:?} is registered already: give each agent type a MODULE of its own")]
    Twice {
        /// The name.
        module: &'static str,
    },
}

impl Registry {
    /// Without modules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the module of `A`.
    pub fn register<A: Agent>(&mut self) -> Result<(), RegisterError> {
        check_name("module", A::MODULE)?;
        if self.modules.contains_key(A::MODULE) {
            return Err(RegisterError::Twice { module: A::MODULE });
        }
        self.modules.insert(A::MODULE, Arc::new(Typed::<A>(PhantomData)));
        Ok(())
    }

    /// The names, in order.
    pub fn modules(&self) -> impl Iterator<Item = &'static str> {
        self.modules.keys().copied()
    }

    pub(crate) fn module(&self, name: &str) -> Option<&dyn Module> {
        self.modules.get(name).map(AsRef::as_ref)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.modules.keys()).finish()
    }
}

/// An encoded state, and the version of the module that wrote it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredState<'a> {
    pub(crate) version: u32,
    pub(crate) bytes: &'a [u8],
}

/// What a handler wanted, in bytes.
#[derive(Debug)]
pub(crate) struct Handled {
    pub(crate) next: Next<Vec<u8>>,
    pub(crate) reply: Vec<u8>,
    pub(crate) on_tick: OnTick,
}

/// Why a handler did not run to its end. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HandlerError {
    /// The command or query is not of the module.
    Malformed(String),
    /// It panicked, or its state cannot be read or written.
    Failed(String),
}

/// A module, erased.
pub(crate) trait Module: Send + Sync {
    fn version(&self) -> u32;
    fn command(
        &self,
        moment: Moment,
        id: &AgentId,
        state: Option<StoredState<'_>>,
        command: &[u8],
    ) -> Result<Handled, HandlerError>;
    fn timeout(&self, moment: Moment, id: &AgentId, state: StoredState<'_>) -> Result<Handled, HandlerError>;
    fn query(&self, id: &AgentId, state: StoredState<'_>, query: &[u8]) -> Result<Vec<u8>, HandlerError>;
}

struct Typed<A>(PhantomData<fn() -> A>);

impl<A: Agent> Module for Typed<A> {
    fn version(&self) -> u32 {
        A::VERSION
    }

    fn command(
        &self,
        moment: Moment,
        id: &AgentId,
        state: Option<StoredState<'_>>,
        command: &[u8],
    ) -> Result<Handled, HandlerError> {
        let command = decode::<A::Command>(command).map_err(|error| HandlerError::Malformed(error.to_string()))?;
        let state = state.map(read::<A>).transpose()?;
        contained(id, || A::handle_command_at(moment, id, state.as_ref(), command)).and_then(erase)
    }

    fn timeout(&self, moment: Moment, id: &AgentId, state: StoredState<'_>) -> Result<Handled, HandlerError> {
        let state = read::<A>(state)?;
        contained(id, || state.handle_timeout_at(moment, id)).and_then(erase)
    }

    fn query(&self, id: &AgentId, state: StoredState<'_>, query: &[u8]) -> Result<Vec<u8>, HandlerError> {
        let query = decode::<A::Query>(query).map_err(|error| HandlerError::Malformed(error.to_string()))?;
        let state = read::<A>(state)?;
        let answer = contained(id, || state.handle_query(id, query))?;
        encode(&answer).map(|bytes| bytes.to_vec()).map_err(failed)
    }
}

fn read<A: Agent>(state: StoredState<'_>) -> Result<A, HandlerError> {
    if state.version == A::VERSION {
        decode(state.bytes).map_err(failed)
    } else {
        A::upgrade(state.version, state.bytes).map_err(failed)
    }
}

fn erase<A: Agent, R: rafted_value::Wire>(outcome: crate::behaviour::Outcome<A, R>) -> Result<Handled, HandlerError> {
    let next = match outcome.next {
        Next::Keep => Next::Keep,
        Next::Set(state) => Next::Set(encode(&state).map_err(failed)?.to_vec()),
        Next::Remove => Next::Remove,
    };
    let reply = encode(&outcome.reply).map_err(failed)?.to_vec();
    Ok(Handled { next, reply, on_tick: outcome.on_tick })
}

fn failed(error: impl std::fmt::Display) -> HandlerError {
    HandlerError::Failed(error.to_string())
}

/// Runs a handler; a panic becomes an error. The handler sees the state by reference only, so that none of its
/// changes survive, and every replica comes to the same end.
fn contained<T>(id: &AgentId, handler: impl FnOnce() -> T) -> Result<T, HandlerError> {
    catch_unwind(AssertUnwindSafe(handler)).map_err(|panic| {
        let reason = panic_message(panic.as_ref());
        HandlerError::Failed(format!("the code of agent {id} panicked: {reason}"))
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::behaviour::Outcome;
    use rafted_value::LogTime;

    rafted_value::messages! {
        struct Sum { total: i64 }
        enum SumCommand { Add(i64), Panic, PanicWith(String) }
    }

    impl Agent for Sum {
        const MODULE: &'static str = "sum";
        type Command = SumCommand;
        type Reply = i64;
        type Query = ();
        type Answer = i64;

        fn handle_command(_: &AgentId, state: Option<&Self>, command: SumCommand) -> Outcome<Self, i64> {
            let total = state.map_or(0, |state| state.total);
            match command {
                SumCommand::Add(n) => Outcome::set(Sum { total: total + n }, total + n),
                SumCommand::Panic => panic!("as asked"),
                SumCommand::PanicWith(text) => panic!("with {text}"),
            }
        }

        fn handle_query(&self, _: &AgentId, (): ()) -> i64 {
            self.total
        }
    }

    rafted_value::messages! { struct Unit; }
    impl Agent for Unit {
        const MODULE: &'static str = "a module";
        type Command = ();
        type Reply = ();
        type Query = ();
        type Answer = ();
        fn handle_command(_: &AgentId, _: Option<&Self>, (): ()) -> Outcome<Self, ()> {
            Outcome::keep(())
        }
        fn handle_query(&self, _: &AgentId, (): ()) {}
    }

    fn moment() -> Moment {
        Moment { log_time: LogTime::from_millis(1), tick_interval: std::time::Duration::from_secs(1) }
    }

    fn id() -> AgentId {
        AgentId::new("q", "sum", "k").unwrap()
    }

    fn registry() -> Registry {
        let mut registry = Registry::new();
        registry.register::<Sum>().unwrap();
        registry
    }

    fn run(command: &SumCommand, state: Option<&[u8]>) -> Result<Handled, HandlerError> {
        let state = state.map(|bytes| StoredState { version: 1, bytes });
        registry().module("sum").unwrap().command(moment(), &id(), state, &encode(command).unwrap())
    }

    #[test]
    fn a_name_is_registered_once_and_must_be_a_name() {
        let mut registry = registry();
        assert_eq!(registry.register::<Sum>(), Err(RegisterError::Twice { module: "sum" }));
        assert!(matches!(registry.register::<Unit>(), Err(RegisterError::Name(_))));
        assert_eq!(registry.modules().collect::<Vec<_>>(), ["sum"]);
        assert!(registry.module("other").is_none());
    }

    #[test]
    fn commands_and_queries_go_through_bytes() {
        let handled = run(&SumCommand::Add(3), None).unwrap();
        let Next::Set(state) = handled.next else { panic!("{handled:?}") };
        assert_eq!(decode::<i64>(&handled.reply).unwrap(), 3);
        let handled = run(&SumCommand::Add(4), Some(&state)).unwrap();
        assert_eq!(decode::<i64>(&handled.reply).unwrap(), 7);
        let registry = registry();
        let stored = StoredState { version: 1, bytes: &state };
        let answer = registry.module("sum").unwrap().query(&id(), stored, &encode(&()).unwrap()).unwrap();
        assert_eq!(decode::<i64>(&answer).unwrap(), 3);
    }

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        for (command, words) in [(SumCommand::Panic, "as asked"), (SumCommand::PanicWith("x".into()), "with x")] {
            let Err(HandlerError::Failed(reason)) = run(&command, None) else { panic!("{command:?}") };
            assert!(reason.contains(words), "{reason}");
        }
    }

    #[test]
    fn bytes_of_something_else_are_errors() {
        let registry = registry();
        let module = registry.module("sum").unwrap();
        let wrong = module.command(moment(), &id(), None, &[0xFF; 3]);
        assert!(matches!(wrong, Err(HandlerError::Malformed(_))), "{wrong:?}");
        let damaged = run(&SumCommand::Add(1), Some(&[1]));
        assert!(matches!(damaged, Err(HandlerError::Failed(_))), "{damaged:?}");
    }

    #[test]
    fn a_state_of_another_version_asks_for_an_upgrade() {
        let stored = StoredState { version: 9, bytes: &[] };
        let registry = registry();
        let result = registry.module("sum").unwrap().timeout(moment(), &id(), stored);
        let Err(HandlerError::Failed(reason)) = result else { panic!("{result:?}") };
        assert!(reason.contains("version 9"), "{reason}");
    }
}
