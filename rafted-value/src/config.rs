//! The settings of a group: always valid.

use std::time::Duration;

/// Settings of one replica of a group; give every replica the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    heartbeat: Duration,
    election_min: Duration,
    election_max: Duration,
    max_command_bytes: usize,
    max_queued_commands: usize,
    snapshot_after_entries: u64,
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} = {given} is not allowed: {allowed}")]
pub struct ConfigError {
    /// Which setting.
    pub setting: &'static str,
    /// What was given.
    pub given: String,
    /// What is allowed.
    pub allowed: &'static str,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            // A third of the shortest election timeout: two lost heartbeats depose nobody.
            heartbeat: Duration::from_millis(50),
            // Raft's paper, section 9.3: far above a round trip, short enough that failover is below a second.
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
            // The transport carries 8 MiB; an append of several commands must fit.
            max_command_bytes: 2 << 20,
            max_queued_commands: 16_384,
            snapshot_after_entries: 5_000,
        }
    }
}

impl GroupConfig {
    /// How often a leader says that it lives, and after which silence an election starts.
    pub fn with_timing(
        mut self,
        heartbeat: Duration,
        election_min: Duration,
        election_max: Duration,
    ) -> Result<Self, ConfigError> {
        if heartbeat.is_zero() || election_min < heartbeat * 2 || election_max <= election_min {
            return Err(ConfigError {
                setting: "timing",
                given: format!("heartbeat {heartbeat:?}, election {election_min:?} to {election_max:?}"),
                allowed: "0 < heartbeat, 2 x heartbeat <= election_min < election_max",
            });
        }
        self.heartbeat = heartbeat;
        self.election_min = election_min;
        self.election_max = election_max;
        Ok(self)
    }

    /// The largest encoded command, 1 byte to 4 MiB.
    pub fn with_max_command_bytes(mut self, max: usize) -> Result<Self, ConfigError> {
        if max == 0 || max > 4 << 20 {
            return Err(ConfigError { setting: "max_command_bytes", given: max.to_string(), allowed: "1 to 4194304" });
        }
        self.max_command_bytes = max;
        Ok(self)
    }

    /// How many commands may wait at the leader before further ones are refused, at least 1.
    pub fn with_max_queued_commands(mut self, max: usize) -> Result<Self, ConfigError> {
        if max == 0 {
            return Err(ConfigError { setting: "max_queued_commands", given: "0".into(), allowed: "at least 1" });
        }
        self.max_queued_commands = max;
        Ok(self)
    }

    /// After how many entries a snapshot is taken, at least 1.
    pub fn with_snapshot_after_entries(mut self, entries: u64) -> Result<Self, ConfigError> {
        if entries == 0 {
            return Err(ConfigError { setting: "snapshot_after_entries", given: "0".into(), allowed: "at least 1" });
        }
        self.snapshot_after_entries = entries;
        Ok(self)
    }

    /// How often a leader says that it lives.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// The range from which each election timeout is drawn.
    pub fn election(&self) -> (Duration, Duration) {
        (self.election_min, self.election_max)
    }

    /// The largest encoded command in bytes.
    pub fn max_command_bytes(&self) -> usize {
        self.max_command_bytes
    }

    /// How many commands may wait at the leader.
    pub fn max_queued_commands(&self) -> usize {
        self.max_queued_commands
    }

    /// After how many entries a snapshot is taken.
    pub fn snapshot_after_entries(&self) -> u64 {
        self.snapshot_after_entries
    }

    pub(crate) fn to_openraft(&self, group: &str) -> openraft::Config {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
        openraft::Config {
            cluster_name: group.to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(INSTALL_SNAPSHOT_TIMEOUT),
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_after_entries),
            max_in_snapshot_log_to_keep: self.snapshot_after_entries / 5,
            replication_lag_threshold: self.snapshot_after_entries.saturating_mul(2),
            max_payload_entries: MAX_ENTRIES_PER_APPEND,
            api_channel_size: Some(CHANNEL_SIZE),
            notification_channel_size: Some(CHANNEL_SIZE),
            state_machine_channel_size: Some(CHANNEL_SIZE),
            log_stage_capacity: Some(LOG_STAGES),
            enable_pre_vote: Some(true),
            // Absent, it means true: a restarted leader would lead its old term again without what its followers
            // had synced and it had not, and write other entries under the same log ids.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            // Seen: it silences the heartbeats of a leader whose lease has expired.
            quorum_loss_probe_interval: None,
            ..openraft::Config::default()
        }
    }
}

/// How long one snapshot may take to be sent and installed.
pub(crate) const INSTALL_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_ENTRIES_PER_APPEND: u64 = 1_024;
/// Bounds of openraft's queues. They hold small messages; commands are bounded before they get there.
const CHANNEL_SIZE: u64 = 1_024;
const LOG_STAGES: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_range_are_refused() {
        let ms = Duration::from_millis;
        let config = GroupConfig::default;
        assert!(config().with_timing(ms(0), ms(1), ms(2)).is_err());
        assert!(config().with_timing(ms(50), ms(99), ms(200)).is_err());
        assert!(config().with_timing(ms(50), ms(150), ms(150)).is_err());
        assert!(config().with_max_command_bytes(0).is_err());
        assert!(config().with_max_command_bytes((4 << 20) + 1).is_err());
        assert!(config().with_max_queued_commands(0).is_err());
        assert!(config().with_snapshot_after_entries(0).is_err());
        assert!(config().to_openraft("g").validate().is_ok());
    }
}
