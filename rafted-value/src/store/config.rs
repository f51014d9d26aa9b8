//! Sizes of a node's storage.

use crate::config::ConfigError;
use crate::wal::{MAX_SEGMENT_BYTES, WalConfig};

/// Sizes of a node's storage: always valid. See [`Store::open_with_config`](crate::Store::open_with_config).
#[derive(Debug, Clone, Default)]
pub struct StoreConfig {
    log: WalConfig,
}

/// The smallest segment that takes the largest command, in a batch of at most half a segment.
const MIN_USEFUL_SEGMENT_BYTES: u64 = 16 << 20;
/// More entries in memory than this are a mistake in the unit.
const MAX_CACHE_BYTES: usize = 1 << 40;

impl StoreConfig {
    /// How much a file of the log takes, 16 MiB to 1 GiB; 64 MiB unless set. A node's log takes three to six of them, and
    /// more where its groups keep more. It can be changed from start to start.
    pub fn with_segment_bytes(self, bytes: u64) -> Result<Self, ConfigError> {
        if !(MIN_USEFUL_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&bytes) {
            return Err(refused("segment_bytes", bytes, "16777216 to 1073741824"));
        }
        Ok(Self { log: self.log.with_segment_bytes(bytes) })
    }

    /// How many bytes of recent entries are kept in memory, over all groups, up to 1 TiB; 64 MiB unless set. Followers
    /// that lag behind further are served from the disk.
    pub fn with_cache_bytes(self, bytes: usize) -> Result<Self, ConfigError> {
        if bytes > MAX_CACHE_BYTES {
            return Err(refused("cache_bytes", bytes as u64, "0 to 1099511627776"));
        }
        Ok(Self { log: self.log.with_cache_bytes(bytes) })
    }

    /// How much memory the threads that read the log when it is opened may take together; 768 MiB unless set. Each holds
    /// three segments, and one reads in any case.
    pub fn with_recovery_bytes(self, bytes: u64) -> Self {
        Self { log: self.log.with_recovery_bytes(bytes) }
    }

    pub(super) fn into_log(self) -> WalConfig {
        self.log
    }
}

fn refused(setting: &'static str, given: u64, allowed: &'static str) -> ConfigError {
    ConfigError { setting, given: given.to_string(), allowed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::wal::LogEntry;

    #[test]
    fn what_cannot_work_is_refused_with_what_can() {
        let sizes = StoreConfig::default();
        for bytes in [0, (16 << 20) - 1, (1 << 30) + 1, u64::MAX] {
            let refused = sizes.clone().with_segment_bytes(bytes).unwrap_err();
            assert_eq!((refused.setting, refused.given), ("segment_bytes", bytes.to_string()));
        }
        assert!(
            sizes.clone().with_segment_bytes(16 << 20).is_ok() && sizes.clone().with_segment_bytes(1 << 30).is_ok()
        );
        let refused = sizes.clone().with_cache_bytes(MAX_CACHE_BYTES + 1).unwrap_err();
        assert_eq!(refused.allowed, "0 to 1099511627776");
        assert!(sizes.with_cache_bytes(0).is_ok());
    }

    #[tokio::test]
    async fn the_log_has_the_size_that_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::default().with_segment_bytes(16 << 20).unwrap();
        let store = Store::open_with_config(dir.path(), "n1", config).await.unwrap();
        let replica = store.create_replica("g", 0, Vec::new()).await.unwrap();
        for index in 0..20 {
            let payload = vec![7; 1 << 20].into();
            let (done, synced) = tokio::sync::oneshot::channel();
            let told = Box::new(move |result| drop(done.send(result)));
            store.wal().append(replica.get(), vec![LogEntry { term: 1, index, payload }], told);
            synced.await.unwrap().unwrap();
        }
        assert_eq!(store.log_stats().segments, 2, "20 MiB");
        store.close().await;
    }
}
