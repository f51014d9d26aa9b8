//! Snapshots that are being received, and the beginnings of those whose transfer broke off: it goes on there.
//!
//! ```text
//!             begin                     all is here
//!   (none) ----------> being received -------------> judged, installed
//!                        |        ^
//!         it broke off   v        | begin, at the offset that is here
//!                       kept -----'
//!                        |
//!                        '--> dropped: too old, too many, another snapshot begins
//! ```
//!
//! A part is of one replica and one snapshot. Whatever ends here leaves no file behind; a restart drops all parts.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::JoinSet;

use super::file::Spool;
use crate::clock::Clock;
use crate::rpc::SnapshotId;
use crate::runtime;

/// Snapshots that one node receives at once; a sender of one more is told to come again, and holds no turn meanwhile, so
/// that nodes that send to each other never wait for each other.
pub(crate) const MAX_RECEIVES: usize = 2;
/// Parts that a node keeps of transfers that broke off, at most one for each replica; of more, the oldest goes.
pub(crate) const MAX_KEPT_PARTS: usize = 4;
/// How long a part is kept: a sender that lives comes back within seconds.
pub(crate) const MAX_PART_AGE: Duration = Duration::from_secs(120);

/// One node's parts.
pub(crate) struct Parts {
    clock: Arc<dyn Clock>,
    table: Mutex<Table>,
    /// The task that drops parts that are too old, while there are any.
    sweeper: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Table {
    kept: BTreeMap<u64, Kept>,
    /// Replicas that are receiving.
    receiving: BTreeSet<u64>,
    is_swept: bool,
}

struct Kept {
    id: SnapshotId,
    spool: Spool,
    since: Duration,
}

/// Why a transfer cannot begin at its offset now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The replica, or the node, receives as many as it can.
    Busy,
    /// This is what is here.
    At(u64),
}

/// A replica's turn to receive. Dropping it keeps what is here, for a transfer that goes on.
pub(super) struct Receiving {
    parts: Arc<Parts>,
    replica: u64,
    id: SnapshotId,
    spool: Option<Spool>,
}

impl Parts {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, table: Mutex::default(), sweeper: Mutex::default() }
    }

    /// How much of a snapshot is here; `None` while no transfer may begin.
    pub(super) fn offset(&self, replica: u64, id: SnapshotId) -> Option<u64> {
        let mut table = self.table();
        table.expire(self.clock.monotonic());
        table.is_free(replica).then(|| table.offset(replica, id))
    }

    /// Takes a replica's turn to receive from `offset`, with what is here of it, or at 0 with what `new` makes.
    pub(super) fn begin(
        self: &Arc<Self>,
        replica: u64,
        id: SnapshotId,
        offset: u64,
        new: impl FnOnce() -> Spool,
    ) -> Result<Receiving, Refusal> {
        let mut table = self.table();
        table.expire(self.clock.monotonic());
        if !table.is_free(replica) {
            return Err(Refusal::Busy);
        }
        let here = table.offset(replica, id);
        if offset != 0 && offset != here {
            return Err(Refusal::At(here));
        }
        let kept = table.kept.remove(&replica).filter(|_| offset != 0);
        table.receiving.insert(replica);
        let spool = kept.map_or_else(new, |kept| kept.spool);
        Ok(Receiving { parts: self.clone(), replica, id, spool: Some(spool) })
    }

    fn sweep_later(self: &Arc<Self>) {
        if std::mem::replace(&mut self.table().is_swept, true) {
            return;
        }
        let parts = Arc::downgrade(self);
        runtime::spawn_on(&mut self.sweeper.lock().unwrap_or_else(PoisonError::into_inner), sweep(parts));
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when nothing is kept.
async fn sweep(parts: Weak<Parts>) {
    loop {
        tokio::time::sleep(MAX_PART_AGE / 4).await;
        let Some(parts) = parts.upgrade() else { return };
        let mut table = parts.table();
        table.expire(parts.clock.monotonic());
        if table.kept.is_empty() {
            table.is_swept = false;
            return;
        }
    }
}

impl Table {
    fn is_free(&self, replica: u64) -> bool {
        self.receiving.len() < MAX_RECEIVES && !self.receiving.contains(&replica)
    }

    fn offset(&self, replica: u64, id: SnapshotId) -> u64 {
        self.kept.get(&replica).filter(|kept| kept.id == id).map_or(0, |kept| kept.spool.length())
    }

    fn expire(&mut self, now: Duration) {
        self.kept.retain(|_, kept| now.saturating_sub(kept.since) < MAX_PART_AGE);
    }

    fn keep(&mut self, replica: u64, kept: Kept) {
        self.kept.insert(replica, kept);
        while self.kept.len() > MAX_KEPT_PARTS {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.since).map(|(&replica, _)| replica);
            oldest.and_then(|oldest| self.kept.remove(&oldest));
        }
    }
}

impl Receiving {
    /// How much is here.
    pub(super) fn length(&self) -> u64 {
        self.spool.as_ref().map_or(0, Spool::length)
    }

    /// Takes what is here: it is not kept.
    pub(super) fn take(&mut self) -> Option<Spool> {
        self.spool.take()
    }

    /// Adds to what is here, up to `length`. After an error nothing is kept.
    pub(super) fn write(&mut self, bytes: &[u8], length: u64) -> io::Result<()> {
        let Some(mut spool) = self.spool.take() else { return Err(io::Error::other("nothing is being received")) };
        if spool.length() + bytes.len() as u64 > length {
            return Err(io::Error::other(format!("more than the {length} bytes that were announced")));
        }
        spool.write_all(bytes)?;
        self.spool = Some(spool);
        Ok(())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let kept = self.spool.take().filter(|spool| spool.length() > 0);
        let kept = kept.map(|spool| Kept { id: self.id, spool, since: self.parts.clock.monotonic() });
        let mut table = self.parts.table();
        table.receiving.remove(&self.replica);
        // Outside a runtime the process ends, and nobody could see to the part's age.
        let Some(kept) = kept.filter(|_| tokio::runtime::Handle::try_current().is_ok()) else { return };
        table.keep(self.replica, kept);
        drop(table);
        self.parts.sweep_later();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::Threads;
    use crate::value::LogTime;

    /// Follows tokio's time.
    struct TestClock(tokio::time::Instant);

    impl Clock for TestClock {
        fn wall(&self) -> LogTime {
            LogTime::default()
        }
        fn monotonic(&self) -> Duration {
            self.0.elapsed()
        }
    }

    fn parts() -> Arc<Parts> {
        Arc::new(Parts::new(Arc::new(TestClock(tokio::time::Instant::now()))))
    }

    fn id(id: u64) -> SnapshotId {
        SnapshotId { id, length: 100 }
    }

    fn spool(bytes: usize) -> Spool {
        let mut spool = Spool::new(Threads::Pool(tokio::runtime::Handle::current()), None, "name".into());
        spool.write_all(&vec![0; bytes]).unwrap();
        spool
    }

    fn broken(parts: &Arc<Parts>, replica: u64, snapshot: u64, bytes: usize) {
        drop(parts.begin(replica, id(snapshot), 0, || spool(bytes)).unwrap());
    }

    fn refused(parts: &Arc<Parts>, replica: u64, snapshot: u64, offset: u64) -> Option<Refusal> {
        parts.begin(replica, id(snapshot), offset, || spool(0)).err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_goes_on_where_it_broke_off() {
        let parts = parts();
        broken(&parts, 1, 5, 30);
        assert_eq!(parts.offset(1, id(5)), Some(30));
        assert_eq!(parts.offset(1, id(6)), Some(0), "another snapshot begins");
        assert_eq!(parts.offset(2, id(5)), Some(0), "and so does another replica");
        assert_eq!(refused(&parts, 1, 5, 31), Some(Refusal::At(30)));
        let mut receiving = parts.begin(1, id(5), 30, || spool(0)).unwrap();
        assert_eq!(receiving.length(), 30);
        assert_eq!(parts.offset(1, id(5)), None, "it is being received");
        assert_eq!(refused(&parts, 1, 5, 30), Some(Refusal::Busy));
        receiving.take();
        drop(receiving);
        assert_eq!(parts.offset(1, id(5)), Some(0), "what was given up is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn another_snapshot_takes_the_place_of_the_part() {
        let parts = parts();
        broken(&parts, 1, 5, 30);
        broken(&parts, 1, 6, 20);
        assert_eq!((parts.offset(1, id(5)), parts.offset(1, id(6))), (Some(0), Some(20)));
        assert_eq!(parts.begin(1, id(6), 0, || spool(0)).unwrap().length(), 0, "it begins again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_receives_two_at_once_and_keeps_four() {
        let parts = parts();
        let begin = |replica| parts.begin(replica, id(1), 0, || spool(0)).unwrap();
        let turns: Vec<_> = (1..=2).map(begin).collect();
        assert_eq!(refused(&parts, 3, 1, 0), Some(Refusal::Busy));
        drop(turns);
        for replica in 1..=6 {
            broken(&parts, replica, 1, 10);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let found: Vec<_> = (1..=6).map(|replica| parts.offset(replica, id(1))).collect();
        assert_eq!(found, [0, 0, 10, 10, 10, 10].map(Some));
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_nobody_asks_for_goes_by_itself() {
        let parts = parts();
        broken(&parts, 1, 1, 10);
        tokio::time::sleep(MAX_PART_AGE / 2).await;
        assert_eq!(parts.table().kept.len(), 1);
        tokio::time::sleep(MAX_PART_AGE).await;
        assert_eq!(parts.table().kept.len(), 0);
        broken(&parts, 1, 1, 10);
        tokio::time::sleep(MAX_PART_AGE * 2).await;
        assert_eq!(parts.table().kept.len(), 0, "also the second one");
    }
}
