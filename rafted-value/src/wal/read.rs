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

/// Entries with no more than this between them are read at once: much less than what a read costs.
const MAX_GAP_BYTES: u64 = 1024;
/// What is read at once, unless one entry is longer.
const MAX_READ_BYTES: u64 = 256 * 1024;

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
            let mut rest = &found[..];
            while let Some((lookup, _)) = rest.first() {
                if let Lookup::Cached { term, index, payload } = lookup {
                    entries.push(LogEntry { term: *term, index: *index, payload: payload.clone() });
                    rest = &rest[1..];
                    continue;
                }
                let (stretch, behind) = rest.split_at(stretch_length(rest));
                match read_stretch(replica, stretch, &mut entries) {
                    Ok(()) => rest = behind,
                    // It was moved, and its segment used again, since it was looked up.
                    Err(_) if !self.still_there(replica, stretch) => continue 'again,
                    Err(error) => return Err(error),
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

    fn still_there(&self, replica: u64, stretch: &[FoundEntry]) -> bool {
        let state = self.state_lock();
        stretch.iter().all(|(lookup, _)| match lookup {
            Lookup::Cached { .. } => true,
            Lookup::Stored { index, place, .. } => state.index.place(replica, Item::Entry(*index)) == Some(*place),
        })
    }
}

/// An entry, and the segment in which it is, if it has to be read.
type FoundEntry = (Lookup, Option<Arc<SegmentFile>>);

/// Where an entry stands, if it has to be read: the segment's use, and the bytes there.
fn stored_at(found: &FoundEntry) -> Option<(u64, Range<u64>)> {
    match found {
        (Lookup::Stored { place: Place::Written { segment_use, offset, length }, .. }, Some(_)) => {
            let start = u64::from(*offset);
            Some((*segment_use, start..start + u64::from(*length)))
        }
        _ => None,
    }
}

/// How many of the entries, one at least, stand so close to one another that one read of the file is for all of them.
fn stretch_length(found: &[FoundEntry]) -> usize {
    let Some((first_use, Range { start, end })) = found.first().and_then(stored_at) else {
        return 1;
    };
    let mut end = end;
    let is_close = |found: &&FoundEntry| match stored_at(found) {
        Some((segment_use, bytes)) if segment_use == first_use => {
            let close = bytes.start >= end && bytes.start - end <= MAX_GAP_BYTES && bytes.end - start <= MAX_READ_BYTES;
            end = bytes.end;
            close
        }
        _ => false,
    };
    1 + found[1..].iter().take_while(is_close).count()
}

/// Reads the entries of a stretch, which share a buffer then.
fn read_stretch(replica: u64, stretch: &[FoundEntry], entries: &mut Vec<LogEntry>) -> io::Result<()> {
    let places = stretch.first().and_then(stored_at).zip(stretch.last().and_then(stored_at));
    let (Some((first, last)), Some((Lookup::Stored { index, .. }, Some(segment)))) = (places, stretch.first()) else {
        return Err(io::Error::other(format!("an entry of replica {replica:016x} is in no segment")));
    };
    let (start, end) = (first.1.start, last.1.end);
    // At most a segment's size, so that the cast loses nothing.
    let mut bytes = vec![0; (end - start) as usize];
    segment.file.read_at(&mut bytes, start)?;
    let bytes = Bytes::from(bytes);
    for found in stretch {
        let (Lookup::Stored { term, index, .. }, Some((_, place))) = (&found.0, stored_at(found)) else {
            return Err(io::Error::other(format!("entry {index} of replica {replica:016x} is in no segment")));
        };
        let record = bytes.slice((place.start - start) as usize..(place.end - start) as usize);
        let payload = payload_of(&record, replica, *term, *index).ok_or_else(|| {
            let message = format!(
                "the log is damaged: entry {index} of replica {replica:016x} is not at byte {} of {}",
                place.start,
                segment.path.display()
            );
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?;
        entries.push(LogEntry { term: *term, index: *index, payload });
    }
    Ok(())
}

fn payload_of(record: &Bytes, replica: u64, term: u64, index: u64) -> Option<Bytes> {
    match record::decode(record) {
        Some((found, Record::Entry { term: found_term, index: found_index, payload }, _))
            if (found, found_term, found_index) == (replica, term, index) =>
        {
            Some(record.slice_ref(payload))
        }
        _ => None,
    }
}
