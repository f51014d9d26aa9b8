//! What can be refused, with the values that explain it.

use std::time::Duration;

use thiserror::Error;

use crate::reservation::Recall;

/// A rate that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RateError {
    /// No time between two tokens would be no limit at all.
    #[error("a token must take some time to come, and 0 was given: use no limiter where there is no limit")]
    NoTimePerToken,
    /// The time between two tokens is beyond what the arithmetic holds.
    #[error("one token may take at most {allowed:?} to come, and {given:?} was given")]
    TooSlow {
        /// The most that is allowed: [`MAX_TIME_PER_TOKEN`](crate::MAX_TIME_PER_TOKEN).
        allowed: Duration,
        /// What was given.
        given: Duration,
    },
    /// A bucket that holds no token would refuse everything for ever.
    #[error("a bucket must hold at least 1 token, and 0 was given")]
    NoTokens,
}

/// Why tokens were not given. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TakeError {
    /// There are too few tokens now; they are there after `retry_after`, if nobody else takes them first.
    #[error("too few tokens: try again after {retry_after:?}")]
    Wait {
        /// Waiting exactly this long suffices once.
        retry_after: Duration,
    },
    /// More than the bucket ever holds: waiting would not help.
    #[error(
        "{asked} tokens at once are more than the {max_tokens} that the bucket holds: ask for less, or raise its maximum"
    )]
    MoreThanMax {
        /// What was asked for.
        asked: u32,
        /// What the bucket holds when it is full.
        max_tokens: u32,
    },
    /// The limiter refuses unknown buckets, and this one was not inserted or was dropped as idle.
    #[error("unknown bucket: insert it before taking from it")]
    UnknownBucket,
    /// A new bucket would be one too many, and none of its neighbours is idle.
    #[error(
        "{max_buckets} buckets are in use, which is the most that this limiter keeps: try later, or raise the bound"
    )]
    TooManyBuckets {
        /// The limiter's bound.
        max_buckets: usize,
    },
}

impl TakeError {
    /// How long to wait before trying again; `None` where waiting does not help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match *self {
            TakeError::Wait { retry_after } => Some(retry_after),
            TakeError::MoreThanMax { .. } | TakeError::UnknownBucket | TakeError::TooManyBuckets { .. } => None,
        }
    }
}

/// A threshold for idle buckets that would drop one which is not full yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "buckets may be dropped after {refill:?} without a take at the earliest, which is how long a refill takes; {given:?} was given"
)]
pub struct IdleError {
    /// What was given.
    pub given: Duration,
    /// How long an empty bucket takes to be full, at the limiter's rate.
    pub refill: Duration,
}

/// Why a ledger does not do as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// No quota of this name, or not of this incarnation.
    #[error("unknown quota {quota:?}: put it first")]
    UnknownQuota {
        /// The name that was given.
        quota: String,
    },
}

/// Why nothing was granted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrantError {
    /// No quota of this name.
    #[error("unknown quota {quota:?}: put it first")]
    UnknownQuota {
        /// The name that was given.
        quota: String,
    },
    /// Nothing is free, but holders may have places that they do not need: ask each to release its
    /// reservation, then ask again. Said once per reservation.
    #[error("nothing of the limit is free: recall {} reservations and ask again", recalls.len())]
    Recall {
        /// What to ask back, and from whom, in the order of the reservations' ids.
        recalls: Vec<Recall>,
    },
    /// All reservations were recalled and some are not back yet. They end by reports past their `use_by`,
    /// of which the earliest is named: ask again then. This is no proof that the limit is reached.
    #[error("{reserved} places are reserved and were recalled: ask again, at the latest past {use_by:?}")]
    Held {
        /// How many places are reserved and unspent.
        reserved: u64,
        /// The earliest `use_by` among the reservations.
        use_by: Duration,
    },
    /// All that the limit allows is in use.
    #[error("the limit of {limit} is reached, {used} are in use: raise the limit or free some")]
    LimitReached {
        /// The limit.
        limit: u64,
        /// How many are in use, by the holders' reports.
        used: u64,
    },
}
