//! Which quotas there are, as this node saw them a moment ago. What is found here is younger than
//! [`CACHE_LEASE`], so that who deletes a quota waits that long and then knows that no node serves it any more.
//! What is not found here is asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a quota may be taken for existing without asking.
pub(crate) const CACHE_LEASE: Duration = Duration::from_secs(1);

/// The most quotas that are remembered; beyond, those whose lease is over go, or all.
const MAX_CACHED: usize = 10_000;

/// Incarnations of quotas, by name.
#[derive(Debug, Default)]
pub(crate) struct QuotaCache {
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    known: Option<Known>,
    /// One request at a time asks; the others wait for its answer.
    asking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    incarnation: u64,
    /// When the question was sent that this answers.
    asked: Instant,
}

impl QuotaCache {
    /// The quota's incarnation, if it is known well enough.
    pub(crate) fn get(&self, quota: &str, now: Instant) -> Option<u64> {
        let known = self.lock().get(quota)?.known?;
        known.holds(now).then_some(known.incarnation)
    }

    /// The lock to hold while asking.
    pub(crate) fn asking(&self, quota: &str) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.lock().entry(quota.to_owned()).or_default().asking)
    }

    /// Remembers the answer to a question that was sent at `asked`.
    pub(crate) fn put(&self, quota: &str, incarnation: u64, asked: Instant) {
        let mut entries = self.lock();
        if entries.len() >= MAX_CACHED {
            entries.retain(|_, entry| entry.known.is_some_and(|known| known.holds(asked)));
            if entries.len() >= MAX_CACHED {
                entries.clear();
            }
        }
        entries.entry(quota.to_owned()).or_default().known = Some(Known { incarnation, asked });
    }

    /// Forgets a quota: what is known of it was found to be old.
    pub(crate) fn forget(&self, quota: &str) {
        self.lock().remove(quota);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn holds(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked) < CACHE_LEASE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_holds_from_the_question_on_for_a_lease() {
        let asked = Instant::now();
        let cache = QuotaCache::default();
        assert_eq!(cache.get("a", asked), None);
        cache.put("a", 7, asked);
        assert_eq!(cache.get("a", asked + CACHE_LEASE - Duration::from_millis(1)), Some(7));
        assert_eq!(cache.get("a", asked + CACHE_LEASE), None);
        cache.put("a", 8, asked);
        cache.forget("a");
        assert_eq!(cache.get("a", asked), None);
    }

    #[test]
    fn it_stays_bounded() {
        let asked = Instant::now();
        let cache = QuotaCache::default();
        for number in 0..MAX_CACHED + 5 {
            cache.put(&number.to_string(), 1, asked);
        }
        assert!(cache.lock().len() <= MAX_CACHED);
    }
}
