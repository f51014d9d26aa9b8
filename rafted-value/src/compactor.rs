//! Frees the log's oldest segment from a replica that keeps it: a replica that is idle, and whose entries are too few
//! for a snapshot by their number, would have them copied from segment to segment for ever.
//!
//! ```text
//!   the log: "you keep the oldest segment, up to entry n" --> snapshot, unless there is one up to n --> purge up to n
//! ```
//!
//! Until then the log copies: an appender never waits for a snapshot, and a replica that lags, which has not applied
//! what it keeps, cannot do better.

use std::time::Duration;

use openraft::metrics::WaitError;
use tokio::sync::watch;

use crate::machine::Raft;
use crate::openraft_types::Types;

type Metrics = openraft::RaftMetrics<Types>;

/// While a snapshot is awaited, it is asked for again after this time ...
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// ... and so often, before the next word of the log is heeded instead.
const MAX_ASKED: u32 = 60;

/// Runs until the log or the replica ends.
pub(crate) async fn run(raft: Raft, group: String, mut pinned: watch::Receiver<Option<u64>>) {
    while pinned.changed().await.is_ok() {
        let Some(last) = *pinned.borrow_and_update() else { continue };
        tracing::info!(group, last, "a snapshot takes the place of entries that keep the log's oldest segment");
        if free(&raft, last).await.is_none() {
            tracing::debug!(group, last, "no snapshot could be taken of them");
        }
    }
}

async fn free(raft: &Raft, last: u64) -> Option<()> {
    let covered = |index: Option<u64>| index.is_some_and(|index| index >= last);
    let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&raft.metrics()).clone();
    // Of what is not applied there is no snapshot: as far as it goes.
    let target = last.min(metrics.last_applied?.index);
    let snapshot = metrics.snapshot.map(|id| id.index);
    if !covered(snapshot) && snapshot.is_none_or(|index| index < target) {
        take_snapshot(raft, target).await?;
    }
    raft.trigger().purge_log(target).await.ok()
}

/// Takes a snapshot up to `target` or later. One that is being built already may be of an earlier entry, and a second
/// one is not begun meanwhile: it is asked for again.
async fn take_snapshot(raft: &Raft, target: u64) -> Option<()> {
    let is_taken = |metrics: &Metrics| metrics.snapshot.is_some_and(|id| id.index >= target);
    for _ in 0..MAX_ASKED {
        raft.trigger().snapshot().await.ok()?;
        match raft.wait(Some(ASK_AGAIN)).metrics(is_taken, "a snapshot that frees the log's oldest segment").await {
            Ok(_) => return Some(()),
            Err(WaitError::Timeout(..)) => {}
            Err(WaitError::ShuttingDown) => return None,
        }
    }
    None
}
