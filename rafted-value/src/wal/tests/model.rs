//! Random use against a model, with restarts, while segments roll, are reclaimed and used again.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// One call, made by chance for the state that the model is in.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Create(ReplicaRecord),
    Remove(u64),
    Append(u64, Vec<LogEntry>),
    Truncate(u64, Option<u64>),
    Purge(u64, Position),
    Vote(u64, VoteRecord),
    Committed(u64, Position),
    Snapshot(u64, SnapshotPointer),
}

const REPLICAS: u64 = 4;
/// A model replica's log is purged above this, so that comparing stays cheap.
const MAX_ENTRIES: usize = 40;

impl Everything {
    pub(super) fn random_call(&self, random: &mut StdRng, serial: u64) -> Call {
        let id = random.random_range(1..=REPLICAS);
        let Some((_, state, entries)) = self.0.get(&id) else {
            return Call::Create(ReplicaRecord { incarnation: serial, ..replica(id) });
        };
        let last = state.last.map_or(0, |last| last.index);
        let purged = state.last_purged.map_or(0, |purged| purged.index);
        // Terms never go back, as in raft.
        let term = state.last.map_or(1, |last| last.term);
        let roll = if entries.len() > MAX_ENTRIES { 60 } else { random.random_range(0..100) };
        match roll {
            0..50 => {
                let length = random.random_range(1..4);
                let first = if state.last.is_some() { last + 1 } else { 0 };
                let one = |index| LogEntry { term, index, payload: payload(random, serial) };
                Call::Append(id, (first..first + length).map(one).collect())
            }
            50..60 if last > purged => {
                let first = random.random_range(purged + 1..=last);
                Call::Append(id, vec![LogEntry { term: term + 1, index: first, payload: payload(random, serial) }])
            }
            60..68 => Call::Purge(id, position(term, random.random_range(purged..=last + 1))),
            68..73 if last > purged => Call::Truncate(id, Some(random.random_range(purged..last))),
            73..85 => Call::Vote(id, VoteRecord { term: serial, voted_for: id, committed: random.random() }),
            85..93 => Call::Committed(id, position(term, serial)),
            93..97 => Call::Snapshot(
                id,
                SnapshotPointer {
                    position: state.last,
                    meta: Bytes::from(serial.to_le_bytes().to_vec()),
                    file: String::new(),
                    inline: payload(random, serial),
                },
            ),
            97 => Call::Remove(id),
            _ => Call::Vote(id, VoteRecord { term: serial, voted_for: 0, committed: false }),
        }
    }

    /// The states on the way that this call makes, record by record; the last one is its result.
    pub(super) fn apply(&self, call: &Call) -> Vec<Everything> {
        let mut next = self.clone();
        if let Call::Create(record) = call {
            next.0.insert(record.replica, (record.clone(), ReplicaLogState::default(), Vec::new()));
            return vec![next];
        }
        let id = call.replica();
        if let Call::Remove(_) = call {
            next.0.remove(&id);
            return vec![next];
        }
        let Some((_, state, log)) = next.0.get_mut(&id) else { return vec![next] };
        match call {
            Call::Append(_, entries) => return self.append(id, entries),
            Call::Truncate(_, after) => log.retain(|entry| after.is_some_and(|after| entry.index <= after)),
            Call::Purge(_, purged) => {
                if state.last_purged.is_none_or(|before| before.index < purged.index) {
                    log.retain(|entry| entry.index > purged.index);
                    state.last_purged = Some(*purged);
                }
            }
            Call::Vote(_, vote) => state.vote = Some(*vote),
            Call::Committed(_, committed) => state.committed = Some(*committed),
            // One that is not newer is refused.
            Call::Snapshot(_, pointer) => {
                if state.snapshot.as_ref().is_none_or(|current| pointer.position > current.position) {
                    state.snapshot = Some(pointer.clone());
                }
            }
            Call::Create(_) | Call::Remove(_) => {}
        }
        state.last = log.last().map(|entry| position(entry.term, entry.index)).or(state.last_purged);
        vec![next]
    }

    fn append(&self, id: u64, entries: &[LogEntry]) -> Vec<Everything> {
        let mut states = Vec::new();
        let mut next = self.clone();
        let first = entries[0].index;
        let overwrites = next.0[&id].1.last.is_some_and(|last| last.index >= first);
        for (at, entry) in entries.iter().enumerate() {
            let (_, state, log) = next.0.get_mut(&id).unwrap();
            if overwrites && at == 0 {
                log.retain(|entry| entry.index < first);
                state.last = log.last().map(|entry| position(entry.term, entry.index)).or(state.last_purged);
                states.push(next.clone());
            }
            let (_, state, log) = next.0.get_mut(&id).unwrap();
            log.push(entry.clone());
            state.last = Some(position(entry.term, entry.index));
            states.push(next.clone());
        }
        states
    }
}

impl Call {
    fn replica(&self) -> u64 {
        match self {
            Call::Create(record) => record.replica,
            Call::Remove(id)
            | Call::Append(id, _)
            | Call::Truncate(id, _)
            | Call::Purge(id, _)
            | Call::Vote(id, _)
            | Call::Committed(id, _)
            | Call::Snapshot(id, _) => *id,
        }
    }

    pub(super) fn make(self, wal: &Wal, done: Done) {
        match self {
            Call::Create(record) => wal.create(record, done),
            Call::Remove(id) => wal.remove(id, done),
            Call::Append(id, entries) => wal.append(id, entries, done),
            Call::Truncate(id, after) => wal.truncate_after(id, after),
            Call::Purge(id, position) => wal.purge(id, position),
            Call::Vote(id, vote) => wal.save_vote(id, vote, done),
            Call::Committed(id, position) => wal.save_committed(id, position),
            Call::Snapshot(id, pointer) => wal.save_snapshot(id, pointer, done),
        }
    }
}

/// Bytes that look like batches are in some of them.
fn payload(random: &mut StdRng, serial: u64) -> Bytes {
    let length = match random.random_range(0..10) {
        0 => 0,
        1..8 => random.random_range(1..100),
        _ => random.random_range(100..1500),
    };
    let mut bytes = vec![serial as u8; length];
    if length > 100 {
        bytes[8..12].copy_from_slice(b"RVb\n");
    }
    Bytes::from(bytes)
}

/// The bound of the log's growth: segments in use justified by what is live, and those in reserve.
pub(super) fn bound(live_bytes: u64) -> u64 {
    let live = live_bytes.div_ceil(config().capacity());
    (3 * live + 6 + 2) * MIN_SEGMENT_BYTES
}

#[test]
fn random_use_gives_what_the_model_gives_in_bounded_space() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut disk = FaultyDisk::default();
        let (mut wal, mut appender) = open(&disk);
        let mut model = Everything::default();
        let mut reclaimed = 0;
        for serial in 0..1500 {
            let call = model.random_call(&mut random, serial);
            model = model.apply(&call).pop().unwrap();
            call.make(&wal, nobody());
            match random.random_range(0..400) {
                0..80 => {
                    step_all(&mut appender);
                    let (used, live) = (disk.used_bytes(), wal.stats().live_bytes);
                    assert!(used <= bound(live), "seed {seed}, call {serial}: {used} bytes for {live} live ones");
                }
                80..90 => assert_eq!(everything(&wal), model, "seed {seed}, call {serial}"),
                90..93 => {
                    reclaimed += wal.stats().copied_bytes;
                    close(wal, appender);
                    disk = disk.restart(serial);
                    (wal, appender) = open(&disk);
                    assert_eq!(everything(&wal), model, "seed {seed}, call {serial}, after a restart");
                }
                _ => {}
            }
        }
        assert!(reclaimed > 0, "seed {seed} reclaimed nothing");
    }
}

#[test]
fn one_quiet_replica_does_not_hold_the_others_segments() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    (1..=2).for_each(|id| wal.create(replica(id), nobody()));
    wal.append(1, (0..10).map(|index| entry(1, index, &[9; 500])).collect(), nobody());
    wal.save_vote(1, vote(3), nobody());
    for index in 0..2000 {
        wal.append(2, vec![entry(1, index, &[1; 300])], nobody());
        if index % 10 == 9 {
            wal.purge(2, position(1, index));
            step_all(&mut appender);
            assert!(disk.used_bytes() <= bound(wal.stats().live_bytes), "at {index}");
        }
    }
    let copied = wal.stats().copied_bytes;
    assert!(copied > 0 && copied < wal.stats().bytes / 2, "{:?}", wal.stats());
    close(wal, appender);
    let (wal, _appender) = open(&disk);
    assert_eq!(entries(&wal, 1).len(), 10);
    assert_eq!(wal.state(1).unwrap().vote, Some(vote(3)));
    assert_eq!(wal.state(2).unwrap().last_purged, Some(position(1, 1999)));
}

#[test]
fn cold_entries_that_fill_most_of_the_log_are_copied_in_bounded_space() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    (1..=2).for_each(|id| wal.create(replica(id), nobody()));
    for index in 0..400 {
        wal.append(1, vec![entry(1, index, &[9; 500])], nobody());
        step_all(&mut appender);
    }
    for index in 0..3000 {
        wal.append(2, vec![entry(1, index, &[1; 300])], nobody());
        wal.purge(2, position(1, index));
        step_all(&mut appender);
        assert!(disk.used_bytes() <= bound(wal.stats().live_bytes), "at {index}: {:?}", wal.stats());
    }
    assert_eq!(entries(&wal, 1).len(), 400);
}
