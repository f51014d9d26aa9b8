//! Since when groups have had no leader, as far as this node has heard.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rafted_value::LogTime;

/// A group that has had no leader for this long is told of: far longer than an election.
pub(crate) const TELL_AFTER: Duration = Duration::from_secs(3);

/// The groups without a leader.
#[derive(Debug, Default)]
pub(crate) struct Leaderless {
    since: Mutex<BTreeMap<String, Silence>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Silence {
    since: LogTime,
    is_told: bool,
}

impl Leaderless {
    pub(crate) fn get(&self) -> BTreeMap<String, LogTime> {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.iter().map(|(group, silence)| (group.clone(), silence.since)).collect()
    }

    /// Takes in which groups have no leader now; those that are to be told of.
    pub(crate) fn update(&self, groups: impl Iterator<Item = String>, now: LogTime) -> Vec<String> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *since);
        let mut due = Vec::new();
        for group in groups {
            let mut silence = before.remove(&group).unwrap_or(Silence { since: now, is_told: false });
            let elapsed = now.as_millis().saturating_sub(silence.since.as_millis());
            if !silence.is_told && u128::from(elapsed) >= TELL_AFTER.as_millis() {
                silence.is_told = true;
                due.push(group.clone());
            }
            since.insert(group, silence);
        }
        due
    }

    /// Whether some group is yet to be told of.
    pub(crate) fn waits(&self) -> bool {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).values().any(|silence| !silence.is_told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_told_of_once_and_forgotten_when_it_has_a_leader() {
        let leaderless = Leaderless::default();
        let update = |groups: &[&str], millis| {
            leaderless.update(groups.iter().map(|group| (*group).to_owned()), LogTime::from_millis(millis))
        };
        assert!(update(&["a", "b"], 1_000).is_empty());
        assert!(leaderless.waits());
        assert_eq!(update(&["a"], 4_000), ["a"]);
        assert!(update(&["a", "b"], 5_000).is_empty());
        assert_eq!(
            leaderless.get(),
            [("a", 1_000), ("b", 5_000)].map(|(g, at)| (g.to_owned(), LogTime::from_millis(at))).into()
        );
        assert!(update(&[], 6_000).is_empty());
        assert!(leaderless.get().is_empty() && !leaderless.waits());
    }
}
