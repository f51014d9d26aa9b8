//! Whether this program can read a command, before openraft sees the entry: one that it cannot read would have to stop
//! the replica, since going on without it would make it differ from the others.

use std::io;

use bytes::Bytes;

use crate::any_value::ValueFactory;
use crate::command::Command;
use crate::openraft_types::command_of;
use crate::value::UpgradeError;
use crate::wal::Wal;

/// A command in the log that this program cannot read.
#[derive(Debug, thiserror::Error)]
#[error("the command at index {index} cannot be read: {error}")]
pub(crate) struct Unreadable {
    index: u64,
    error: UpgradeError,
}

/// How much of the log is read at once.
const STEP_BYTES: usize = 1 << 20;

/// Judges an entry's payload. What is no command of any version fails alike on every replica, and is none of this.
pub(crate) fn entry(factory: &ValueFactory, index: u64, payload: &Bytes) -> Result<(), Unreadable> {
    let Some(command) = command_of(payload).and_then(|bytes| Command::decode(bytes).ok()) else { return Ok(()) };
    factory.can_read(command.schema, &command.payload).map_err(|error| Unreadable { index, error })
}

/// Judges all of a replica's log from `next` on; reads it, so not on a thread of the network.
pub(crate) fn log(factory: &ValueFactory, wal: &Wal, replica: u64, mut next: u64) -> io::Result<Option<Unreadable>> {
    loop {
        let entries = wal.read(replica, next..u64::MAX, STEP_BYTES)?;
        let Some(last) = entries.last() else { return Ok(None) };
        next = last.index + 1;
        let mut judged = entries.iter().map(|found| entry(factory, found.index, &found.payload));
        if let Some(Err(unreadable)) = judged.find(Result::is_err) {
            return Ok(Some(unreadable));
        }
    }
}
