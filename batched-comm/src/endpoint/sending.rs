//! Sending by address. `send` waits for room, `try_send` never waits and says so, `cast` never waits and never
//! fails, `call` waits for an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use rkyv::util::AlignedVec;

use super::Endpoint;
use super::sender::Sender;
use super::shared::Target;
use crate::error::{CallError, EncodeError, SendError};
use crate::message::{self, Body, Message, Request};
use crate::name::{Address, NodeName};

impl Endpoint {
    /// Sends a message that wants no answer; waits for room on the way to the node, in turn with all others who
    /// wait, while too much is waiting already. `Ok` says that it is on its way, not that it arrives: it is dropped
    /// when the connection is lost, or the mailbox is full or unknown, which only the receiving node counts. Messages
    /// from here to one mailbox arrive in order. To a mailbox of this node it never waits.
    ///
    /// # Errors
    /// When it was certainly not sent; at once when there is no connection (see [`Endpoint::connected`]), or a mailbox
    /// of this node is full or unknown.
    pub async fn send<M: Message>(&self, to: &Address, message: &M) -> Result<(), SendError> {
        self.shared().target(&to.node)?.send(self.shared(), to, M::TYPE, archive(message)).await
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// [`SendError::Full`] where [`Endpoint::send`] waits.
    pub fn try_send<M: Message>(&self, to: &Address, message: &M) -> Result<(), SendError> {
        self.shared().target(&to.node)?.try_send(self.shared(), to, M::TYPE, archive(message))
    }

    /// Sends a message about which nobody asks again: never waits and never fails. What cannot be taken (no
    /// connection, too much waiting, too large) is counted as dropped in the peer's statistics; what is for
    /// nobody known, or for a mailbox of this node that is full or missing, in [`Endpoint::dropped_casts`].
    pub fn cast<M: Message>(&self, to: &Address, message: &M) {
        self.shared().cast(self.shared().target(&to.node), to, M::TYPE, archive(message));
    }

    /// [`Endpoint::send`] for bytes in an encoding of the caller's own.
    ///
    /// # Errors
    /// As [`Endpoint::send`].
    pub async fn send_bytes(&self, to: &Address, type_number: u32, body: &[u8]) -> Result<(), SendError> {
        self.shared().target(&to.node)?.send(self.shared(), to, type_number, copy(body)).await
    }

    /// [`Endpoint::try_send`] for bytes in an encoding of the caller's own.
    ///
    /// # Errors
    /// As [`Endpoint::try_send`].
    pub fn try_send_bytes(&self, to: &Address, type_number: u32, body: &[u8]) -> Result<(), SendError> {
        self.shared().target(&to.node)?.try_send(self.shared(), to, type_number, copy(body))
    }

    /// [`Endpoint::cast`] for bytes in an encoding of the caller's own.
    pub fn cast_bytes(&self, to: &Address, type_number: u32, body: &[u8]) {
        self.shared().cast(self.shared().target(&to.node), to, type_number, copy(body));
    }

    /// Sends a request and waits for its answer, `timeout` at most; that includes waiting for a
    /// connection that does not stand yet. Dropping the future gives the answer up, not the request.
    ///
    /// # Errors
    /// [`CallError::NotSent`] when it certainly was not handled; see [`CallError::is_unknown`].
    pub async fn call<R: Request>(&self, to: &Address, request: &R, timeout: Duration) -> Result<R::Reply, CallError> {
        let target = self.shared().target(&to.node)?;
        Ok(message::decode(&target.call(self.shared(), to, R::TYPE, timeout, archive(request)).await?)?)
    }

    /// [`Endpoint::call`] for bytes in an encoding of the caller's own. The answer's bytes begin at a
    /// multiple of 16.
    ///
    /// # Errors
    /// As [`Endpoint::call`].
    pub async fn call_bytes(
        &self,
        to: &Address,
        type_number: u32,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Body, CallError> {
        self.shared().target(&to.node)?.call(self.shared(), to, type_number, timeout, copy(body)).await
    }

    /// Sends one message to many: encoded once, and one copy to each node, however many of its mailboxes
    /// are meant. Waits for nobody: for a peer with too much waiting, the result is [`SendError::Full`].
    pub async fn broadcast<M: Message>(&self, to: &[Address], message: &M) -> Vec<(Address, Result<(), SendError>)> {
        let body = match message::encode(message) {
            Ok(body) => body,
            Err(error) => return to.iter().map(|address| (address.clone(), Err(error.clone().into()))).collect(),
        };
        let mut by_node: BTreeMap<&NodeName, Vec<usize>> = BTreeMap::new();
        for (index, address) in to.iter().enumerate() {
            by_node.entry(&address.node).or_default().push(index);
        }
        let mut results: Vec<_> = to.iter().map(|address| (address.clone(), Ok(()))).collect();
        for (node, indexes) in by_node {
            let node_results = match self.shared().target(node) {
                Err(error) => vec![Err(error); indexes.len()],
                Ok(Target::Local) => {
                    indexes.iter().map(|index| self.shared().send_local(&to[*index], M::TYPE, body.clone())).collect()
                }
                Ok(Target::Peer(peer)) => {
                    let mailboxes: Vec<_> = indexes.iter().map(|index| &to[*index].mailbox).collect();
                    peer.try_send_many(&mailboxes, M::TYPE, &body)
                }
            };
            for (index, result) in indexes.into_iter().zip(node_results) {
                results[index].1 = result;
            }
        }
        results
    }

    /// How many casts were dropped that no peer's statistics count: to nobody known, or to this node itself.
    pub fn dropped_casts(&self) -> u64 {
        self.shared().dropped_casts()
    }

    /// A handle on one mailbox for messages of one type, which looks the node up once and not per message.
    pub fn sender<M: Message>(&self, to: &Address) -> Sender<M> {
        Sender::new(self.shared().clone(), to.clone())
    }
}

fn archive<M: Message>(message: &M) -> impl Fn(&mut AlignedVec) -> Result<(), EncodeError> {
    move |buffer| message::encode_into(message, buffer)
}

fn copy(body: &[u8]) -> impl Fn(&mut AlignedVec) -> Result<(), EncodeError> {
    move |buffer| {
        buffer.extend_from_slice(body);
        Ok(())
    }
}
