//! A fleet's settings: always valid.

use std::time::Duration;

use rafted_value::GroupConfig;

/// Settings of a node; give every node the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetConfig {
    group: GroupConfig,
    cluster_voters: u32,
    purge_after: Duration,
    reconcile_interval: Duration,
    request_timeout: Duration,
    sleep_after: Option<Duration>,
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

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            group: GroupConfig::default(),
            // Two may fail at once, and a commit still waits for three syncs only.
            cluster_voters: 5,
            // Longer than a restart or a repaired cable, so that nothing moves for those.
            purge_after: Duration::from_secs(600),
            // What events miss is found by this pass; it is the only cost of an idle fleet's placement.
            reconcile_interval: Duration::from_secs(10),
            // Several elections, so that a failover is masked.
            request_timeout: Duration::from_secs(5),
            // Not before it has been seen for longer under faults: whoever has thousands of idle groups asks for it.
            sleep_after: None,
        }
    }
}

impl FleetConfig {
    /// The settings of all groups.
    pub fn with_group(mut self, group: GroupConfig) -> Self {
        self.group = group;
        self
    }

    /// How many nodes vote in the cluster group at most: 3, 5 or 7 (default 5).
    pub fn with_cluster_voters(mut self, voters: u32) -> Result<Self, ConfigError> {
        if ![3, 5, 7].contains(&voters) {
            return Err(ConfigError { setting: "cluster_voters", given: voters.to_string(), allowed: "3, 5 or 7" });
        }
        self.cluster_voters = voters;
        Ok(self)
    }

    /// After how long without an answer a node's replicas are replaced: at least 1 s (default 10 min).
    pub fn with_purge_after(mut self, window: Duration) -> Result<Self, ConfigError> {
        at_least("purge_after", window, Duration::from_secs(1), "at least 1 s")?;
        self.purge_after = window;
        Ok(self)
    }

    /// How often a node looks after its groups when nothing happens: at least 100 ms (default 10 s).
    pub fn with_reconcile_interval(mut self, interval: Duration) -> Result<Self, ConfigError> {
        at_least("reconcile_interval", interval, Duration::from_millis(100), "at least 100 ms")?;
        self.reconcile_interval = interval;
        Ok(self)
    }

    /// How long a command or query may take unless it says otherwise: at least 10 ms (default 5 s).
    pub fn with_request_timeout(mut self, timeout: Duration) -> Result<Self, ConfigError> {
        at_least("request_timeout", timeout, Duration::from_millis(10), "at least 10 ms")?;
        self.request_timeout = timeout;
        Ok(self)
    }

    /// After how long without a command a group sleeps, which then costs nothing until something happens: at least
    /// 100 ms; five seconds are longer than the pauses of most who work with a group. `None`, the default: never, which
    /// must hold on every node.
    pub fn with_sleep_after(mut self, idle: Option<Duration>) -> Result<Self, ConfigError> {
        if let Some(idle) = idle {
            at_least("sleep_after", idle, Duration::from_millis(100), "at least 100 ms")?;
        }
        self.sleep_after = idle;
        Ok(self)
    }

    /// The settings of all groups.
    pub fn group(&self) -> &GroupConfig {
        &self.group
    }

    /// How many nodes vote in the cluster group at most.
    pub fn cluster_voters(&self) -> u32 {
        self.cluster_voters
    }

    /// After how long without an answer a node's replicas are replaced.
    pub fn purge_after(&self) -> Duration {
        self.purge_after
    }

    /// How often a node looks after its groups when nothing happens.
    pub fn reconcile_interval(&self) -> Duration {
        self.reconcile_interval
    }

    /// How long a command or query may take unless it says otherwise.
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// After how long without a command a group sleeps; `None`: never.
    pub fn sleep_after(&self) -> Option<Duration> {
        self.sleep_after
    }
}

fn at_least(setting: &'static str, given: Duration, least: Duration, allowed: &'static str) -> Result<(), ConfigError> {
    if given < least {
        return Err(ConfigError { setting, given: format!("{given:?}"), allowed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_range_are_refused() {
        let config = FleetConfig::default;
        assert!(config().with_cluster_voters(4).is_err());
        assert!(config().with_purge_after(Duration::ZERO).is_err());
        assert!(config().with_reconcile_interval(Duration::ZERO).is_err());
        assert!(config().with_request_timeout(Duration::ZERO).is_err());
        assert!(config().with_sleep_after(Some(Duration::ZERO)).is_err());
        assert_eq!(config().with_sleep_after(None).unwrap().sleep_after(), None);
        assert_eq!(config().with_cluster_voters(7).unwrap().cluster_voters(), 7);
    }
}
