//! Power is lost at every write and sync of a workload, and again while the log recovers: what was told to be
//! durable is there, and nothing that nobody asked for.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const CALLS: u64 = 120;

/// What happened before power was lost.
struct Run {
    /// The states that the log went through, one for each record.
    states: Vec<Everything>,
    /// The last of them that was told to be durable.
    durable: Arc<AtomicUsize>,
}

/// Makes calls and steps by chance until the disk fails, or all are made.
fn run(disk: &FaultyDisk, start: Everything, seed: u64) -> Result<Run, WalError> {
    let mut random = StdRng::seed_from_u64(seed);
    let (wal, mut appender) = try_open(disk)?;
    assert_eq!(everything(&wal), start, "seed {seed}");
    let durable = Arc::new(AtomicUsize::new(0));
    let mut states = vec![start];
    for serial in 0..CALLS {
        let before = &states[states.len() - 1];
        let call = before.random_call(&mut random, serial + 1000 * seed);
        let after = before.apply(&call);
        states.extend(after);
        let (at, durable) = (states.len() - 1, durable.clone());
        call.make(
            &wal,
            Box::new(move |result| {
                if result.is_ok() {
                    durable.fetch_max(at, Ordering::SeqCst);
                }
            }),
        );
        // Many batches of few records, and some that are sealed because they are long.
        if random.random_range(0..100) < 60 && step_all(&mut appender) == Step::Stopped {
            break;
        }
    }
    wal.close();
    step_all(&mut appender);
    Ok(Run { states, durable })
}

impl Run {
    /// Which state this is, if it is one that may be found.
    fn check(&self, found: &Everything) -> Result<(), String> {
        let durable = self.durable.load(Ordering::SeqCst);
        match self.states[durable..].contains(found) {
            true => Ok(()),
            false if self.states.contains(found) => Err("something durable is lost".into()),
            false => Err("this was never a state of the log".into()),
        }
    }
}

fn check_crash(disk: &FaultyDisk, run: &Run, seed: u64, context: &str) {
    // Once more while it recovers: at any of its first operations, or not at all.
    let mut disk = disk.restart(seed);
    disk.fail_at(seed % 7, Fault::Crash);
    if try_open(&disk).is_err() {
        assert!(disk.crashed(), "{context}: {}", try_open(&disk.reopen()).err().unwrap());
        disk = disk.restart(seed + 1);
    } else {
        disk = disk.reopen();
    }
    let (wal, appender) = try_open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = everything(&wal);
    run.check(&found).unwrap_or_else(|error| panic!("{context}: {error}: {found:#?}"));
    drop((wal, appender));
    // What was served stays, also if power is lost right then; and the log goes on.
    let disk = disk.restart(seed + 2);
    let again = super::crash::run(&disk, found, seed + 3).unwrap_or_else(|error| panic!("{context}: {error}"));
    let (wal, _appender) = open(&disk.restart(seed));
    assert_eq!(everything(&wal), *again.states.last().unwrap(), "{context}: after going on and closing");
}

#[test]
fn a_crash_at_any_write_or_sync_loses_nothing_durable() {
    for seed in 0..6 {
        let disk = FaultyDisk::default();
        run(&disk, Everything::default(), seed).unwrap();
        let operations = disk.operations();
        assert!(operations > 100, "{operations}");
        for at in 0..operations {
            let disk = FaultyDisk::default();
            disk.fail_at(at, Fault::Crash);
            let context = format!("seed {seed}, power lost at {at}");
            match run(&disk, Everything::default(), seed) {
                Ok(run) => check_crash(&disk, &run, seed * 1000 + at, &context),
                Err(error) => {
                    assert!(disk.crashed(), "{context}: {error}");
                    assert_eq!(everything(&open(&disk.restart(at)).0), Everything::default(), "{context}");
                }
            }
        }
    }
}

#[test]
fn a_failed_operation_anywhere_loses_nothing_durable() {
    for seed in 0..3 {
        let disk = FaultyDisk::default();
        run(&disk, Everything::default(), seed).unwrap();
        for at in 0..disk.operations() {
            let disk = FaultyDisk::default();
            disk.fail_at(at, Fault::Fail);
            // What fails while a new log is made leaves none.
            let Ok(run) = run(&disk, Everything::default(), seed) else { continue };
            let context = format!("seed {seed}, failure at {at}");
            check_crash(&disk, &run, seed * 1000 + at, &context);
        }
    }
}

#[test]
fn a_killed_process_finds_what_it_wrote() {
    for seed in 0..20 {
        let disk = FaultyDisk::default();
        let (wal, mut appender) = open(&disk);
        let mut random = StdRng::seed_from_u64(seed);
        let mut model = Everything::default();
        for serial in 0..300 {
            let call = model.random_call(&mut random, serial);
            model = model.apply(&call).pop().unwrap();
            call.make(&wal, nobody());
        }
        wal.save_vote(1, vote(1), nobody());
        step_all(&mut appender);
        let found = everything(&open(&disk.reopen()).0);
        assert_eq!(found, everything(&wal), "seed {seed}");
    }
}
