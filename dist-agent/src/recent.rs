//! Which agents were found active a while ago: their next command is likely to need no place. A wrong guess
//! costs one more entry in a log, or a place that comes back; it is never wrong in what it does.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many keys of one generation are kept.
const GENERATION: usize = 32_768;

/// A bounded set of keys, by their hash; the older half is forgotten at the bound.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Recent {
    pub(crate) fn insert(&self, hash: u64) {
        let mut generations = self.lock();
        if generations.young.len() >= GENERATION {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(hash);
    }

    pub(crate) fn remove(&self, hash: u64) {
        let mut generations = self.lock();
        generations.young.remove(&hash);
        generations.old.remove(&hash);
    }

    pub(crate) fn contains(&self, hash: u64) -> bool {
        let generations = self.lock();
        generations.young.contains(&hash) || generations.old.contains(&hash)
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_known_and_the_set_stays_bounded() {
        let recent = Recent::default();
        for hash in 0..3 * GENERATION as u64 {
            recent.insert(hash);
            assert!(recent.contains(hash));
        }
        assert!(!recent.contains(0));
        let generations = recent.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }

    #[test]
    fn what_is_removed_is_not_known() {
        let recent = Recent::default();
        recent.insert(7);
        recent.remove(7);
        assert!(!recent.contains(7));
    }
}
