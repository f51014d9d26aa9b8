//! Power is lost at every write and sync of a workload, and again while the log recovers: what was told to be
//! durable is there, and nothing that nobody asked for.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Calls before the workload, so that segments are reclaimed and used again in it.
const CALLS_BEFORE: u64 = 600;
const CALLS: u64 = 100;

/// What happened before power was lost.
struct Run {
    /// The states that the log went through, one for each record.
    states: Vec<Everything>,
    /// The last of them that was told to be durable.
    durable: Arc<AtomicUsize>,
    copied_bytes: u64,
}

/// Makes calls and steps by chance until the disk fails, or all are made.
fn run(disk: &FaultyDisk, start: Everything, seed: u64, calls: u64) -> Result<Run, WalError> {
    let mut random = StdRng::seed_from_u64(seed);
    let (wal, mut appender) = try_open(disk)?;
    assert_eq!(everything(&wal), start, "seed {seed}");
    let durable = Arc::new(AtomicUsize::new(0));
    let mut states = vec![start];
    // Many batches of few records, or few that are sealed because they are long.
    let steps = [0.04, 0.1, 0.5, 0.9][seed as usize % 4];
    for serial in 0..calls {
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
        if random.random_bool(steps) && step_all(&mut appender) == Step::Stopped {
            break;
        }
    }
    wal.close();
    step_all(&mut appender);
    Ok(Run { states, durable, copied_bytes: wal.stats().copied_bytes })
}

/// A log that has been in use for a while, and what it knows.
fn used(seed: u64) -> (FaultyDisk, Everything) {
    let disk = FaultyDisk::default();
    let mut run = run(&disk, Everything::default(), seed, CALLS_BEFORE).unwrap();
    (disk, run.states.pop().unwrap())
}

impl Run {
    /// Whether this is a state that may be found.
    fn check(&self, found: &Everything) -> Result<(), String> {
        let durable = self.durable.load(Ordering::SeqCst);
        match self.states[durable..].contains(found) {
            true => Ok(()),
            false if self.states.contains(found) => Err("something durable is lost".into()),
            false => Err("this was never a state of the log".into()),
        }
    }
}

/// The disk after a loss of power, or after a kill of the process, which loses nothing and syncs nothing.
fn after_crash(disk: &FaultyDisk, seed: u64) -> FaultyDisk {
    if seed.is_multiple_of(4) { disk.reopen() } else { disk.restart(seed) }
}

fn check_crash(crashed: &FaultyDisk, run: &Run, seed: u64, context: &str) {
    for seed in seed..seed + 4 {
        let context = format!("{context}, restart {seed}");
        let mut disk = after_crash(crashed, seed);
        // Once more while it recovers: at any of its first operations, or not at all.
        disk.fail_at(seed % 9, Fault::Crash);
        disk = match try_open(&disk) {
            Err(error) if !disk.crashed() => panic!("{context}: {error}"),
            Err(_) => after_crash(&disk, seed + 1),
            Ok(_) => disk.reopen(),
        };
        let (wal, _appender) = try_open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
        let found = everything(&wal);
        run.check(&found).unwrap_or_else(|error| panic!("{context}: {error}: {found:#?}"));
        // What was served stays, also if power is lost right then.
        let disk = disk.restart(seed + 2);
        if seed.is_multiple_of(4) {
            go_on(&disk, found, seed + 3, &context);
        } else {
            assert_eq!(everything(&open(&disk).0), found, "{context}: after serving it");
        }
    }
}

fn go_on(disk: &FaultyDisk, found: Everything, seed: u64, context: &str) {
    let again = run(disk, found, seed, CALLS).unwrap_or_else(|error| panic!("{context}: {error}"));
    let (wal, _appender) = open(&disk.restart(seed));
    assert_eq!(everything(&wal), *again.states.last().unwrap(), "{context}: after going on and closing");
}

/// Runs the workload with a fault at each operation in turn; how much of the oldest segments it copies.
fn with_each_operation_failing(seed: u64, fault: Fault) -> u64 {
    let (base, start) = used(seed);
    let whole = base.reopen();
    let copied_bytes = run(&whole, start.clone(), seed, CALLS).unwrap().copied_bytes;
    for at in 0..whole.operations() {
        let disk = base.reopen();
        disk.fail_at(at, fault);
        let context = format!("seed {seed}, {fault:?} at {at}");
        match run(&disk, start.clone(), seed, CALLS) {
            Ok(run) => check_crash(&disk, &run, seed * 1000 + at * 4, &context),
            // While it was opened.
            Err(_) => assert_eq!(everything(&open(&disk.restart(at)).0), start, "{context}"),
        }
    }
    copied_bytes
}

#[test]
fn power_lost_at_any_operation_loses_nothing_durable() {
    let copied_bytes: u64 = (0..5).chain([16, 40]).map(|seed| with_each_operation_failing(seed, Fault::Crash)).sum();
    assert!(copied_bytes > 0, "nothing was reclaimed");
}

#[test]
fn any_operation_that_fails_loses_nothing_durable() {
    let copied_bytes: u64 = (0..3).map(|seed| with_each_operation_failing(seed, Fault::Fail)).sum();
    assert!(copied_bytes > 0, "nothing was reclaimed");
}

#[test]
fn power_lost_while_a_log_is_made_leaves_none_or_all() {
    for at in 0..8 {
        for seed in 0..20 {
            let disk = FaultyDisk::default();
            disk.fail_at(at, Fault::Crash);
            let opened = try_open(&disk);
            assert!(opened.is_ok() || disk.crashed());
            drop(opened);
            let disk = after_crash(&disk, seed);
            assert_eq!(everything(&open(&disk).0), Everything::default());
            go_on(&disk, Everything::default(), seed, "a new log");
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

#[test]
fn a_segment_is_kept_until_what_frees_it_is_durable() {
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    let first: Vec<_> = (0..4).map(|index| entry(1, index, &[1; 1000])).collect();
    wal.append(1, first.clone(), nobody());
    step_all(&mut appender);
    // Replica 1 alone is in the first segment, and everything that follows in others.
    let mut next = 0;
    let mut fill = |wal: &Wal| {
        wal.append(2, vec![entry(1, next, &[2; 1000])], nobody());
        next += 1;
    };
    (0..8).for_each(|index| wal.append(1, vec![entry(1, 4 + index, &[1; 1000])], nobody()));
    step_all(&mut appender);
    wal.create(replica(2), nobody());
    (0..16).for_each(|_| fill(&wal));
    step_all(&mut appender);
    // Many batches wait, and behind them what makes the first segment useless.
    (0..60).for_each(|_| fill(&wal));
    wal.remove(1, nobody());
    (0..30).for_each(|_| fill(&wal));
    let mut steps = 0;
    while appender.step() == Step::Wrote {
        steps += 1;
        for found in [disk.reopen(), disk.restart(steps)] {
            let (found, _appender) = open(&found);
            if found.state(1).is_some() {
                assert_eq!(entries(&found, 1)[..4], first, "after {steps} batches");
            } else {
                let last = found.state(2).unwrap().last.unwrap();
                assert!(last.index >= 75, "{last:?} after {steps} batches");
            }
        }
    }
    assert!(steps > 8, "{steps}");
}

#[test]
fn names_of_files_that_were_not_synced_may_all_be_lost_or_all_be_kept() {
    for seed in 0..3 {
        let (base, start) = used(seed);
        let whole = base.reopen();
        run(&whole, start.clone(), seed, CALLS).unwrap();
        for at in 0..whole.operations() {
            let disk = base.reopen();
            disk.fail_at(at, Fault::Crash);
            let crashed = run(&disk, start.clone(), seed, CALLS);
            for (sectors, names) in [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)] {
                let context = format!("seed {seed}, crash at {at}, {sectors} of the sectors, {names} of the names");
                let disk = disk.restart_keeping(sectors, names, at);
                let (wal, _appender) = try_open(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
                let found = everything(&wal);
                match &crashed {
                    Ok(run) => run.check(&found).unwrap_or_else(|error| panic!("{context}: {error}")),
                    Err(_) => assert_eq!(found, start, "{context}"),
                }
            }
        }
    }
}

#[test]
fn a_new_segment_needs_those_before_it_until_its_first_batch_is_durable() {
    for at in 0..8 {
        for seed in 0..8 {
            let disk = FaultyDisk::default();
            let (wal, mut appender) = open(&disk);
            // Nothing but replica 1 is in the first segment, and the second is nearly full.
            wal.create(replica(1), nobody());
            step_all(&mut appender);
            for index in 0.. {
                if wal.stats().segments == 2 {
                    break;
                }
                wal.append(1, vec![entry(1, index, &[1; 1000])], nobody());
                step_all(&mut appender);
            }
            wal.create(replica(2), nobody());
            for index in 0..5 {
                wal.append(2, vec![entry(1, index, &[2; 2000])], nobody());
                step_all(&mut appender);
            }
            let before = everything(&wal);
            disk.fail_at(disk.operations() + at, Fault::Crash);
            // One batch, which does not fit: it makes the first segment useless, once it is there.
            wal.remove(1, nobody());
            wal.append(2, (5..7).map(|index| entry(1, index, &[2; 2000])).collect(), nobody());
            step_all(&mut appender);
            let (wal, _appender) = open(&disk.restart(seed));
            let found = everything(&wal);
            let is_written = wal.state(1).is_none() && entries(&wal, 2).len() == 7;
            assert!(found == before || is_written, "at {at}, restart {seed}: {found:?}");
        }
    }
}
