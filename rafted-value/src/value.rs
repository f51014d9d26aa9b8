//! The trait that a replicated value implements: pure, no clock, no randomness, no I/O.

use std::any::Any;
use std::fmt;

use crate::pieces::{PieceError, PieceReader, PieceWriter};
use crate::wire::{Wire, WireError, decode};

/// A value that a Raft group replicates.
///
/// Both functions are pure: the same value and argument give the same result on every replica, for ever.
/// They read no clock (see [`Context::log_time`]), no randomness, no order of a hash map and nothing
/// outside.
///
/// # Snapshots of a large value
/// `Clone` freezes the value for a snapshot, while commands wait: it should take a few milliseconds at most. What is
/// frozen is written while commands go on. So what a snapshot costs depends on the value:
///
/// | | commands wait for | memory beside the value |
/// |---|---|---|
/// | a plain value | a copy of all of it, some 1 ms per MiB | the copy, and all of it encoded |
/// | ... with [`Value::write_pieces`] | the same | the copy, and one piece |
/// | behind `Arc`s or persistent collections, with [`Value::write_pieces`] | some microseconds | what commands change meanwhile, and one piece |
///
/// A member that is given a snapshot holds the old and the new value for a moment.
///
/// A `command` that panics is answered with an error on every replica and the group goes on, but the
/// value keeps whatever the command had changed before it panicked: check before you change. It is the same for a panic
/// while a command is read or dropped, or a reply is written. A `query` that panics is answered with an error. A value
/// whose `clone` or `write_pieces` panics gets no snapshot: the log is kept and grows, and it is tried again now and then.
/// A destructor that panics is contained.
pub trait Value: Wire + Clone + Default {
    /// Raised when the archived form of the value or its commands changes; see [`Value::upgrade`] and
    /// [`Value::upgrade_command`]: a version must read the commands of the one before it.
    ///
    /// A group is upgraded node by node. Commands of a new version are proposed from the moment on when every member,
    /// voter or learner, says that its program reads them; before, they are refused, or sent in an older form by
    /// [`Value::downgrade_command`]. An older program that is started again where newer commands or snapshots are stored
    /// says so and changes nothing. Queries, answers and replies carry no version: they keep their archived form while two
    /// versions run side by side (give a new kind of query a field for it beforehand, or stop all nodes to change them).
    const VERSION: u32 = 1;
    /// What changes the value.
    type Command: Wire;
    /// What a command answers.
    type Reply: Wire;
    /// What reads the value.
    type Query: Wire;
    /// What a query answers.
    type Answer: Wire;

    /// Runs a committed command.
    fn command(&mut self, command: Self::Command) -> Self::Reply;

    /// Reads.
    fn query(&self, query: Self::Query) -> Self::Answer;

    /// Runs a committed command, and knows when: what the runtime calls. Override it instead of relying
    /// on [`Value::command`] where log time, index or environment matter.
    fn command_in(&mut self, context: &Context<'_>, command: Self::Command) -> Self::Reply {
        let _ = context;
        self.command(command)
    }

    /// Reads, and knows the log time of the last command: what the runtime calls.
    fn query_in(&self, context: &Context<'_>, query: Self::Query) -> Self::Answer {
        let _ = context;
        self.query(query)
    }

    /// Reads a command that was written by another [`Value::VERSION`] and may still stand in the log. The default
    /// knows none: a replica that finds one stops, since going on without it would make it differ from others.
    fn upgrade_command(version: u32, bytes: &[u8]) -> Result<Self::Command, UpgradeError> {
        let _ = bytes;
        Err(UpgradeError::UnknownVersion { found: version, known: Self::VERSION })
    }

    /// Writes the value into a snapshot, not on the thread that runs commands. The default writes one piece, for which
    /// all of the value is encoded in memory; a large value writes many small ones, and overrides
    /// [`Value::read_pieces`], too.
    ///
    /// ```
    /// # use std::collections::BTreeMap;
    /// use rafted_value::{PieceError, PieceReader, PieceWriter, UpgradeError, Value};
    /// # rafted_value::messages! { #[derive(Default)] pub struct Names { names: BTreeMap<u64, String> } }
    /// # impl Names { const NAMES_PER_PIECE: usize = 1_000; }
    ///
    /// impl Value for Names {
    /// #   type Command = (); type Reply = (); type Query = (); type Answer = ();
    /// #   fn command(&mut self, (): ()) {}
    /// #   fn query(&self, (): ()) {}
    ///     fn write_pieces(&self, pieces: &mut PieceWriter<'_>) -> Result<(), PieceError> {
    ///         let mut names = self.names.iter().map(|(id, name)| (*id, name.clone())).peekable();
    ///         while names.peek().is_some() {
    ///             pieces.write(&names.by_ref().take(Self::NAMES_PER_PIECE).collect::<Vec<_>>())?;
    ///         }
    ///         Ok(())
    ///     }
    ///
    ///     fn read_pieces(version: u32, pieces: &mut PieceReader<'_>) -> Result<Self, UpgradeError> {
    ///         if version != Self::VERSION {
    ///             return Err(UpgradeError::UnknownVersion { found: version, known: Self::VERSION });
    ///         }
    ///         let mut value = Self::default();
    ///         while let Some(names) = pieces.read::<Vec<(u64, String)>>()? {
    ///             value.names.extend(names);
    ///         }
    ///         Ok(value)
    ///     }
    /// }
    /// # let value = Names { names: (0..2_500).map(|id| (id, format!("name {id}"))).collect() };
    /// # let mut list = Vec::new();
    /// # value.write_pieces(&mut PieceWriter::to_list(&mut list)).unwrap();
    /// # assert_eq!(list.len(), 3);
    /// # assert_eq!(Names::read_pieces(1, &mut PieceReader::of_list(&mut list.into_iter())).unwrap(), value);
    /// ```
    fn write_pieces(&self, pieces: &mut PieceWriter<'_>) -> Result<(), PieceError> {
        pieces.write(self)
    }

    /// Reads what [`Value::write_pieces`] wrote, to its last piece: what is left over is an error. `version` is the
    /// writer's: the default gives the one piece of another version to [`Value::upgrade`]; a value that overrides this
    /// reads older versions here, the ones in one piece as well.
    fn read_pieces(version: u32, pieces: &mut PieceReader<'_>) -> Result<Self, UpgradeError> {
        let whole = pieces.read_bytes()?.ok_or(PieceError::Missing)?;
        if version == Self::VERSION { Ok(decode(whole)?) } else { Self::upgrade(version, whole) }
    }

    /// Encodes a command for members whose program has the older `version`; `None` if that version cannot say it. With
    /// this, upgraded nodes go on serving while others of the group are not yet upgraded; the default has no way, and
    /// new commands are refused until every member reads them ([`NotHappened::VersionNotReadable`]).
    ///
    /// [`NotHappened::VersionNotReadable`]: crate::NotHappened::VersionNotReadable
    fn downgrade_command(version: u32, command: &Self::Command) -> Option<Vec<u8>> {
        let _ = (version, command);
        None
    }

    /// Reads a snapshot that was written by another [`Value::VERSION`] in one piece. The default knows none.
    fn upgrade(version: u32, bytes: &[u8]) -> Result<Self, UpgradeError> {
        let _ = bytes;
        Err(UpgradeError::UnknownVersion { found: version, known: Self::VERSION })
    }
}

/// Milliseconds since the Unix epoch as the group's leaders stamped them: it never goes back, and every
/// replica sees the same. It is near wall time, but only the log decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogTime(u64);

impl LogTime {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Later by `duration`, at most the largest time there is.
    pub fn saturating_add(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for LogTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// The moment at which a command or query runs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    log_time: LogTime,
    index: u64,
    environment: Option<&'a (dyn Any + Send + Sync)>,
}

impl<'a> Context<'a> {
    /// A moment; the runtime makes these, and tests of a value.
    pub fn new(log_time: LogTime, index: u64, environment: Option<&'a (dyn Any + Send + Sync)>) -> Self {
        Self { log_time, index, environment }
    }

    /// The command's log time; for a query, that of the last command before it.
    pub fn log_time(&self) -> LogTime {
        self.log_time
    }

    /// The command's log index; for a query, that of the last entry applied before it.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// What was registered beside the type, such as a table of handlers. It must be the same on every node.
    pub fn environment<T: Any>(&self) -> Option<&'a T> {
        self.environment.and_then(|environment| environment.downcast_ref())
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("log_time", &self.log_time).field("index", &self.index).finish_non_exhaustive()
    }
}

/// A snapshot or command of another version could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// No code for this version.
    #[error("written by version {found} of the value, this program has version {known}; run a program that knows both")]
    UnknownVersion {
        /// The writer's version.
        found: u32,
        /// The program's version.
        known: u32,
    },
    /// The code that reads them failed.
    #[error("the code that reads another version failed: {0}")]
    Failed(String),
    /// The bytes are not of that version.
    #[error("the bytes are not of their version: {0}")]
    Malformed(#[from] WireError),
    /// The snapshot's pieces are not what the value expects.
    #[error("the pieces of the snapshot cannot be read: {0}")]
    Pieces(#[from] PieceError),
}

/// Reads a command of any version.
pub(crate) fn read_command<V: Value>(version: u32, bytes: &[u8]) -> Result<V::Command, UpgradeError> {
    if version == V::VERSION { Ok(decode(bytes)?) } else { V::upgrade_command(version, bytes) }
}
