//! The chance that an endpoint lives by: the system's, or for tests that of a seed.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Where waits, instance numbers and connection ids come from.
pub(crate) enum Chance {
    /// Cannot be foretold.
    System,
    /// The same numbers in the same order for the same seed.
    Seeded(Box<Mutex<StdRng>>),
}

impl Chance {
    #[cfg_attr(not(feature = "test-net"), allow(dead_code, reason = "only simulated networks have seeds"))]
    pub(crate) fn seeded(seed: u64) -> Chance {
        Chance::Seeded(Box::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    pub(crate) fn number(&self) -> u64 {
        match self {
            Chance::System => rand::random(),
            Chance::Seeded(source) => numbers(source).random(),
        }
    }

    /// In 0 to 1, one excluded.
    pub(crate) fn fraction(&self) -> f64 {
        match self {
            Chance::System => rand::random(),
            Chance::Seeded(source) => numbers(source).random(),
        }
    }

    pub(crate) fn bytes<const N: usize>(&self) -> [u8; N] {
        match self {
            Chance::System => rand::random(),
            Chance::Seeded(source) => numbers(source).random(),
        }
    }

    /// What another source of chance shall begin with; `None` leaves it to the system.
    pub(crate) fn seed(&self) -> Option<[u8; 32]> {
        match self {
            Chance::System => None,
            Chance::Seeded(source) => Some(numbers(source).random()),
        }
    }
}

/// Nothing panics under this lock.
fn numbers(source: &Mutex<StdRng>) -> MutexGuard<'_, StdRng> {
    source.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chance::System => f.write_str("Chance::System"),
            Chance::Seeded(_) => f.write_str("Chance::Seeded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_the_system_does_not() {
        let take = |chance: &Chance| (chance.number(), chance.fraction(), chance.bytes::<8>(), chance.seed());
        assert_eq!(take(&Chance::seeded(7)), take(&Chance::seeded(7)));
        assert_ne!(take(&Chance::seeded(7)), take(&Chance::seeded(8)));
        assert_ne!(take(&Chance::System), take(&Chance::System));
    }
}
