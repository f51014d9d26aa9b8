//! Agreed settings <-> bytes, in the log and in snapshots.
//!
//! ```text
//! heartbeat, election min, election max: u64 each, in milliseconds
//! max command bytes u64 | max queued commands u64 | snapshot after entries u64
//! ```
//!
//! Which version wrote them stands with them: in the log, in the command's field for the value's version.

use std::time::Duration;

use bytes::Bytes;

use super::{ConfigError, GroupConfig};
use crate::codec::{Malformed, Reader, Writer};

/// The version of this encoding. A setting more is another version.
pub(crate) const ENCODING_VERSION: u32 = 1;

/// Bytes that are no settings this program knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnreadableConfig {
    /// Another program knows them.
    #[error("settings of version {0}, this program knows version {ENCODING_VERSION}; run a program that knows both")]
    Version(u32),
    /// They end early, or go on.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// What they say is not allowed.
    #[error("{0}")]
    Invalid(#[from] ConfigError),
}

impl GroupConfig {
    pub(crate) fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(48);
        for duration in [self.heartbeat, self.election_min, self.election_max] {
            // At most an hour.
            writer.u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        }
        writer.u64(self.max_command_bytes as u64);
        writer.u64(self.max_queued_commands as u64);
        writer.u64(self.snapshot_after_entries);
        writer.into_bytes()
    }

    /// Reads settings, which may come from anybody: by the same rules as those that a person sets.
    pub(crate) fn decode(version: u32, bytes: &Bytes) -> Result<Self, UnreadableConfig> {
        if version != ENCODING_VERSION {
            return Err(UnreadableConfig::Version(version));
        }
        let mut reader = Reader::new(bytes.clone(), "settings of a group");
        let mut millis = || Ok::<_, Malformed>(Duration::from_millis(reader.u64()?));
        let (heartbeat, election_min, election_max) = (millis()?, millis()?, millis()?);
        let mut count = || Ok::<_, Malformed>(usize::try_from(reader.u64()?).unwrap_or(usize::MAX));
        let (command_bytes, queued_commands) = (count()?, count()?);
        let snapshot_after = reader.u64()?;
        reader.end()?;
        let config = Self::default()
            .with_timing(heartbeat, election_min, election_max)?
            .with_max_command_bytes(command_bytes)?
            .with_max_queued_commands(queued_commands)?
            .with_snapshot_after_entries(snapshot_after)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_these() {
        let ms = Duration::from_millis;
        let config = GroupConfig::default()
            .with_timing(ms(100), ms(0x201), ms(0x302))
            .and_then(|config| config.with_max_command_bytes(0x403))
            .and_then(|config| config.with_max_queued_commands(0x504))
            .and_then(|config| config.with_snapshot_after_entries(0x605))
            .unwrap();
        let golden: Vec<u8> = [[100, 0], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6]]
            .iter()
            .flat_map(|[low, high]| [*low, *high, 0, 0, 0, 0, 0, 0])
            .collect();
        assert_eq!(config.encode()[..], golden[..]);
        assert_eq!(GroupConfig::decode(1, &config.encode()), Ok(config));
    }

    #[test]
    fn what_is_cut_or_not_allowed_or_of_another_version_is_an_error() {
        let bytes = GroupConfig::default().encode();
        for length in 0..bytes.len() {
            assert!(matches!(GroupConfig::decode(1, &bytes.slice(..length)), Err(UnreadableConfig::Malformed(_))));
        }
        for field in 0..6 {
            for byte in [0, 0xFF] {
                let mut wrong = bytes.to_vec();
                wrong[field * 8..field * 8 + 8].fill(byte);
                let refused = GroupConfig::decode(1, &wrong.into());
                assert!(matches!(refused, Err(UnreadableConfig::Invalid(_))), "field {field}, {byte}: {refused:?}");
            }
        }
        assert_eq!(GroupConfig::decode(2, &bytes), Err(UnreadableConfig::Version(2)));
    }
}
