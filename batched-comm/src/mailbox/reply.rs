//! The way back to a caller, on this node or another.

use std::fmt;
use std::sync::Arc;

use rkyv::util::AlignedVec;
use tokio::sync::oneshot;

use crate::error::{EncodeError, SendError};
use crate::frame::{Head, Kind, Refused};
use crate::message::{self, Body, Wire};
use crate::name::NodeName;
use crate::outbox::{Outbox, Owed, PushError, Urgency};

/// The way back to a caller. Dropping it unused tells the caller that nobody answers.
pub struct ReplyHandle {
    /// `None` once it was used.
    route: Option<Route>,
}

enum Route {
    Remote { outbox: Owed, lane: u64, call: u64 },
    Local { caller: oneshot::Sender<Answer>, node: NodeName, max_bytes: usize },
}

/// What a caller gets.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Body),
    Refused(Refused),
    /// The request never left.
    NotSent,
    /// The connection is gone.
    Lost,
    /// Time is up.
    Expired,
}

impl ReplyHandle {
    pub(crate) fn remote(outbox: Arc<Outbox>, lane: u64, call: u64) -> ReplyHandle {
        ReplyHandle { route: Some(Route::Remote { outbox: Owed::new(outbox, lane), lane, call }) }
    }

    /// To a caller on this node. `max_bytes`: as for answers to others, so that what works here works there.
    pub(crate) fn local(node: NodeName, caller: oneshot::Sender<Answer>, max_bytes: usize) -> ReplyHandle {
        ReplyHandle { route: Some(Route::Local { caller, node, max_bytes }) }
    }

    /// Answers the call. Never waits.
    ///
    /// # Errors
    /// As [`Incoming::reply`](crate::Incoming::reply).
    pub fn reply<R: Wire>(self, answer: &R) -> Result<(), SendError> {
        self.answer(Kind::Reply, 0, |buffer| message::encode_into(answer, buffer))
    }

    /// The same with bytes.
    ///
    /// # Errors
    /// As [`Incoming::reply`](crate::Incoming::reply).
    pub fn reply_bytes(self, answer: &[u8]) -> Result<(), SendError> {
        self.answer(Kind::Reply, 0, |buffer| {
            buffer.extend_from_slice(answer);
            Ok(())
        })
    }

    /// Answers the call, waiting while the way back is full. Dropping the future tells the caller that nobody
    /// answers.
    ///
    /// # Errors
    /// As [`Incoming::reply_waiting`](crate::Incoming::reply_waiting).
    pub async fn reply_waiting<R: Wire>(self, answer: &R) -> Result<(), SendError> {
        self.answer_waiting(|buffer| message::encode_into(answer, buffer)).await
    }

    /// The same with bytes.
    ///
    /// # Errors
    /// As [`Incoming::reply_waiting`](crate::Incoming::reply_waiting).
    pub async fn reply_bytes_waiting(self, answer: &[u8]) -> Result<(), SendError> {
        self.answer_waiting(|buffer| {
            buffer.extend_from_slice(answer);
            Ok(())
        })
        .await
    }

    async fn answer_waiting(
        mut self,
        encode: impl Fn(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), SendError> {
        let Some(Route::Remote { outbox, lane, call }) = &self.route else {
            return self.answer(Kind::Reply, 0, encode);
        };
        let head = Head { kind: Kind::Reply, mailbox: "", type_number: 0, call: *call };
        match outbox.push_waiting(&head, Urgency::Answer { lane: *lane }, encode).await {
            Ok(()) => {
                self.route = None;
                Ok(())
            }
            Err(PushError::NoLane) => {
                let peer = outbox.peer().clone();
                self.route = None;
                Err(SendError::NotConnected { peer, last_error: None })
            }
            // Dropping the rest tells the caller.
            Err(PushError::Full) => Err(outbox.full()),
            Err(PushError::Refused(error)) => Err(error),
        }
    }

    /// Tells the caller why there is no answer.
    pub(crate) fn refuse(self, refused: Refused) {
        // A caller that cannot be told notices by its timeout.
        let _ = self.answer(Kind::Refused, refused as u32, |_| Ok(()));
    }

    fn answer(
        mut self,
        kind: Kind,
        type_number: u32,
        encode: impl FnOnce(&mut AlignedVec) -> Result<(), EncodeError>,
    ) -> Result<(), SendError> {
        let Some(route) = self.route.take() else { return Ok(()) };
        match route {
            Route::Remote { outbox, lane, call } => {
                let head = Head { kind, mailbox: "", type_number, call };
                let urgency = match kind {
                    Kind::Refused => Urgency::Refusal { lane },
                    _ => Urgency::Answer { lane },
                };
                let pushed = outbox.push(&head, urgency, encode);
                let error = match pushed {
                    Ok(()) => return Ok(()),
                    Err(PushError::NoLane) => {
                        let peer = outbox.peer().clone();
                        return Err(SendError::NotConnected { peer, last_error: None });
                    }
                    Err(PushError::Full) => outbox.full(),
                    Err(PushError::Refused(error)) => error,
                };
                self.route = Some(Route::Remote { outbox, lane, call });
                Err(error)
            }
            Route::Local { caller, node, max_bytes } => {
                let mut buffer = AlignedVec::new();
                let mut encoded = encode(&mut buffer).map_err(SendError::from);
                if encoded.is_ok() && buffer.len() > max_bytes {
                    encoded = Err(SendError::TooLarge { given_bytes: buffer.len(), max_bytes });
                }
                if let Err(error) = encoded {
                    // Dropping the rest tells the caller.
                    self.route = Some(Route::Local { caller, node, max_bytes });
                    return Err(error);
                }
                let answer = match kind {
                    Kind::Refused => Answer::Refused(Refused::from_number(type_number)),
                    _ => Answer::Reply(buffer.into()),
                };
                let gone = SendError::NotConnected { peer: node, last_error: None };
                caller.send(answer).map_err(|_| gone)
            }
        }
    }
}

impl Drop for ReplyHandle {
    fn drop(&mut self) {
        if let Some(route) = self.route.take() {
            ReplyHandle { route: Some(route) }.refuse_quietly();
        }
    }
}

impl ReplyHandle {
    /// For `drop`, which must not come back here when there is no room even for a refusal.
    fn refuse_quietly(mut self) {
        match self.route.take() {
            Some(Route::Remote { outbox, lane, call }) => {
                let type_number = Refused::Unanswered as u32;
                let head = Head { kind: Kind::Refused, mailbox: "", type_number, call };
                let _ = outbox.push(&head, Urgency::Refusal { lane }, |_| Ok(()));
            }
            Some(Route::Local { caller, .. }) => {
                let _ = caller.send(Answer::Refused(Refused::Unanswered));
            }
            None => {}
        }
    }
}

impl fmt::Debug for ReplyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyHandle")
    }
}
