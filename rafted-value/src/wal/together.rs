//! Records that a crash leaves all or none of: in one batch.

use std::io;

use bytes::Bytes;

use super::queue::{Backing, State};
use super::record::Record;
use super::{Done, Position, ReplicaRecord, VoteRecord, Wal, check_known};

/// What is written in one batch.
pub(crate) struct Together {
    pub(crate) record: ReplicaRecord,
    pub(crate) vote: VoteRecord,
    /// The snapshot that takes the place of the entries in the log.
    pub(crate) follows: Option<Position>,
    /// The next entry.
    pub(crate) entry: Option<(Position, Bytes)>,
}

impl Wal {
    /// Writes records of one replica together. `done` is called when they are durable.
    pub(crate) fn write_together(&self, replica: u64, together: Together, done: Done) {
        let Together { record, vote, follows, entry } = together;
        self.submit(Some(done), |state| {
            check_known(state, replica)?;
            let mut records = vec![(Record::Created(record), None), (Record::Vote(vote), None)];
            if let Some(snapshot) = follows {
                records.push((Record::Truncate(Some(snapshot.index)), None));
                records.push((Record::Purge(snapshot), None));
            }
            if let Some((Position { term, index }, payload)) = &entry {
                records.push((Record::Entry { term: *term, index: *index, payload }, Some(payload.clone())));
            }
            make_room(state, &records)?;
            for (record, payload) in records {
                state.push(replica, &record, payload);
            }
            Ok(())
        });
    }
}

/// Sees to it that the open batch takes all of the records.
fn make_room(state: &mut State, records: &[(Record<'_>, Option<Bytes>)]) -> io::Result<()> {
    let Backing::Files { batch_bytes, .. } = state.backing else { return Ok(()) };
    let needed: usize = records.iter().map(|(record, _)| record.encoded_bound()).sum();
    if needed > batch_bytes {
        let message = format!("{needed} bytes of records that belong together, a batch takes {batch_bytes}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    if state.open().count > 0 && state.open().body_length() + needed > batch_bytes {
        state.seal();
    }
    Ok(())
}
