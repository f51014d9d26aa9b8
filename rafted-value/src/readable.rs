//! Whether this program can read a command, before openraft sees the entry: one that it cannot read would have to stop
//! the replica, since going on without it would make it differ from the others.

use std::io;

use bytes::Bytes;

use crate::any_value::ValueFactory;
use crate::command::{self, Command, Recipient};
use crate::config::{GroupConfig, UnreadableConfig};
use crate::openraft_types::command_of;
use crate::threads::Threads;
use crate::value::UpgradeError;
use crate::wal::Wal;

/// A command in the log that this program cannot read.
#[derive(Debug, thiserror::Error)]
#[error("the command at index {index} cannot be read: {error}")]
pub(crate) struct Unreadable {
    index: u64,
    error: UnreadableCommand,
}

#[derive(Debug, thiserror::Error)]
enum UnreadableCommand {
    #[error("{0}")]
    ToValue(#[from] UpgradeError),
    #[error("{0}")]
    ToGroup(#[from] UnreadableConfig),
}

/// How much of the log is read at once.
const STEP_BYTES: usize = 1 << 20;

/// Judges entries on their way into the log: term, index and payload. What is no command of any version fails alike on
/// every replica, and is none of this. The user's code reads what another version wrote: not on a thread of the network.
pub(crate) async fn entries(
    factory: &ValueFactory,
    threads: &Threads,
    entries: &[(u64, u64, Bytes)],
) -> io::Result<Result<(), Unreadable>> {
    let (own, others): (Vec<_>, Vec<_>) = entries.iter().partition(|(_, _, payload)| {
        let schema = command_of(payload).and_then(|command| command::schema(&command));
        schema.is_none_or(|schema| schema == factory.version())
    });
    if let Err(unreadable) = own.into_iter().try_for_each(|(_, index, payload)| entry(factory, *index, payload)) {
        return Ok(Err(unreadable));
    }
    if others.is_empty() {
        return Ok(Ok(()));
    }
    let (factory, others): (_, Vec<_>) = (factory.clone(), others.into_iter().cloned().collect());
    threads.run(move || others.iter().try_for_each(|(_, index, payload)| entry(&factory, *index, payload))).await
}

fn entry(factory: &ValueFactory, index: u64, payload: &Bytes) -> Result<(), Unreadable> {
    settings_in(factory, payload).map(drop).map_err(|error| Unreadable { index, error })
}

/// Judges all of a replica's log from `next` on, and gives out the last settings in it, committed or not; reads it, so
/// not on a thread of the network.
pub(crate) fn log(
    factory: &ValueFactory,
    wal: &Wal,
    replica: u64,
    mut next: u64,
) -> io::Result<Result<Option<GroupConfig>, Unreadable>> {
    let mut settings = None;
    loop {
        let entries = wal.read(replica, next..u64::MAX, STEP_BYTES)?;
        let Some(last) = entries.last() else { return Ok(Ok(settings)) };
        next = last.index + 1;
        for found in &entries {
            match settings_in(factory, &found.payload) {
                Ok(newer) => settings = newer.or(settings),
                Err(error) => return Ok(Err(Unreadable { index: found.index, error })),
            }
        }
    }
}

/// Judges an entry, and gives out the settings, if it has some.
fn settings_in(factory: &ValueFactory, payload: &Bytes) -> Result<Option<GroupConfig>, UnreadableCommand> {
    let Some(command) = command_of(payload).and_then(|bytes| Command::decode(bytes).ok()) else { return Ok(None) };
    match command.to {
        Recipient::Value => Ok(factory.can_read(command.schema, &command.payload).map(|()| None)?),
        Recipient::Group => match GroupConfig::decode(command.schema, &command.payload) {
            Ok(settings) => Ok(Some(settings)),
            Err(error @ UnreadableConfig::Version(_)) => Err(error.into()),
            // They fail alike on every replica.
            Err(UnreadableConfig::Malformed(_) | UnreadableConfig::Invalid(_)) => Ok(None),
        },
    }
}
