//! What callers and the appender share, under one lock: the queue of batches, into which callers serialize
//! their records, and the index, which knows every queued record at once.
//!
//! ```text
//!   push --> open batch --seal--> sealed batches --take--> the appender
//! ```
//!
//! A batch says which segments are still needed. That is decided when it is *sealed*, when the index knows the
//! batch's records and no later ones: a purge that waits in the next batch must not free what it purges.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::index::{Index, Item, Place};
use super::record::{BATCH_HEADER_BYTES, Record};
use super::segment::SegmentFile;
use super::{Done, Pinned};

/// What is lazily queued (committed positions, truncations, purges) is written without other traffic from here.
const LAZY_BYTES: usize = 64 * 1024;
/// Buffers above this capacity are not used again.
const MAX_KEPT_BUFFER_BYTES: usize = 1024 * 1024;

/// A record in a batch that the index is to find on disk once the batch is there.
pub(super) struct Placed {
    pub(super) replica: u64,
    pub(super) item: Item,
    /// Where the index has it until then.
    pub(super) from: Place,
    /// In the batch's body.
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// Records that are written and synced together.
pub(super) struct Batch {
    pub(super) sequence: u64,
    /// Room for the header, and the body.
    pub(super) bytes: Vec<u8>,
    pub(super) count: u32,
    pub(super) entries: u64,
    pub(super) placed: Vec<Placed>,
    pub(super) waiting: Vec<Done>,
    /// Somebody waits for its sync.
    pub(super) urgent: bool,
    /// Segments of a smaller use are not needed once this batch is synced. Set when sealed.
    pub(super) oldest_use: u64,
    /// Payloads below this stamp are on disk with this batch. Set when sealed.
    pub(super) stamp: u64,
    /// It is the last: a clean stop.
    pub(super) closes: bool,
}

impl Batch {
    fn new(sequence: u64, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.resize(BATCH_HEADER_BYTES, 0);
        Self {
            sequence,
            bytes,
            count: 0,
            entries: 0,
            placed: Vec::new(),
            waiting: Vec::new(),
            urgent: false,
            oldest_use: 0,
            stamp: 0,
            closes: false,
        }
    }

    pub(super) fn body_length(&self) -> usize {
        self.bytes.len() - BATCH_HEADER_BYTES
    }
}

/// ```text
///   Open --close--> Closing --closed batch synced--> Closed
///     \-----------------\--failed write or sync--> Poisoned
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Life {
    Open,
    Closing,
    Closed,
    Poisoned(String),
}

impl Life {
    /// Why nothing more can be written.
    pub(super) fn error(&self) -> io::Error {
        match self {
            Life::Open | Life::Closing | Life::Closed => io::Error::other("the log is closed"),
            Life::Poisoned(reason) => io::Error::other(format!("the log has failed: {reason}; restart the node")),
        }
    }
}

/// Whether there are files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    Memory,
    Files {
        /// Bodies are sealed when they would outgrow this.
        batch_bytes: usize,
        /// A longer record is refused.
        record_bytes: usize,
    },
}

pub(super) struct State {
    pub(super) index: Index,
    pub(super) backing: Backing,
    pub(super) life: Life,
    /// Never empty: the last one is open, the others sealed.
    pub(super) queue: VecDeque<Batch>,
    /// The segments in use, for readers.
    pub(super) readers: BTreeMap<u64, Arc<SegmentFile>>,
    /// The segment that was last written to; a batch on its way may be in a later one.
    pub(super) active_use: u64,
    /// The last decision on which segments are needed.
    pub(super) oldest_use: u64,
    pub(super) queued_bytes: usize,
    /// The appender sleeps until it is told that there is work: telling one that does not costs a call to the system.
    pub(super) appender_waits: bool,
    /// The disk was full when the next segments were prepared.
    pub(super) full: bool,
    pub(super) counters: Counters,
    /// By replica: who wants to know that it keeps the oldest segment, and up to which entry.
    pub(super) pins: BTreeMap<u64, watch::Sender<Option<Pinned>>>,
    kept_buffer: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counters {
    pub(super) syncs: u64,
    pub(super) batches: u64,
    pub(super) records: u64,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) copied_bytes: u64,
    pub(super) spares: usize,
}

impl State {
    pub(super) fn new(index: Index, backing: Backing, next_sequence: u64, oldest_use: u64, active_use: u64) -> Self {
        Self {
            index,
            backing,
            life: Life::Open,
            queue: VecDeque::from([Batch::new(next_sequence, Vec::new())]),
            readers: BTreeMap::new(),
            active_use,
            oldest_use,
            queued_bytes: 0,
            appender_waits: false,
            full: false,
            counters: Counters::default(),
            pins: BTreeMap::new(),
            kept_buffer: Vec::new(),
        }
    }

    /// Whether `record` can be written at all.
    pub(super) fn check(&self, record: &Record<'_>) -> io::Result<()> {
        let bound = record.encoded_bound();
        match self.backing {
            Backing::Files { record_bytes, .. } if bound > record_bytes => {
                let message = format!("a log record of {bound} bytes; the log's segments allow {record_bytes}");
                Err(io::Error::new(io::ErrorKind::InvalidInput, message))
            }
            _ => Ok(()),
        }
    }

    /// Queues a record that [`State::check`] has passed, and tells the index.
    pub(super) fn push(&mut self, replica: u64, record: &Record<'_>, payload: Option<Bytes>) {
        self.counters.records += 1;
        self.counters.entries += u64::from(matches!(record, Record::Entry { .. }));
        let Backing::Files { batch_bytes, .. } = self.backing else {
            return self.index.apply(replica, record, Place::Memory, payload);
        };
        let open = self.open();
        if open.count > 0 && open.body_length() + record.encoded_bound() > batch_bytes {
            self.seal();
        }
        let open = self.open();
        let before = open.body_length();
        let offset = u32::try_from(before).unwrap_or(u32::MAX); // bodies are far below 4 GiB
        let length = record.encode(replica, &mut open.bytes);
        open.count += 1;
        open.entries += u64::from(matches!(record, Record::Entry { .. }));
        let added = open.body_length() - before;
        let place = Place::Queued { batch: open.sequence, offset };
        if let Some(item) = Item::of(record) {
            open.placed.push(Placed { replica, item, from: place, offset, length });
        }
        self.queued_bytes += added;
        self.index.apply(replica, record, place, payload);
    }

    /// The batch that takes records.
    pub(super) fn open(&mut self) -> &mut Batch {
        // The queue is never empty: `new` fills it, and `take` seals before it empties it.
        let last = self.queue.len() - 1;
        &mut self.queue[last]
    }

    pub(super) fn seal(&mut self) {
        while self.oldest_use < self.active_use && self.index.live_in(self.oldest_use) == 0 {
            self.oldest_use += 1;
        }
        let (oldest_use, stamp) = (self.oldest_use, self.index.next_stamp());
        let kept_buffer = std::mem::take(&mut self.kept_buffer);
        let open = self.open();
        open.oldest_use = oldest_use;
        open.stamp = stamp;
        let next = Batch::new(open.sequence + 1, kept_buffer);
        self.queue.push_back(next);
    }

    pub(super) fn has_work(&self) -> bool {
        let open = self.queue.back().is_some_and(|open| open.urgent || open.body_length() > LAZY_BYTES);
        open || self.queue.len() > 1 || self.life == Life::Closing
    }

    /// The next batch to write; the closing one after all others.
    pub(super) fn take(&mut self) -> Option<Batch> {
        if !self.has_work() {
            return None;
        }
        if self.queue.len() == 1 {
            if self.life == Life::Closing {
                self.push(0, &Record::Closed, None);
                self.open().closes = true;
            }
            self.seal();
        }
        let batch = self.queue.pop_front()?;
        self.queued_bytes -= batch.body_length();
        Some(batch)
    }

    pub(super) fn recycle(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() <= MAX_KEPT_BUFFER_BYTES {
            self.kept_buffer = buffer;
        }
    }

    /// Everybody who waits, when nothing will be written any more.
    pub(super) fn take_waiting(&mut self) -> Vec<Done> {
        self.queue.iter_mut().flat_map(|batch| batch.waiting.drain(..)).collect()
    }
}
