//! What went over a lane, counted; and the names under which it is published.
//!
//! Counted once per batch, so that counting costs nothing per message; a call reads the clock once more when it
//! is answered. The same numbers go to the `metrics` facade, labelled with `peer`, and what is a matter of the
//! moment (queues, pending calls, round trip) is looked at every 50 ms while there is a connection.
//!
//! Every peer's metrics are made when it becomes known: a recorder that is installed later sees nothing of it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::error::SendError;
use crate::name::NodeName;

/// Metric: messages handed to QUIC.
pub const MESSAGES_SENT: &str = "batched_comm_messages_sent_total";
/// Metric: batches handed to QUIC.
pub const BATCHES_SENT: &str = "batched_comm_batches_sent_total";
/// Metric: bytes of batches before compression, handed to QUIC.
pub const RAW_BYTES_SENT: &str = "batched_comm_raw_bytes_sent_total";
/// Metric: bytes of batches handed to QUIC.
pub const BYTES_SENT: &str = "batched_comm_bytes_sent_total";
/// Metric: messages received.
pub const MESSAGES_RECEIVED: &str = "batched_comm_messages_received_total";
/// Metric: batches received.
pub const BATCHES_RECEIVED: &str = "batched_comm_batches_received_total";
/// Metric: bytes of received batches after they were unpacked.
pub const RAW_BYTES_RECEIVED: &str = "batched_comm_raw_bytes_received_total";
/// Metric: bytes received.
pub const BYTES_RECEIVED: &str = "batched_comm_bytes_received_total";
/// Metric: messages that were dropped here, with the label `reason`: `no_connection` (also what was waiting when
/// a connection ended), `queue_full`, `unknown_mailbox`, `mailbox_full`, `late_reply`, or `unsendable` (too large,
/// or not to be encoded). Under this node's own name: casts to this node, and to nodes that are no peers.
pub const MESSAGES_DROPPED: &str = "batched_comm_messages_dropped_total";
/// Metric: connections that came up after an earlier one.
pub const RECONNECTS: &str = "batched_comm_reconnects_total";
/// Metric: attempts to connect from this side, with the label `outcome`: `ok` or `failed`.
pub const DIALS: &str = "batched_comm_dials_total";
/// Metric, a gauge: bytes that wait to be handed to QUIC.
pub const QUEUED_BYTES: &str = "batched_comm_queued_bytes";
/// Metric, a gauge: messages that wait to be handed to QUIC.
pub const QUEUED_MESSAGES: &str = "batched_comm_queued_messages";
/// Metric, a gauge: calls whose answer has not come.
pub const PENDING_CALLS: &str = "batched_comm_pending_calls";
/// Metric, a histogram: seconds from a call to its answer, waiting for a connection and for room included; calls
/// that were not answered are not in it.
pub const CALL_SECONDS: &str = "batched_comm_call_seconds";
/// Metric, a gauge: seconds that QUIC takes a round trip for, smoothed.
pub const ROUND_TRIP_SECONDS: &str = "batched_comm_round_trip_seconds";

/// Counts of one peer since it became known. Subtract an earlier one to get a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Messages handed to QUIC.
    pub messages_sent: u64,
    /// Batches handed to QUIC.
    pub batches_sent: u64,
    /// Bytes of those batches before they were compressed.
    pub raw_bytes_sent: u64,
    /// Bytes of those batches as they were sent; QUIC and what lies below add their own.
    pub bytes_sent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Batches received.
    pub batches_received: u64,
    /// Bytes of those batches after they were unpacked.
    pub raw_bytes_received: u64,
    /// Bytes of those batches as they were received.
    pub bytes_received: u64,
    /// Messages dropped here: cast without a connection, no such mailbox, mailbox full, late reply.
    pub messages_dropped: u64,
    /// Connections that came up, the first one included.
    pub connections: u64,
}

impl Traffic {
    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Traffic) -> Traffic {
        Traffic {
            messages_sent: self.messages_sent.saturating_sub(earlier.messages_sent),
            batches_sent: self.batches_sent.saturating_sub(earlier.batches_sent),
            raw_bytes_sent: self.raw_bytes_sent.saturating_sub(earlier.raw_bytes_sent),
            bytes_sent: self.bytes_sent.saturating_sub(earlier.bytes_sent),
            messages_received: self.messages_received.saturating_sub(earlier.messages_received),
            batches_received: self.batches_received.saturating_sub(earlier.batches_received),
            raw_bytes_received: self.raw_bytes_received.saturating_sub(earlier.raw_bytes_received),
            bytes_received: self.bytes_received.saturating_sub(earlier.bytes_received),
            messages_dropped: self.messages_dropped.saturating_sub(earlier.messages_dropped),
            connections: self.connections.saturating_sub(earlier.connections),
        }
    }

    /// What a sent batch had on average; `None` when none was sent.
    pub fn per_batch_sent(&self) -> Option<PerBatch> {
        let average = |sum: u64| sum as f64 / self.batches_sent as f64;
        (self.batches_sent > 0).then(|| PerBatch {
            messages: average(self.messages_sent),
            raw_bytes: average(self.raw_bytes_sent),
            bytes: average(self.bytes_sent),
        })
    }
}

/// What one batch had on average over a period.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerBatch {
    /// Messages.
    pub messages: f64,
    /// Bytes before compression.
    pub raw_bytes: f64,
    /// Bytes as they were sent.
    pub bytes: f64,
}

/// Why a message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropReason {
    NoConnection,
    QueueFull,
    UnknownMailbox,
    MailboxFull,
    LateReply,
    Unsendable,
}

impl DropReason {
    const ALL: [DropReason; 6] = [
        DropReason::NoConnection,
        DropReason::QueueFull,
        DropReason::UnknownMailbox,
        DropReason::MailboxFull,
        DropReason::LateReply,
        DropReason::Unsendable,
    ];

    fn label(self) -> &'static str {
        match self {
            DropReason::NoConnection => "no_connection",
            DropReason::QueueFull => "queue_full",
            DropReason::UnknownMailbox => "unknown_mailbox",
            DropReason::MailboxFull => "mailbox_full",
            DropReason::LateReply => "late_reply",
            DropReason::Unsendable => "unsendable",
        }
    }

    /// Why a message was not taken.
    pub(crate) fn of(error: &SendError) -> DropReason {
        match error {
            SendError::UnknownPeer { .. } | SendError::NotConnected { .. } | SendError::ShutDown => {
                DropReason::NoConnection
            }
            SendError::Full { .. } | SendError::TooManyCalls { .. } => DropReason::QueueFull,
            SendError::UnknownMailbox { .. } => DropReason::UnknownMailbox,
            SendError::MailboxFull { .. } => DropReason::MailboxFull,
            SendError::TooLarge { .. } | SendError::Encode(_) | SendError::NotUnderstood { .. } => {
                DropReason::Unsendable
            }
        }
    }
}

/// Dropped messages, all together and by reason.
pub(crate) struct Drops {
    total: AtomicU64,
    by_reason: [Counter; DropReason::ALL.len()],
}

impl Drops {
    pub(crate) fn new(peer: &NodeName) -> Drops {
        let counter = |reason: DropReason| metrics::counter!(MESSAGES_DROPPED, "peer" => peer.to_string(), "reason" => reason.label());
        Drops { total: AtomicU64::new(0), by_reason: DropReason::ALL.map(counter) }
    }

    pub(crate) fn add(&self, reason: DropReason, messages: u64) {
        if messages > 0 {
            self.total.fetch_add(messages, Relaxed);
            self.by_reason[reason as usize].increment(messages);
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }
}

/// What waits at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Waiting {
    pub(crate) bytes: usize,
    pub(crate) messages: u64,
}

/// A number in an atomic and in a metric.
struct Count {
    value: AtomicU64,
    metric: Counter,
}

impl Count {
    fn new(metric: Counter) -> Count {
        Count { value: AtomicU64::new(0), metric }
    }

    fn add(&self, n: u64) {
        if n > 0 {
            self.value.fetch_add(n, Relaxed);
            self.metric.increment(n);
        }
    }

    fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }
}

/// The counters of one peer.
pub(crate) struct Stats {
    messages_sent: Count,
    batches_sent: Count,
    raw_bytes_sent: Count,
    bytes_sent: Count,
    messages_received: Count,
    batches_received: Count,
    raw_bytes_received: Count,
    bytes_received: Count,
    messages_dropped: Drops,
    connections: AtomicU64,
    reconnects: Counter,
    dials: Counter,
    failed_dials: Counter,
    queued_bytes: Gauge,
    queued_messages: Gauge,
    pending_calls: Gauge,
    call_seconds: Histogram,
    round_trip_seconds: Gauge,
}

impl Stats {
    pub(crate) fn new(peer: &NodeName) -> Stats {
        let count = |name: &'static str| Count::new(metrics::counter!(name, "peer" => peer.to_string()));
        let gauge = |name: &'static str| metrics::gauge!(name, "peer" => peer.to_string());
        let dials = |outcome: &'static str| metrics::counter!(DIALS, "peer" => peer.to_string(), "outcome" => outcome);
        Stats {
            messages_sent: count(MESSAGES_SENT),
            batches_sent: count(BATCHES_SENT),
            raw_bytes_sent: count(RAW_BYTES_SENT),
            bytes_sent: count(BYTES_SENT),
            messages_received: count(MESSAGES_RECEIVED),
            batches_received: count(BATCHES_RECEIVED),
            raw_bytes_received: count(RAW_BYTES_RECEIVED),
            bytes_received: count(BYTES_RECEIVED),
            messages_dropped: Drops::new(peer),
            connections: AtomicU64::new(0),
            reconnects: metrics::counter!(RECONNECTS, "peer" => peer.to_string()),
            dials: dials("ok"),
            failed_dials: dials("failed"),
            queued_bytes: gauge(QUEUED_BYTES),
            queued_messages: gauge(QUEUED_MESSAGES),
            pending_calls: gauge(PENDING_CALLS),
            call_seconds: metrics::histogram!(CALL_SECONDS, "peer" => peer.to_string()),
            round_trip_seconds: gauge(ROUND_TRIP_SECONDS),
        }
    }

    pub(crate) fn sent(&self, messages: u64, batches: u64, raw_bytes: u64, bytes: u64) {
        self.messages_sent.add(messages);
        self.batches_sent.add(batches);
        self.raw_bytes_sent.add(raw_bytes);
        self.bytes_sent.add(bytes);
    }

    /// One batch.
    pub(crate) fn received(&self, messages: u64, raw_bytes: u64, bytes: u64) {
        self.messages_received.add(messages);
        self.batches_received.add(1);
        self.raw_bytes_received.add(raw_bytes);
        self.bytes_received.add(bytes);
    }

    pub(crate) fn dropped(&self, reason: DropReason, messages: u64) {
        self.messages_dropped.add(reason, messages);
    }

    pub(crate) fn dialled(&self, reached: bool) {
        let dials = if reached { &self.dials } else { &self.failed_dials };
        dials.increment(1);
    }

    /// How it stands at this moment.
    pub(crate) fn waits(&self, waiting: Waiting, pending_calls: usize) {
        self.queued_bytes.set(waiting.bytes as f64);
        self.queued_messages.set(waiting.messages as f64);
        self.pending_calls.set(pending_calls as f64);
    }

    pub(crate) fn answered(&self, after: Duration) {
        self.call_seconds.record(after);
    }

    pub(crate) fn round_trip(&self, time: Duration) {
        self.round_trip_seconds.set(time);
    }

    pub(crate) fn connected(&self) {
        if self.connections.fetch_add(1, Relaxed) > 0 {
            self.reconnects.increment(1);
        }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            messages_sent: self.messages_sent.get(),
            batches_sent: self.batches_sent.get(),
            raw_bytes_sent: self.raw_bytes_sent.get(),
            bytes_sent: self.bytes_sent.get(),
            messages_received: self.messages_received.get(),
            batches_received: self.batches_received.get(),
            raw_bytes_received: self.raw_bytes_received.get(),
            bytes_received: self.bytes_received.get(),
            messages_dropped: self.messages_dropped.total(),
            connections: self.connections.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_the_difference_of_two_moments() {
        let stats = Stats::new(&"n2".parse().unwrap());
        stats.sent(10, 2, 900, 900);
        stats.received(1, 100, 50);
        let before = stats.traffic();
        assert_eq!(stats.traffic().since(&before), Traffic::default());
        assert_eq!(stats.traffic().since(&before).per_batch_sent(), None, "empty when idle");
        stats.sent(5, 2, 800, 400);
        stats.received(2, 200, 60);
        stats.dropped(DropReason::QueueFull, 1);
        let period = stats.traffic().since(&before);
        let expected = Traffic {
            messages_sent: 5,
            batches_sent: 2,
            raw_bytes_sent: 800,
            bytes_sent: 400,
            messages_received: 2,
            batches_received: 1,
            raw_bytes_received: 200,
            bytes_received: 60,
            messages_dropped: 1,
            connections: 0,
        };
        assert_eq!(period, expected);
        assert_eq!(period.per_batch_sent(), Some(PerBatch { messages: 2.5, raw_bytes: 400.0, bytes: 200.0 }));
    }
}
