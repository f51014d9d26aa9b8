//! The whole crate under a seed, in virtual time: real replicas, openraft, sessions, snapshots and the log, over a
//! network and disks that do their worst. The same seed gives the same trace.
//!
//! ```text
//!   world    what befalls nodes, drawn from the seed; at the end all is healed and must come back
//!     |-- node      disk, store, the log's task, replica      |-- client    appends, reads, retries; history
//!     |-- members   moves the group to other nodes            |-- network   delays, losses, cuts
//!     '-- truth     at every step: one leader a term, one state an index
//!           |-- ledger    what ran and what was told: each once, none lost, no stale read
//!           '-- counts    what happened: not less than it should
//!   plant    bugs at the seams, which must be found
//! ```
//!
//! `RAFTED_VALUE_SEEDS=1000 cargo test --release -p rafted-value simulation` runs more seeds than the tests do, from
//! `RAFTED_VALUE_FIRST_SEED` on; `RAFTED_VALUE_SEED=17` runs one and tells its story.

mod world;
mod members;
mod node;
mod client;
mod network;
mod plant;
mod settings;
mod history;
mod clock;
mod value;
mod truth;
mod ledger;
mod counts;

use self::counts::Counts;
use self::plant::Plant;
use self::world::run;

/// Seeds that every run of the tests takes.
const SEEDS: u64 = 50;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_runs_twice() {
    let mut counts = Counts::default();
    let seeds = match variable("RAFTED_VALUE_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = variable("RAFTED_VALUE_FIRST_SEED").unwrap_or(0);
            first..first + variable("RAFTED_VALUE_SEEDS").unwrap_or(SEEDS)
        }
    };
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let report = run(seed, Plant::Nothing).unwrap_or_else(|error| panic!("{error}"));
        counts.add_all(&report.counts);
    }
    if count == 1 {
        return;
    }
    println!("{count} seeds: {counts:?}");
    let too_few = counts.too_few(count);
    assert!(too_few.is_empty(), "{too_few:?} of {counts:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [0, 1, 17] {
        let first = run(seed, Plant::Nothing).unwrap_or_else(|error| panic!("{error}"));
        let again = run(seed, Plant::Nothing).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(first, again, "seed {seed}");
    }
}

/// The first seed that finds the bug.
fn found(plant: Plant) -> u64 {
    let finds =
        |&seed: &u64| run(seed, plant).map_err(|error| println!("{}", error.lines().next().unwrap_or(""))).is_err();
    (0..100).find(finds).unwrap_or_else(|| panic!("{plant:?} is not found within 100 seeds"))
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    println!("by seed {}", found(Plant::AcknowledgeBeforeSync));
}

#[test]
fn a_forgotten_vote_is_found() {
    println!("by seed {}", found(Plant::ForgetVote));
}

#[test]
fn a_stale_read_is_found() {
    println!("by seed {}", found(Plant::StaleRead));
}

#[test]
fn sessions_that_a_snapshot_drops_are_found() {
    println!("by seed {}", found(Plant::DropSessions));
}

#[test]
fn a_suffix_that_is_kept_against_the_leader_is_found() {
    println!("by seed {}", found(Plant::KeepSuffix));
}
