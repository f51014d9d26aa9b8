//! The number of threads that read segments changes nothing of what is found, nor of the damage.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const THREADS: [usize; 4] = [1, 2, 3, 16];

/// A log of several segments, made by chance, that was not closed.
fn written(seed: u64) -> FaultyDisk {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    let mut model = Everything::default();
    for serial in 0..random.random_range(100..900) {
        let call = model.random_call(&mut random, serial);
        model = model.apply(&call).pop().unwrap();
        call.make(&wal, nobody());
        if random.random_bool(0.2) {
            step_all(&mut appender);
        }
    }
    disk.reopen()
}

/// What a disk may do to a file.
fn damage(disk: &FaultyDisk, random: &mut StdRng) {
    let names = disk.list(Path::new(DIR)).unwrap();
    let path = Path::new(DIR).join(&names[random.random_range(0..names.len())]);
    let length = disk.content(&path).len();
    let at = match random.random_range(0..4) {
        0 => random.random_range(0..64),
        _ => random.random_range(0..length),
    };
    match random.random_range(0..5) {
        0 => disk.remove(&path).unwrap(),
        1 => disk.change(&path, |content| content.truncate(at)),
        2 => disk.change(&path, |content| content[at..(at + 2000).min(length)].fill(0)),
        _ => disk.flip_bit(&path, at as u64),
    }
}

fn found(disk: &FaultyDisk, threads: usize) -> Result<Everything, String> {
    let config = config().with_recovery_threads(threads);
    let opened = Wal::open_stepped(Arc::new(disk.reopen()), Path::new(DIR), config);
    opened.map(|(wal, _appender)| everything(&wal)).map_err(|error| error.to_string())
}

#[test]
fn many_threads_find_what_one_finds() {
    let (mut whole, mut refused) = (0, 0);
    for seed in 0..40 {
        let written = written(seed);
        let mut random = StdRng::seed_from_u64(seed);
        for round in 0..12 {
            let disk = written.reopen();
            if round > 0 {
                damage(&disk, &mut random);
            }
            let [expected, others @ ..] = THREADS.map(|threads| found(&disk, threads));
            for other in others {
                assert_eq!(other, expected, "seed {seed}, round {round}");
            }
            match expected {
                Ok(_) => whole += 1,
                Err(error) => {
                    assert!(error.contains(DIR), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(whole > 100 && refused > 100, "{whole} {refused}");
}

#[test]
fn each_segment_is_read_once() {
    let written = written(3);
    for threads in [1, 4] {
        let disk = written.reopen();
        let config = config().with_recovery_threads(threads);
        let (wal, _appender) = Wal::open_stepped(Arc::new(disk.clone()), Path::new(DIR), config).unwrap();
        let files = disk.list(Path::new(DIR)).unwrap().len();
        let segments = wal.stats().segments as usize;
        assert!(segments >= 3, "{segments}");
        // Each header, then the needed segments.
        assert_eq!(disk.readers().len(), files + segments);
    }
}
