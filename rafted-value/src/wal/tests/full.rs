//! A full disk: it shows before anything is lost, and the log goes on when there is room.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Appends until the disk is found full, purging nothing.
fn fill_up(wal: &Wal, appender: &mut Appender) -> u64 {
    for index in 0..10_000 {
        if wal.is_full() {
            return index;
        }
        wal.append(1, vec![entry(1, index, &[index as u8; 500])], nobody());
        step_all(appender);
    }
    panic!("never full");
}

#[test]
fn a_full_disk_shows_while_the_reserve_is_left() {
    let disk = FaultyDisk::default();
    disk.set_capacity(Some(8 * MIN_SEGMENT_BYTES));
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    let appended = fill_up(&wal, &mut appender);
    // Whoever is told of it refuses commands, and votes and purges still go.
    let (voted, removed) = (Told::default(), Told::default());
    for term in 0..20 {
        wal.save_vote(1, vote(term), nobody());
        assert_eq!(step_all(&mut appender), Step::Idle);
    }
    wal.save_vote(1, vote(99), voted.done());
    assert_eq!(step_all(&mut appender), Step::Idle);
    assert!(voted.is_ok());
    assert_eq!(everything(&open(&disk.restart(1)).0), everything(&wal));
    // Room by purging: the segments are free with the next batches.
    wal.purge(1, position(1, appended - 2));
    for term in 100..200 {
        wal.save_vote(1, vote(term), nobody());
        step_all(&mut appender);
    }
    assert!(!wal.is_full(), "{:?}", wal.stats());
    wal.remove(1, removed.done());
    step_all(&mut appender);
    assert!(removed.is_ok());
}

#[test]
fn without_any_room_callers_wait_and_nothing_is_lost() {
    let disk = FaultyDisk::default();
    disk.set_capacity(Some(8 * MIN_SEGMENT_BYTES));
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    let mut told = Vec::new();
    let mut full = Step::Idle;
    for index in 0..1000 {
        told.push(Told::default());
        wal.append(1, vec![entry(1, index, &[index as u8; 500])], told.last().unwrap().done());
        full = step_all(&mut appender);
        if full == Step::Full {
            break;
        }
    }
    assert_eq!(full, Step::Full);
    assert_eq!(told.pop().unwrap().get(), None);
    assert!(told.iter().all(Told::is_ok));
    let found = everything(&open(&disk.restart(5)).0);
    assert_eq!(found.0[&1].2.len(), told.len());
    assert_eq!(appender.step(), Step::Full);
    assert_eq!(*wal.poisoned().borrow(), None);
    disk.set_capacity(None);
    assert_eq!(step_all(&mut appender), Step::Idle);
    assert_eq!(entries(&open(&disk.restart(5)).0, 1).len(), told.len() + 1);
}

#[test]
fn closing_on_a_full_disk_ends_with_errors() {
    let disk = FaultyDisk::default();
    disk.set_capacity(Some(8 * MIN_SEGMENT_BYTES));
    let wal = Wal::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap();
    wal.create(replica(1), nobody());
    let mut told = Vec::new();
    for index in 0..1000 {
        told.push(Told::default());
        wal.append(1, vec![entry(1, index, &[index as u8; 500])], told.last().unwrap().done());
    }
    wal.close();
    let durable = told.iter().take_while(|told| told.is_ok()).count();
    assert!(durable > 0 && durable < 1000);
    assert!(told[durable..].iter().all(|told| told.get().unwrap().is_err()));
    assert!(entries(&open(&disk.restart(5)).0, 1).len() >= durable);
}

/// A log of random use on a disk of this size, until that is full or the calls are made; what was told to be durable,
/// at least, as the number of states, and the states.
fn fill_by_chance(disk: &FaultyDisk, seed: u64) -> Option<(Wal, Appender, Vec<Everything>, Arc<AtomicUsize>)> {
    let mut random = StdRng::seed_from_u64(seed);
    let (wal, mut appender) = try_open(disk).ok()?;
    let durable = Arc::new(AtomicUsize::new(0));
    let mut states = vec![Everything::default()];
    for serial in 0..400 {
        let call = states[states.len() - 1].random_call(&mut random, serial);
        let after = states[states.len() - 1].apply(&call);
        states.extend(after);
        let (at, durable) = (states.len() - 1, durable.clone());
        call.make(
            &wal,
            Box::new(move |result| {
                match result {
                    Ok(()) => drop(durable.fetch_max(at, Ordering::SeqCst)),
                    // A snapshot that is not newer.
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::AlreadyExists),
                }
            }),
        );
        if random.random_bool(0.3) && step_all(&mut appender) == Step::Full {
            break;
        }
    }
    Some((wal, appender, states, durable))
}

#[test]
fn a_disk_that_fills_at_any_point_and_empties_again_loses_nothing_and_nobody_waits_for_ever() {
    let (mut refused, mut filled, mut roomy) = (0, 0, 0);
    // From no room for a header to room for all, by less than what is written at once.
    for step in 0..120 {
        let (capacity, seed) = (step * 1700, step % 7);
        let disk = FaultyDisk::default();
        disk.set_capacity(Some(capacity));
        let Some((wal, mut appender, states, durable)) = fill_by_chance(&disk, seed) else {
            // Refused as it was opened: nothing is left behind that keeps it from being opened with room.
            disk.set_capacity(None);
            assert_eq!(everything(&open(&disk).0), Everything::default(), "{capacity} bytes");
            refused += 1;
            continue;
        };
        if step_all(&mut appender) == Step::Full {
            filled += 1
        } else {
            roomy += 1
        }
        assert_eq!(*wal.poisoned().borrow(), None, "{capacity} bytes");
        // Power is lost while it waits: all that was told is there.
        let told = durable.load(Ordering::SeqCst);
        let crashed = disk.restart(step);
        crashed.set_capacity(None);
        let found = everything(&open(&crashed).0);
        assert!(states[told..].contains(&found), "{capacity} bytes, {told} states told");
        // There is room again: everybody is told.
        disk.set_capacity(None);
        let last = Told::default();
        wal.create(replica(99), last.done());
        assert_eq!(step_all(&mut appender), Step::Idle, "{capacity} bytes");
        assert!(last.is_ok() && durable.load(Ordering::SeqCst) > 0);
        let mut expected = states.last().unwrap().clone();
        expected.0.insert(99, (replica(99), ReplicaLogState::default(), Vec::new()));
        assert_eq!(everything(&open(&disk.restart(step)).0), expected, "{capacity} bytes");
    }
    assert!(refused > 0 && filled > 10 && roomy > 10, "{refused} {filled} {roomy}");
}

#[test]
fn votes_truncations_and_purges_are_served_from_the_reserve_whenever_the_disk_is_full() {
    // Room for the reserve and some more; the end of the room falls on every part of a segment.
    for step in 0..40 {
        let disk = FaultyDisk::default();
        disk.set_capacity(Some(5 * MIN_SEGMENT_BYTES + step * 1000));
        let (wal, mut appender) = open(&disk);
        wal.create(replica(1), nobody());
        let appended = fill_up(&wal, &mut appender);
        for term in 0..30 {
            let (voted, removed) = (Told::default(), Told::default());
            wal.save_vote(1, vote(term), voted.done());
            wal.truncate_after(1, Some(appended - 2 - term / 10));
            wal.save_committed(1, position(1, appended / 2));
            wal.remove(77, removed.done());
            assert_eq!(step_all(&mut appender), Step::Idle, "vote {term}, room {step}");
            assert!(voted.is_ok() && removed.is_ok());
        }
        wal.purge(1, position(1, appended - 10));
        for term in 30..200 {
            wal.save_vote(1, vote(term), nobody());
            assert_eq!(step_all(&mut appender), Step::Idle, "vote {term}, room {step}");
        }
        assert!(!wal.is_full(), "room {step}: {:?}", wal.stats());
        assert_eq!(everything(&open(&disk.restart(step)).0), everything(&wal));
    }
}

#[test]
fn long_batches_find_the_reserve_ready_when_the_disk_fills() {
    let disk = FaultyDisk::default();
    let config = config().with_segment_bytes(4 << 20);
    let (wal, mut appender) = Wal::open_stepped(Arc::new(disk.clone()), Path::new(DIR), config).unwrap();
    wal.create(replica(1), nobody());
    let long = vec![7; 1 << 20];
    for index in 0..100 {
        if index == 10 {
            disk.set_capacity(Some(disk.used_bytes() + (3 << 19)));
        }
        if wal.is_full() {
            break;
        }
        wal.append(1, vec![entry(1, index, &long)], nobody());
        assert_eq!(
            step_all(&mut appender),
            Step::Idle,
            "entry {index} found the disk full, and nobody was told before"
        );
    }
    assert!(wal.is_full(), "the disk never was");
    let voted = Told::default();
    wal.save_vote(1, vote(3), voted.done());
    wal.purge(1, position(1, 8));
    step_all(&mut appender);
    assert!(voted.is_ok(), "the reserve is for votes");
}
