//! What can go wrong, one enum per operation, with the values that explain it.
//!
//! The question that matters to a caller is always the same: can it have happened? [`SendError`] means
//! that it cannot; [`CallError::Lost`], [`CallError::Timeout`] and [`CallError::Unanswered`] that it can.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::name::{ClusterId, NameError, NodeName};

/// Why a node's certificate, its key or the CA could not be made or read.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The name is no node's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A file could not be read or written.
    #[error("{action} {path}: {source}")]
    File {
        /// "read", "write", "create".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is missing that cannot be made here.
    #[error("{path} is missing: {hint}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// A file does not hold what its name says.
    #[error("{path} holds no usable {what}: {reason}")]
    Content {
        /// The file, or "memory".
        path: PathBuf,
        /// "certificate", "private key".
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Others than its owner can use a key.
    #[error("the key {path} is open to others (mode {mode:04o}), and is not used: chmod 600 {path}")]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The name would make the node's files and the CA's the same.
    #[error("a node cannot be called {name}: ca.pem and ca.key are the CA's files; choose another name")]
    Reserved {
        /// The name.
        name: NodeName,
    },
    /// The certificate is for somebody else.
    #[error("the certificate in {path} is for {found:?}, not for {expected}: issue one for {expected}")]
    OtherName {
        /// The file.
        path: PathBuf,
        /// The names in it.
        found: Vec<String>,
        /// The name that was asked for.
        expected: NodeName,
    },
    /// The certificate is not by this CA, or not valid now.
    #[error("the certificate of {name} is not accepted by the CA in ca.pem: {reason}; issue it again with that CA")]
    NotIssued {
        /// Whose certificate.
        name: NodeName,
        /// What the check said.
        reason: String,
    },
    /// The CA exists already and is never overwritten.
    #[error("{path} exists already: a CA is never overwritten; remove it only when every node gets a new certificate")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Certificates or keys could not be made.
    #[error("making a certificate failed: {reason}")]
    Issue {
        /// What the library said.
        reason: String,
    },
}

/// Why an endpoint could not be made.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another socket has the port.
    #[error("{address} is in use: stop the process that has it, or choose another port")]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The socket could not be made.
    #[error("cannot listen on {address}: {source}")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity cannot be used for TLS.
    #[error("the identity cannot be used: {reason}")]
    Tls {
        /// What rustls said.
        reason: String,
    },
    /// There is no runtime to run on.
    #[error("an endpoint is made inside a tokio runtime, and there is none here")]
    NoRuntime,
}

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{setting} = {given}: allowed is {allowed}")]
pub struct ConfigError {
    /// The setting.
    pub setting: &'static str,
    /// What was given.
    pub given: String,
    /// What is allowed.
    pub allowed: String,
}

/// Why a connection was turned away. Both sides read the same text, so it says "this node" of nobody.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The two speak different versions.
    #[error("protocol version {given} was heard where {spoken} is spoken: bring both nodes to one release")]
    OtherVersion {
        /// The version of who was turned away.
        given: u16,
        /// The version of who says so.
        spoken: u16,
    },
    /// The two belong to different clusters.
    #[error(
        "the node that dialled belongs to cluster {given}, the one that was dialled to {own}: \
         check the addresses, or wipe the node that is wrong"
    )]
    OtherCluster {
        /// The cluster of the node that dialled.
        given: ClusterId,
        /// The cluster of the node that was dialled.
        own: ClusterId,
    },
    /// One of them claims a name that its certificate does not have.
    #[error(
        "a node calls itself {claimed}, and its certificate is for {certified:?}: only one for {claimed} allows that"
    )]
    WrongName {
        /// The name in the hello.
        claimed: String,
        /// The names in the certificate.
        certified: Vec<String>,
    },
    /// Both have one name.
    #[error("the node that dialled and the one that was dialled are both called {name}: every node needs its own name")]
    OwnName {
        /// The name.
        name: NodeName,
    },
    /// There is a connection between the two already.
    #[error("there is a connection already, and that one stays")]
    Duplicate,
    /// Too many connections or peers at once.
    #[error("too busy to take another connection now")]
    Busy,
    /// The node goes down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// What it said is no hello.
    #[error("the hello makes no sense: {0}")]
    Malformed(String),
    /// A reason that this version does not know, as text.
    #[error("refused (code {code}): {reason}")]
    Other {
        /// The number on the wire.
        code: u8,
        /// The text on the wire.
        reason: String,
    },
}

/// Why no connection to an address came about.
#[derive(Debug, Clone, Error)]
pub enum ConnectError {
    /// Nothing answered.
    #[error("{address} does not answer within {after:?}: is the node running, and is the address right?")]
    Timeout {
        /// Who was dialled.
        address: SocketAddr,
        /// How long.
        after: Duration,
    },
    /// TLS or QUIC failed: an unknown CA, a plain client, a closed connection.
    #[error("{address}: {reason}")]
    Handshake {
        /// Who was dialled.
        address: SocketAddr,
        /// What was said.
        reason: String,
    },
    /// Somebody else lives there.
    #[error("{address} is {found:?}, not {expected}: correct the address of {expected}")]
    WrongName {
        /// Who was dialled.
        address: SocketAddr,
        /// The names in its certificate.
        found: Vec<String>,
        /// Who was expected.
        expected: NodeName,
    },
    /// The other side said no.
    #[error("{address} refused: {refusal}")]
    Refused {
        /// Who was dialled.
        address: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// The answer to the hello makes no sense.
    #[error("{address} answered the hello with something else: {reason}")]
    Malformed {
        /// Who was dialled.
        address: SocketAddr,
        /// What is wrong.
        reason: String,
    },
    /// This endpoint is shut down.
    #[error("this endpoint is shut down")]
    ShutDown,
}

/// Why bytes from a peer are no batch or no frame. The connection is closed with this as its reason.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The stream does not hold batches.
    #[error("a batch begins with {given:#06x} instead of {expected:#06x}")]
    Magic {
        /// What stands there.
        given: u16,
        /// What should.
        expected: u16,
    },
    /// A later version of the format.
    #[error("batch version {given} is not known, {known} is")]
    Version {
        /// What stands there.
        given: u8,
        /// What is known.
        known: u8,
    },
    /// A compression that is not known.
    #[error("compression {given} is not known here")]
    Compression {
        /// What stands there.
        given: u8,
    },
    /// A length that is over its limit.
    #[error("{what} of {given} bytes: at most {max} are allowed")]
    Length {
        /// Of what.
        what: &'static str,
        /// What stands there.
        given: u64,
        /// The limit.
        max: u64,
    },
    /// A compressed batch that is not what it says.
    #[error("a compressed batch cannot be unpacked: {0}")]
    Compressed(&'static str),
    /// The lengths in a batch do not add up.
    #[error("the frames of a batch do not fill it: {0}")]
    Shape(&'static str),
    /// A kind of frame that is not known.
    #[error("frame kind {0} is not known")]
    Kind(u8),
    /// A mailbox's name that is none.
    #[error("a mailbox's name is not one")]
    MailboxName,
}

/// A value that could not be put into bytes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the message cannot be encoded: {reason}")]
pub struct EncodeError {
    /// What rkyv said.
    pub reason: String,
}

/// Bytes that are not the value that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Another message's number.
    #[error("message type {given} was received where {expected} was expected")]
    OtherType {
        /// The number that was received.
        given: u32,
        /// The number that was asked for.
        expected: u32,
    },
    /// The check of the bytes failed.
    #[error("the bytes are no {what}: {reason}")]
    Invalid {
        /// The type that was asked for.
        what: &'static str,
        /// What rkyv said.
        reason: String,
    },
}

/// Why a message was not sent. It has certainly not arrived.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SendError {
    /// Nobody of this name is known.
    #[error("{peer} is not known: give its address with set_peer")]
    UnknownPeer {
        /// Whom.
        peer: NodeName,
    },
    /// There is no connection now.
    #[error("{peer} is not connected{}", last_error.as_ref().map(|e| format!(" ({e})")).unwrap_or_default())]
    NotConnected {
        /// Whom.
        peer: NodeName,
        /// Why the last attempt failed, when one did.
        last_error: Option<String>,
    },
    /// The bytes waiting for this peer are at their bound.
    #[error("{max_queued_bytes} bytes wait for {peer} already: slow down, or wait with send")]
    Full {
        /// Whom.
        peer: NodeName,
        /// The bound.
        max_queued_bytes: usize,
    },
    /// Too many calls wait for this peer's answers.
    #[error("{max_calls} calls to {peer} are pending already")]
    TooManyCalls {
        /// Whom.
        peer: NodeName,
        /// The bound.
        max_calls: usize,
    },
    /// The message is over the limit.
    #[error("the message has {given_bytes} bytes, at most {max_bytes} are allowed: send it in bulk")]
    TooLarge {
        /// Its size.
        given_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The value could not be put into bytes.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The receiver has no such mailbox.
    #[error("{node} has no mailbox {mailbox}")]
    UnknownMailbox {
        /// The receiver.
        node: NodeName,
        /// The mailbox.
        mailbox: String,
    },
    /// The receiver's mailbox is full.
    #[error("the mailbox {mailbox} of {node} is full")]
    MailboxFull {
        /// The receiver.
        node: NodeName,
        /// The mailbox.
        mailbox: String,
    },
    /// The receiver takes no messages of this type, or cannot read them.
    #[error("the mailbox {mailbox} of {node} does not understand the message: compare the types on both sides")]
    NotUnderstood {
        /// The receiver.
        node: NodeName,
        /// The mailbox.
        mailbox: String,
    },
    /// This endpoint is shut down.
    #[error("this endpoint is shut down")]
    ShutDown,
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CallError {
    /// The request did not reach a handler: it has certainly not happened.
    #[error("not sent: {0}")]
    NotSent(#[from] SendError),
    /// No answer came in time. It may have happened, and may still.
    #[error("{peer} did not answer within {after:?}; the request may have been handled")]
    Timeout {
        /// Whom.
        peer: NodeName,
        /// The timeout.
        after: Duration,
    },
    /// The connection went down while the answer was awaited. It may have happened.
    #[error("the connection to {peer} was lost; the request may have been handled")]
    Lost {
        /// Whom.
        peer: NodeName,
    },
    /// The receiver took the request and gave it up without an answer. It may have happened.
    #[error("{peer} gave the request up without an answer; it may have been handled")]
    Unanswered {
        /// Whom.
        peer: NodeName,
    },
    /// The answer is not of the type that was expected. It has happened.
    #[error("the answer cannot be read: {0}")]
    Decode(#[from] DecodeError),
}

impl CallError {
    /// Whether the request may have been handled.
    pub fn is_unknown(&self) -> bool {
        !matches!(self, CallError::NotSent(_))
    }
}

/// The endpoint has ended, and no state of a peer changes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the endpoint whose peers are watched is shut down")]
pub struct WatchEnded;

/// Why a mailbox could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MailboxError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is one of this name.
    #[error("the mailbox {name} exists already: drop the other one first")]
    Exists {
        /// The name.
        name: String,
    },
    /// A capacity of zero or absurdly much.
    #[error("a mailbox holds 1 to {max} messages, not {given}")]
    Capacity {
        /// What was given.
        given: usize,
        /// What is allowed.
        max: usize,
    },
    /// This endpoint is shut down.
    #[error("this endpoint is shut down")]
    ShutDown,
}

/// Why a bulk transfer failed.
#[derive(Debug, Clone, Error)]
pub enum BulkError {
    /// Nobody of this name is known, or nobody knows its address.
    #[error("{peer} is not known: give its address with set_peer")]
    UnknownPeer {
        /// Whom.
        peer: NodeName,
    },
    /// No connection came about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The header is over its limit.
    #[error("the header has {given_bytes} bytes, at most {max_bytes} are allowed")]
    HeaderTooLarge {
        /// Its size.
        given_bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The receiver does not listen for bulk at this mailbox.
    #[error("nobody listens for bulk transfers at {mailbox}")]
    UnknownMailbox {
        /// The mailbox.
        mailbox: String,
    },
    /// The receiver has as many transfers waiting as it allows.
    #[error("the receiver has too many transfers waiting at {mailbox}")]
    Busy {
        /// The mailbox.
        mailbox: String,
    },
    /// The other side gave the transfer up.
    #[error("the transfer was aborted by the other side")]
    Aborted,
    /// The connection went down.
    #[error("the connection was lost: {reason}")]
    Lost {
        /// What was said.
        reason: String,
    },
    /// The transfer did not begin: as many as the receiver allows ran already, or the connection was slow.
    #[error("no transfer could begin within {after:?}: wait until others to this node have ended")]
    Timeout {
        /// How long it waited.
        after: Duration,
    },
    /// What came is no transfer.
    #[error("the other side broke the protocol: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// This endpoint is shut down.
    #[error("this endpoint is shut down")]
    ShutDown,
}
