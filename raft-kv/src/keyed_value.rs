//! The trait that the value of one key implements: pure, the old state in by reference, the next one out.

use rafted_value::{Context, LogTime, Wire};

/// The value of one key of a keyspace.
///
/// A key that was never written, or was removed, has no value: the first command finds `None`. The functions
/// are pure: the same arguments give the same result on every replica, for ever; no clock, no randomness, no
/// order of a hash map, nothing from outside. One that panics changes nothing, is answered with an error,
/// and leaves other keys alone.
///
/// A value is replaced as a whole. Keep a large one behind `Arc`s, so that making the next one is cheap.
pub trait KeyedValue: Wire + Clone {
    /// Names the type in keyspaces and on the wire, 1 to 128 of `[A-Za-z0-9_.-]`. Do not change it.
    const NAME: &'static str;
    /// Raised when the archived form of the value or its commands changes; below 65,536.
    const VERSION: u32 = 1;
    /// What changes a value.
    type Command: Wire;
    /// What a command answers.
    type Reply: Wire;
    /// What reads a value.
    type Query: Wire;
    /// What a query answers.
    type Answer: Wire;

    /// Runs a command on the key's value, `None` where it has none.
    fn command(current: Option<&Self>, key: &str, command: Self::Command) -> Outcome<Self, Self::Reply>;

    /// Reads the value. A key without one is answered by the keyspace: not found.
    fn query(&self, key: &str, query: Self::Query) -> Self::Answer;

    /// Runs a command, and knows when: what the shard calls.
    fn command_in(
        context: &Context<'_>,
        current: Option<&Self>,
        key: &str,
        command: Self::Command,
    ) -> Outcome<Self, Self::Reply> {
        let _ = context;
        Self::command(current, key, command)
    }

    /// Reads, and knows the log time of the shard's last command: what the shard calls.
    fn query_in(&self, context: &Context<'_>, key: &str, query: Self::Query) -> Self::Answer {
        let _ = context;
        self.query(key, query)
    }

    /// Its size in bytes as policies count it, without the key. The default knows only what lies inline.
    fn size(&self) -> u64 {
        size_of::<Self>() as u64
    }

    /// When [`KeyedValue::timeout`] is due. It depends on the value alone.
    fn deadline(&self) -> Option<LogTime> {
        None
    }

    /// Runs when log time has reached the deadline. The next value must have a later one or none: a value
    /// that is kept as it is stays due, and runs again at each tick.
    fn timeout(context: &Context<'_>, current: &Self, key: &str) -> Outcome<Self, ()> {
        let _ = (context, current, key);
        Outcome::keep(())
    }

    /// Under which account the key is counted, see `Keyspace::count_by_account`. It depends on the key alone.
    fn account(key: &str) -> Option<&str> {
        let _ = key;
        None
    }
}

/// What a command makes of a key: its next value, and the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome<V, R> {
    /// What becomes of the value.
    pub next: Next<V>,
    /// What the caller gets.
    pub reply: R,
    /// How much work it was, as policies count it; 1 for an ordinary command.
    pub load: u32,
    /// Whether the command counts as run: a request that its caller named is not remembered otherwise, and
    /// may be sent again under the same name.
    pub ran: bool,
}

/// What becomes of a key's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<V> {
    /// It stays as it is, also when there is none.
    Keep,
    /// The key has this value from now on.
    Set(V),
    /// The key has no value from now on, also when it had none.
    Remove,
}

impl<V, R> Outcome<V, R> {
    /// Changes nothing.
    pub fn keep(reply: R) -> Self {
        Self { next: Next::Keep, reply, load: 1, ran: true }
    }

    /// Changes nothing, and the command counts as not run: it may be sent again under the same name.
    pub fn refuse(reply: R) -> Self {
        Self { next: Next::Keep, reply, load: 1, ran: false }
    }

    /// Sets the next value.
    pub fn set(value: V, reply: R) -> Self {
        Self { next: Next::Set(value), reply, load: 1, ran: true }
    }

    /// Removes the key.
    pub fn remove(reply: R) -> Self {
        Self { next: Next::Remove, reply, load: 1, ran: true }
    }

    /// Counts as `load` ordinary commands.
    pub fn with_load(mut self, load: u32) -> Self {
        self.load = load;
        self
    }
}
