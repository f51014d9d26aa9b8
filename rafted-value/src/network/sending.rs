//! Sends a snapshot, and goes on where it broke off.
//!
//! ```text
//!          turn          offer                 bytes from offset
//!   wait ------> asking ------> at an offset --------------------> installed
//!    ^             | busy                          | broke off
//!    '---- pause --+-------------------------------'
//!                  | not readable
//!                  '--> a longer pause, and given up
//! ```
//!
//! There is no limit to the whole: a large snapshot takes its time. It is given up when nothing of it has arrived, or
//! nothing more for [`GIVE_UP_AFTER`]; openraft then begins again with the snapshot that is the newest by then.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{RPCError, Unreachable};
use openraft::network::RPCTypes;
use tokio::time::Instant;

use super::{BACKOFF_ASLEEP, Client};
use crate::openraft_types::{SnapshotMeta, Types, Vote};
use crate::rpc::{Answer, RequestBody, SnapshotForm, SnapshotId};
use crate::snapshot::{SnapshotBody, Traffic};
use crate::transport::Body;

/// How long the receiver may take for one chunk, and for its judgement of the whole. If that takes longer, the sender
/// asks again, and is told to wait or that all is done.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an offer may take.
const OFFER_TIMEOUT: Duration = Duration::from_secs(2);
/// Without progress for so long, it is left to openraft whether to go on.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
/// Before a receiver is asked again that has no turn to give, or was not reached.
const PAUSE: Duration = Duration::from_millis(100);
/// Before a receiver is asked again that has no room or is stopped.
const LONG_PAUSE: Duration = Duration::from_millis(500);
/// How often it is looked whether a sleeping group has woken.
const ASLEEP_LOOK: Duration = Duration::from_secs(2);
/// Before a receiver is asked again whose program cannot read the snapshot: somebody has to run another one.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(5);

impl Client {
    /// Sends a snapshot; the receiver's vote.
    pub(super) async fn send(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        body: SnapshotBody,
    ) -> Result<Vote, RPCError<Types>> {
        let (id, form) =
            body.identity().await.map_err(|error| RPCError::Network(openraft::errors::NetworkError::new(&error)))?;
        let mut progress = Progress { offset: 0, at: Instant::now() };
        loop {
            // Given back before each pause.
            let turn = self.traffic.send_turn().await;
            let outcome = self.attempt(vote, &meta, (id, form), &body, &mut progress).await;
            drop(turn);
            match outcome {
                Ok(Attempt::Installed(vote)) => return Ok(vote),
                Ok(Attempt::Again) => {}
                Ok(Attempt::Unreadable(reason)) => {
                    if !self.warned_unreadable.swap(true, Ordering::Relaxed) {
                        let (group, node) = (self.sender.group(), &self.node);
                        tracing::warn!(%group, %node, reason, "a member cannot read the snapshot that it lacks");
                    }
                    tokio::time::sleep(UNREADABLE_PAUSE).await;
                    return Err(Unreachable::from_string(format!("it cannot read the snapshot: {reason}")).into());
                }
                // Nothing of it is there: the newest one is as good to send, once the receiver can be reached.
                Err(error) if progress.offset == 0 => {
                    tokio::time::sleep(PAUSE).await;
                    self.until_awake().await;
                    return Err(error);
                }
                Err(error) if progress.at.elapsed() >= GIVE_UP_AFTER => return Err(error),
                Err(error) => {
                    tracing::debug!(group = %self.sender.group(), node = %self.node, %error, "a snapshot is sent on soon");
                    // Of the errors that are answers, none goes away at once.
                    if !matches!(error, RPCError::Timeout(_)) {
                        tokio::time::sleep(LONG_PAUSE - PAUSE).await;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// In a sleeping group, nobody waits for the member; it is tried now and then.
    async fn until_awake(&self) {
        let since = Instant::now();
        while self.asleep.load(Ordering::Acquire) && since.elapsed() < BACKOFF_ASLEEP {
            tokio::time::sleep(ASLEEP_LOOK).await;
        }
    }

    /// One attempt.
    async fn attempt(
        &self,
        vote: Vote,
        meta: &SnapshotMeta,
        (id, form): (SnapshotId, SnapshotForm),
        body: &SnapshotBody,
        progress: &mut Progress,
    ) -> Result<Attempt, RPCError<Types>> {
        let offer = RequestBody::SnapshotOffer { vote, meta: meta.clone(), id, form };
        let offset = match self.call(offer, RPCTypes::InstallSnapshot, OFFER_TIMEOUT).await? {
            Answer::SnapshotAt { offset } if offset <= id.length => offset,
            other => return judge(other, progress),
        };
        progress.reached(offset);
        let chunks = Paced { chunks: body.chunks(offset), traffic: self.traffic.clone() };
        let request = self.request(RequestBody::Snapshot { vote, meta: meta.clone(), id, offset });
        let sent = self.transport.call_with_body(&self.node, request, Box::new(chunks), STEP_TIMEOUT).await;
        judge(self.judge(sent, RPCTypes::InstallSnapshot, STEP_TIMEOUT)?, progress)
    }
}

/// How an attempt ended.
enum Attempt {
    /// The receiver has it.
    Installed(Vote),
    /// It is to be tried again.
    Again,
    /// It is of no use to the receiver's program.
    Unreadable(String),
}

fn judge(answer: Answer, progress: &mut Progress) -> Result<Attempt, RPCError<Types>> {
    match answer {
        Answer::Snapshot { vote } => Ok(Attempt::Installed(vote)),
        Answer::SnapshotUnreadable { reason } => Ok(Attempt::Unreadable(reason)),
        // It receives others, or judges this one: it lives.
        Answer::SnapshotBusy => {
            progress.at = Instant::now();
            Ok(Attempt::Again)
        }
        Answer::SnapshotAt { .. } => Ok(Attempt::Again),
        other => Err(Client::unexpected(&other)),
    }
}

/// How far the receiver has got.
struct Progress {
    offset: u64,
    at: Instant,
}

impl Progress {
    fn reached(&mut self, offset: u64) {
        if offset > self.offset {
            *self = Self { offset, at: Instant::now() };
        }
    }
}

/// Keeps to the node's rate.
struct Paced {
    chunks: Box<dyn Body>,
    traffic: Arc<Traffic>,
}

impl Body for Paced {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Option<Bytes>>> + Send + '_>> {
        Box::pin(async move {
            let chunk = self.chunks.next().await?;
            if let Some(chunk) = &chunk {
                let wait = self.traffic.before_sending(chunk.len() as u64);
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
            }
            Ok(chunk)
        })
    }
}

#[cfg(test)]
mod tests;
