//! The names of this crate's metrics, which go through the [`metrics`](https://docs.rs/metrics) facade; the README says
//! what they count. Those of groups are labelled with `group`; those of the log are of all logs of the process.

/// Counter: rounds of heartbeats that proved a leadership for queries.
pub const READ_ROUNDS: &str = "rafted_value_read_rounds_total";
/// Counter: rounds that proved how young a member's value is.
pub const STALENESS_ROUNDS: &str = "rafted_value_staleness_rounds_total";
/// Histogram: seconds that a batch of entries took to be applied.
pub const APPLY_SECONDS: &str = "rafted_value_apply_seconds";
/// Counter: batches that took long to be applied, counted again each time they have taken twice as long.
pub const SLOW_APPLIES: &str = "rafted_value_slow_applies_total";
/// Counter: commands that failed in the value's code.
pub const FAILED_COMMANDS: &str = "rafted_value_failed_commands_total";
/// Counter: snapshots that were taken.
pub const SNAPSHOTS: &str = "rafted_value_snapshots_total";
/// Counter: their bytes.
pub const SNAPSHOT_BYTES: &str = "rafted_value_snapshot_bytes_total";
/// Counter: snapshots that the value's code could not write.
pub const FAILED_SNAPSHOTS: &str = "rafted_value_failed_snapshots_total";
/// Counter: calls of a hook that panicked.
pub const FAILED_HOOK_CALLS: &str = "rafted_value_failed_hook_calls_total";
/// Counter: calls of a hook for which there was no room.
pub const DROPPED_HOOK_CALLS: &str = "rafted_value_dropped_hook_calls_total";
/// Counter: entries that were refused because this program cannot read them.
pub const UNREADABLE_ENTRIES: &str = "rafted_value_unreadable_entries_total";
/// Counter: entries written to the log.
pub const LOG_ENTRIES: &str = "rafted_value_log_entries_total";
/// Counter: bytes written to the log.
pub const LOG_BYTES: &str = "rafted_value_log_bytes_total";
/// Counter: syncs of the log's files.
pub const LOG_SYNCS: &str = "rafted_value_log_syncs_total";
/// Histogram: seconds that a batch took to be written and synced.
pub const LOG_SYNC_SECONDS: &str = "rafted_value_log_sync_seconds";
/// Gauge: segments of the log that are needed.
pub const LOG_SEGMENTS: &str = "rafted_value_log_segments";
/// Counter: logs that failed, which take nothing more.
pub const LOG_FAILURES: &str = "rafted_value_log_failures_total";

/// Counts one for a group.
pub(crate) fn count(name: &'static str, group: &str) {
    add(name, group, 1);
}

/// Counts so many for a group.
pub(crate) fn add(name: &'static str, group: &str, count: u64) {
    metrics::counter!(name, "group" => group.to_owned()).increment(count);
}
