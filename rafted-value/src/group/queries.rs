//! Queries of one replica's value, encoded: through the leader, from what this replica has, or proven young enough.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::UntypedReplica;
use crate::config::MAX_QUERY_BYTES;
use crate::error::{NotHappened, QueryError};
use crate::freshness;
use crate::reader::{Read, ReadError};

/// Queries that may wait for a round at one replica; one more waits outside.
pub(super) const MAX_QUEUED: usize = 16_384;
/// Bytes of queries under way at one replica; one more waits for room.
pub(super) const MAX_BYTES_UNDER_WAY: usize = 64 << 20;

/// Whether a query is short enough to be answered.
pub(crate) fn check_length(query: &[u8]) -> Result<(), NotHappened> {
    let (bytes, max_bytes) = (query.len(), MAX_QUERY_BYTES);
    if bytes > max_bytes { Err(NotHappened::TooLarge { bytes, max_bytes }) } else { Ok(()) }
}

impl UntypedReplica {
    /// Answers an encoded query linearizably; only the leader can.
    pub async fn read(&self, query: Bytes, timeout: Duration) -> Result<Bytes, ReadError> {
        let stopped = || {
            let (group, reason) = (self.inner.spec.group.clone(), "the replica was stopped".to_owned());
            ReadError::Query(NotHappened::Stopped { group, reason }.into())
        };
        let ask = async {
            let _room = self.query_room(&query).await.map_err(QueryError::from)?;
            let (answer, answered) = oneshot::channel();
            self.inner.reads.send(Read::Query { query, answer }).await.map_err(|_| stopped())?;
            answered.await.unwrap_or_else(|_| Err(stopped()))
        };
        tokio::time::timeout(timeout, ask).await.unwrap_or(Err(ReadError::NoAnswer { waited: timeout }))
    }

    /// Answers an encoded query from what this replica has applied, which may be old.
    pub async fn read_any(&self, query: Bytes) -> Result<Bytes, QueryError> {
        let _room = self.query_room(&query).await?;
        self.answer_any(query).await
    }

    /// For a query that has its room.
    async fn answer_any(&self, query: Bytes) -> Result<Bytes, QueryError> {
        let shared = self.inner.shared.clone();
        let answer = self.inner.store.threads().run(move || shared.query(&query)).await;
        match answer {
            Ok(answer) => answer.map_err(QueryError::Failed),
            Err(error) => {
                let group = self.inner.spec.group.clone();
                Err(NotHappened::Stopped { group, reason: error.to_string() }.into())
            }
        }
    }

    /// Answers an encoded query from this replica's own value, once it is proven to have all that was committed `max`
    /// before the call, by this node's monotonic clock (which stands still while a machine is suspended). `Duration::ZERO`
    /// makes it linearizable. The proof is the leader's ReadIndex; queries share it, and it is used again while it is
    /// young enough.
    pub async fn read_with_staleness(
        &self,
        query: Bytes,
        max: Duration,
        timeout: Duration,
    ) -> Result<Bytes, QueryError> {
        let group = || self.inner.spec.group.clone();
        let needed = self.inner.shared.monotonic().saturating_sub(max);
        let proven = async {
            let room = self.query_room(&query).await?;
            match self.inner.freshness.reached(needed, self.inner.shared.applied_count()).await {
                Ok(()) => Ok(room),
                Err(freshness::Crowded) => {
                    Err(NotHappened::Overloaded { group: group(), queued: freshness::MAX_WAITING })
                }
            }
        };
        let stale = |_| NotHappened::Stale { group: group(), max, waited: timeout };
        let _room = tokio::time::timeout(timeout, proven).await.map_err(stale)??;
        self.answer_any(query).await
    }

    /// Waits until there is room for a query; it is given back with what is returned.
    async fn query_room(&self, query: &Bytes) -> Result<OwnedSemaphorePermit, NotHappened> {
        check_length(query)?;
        let bytes = u32::try_from(query.len()).unwrap_or(u32::MAX);
        let room = self.inner.query_bytes.clone().acquire_many_owned(bytes).await;
        // It is never closed.
        room.map_err(|error| NotHappened::Stopped { group: self.inner.spec.group.clone(), reason: error.to_string() })
    }
}
