//! The starts of a node's directory, by which one tells that it was rolled back: put back from an older copy of itself.
//!
//! Each start raises the boot number and draws a number of its own, and both are synced before the start does anything
//! else. Others remember the latest start that they heard of. A directory that was rolled back has forgotten it, or has
//! another start of the same boot in its place; one that was not has it in its list.

use std::collections::BTreeMap;

/// Starts that a directory remembers; of older ones it cannot say whether they were its own, and believes it.
const MAX_STARTS: usize = 1_024;

/// One start of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Start {
    /// Raised at each start.
    pub boot: u64,
    /// Drawn at random, so that no two starts under one boot number are taken for one.
    pub number: u64,
}

/// The latest starts of a directory, by boot number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Starts(BTreeMap<u64, u64>);

impl FromIterator<Start> for Starts {
    fn from_iter<I: IntoIterator<Item = Start>>(starts: I) -> Self {
        let mut all = Self::default();
        starts.into_iter().for_each(|start| all.add(start));
        all
    }
}

impl Starts {
    /// One more; the oldest makes room.
    pub fn add(&mut self, start: Start) {
        self.0.insert(start.boot, start.number);
        while self.0.len() > MAX_STARTS {
            self.0.pop_first();
        }
    }

    /// Oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Start> + '_ {
        self.0.iter().map(|(&boot, &number)| Start { boot, number })
    }

    /// The one that was added last; all zero without any.
    pub fn latest(&self) -> Start {
        self.iter().last().unwrap_or_default()
    }

    /// Whether a start that somebody saw of this directory is none that it remembers, although it would: the directory
    /// was rolled back to before it.
    pub fn lack(&self, seen: Start) -> bool {
        let is_older_than_all = self.0.keys().next().is_some_and(|&oldest| seen.boot < oldest);
        !is_older_than_all && self.0.get(&seen.boot) != Some(&seen.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(numbers: impl IntoIterator<Item = (u64, u64)>) -> Starts {
        numbers.into_iter().map(|(boot, number)| Start { boot, number }).collect()
    }

    #[test]
    fn only_own_starts_are_believed() {
        let directory = starts([(1, 10), (2, 20), (3, 30)]);
        let seen = |boot, number| directory.lack(Start { boot, number });
        assert!(!seen(1, 10) && !seen(3, 30), "its own");
        assert!(seen(4, 40), "one that is to come: it was rolled back to before it");
        assert!(seen(2, 21), "another one in its place: rolled back, and started since");
        assert_eq!(directory.latest(), Start { boot: 3, number: 30 });
    }

    #[test]
    fn the_list_is_bounded_and_what_it_has_forgotten_is_believed() {
        let directory = starts((1..=MAX_STARTS as u64 + 5).map(|boot| (boot, boot * 10)));
        assert_eq!(directory.iter().len(), MAX_STARTS);
        assert!(!directory.lack(Start { boot: 5, number: 1 }), "forgotten");
        assert!(directory.lack(Start { boot: 6, number: 1 }), "remembered");
    }
}
