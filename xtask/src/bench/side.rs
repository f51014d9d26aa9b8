//! What the rounds of one side add up to, and which rounds count.

use anyhow::{Result, anyhow, bail};

use super::Options;
use super::child::Round;
use super::row::{Rounds, Target};

/// Rounds that others disturbed are repeated, this many times a round at most.
const MAX_REPEATS: u32 = 3;

/// What a row needs of the rounds of one side.
#[derive(Default)]
pub struct Measured {
    pub per_second: Rounds,
    pub p50_us: Rounds,
    pub p99_us: Rounds,
    cpu_us: Rounds,
}

impl Measured {
    pub fn add(&mut self, round: &Round) {
        self.per_second.add(round.per_second, Some(round.cpu_us));
        self.p50_us.add(round.p50_us, Some(round.cpu_us));
        self.p99_us.add(round.p99_us, Some(round.cpu_us));
        self.cpu_us.add(round.cpu_us, Some(round.cpu_us));
    }

    /// CPU time per operation as the value, so that a ratio can be made of it.
    pub fn cpu(&self) -> &Rounds {
        &self.cpu_us
    }
}

/// Measures one round, again while others use too much of the machine.
pub fn undisturbed(options: &Options, mut measure: impl FnMut() -> Result<Round>) -> Result<Round> {
    for _ in 0..=MAX_REPEATS {
        let round = measure()?;
        if round.foreign_share * 100.0 <= options.max_foreign {
            return Ok(round);
        }
        println!("  others used {:.0} % of the machine: again", round.foreign_share * 100.0);
    }
    bail!("others use the machine too much for measuring")
}

/// The line that is printed while measuring.
pub fn describe(round: &Round) -> String {
    format!(
        "{:.0}/s, {:.3} us of CPU each, p50 {:.0} us, p99 {:.0} us, {:.0} % foreign",
        round.per_second,
        round.cpu_us,
        round.p50_us,
        round.p99_us,
        round.foreign_share * 100.0
    )
}

/// As many sides as were asked for.
pub fn exactly<const N: usize>(measured: Vec<Measured>) -> Result<[Measured; N]> {
    let count = measured.len();
    measured.try_into().map_err(|_| anyhow!("{count} sides were measured instead of {N}"))
}

pub fn at_least(bound: f64) -> Option<Target> {
    Some(Target::AtLeast(bound))
}

pub fn at_most(bound: f64) -> Option<Target> {
    Some(Target::AtMost(bound))
}
