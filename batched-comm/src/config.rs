//! The settings of an endpoint, always valid: private fields, setters that can refuse.

use std::time::Duration;

use crate::error::ConfigError;

/// The largest message, in bytes; what is larger goes in bulk.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// The largest allowed `max_batch_messages`; a message to several mailboxes counts as several.
pub(crate) const MAX_BATCH_MESSAGES: u32 = 65_536;

/// The largest allowed `max_batch_bytes`.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// How the bytes of batches are made fewer.
///
/// A batch that would shrink by less than a tenth goes as it is, and so does every batch to a peer that does
/// not understand what was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all: batches are sent from the buffer that they were gathered in.
    #[default]
    None,
    /// LZ4 blocks: costs about as much as it saves where bytes cost processor time.
    Lz4,
    /// Zstandard at its level 1: fewer bytes than LZ4 and more work, for slow links. Needs the feature
    /// `zstd`, which is on by default.
    Zstd,
}

/// When and how a batch leaves; can be changed while the endpoint runs.
///
/// The defaults wait for nothing: under load, batches grow by themselves while the previous one is
/// written, and an idle lane adds no delay. Lingering was measured to make casts slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    max_wait: Duration,
    max_batch_messages: u32,
    max_batch_bytes: usize,
    compression: Compression,
}

impl Default for Batching {
    fn default() -> Self {
        Batching {
            max_wait: Duration::ZERO,
            max_batch_messages: 4096,
            max_batch_bytes: 256 * 1024,
            compression: Compression::None,
        }
    }
}

impl Batching {
    /// How long a message may wait for others to join it.
    pub fn max_wait(&self) -> Duration {
        self.max_wait
    }

    /// How many messages a batch has at most.
    pub fn max_batch_messages(&self) -> u32 {
        self.max_batch_messages
    }

    /// A batch that has this many bytes is closed; it is longer by one message at most.
    pub fn max_batch_bytes(&self) -> usize {
        self.max_batch_bytes
    }

    /// How batches are compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Sets how long a message may wait for others: zero (the default) to one second.
    pub fn with_max_wait(self, max_wait: Duration) -> Result<Self, ConfigError> {
        in_range("max_wait", max_wait, Duration::ZERO, Duration::from_secs(1))?;
        Ok(Batching { max_wait, ..self })
    }

    /// Sets how many messages a batch has at most: 1 to 65,536 (default 4,096).
    pub fn with_max_batch_messages(self, max_batch_messages: u32) -> Result<Self, ConfigError> {
        in_range("max_batch_messages", max_batch_messages, 1, MAX_BATCH_MESSAGES)?;
        Ok(Batching { max_batch_messages, ..self })
    }

    /// Sets the size at which a batch is closed: 1 KiB to 1 MiB (default 256 KiB).
    pub fn with_max_batch_bytes(self, max_batch_bytes: usize) -> Result<Self, ConfigError> {
        in_range("max_batch_bytes", max_batch_bytes, 1024, MAX_BATCH_BYTES)?;
        Ok(Batching { max_batch_bytes, ..self })
    }

    /// Sets how batches are compressed (default: not at all). [`Compression::Zstd`] is refused without the
    /// feature `zstd`.
    pub fn with_compression(self, compression: Compression) -> Result<Self, ConfigError> {
        if compression == Compression::Zstd && !cfg!(feature = "zstd") {
            let allowed = "None or Lz4: this was built without the feature zstd".into();
            return Err(ConfigError { setting: "compression", given: format!("{compression:?}"), allowed });
        }
        Ok(Batching { compression, ..self })
    }
}

/// The settings of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    batching: Batching,
    max_queued_bytes: usize,
    max_message_bytes: usize,
    hello_timeout: Duration,
    ping_interval: Duration,
    suspect_after: Duration,
    dead_after: Duration,
    lower_backoff: Duration,
    upper_backoff: Duration,
    instance: Option<u64>,
    network_thread: bool,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        EndpointConfig {
            batching: Batching::default(),
            // As much again is being written, and 2 MiB are in quinn: deeper queues only add delay.
            max_queued_bytes: 1024 * 1024,
            max_message_bytes: MAX_MESSAGE_BYTES,
            hello_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_millis(100),
            suspect_after: Duration::from_millis(400),
            dead_after: Duration::from_millis(1200),
            lower_backoff: Duration::from_millis(50),
            upper_backoff: Duration::from_secs(1),
            instance: None,
            network_thread: true,
        }
    }
}

impl EndpointConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// When batches leave at first.
    pub fn batching(&self) -> Batching {
        self.batching
    }

    /// How many bytes may wait for one peer before `send` waits.
    pub fn max_queued_bytes(&self) -> usize {
        self.max_queued_bytes
    }

    /// The largest message that is sent.
    pub fn max_message_bytes(&self) -> usize {
        self.max_message_bytes
    }

    /// How long a connection may take until its hello is answered.
    pub fn hello_timeout(&self) -> Duration {
        self.hello_timeout
    }

    /// How often an idle connection is pinged.
    pub fn ping_interval(&self) -> Duration {
        self.ping_interval
    }

    /// After how much silence a peer is suspect.
    pub fn suspect_after(&self) -> Duration {
        self.suspect_after
    }

    /// After how much silence a peer is dead, and its connection closed.
    pub fn dead_after(&self) -> Duration {
        self.dead_after
    }

    /// The bound of the first wait between two attempts to connect.
    pub fn lower_backoff(&self) -> Duration {
        self.lower_backoff
    }

    /// The bound of all later waits between two attempts to connect.
    pub fn upper_backoff(&self) -> Duration {
        self.upper_backoff
    }

    /// The number of this start of the node; `None`: a random one.
    pub fn instance(&self) -> Option<u64> {
        self.instance
    }

    /// Whether the endpoint has a thread of its own for the network.
    pub fn network_thread(&self) -> bool {
        self.network_thread
    }

    /// Sets whether the endpoint has a thread of its own for the network (the default), or a task of the runtime in
    /// which it is bound. With its own thread, a node whose code blocks the runtime's threads still answers pings, and
    /// messages come in while handlers are busy. As a task, a single caller has its answer in about half the time,
    /// since no thread has to be woken for it; but code that keeps the runtime busy delays the network, and makes the
    /// node suspect and then dead to its peers.
    pub fn with_network_thread(self, network_thread: bool) -> Self {
        EndpointConfig { network_thread, ..self }
    }

    /// Sets when batches leave at first.
    pub fn with_batching(self, batching: Batching) -> Self {
        EndpointConfig { batching, ..self }
    }

    /// Sets how many bytes may wait for one peer: 4 KiB to 64 MiB (default 1 MiB). The last message
    /// below the bound may exceed it.
    pub fn with_max_queued_bytes(self, max_queued_bytes: usize) -> Result<Self, ConfigError> {
        in_range("max_queued_bytes", max_queued_bytes, 4 * 1024, 64 * 1024 * 1024)?;
        Ok(EndpointConfig { max_queued_bytes, ..self })
    }

    /// Sets the largest message that is sent: 1 byte to 8 MiB (default 8 MiB).
    pub fn with_max_message_bytes(self, max_message_bytes: usize) -> Result<Self, ConfigError> {
        in_range("max_message_bytes", max_message_bytes, 1, MAX_MESSAGE_BYTES)?;
        Ok(EndpointConfig { max_message_bytes, ..self })
    }

    /// Sets how long a connection may take until its hello is answered: 50 ms to 60 s (default 2 s).
    pub fn with_hello_timeout(self, hello_timeout: Duration) -> Result<Self, ConfigError> {
        let allowed = (Duration::from_millis(50), Duration::from_secs(60));
        in_range("hello_timeout", hello_timeout, allowed.0, allowed.1)?;
        Ok(EndpointConfig { hello_timeout, ..self })
    }

    /// Sets pings and the two thresholds of silence (defaults 100 ms, 400 ms, 1.2 s); they must rise:
    /// `ping_interval * 2 <= suspect_after` and `suspect_after + ping_interval <= dead_after`.
    pub fn with_liveness(
        self,
        ping_interval: Duration,
        suspect_after: Duration,
        dead_after: Duration,
    ) -> Result<Self, ConfigError> {
        let longest = Duration::from_secs(60);
        in_range("dead_after", dead_after, Duration::from_millis(20), longest)?;
        in_range("suspect_after", suspect_after, Duration::from_millis(10), dead_after.saturating_sub(ping_interval))?;
        in_range("ping_interval", ping_interval, Duration::from_millis(5), suspect_after / 2)?;
        Ok(EndpointConfig { ping_interval, suspect_after, dead_after, ..self })
    }

    /// Sets between which bounds the wait for the next attempt to connect grows (default 50 ms to 1 s);
    /// the wait itself is random between zero and the bound. A connection that stood for less than twice `upper`
    /// counts as a failed attempt.
    pub fn with_backoff(self, lower: Duration, upper: Duration) -> Result<Self, ConfigError> {
        in_range("upper_backoff", upper, Duration::from_millis(1), Duration::from_secs(600))?;
        in_range("lower_backoff", lower, Duration::from_millis(1), upper)?;
        Ok(EndpointConfig { lower_backoff: lower, upper_backoff: upper, ..self })
    }

    /// Sets the number of this start of the node (its boot number), by which peers see that it is not
    /// the one they knew. It must differ from start to start.
    pub fn with_instance(self, instance: u64) -> Self {
        EndpointConfig { instance: Some(instance), ..self }
    }
}

fn in_range<T: PartialOrd + std::fmt::Debug>(
    setting: &'static str,
    given: T,
    lower: T,
    upper: T,
) -> Result<(), ConfigError> {
    if lower <= given && given <= upper {
        return Ok(());
    }
    Err(ConfigError { setting, given: format!("{given:?}"), allowed: format!("{lower:?} to {upper:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_what_is_allowed() {
        let error = Batching::default().with_max_batch_messages(0).unwrap_err();
        assert_eq!(error.to_string(), "max_batch_messages = 0: allowed is 1 to 65536");
        let zstd = Batching::default().with_compression(Compression::Zstd);
        if cfg!(feature = "zstd") {
            assert_eq!(zstd.unwrap().compression(), Compression::Zstd);
        } else {
            let error = zstd.unwrap_err().to_string();
            assert_eq!(error, "compression = Zstd: allowed is None or Lz4: this was built without the feature zstd");
        }
        let ms = Duration::from_millis;
        let config = EndpointConfig::new();
        assert!(config.clone().with_liveness(ms(100), ms(150), ms(1000)).is_err());
        assert!(config.clone().with_liveness(ms(100), ms(900), ms(800)).is_err());
        assert!(config.clone().with_liveness(ms(50), ms(100), ms(120)).is_err());
        assert!(config.clone().with_liveness(ms(50), ms(100), ms(300)).is_ok());
        assert!(config.clone().with_backoff(ms(10), ms(5)).is_err());
        assert!(config.with_max_message_bytes(MAX_MESSAGE_BYTES + 1).is_err());
    }
}
