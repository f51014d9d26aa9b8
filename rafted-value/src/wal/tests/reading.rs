//! Entries that are not in memory: few reads where they stand side by side, the same entries wherever they stand.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// A log without a cache.
fn cold(disk: &FaultyDisk) -> (Wal, Appender) {
    let config = config().with_cache_bytes(0);
    Wal::open_stepped(Arc::new(disk.clone()), Path::new(DIR), config).unwrap()
}

#[test]
fn entries_that_stand_side_by_side_are_read_at_once() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = cold(&disk);
    wal.create(replica(1), nobody());
    for index in 0..80 {
        wal.append(1, vec![entry(1, index, &[index as u8; 100])], nobody());
        if index % 8 == 0 {
            step_all(&mut appender);
        }
    }
    step_all(&mut appender);
    disk.readers();
    let all = entries(&wal, 1);
    assert!(all.iter().enumerate().all(|(at, found)| *found == entry(1, at as u64, &[at as u8; 100])));
    let (reads, segments) = (disk.readers().len(), wal.stats().segments as usize);
    assert!(all.len() == 80 && reads <= segments, "{reads} reads in {segments} segments");
}

#[test]
fn entries_are_the_same_wherever_they_stand() {
    for seed in 0..30 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = FaultyDisk::default();
        let (wal, mut appender) = cold(&disk);
        let mut expected: BTreeMap<u64, Vec<LogEntry>> = BTreeMap::new();
        (1..=3).for_each(|id| wal.create(replica(id), nobody()));
        for _ in 0..200 {
            let id = random.random_range(1..=3);
            let all = expected.entry(id).or_default();
            // Small ones are read together, large ones of the others keep them apart.
            let length = [0, 30, 30, 30, 900, 3000][random.random_range(0..6)];
            let next = entry(1, all.len() as u64, &vec![random.random(); length]);
            all.push(next.clone());
            wal.append(id, vec![next], nobody());
            if random.random_bool(0.2) {
                step_all(&mut appender);
            }
        }
        step_all(&mut appender);
        for (id, all) in expected {
            assert_eq!(entries(&wal, id), all, "seed {seed}");
            let (first, last) = (random.random_range(0..all.len()), all.len() - 1);
            let found = wal.read(id, first as u64..last as u64, 1000).unwrap();
            assert_eq!(found, all[first..first + found.len()], "seed {seed}");
        }
    }
}
