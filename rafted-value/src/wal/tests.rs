//! The log under ordinary use, one step at a time; its submodules crash it, damage it, fill the disk, and
//! compare it with a model.

mod measuring;
#[path = "../../tests/it/recorder.rs"]
mod recorder;
mod batching;
mod crash;
mod damage;
mod full;
mod model;
mod parallel;
mod reading;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;

use super::appender::Step;
use super::record::{FIRST_OFFSET, Salt};
use super::*;
use crate::disk::RealDisk;
use crate::disk::faulty::{Fault, FaultyDisk};

const SALT: Salt = *b"0123456789abcdef";
const DIR: &str = "/wal";
/// For anything that another thread does.
const DEADLINE: Duration = Duration::from_secs(30);

fn config() -> WalConfig {
    WalConfig::default().with_segment_bytes(MIN_SEGMENT_BYTES).with_cache_bytes(2048).with_salt(SALT)
}

fn open(disk: &FaultyDisk) -> (Wal, Appender) {
    try_open(disk).unwrap_or_else(|error| panic!("{error}"))
}

fn try_open(disk: &FaultyDisk) -> Result<(Wal, Appender), WalError> {
    Wal::open_stepped(Arc::new(disk.clone()), Path::new(DIR), config())
}

fn segment(number: u32) -> PathBuf {
    segment::segment_path(Path::new(DIR), number)
}

fn replica(replica: u64) -> ReplicaRecord {
    ReplicaRecord { replica, group: format!("group {replica}"), incarnation: 7, detail: Bytes::from_static(b"detail") }
}

fn entry(term: u64, index: u64, payload: &[u8]) -> LogEntry {
    LogEntry { term, index, payload: Bytes::copy_from_slice(payload) }
}

fn position(term: u64, index: u64) -> Position {
    Position { term, index }
}

fn vote(term: u64) -> VoteRecord {
    VoteRecord { term, voted_for: 5, committed: false }
}

/// What a `Done` was told: nothing yet, or whether it went well.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Option<Result<(), String>>>>);

impl Told {
    fn done(&self) -> Done {
        let told = self.0.clone();
        Box::new(move |result| {
            let before = lock(&told).replace(result.map_err(|error| error.to_string()));
            assert_eq!(before, None, "told twice");
        })
    }

    fn get(&self) -> Option<Result<(), String>> {
        lock(&self.0).clone()
    }

    fn is_ok(&self) -> bool {
        self.get() == Some(Ok(()))
    }
}

fn nobody() -> Done {
    Box::new(|_| {})
}

fn step_all(appender: &mut Appender) -> Step {
    loop {
        match appender.step() {
            Step::Wrote => {}
            ended => return ended,
        }
    }
}

fn close(wal: Wal, mut appender: Appender) {
    wal.close();
    assert_eq!(step_all(&mut appender), Step::Stopped);
}

fn entries(wal: &Wal, replica: u64) -> Vec<LogEntry> {
    wal.read(replica, 0..u64::MAX, usize::MAX).unwrap()
}

/// All that a log knows, to be compared.
#[derive(Debug, Clone, PartialEq, Default)]
struct Everything(BTreeMap<u64, (ReplicaRecord, ReplicaLogState, Vec<LogEntry>)>);

fn everything(wal: &Wal) -> Everything {
    let all = wal.replicas().into_iter().map(|record| {
        let id = record.replica;
        (id, (record, wal.state(id).unwrap(), entries(wal, id)))
    });
    Everything(all.collect())
}

#[test]
fn a_note_is_changed_by_what_the_log_holds_at_that_moment() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    let later = |record: &ReplicaRecord, held: &ReplicaLogState| {
        held.last.is_none().then(|| ReplicaRecord { incarnation: record.incarnation + 1, ..record.clone() })
    };
    let (first, second, unknown) = (Told::default(), Told::default(), Told::default());
    assert!(wal.amend(1, later, first.done()));
    // Not written yet, and it counts.
    wal.append(1, vec![entry(1, 0, b"x")], nobody());
    assert!(!wal.amend(1, later, second.done()));
    assert!(!wal.amend(2, later, unknown.done()));
    step_all(&mut appender);
    assert!(first.is_ok() && second.is_ok());
    assert!(unknown.get().is_some_and(|told| told.is_err()));
    assert_eq!(wal.record(1).map(|record| record.incarnation), Some(8));
    assert_eq!(wal.record(2), None);
    close(wal, appender);
}

#[test]
fn what_is_appended_is_read_at_once_and_told_after_the_sync() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    let (created, appended, voted) = (Told::default(), Told::default(), Told::default());
    wal.create(replica(1), created.done());
    wal.append(1, vec![entry(1, 0, b"a"), entry(1, 1, b"")], appended.done());
    wal.save_vote(1, vote(1), voted.done());
    assert_eq!(entries(&wal, 1), [entry(1, 0, b"a"), entry(1, 1, b"")]);
    assert_eq!(wal.state(1).unwrap().vote, Some(vote(1)));
    assert_eq!((created.get(), appended.get(), voted.get()), (None, None, None));
    let syncs = disk.syncs();
    assert_eq!(appender.step(), Step::Wrote);
    assert!(disk.syncs() > syncs);
    assert!(created.is_ok() && appended.is_ok() && voted.is_ok());
    assert_eq!(appender.step(), Step::Idle);
}

#[test]
fn appends_of_many_replicas_cost_one_sync() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    (1..=50).for_each(|id| wal.create(replica(id), nobody()));
    step_all(&mut appender);
    let mut told = Vec::new();
    for index in 0..2 {
        for id in 1..=50 {
            told.push(Told::default());
            wal.append(id, vec![entry(1, index, b"x")], told.last().unwrap().done());
        }
    }
    let before = wal.stats();
    assert_eq!(appender.step(), Step::Wrote);
    assert!(told.iter().all(Told::is_ok));
    let after = wal.stats();
    assert_eq!((after.batches - before.batches, after.entries), (1, 100));
    // The batch's own, and at most the next segment's that is prepared.
    assert!(after.syncs - before.syncs <= 2, "{before:?} {after:?}");
}

#[test]
fn callers_that_come_during_a_sync_share_the_next_one() {
    let disk = FaultyDisk::default();
    let config = WalConfig::default().with_segment_bytes(4 * 1024 * 1024);
    let wal = Wal::open(Arc::new(disk), Path::new(DIR), config).unwrap();
    let (told, tell) = mpsc::channel();
    for id in 1..=20 {
        let told = told.clone();
        wal.create(replica(id), Box::new(move |result| told.send(result.is_ok()).unwrap()));
    }
    (0..20).for_each(|_| assert!(tell.recv_timeout(DEADLINE).unwrap()));
    let (reached, is_reached) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let held = Box::new(move |_| {
        reached.send(()).unwrap();
        released.recv().unwrap();
    });
    wal.save_vote(1, vote(1), held);
    is_reached.recv_timeout(DEADLINE).unwrap();
    let before = wal.stats();
    std::thread::scope(|scope| {
        for id in 1..=20 {
            let (wal, told) = (wal.clone(), told.clone());
            scope.spawn(move || {
                for index in 0..50 {
                    let told = told.clone();
                    let done = Box::new(move |result: io::Result<()>| told.send(result.is_ok()).unwrap());
                    wal.append(id, vec![entry(1, index, b"payload")], done);
                }
            });
        }
    });
    release.send(()).unwrap();
    (0..1000).for_each(|_| assert!(tell.recv_timeout(DEADLINE).unwrap()));
    let after = wal.stats();
    assert_eq!((after.entries - before.entries, after.batches - before.batches), (1000, 1));
}

#[test]
fn the_calls_for_one_replica_come_in_order() {
    let (wal, mut appender) = open(&FaultyDisk::default());
    wal.create(replica(1), nobody());
    let order = Arc::new(Mutex::new(Vec::new()));
    for index in 0..200 {
        let order = order.clone();
        let done = Box::new(move |result: io::Result<()>| {
            result.unwrap();
            lock(&order).push(index);
        });
        wal.append(1, vec![entry(1, index, &[7; 300])], done);
    }
    step_all(&mut appender);
    assert_eq!(*lock(&order), (0..200).collect::<Vec<_>>());
}

#[test]
fn everything_is_there_after_every_restart() {
    let disk = FaultyDisk::default();
    let (wal, appender) = open(&disk);
    wal.create(replica(1), nobody());
    wal.create(replica(2), nobody());
    wal.save_snapshot(
        2,
        SnapshotPointer {
            position: Some(position(1, 9)),
            meta: Bytes::from_static(b"meta"),
            file: "2.snapshot".into(),
            inline: Bytes::new(),
        },
        nobody(),
    );
    wal.purge(2, position(1, 9));
    close(wal, appender);
    for round in 0..20 {
        let (wal, appender) = open(&disk);
        assert_eq!(entries(&wal, 1).len() as u64, round);
        wal.append(1, vec![entry(round, round, format!("round {round}").as_bytes())], nobody());
        wal.save_vote(1, vote(round), nobody());
        wal.save_committed(1, position(round, round));
        let before = everything(&wal);
        close(wal, appender);
        let (wal, appender) = open(&disk);
        assert_eq!(everything(&wal), before);
        let state = wal.state(2).unwrap();
        assert_eq!((state.last, state.last_purged), (Some(position(1, 9)), Some(position(1, 9))));
        assert_eq!(state.snapshot.unwrap().file, "2.snapshot");
        close(wal, appender);
    }
}

#[test]
fn a_rewritten_suffix_stays_rewritten() {
    let disk = FaultyDisk::default();
    let (wal, appender) = open(&disk);
    wal.create(replica(1), nobody());
    wal.append(1, (0..10).map(|index| entry(1, index, b"old")).collect(), nobody());
    wal.truncate_after(1, Some(4));
    assert_eq!(wal.state(1).unwrap().last, Some(position(1, 4)));
    wal.append(1, vec![entry(2, 5, b"new")], nobody());
    // Without being asked to truncate: what the entry replaces, and what is behind it, goes as well.
    wal.append(1, vec![entry(3, 3, b"newer")], nobody());
    let expected = [entry(1, 0, b"old"), entry(1, 1, b"old"), entry(1, 2, b"old"), entry(3, 3, b"newer")];
    assert_eq!(entries(&wal, 1), expected);
    close(wal, appender);
    let (wal, _appender) = open(&disk);
    assert_eq!(entries(&wal, 1), expected);
}

#[test]
fn a_removed_replica_is_gone_and_its_group_may_be_made_again() {
    let disk = FaultyDisk::default();
    let (wal, appender) = open(&disk);
    wal.create(replica(1), nobody());
    wal.append(1, vec![entry(1, 0, b"old")], nobody());
    wal.remove(1, nobody());
    assert_eq!((wal.state(1), wal.replicas()), (None, vec![]));
    wal.create(replica(1), nobody());
    close(wal, appender);
    let (wal, _appender) = open(&disk);
    assert_eq!(wal.replicas(), [replica(1)]);
    assert_eq!(wal.state(1), Some(ReplicaLogState::default()));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    wal.append(1, (0..5).map(|index| entry(1, index, b"x")).collect(), nobody());
    wal.purge(1, position(1, 2));
    step_all(&mut appender);
    let before = everything(&wal);
    let table: [(&str, Vec<LogEntry>); 4] = [
        ("does not follow", vec![entry(1, 6, b"x")]),
        ("in a row", vec![entry(1, 5, b"x"), entry(1, 7, b"x")]),
        ("was purged", vec![entry(1, 2, b"x")]),
        ("segments allow", vec![entry(1, 5, &[0; 7000])]),
    ];
    for (reason, entries) in table {
        let told = Told::default();
        wal.append(1, entries, told.done());
        assert!(told.get().unwrap().unwrap_err().contains(reason), "{reason}");
    }
    let (unknown, twice) = (Told::default(), Told::default());
    wal.append(2, vec![entry(1, 0, b"x")], unknown.done());
    wal.create(replica(1), twice.done());
    assert!(unknown.get().unwrap().unwrap_err().contains("create it first"));
    assert!(twice.get().unwrap().unwrap_err().contains("exists"));
    wal.purge(1, position(1, 1));
    assert_eq!(everything(&wal), before);
}

#[test]
fn committed_positions_force_no_sync_and_go_with_the_next_one() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    step_all(&mut appender);
    wal.save_committed(1, position(1, 3));
    assert_eq!(appender.step(), Step::Idle);
    assert_eq!(wal.state(1).unwrap().committed, Some(position(1, 3)));
    wal.save_vote(1, vote(1), nobody());
    assert_eq!(appender.step(), Step::Wrote);
    let (wal, _appender) = open(&disk.restart(1));
    assert_eq!(wal.state(1).unwrap().committed, Some(position(1, 3)));
}

#[test]
fn a_read_stops_at_its_bound_but_gives_one_entry() {
    let disk = FaultyDisk::default();
    let (wal, appender) = open(&disk);
    wal.create(replica(1), nobody());
    wal.append(1, (0..10).map(|index| entry(1, index, &[1; 100])).collect(), nobody());
    let count = |wal: &Wal, max_bytes| wal.read(1, 2..9, max_bytes).unwrap().len();
    assert_eq!((count(&wal, 0), count(&wal, 250), count(&wal, usize::MAX)), (1, 2, 7));
    close(wal, appender);
    let (wal, _appender) = open(&disk);
    assert_eq!((count(&wal, 0), count(&wal, 300), count(&wal, usize::MAX)), (1, 2, 7));
    assert_eq!(wal.read(1, 10..20, usize::MAX).unwrap(), []);
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = wal.read(1, 5..3, usize::MAX).unwrap();
    assert_eq!(reversed, []);
}

#[test]
fn recent_entries_stay_in_memory_within_the_bound() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    for index in 0..100 {
        wal.append(1, vec![entry(1, index, &[index as u8; 100])], nobody());
        step_all(&mut appender);
        assert!(wal.stats().cached_bytes <= 2048);
    }
    let all = entries(&wal, 1);
    assert!(all.iter().enumerate().all(|(at, found)| *found == entry(1, at as u64, &[at as u8; 100])));
}

#[test]
fn in_memory_everything_is_told_at_once() {
    let wal = Wal::memory();
    let told = Told::default();
    wal.create(replica(1), told.done());
    assert!(told.is_ok());
    let told = Told::default();
    wal.append(1, (0..5).map(|index| entry(1, index, b"x")).collect(), told.done());
    assert!(told.is_ok());
    wal.truncate_after(1, Some(3));
    wal.purge(1, position(1, 1));
    assert_eq!(entries(&wal, 1), [entry(1, 2, b"x"), entry(1, 3, b"x")]);
    wal.remove(1, nobody());
    assert_eq!(wal.stats().cached_bytes, 0);
    wal.close();
    let told = Told::default();
    wal.create(replica(1), told.done());
    assert!(told.get().unwrap().unwrap_err().contains("closed"));
}

#[test]
fn a_failed_write_or_sync_ends_the_log_and_is_not_tried_again() {
    // From an open log with one replica, a batch is a write and a sync; a reopened log has its segment prepared.
    for failing in 0..2 {
        let disk = FaultyDisk::default();
        let (wal, mut appender) = open(&disk);
        wal.create(replica(1), nobody());
        step_all(&mut appender);
        let poisoned = wal.poisoned();
        assert_eq!(*poisoned.borrow(), None);
        let (waiting, queued, later) = (Told::default(), Told::default(), Told::default());
        for index in 0..30 {
            wal.append(1, vec![entry(1, index, &[0; 400])], nobody());
        }
        wal.append(1, vec![entry(1, 30, b"x")], waiting.done());
        disk.fail_at(disk.operations() + failing, Fault::Fail);
        wal.save_vote(1, vote(1), queued.done());
        assert_eq!(appender.step(), Step::Stopped);
        let operations = disk.operations();
        assert!(waiting.get().unwrap().is_err() && queued.get().unwrap().is_err());
        wal.save_vote(1, vote(2), later.done());
        assert!(later.get().unwrap().unwrap_err().contains("restart the node"));
        assert_eq!(appender.step(), Step::Stopped);
        assert_eq!(disk.operations(), operations, "nothing more is written or synced");
        assert!(poisoned.borrow().is_some());
        assert!(wal.poisoned().has_changed().unwrap(), "who asks late is told, too");
        wal.close();
        let (wal, _appender) = open(&disk.restart(failing));
        assert_eq!(wal.replicas(), [replica(1)]);
    }
}

#[test]
fn the_thread_writes_closes_and_restarts_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let config = || WalConfig::default().with_segment_bytes(256 * 1024);
    for round in 0..3u64 {
        let wal = Wal::open(Arc::new(RealDisk), dir.path(), config()).unwrap();
        let (told, tell) = mpsc::channel();
        for id in 0..4 {
            let id = round * 4 + id + 1;
            wal.create(replica(id), nobody());
            let (wal, told) = (wal.clone(), told.clone());
            std::thread::spawn(move || {
                for index in 0..100 {
                    let told = told.clone();
                    let done = Box::new(move |result: io::Result<()>| told.send(result.is_ok()).unwrap());
                    wal.append(id, vec![entry(1, index, &[id as u8; 1000])], done);
                }
            });
        }
        (0..400).for_each(|_| assert!(tell.recv_timeout(DEADLINE).unwrap()));
        let before = everything(&wal);
        assert_eq!(before.0.len() as u64, (round + 1) * 4);
        wal.close();
        wal.close();
        let again = Wal::open(Arc::new(RealDisk), dir.path(), config()).unwrap();
        assert_eq!(everything(&again), before);
    }
}

#[test]
fn what_was_queued_is_settled_when_it_is_durable_and_never_after_a_failure() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    wal.save_vote(1, VoteRecord { term: 1, voted_for: 1, committed: true }, nobody());
    let settled = |wal: &Wal| {
        let (told, tell) = mpsc::channel();
        wal.settle(1, Box::new(move |result| told.send(result.is_ok()).unwrap()));
        tell
    };
    for (index, fails) in [(0, false), (1, true)] {
        wal.append(1, vec![entry(1, index, b"x")], nobody());
        let tell = settled(&wal);
        assert!(tell.try_recv().is_err(), "nothing is written yet");
        if fails {
            disk.fail_at(disk.operations(), Fault::Fail);
        }
        while let Step::Wrote = appender.step() {}
        assert_eq!(tell.try_recv(), Ok(!fails));
    }
    assert_eq!(settled(&wal).try_recv(), Ok(false));
}

#[test]
fn dropping_the_last_clone_writes_what_was_queued() {
    let disk = FaultyDisk::default();
    let wal = Wal::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    for id in 1..=10 {
        let told = told.clone();
        wal.create(
            replica(id),
            Box::new(move |result| {
                result.unwrap();
                told.fetch_add(1, Ordering::SeqCst);
            }),
        );
    }
    wal.save_committed(1, position(4, 4));
    drop(wal);
    assert_eq!(told.load(Ordering::SeqCst), 10);
    let (wal, _appender) = open(&disk);
    assert_eq!((wal.replicas().len(), wal.state(1).unwrap().committed), (10, Some(position(4, 4))));
}
