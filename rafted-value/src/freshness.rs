//! Reads whose age is bounded: any member answers from its own value once it has proof that it has applied all
//! that was committed at some moment of its *own* monotonic clock. No two machines' clocks are ever compared.
//!
//! ```text
//! query arrives at time T, may be `max` old: needs a proof of T - max or later
//!   a proof at hand, its entries applied ---------------------------> answer from the own value
//!   a proof at hand, entries missing -------------------------------> wait for them, then answer
//!   no such proof --> round: note the time, ask the leader's ReadIndex --> proof (time noted, entries needed)
//! ```
//!
//! A round serves everybody who waits: one is in flight, and whoever came after it began waits for the next.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::machine::Shared;
use crate::peers::Peers;
use crate::reader::{Read, ReadError};
use crate::rpc::{Answer, RequestBody};
use crate::runtime::watch;
use crate::stats;

/// Queries with a bound that may wait at one replica; one more is refused.
pub(crate) const MAX_WAITING: usize = 16_384;
/// How long a leader may take to answer a round before another one is tried.
const ROUND_PATIENCE: Duration = Duration::from_secs(1);
/// Between rounds that failed: about a third of an election.
const PAUSE: Duration = Duration::from_millis(40);

/// Whoever has applied `entries` entries has all that was committed at `asked_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof {
    /// Of the own monotonic clock, before the leader was asked.
    asked_at: Duration,
    /// One above the leader's read index.
    entries: u64,
}

impl Proof {
    /// Whether it says what was committed at `needed` or later.
    pub(crate) fn covers(self, needed: Duration) -> bool {
        self.asked_at >= needed
    }
}

/// What queries with a bound share at one replica.
pub(crate) struct Freshness {
    /// The latest proof; its time never goes back.
    proof: watch::Sender<Option<Proof>>,
    /// The latest time for which a proof was asked.
    demand: watch::Sender<Duration>,
    room: Semaphore,
}

/// There is no room for one more query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Crowded;

impl Default for Freshness {
    fn default() -> Self {
        let room = Semaphore::new(MAX_WAITING);
        Self { proof: watch::Sender::new(None), demand: watch::Sender::new(Duration::ZERO), room }
    }
}

impl Freshness {
    /// Returns once the value has all that was committed at `needed`, by the own monotonic clock. It may never return:
    /// bound it. Dropping it asks for no further rounds.
    pub(crate) async fn reached(&self, needed: Duration, mut applied: watch::Receiver<u64>) -> Result<(), Crowded> {
        let covering = |proof: &Option<Proof>| proof.filter(|proof| proof.covers(needed));
        let ready = covering(&self.proof.borrow()).is_some_and(|proof| *applied.borrow() >= proof.entries);
        if ready {
            return Ok(());
        }
        let _room = self.room.try_acquire().map_err(|_| Crowded)?;
        self.demand.send_modify(|latest| *latest = needed.max(*latest));
        let mut proofs = self.proof.subscribe();
        let proof = proofs.wait_for(|proof| covering(proof).is_some()).await.map(|proof| *proof);
        // Both senders live as long as the replica, and with it the caller's future.
        if let Ok(Some(proof)) = proof {
            let _ = applied.wait_for(|&count| count >= proof.entries).await;
        }
        Ok(())
    }

    /// Whether somebody waits for a proof that is not there.
    fn is_demanded(&self) -> bool {
        let waits = self.room.available_permits() < MAX_WAITING;
        waits && !self.proof.borrow().is_some_and(|proof| proof.covers(*self.demand.borrow()))
    }
}

/// Makes proofs as they are asked for; runs until it is dropped.
pub(crate) async fn run(peers: Peers, reads: mpsc::Sender<Read>, shared: Arc<Shared>, freshness: Arc<Freshness>) {
    let mut demand = freshness.demand.subscribe();
    while demand.changed().await.is_ok() {
        while freshness.is_demanded() {
            let asked_at = shared.monotonic();
            stats::count(stats::STALENESS_ROUNDS, shared.group());
            match read_index(&peers, &reads).await {
                Some(entries) => {
                    freshness.proof.send_replace(Some(Proof { asked_at, entries }));
                }
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// How many entries hold all that is committed now, by the word of the leader after a round of heartbeats.
async fn read_index(peers: &Peers, reads: &mpsc::Sender<Read>) -> Option<u64> {
    let (leader, member) = peers.leader()?;
    if leader == peers.sender.replica() {
        return index_of(reads, ROUND_PATIENCE).await.ok();
    }
    match peers.ask(leader, &member, RequestBody::ReadIndex, ROUND_PATIENCE).await {
        Some(Answer::ReadIndex { entries }) => Some(entries),
        _ => None,
    }
}

/// Joins a ReadIndex round of this replica, which must lead.
pub(crate) async fn index_of(reads: &mpsc::Sender<Read>, timeout: Duration) -> Result<u64, ReadError> {
    let unanswered = || ReadError::NotLeader { leader: None };
    let ask = async {
        let (answer, answered) = oneshot::channel();
        reads.send(Read::Index { answer }).await.map_err(|_| unanswered())?;
        answered.await.unwrap_or_else(|_| Err(unanswered()))
    };
    tokio::time::timeout(timeout, ask).await.unwrap_or_else(|_| Err(unanswered()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn publish(freshness: &Freshness, asked_at: Duration, entries: u64) {
        freshness.proof.send_replace(Some(Proof { asked_at, entries }));
    }

    #[tokio::test]
    async fn a_query_waits_for_a_proof_that_is_young_enough_and_for_its_entries() {
        let freshness = Freshness::default();
        let applied = watch::Sender::new(3);
        let reached = freshness.reached(SECOND * 5, applied.subscribe());
        tokio::pin!(reached);
        assert!(futures_util::poll!(&mut reached).is_pending(), "without a proof");
        assert!(freshness.is_demanded());
        publish(&freshness, SECOND * 4, 3);
        assert!(futures_util::poll!(&mut reached).is_pending(), "the proof is too old");
        assert!(freshness.is_demanded());
        publish(&freshness, SECOND * 5, 4);
        assert!(futures_util::poll!(&mut reached).is_pending(), "an entry is missing");
        assert!(!freshness.is_demanded(), "the proof is there");
        applied.send_replace(4);
        assert_eq!(reached.await, Ok(()));
        let again = freshness.reached(SECOND * 5, applied.subscribe());
        assert_eq!(futures_util::poll!(Box::pin(again)), std::task::Poll::Ready(Ok(())), "no further round");
        assert!(!freshness.is_demanded());
    }

    #[tokio::test]
    async fn who_gives_up_asks_for_no_more_rounds() {
        let freshness = Freshness::default();
        let applied = watch::Sender::new(0);
        {
            let reached = freshness.reached(SECOND, applied.subscribe());
            tokio::pin!(reached);
            assert!(futures_util::poll!(&mut reached).is_pending());
            assert!(freshness.is_demanded());
        }
        assert!(!freshness.is_demanded());
    }
}
