//! The settings of the agents on a node: always valid.

use std::time::Duration;

/// How long a request may take unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of the agents on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentsConfig {
    tick_interval: Duration,
    shards: u32,
    replicas: u32,
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

impl Default for AgentsConfig {
    fn default() -> Self {
        Self {
            // Timers of people's affairs: finer ones cost an entry per interval and busy shard.
            tick_interval: Duration::from_secs(1),
            // A few more than a small cluster has nodes, so that leaders spread.
            shards: 8,
            // One node may be lost.
            replicas: 3,
        }
    }
}

impl AgentsConfig {
    /// The length of a tick, 10 ms to 1 hour. Give every node the same.
    pub fn with_tick_interval(mut self, interval: Duration) -> Result<Self, ConfigError> {
        if interval < Duration::from_millis(10) || interval > Duration::from_secs(3_600) {
            let given = format!("{interval:?}");
            return Err(ConfigError { setting: "tick_interval", given, allowed: "10 ms to 1 hour" });
        }
        self.tick_interval = interval;
        Ok(self)
    }

    /// In how many shards the agents live when the cluster is new, 1 to 4,096.
    pub fn with_shards(mut self, shards: u32) -> Result<Self, ConfigError> {
        if shards == 0 || shards > 4_096 {
            return Err(ConfigError { setting: "shards", given: shards.to_string(), allowed: "1 to 4096" });
        }
        self.shards = shards;
        Ok(self)
    }

    /// The replicas of each shard and of the quotas when the cluster is new, at least 1.
    pub fn with_replicas(mut self, replicas: u32) -> Result<Self, ConfigError> {
        if replicas == 0 {
            return Err(ConfigError { setting: "replicas", given: "0".into(), allowed: "at least 1" });
        }
        self.replicas = replicas;
        Ok(self)
    }

    /// The length of a tick.
    pub fn tick_interval(&self) -> Duration {
        self.tick_interval
    }

    /// In how many shards the agents live when the cluster is new.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// The replicas of each shard and of the quotas when the cluster is new.
    pub fn replicas(&self) -> u32 {
        self.replicas
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_range_are_refused() {
        let new = AgentsConfig::default;
        assert!(new().with_tick_interval(Duration::from_millis(9)).is_err());
        assert!(new().with_tick_interval(Duration::from_secs(3_601)).is_err());
        assert!(new().with_shards(0).is_err());
        assert!(new().with_shards(4_097).is_err());
        assert!(new().with_replicas(0).is_err());
        let config = new().with_shards(3).and_then(|config| config.with_replicas(5)).unwrap();
        assert_eq!((config.shards(), config.replicas()), (3, 5));
    }
}
