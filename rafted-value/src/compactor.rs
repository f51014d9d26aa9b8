//! Takes the replica's snapshots, and lets go of the log's entries behind them: openraft does neither by itself.
//!
//! ```text
//!   backlog.rs: "one is due" ----------------------.
//!   somebody asks for one -------------------------+--> a turn of the node's --> build --> purge what is not kept
//!   the log: "you keep the oldest segment" --------'
//! ```
//!
//! What keeps the oldest segment is copied by the log, again and again; that counts as written, so that a snapshot takes
//! its place as soon as it costs no more than the copies. An appender never waits for a snapshot.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::machine::{Built, Raft, Shared};
use crate::openraft_types::Types;
use crate::snapshot::Traffic;
use crate::wal::Pinned;

type Metrics = openraft::RaftMetrics<Types>;

/// openraft does not hear of a build that it is asked for while it has not heard of the last one's end: after this time
/// it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long it is left alone after it could not begin: the disk is full.
const REFUSED_RETRY: Duration = Duration::from_secs(1);
/// How long a value that cannot be copied or written is left alone.
const FAILED_RETRY: Duration = Duration::from_secs(10);

/// One replica's.
pub(crate) struct Compactor {
    pub(crate) raft: Raft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) traffic: Arc<Traffic>,
}

/// The replica has ended.
struct Ended;

impl Compactor {
    /// Runs until the log or the replica ends.
    pub(crate) async fn run(self, mut pinned: watch::Receiver<Option<Pinned>>) {
        while self.step(&mut pinned).await.is_ok() {}
    }

    async fn step(&self, pinned: &mut watch::Receiver<Option<Pinned>>) -> Result<(), Ended> {
        tokio::select! {
            biased;
            changed = pinned.changed() => {
                changed.map_err(|_| Ended)?;
                let pin = *pinned.borrow_and_update();
                if let Some(pin) = pin {
                    self.unpin(pin).await?;
                }
            }
            () = self.shared.building().wanted() => {
                let asked = self.shared.building().was_asked();
                if asked {
                    // Of nothing there is no snapshot. A command is answered a moment before it is counted as applied, so
                    // that what its caller asks for then must not be forgotten.
                    self.shared.applied_count().wait_for(|&count| count > 0).await.map_err(|_| Ended)?;
                }
                if asked || self.shared.is_snapshot_due() {
                    let is_taken = self.build().await?;
                    if asked && !is_taken {
                        self.shared.building().ask();
                    }
                }
            }
        }
        Ok(())
    }

    /// Entries that are in a snapshot go at once; others once it pays to take one.
    async fn unpin(&self, pin: Pinned) -> Result<(), Ended> {
        if self.snapshotted().is_none_or(|index| index < pin.last) {
            self.shared.add_copied(pin.bytes);
            if self.shared.is_snapshot_due() {
                self.build().await?;
            }
        }
        match self.snapshotted() {
            Some(index) => self.purge(index.min(pin.last)).await,
            None => Ok(()),
        }
    }

    /// The last entry of the newest snapshot.
    fn snapshotted(&self) -> Option<u64> {
        openraft::async_runtime::watch::WatchReceiver::borrow_watched(&self.raft.metrics()).snapshot.map(|id| id.index)
    }

    /// Whether one was taken; if not, some time has passed.
    async fn build(&self) -> Result<bool, Ended> {
        let mut offer = self.shared.building().offer(self.traffic.build_turn().await);
        let built = loop {
            self.raft.trigger().snapshot().await.map_err(|_| Ended)?;
            if let Ok(built) = tokio::time::timeout(ASK_AGAIN, offer.end()).await {
                break built;
            }
            // The group is busy with a long command or query: others may have the turn meanwhile.
            if self.shared.building().withdraw() {
                break None;
            }
        };
        match built {
            Some(Built::Taken { index, purge }) => {
                // What openraft does not know to be in a snapshot it does not let go.
                let knows = |metrics: &Metrics| metrics.snapshot.is_some_and(|id| id.index >= index);
                self.raft.wait(None).metrics(knows, "the snapshot that was taken").await.map_err(|_| Ended)?;
                if let Some(purge) = purge {
                    self.purge(purge).await?;
                }
                return Ok(true);
            }
            Some(Built::Failed) => self.pause(FAILED_RETRY).await,
            None => self.pause(REFUSED_RETRY).await,
        }
        Ok(false)
    }

    async fn pause(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
        // It is still due, or else nobody is harmed.
        self.shared.building().wake();
    }

    async fn purge(&self, up_to: u64) -> Result<(), Ended> {
        self.raft.trigger().purge_log(up_to).await.map_err(|_| Ended)
    }
}
