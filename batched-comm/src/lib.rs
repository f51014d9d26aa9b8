#![doc = include_str!("../README.md")]

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod endpoint;
mod peer;
mod watches;
mod bulk;
mod link;
mod socket;
#[cfg(feature = "test-net")]
pub mod test_net;
mod typed_mailbox;
mod mailbox;
mod outbox;
mod line;
mod message;
mod connection;
mod closing;
mod calls;
mod batcher;
mod hello;
mod frame;
mod compression;
pub mod tls;
pub mod stats;
mod config;
mod network;
mod chance;
mod clock;
mod error;
mod name;

pub use rkyv;

pub use bulk::{BulkListener, BulkReceiver, BulkSender, MAX_BULK_BACKLOG, MAX_BULK_HEADER_BYTES};
pub use config::{Batching, Compression, EndpointConfig, MAX_BATCH_BYTES, MAX_MESSAGE_BYTES};
pub use endpoint::{Endpoint, MAX_PEERS, PeerWatch, PeersWatch, Sender};
pub use error::{
    BindError, BulkError, CallError, ConfigError, ConnectError, DecodeError, EncodeError, IdentityError, MailboxError,
    Refusal, SendError, WatchEnded,
};
pub use mailbox::{Incoming, MAX_MAILBOX_BYTES, MAX_MAILBOX_CAPACITY, Mailbox, ReplyHandle};
pub use message::{Body, Message, Request, Wire, decode, encode};
pub use name::{Address, ClusterId, MAX_MAILBOX_NAME_BYTES, MAX_NODE_NAME_BYTES, MailboxName, NameError, NodeName};
pub use peer::{DownReason, MAX_ADDRESSES, PeerEvent, PeerState, PeerStatus};
pub use stats::{PerBatch, Traffic};
#[cfg(feature = "test-net")]
pub use test_net::TestNet;
pub use tls::{Identity, MemoryCa};
pub use typed_mailbox::{Reply, TypedMailbox};
pub use watches::Watch;
