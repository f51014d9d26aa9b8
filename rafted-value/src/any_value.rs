//! A [`Value`] behind bytes: the one place where the user's type meets the group's machinery. The user's code
//! runs under `catch_unwind` here and nowhere else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;

use crate::hook::{self, AnyHook, LeaderHook};
use crate::pieces::{PieceError, PieceReader, PieceSink, PieceSource, PieceWriter};
use crate::value::{Context, UpgradeError, Value, read_command};
use crate::wire::{Wire, check, decode, encode};

/// Why a command has no reply.
#[derive(Debug)]
pub(crate) enum CommandFault {
    /// It failed alike on every replica: the code panicked, or the bytes are no command of this version.
    Failed(String),
    /// This program cannot read it and another may: going on would make this replica differ.
    Unreadable(UpgradeError),
}

/// A value of some type.
pub(crate) trait AnyValue: Send + Sync {
    /// Runs an encoded command.
    fn command(&mut self, context: &Context<'_>, schema: u32, payload: &[u8]) -> Result<Bytes, CommandFault>;
    fn query(&self, context: &Context<'_>, query: &[u8]) -> Result<Bytes, String>;
    /// A copy that further commands do not change.
    fn freeze(&self) -> Box<dyn AnyValue>;
    /// Writes it into a snapshot.
    fn write_pieces(&self, sink: &mut dyn PieceSink) -> Result<(), PieceError>;
    fn version(&self) -> u32;
    fn as_any(&self) -> &dyn Any;
}

type Restore = fn(u32, &mut dyn PieceSource) -> Result<Box<dyn AnyValue>, UpgradeError>;

/// Makes values of one type, empty or from a snapshot.
#[derive(Clone)]
pub struct ValueFactory {
    create: fn() -> Box<dyn AnyValue>,
    restore: Restore,
    version: u32,
    can_read: fn(u32, &[u8]) -> Result<(), UpgradeError>,
    check: fn(&[u8]) -> Result<(), UpgradeError>,
    environment: Option<Arc<dyn Any + Send + Sync>>,
    hook: Option<Arc<dyn AnyHook>>,
}

impl ValueFactory {
    /// For values of type `V`; `environment` is what [`Context::environment`] gives its code.
    pub fn of<V: Value>(environment: Option<Arc<dyn Any + Send + Sync>>) -> Self {
        Self {
            create: || Box::new(Typed(V::default())),
            restore: |version, source| {
                let read = contained(|| V::read_pieces(version, &mut PieceReader::new(source)));
                Ok(Box::new(Typed(read.map_err(PieceError::Failed)??)))
            },
            version: V::VERSION,
            // Of this version, it is read when it is applied.
            can_read: |version, bytes| {
                if version == V::VERSION { Ok(()) } else { upgraded::<V>(version, bytes).map(drop) }
            },
            check: |bytes| Ok(contained(|| check::<V::Command>(bytes)).map_err(UpgradeError::Failed)??),
            environment,
            hook: None,
        }
    }

    /// The same, with a hook that runs beside the replica while it leads.
    pub fn with_hook<V: Value>(environment: Option<Arc<dyn Any + Send + Sync>>, hook: impl LeaderHook<V>) -> Self {
        Self { hook: Some(hook::erased(hook)), ..Self::of::<V>(environment) }
    }

    pub(crate) fn hooked(self, hook: Option<Arc<dyn AnyHook>>) -> Self {
        Self { hook, ..self }
    }

    pub(crate) fn hook(&self) -> Option<&Arc<dyn AnyHook>> {
        self.hook.as_ref()
    }

    pub(crate) fn create(&self) -> Box<dyn AnyValue> {
        (self.create)()
    }

    /// Reads a value of any version from a snapshot.
    pub(crate) fn restore(
        &self,
        version: u32,
        source: &mut dyn PieceSource,
    ) -> Result<Box<dyn AnyValue>, UpgradeError> {
        (self.restore)(version, source)
    }

    /// Whether a command is one: of this program's version, or of another that it reads. What is none of its own version
    /// fails alike wherever that version runs; a later program cannot tell it from what it has forgotten how to read.
    pub(crate) fn check(&self, version: u32, payload: &[u8]) -> Result<(), UpgradeError> {
        if version == self.version { (self.check)(payload) } else { self.can_read(version, payload) }
    }

    /// Whether a logged command can be applied: one that this program cannot read would stop it.
    pub(crate) fn can_read(&self, version: u32, payload: &[u8]) -> Result<(), UpgradeError> {
        (self.can_read)(version, payload)
    }

    /// The program's version of the value.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn environment(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.environment.as_deref()
    }
}

impl std::fmt::Debug for ValueFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ValueFactory").finish_non_exhaustive()
    }
}

/// Reads a command of any version. A panic in the code that reads another version's is no answer of the command: other
/// replicas, of that version, run it.
fn upgraded<V: Value>(version: u32, bytes: &[u8]) -> Result<V::Command, UpgradeError> {
    if version == V::VERSION {
        return read_command::<V>(version, bytes);
    }
    contained(|| read_command::<V>(version, bytes)).unwrap_or_else(|message| Err(UpgradeError::Failed(message)))
}

struct Typed<V>(V);

impl<V: Value> AnyValue for Typed<V> {
    fn command(&mut self, context: &Context<'_>, schema: u32, payload: &[u8]) -> Result<Bytes, CommandFault> {
        // All of the user's code: also what reads a command, writes a reply, and drops both.
        let run = || {
            let command = match upgraded::<V>(schema, payload) {
                Ok(command) => command,
                Err(UpgradeError::Malformed(error)) if schema == V::VERSION => {
                    return Err(CommandFault::Failed(error.to_string()));
                }
                Err(error) => return Err(CommandFault::Unreadable(error)),
            };
            encoded(&self.0.command_in(context, command)).map_err(CommandFault::Failed)
        };
        contained(run).unwrap_or_else(|message| Err(CommandFault::Failed(message)))
    }

    fn query(&self, context: &Context<'_>, query: &[u8]) -> Result<Bytes, String> {
        contained(|| {
            let query: V::Query = decode(query).map_err(|error| error.to_string())?;
            encoded(&self.0.query_in(context, query))
        })?
    }

    fn freeze(&self) -> Box<dyn AnyValue> {
        Box::new(Self(self.0.clone()))
    }

    fn write_pieces(&self, sink: &mut dyn PieceSink) -> Result<(), PieceError> {
        contained(|| self.0.write_pieces(&mut PieceWriter::new(sink))).map_err(PieceError::Failed)?
    }

    fn version(&self) -> u32 {
        V::VERSION
    }

    fn as_any(&self) -> &dyn Any {
        &self.0
    }
}

fn encoded<T: Wire>(value: &T) -> Result<Bytes, String> {
    encode(value).map(|bytes| Bytes::copy_from_slice(&bytes)).map_err(|error| error.to_string())
}

/// Drops a value, whatever its destructor does.
pub(crate) fn discard(value: Box<dyn AnyValue>) {
    if let Err(message) = contained(|| drop(value)) {
        tracing::error!(message, "a value's destructor failed; what it held may be lost to this process");
    }
}

/// Runs the user's code; a panic becomes its message.
fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        format!("it panicked: {message}")
    })
}
