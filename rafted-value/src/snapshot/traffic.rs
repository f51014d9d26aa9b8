//! What the snapshots of all replicas of a node share: how many are built, sent and received at once, and how fast.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::parts::Parts;
use super::rate::Rate;
use crate::clock::Clock;
use crate::config::ConfigError;

/// Snapshots that one node sends at once; a further one waits, without holding anything that another waits for.
pub(crate) const MAX_SENDS: usize = 2;
/// Snapshots that one node builds at once.
pub(crate) const MAX_BUILDS: usize = 2;

/// How fast a node sends and writes snapshots, all its groups together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotLimits {
    sent_bytes_per_second: u64,
    built_bytes_per_second: u64,
}

impl Default for SnapshotLimits {
    fn default() -> Self {
        Self {
            // Half of a link of 1 Gbit/s stays for commands, and so does most of the disk of the one who receives.
            sent_bytes_per_second: 64 << 20,
            // What disks of a few hundred MiB/s take beside the log's syncs; 256 MiB take 4 s.
            built_bytes_per_second: 64 << 20,
        }
    }
}

impl SnapshotLimits {
    /// How many bytes per second a node sends at most, 64 KiB or more.
    pub fn with_sent_bytes_per_second(mut self, bytes: u64) -> Result<Self, ConfigError> {
        self.sent_bytes_per_second = rate("sent_bytes_per_second", bytes)?;
        Ok(self)
    }

    /// How many bytes per second a node writes at most while it builds snapshots, 64 KiB or more.
    pub fn with_built_bytes_per_second(mut self, bytes: u64) -> Result<Self, ConfigError> {
        self.built_bytes_per_second = rate("built_bytes_per_second", bytes)?;
        Ok(self)
    }

    /// How many bytes per second a node sends at most.
    pub fn sent_bytes_per_second(&self) -> u64 {
        self.sent_bytes_per_second
    }

    /// How many bytes per second a node writes at most while it builds snapshots.
    pub fn built_bytes_per_second(&self) -> u64 {
        self.built_bytes_per_second
    }
}

fn rate(setting: &'static str, bytes: u64) -> Result<u64, ConfigError> {
    if bytes < 64 << 10 {
        return Err(ConfigError { setting, given: bytes.to_string(), allowed: "at least 65536" });
    }
    Ok(bytes)
}

/// One node's.
pub(crate) struct Traffic {
    clock: Arc<dyn Clock>,
    sends: Arc<Semaphore>,
    builds: Arc<Semaphore>,
    sent: Mutex<Rate>,
    built: Mutex<Rate>,
    pub(super) parts: Arc<Parts>,
}

impl Traffic {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let limits = SnapshotLimits::default();
        Arc::new(Self {
            parts: Arc::new(Parts::new(clock.clone())),
            clock,
            sends: Arc::new(Semaphore::new(MAX_SENDS)),
            builds: Arc::new(Semaphore::new(MAX_BUILDS)),
            sent: Mutex::new(Rate::new(limits.sent_bytes_per_second)),
            built: Mutex::new(Rate::new(limits.built_bytes_per_second)),
        })
    }

    pub(crate) fn set_limits(&self, limits: &SnapshotLimits) {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).set(limits.sent_bytes_per_second);
        self.built.lock().unwrap_or_else(PoisonError::into_inner).set(limits.built_bytes_per_second);
    }

    /// Waits for its turn to send.
    pub(crate) async fn send_turn(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed, so that there always is a turn.
        self.sends.clone().acquire_owned().await.ok()
    }

    /// Waits for its turn to build.
    pub(crate) async fn build_turn(&self) -> Option<OwnedSemaphorePermit> {
        self.builds.clone().acquire_owned().await.ok()
    }

    /// How long to wait before `bytes` are sent.
    pub(crate) fn before_sending(&self, bytes: u64) -> Duration {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, self.clock.monotonic())
    }

    /// How long to wait after `bytes` were written.
    pub(super) fn after_writing(&self, bytes: u64) -> Duration {
        self.built.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, self.clock.monotonic())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_outside_their_range_are_refused() {
        let limits = SnapshotLimits::default;
        assert!(limits().with_sent_bytes_per_second(65_535).is_err());
        assert!(limits().with_built_bytes_per_second(0).is_err());
        let fast = limits().with_sent_bytes_per_second(u64::MAX).unwrap();
        assert_eq!(fast.sent_bytes_per_second(), u64::MAX);
    }
}
