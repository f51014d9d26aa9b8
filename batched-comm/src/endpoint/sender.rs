//! A typed address: message type, node and mailbox, looked up once.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::shared::{Shared, Target};
use crate::error::{CallError, SendError};
use crate::message::{self, Message, Request};
use crate::name::Address;

/// Sends messages of one type to one mailbox; made by [`Endpoint::sender`](crate::Endpoint::sender).
///
/// It holds the peer it has found, so that sending looks up no name and allocates nothing. It may be made
/// before the peer is known. When the peer is removed, it answers [`SendError::UnknownPeer`], as the endpoint
/// does, and when the peer is known again, it goes to that one. It keeps neither the endpoint alive nor its address:
/// after the endpoint's end, it answers [`SendError::ShutDown`].
pub struct Sender<M> {
    shared: Arc<Shared>,
    to: Address,
    /// The first that was found: messages to it touch no count that other threads touch. Should it be removed, its
    /// successor is looked for each time.
    found: OnceLock<Target>,
    message: PhantomData<fn(&M)>,
}

impl<M: Message> Sender<M> {
    pub(super) fn new(shared: Arc<Shared>, to: Address) -> Sender<M> {
        Sender { shared, to, found: OnceLock::new(), message: PhantomData }
    }

    /// Where it sends to.
    pub fn address(&self) -> &Address {
        &self.to
    }

    /// As [`Endpoint::send`](crate::Endpoint::send): waits for room.
    ///
    /// # Errors
    /// As there.
    pub async fn send(&self, message: &M) -> Result<(), SendError> {
        let encode = |buffer: &mut _| message::encode_into(message, buffer);
        self.target()?.send(&self.shared, &self.to, M::TYPE, encode).await
    }

    /// As [`Endpoint::try_send`](crate::Endpoint::try_send): never waits.
    ///
    /// # Errors
    /// As there.
    pub fn try_send(&self, message: &M) -> Result<(), SendError> {
        let encode = |buffer: &mut _| message::encode_into(message, buffer);
        self.target()?.try_send(&self.shared, &self.to, M::TYPE, encode)
    }

    /// As [`Endpoint::cast`](crate::Endpoint::cast): never waits and never fails.
    pub fn cast(&self, message: &M) {
        let encode = |buffer: &mut _| message::encode_into(message, buffer);
        self.shared.cast(self.target(), &self.to, M::TYPE, encode);
    }

    fn target(&self) -> Result<Cow<'_, Target>, SendError> {
        if self.shared.is_closed() {
            return Err(SendError::ShutDown);
        }
        if let Some(Target::Peer(peer)) = self.found.get()
            && peer.is_removed()
        {
            return self.shared.target(&self.to.node).map(Cow::Owned);
        }
        if let Some(found) = self.found.get() {
            return Ok(Cow::Borrowed(found));
        }
        let target = self.shared.target(&self.to.node)?;
        Ok(Cow::Borrowed(self.found.get_or_init(|| target)))
    }
}

impl<R: Request> Sender<R> {
    /// As [`Endpoint::call`](crate::Endpoint::call): waits for the answer, `timeout` at most.
    ///
    /// # Errors
    /// As there.
    pub async fn call(&self, request: &R, timeout: Duration) -> Result<R::Reply, CallError> {
        let encode = |buffer: &mut _| message::encode_into(request, buffer);
        Ok(message::decode(&self.target()?.call(&self.shared, &self.to, R::TYPE, timeout, encode).await?)?)
    }
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Sender { shared: self.shared.clone(), to: self.to.clone(), found: self.found.clone(), message: PhantomData }
    }
}

impl<M> fmt::Debug for Sender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender({})", self.to)
    }
}
