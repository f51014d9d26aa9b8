//! Where everything that is live stands: per replica the places of its entries and of its latest vote, purge,
//! committed position and snapshot pointer; per segment the bytes that are live in it; and the payloads of
//! recent entries. The same [`Index::apply`] runs when a record is queued and when it is found by recovery.
//!
//! Recovery starts at the oldest segment that is needed, and what was live in older ones was copied behind it.
//! So a replica's entries may come before its creation and in any order; [`Index::check`] tells, at the end,
//! whether everything came.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;

use bytes::Bytes;

use super::entries::Entries;
use super::record::Record;
use super::{Pinned, Position, ReplicaLogState, ReplicaRecord, SnapshotPointer, VoteRecord};

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a batch that is not synced yet; `offset` counts from the start of its body.
    Queued { batch: u64, offset: u32 },
    /// In a segment's file.
    Written { segment_use: u64, offset: u32, length: u32 },
    /// Nowhere: the log is in memory.
    Memory,
}

/// Which of a replica's live records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    Created,
    Entry(u64),
    Vote,
    Purged,
    Committed,
    Snapshot,
}

impl Item {
    /// What `record` is when it is the latest of its kind; none for a record that only ends others.
    pub(crate) fn of(record: &Record<'_>) -> Option<Item> {
        match record {
            Record::Created(_) => Some(Item::Created),
            Record::Entry { index, .. } => Some(Item::Entry(*index)),
            Record::Vote(_) => Some(Item::Vote),
            Record::Purge(_) => Some(Item::Purged),
            Record::Committed(_) => Some(Item::Committed),
            Record::Snapshot(_) => Some(Item::Snapshot),
            Record::Removed | Record::Truncate(_) | Record::Closed => None,
        }
    }
}

/// A value and the record that holds it.
#[derive(Debug, Clone)]
struct Held<T> {
    value: T,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
struct EntryPlace {
    term: u64,
    place: Place,
    /// Its payload in the cache.
    stamp: u64,
}

#[derive(Debug, Default)]
struct ReplicaIndex {
    created: Option<Held<ReplicaRecord>>,
    vote: Option<Held<VoteRecord>>,
    purged: Option<Held<Position>>,
    committed: Option<Held<Position>>,
    snapshot: Option<Held<SnapshotPointer>>,
    /// No holes, and nothing at or below `purged`, except while recovery reads.
    entries: Entries<EntryPlace>,
    /// Its live bytes by segment use; no zeros. A replica is in few segments, of which the newest change.
    live: Vec<(u64, u64)>,
}

/// An entry for a reader: its payload, or where it stands.
#[derive(Debug)]
pub(crate) enum Lookup {
    Cached { term: u64, index: u64, payload: Bytes },
    Stored { term: u64, index: u64, place: Place },
}

/// What recovery read does not make a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Inconsistent {
    /// Records of a replica whose creation is missing.
    NotCreated { replica: u64 },
    /// The entry at `index` is missing between two others, or behind what was purged.
    Hole { replica: u64, index: u64 },
}

impl std::fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotCreated { replica } => {
                write!(f, "the creation of replica {replica:016x} is missing")
            }
            Self::Hole { replica, index } => {
                write!(f, "entry {index} of replica {replica:016x} is missing")
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Index {
    replicas: BTreeMap<u64, ReplicaIndex>,
    /// Live bytes by segment use; no zeros.
    live: BTreeMap<u64, u64>,
    live_bytes: u64,
    cache: Cache,
}

impl Index {
    /// An empty index that keeps at most `cache_bytes` of payloads that are also on disk.
    pub(crate) fn new(cache_bytes: usize) -> Self {
        Self {
            replicas: BTreeMap::new(),
            live: BTreeMap::new(),
            live_bytes: 0,
            cache: Cache { bound: cache_bytes, ..Cache::default() },
        }
    }

    /// Takes one record, in the order of the log. `payload` is an entry's to be cached.
    pub(crate) fn apply(&mut self, replica: u64, record: &Record<'_>, place: Place, payload: Option<Bytes>) {
        match record {
            Record::Closed => return,
            Record::Removed => return self.remove(replica),
            // A copy of an entry that was purged since; recovery sees the purge first if it was copied first.
            Record::Entry { index, .. } if self.is_purged(replica, *index) => return,
            _ => {}
        }
        self.release(replica, Item::of(record));
        self.occupy(replica, place);
        let state = self.replica(replica);
        match record {
            Record::Created(created) => state.created = Some(Held { value: created.clone(), place }),
            Record::Vote(vote) => state.vote = Some(Held { value: *vote, place }),
            Record::Committed(value) => state.committed = Some(Held { value: *value, place }),
            Record::Snapshot(value) => state.snapshot = Some(Held { value: value.clone(), place }),
            Record::Purge(value) => {
                state.purged = Some(Held { value: *value, place });
                let gone = state.entries.purge(value.index);
                self.forget(replica, gone);
            }
            Record::Truncate(after) => {
                let first = after.map_or(0, |index| index.saturating_add(1));
                let gone = state.entries.truncate(first);
                self.vacate(replica, place);
                self.forget(replica, gone);
            }
            Record::Entry { term, index, .. } => {
                let stamp = payload.map_or(NO_STAMP, |payload| self.cache.push(payload));
                let entry = EntryPlace { term: *term, place, stamp };
                if let Some(replaced) = self.replica(replica).entries.insert(*index, entry) {
                    self.cache.forget(replaced.stamp);
                }
            }
            Record::Removed | Record::Closed => {}
        }
    }

    /// Whether what recovery read is whole.
    pub(crate) fn check(&self) -> Result<(), Inconsistent> {
        for (&replica, state) in &self.replicas {
            if state.created.is_none() {
                return Err(Inconsistent::NotCreated { replica });
            }
            let due = state.purged.as_ref().map(|purged| purged.value.index + 1);
            let missing = due.filter(|due| state.entries.first().is_some_and(|first| first != *due));
            if let Some(index) = missing.or(state.entries.hole()) {
                return Err(Inconsistent::Hole { replica, index });
            }
        }
        Ok(())
    }

    pub(crate) fn contains(&self, replica: u64) -> bool {
        self.replicas.contains_key(&replica)
    }

    pub(crate) fn replica_count(&self) -> usize {
        self.replicas.len()
    }

    pub(crate) fn replicas(&self) -> Vec<ReplicaRecord> {
        self.replicas.values().filter_map(|state| Some(state.created.as_ref()?.value.clone())).collect()
    }

    /// What was noted at a replica's creation.
    pub(crate) fn record(&self, replica: u64) -> Option<&ReplicaRecord> {
        Some(&self.replicas.get(&replica)?.created.as_ref()?.value)
    }

    /// The last that was purged; and the last entry, or else that. Without the copies that [`Index::state`] makes.
    pub(crate) fn bounds(&self, replica: u64) -> Option<(Option<Position>, Option<Position>)> {
        let state = self.replicas.get(&replica)?;
        let last_purged = state.purged.as_ref().map(|held| held.value);
        let last = state.entries.last().map(|(index, entry)| Position { term: entry.term, index });
        Some((last_purged, last.or(last_purged)))
    }

    pub(crate) fn state(&self, replica: u64) -> Option<ReplicaLogState> {
        let state = self.replicas.get(&replica)?;
        let (last_purged, last) = self.bounds(replica)?;
        Some(ReplicaLogState {
            last_purged,
            last,
            vote: state.vote.as_ref().map(|held| held.value),
            committed: state.committed.as_ref().map(|held| held.value),
            snapshot: state.snapshot.as_ref().map(|held| held.value.clone()),
        })
    }

    /// The index of the first entry, and the number of entries.
    pub(crate) fn extent(&self, replica: u64) -> (Option<u64>, u64) {
        let entries = self.replicas.get(&replica).map(|state| &state.entries);
        let first = entries.and_then(Entries::first);
        (first, entries.map_or(0, |entries| entries.len() as u64))
    }

    /// The entries of `range` that are there, up to the first hole, and up to about `max_bytes` of payloads but
    /// at least one.
    pub(crate) fn lookup(&self, replica: u64, range: std::ops::Range<u64>, max_bytes: usize) -> Vec<Lookup> {
        let mut found = Vec::new();
        let Some(state) = self.replicas.get(&replica) else {
            return found;
        };
        if range.is_empty() {
            return found;
        }
        let mut bytes = 0;
        for (index, entry) in state.entries.range(range) {
            let term = entry.term;
            let lookup = match self.cache.get(entry.stamp) {
                Some(payload) => Lookup::Cached { term, index, payload },
                None => Lookup::Stored { term, index, place: entry.place },
            };
            bytes += lookup.length();
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(lookup);
        }
        found
    }

    pub(crate) fn place(&self, replica: u64, item: Item) -> Option<Place> {
        let state = self.replicas.get(&replica)?;
        match item {
            Item::Created => state.created.as_ref().map(|held| held.place),
            Item::Entry(index) => state.entries.get(index).map(|entry| entry.place),
            Item::Vote => state.vote.as_ref().map(|held| held.place),
            Item::Purged => state.purged.as_ref().map(|held| held.place),
            Item::Committed => state.committed.as_ref().map(|held| held.place),
            Item::Snapshot => state.snapshot.as_ref().map(|held| held.place),
        }
    }

    /// Moves an item from one place to another, if it is still in the first.
    pub(crate) fn relocate(&mut self, replica: u64, item: Item, from: Place, to: Place) -> bool {
        if self.place(replica, item) != Some(from) {
            return false;
        }
        self.vacate(replica, from);
        self.occupy(replica, to);
        let Some(state) = self.replicas.get_mut(&replica) else {
            return false;
        };
        let place = match item {
            Item::Created => state.created.as_mut().map(|held| &mut held.place),
            Item::Entry(index) => state.entries.get_mut(index).map(|entry| &mut entry.place),
            Item::Vote => state.vote.as_mut().map(|held| &mut held.place),
            Item::Purged => state.purged.as_mut().map(|held| &mut held.place),
            Item::Committed => state.committed.as_mut().map(|held| &mut held.place),
            Item::Snapshot => state.snapshot.as_mut().map(|held| &mut held.place),
        };
        if let Some(place) = place {
            *place = to;
        }
        true
    }

    /// The stamp that the next cached payload gets.
    pub(crate) fn next_stamp(&self) -> u64 {
        self.cache.next_stamp
    }

    /// Payloads below this stamp are on disk, and leave the cache as it needs room.
    pub(crate) fn allow_eviction(&mut self, stamp: u64) {
        self.cache.evictable = stamp;
        self.cache.evict();
    }

    pub(crate) fn live_in(&self, segment_use: u64) -> u64 {
        self.live.get(&segment_use).copied().unwrap_or(0)
    }

    /// The replicas that have more than `bytes` live bytes in a segment, and entries among them.
    pub(crate) fn pinning(&self, segment_use: u64, bytes: u64) -> Vec<(u64, Pinned)> {
        let live_there = |state: &ReplicaIndex| {
            let found = state.live.iter().find(|&&(at, live)| at == segment_use && live > bytes);
            found.map(|&(_, live)| live)
        };
        let last = |state: &ReplicaIndex| {
            let is_there =
                |entry: &EntryPlace| matches!(entry.place, Place::Written { segment_use: at, .. } if at == segment_use);
            state.entries.iter().rev().find(|(_, entry)| is_there(entry)).map(|(index, _)| index)
        };
        let pinned = |state| Some(Pinned { bytes: live_there(state)?, last: last(state)? });
        self.replicas.iter().filter_map(|(&replica, state)| Some((replica, pinned(state)?))).collect()
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(crate) fn cached_bytes(&self) -> usize {
        self.cache.bytes
    }

    fn replica(&mut self, replica: u64) -> &mut ReplicaIndex {
        self.replicas.entry(replica).or_default()
    }

    fn is_purged(&self, replica: u64, index: u64) -> bool {
        let purged = self.replicas.get(&replica).and_then(|state| state.purged.as_ref());
        purged.is_some_and(|purged| index <= purged.value.index)
    }

    fn remove(&mut self, replica: u64) {
        let Some(state) = self.replicas.remove(&replica) else {
            return;
        };
        let held = [
            state.created.map(|held| held.place),
            state.vote.map(|held| held.place),
            state.purged.map(|held| held.place),
            state.committed.map(|held| held.place),
            state.snapshot.map(|held| held.place),
        ];
        held.into_iter().flatten().for_each(|place| self.vacate(replica, place));
        self.forget(replica, state.entries.into_values());
    }

    fn forget(&mut self, replica: u64, entries: impl IntoIterator<Item = EntryPlace>) {
        for entry in entries {
            self.vacate(replica, entry.place);
            self.cache.forget(entry.stamp);
        }
    }

    fn release(&mut self, replica: u64, item: Option<Item>) {
        if let Some(place) = item.and_then(|item| self.place(replica, item)) {
            self.vacate(replica, place);
        }
    }

    fn occupy(&mut self, replica: u64, place: Place) {
        let Place::Written { segment_use, length, .. } = place else {
            return;
        };
        *self.live.entry(segment_use).or_default() += u64::from(length);
        self.live_bytes += u64::from(length);
        let live = &mut self.replica(replica).live;
        match live.iter_mut().rev().find(|(at, _)| *at == segment_use) {
            Some((_, bytes)) => *bytes += u64::from(length),
            None => live.push((segment_use, u64::from(length))),
        }
    }

    fn vacate(&mut self, replica: u64, place: Place) {
        let Place::Written { segment_use, length, .. } = place else {
            return;
        };
        if let Some(state) = self.replicas.get_mut(&replica) {
            for (_, bytes) in state.live.iter_mut().filter(|(at, _)| *at == segment_use) {
                *bytes = bytes.saturating_sub(u64::from(length));
            }
            state.live.retain(|(_, bytes)| *bytes > 0);
        }
        if let MapEntry::Occupied(mut live) = self.live.entry(segment_use) {
            *live.get_mut() = live.get().saturating_sub(u64::from(length));
            if *live.get() == 0 {
                live.remove();
            }
        }
        self.live_bytes = self.live_bytes.saturating_sub(u64::from(length));
    }
}

impl Lookup {
    fn length(&self) -> usize {
        match self {
            Lookup::Cached { payload, .. } => payload.len(),
            Lookup::Stored { place: Place::Written { length, .. }, .. } => *length as usize,
            Lookup::Stored { .. } => 0,
        }
    }
}

const NO_STAMP: u64 = u64::MAX;

/// Payloads in the order in which they came, numbered by stamps; the oldest that are on disk leave first.
#[derive(Debug, Default)]
struct Cache {
    payloads: BTreeMap<u64, Bytes>,
    next_stamp: u64,
    /// Payloads below this stamp may go.
    evictable: u64,
    bytes: usize,
    bound: usize,
}

/// What a cached payload costs beside its bytes, so that many small ones count too.
const SLOT_BYTES: usize = size_of::<(u64, Bytes)>();

impl Cache {
    fn push(&mut self, payload: Bytes) -> u64 {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.bytes += payload.len() + SLOT_BYTES;
        self.payloads.insert(stamp, payload);
        stamp
    }

    fn get(&self, stamp: u64) -> Option<Bytes> {
        self.payloads.get(&stamp).cloned()
    }

    fn forget(&mut self, stamp: u64) {
        if let Some(payload) = self.payloads.remove(&stamp) {
            self.bytes -= payload.len() + SLOT_BYTES;
        }
    }

    fn evict(&mut self) {
        while self.bytes > self.bound
            && let Some((&stamp, _)) = self.payloads.first_key_value()
            && stamp < self.evictable
        {
            self.forget(stamp);
        }
    }
}
