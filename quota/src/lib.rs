#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod limiter;

mod bucket;
mod ledger;

mod error;
mod reservation;

pub use bucket::{Bucket, MAX_TIME_PER_TOKEN, Rate};
pub use error::{GrantError, IdleError, LedgerError, RateError, TakeError};
pub use ledger::{Account, Ledger, Put, RESERVATION_SHARE, Settled, Usage};
pub use limiter::{DEFAULT_IDLE_AFTER, DEFAULT_MAX_BUCKETS, Limiter, UnknownBuckets};
pub use reservation::{Grant, Incarnation, Recall, Report, Reservation, ReservationId};
