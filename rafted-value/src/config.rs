//! The settings of a group: always valid.

mod encoding;

use std::time::Duration;

pub(crate) use self::encoding::{ENCODING_VERSION, UnreadableConfig};

/// Settings of a group. A replica starts with some, best the same as the others'; those that the group has agreed on
/// (see [`GroupClient::change_config`](crate::GroupClient::change_config)) take their place.
///
/// Of agreed settings, the bounds on commands and on entries hold at once, on every replica that has applied the change.
/// The timing holds from a replica's next start on:
/// [`Status::config_awaits_restart`](crate::Status::config_awaits_restart) tells. Replicas of different timing get along
/// as long as the longest heartbeat is below the shortest election timeout: to make both longer, or both shorter by far,
/// change and restart in two steps.
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
            // Some 40 MB of memory for their places, and a second or two to apply them again. Most snapshots come earlier,
            // by their bytes.
            snapshot_after_entries: 1_000_000,
        }
    }
}

impl GroupConfig {
    /// How often a leader says that it lives, and after which silence an election starts: whole milliseconds, up to an
    /// hour.
    pub fn with_timing(
        mut self,
        heartbeat: Duration,
        election_min: Duration,
        election_max: Duration,
    ) -> Result<Self, ConfigError> {
        let is_whole = |duration: Duration| duration.subsec_nanos().is_multiple_of(1_000_000);
        let are_whole = is_whole(heartbeat) && is_whole(election_min) && is_whole(election_max);
        let are_ordered = heartbeat.saturating_mul(2) <= election_min && election_min < election_max;
        if heartbeat.is_zero() || !are_whole || !are_ordered || election_max > LONGEST_ELECTION {
            return Err(ConfigError {
                setting: "timing",
                given: format!("heartbeat {heartbeat:?}, election {election_min:?} to {election_max:?}"),
                allowed: "0 < heartbeat, 2 x heartbeat <= election_min < election_max <= 1 h, in whole milliseconds",
            });
        }
        self.heartbeat = heartbeat;
        self.election_min = election_min;
        self.election_max = election_max;
        Ok(self)
    }

    /// The largest encoded command, 1 byte to 4 MiB.
    pub fn with_max_command_bytes(mut self, max: usize) -> Result<Self, ConfigError> {
        if max == 0 || max > LARGEST_COMMAND_BYTES {
            return Err(ConfigError { setting: "max_command_bytes", given: max.to_string(), allowed: "1 to 4194304" });
        }
        self.max_command_bytes = max;
        Ok(self)
    }

    /// How many commands may wait at the leader before further ones are refused, 1 to 1,048,576.
    pub fn with_max_queued_commands(mut self, max: usize) -> Result<Self, ConfigError> {
        if max == 0 || max > MAX_QUEUED_COMMANDS {
            return Err(ConfigError {
                setting: "max_queued_commands",
                given: max.to_string(),
                allowed: "1 to 1048576",
            });
        }
        self.max_queued_commands = max;
        Ok(self)
    }

    /// After how many entries a snapshot is taken at the latest, 1 to 1,000,000,000. It is taken earlier when they weigh as
    /// much as the last snapshot, each with 64 bytes besides its command's, or 1 MiB, whichever is more. Each replica takes
    /// its own between 75 % and all of that distance.
    pub fn with_snapshot_after_entries(mut self, entries: u64) -> Result<Self, ConfigError> {
        if entries == 0 || entries > MAX_SNAPSHOT_AFTER_ENTRIES {
            let (setting, allowed) = ("snapshot_after_entries", "1 to 1000000000");
            return Err(ConfigError { setting, given: entries.to_string(), allowed });
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

    /// After how many entries a snapshot is taken at the latest.
    pub fn snapshot_after_entries(&self) -> u64 {
        self.snapshot_after_entries
    }

    /// Whether a replica that runs with `self` has to start again for all of `agreed` to hold: openraft keeps these for
    /// as long as it runs.
    pub(crate) fn needs_restart_for(&self, agreed: &Self) -> bool {
        let fixed = |config: &Self| (config.heartbeat, config.election());
        fixed(self) != fixed(agreed)
    }

    pub(crate) fn to_openraft(&self, group: &str) -> openraft::Config {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
        openraft::Config {
            cluster_name: group.to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(INSTALL_SNAPSHOT_TIMEOUT),
            // Both are the compactor's.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
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

/// A silence beyond this is no election timeout but a mistake in the unit.
const LONGEST_ELECTION: Duration = Duration::from_secs(3_600);
const MAX_QUEUED_COMMANDS: usize = 1 << 20;
const MAX_SNAPSHOT_AFTER_ENTRIES: u64 = 1_000_000_000;
/// What no group allows more than: the transport carries 8 MiB.
pub(crate) const LARGEST_COMMAND_BYTES: usize = 4 << 20;
/// The largest encoded query: one that every transport carries, as the largest command.
pub const MAX_QUERY_BYTES: usize = LARGEST_COMMAND_BYTES;
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
        assert!(config().with_max_queued_commands(usize::MAX).is_err());
        assert!(config().with_snapshot_after_entries(0).is_err());
        assert!(config().with_snapshot_after_entries(u64::MAX).is_err());
        assert!(config().with_timing(Duration::from_micros(1_500), ms(150), ms(300)).is_err());
        assert!(config().with_timing(Duration::MAX, Duration::MAX, Duration::MAX).is_err());
        assert!(config().to_openraft("g").validate().is_ok());
    }

    #[test]
    fn openraft_takes_what_is_at_the_borders() {
        let ms = Duration::from_millis;
        let longest = GroupConfig::default().with_timing(ms(1_799_999), ms(3_599_999), LONGEST_ELECTION).unwrap();
        let shortest = GroupConfig::default().with_timing(ms(1), ms(2), ms(3)).unwrap();
        for config in [longest, shortest] {
            for entries in [1, MAX_SNAPSHOT_AFTER_ENTRIES] {
                let config = config.clone().with_snapshot_after_entries(entries).unwrap();
                assert!(config.to_openraft("g").validate().is_ok(), "{config:?}");
            }
        }
    }
}
