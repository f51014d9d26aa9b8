//! Changed bytes: a torn tail is dropped, everything else is refused with file and byte.

use super::record::{BATCH_HEADER_BYTES, change_version};
use super::*;

/// A log of one replica with `count` batches of an entry, not closed; and where each batch starts.
fn written(disk: &FaultyDisk, count: u64) -> Vec<u64> {
    let (wal, mut appender) = open(disk);
    wal.create(replica(1), nobody());
    step_all(&mut appender);
    let mut starts = Vec::new();
    for index in 0..count {
        starts.push(end(&wal));
        wal.append(1, vec![entry(1, index, &[index as u8; 100])], nobody());
        step_all(&mut appender);
    }
    starts
}

/// Where the next batch starts, as long as all are in one segment.
fn end(wal: &Wal) -> u64 {
    FIRST_OFFSET + wal.stats().bytes
}

/// The damage that opening finds.
fn refused(disk: &FaultyDisk) -> (PathBuf, u64) {
    match try_open(disk).err() {
        Some(WalError::Damage { file, offset, .. }) => (file, offset),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_torn_last_batch_is_dropped_and_stays_dropped() {
    let disk = FaultyDisk::default();
    let starts = written(&disk, 5);
    let last = starts[4];
    for bytes in [0, 20, BATCH_HEADER_BYTES as u64, 100] {
        let disk = disk.reopen();
        disk.change(&segment(1), |content| content[(last + bytes) as usize..].fill(0));
        let (wal, mut appender) = open(&disk);
        assert_eq!(entries(&wal, 1).len(), 4, "{bytes} bytes left");
        wal.append(1, vec![entry(2, 4, b"another")], nobody());
        step_all(&mut appender);
        let (wal, _appender) = open(&disk.reopen());
        assert_eq!(entries(&wal, 1)[4], entry(2, 4, b"another"));
    }
}

#[test]
fn a_dropped_batch_does_not_come_back_when_its_bytes_do() {
    let disk = FaultyDisk::default();
    let starts = written(&disk, 5);
    let whole = disk.content(&segment(1));
    let last = starts[4] as usize;
    disk.change(&segment(1), |content| content[last + 60] ^= 1);
    let (wal, _appender) = open(&disk);
    assert_eq!(entries(&wal, 1).len(), 4);
    // Its body is read well this time, but its header was overwritten.
    disk.change(&segment(1), |content| content[last + 48..].copy_from_slice(&whole[last + 48..]));
    assert_eq!(entries(&open(&disk.reopen()).0, 1).len(), 4);
}

#[test]
fn a_flipped_bit_before_the_last_batch_is_damage() {
    let disk = FaultyDisk::default();
    let starts = written(&disk, 5);
    let end = disk.content(&segment(1)).len() as u64;
    for (at, &start) in starts.iter().enumerate() {
        for offset in [start, start + 9, start + 17, start + 44, start + 60, start + 130] {
            let disk = disk.reopen();
            disk.flip_bit(&segment(1), offset);
            if at < 4 {
                assert_eq!(refused(&disk), (segment(1), start), "bit at {offset}");
            } else {
                assert_eq!(entries(&open(&disk).0, 1).len(), 4, "bit at {offset} of {end}");
            }
        }
    }
}

#[test]
fn after_a_clean_stop_damage_of_the_last_entry_is_seen() {
    let disk = FaultyDisk::default();
    let starts = written(&disk, 3);
    let (wal, appender) = open(&disk);
    close(wal, appender);
    disk.flip_bit(&segment(1), starts[2] + 70);
    assert_eq!(refused(&disk), (segment(1), starts[2]));
}

/// A log over several segments.
fn long(disk: &FaultyDisk) {
    let (wal, mut appender) = open(disk);
    wal.create(replica(1), nobody());
    for index in 0..80 {
        wal.append(1, vec![entry(1, index, &[index as u8; 500])], nobody());
        step_all(&mut appender);
    }
    assert!(wal.stats().segments >= 3);
}

#[test]
fn damage_of_any_byte_of_a_header_is_seen() {
    let disk = FaultyDisk::default();
    long(&disk);
    let healthy = everything(&open(&disk.reopen()).0);
    let segments = disk.list(Path::new(DIR)).unwrap();
    for name in segments {
        for offset in [0, 8, 20, 33, 41, 49, 61] {
            let disk = disk.reopen();
            let path = Path::new(DIR).join(&name);
            disk.flip_bit(&path, offset);
            match try_open(&disk) {
                // Only of a segment that is not in use.
                Ok((wal, _appender)) => assert_eq!(everything(&wal), healthy, "{name} at {offset}"),
                Err(WalError::Damage { .. } | WalError::Version { .. }) => {}
                Err(other) => panic!("{name} at {offset}: {other}"),
            }
        }
    }
}

#[test]
fn damage_in_an_older_segment_names_it() {
    let disk = FaultyDisk::default();
    long(&disk);
    disk.flip_bit(&segment(1), FIRST_OFFSET + 5000);
    let (file, offset) = refused(&disk);
    assert_eq!(file, segment(1));
    assert!((FIRST_OFFSET + 4000..=FIRST_OFFSET + 5000).contains(&offset), "{offset}");
}

#[test]
fn a_missing_segment_is_damage() {
    let disk = FaultyDisk::default();
    long(&disk);
    for number in 1..3 {
        let disk = disk.reopen();
        disk.remove(&segment(number)).unwrap();
        refused(&disk);
    }
}

#[test]
fn all_used_segments_missing_is_no_new_log() {
    let disk = FaultyDisk::default();
    written(&disk, 1);
    disk.remove(&segment(1)).unwrap();
    assert!(!disk.list(Path::new(DIR)).unwrap().is_empty());
    refused(&disk);
}

#[test]
fn the_only_segment_without_its_header_is_damage() {
    let disk = FaultyDisk::default();
    written(&disk, 1);
    for number in 2..5 {
        let _ = disk.remove(&segment(number));
    }
    disk.change(&segment(1), |content| content[..512].fill(0));
    assert_eq!(refused(&disk), (segment(1), 0));
}

#[test]
fn a_segment_of_another_log_is_foreign() {
    let disk = FaultyDisk::default();
    long(&disk);
    let other = FaultyDisk::default();
    let config = config().with_salt(*b"another log here");
    drop(Wal::open(Arc::new(other.clone()), Path::new(DIR), config).unwrap());
    let content = other.content(&segment(1));
    disk.create(&segment(99)).unwrap().write_at(&content, 0).unwrap();
    assert!(matches!(try_open(&disk), Err(WalError::Foreign { file }) if file == segment(99)));
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = FaultyDisk::default();
    written(&disk, 1);
    disk.change(&segment(1), |content| content[8] = 9);
    let error = try_open(&disk).err().unwrap();
    assert!(matches!(error, WalError::Version { found: 9, supported: 1, .. }));
    assert!(error.to_string().contains("segment-000001 has log format 9"), "{error}");
}

#[test]
fn a_batch_of_a_newer_format_is_no_torn_tail() {
    for at in [4, 2, 0] {
        let disk = FaultyDisk::default();
        let offset = written(&disk, 5)[at];
        let change = |content: &mut Vec<u8>, salt| {
            let header = &mut content[offset as usize..][..BATCH_HEADER_BYTES];
            change_version(header, 9, salt, 1, offset);
        };
        let damaged = disk.reopen();
        damaged.change(&segment(1), |content| change(content, b"a wrong checksum"));
        match try_open(&damaged) {
            Ok((wal, _)) => assert!(at == 4 && entries(&wal, 1).len() == 4, "at the end, it is a torn tail"),
            Err(error) => assert!(at < 4 && matches!(error, WalError::Damage { .. }), "{error}"),
        }
        disk.change(&segment(1), |content| change(content, &SALT));
        let error = try_open(&disk).err().unwrap();
        assert!(
            matches!(&error, WalError::Version { file, offset: found_at, found: 9, supported: 1 }
                if *file == segment(1) && *found_at == offset),
            "{error}"
        );
        // Nothing was changed by the try: the newer program finds all of it.
        disk.change(&segment(1), |content| {
            change_version(&mut content[offset as usize..][..BATCH_HEADER_BYTES], 1, &SALT, 1, offset);
        });
        assert_eq!(entries(&open(&disk).0, 1).len(), 5);
    }
}

#[test]
fn a_read_of_a_damaged_entry_is_an_error() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    for index in 0..40 {
        wal.append(1, vec![entry(1, index, &[index as u8; 100])], nobody());
        step_all(&mut appender);
    }
    disk.flip_bit(&segment(1), FIRST_OFFSET + 200);
    let error = wal.read(1, 0..40, usize::MAX).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("entry 0 of replica 0000000000000001 is not at byte"), "{error}");
}

#[test]
fn bytes_of_users_never_pass_for_a_batch() {
    let disk = FaultyDisk::default();
    written(&disk, 5);
    let content = disk.content(&segment(1));
    // A whole log, as the payload of the last entry, which is then torn.
    let copied = content[FIRST_OFFSET as usize..FIRST_OFFSET as usize + 1000].to_vec();
    let (wal, mut appender) = open(&disk);
    wal.append(1, vec![entry(1, 5, &copied)], nobody());
    step_all(&mut appender);
    let content = disk.content(&segment(1));
    let end = content.iter().rposition(|&byte| byte != 0).unwrap();
    disk.flip_bit(&segment(1), end as u64 - 8);
    assert_eq!(entries(&open(&disk).0, 1).len(), 5);
}

/// The states that a log of one replica goes through, batch by batch: what may be left of a torn one.
fn without_last(all: &Everything) -> Everything {
    let mut before = all.clone();
    let (_, state, entries) = before.0.get_mut(&1).unwrap();
    entries.pop();
    state.last = entries.last().map(|entry| position(entry.term, entry.index)).or(state.last_purged);
    before
}

#[test]
fn a_bit_flipped_anywhere_gives_damage_a_torn_tail_or_nothing_and_never_other_content() {
    let not_closed = FaultyDisk::default();
    long(&not_closed);
    let closed = not_closed.reopen();
    let (wal, appender) = open(&closed);
    close(wal, appender);
    for (disk, is_closed) in [(not_closed, false), (closed, true)] {
        let healthy = everything(&open(&disk.reopen()).0);
        let torn = without_last(&healthy);
        let mut counts = [0; 3];
        for name in disk.list(Path::new(DIR)).unwrap() {
            let path = Path::new(DIR).join(&name);
            let length = disk.content(&path).len() as u64;
            // Every byte of the headers and of the first batches, and in the rest each byte of a record by and by.
            let places =
                (0..64).chain(FIRST_OFFSET..FIRST_OFFSET + 700).chain((FIRST_OFFSET + 700..length).step_by(13));
            for offset in places.filter(|&offset| offset < length) {
                let disk = disk.reopen();
                disk.change(&path, |content| content[offset as usize] ^= 1 << (offset % 8));
                match try_open(&disk) {
                    Err(WalError::Damage { file, offset: at, .. }) => {
                        // Without its header, a segment is missing to the one behind it.
                        let is_near = file == path && at <= offset || offset < 64;
                        assert!(is_near, "byte {offset} of {name}: told byte {at} of {}", file.display());
                        counts[0] += 1;
                    }
                    Err(WalError::Version { file, .. } | WalError::Foreign { file }) => {
                        // The version's or the salt's bytes; of the two salts, nobody knows which one is right.
                        assert!((8..12).contains(&offset) && file == path || (16..32).contains(&offset), "{offset}");
                        counts[0] += 1;
                    }
                    Err(other) => panic!("byte {offset} of {name}: {other}"),
                    Ok((wal, _appender)) => {
                        let found = everything(&wal);
                        let is_torn = found == torn && !is_closed;
                        assert!(found == healthy || is_torn, "byte {offset} of {name} gave other content");
                        counts[if is_torn { 1 } else { 2 }] += 1;
                    }
                }
            }
        }
        let [refused, torn, unharmed] = counts;
        assert!(refused > 1000 && (torn > 10) != is_closed && unharmed > 100, "{counts:?}");
    }
}
