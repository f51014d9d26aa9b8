//! The places that this node holds for activations: taken from the quota group in small batches, put on
//! commands one by one, given back when nobody needs them.
//!
//! ```text
//!   add --> left --take--> tried --+--> filled     the agent was activated, or nobody knows
//!            ^                     |
//!            +------- put back ----+               the shard did not need the place
//!   left, and idle for a while: released
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::agent_state::Stamp;

/// Places that nobody asked for within this time are given back: others may wait for them.
pub(crate) const RELEASE_AFTER: Duration = Duration::from_millis(300);

/// A batch grows with each grant that follows the one before within this time.
const BUSY_WITHIN: Duration = Duration::from_secs(1);

/// The largest batch that is asked for.
const MAX_BATCH: u64 = 64;

/// All places of this node, shared by its requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grants {
    pools: Arc<Mutex<HashMap<PoolName, Pool>>>,
}

/// Of which quota, and for which shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PoolName {
    pub(crate) quota: String,
    pub(crate) incarnation: u64,
    pub(crate) holder: String,
}

/// The places of one grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) reservation: u64,
    pub(crate) amount: u64,
    /// In ms of the shard's log time.
    pub(crate) use_by: u64,
}

/// What to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) quota: String,
    pub(crate) incarnation: u64,
    pub(crate) reservation: u64,
    pub(crate) filled: u64,
}

#[derive(Debug, Default)]
struct Pool {
    grants: BTreeMap<u64, Held>,
    batch: u64,
    granted: Option<Instant>,
    /// One request at a time asks the quota group; the others wait and find its places.
    asking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Held {
    use_by: u64,
    left: u64,
    tried: u64,
    filled: u64,
    touched: Instant,
}

impl Grants {
    /// A place, if one is held that is good at `log_time` (in ms, of the shard's, as far as is known).
    pub(crate) fn take(&self, name: &PoolName, log_time: u64, now: Instant) -> Option<Place> {
        let mut pools = self.lock();
        let pool = pools.get_mut(name)?;
        let good = |held: &Held| held.left > 0 && held.use_by > log_time;
        let (reservation, held) = pool.grants.iter_mut().map(|(id, held)| (*id, held)).find(|(_, held)| good(held))?;
        held.left -= 1;
        held.tried += 1;
        held.touched = now;
        let stamp = Stamp { reservation, holder: name.holder.clone(), use_by: held.use_by };
        Some(Place { grants: self.clone(), name: name.clone(), stamp, fate: Fate::Filled })
    }

    /// How many places to ask for, and the lock to hold meanwhile.
    pub(crate) fn ask(&self, name: &PoolName, now: Instant) -> (u64, Arc<tokio::sync::Mutex<()>>) {
        let mut pools = self.lock();
        let pool = pools.entry(name.clone()).or_default();
        let busy = pool.granted.is_some_and(|granted| now.saturating_duration_since(granted) < BUSY_WITHIN);
        let batch = if busy { (pool.batch * 2).clamp(1, MAX_BATCH) } else { 1 };
        (batch, Arc::clone(&pool.asking))
    }

    /// Keeps what was granted.
    pub(crate) fn add(&self, name: &PoolName, places: Places, now: Instant) {
        let mut pools = self.lock();
        let pool = pools.entry(name.clone()).or_default();
        let Places { reservation, amount, use_by } = places;
        pool.grants.insert(reservation, Held { use_by, left: amount, tried: 0, filled: 0, touched: now });
        pool.batch = amount.min(MAX_BATCH);
        pool.granted = Some(now);
    }

    /// Takes out what is not needed any more, and says what of it must be given back.
    pub(crate) fn collect(&self, now: Instant) -> Vec<Release> {
        let mut releases = Vec::new();
        self.lock().retain(|name, pool| {
            pool.grants.retain(|reservation, held| {
                let idle = now.saturating_duration_since(held.touched) >= RELEASE_AFTER;
                if held.tried > 0 || (held.left > 0 && !idle) {
                    return true;
                }
                if held.left > 0 {
                    releases.push(name.release(*reservation, held.filled));
                }
                false
            });
            let busy = pool.granted.is_some_and(|granted| now.saturating_duration_since(granted) < BUSY_WITHIN);
            !pool.grants.is_empty() || busy || Arc::strong_count(&pool.asking) > 1
        });
        releases
    }

    fn settle(&self, name: &PoolName, reservation: u64, fate: Fate) {
        let mut pools = self.lock();
        let Some(held) = pools.get_mut(name).and_then(|pool| pool.grants.get_mut(&reservation)) else { return };
        held.tried = held.tried.saturating_sub(1);
        match fate {
            Fate::Filled => held.filled += 1,
            Fate::Left => held.left += 1,
            // Its time is over for all its places. Nobody filled this one, and nobody will.
            Fate::Expired => held.use_by = 0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PoolName, Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PoolName {
    fn release(&self, reservation: u64, filled: u64) -> Release {
        Release { quota: self.quota.clone(), incarnation: self.incarnation, reservation, filled }
    }
}

/// One place, on its way with a command. Dropped, it counts as filled: the command may still arrive.
#[derive(Debug)]
pub(crate) struct Place {
    grants: Grants,
    name: PoolName,
    stamp: Stamp,
    fate: Fate,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Filled,
    Left,
    Expired,
}

impl Place {
    pub(crate) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Whether it is good for an agent of this quota in this shard.
    pub(crate) fn is_of(&self, pool: &PoolName) -> bool {
        self.name == *pool
    }

    /// The shard answered without having taken it.
    pub(crate) fn put_back(mut self) {
        self.fate = Fate::Left;
    }

    /// The shard was past its time.
    pub(crate) fn expired(mut self) {
        self.fate = Fate::Expired;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.grants.settle(&self.name, self.stamp.reservation, self.fate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> PoolName {
        PoolName { quota: "q".into(), incarnation: 3, holder: "s1".into() }
    }

    fn with(amount: u64, use_by: u64, now: Instant) -> Grants {
        let grants = Grants::default();
        grants.add(&name(), Places { reservation: 7, amount, use_by }, now);
        grants
    }

    fn release(filled: u64) -> Vec<Release> {
        vec![Release { quota: "q".into(), incarnation: 3, reservation: 7, filled }]
    }

    #[test]
    fn each_place_is_on_one_command_at_a_time() {
        let now = Instant::now();
        let grants = with(2, 100, now);
        let (one, two) = (grants.take(&name(), 0, now).unwrap(), grants.take(&name(), 0, now).unwrap());
        assert_eq!(one.stamp(), &Stamp { reservation: 7, holder: "s1".into(), use_by: 100 });
        assert!(grants.take(&name(), 0, now).is_none());
        two.put_back();
        assert!(grants.take(&name(), 0, now).is_some());
        assert!(grants.take(&name(), 0, now).is_none(), "a dropped one counts as filled");
        drop(one);
    }

    #[test]
    fn places_past_their_time_are_not_taken() {
        let now = Instant::now();
        let grants = with(2, 100, now);
        assert!(grants.take(&name(), 100, now).is_none());
        grants.take(&name(), 99, now).unwrap().expired();
        assert!(grants.take(&name(), 0, now).is_none(), "the shard said so");
    }

    #[test]
    fn idle_places_are_given_back_and_only_when_every_outcome_is_known() {
        let now = Instant::now();
        let grants = with(3, 100, now);
        drop(grants.take(&name(), 0, now));
        let tried = grants.take(&name(), 0, now).unwrap();
        assert_eq!(grants.collect(now), vec![]);
        let later = now + RELEASE_AFTER;
        assert_eq!(grants.collect(later), vec![], "one is under way");
        tried.put_back();
        assert_eq!(grants.collect(later), release(1));
        assert!(grants.take(&name(), 0, later).is_none());
        assert_eq!(grants.collect(later), vec![]);
    }

    #[test]
    fn what_was_filled_to_the_last_place_needs_no_release() {
        let now = Instant::now();
        let grants = with(1, 100, now);
        drop(grants.take(&name(), 0, now));
        assert_eq!(grants.collect(now + RELEASE_AFTER), vec![]);
    }

    #[test]
    fn batches_grow_while_places_are_asked_for_and_start_small_again() {
        let now = Instant::now();
        let grants = Grants::default();
        let mut asked = Vec::new();
        for reservation in 0..9 {
            let (wanted, _) = grants.ask(&name(), now);
            asked.push(wanted);
            grants.add(&name(), Places { reservation, amount: wanted, use_by: 100 }, now);
        }
        assert_eq!(asked, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        assert_eq!(grants.ask(&name(), now + BUSY_WITHIN).0, 1);
    }

    #[test]
    fn pools_nobody_uses_are_dropped() {
        let now = Instant::now();
        let grants = with(1, 100, now);
        drop(grants.take(&name(), 0, now));
        grants.collect(now + BUSY_WITHIN);
        assert!(grants.lock().is_empty());
    }
}
