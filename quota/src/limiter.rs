//! Buckets by key, for any number of threads.
//!
//! The keys are spread over shards with a lock each. A bucket that nobody took from for long is as good as a
//! new one, so it is dropped: when it is looked up, when its shard has grown to twice what the last sweep
//! left, and by [`Limiter::drop_idle`].

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    bucket::{Bucket, Rate},
    error::{IdleError, TakeError},
};

/// How long a bucket is kept without a take, unless told otherwise: long enough that a busy key is not made
/// anew all the time, short enough that yesterday's keys cost nothing today.
pub const DEFAULT_IDLE_AFTER: Duration = Duration::from_secs(60);

/// How many buckets a limiter keeps, unless told otherwise: about 100 MB with short keys.
pub const DEFAULT_MAX_BUCKETS: usize = 1_000_000;

/// Locks: a few times the cores of a usual machine, so that two threads seldom meet.
const SHARD_COUNT: usize = 64;

/// A shard is swept no earlier than with this many buckets.
const MIN_SWEEP_LENGTH: usize = 64;

/// At the bound on buckets a shard is swept at most this often within the idle threshold, so that a flood of
/// new keys does not cost a sweep each.
const SWEEPS_PER_THRESHOLD: u32 = 8;

/// What a take from a bucket that does not exist does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownBuckets {
    /// It makes the bucket, full.
    #[default]
    Create,
    /// It is refused; [`Limiter::insert`] makes buckets. An inserted bucket is dropped like any other when
    /// nobody takes from it for long.
    Refuse,
}

/// Token buckets by key. Shared by reference among threads.
#[derive(Debug)]
pub struct Limiter<K> {
    rate: Rate,
    idle_after: Duration,
    max_buckets: usize,
    unknown: UnknownBuckets,
    hasher: RandomState,
    shards: Vec<Mutex<Shard<K>>>,
    /// The sum of the shards' lengths; may be above the bound by as many as threads insert at once.
    bucket_count: AtomicUsize,
}

#[derive(Debug)]
struct Shard<K> {
    buckets: HashMap<K, Bucket>,
    /// The length at which the next sweep is due.
    sweep_at: usize,
    swept: Option<Instant>,
}

impl<K: Hash + Eq> Limiter<K> {
    /// A limiter whose buckets have this rate, unless a take brings its own.
    #[must_use]
    pub fn new(rate: Rate) -> Limiter<K> {
        let shard = || Shard { buckets: HashMap::new(), sweep_at: MIN_SWEEP_LENGTH, swept: None };
        Limiter {
            rate,
            idle_after: DEFAULT_IDLE_AFTER.max(rate.refill()),
            max_buckets: DEFAULT_MAX_BUCKETS,
            unknown: UnknownBuckets::default(),
            hasher: RandomState::new(),
            shards: (0..SHARD_COUNT).map(|_| Mutex::new(shard())).collect(),
            bucket_count: AtomicUsize::new(0),
        }
    }

    /// Drops buckets after this long without a take. For a bucket whose own refill takes longer, its refill
    /// counts.
    ///
    /// # Errors
    /// Where it is shorter than a refill at the limiter's rate.
    pub fn with_idle_after(mut self, idle_after: Duration) -> Result<Limiter<K>, IdleError> {
        let refill = self.rate.refill();
        if idle_after < refill {
            return Err(IdleError { given: idle_after, refill });
        }
        self.idle_after = idle_after;
        Ok(self)
    }

    /// Keeps at most this many buckets; a key beyond is refused until others are idle.
    #[must_use]
    pub fn with_max_buckets(mut self, max_buckets: usize) -> Limiter<K> {
        self.max_buckets = max_buckets;
        self
    }

    /// Says what a take from an unknown bucket does.
    #[must_use]
    pub fn with_unknown_buckets(mut self, unknown: UnknownBuckets) -> Limiter<K> {
        self.unknown = unknown;
        self
    }

    /// The rate of takes that bring none.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes `tokens` from the bucket of `key` at the limiter's rate, now.
    ///
    /// # Errors
    /// See [`TakeError`]; nothing was taken.
    pub fn take(&self, key: K, tokens: u32) -> Result<(), TakeError> {
        self.take_at(key, tokens, self.rate, Instant::now())
    }

    /// As [`take`](Self::take), at another rate, which applies to this bucket from now on.
    ///
    /// # Errors
    /// See [`TakeError`]; nothing was taken.
    pub fn take_with_rate(&self, key: K, tokens: u32, rate: Rate) -> Result<(), TakeError> {
        self.take_at(key, tokens, rate, Instant::now())
    }

    /// As [`take_with_rate`](Self::take_with_rate), at a time of the caller's.
    ///
    /// # Errors
    /// See [`TakeError`]; nothing was taken.
    pub fn take_at(&self, key: K, tokens: u32, rate: Rate, now: Instant) -> Result<(), TakeError> {
        if tokens > rate.max_tokens() {
            let max_tokens = rate.max_tokens();
            return Err(TakeError::MoreThanMax { asked: tokens, max_tokens });
        }
        let mut shard = self.shard(&key);
        if let Some(bucket) = shard.buckets.get_mut(&key) {
            if !self.is_idle(bucket, now) {
                return bucket.take(tokens, rate, now);
            }
            shard.buckets.remove(&key);
            self.bucket_count.fetch_sub(1, Ordering::Relaxed);
        }
        if self.unknown == UnknownBuckets::Refuse {
            return Err(TakeError::UnknownBucket);
        }
        let mut bucket = Bucket::new(rate, now);
        let taken = bucket.take(tokens, rate, now);
        self.insert_new(&mut shard, key, bucket, now)?;
        taken
    }

    /// Makes a full bucket where there is none; an existing one stays as it is.
    ///
    /// # Errors
    /// [`TakeError::TooManyBuckets`].
    pub fn insert(&self, key: K) -> Result<(), TakeError> {
        self.insert_at(key, self.rate, Instant::now())
    }

    /// As [`insert`](Self::insert), with a rate and a time of the caller's.
    ///
    /// # Errors
    /// [`TakeError::TooManyBuckets`].
    pub fn insert_at(&self, key: K, rate: Rate, now: Instant) -> Result<(), TakeError> {
        let mut shard = self.shard(&key);
        match shard.buckets.get_mut(&key) {
            Some(bucket) if self.is_idle(bucket, now) => *bucket = Bucket::new(rate, now),
            Some(_) => {}
            None => self.insert_new(&mut shard, key, Bucket::new(rate, now), now)?,
        }
        Ok(())
    }

    /// Drops the bucket of `key`; says whether there was one.
    pub fn remove(&self, key: &K) -> bool {
        let removed = self.shard(key).buckets.remove(key).is_some();
        if removed {
            self.bucket_count.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }

    /// Drops every idle bucket and says how many. Needed only by those who want their memory back from a
    /// limiter that no new key comes to.
    pub fn drop_idle(&self, now: Instant) -> usize {
        let sweep = |shard: &Mutex<Shard<K>>| self.sweep(&mut lock(shard), now);
        self.shards.iter().map(sweep).sum()
    }

    /// How many buckets there are, idle ones included.
    #[must_use]
    pub fn bucket_count(&self) -> usize {
        self.bucket_count.load(Ordering::Relaxed)
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K>> {
        let hash = self.hasher.hash_one(key);
        // The upper half: the lower one places keys inside the shard's own map.
        lock(&self.shards[(hash >> 32) as usize % SHARD_COUNT])
    }

    /// A bucket that is not full yet is never idle, whatever rate its takes brought.
    fn is_idle(&self, bucket: &Bucket, now: Instant) -> bool {
        let threshold = self.idle_after.max(bucket.rate().refill());
        now.saturating_duration_since(bucket.updated()) >= threshold
    }

    fn insert_new(&self, shard: &mut Shard<K>, key: K, bucket: Bucket, now: Instant) -> Result<(), TakeError> {
        if shard.buckets.len() >= shard.sweep_at {
            self.sweep(shard, now);
        }
        if self.bucket_count() >= self.max_buckets {
            let pause = self.idle_after / SWEEPS_PER_THRESHOLD;
            if shard.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= pause) {
                self.sweep(shard, now);
            }
            if self.bucket_count() >= self.max_buckets {
                return Err(TakeError::TooManyBuckets { max_buckets: self.max_buckets });
            }
        }
        shard.buckets.insert(key, bucket);
        self.bucket_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn sweep(&self, shard: &mut Shard<K>, now: Instant) -> usize {
        let before = shard.buckets.len();
        shard.buckets.retain(|_, bucket| !self.is_idle(bucket, now));
        let after = shard.buckets.len();
        shard.sweep_at = (after * 2).max(MIN_SWEEP_LENGTH);
        shard.buckets.shrink_to(shard.sweep_at);
        shard.swept = Some(now);
        self.bucket_count.fetch_sub(before - after, Ordering::Relaxed);
        before - after
    }
}

/// A thread that panicked while it held a shard left whole buckets behind: no step in here can stop midway,
/// except in a key's own `Hash` or `Eq`, which runs before anything is changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn rate(millis: u32, max_tokens: u32) -> Rate {
        Rate::new(MS * millis, max_tokens).unwrap()
    }

    #[test]
    fn keys_do_not_share_tokens() {
        let limiter = Limiter::new(rate(100, 1));
        let now = Instant::now();
        assert_eq!(limiter.take_at("a", 1, limiter.rate(), now), Ok(()));
        assert_eq!(limiter.take_at("b", 1, limiter.rate(), now), Ok(()));
        let wait = TakeError::Wait { retry_after: MS * 100 };
        assert_eq!(limiter.take_at("a", 1, limiter.rate(), now), Err(wait));
        assert_eq!(wait.retry_after(), Some(MS * 100));
    }

    #[test]
    fn a_mistake_makes_no_bucket() {
        let limiter = Limiter::new(rate(100, 1));
        assert_eq!(limiter.take("a", 2), Err(TakeError::MoreThanMax { asked: 2, max_tokens: 1 }));
        assert_eq!(limiter.bucket_count(), 0);
    }

    #[test]
    fn unknown_buckets_are_refused_on_demand() {
        let limiter = Limiter::new(rate(100, 1)).with_unknown_buckets(UnknownBuckets::Refuse);
        assert_eq!(limiter.take("a", 1), Err(TakeError::UnknownBucket));
        limiter.insert("a").unwrap();
        assert_eq!(limiter.take("a", 1), Ok(()));
        limiter.insert("a").unwrap();
        assert!(limiter.take("a", 1).unwrap_err().retry_after().is_some(), "inserting does not fill");
        assert!(limiter.remove(&"a"));
        assert_eq!(limiter.take("a", 1), Err(TakeError::UnknownBucket));
    }

    #[test]
    fn a_bucket_is_dropped_when_idle_and_a_take_refreshes() {
        let start = Instant::now();
        let rate = rate(100, 2);
        let limiter = Limiter::new(rate).with_idle_after(MS * 200).unwrap();
        let limiter = limiter.with_unknown_buckets(UnknownBuckets::Refuse);
        limiter.insert_at("a", rate, start).unwrap();
        assert_eq!(limiter.take_at("a", 1, rate, start + MS * 199), Ok(()), "not idle yet");
        assert_eq!(limiter.take_at("a", 1, rate, start + MS * 398), Ok(()), "refreshed");
        assert_eq!(limiter.drop_idle(start + MS * 597), 0);
        let gone = limiter.take_at("a", 1, rate, start + MS * 598);
        assert_eq!(gone, Err(TakeError::UnknownBucket));
    }

    #[test]
    fn the_threshold_is_never_shorter_than_a_refill() {
        let limiter = || Limiter::<u32>::new(rate(100, 3));
        let refused = limiter().with_idle_after(MS * 299).unwrap_err();
        assert_eq!(refused, IdleError { given: MS * 299, refill: MS * 300 });
        assert!(limiter().with_idle_after(MS * 300).is_ok());
        // A take with a slower rate keeps its bucket for as long as that one needs.
        let start = Instant::now();
        let limiter = limiter().with_idle_after(MS * 300).unwrap();
        limiter.take_at(1, 3, rate(1_000, 3), start).unwrap();
        assert_eq!(limiter.drop_idle(start + MS * 2_999), 0);
        assert_eq!(limiter.drop_idle(start + MS * 3_000), 1);
    }

    #[test]
    fn idle_buckets_go_while_new_ones_come() {
        let start = Instant::now();
        let rate = rate(1, 1);
        let limiter = Limiter::new(rate).with_idle_after(MS * 10).unwrap();
        for key in 0..100_000_u32 {
            limiter.take_at(key, 1, rate, start + MS * key / 100).unwrap();
        }
        // 1,000 are live; a shard is swept at twice what the last sweep left, and no earlier than at 64.
        let bound = (SHARD_COUNT * MIN_SWEEP_LENGTH).max(2 * 2 * 1_000);
        assert!(limiter.bucket_count() <= bound, "{} buckets", limiter.bucket_count());
    }

    #[test]
    fn at_the_bound_a_new_key_is_refused_until_others_are_idle() {
        let start = Instant::now();
        let rate = rate(1, 1);
        let limiter = Limiter::new(rate).with_idle_after(MS * 10).unwrap().with_max_buckets(1_000);
        for key in 0..1_000_u32 {
            limiter.take_at(key, 1, rate, start).unwrap();
        }
        let refused = Err(TakeError::TooManyBuckets { max_buckets: 1_000 });
        assert_eq!(limiter.take_at(1_000, 1, rate, start), refused);
        assert_eq!(limiter.take_at(0, 1, rate, start + MS), Ok(()), "known keys go on");
        assert_eq!(limiter.take_at(1_000, 1, rate, start + MS * 20), Ok(()));
    }
}
