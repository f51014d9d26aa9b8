//! A mailbox for messages of one type: decoded when they are received, and answered with the right type.

use std::fmt;
use std::marker::PhantomData;

use crate::error::SendError;
use crate::frame::Refused;
use crate::mailbox::{Incoming, Mailbox, ReplyHandle};
use crate::message::{Message, Request};
use crate::name::{MailboxName, NodeName};

/// A [`Mailbox`] for messages of one type; made by [`Endpoint::typed_mailbox`](crate::Endpoint::typed_mailbox).
///
/// What is no `M` never comes out: a call is refused (its caller gets [`SendError::NotUnderstood`]), and
/// everything is counted in [`TypedMailbox::undecodable`].
#[derive(Debug)]
pub struct TypedMailbox<M> {
    mailbox: Mailbox,
    undecodable: u64,
    message: PhantomData<fn() -> M>,
}

impl<M: Message> TypedMailbox<M> {
    pub(crate) fn new(mailbox: Mailbox) -> TypedMailbox<M> {
        TypedMailbox { mailbox, undecodable: 0, message: PhantomData }
    }

    /// The mailbox's name.
    pub fn name(&self) -> &MailboxName {
        self.mailbox.name()
    }

    /// How many messages came that were no `M`.
    pub fn undecodable(&self) -> u64 {
        self.undecodable
    }

    /// The next message: who sent it, what it is, and the way back. `None` when the endpoint is shut down.
    /// Nothing is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<(NodeName, M, Reply<M>)> {
        loop {
            let incoming = self.mailbox.recv().await?;
            if let Some(received) = self.understand(incoming) {
                return Some(received);
            }
        }
    }

    /// The next message, when there is one already.
    pub fn try_recv(&mut self) -> Option<(NodeName, M, Reply<M>)> {
        loop {
            let incoming = self.mailbox.try_recv()?;
            if let Some(received) = self.understand(incoming) {
                return Some(received);
            }
        }
    }

    fn understand(&mut self, incoming: Incoming) -> Option<(NodeName, M, Reply<M>)> {
        let decoded = incoming.decode();
        let (from, type_number, _, handle) = incoming.into_parts();
        match decoded {
            Ok(message) => Some((from, message, Reply { handle, request: PhantomData })),
            Err(error) => {
                self.undecodable += 1;
                tracing::debug!(%from, type_number, mailbox = %self.name(), %error, "a message was not understood");
                handle.into_iter().for_each(|handle| handle.refuse(Refused::NotUnderstood));
                None
            }
        }
    }
}

/// The way back to who sent an `M`. Dropping it unused tells a caller that nobody answers.
pub struct Reply<M> {
    handle: Option<ReplyHandle>,
    request: PhantomData<fn(&M)>,
}

impl<M> Reply<M> {
    /// Whether the sender waits for an answer: it called. Where it does not, answers go nowhere.
    pub fn is_awaited(&self) -> bool {
        self.handle.is_some()
    }
}

impl<R: Request> Reply<R> {
    /// Answers; never waits.
    ///
    /// # Errors
    /// As [`Incoming::reply`](crate::Incoming::reply).
    pub fn reply(self, answer: &R::Reply) -> Result<(), SendError> {
        self.handle.map_or(Ok(()), |handle| handle.reply(answer))
    }

    /// Answers, waiting while the way back is full.
    ///
    /// # Errors
    /// As [`Incoming::reply_waiting`](crate::Incoming::reply_waiting).
    pub async fn reply_waiting(self, answer: &R::Reply) -> Result<(), SendError> {
        match self.handle {
            Some(handle) => handle.reply_waiting(answer).await,
            None => Ok(()),
        }
    }
}

impl<M> fmt::Debug for Reply<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply(awaited: {})", self.is_awaited())
    }
}
