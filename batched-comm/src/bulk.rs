//! Large transfers, on a second connection that is made on demand. **A format.**
//!
//! On the lane they would take a call's p50 from microseconds to tens of milliseconds. One transfer is one
//! bidirectional stream:
//!
//! ```text
//! there: version u8 | mailbox_bytes u8 | 0 u16 | header_bytes u32, mailbox, header, the bytes, FIN
//! back:  status u8 | 0 u8 x3 | reply_bytes u32, reply, FIN
//! ```
//!
//! A transfer that is given up is *reset* on both sides, so that its receiver never takes half of it for
//! the whole: only FIN is an end.

mod connections;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::MAX_MESSAGE_BYTES;
use crate::error::{BulkError, MailboxError};
use crate::link::describe;
use crate::name::{MailboxName, NodeName};
use connections::Use;

pub(crate) use connections::BulkLink;

/// A transfer's header is at most this long.
pub const MAX_BULK_HEADER_BYTES: usize = 64 * 1024;

/// A listener has at most this many transfers waiting.
pub const MAX_BULK_BACKLOG: usize = 1024;

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 8;
/// The most that is handed out at once.
const MAX_CHUNK_BYTES: usize = 256 * 1024;
/// Chunks on their way between two ends in one process.
const LOCAL_CHUNKS: usize = 8;
/// How long the header of a transfer may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The code of a stream that was given up.
const ABORTED: VarInt = VarInt::from_u32(1);

/// What the receiver says in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Done = 0,
    UnknownMailbox = 1,
    Busy = 2,
    Malformed = 3,
}

/// The sending end of a transfer. Dropping it before `finish` cancels the transfer: what is on its way is
/// thrown away, and the receiver learns at once that it was given up.
#[derive(Debug)]
pub struct BulkSender {
    way: SenderWay,
    mailbox: MailboxName,
    /// A write is under way, or was given up or failed: nobody knows how much of its chunk has left.
    writing: bool,
    /// The reply of a receiver that did not need the rest.
    early: Option<Bytes>,
    sent_bytes: u64,
}

#[derive(Debug)]
enum SenderWay {
    Remote { send: SendStream, recv: RecvStream, _use: Use },
    Local { chunks: Option<mpsc::Sender<LocalChunk>>, reply: oneshot::Receiver<Bytes> },
}

/// What goes between two ends in one process; without `End`, a closed channel is a transfer given up.
#[derive(Debug)]
enum LocalChunk {
    Bytes(Bytes),
    End,
}

impl BulkSender {
    fn new(way: SenderWay, mailbox: MailboxName) -> BulkSender {
        BulkSender { way, mailbox, writing: false, early: None, sent_bytes: 0 }
    }

    /// How many bytes of the transfer the writes so far have taken, the header not counted. The last few
    /// megabytes of them may still be on their way; all have arrived when `finish` gives the reply.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Sends `chunk`, waiting while the receiver is slower. Chunks may arrive cut differently. Once the
    /// receiver has replied, chunks are ignored: `finish` gives its reply. A future that is dropped before its
    /// end gives the transfer up.
    ///
    /// # Errors
    /// When the receiver refused or gave up, the connection is lost, or the transfer was given up.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), BulkError> {
        if self.early.is_some() {
            return Ok(());
        }
        if std::mem::replace(&mut self.writing, true) {
            self.give_up();
            return Err(BulkError::Aborted);
        }
        let chunk_bytes = chunk.len() as u64;
        self.early = self.way.write(chunk, &self.mailbox).await?;
        self.writing = false;
        if self.early.is_none() {
            self.sent_bytes += chunk_bytes;
        }
        Ok(())
    }

    /// Says that this was all, and waits for the receiver's reply.
    ///
    /// # Errors
    /// When the receiver refused or gave up, the connection is lost, or a write was given up: the transfer may
    /// have arrived.
    pub async fn finish(mut self) -> Result<Bytes, BulkError> {
        if let Some(reply) = self.early.take() {
            return Ok(reply);
        }
        if self.writing {
            self.give_up();
            return Err(BulkError::Aborted);
        }
        match &mut self.way {
            SenderWay::Remote { send, recv, .. } => {
                // Fails when the receiver has stopped reading; its reply says why.
                let _ = send.finish();
                read_reply(recv, &self.mailbox).await
            }
            SenderWay::Local { chunks, reply } => {
                if let Some(chunks) = chunks {
                    // Fails when the receiver is gone; then there is no reply either.
                    let _ = chunks.send(LocalChunk::End).await;
                }
                reply.await.map_err(|_| BulkError::Aborted)
            }
        }
    }

    /// Never an end that looks like one: what has come to the receiver is not the whole.
    fn give_up(&mut self) {
        match &mut self.way {
            SenderWay::Remote { send, recv, .. } => {
                // Fails when this was done, or has ended, before.
                let _ = send.reset(ABORTED);
                let _ = recv.stop(ABORTED);
            }
            SenderWay::Local { chunks, .. } => *chunks = None,
        }
    }
}

impl SenderWay {
    /// Gives the reply of a receiver that does not want any more.
    async fn write(&mut self, chunk: Bytes, mailbox: &MailboxName) -> Result<Option<Bytes>, BulkError> {
        match self {
            SenderWay::Remote { send, recv, .. } => match send.write_chunk(chunk).await {
                Ok(()) => Ok(None),
                // Whoever stops reading may have said why.
                Err(WriteError::Stopped(_)) => read_reply(recv, mailbox).await.map(Some),
                Err(error) => Err(write_error(error)),
            },
            SenderWay::Local { chunks: Some(chunks), reply } => match chunks.send(LocalChunk::Bytes(chunk)).await {
                Ok(()) => Ok(None),
                Err(_) => reply.await.map(Some).map_err(|_| BulkError::Aborted),
            },
            SenderWay::Local { chunks: None, .. } => Err(BulkError::Aborted),
        }
    }
}

impl Drop for BulkSender {
    fn drop(&mut self) {
        // Dropping alone would finish the stream, and half a transfer would look whole. After `finish` and
        // its reply, nothing is left to reset.
        self.give_up();
    }
}

/// The receiving end of a transfer. Dropping it without a reply cancels the transfer: the sender learns at once
/// that it was given up.
#[derive(Debug)]
pub struct BulkReceiver {
    /// The node that sends.
    pub from: NodeName,
    /// What the sender says of the transfer.
    pub header: Bytes,
    way: ReceiverWay,
    ended: bool,
    /// Why no more comes. QUIC tells it once, and says "end" from then on.
    failed: Option<BulkError>,
    received_bytes: u64,
}

#[derive(Debug)]
enum ReceiverWay {
    Remote { send: SendStream, recv: RecvStream, replied: bool },
    Local { chunks: mpsc::Receiver<LocalChunk>, reply: Option<oneshot::Sender<Bytes>> },
}

impl BulkReceiver {
    fn new(from: NodeName, header: Bytes, way: ReceiverWay) -> BulkReceiver {
        BulkReceiver { from, header, way, ended: false, failed: None, received_bytes: 0 }
    }

    /// How many bytes of the transfer were read so far.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// The next bytes; `None` after the last ones. Chunks come in order, cut as it suits QUIC.
    ///
    /// # Errors
    /// When the sender gave up or the connection is lost: what has come is not the whole.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, BulkError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.ended {
            return Ok(None);
        }
        let read = match &mut self.way {
            ReceiverWay::Remote { recv, .. } => {
                let read = recv.read_chunk(MAX_CHUNK_BYTES, true).await;
                read.map(|chunk| chunk.map(|chunk| chunk.bytes)).map_err(read_error)
            }
            ReceiverWay::Local { chunks, .. } => match chunks.recv().await {
                Some(LocalChunk::Bytes(bytes)) => Ok(Some(bytes)),
                Some(LocalChunk::End) => Ok(None),
                None => Err(BulkError::Aborted),
            },
        };
        match &read {
            Ok(Some(chunk)) => self.received_bytes += chunk.len() as u64,
            Ok(None) => self.ended = true,
            Err(error) => self.failed = Some(error.clone()),
        }
        read
    }

    /// Replies, which ends the transfer; what was not read is thrown away.
    ///
    /// # Errors
    /// When the sender or the connection is gone, or the reply is over 8 MiB.
    pub async fn reply(mut self, reply: &[u8]) -> Result<(), BulkError> {
        let ended = self.ended;
        match &mut self.way {
            ReceiverWay::Remote { send, recv, replied } => {
                *replied = true;
                if !ended {
                    let _ = recv.stop(ABORTED);
                }
                write_reply(send, Status::Done, reply).await
            }
            ReceiverWay::Local { reply: sender, .. } => {
                let sender = sender.take().ok_or(BulkError::Aborted)?;
                sender.send(Bytes::copy_from_slice(reply)).map_err(|_| BulkError::Aborted)
            }
        }
    }
}

impl Drop for BulkReceiver {
    fn drop(&mut self) {
        if let ReceiverWay::Remote { send, recv, replied: false } = &mut self.way {
            let _ = send.reset(ABORTED);
            let _ = recv.stop(ABORTED);
        }
    }
}

/// Takes the transfers that are sent to its name. Dropping it gives the name back.
#[derive(Debug)]
pub struct BulkListener {
    name: MailboxName,
    incoming: mpsc::Receiver<BulkReceiver>,
    registry: Arc<BulkRegistry>,
}

impl BulkListener {
    /// The next transfer; `None` when the endpoint is shut down.
    pub async fn accept(&mut self) -> Option<BulkReceiver> {
        self.incoming.recv().await
    }
}

impl Drop for BulkListener {
    fn drop(&mut self) {
        self.incoming.close();
        let mut listeners = self.registry.lock();
        if listeners.by_name.get(&self.name).is_some_and(mpsc::Sender::is_closed) {
            listeners.by_name.remove(&self.name);
        }
    }
}

/// The listeners of an endpoint.
#[derive(Debug, Default)]
pub(crate) struct BulkRegistry {
    listeners: Mutex<Listeners>,
}

#[derive(Debug, Default)]
struct Listeners {
    by_name: HashMap<MailboxName, mpsc::Sender<BulkReceiver>>,
    /// No more are taken.
    closed: bool,
}

impl BulkRegistry {
    pub(crate) fn register(self: &Arc<Self>, name: &str, capacity: usize) -> Result<BulkListener, MailboxError> {
        let name: MailboxName = name.parse()?;
        if capacity == 0 || capacity > MAX_BULK_BACKLOG {
            return Err(MailboxError::Capacity { given: capacity, max: MAX_BULK_BACKLOG });
        }
        let mut listeners = self.lock();
        if listeners.closed {
            return Err(MailboxError::ShutDown);
        }
        if listeners.by_name.contains_key(&name) {
            return Err(MailboxError::Exists { name: name.to_string() });
        }
        let (sender, incoming) = mpsc::channel(capacity);
        listeners.by_name.insert(name.clone(), sender);
        Ok(BulkListener { name, incoming, registry: self.clone() })
    }

    /// No listener takes any more, and none is made.
    pub(crate) fn close(&self) {
        *self.lock() = Listeners { by_name: HashMap::new(), closed: true };
    }

    /// A transfer within this process.
    pub(crate) fn open_local(
        &self,
        own: &NodeName,
        mailbox: &MailboxName,
        header: &[u8],
    ) -> Result<BulkSender, BulkError> {
        check_header(header)?;
        let (chunks, incoming) = mpsc::channel(LOCAL_CHUNKS);
        let (reply_sender, reply) = oneshot::channel();
        let way = ReceiverWay::Local { chunks: incoming, reply: Some(reply_sender) };
        let header = Bytes::copy_from_slice(header);
        let receiver = BulkReceiver::new(own.clone(), header, way);
        match self.deliver(mailbox, receiver) {
            Ok(()) => {
                let way = SenderWay::Local { chunks: Some(chunks), reply };
                Ok(BulkSender::new(way, mailbox.clone()))
            }
            Err((_, status)) => Err(refused(status, mailbox)),
        }
    }

    fn deliver(&self, mailbox: &MailboxName, receiver: BulkReceiver) -> Result<(), (Box<BulkReceiver>, Status)> {
        let listeners = self.lock();
        let Some(listener) = listeners.by_name.get(mailbox) else {
            return Err((Box::new(receiver), Status::UnknownMailbox));
        };
        listener.try_send(receiver).map_err(|error| match error {
            mpsc::error::TrySendError::Full(receiver) => (Box::new(receiver), Status::Busy),
            mpsc::error::TrySendError::Closed(receiver) => (Box::new(receiver), Status::UnknownMailbox),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the transfers of one connection until it ends.
pub(crate) async fn serve(connection: quinn::Connection, from: NodeName, registry: Arc<BulkRegistry>) {
    let mut transfers = JoinSet::new();
    // As many at once as QUIC allows streams.
    while let Ok((send, recv)) = connection.accept_bi().await {
        while transfers.try_join_next().is_some() {}
        transfers.spawn(receive(send, recv, from.clone(), registry.clone()));
    }
}

async fn receive(mut send: SendStream, mut recv: RecvStream, from: NodeName, registry: Arc<BulkRegistry>) {
    let (mailbox, header) = match timeout(HEADER_TIMEOUT, read_header(&mut recv)).await {
        Ok(Ok(read)) => read,
        Ok(Err(BulkError::Malformed { reason })) => {
            tracing::warn!(peer = %from, reason, "a bulk transfer was refused");
            let _ = recv.stop(ABORTED);
            let _ = write_reply(&mut send, Status::Malformed, reason.as_bytes()).await;
            return;
        }
        Ok(Err(_)) | Err(_) => {
            let _ = send.reset(ABORTED);
            let _ = recv.stop(ABORTED);
            return;
        }
    };
    let way = ReceiverWay::Remote { send, recv, replied: false };
    let receiver = BulkReceiver::new(from, header, way);
    if let Err((mut receiver, status)) = registry.deliver(&mailbox, receiver)
        && let ReceiverWay::Remote { send, recv, replied } = &mut receiver.way
    {
        *replied = true;
        // The reply first: the sender looks for it when it is stopped.
        let _ = write_reply(send, status, b"").await;
        let _ = recv.stop(ABORTED);
    }
}

fn check_header(header: &[u8]) -> Result<(), BulkError> {
    if header.len() <= MAX_BULK_HEADER_BYTES {
        return Ok(());
    }
    Err(BulkError::HeaderTooLarge { given_bytes: header.len(), max_bytes: MAX_BULK_HEADER_BYTES })
}

async fn read_header(recv: &mut RecvStream) -> Result<(MailboxName, Bytes), BulkError> {
    let malformed = |reason: String| BulkError::Malformed { reason };
    let mut fixed = [0; FIXED_BYTES];
    recv.read_exact(&mut fixed).await.map_err(read_exact_error)?;
    if fixed[0] != VERSION {
        return Err(malformed(format!("version {} is not known, {VERSION} is", fixed[0])));
    }
    let header_bytes = u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]) as usize;
    if header_bytes > MAX_BULK_HEADER_BYTES {
        return Err(malformed(format!(
            "a header of {header_bytes} bytes: at most {MAX_BULK_HEADER_BYTES} are allowed"
        )));
    }
    let mut name = vec![0; usize::from(fixed[1])];
    recv.read_exact(&mut name).await.map_err(read_exact_error)?;
    let name = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok());
    let name = name.ok_or_else(|| malformed("the mailbox's name is not one".into()))?;
    let mut header = vec![0; header_bytes];
    recv.read_exact(&mut header).await.map_err(read_exact_error)?;
    Ok((name, header.into()))
}

async fn write_reply(send: &mut SendStream, status: Status, reply: &[u8]) -> Result<(), BulkError> {
    if reply.len() > MAX_MESSAGE_BYTES {
        let _ = send.reset(ABORTED);
        let reason = format!("a reply of {} bytes: at most {MAX_MESSAGE_BYTES}", reply.len());
        return Err(BulkError::Malformed { reason });
    }
    let mut fixed = [status as u8, 0, 0, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&(reply.len() as u32).to_le_bytes());
    send.write_all(&fixed).await.map_err(write_error)?;
    send.write_all(reply).await.map_err(write_error)?;
    send.finish().map_err(|_| BulkError::Aborted)
}

async fn read_reply(recv: &mut RecvStream, mailbox: &MailboxName) -> Result<Bytes, BulkError> {
    let mut fixed = [0; FIXED_BYTES];
    recv.read_exact(&mut fixed).await.map_err(read_exact_error)?;
    let reply_bytes = u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]) as usize;
    if reply_bytes > MAX_MESSAGE_BYTES {
        return Err(BulkError::Malformed { reason: format!("a reply of {reply_bytes} bytes") });
    }
    let reply = recv.read_to_end(reply_bytes).await.map_err(|error| match error {
        quinn::ReadToEndError::Read(error) => read_error(error),
        quinn::ReadToEndError::TooLong => BulkError::Malformed { reason: "the reply is longer than it says".into() },
    })?;
    match fixed[0] {
        0 if reply.len() == reply_bytes => Ok(reply.into()),
        0 => Err(BulkError::Malformed { reason: "the reply is shorter than it says".into() }),
        1 => Err(refused(Status::UnknownMailbox, mailbox)),
        2 => Err(refused(Status::Busy, mailbox)),
        _ => Err(BulkError::Malformed { reason: String::from_utf8_lossy(&reply).into_owned() }),
    }
}

fn refused(status: Status, mailbox: &MailboxName) -> BulkError {
    let mailbox = mailbox.to_string();
    match status {
        Status::UnknownMailbox => BulkError::UnknownMailbox { mailbox },
        Status::Busy => BulkError::Busy { mailbox },
        Status::Done | Status::Malformed => BulkError::Aborted,
    }
}

fn write_error(error: WriteError) -> BulkError {
    match error {
        WriteError::ConnectionLost(error) => BulkError::Lost { reason: describe(&error) },
        WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => BulkError::Aborted,
    }
}

fn read_error(error: quinn::ReadError) -> BulkError {
    match error {
        quinn::ReadError::ConnectionLost(error) => BulkError::Lost { reason: describe(&error) },
        quinn::ReadError::Reset(_)
        | quinn::ReadError::ClosedStream
        | quinn::ReadError::IllegalOrderedRead
        | quinn::ReadError::ZeroRttRejected => BulkError::Aborted,
    }
}

fn read_exact_error(error: quinn::ReadExactError) -> BulkError {
    match error {
        quinn::ReadExactError::FinishedEarly(_) => BulkError::Aborted,
        quinn::ReadExactError::ReadError(error) => read_error(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_not_made_after_the_end_when_nobody_would_end_it() {
        let registry = Arc::new(BulkRegistry::default());
        registry.close();
        assert!(matches!(registry.register("late", 1), Err(MailboxError::ShutDown)));
    }
}
