//! One token bucket: pure arithmetic over the times that it is given.
//!
//! The tokens are kept as the *time they took to come* (`credit`), in whole nanoseconds: no rounding, so
//! that the waiting time is exact, and one comparison per take.
//!
//! ```text
//!   credit     0 ........................ refill = time_per_token x max_tokens
//!   a take     credit >= time_per_token x n ?  then it shrinks by that; else wait for the difference
//! ```

use std::time::{Duration, Instant};

use crate::error::{RateError, TakeError};

/// The longest time that one token may take to come. It keeps every product inside 128 bits.
pub const MAX_TIME_PER_TOKEN: Duration = Duration::from_secs(24 * 60 * 60);

/// How fast tokens come, and how many may lie in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Never zero, at most [`MAX_TIME_PER_TOKEN`].
    time_per_token: Duration,
    /// Never zero.
    max_tokens: u32,
}

impl Rate {
    /// One token per `time_per_token`, of which at most `max_tokens` are kept for a burst.
    ///
    /// # Errors
    /// Where either is zero or the time is above [`MAX_TIME_PER_TOKEN`].
    pub const fn new(time_per_token: Duration, max_tokens: u32) -> Result<Rate, RateError> {
        if time_per_token.is_zero() {
            return Err(RateError::NoTimePerToken);
        }
        if time_per_token.as_nanos() > MAX_TIME_PER_TOKEN.as_nanos() {
            return Err(RateError::TooSlow { allowed: MAX_TIME_PER_TOKEN, given: time_per_token });
        }
        if max_tokens == 0 {
            return Err(RateError::NoTokens);
        }
        Ok(Rate { time_per_token, max_tokens })
    }

    /// `tokens` per second (the time between two is rounded up to a nanosecond), bursts of `max_tokens`.
    ///
    /// # Errors
    /// Where either is zero.
    pub const fn per_second(tokens: u32, max_tokens: u32) -> Result<Rate, RateError> {
        if tokens == 0 {
            return Err(RateError::NoTokens);
        }
        let nanos = 1_000_000_000_u64.div_ceil(tokens as u64);
        Rate::new(Duration::from_nanos(nanos), max_tokens)
    }

    /// The time that one token takes to come.
    #[must_use]
    pub const fn time_per_token(&self) -> Duration {
        self.time_per_token
    }

    /// How many tokens a full bucket holds.
    #[must_use]
    pub const fn max_tokens(&self) -> u32 {
        self.max_tokens
    }

    /// How long an empty bucket takes to be full.
    #[must_use]
    pub fn refill(&self) -> Duration {
        self.time_for(self.max_tokens)
    }

    /// Cannot overflow: 2^32 tokens of a day each are 3.7e14 seconds.
    fn time_for(&self, tokens: u32) -> Duration {
        self.time_per_token * tokens
    }
}

/// A token bucket. It has no clock: every call brings the time along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The rate of the latest take: what has come since `updated` came at this rate.
    rate: Rate,
    /// The time that the tokens in the bucket took to come; at most `rate.refill()`.
    credit: Duration,
    /// Up to when `credit` is counted. Never goes back.
    updated: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Bucket {
        Bucket { rate, credit: rate.refill(), updated: now }
    }

    /// Takes `tokens`, or nothing. `rate` may differ from call to call: it applies from this one on, while
    /// what came before it came at the old rate. Tokens in the bucket stay, up to the new maximum.
    ///
    /// A `now` before the latest call's (threads that overtake each other) is fine and gives no token twice.
    ///
    /// # Errors
    /// [`TakeError::Wait`] with the exact time, [`TakeError::MoreThanMax`] where no waiting helps.
    pub fn take(&mut self, tokens: u32, rate: Rate, now: Instant) -> Result<(), TakeError> {
        if tokens > rate.max_tokens {
            return Err(TakeError::MoreThanMax { asked: tokens, max_tokens: rate.max_tokens });
        }
        self.advance(now);
        self.adopt(rate);
        let cost = rate.time_for(tokens);
        match self.credit.checked_sub(cost) {
            Some(left) => {
                self.credit = left;
                Ok(())
            }
            None => {
                Err(TakeError::Wait { retry_after: (cost - self.credit) + self.updated.saturating_duration_since(now) })
            }
        }
    }

    /// How many whole tokens the bucket holds at `now`.
    #[must_use]
    pub fn tokens(&self, now: Instant) -> u32 {
        let mut copy = *self;
        copy.advance(now);
        let whole = copy.credit.as_nanos() / copy.rate.time_per_token.as_nanos();
        u32::try_from(whole).unwrap_or(u32::MAX) // at most `max_tokens`, which is a u32
    }

    /// The rate of the latest take.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// When the latest call was; the latest of their times where they overtook each other.
    #[must_use]
    pub fn updated(&self) -> Instant {
        self.updated
    }

    fn advance(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated);
        self.credit = self.credit.saturating_add(elapsed).min(self.rate.refill());
        self.updated = self.updated.max(now);
    }

    /// Tokens stay tokens: the same number takes another time at the new rate, rounded down.
    fn adopt(&mut self, rate: Rate) {
        if rate == self.rate {
            return;
        }
        if rate.time_per_token != self.rate.time_per_token {
            // Below 2^79 x 2^47: a refill is at most 3.7e23 ns, a day 8.7e13 ns.
            let nanos = self.credit.as_nanos() * rate.time_per_token.as_nanos() / self.rate.time_per_token.as_nanos();
            self.credit = duration_from_nanos(nanos);
        }
        self.credit = self.credit.min(rate.refill());
        self.rate = rate;
    }
}

/// Saturates, where a shorter token time made a number of seconds that no `Duration` holds.
fn duration_from_nanos(nanos: u128) -> Duration {
    const NANOS_PER_SECOND: u128 = 1_000_000_000;
    match (u64::try_from(nanos / NANOS_PER_SECOND), u32::try_from(nanos % NANOS_PER_SECOND)) {
        (Ok(seconds), Ok(rest)) => Duration::new(seconds, rest),
        _ => Duration::MAX,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rate(millis: u64, max_tokens: u32) -> Rate {
        Rate::new(Duration::from_millis(millis), max_tokens).unwrap()
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn wait(millis: u64) -> Result<(), TakeError> {
        Err(TakeError::Wait { retry_after: ms(millis) })
    }

    #[test]
    fn a_bucket_by_table() {
        let rate = rate(100, 3);
        let too_many = Err(TakeError::MoreThanMax { asked: 4, max_tokens: 3 });
        // (what happens, at which millisecond, tokens, answer)
        let rows = [
            ("a new bucket is full: first", 0, 1, Ok(())),
            ("second", 0, 1, Ok(())),
            ("third", 0, 1, Ok(())),
            ("the next is told the time to wait", 0, 1, wait(100)),
            ("asking changes nothing", 30, 1, wait(70)),
            ("a millisecond early is too early", 99, 1, wait(1)),
            ("exactly that long suffices", 100, 1, Ok(())),
            ("once", 100, 1, wait(100)),
            ("a cost of two waits for two", 100, 2, wait(200)),
            ("part of a token is kept", 250, 2, wait(50)),
            ("and counts", 300, 2, Ok(())),
            ("more than the maximum is a mistake", 300, 4, too_many),
            ("nothing costs nothing", 300, 0, Ok(())),
            ("a long pause fills it", 100_000, 3, Ok(())),
            ("and not above the maximum", 100_000, 1, wait(100)),
        ];
        let start = Instant::now();
        let mut bucket = Bucket::new(rate, start);
        for (what, at, tokens, answer) in rows {
            assert_eq!(bucket.take(tokens, rate, start + ms(at)), answer, "{what}");
        }
    }

    #[test]
    fn a_changed_rate_applies_from_then_on() {
        let start = Instant::now();
        let mut bucket = Bucket::new(rate(100, 4), start);
        assert_eq!(bucket.take(4, rate(100, 4), start), Ok(()));
        // Two tokens came at the old rate; the third is due at the new one.
        let slow = rate(1_000, 4);
        assert_eq!(bucket.take(3, slow, start + ms(200)), wait(1_000));
        assert_eq!(bucket.take(3, slow, start + ms(1_199)), wait(1));
        assert_eq!(bucket.take(3, slow, start + ms(1_200)), Ok(()));
        // A smaller maximum cuts, a greater one does not fill.
        let mut bucket = Bucket::new(rate(100, 10), start);
        assert_eq!(bucket.take(0, rate(100, 2), start), Ok(()));
        assert_eq!(bucket.tokens(start), 2);
        assert_eq!(bucket.take(3, rate(100, 10), start), wait(100));
    }

    #[test]
    fn a_time_that_goes_back_gives_nothing_twice_and_waits_long_enough() {
        let start = Instant::now();
        let rate = rate(100, 1);
        let mut bucket = Bucket::new(rate, start + ms(500));
        assert_eq!(bucket.take(1, rate, start + ms(500)), Ok(()));
        assert_eq!(bucket.take(1, rate, start + ms(400)), wait(200));
        assert_eq!(bucket.take(1, rate, start + ms(600)), Ok(()));
    }

    #[test]
    fn the_borders_of_a_rate() {
        assert_eq!(Rate::new(Duration::ZERO, 1), Err(RateError::NoTimePerToken));
        assert_eq!(Rate::new(ms(1), 0), Err(RateError::NoTokens));
        assert_eq!(Rate::per_second(0, 1), Err(RateError::NoTokens));
        let given = MAX_TIME_PER_TOKEN + Duration::from_nanos(1);
        assert_eq!(Rate::new(given, 1), Err(RateError::TooSlow { allowed: MAX_TIME_PER_TOKEN, given }));
        assert_eq!(Rate::per_second(3, 1).unwrap().time_per_token().as_nanos(), 333_333_334);
        // The slowest and greatest changes to the fastest and back without overflow.
        let start = Instant::now();
        let slowest = Rate::new(MAX_TIME_PER_TOKEN, u32::MAX).unwrap();
        let fastest = Rate::new(Duration::from_nanos(1), u32::MAX).unwrap();
        let mut bucket = Bucket::new(slowest, start);
        assert_eq!(bucket.take(1, fastest, start), Ok(()));
        assert_eq!(bucket.take(1, slowest, start), Ok(()));
        assert_eq!(bucket.tokens(start), u32::MAX - 2);
    }
}
