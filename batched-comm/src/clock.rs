//! The time that an endpoint lives by: that of its runtime, so that tests can pause it.

use std::time::Instant;

/// Now, by tokio's clock.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
