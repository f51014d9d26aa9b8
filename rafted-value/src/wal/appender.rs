//! Writes the queue: one [`Appender::step`] takes a batch, adds copies of what is live in the oldest segment if
//! that is to be freed, writes, syncs, tells the index the places, and calls whoever waits. A thread runs it; a
//! test may run it by hand.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::index::{Item, Place};
use super::queue::{Batch, Life, Placed, State};
use super::record::{self, BATCH_HEADER_BYTES, BatchHeader, FIRST_OFFSET, UNUSED};
use super::segment::{Segments, Slot, SpaceError};
use super::{Shared, lock};
use crate::stats;

/// Segments that may be in use before any is reclaimed; below, copying would only cost.
const FREE_SEGMENTS: u64 = 4;
/// Of the oldest segment, a batch's step looks through at least this much ...
const MIN_RECLAIM_BYTES: usize = 256 * 1024;
/// ... or so many times the batch's own bytes. Even if all of that is live and copied, the oldest segment is
/// gone through faster than new ones fill, which bounds the log: see [`State::reclaims`].
const RECLAIM_FACTOR: usize = 4;
/// A replica that has more than this in the oldest segment is told, so that a snapshot may take the place of copies;
/// or more than this share of a segment, if that is less.
const PINNING_BYTES: u64 = 1024 * 1024;
const PINNING_SHARE: u64 = 16;
/// A full disk is asked again after this time.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A batch was written.
    Wrote,
    /// Nothing is to be written.
    Idle,
    /// The disk is full; the batch waits.
    Full,
    /// The log was closed or has failed.
    Stopped,
}

pub(crate) struct Appender {
    shared: Arc<Shared>,
    segments: Segments,
    /// The most that fits into an empty segment, in bytes of a body.
    capacity: u64,
    /// Taken from the queue, but the disk was full.
    delayed: Option<Batch>,
    /// How far the oldest segment was gone through.
    reclaimed: Slot,
    /// Those who keep it were told of the segments up to this use.
    told: u64,
    /// Entries and syncs that were published.
    measured: (u64, u64),
}

/// Records of the oldest segment that may be live.
#[derive(Default)]
struct Candidates {
    bytes: Vec<u8>,
    records: Vec<Candidate>,
    /// Where to go on when all of them are dealt with.
    next: u64,
}

struct Candidate {
    replica: u64,
    item: Item,
    place: Place,
    /// Where the record is in `Candidates::bytes`.
    start: usize,
    length: u32,
    /// Where its batch starts in the segment.
    batch_offset: u64,
}

impl State {
    /// The oldest segment that is needed, and by how many the log has more segments than its live bytes justify: more
    /// than twice as many as these would fill, and two.
    fn oldest(&self, capacity: u64) -> Option<(u64, i64)> {
        let oldest = (self.oldest_use..self.active_use).find(|&at| self.index.live_in(at) > 0)?;
        let used = self.active_use - oldest + 1;
        let live = self.index.live_bytes().div_ceil(capacity);
        let allowed = if self.full { live + 2 } else { FREE_SEGMENTS.max(2 * live + 2) };
        Some((oldest, used as i64 - allowed as i64))
    }

    /// The segment to go through.
    fn reclaims(&self, capacity: u64) -> Option<u64> {
        self.oldest(capacity).filter(|&(_, excess)| excess > 0).map(|(oldest, _)| oldest)
    }

    /// Tells those who keep the oldest segment, one segment before it is gone through; once for each segment.
    fn tell_pinning(&mut self, capacity: u64, told: &mut u64) {
        let Some((oldest, _)) = self.oldest(capacity).filter(|&(oldest, excess)| excess >= 0 && oldest > *told) else {
            return;
        };
        *told = oldest;
        for (replica, pinned) in self.index.pinning(oldest, PINNING_BYTES.min(capacity / PINNING_SHARE)) {
            if let Some(told) = self.pins.get(&replica) {
                told.send_replace(Some(pinned));
            }
        }
        self.pins.retain(|_, pinned| !pinned.is_closed());
    }
}

impl Appender {
    pub(super) fn new(shared: Arc<Shared>, segments: Segments, capacity: u64) -> Self {
        let reclaimed = Slot { segment_use: 0, offset: 0 };
        Self { shared, segments, capacity, delayed: None, reclaimed, told: UNUSED, measured: (0, 0) }
    }

    /// Steps until the log is closed or has failed.
    pub(super) fn run(mut self) {
        let _ended = Ended(self.shared.clone());
        loop {
            match self.step() {
                Step::Wrote => {}
                Step::Idle => {
                    if let Step::Stopped = self.wait() {
                        return;
                    }
                }
                Step::Full => std::thread::sleep(FULL_RETRY),
                Step::Stopped => return,
            }
        }
    }

    /// Waits for work; meanwhile, asks a full disk again, so that commands which are refused are taken again.
    fn wait(&mut self) -> Step {
        let shared = self.shared.clone();
        let mut state = lock(&shared.state);
        while !state.has_work() && state.life == Life::Open {
            state.appender_waits = true;
            if !state.full {
                state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = shared.work.wait_timeout(state, FULL_RETRY).unwrap_or_else(PoisonError::into_inner);
            drop(waited);
            if let Step::Stopped = self.ask_again() {
                return Step::Stopped;
            }
            state = lock(&shared.state);
        }
        state.appender_waits = false;
        Step::Idle
    }

    /// Asks a disk that was full whether it has room.
    pub(crate) fn ask_again(&mut self) -> Step {
        if self.segments.full.is_some() {
            if let Err(error) = self.segments.prepare_again() {
                return self.fail(&format!("a segment cannot be prepared: {error}"), Vec::new());
            }
            lock(&self.shared.state).full = self.segments.is_full();
        }
        Step::Idle
    }

    /// Writes one batch, if there is one.
    pub(crate) fn step(&mut self) -> Step {
        let batch = match self.delayed.take() {
            Some(batch) => batch,
            None => match self.take() {
                Ok(Some(batch)) => batch,
                Ok(None) if lock(&self.shared.state).life == Life::Open => return Step::Idle,
                Ok(None) => return Step::Stopped,
                Err(reason) => return self.fail(&reason, Vec::new()),
            },
        };
        let length = batch.bytes.len() as u64;
        let slot = match self.segments.reserve(length, batch.sequence) {
            Ok(slot) => slot,
            Err(SpaceError::Full) => return self.delay(batch),
            Err(SpaceError::Failed(error)) => {
                return self.fail(&format!("a segment cannot be prepared: {error}"), batch.waiting);
            }
        };
        self.write(batch, slot)
    }

    fn write(&mut self, mut batch: Batch, slot: Slot) -> Step {
        let header = BatchHeader {
            segment_use: slot.segment_use,
            sequence: batch.sequence,
            oldest_use: batch.oldest_use,
            count: batch.count,
            body_length: 0,
            body_crc: 0,
        };
        header.seal(&mut batch.bytes, &self.segments.salt, slot.offset);
        let started = Instant::now();
        if let Err(error) = self.segments.write(slot, &batch.bytes) {
            let reason = format!("a batch cannot be written to segment {}: {error}", slot.segment_use);
            return self.fail(&reason, batch.waiting);
        }
        metrics::histogram!(stats::LOG_SYNC_SECONDS).record(started.elapsed().as_secs_f64());
        let length = batch.bytes.len() as u64;
        self.finish(batch, slot);
        match self.segments.prepare(length) {
            Ok(()) => Step::Wrote,
            Err(error) => self.fail(&format!("a segment cannot be prepared: {error}"), Vec::new()),
        }
    }

    /// The batch is durable.
    fn finish(&mut self, mut batch: Batch, slot: Slot) {
        let freed = self.segments.free(batch.oldest_use);
        let active = self.segments.used.get(&slot.segment_use).map(|used| used.segment.clone());
        let mut state = lock(&self.shared.state);
        let length = batch.bytes.len() as u64;
        let body_offset = slot.offset + BATCH_HEADER_BYTES as u64;
        for placed in &batch.placed {
            // Offsets in a segment have 32 bits.
            let offset = body_offset as u32 + placed.offset;
            let to = Place::Written { segment_use: slot.segment_use, offset, length: placed.length };
            state.index.relocate(placed.replica, placed.item, placed.from, to);
        }
        state.index.allow_eviction(batch.stamp);
        freed.iter().for_each(|freed| {
            state.readers.remove(freed);
        });
        if let Some(active) = active {
            state.readers.insert(slot.segment_use, active);
        }
        state.active_use = slot.segment_use;
        state.full = self.segments.is_full();
        state.counters.batches += 1;
        state.counters.bytes += batch.bytes.len() as u64;
        state.counters.syncs = self.segments.syncs;
        let entries = state.counters.entries;
        state.counters.spares = self.segments.spares.len();
        state.recycle(std::mem::take(&mut batch.bytes));
        if batch.closes {
            state.life = Life::Closed;
        }
        drop(state);
        self.measure(length, entries);
        self.shared.room.notify_waiters();
        batch.waiting.into_iter().for_each(|done| done(Ok(())));
    }

    /// Publishes what a batch was, and what has come since the one before.
    fn measure(&mut self, bytes: u64, entries: u64) {
        let (entries_before, syncs_before) = std::mem::replace(&mut self.measured, (entries, self.segments.syncs));
        metrics::counter!(stats::LOG_BYTES).increment(bytes);
        metrics::counter!(stats::LOG_ENTRIES).increment(entries - entries_before);
        metrics::counter!(stats::LOG_SYNCS).increment(self.segments.syncs - syncs_before);
        metrics::gauge!(stats::LOG_SEGMENTS).set(self.segments.used.len() as f64);
    }

    /// The disk is full. The batch waits for room: all that is queued is in the index already.
    fn delay(&mut self, batch: Batch) -> Step {
        let mut state = lock(&self.shared.state);
        if !state.full {
            tracing::error!(dir = %self.segments.dir.display(), "the disk is full: the log waits for room");
        }
        state.full = true;
        let closing = state.life != Life::Open;
        drop(state);
        if closing {
            return self.fail("the disk is full", batch.waiting);
        }
        self.delayed = Some(batch);
        Step::Full
    }

    fn fail(&self, reason: &str, waiting: Vec<super::Done>) -> Step {
        tracing::error!(reason, dir = %self.segments.dir.display(), "the log has failed");
        self.shared.poison(reason, waiting);
        Step::Stopped
    }

    /// The next batch, with what is to be copied.
    fn take(&mut self) -> Result<Option<Batch>, String> {
        let reclaims = {
            let mut state = lock(&self.shared.state);
            if matches!(state.life, Life::Closed | Life::Poisoned(_)) || !state.has_work() {
                return Ok(None);
            }
            state.tell_pinning(self.capacity, &mut self.told);
            let queued = state.queue.front().map_or(0, Batch::body_length);
            let budget = MIN_RECLAIM_BYTES.max(RECLAIM_FACTOR * queued);
            state.reclaims(self.capacity).map(|segment_use| (segment_use, budget))
        };
        let candidates = match reclaims {
            Some((segment_use, budget)) => self.candidates(segment_use, budget)?,
            None => Candidates::default(),
        };
        let shared = self.shared.clone();
        let mut state = lock(&shared.state);
        let Some(mut batch) = state.take() else {
            return Ok(None);
        };
        if !batch.closes {
            self.copy(&mut state, &mut batch, candidates);
        }
        Ok(Some(batch))
    }

    /// Reads on in the oldest segment.
    fn candidates(&mut self, segment_use: u64, budget: usize) -> Result<Candidates, String> {
        let Some(used) = self.segments.used.get(&segment_use) else {
            return Ok(Candidates::default());
        };
        if self.reclaimed.segment_use != segment_use || self.reclaimed.offset >= used.end {
            self.reclaimed = Slot { segment_use, offset: FIRST_OFFSET };
        }
        let mut candidates = Candidates { next: self.reclaimed.offset, ..Candidates::default() };
        while candidates.next < used.end && candidates.next - self.reclaimed.offset < budget as u64 {
            let offset = candidates.next;
            candidates.read_batch(&self.segments, segment_use, offset).map_err(|error| {
                format!("{} at byte {offset} cannot be read to be copied: {error}", used.segment.path.display())
            })?;
        }
        Ok(candidates)
    }

    /// Adds to the batch what is still where it was read. Later batches are in the index already: what they
    /// change is not copied.
    fn copy(&mut self, state: &mut State, batch: &mut Batch, candidates: Candidates) {
        let mut next = candidates.next;
        for candidate in candidates.records {
            if state.index.place(candidate.replica, candidate.item) != Some(candidate.place) {
                continue;
            }
            let length = record::padded(candidate.length as usize);
            if (batch.body_length() + length) as u64 > self.capacity {
                next = candidate.batch_offset;
                break;
            }
            let offset = batch.body_length() as u32; // at most the capacity
            batch.bytes.extend_from_slice(&candidates.bytes[candidate.start..candidate.start + length]);
            batch.count += 1;
            batch.placed.push(Placed {
                replica: candidate.replica,
                item: candidate.item,
                from: candidate.place,
                offset,
                length: candidate.length,
            });
            state.counters.copied_bytes += length as u64;
        }
        if next > 0 {
            self.reclaimed.offset = next;
        }
    }
}

impl Candidates {
    fn read_batch(&mut self, segments: &Segments, segment_use: u64, offset: u64) -> io::Result<()> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
        let used = segments.used.get(&segment_use).ok_or_else(damaged)?;
        let mut header = [0; BATCH_HEADER_BYTES];
        used.segment.file.read_at(&mut header, offset)?;
        let header = BatchHeader::decode(&header, &segments.salt, segment_use, offset).ok_or_else(damaged)?;
        let body_offset = offset + BATCH_HEADER_BYTES as u64;
        let start = self.bytes.len();
        self.bytes.resize(start + header.body_length as usize, 0);
        let body = &mut self.bytes[start..];
        used.segment.file.read_at(body, body_offset)?;
        if !header.matches(body, &segments.salt, offset) {
            return Err(damaged());
        }
        for found in record::records(body) {
            let found = found.map_err(|_| damaged())?;
            let Some(item) = Item::of(&found.record) else {
                continue;
            };
            // Offsets in a segment have 32 bits.
            let place = Place::Written { segment_use, offset: body_offset as u32 + found.offset, length: found.length };
            self.records.push(Candidate {
                replica: found.replica,
                item,
                place,
                start: start + found.offset as usize,
                length: found.length,
                batch_offset: offset,
            });
        }
        self.next = body_offset + u64::from(header.body_length);
        Ok(())
    }
}

/// If the appender's thread ends without having been asked to, nobody may wait for it.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        let life = lock(&self.0.state).life.clone();
        if matches!(life, Life::Open | Life::Closing) {
            self.0.poison("the appender's thread has ended", Vec::new());
        }
    }
}
