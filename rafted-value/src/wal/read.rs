//! Reading entries: from memory, where that has all of them, and else from the segments' files.
//!
//! A read from a file may take as long as the disk likes, so that only [`Wal::read_cached`] is for threads that must
//! not wait.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::index::{Item, Lookup, Place};
use super::record::{self, Record};
use super::segment::SegmentFile;
use super::{LogEntry, Wal};

impl Wal {
    /// What [`Wal::read`] gives, if no file has to be read for it: it never waits for the disk.
    pub(crate) fn read_cached(&self, replica: u64, range: Range<u64>, max_bytes: usize) -> Option<Vec<LogEntry>> {
        let found = self.state_lock().index.lookup(replica, range, max_bytes);
        let cached = found.into_iter().map(|lookup| match lookup {
            Lookup::Cached { term, index, payload } => Some(LogEntry { term, index, payload }),
            Lookup::Stored { .. } => None,
        });
        cached.collect()
    }

    /// The entries in `range` that are there, in order, until their payloads have more than `max_bytes`, but at
    /// least one. May read from disk: not on a thread of the network.
    pub(crate) fn read(&self, replica: u64, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        'again: loop {
            let found = self.lookup(replica, range.clone(), max_bytes);
            let mut entries = Vec::with_capacity(found.len());
            for (lookup, segment) in found {
                match (lookup, segment) {
                    (Lookup::Cached { term, index, payload }, _) => entries.push(LogEntry { term, index, payload }),
                    (Lookup::Stored { term, index, place }, segment) => {
                        match read_stored(replica, term, index, place, segment.as_deref()) {
                            Ok(payload) => entries.push(LogEntry { term, index, payload }),
                            // It was moved, and its segment used again, since it was looked up.
                            Err(_) if !self.still_at(replica, index, place) => continue 'again,
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            return Ok(entries);
        }
    }

    fn lookup(&self, replica: u64, range: Range<u64>, max_bytes: usize) -> Vec<(Lookup, Option<Arc<SegmentFile>>)> {
        let state = self.state_lock();
        let found = state.index.lookup(replica, range, max_bytes).into_iter();
        found
            .map(|lookup| {
                let segment = match &lookup {
                    Lookup::Stored { place: Place::Written { segment_use, .. }, .. } => {
                        state.readers.get(segment_use).cloned()
                    }
                    _ => None,
                };
                (lookup, segment)
            })
            .collect()
    }

    fn still_at(&self, replica: u64, index: u64, place: Place) -> bool {
        self.state_lock().index.place(replica, Item::Entry(index)) == Some(place)
    }
}

fn read_stored(replica: u64, term: u64, index: u64, place: Place, segment: Option<&SegmentFile>) -> io::Result<Bytes> {
    let (Place::Written { offset, length, .. }, Some(segment)) = (place, segment) else {
        return Err(io::Error::other(format!("entry {index} of replica {replica:016x} is in no segment")));
    };
    let mut bytes = vec![0; length as usize];
    segment.file.read_at(&mut bytes, u64::from(offset))?;
    let payload_length = match record::decode(&bytes) {
        Some((found, Record::Entry { term: found_term, index: found_index, payload }, _))
            if (found, found_term, found_index) == (replica, term, index) =>
        {
            payload.len()
        }
        _ => {
            let message = format!(
                "the log is damaged: entry {index} of replica {replica:016x} is not at byte {offset} of {}",
                segment.path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
    };
    let bytes = Bytes::from(bytes);
    Ok(bytes.slice(bytes.len() - payload_length..))
}
