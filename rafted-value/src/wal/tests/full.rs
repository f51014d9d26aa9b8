//! A full disk: it shows before anything is lost, and the log goes on when there is room.

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
