//! How a keyspace is cut into shards: always valid.
//!
//! So far the number of shards is fixed: the policy's least number, chosen when the keyspace is created. The
//! limits that decide splits and merges are checked and kept, and rule nothing yet.

use std::ops::RangeInclusive;
use std::time::Duration;

rafted_value::messages! {
    /// How a keyspace is cut into shards.
    ///
    /// ```
    /// use raft_kv::Policy;
    /// let policy = Policy::new().with_shards(8..=64)?.with_replicas(3)?;
    /// assert_eq!(policy.shards(), 8..=64);
    /// assert!(Policy::new().with_shards(0..=4).is_err());
    /// # Ok::<(), raft_kv::PolicyError>(())
    /// ```
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    #[cfg_attr(feature = "serde", serde(try_from = "raw::Raw", into = "raw::Raw"))]
    pub struct Policy {
        min_shards: u32,
        max_shards: u32,
        max_keys_per_shard: u64,
        max_bytes_per_shard: u64,
        max_load_per_shard: u64,
        merge_ratio: f64,
        cool_down_ms: u64,
        replicas: u32,
    }
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} = {given} is not allowed: {allowed}")]
pub struct PolicyError {
    /// Which setting.
    pub setting: &'static str,
    /// What was given.
    pub given: String,
    /// What is allowed.
    pub allowed: &'static str,
}

/// The most shards a keyspace can have: each is a group on several nodes.
pub const MAX_SHARDS: u32 = 4_096;

impl Default for Policy {
    fn default() -> Self {
        Self {
            // A few more than a small cluster has nodes, so that leaders spread.
            min_shards: 8,
            max_shards: 64,
            // A snapshot of a shard stays well below a second at these sizes.
            max_keys_per_shard: 1_000_000,
            max_bytes_per_shard: 256 << 20,
            // Commands per second: about half of what one group was seen to carry.
            max_load_per_shard: 10_000,
            // Below a half, so that what was merged does not split again at once.
            merge_ratio: 0.4,
            cool_down_ms: 60_000,
            // One node may be lost.
            replicas: 3,
        }
    }
}

impl Policy {
    /// The defaults: 8 to 64 shards of 3 replicas.
    pub fn new() -> Self {
        Self::default()
    }

    /// The least and the most shards, 1 to [`MAX_SHARDS`].
    pub fn with_shards(mut self, shards: RangeInclusive<u32>) -> Result<Self, PolicyError> {
        let (min, max) = shards.clone().into_inner();
        if min == 0 || max < min || max > MAX_SHARDS {
            let allowed = "1 <= min_shards <= max_shards <= 4096";
            return Err(PolicyError { setting: "shards", given: format!("{min} to {max}"), allowed });
        }
        (self.min_shards, self.max_shards) = (min, max);
        Ok(self)
    }

    /// A shard with more keys is split; at least 2.
    pub fn with_max_keys_per_shard(mut self, max: u64) -> Result<Self, PolicyError> {
        self.max_keys_per_shard = at_least("max_keys_per_shard", max, 2, "at least 2")?;
        Ok(self)
    }

    /// A shard with more bytes in its values is split; at least 1,024.
    pub fn with_max_bytes_per_shard(mut self, max: u64) -> Result<Self, PolicyError> {
        self.max_bytes_per_shard = at_least("max_bytes_per_shard", max, 1_024, "at least 1024")?;
        Ok(self)
    }

    /// A shard with more load (commands per second) is split; at least 1.
    pub fn with_max_load_per_shard(mut self, max: u64) -> Result<Self, PolicyError> {
        self.max_load_per_shard = at_least("max_load_per_shard", max, 1, "at least 1")?;
        Ok(self)
    }

    /// Neighbours that together stay below this part of every limit are merged; above 0, below 1.
    pub fn with_merge_ratio(mut self, ratio: f64) -> Result<Self, PolicyError> {
        if !(ratio > 0.0 && ratio < 1.0) {
            let allowed = "a number above 0 and below 1";
            return Err(PolicyError { setting: "merge_ratio", given: ratio.to_string(), allowed });
        }
        self.merge_ratio = ratio;
        Ok(self)
    }

    /// How long a shard rests between a split and a merge; at most a day. Below a millisecond counts as zero.
    pub fn with_cool_down(mut self, cool_down: Duration) -> Result<Self, PolicyError> {
        if cool_down > MAX_COOL_DOWN {
            let given = format!("{cool_down:?}");
            return Err(PolicyError { setting: "cool_down", given, allowed: "at most 24 hours (86400000 ms)" });
        }
        // A day has far fewer milliseconds than fit.
        self.cool_down_ms = cool_down.as_millis() as u64;
        Ok(self)
    }

    /// Replicas of each shard, at least 1; more than there are nodes means one on each.
    pub fn with_replicas(mut self, replicas: u32) -> Result<Self, PolicyError> {
        if replicas == 0 {
            return Err(PolicyError { setting: "replicas", given: "0".into(), allowed: "at least 1" });
        }
        self.replicas = replicas;
        Ok(self)
    }

    /// The least and the most shards.
    pub fn shards(&self) -> RangeInclusive<u32> {
        self.min_shards..=self.max_shards
    }

    /// A shard with more keys is split.
    pub fn max_keys_per_shard(&self) -> u64 {
        self.max_keys_per_shard
    }

    /// A shard with more bytes is split.
    pub fn max_bytes_per_shard(&self) -> u64 {
        self.max_bytes_per_shard
    }

    /// A shard with more commands per second is split.
    pub fn max_load_per_shard(&self) -> u64 {
        self.max_load_per_shard
    }

    /// Neighbours below this part of every limit are merged.
    pub fn merge_ratio(&self) -> f64 {
        self.merge_ratio
    }

    /// How long a shard rests between a split and a merge.
    pub fn cool_down(&self) -> Duration {
        Duration::from_millis(self.cool_down_ms)
    }

    /// Replicas of each shard.
    pub fn replicas(&self) -> u32 {
        self.replicas
    }
}

const MAX_COOL_DOWN: Duration = Duration::from_secs(24 * 60 * 60);

fn at_least(setting: &'static str, given: u64, least: u64, allowed: &'static str) -> Result<u64, PolicyError> {
    if given < least { Err(PolicyError { setting, given: given.to_string(), allowed }) } else { Ok(given) }
}

/// The form that people write; absent means the default.
#[cfg(feature = "serde")]
mod raw {
    use std::time::Duration;

    use super::{Policy, PolicyError};

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub(super) struct Raw {
        min_shards: Option<u32>,
        max_shards: Option<u32>,
        max_keys_per_shard: u64,
        max_bytes_per_shard: u64,
        max_load_per_shard: u64,
        merge_ratio: f64,
        cool_down_ms: u64,
        replicas: u32,
    }

    impl Default for Raw {
        fn default() -> Self {
            let default = Self::from(Policy::default());
            Self { min_shards: None, max_shards: None, ..default }
        }
    }

    impl TryFrom<Raw> for Policy {
        type Error = PolicyError;

        /// Of the numbers of shards, one that is absent gives way to the one that is there.
        fn try_from(raw: Raw) -> Result<Self, PolicyError> {
            let default = Policy::default();
            let (min, max) = match (raw.min_shards, raw.max_shards) {
                (Some(min), Some(max)) => (min, max),
                (Some(min), None) => (min, default.max_shards.max(min)),
                (None, Some(max)) => (default.min_shards.min(max), max),
                (None, None) => (default.min_shards, default.max_shards),
            };
            default
                .with_shards(min..=max)?
                .with_max_keys_per_shard(raw.max_keys_per_shard)?
                .with_max_bytes_per_shard(raw.max_bytes_per_shard)?
                .with_max_load_per_shard(raw.max_load_per_shard)?
                .with_merge_ratio(raw.merge_ratio)?
                .with_cool_down(Duration::from_millis(raw.cool_down_ms))?
                .with_replicas(raw.replicas)
        }
    }

    impl From<Policy> for Raw {
        fn from(policy: Policy) -> Self {
            Self {
                min_shards: Some(policy.min_shards),
                max_shards: Some(policy.max_shards),
                max_keys_per_shard: policy.max_keys_per_shard,
                max_bytes_per_shard: policy.max_bytes_per_shard,
                max_load_per_shard: policy.max_load_per_shard,
                merge_ratio: policy.merge_ratio,
                cool_down_ms: policy.cool_down_ms,
                replicas: policy.replicas,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_range_are_refused_with_the_range() {
        let new = Policy::new;
        let refused = [
            new().with_shards(0..=4),
            new().with_shards(RangeInclusive::new(5, 4)),
            new().with_shards(1..=MAX_SHARDS + 1),
            new().with_max_keys_per_shard(1),
            new().with_max_bytes_per_shard(1_023),
            new().with_max_load_per_shard(0),
            new().with_merge_ratio(0.0),
            new().with_merge_ratio(1.0),
            new().with_merge_ratio(f64::NAN),
            new().with_cool_down(MAX_COOL_DOWN + Duration::from_millis(1)),
            new().with_replicas(0),
        ];
        for result in refused {
            let error = result.unwrap_err();
            assert!(error.to_string().contains(error.allowed), "{error}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_goes_through_the_same_setters() {
        let read = |json: &str| serde_json::from_str::<Policy>(json);
        assert_eq!(read("{}").unwrap(), Policy::new());
        assert_eq!(read(r#"{"min_shards":100}"#).unwrap().shards(), 100..=100);
        assert_eq!(read(r#"{"max_shards":2}"#).unwrap().shards(), 2..=2);
        assert_eq!(read(r#"{"cool_down_ms":5}"#).unwrap().cool_down(), Duration::from_millis(5));
        for wrong in [
            r#"{"min_shards":0}"#,
            r#"{"shards":3}"#,
            r#"{"merge_ratio":2}"#,
            r#"{"replicas":0}"#,
            r#"{"replicas":-1}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let policy = Policy::new().with_shards(3..=9).unwrap().with_merge_ratio(0.25).unwrap();
        assert_eq!(read(&serde_json::to_string(&policy).unwrap()).unwrap(), policy);
    }
}
