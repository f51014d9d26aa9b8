//! Frames as long as ours over one connection of TLS over TCP, gathered in the same way: senders append to a buffer, one
//! task swaps it and writes it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Client, Counter, PeerOptions, Role, serve_commands, tls};

const PROTOCOL: &[u8] = b"bench";
/// kind u8, zeros, call u64, body_bytes u32, zeros to 32: a frame of ours to a mailbox with a short name has as many.
const HEADER_BYTES: usize = 32;
/// Senders wait beyond this.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// What waits to be written.
#[derive(Default)]
struct Queue {
    buffer: Mutex<Vec<u8>>,
    filled: Notify,
    emptied: Notify,
}

impl Queue {
    /// Waits for room.
    async fn push(&self, call: u64, body: &[u8]) {
        loop {
            let emptied = self.emptied.notified();
            if self.try_push(call, body, MAX_QUEUED_BYTES) {
                return;
            }
            emptied.await;
        }
    }

    fn try_push(&self, call: u64, body: &[u8], max_bytes: usize) -> bool {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.len() >= max_bytes {
            return false;
        }
        let was_empty = buffer.is_empty();
        let mut header = [0; HEADER_BYTES];
        header[8..16].copy_from_slice(&call.to_le_bytes());
        header[16..20].copy_from_slice(&(body.len() as u32).to_le_bytes());
        buffer.extend_from_slice(&header);
        buffer.extend_from_slice(body);
        let padded = buffer.len().next_multiple_of(16);
        buffer.resize(padded, 0);
        drop(buffer);
        if was_empty {
            self.filled.notify_one();
        }
        true
    }

    async fn write(&self, mut to: impl AsyncWrite + Unpin) -> Result<()> {
        let mut batch = Vec::new();
        loop {
            self.filled.notified().await;
            tokio::task::yield_now().await;
            batch.clear();
            std::mem::swap(&mut batch, &mut *self.buffer.lock().unwrap_or_else(PoisonError::into_inner));
            self.emptied.notify_waiters();
            to.write_all(&batch).await?;
            to.flush().await?;
        }
    }
}

/// Reads frames; `each` gets the call's number and the body.
async fn read(mut from: impl AsyncRead + Unpin, mut each: impl FnMut(u64, &[u8])) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut filled = 0;
    loop {
        let bytes = from.read(&mut buffer[filled..]).await?;
        ensure!(bytes > 0, "the connection was closed");
        filled += bytes;
        let mut start = 0;
        while filled - start >= HEADER_BYTES {
            let call = u64::from_le_bytes(buffer[start + 8..start + 16].try_into()?);
            let bytes = u32::from_le_bytes(buffer[start + 16..start + 20].try_into()?) as usize;
            ensure!(bytes <= MAX_BODY_BYTES, "a body of {bytes} bytes");
            let end = (start + HEADER_BYTES + bytes).next_multiple_of(16);
            if end > filled {
                break;
            }
            each(call, &buffer[start + HEADER_BYTES..start + HEADER_BYTES + bytes]);
            start = end;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled == buffer.len() {
            buffer.resize(filled * 2, 0);
        }
    }
}

pub async fn serve(options: &PeerOptions) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::server(&options.tls, PROTOCOL)?));
    let listener = TcpListener::bind(options.address).await?;
    let counter = Counter::default();
    let address = listener.local_addr()?;
    tokio::spawn(accept(listener, acceptor, counter.clone()));
    serve_commands(address, &counter).await
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, counter: Counter) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let Ok(stream) = acceptor.accept(stream).await else { continue };
        let (from, to) = tokio::io::split(stream);
        let (queue, counter) = (Arc::new(Queue::default()), counter.clone());
        let answers = queue.clone();
        tokio::spawn(async move { queue.write(to).await });
        tokio::spawn(read(from, move |call, body| {
            counter.add(1);
            if call > 0 {
                answers.try_push(call, body, usize::MAX);
            }
        }));
    }
}

#[derive(Clone)]
pub struct Tcp {
    queue: Arc<Queue>,
    calls: Arc<Calls>,
}

#[derive(Default)]
struct Calls {
    last: AtomicU64,
    pending: Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>,
}

pub async fn connect(options: &PeerOptions) -> Result<Tcp> {
    let connector = TlsConnector::from(Arc::new(tls::client(&options.tls, PROTOCOL)?));
    let stream = TcpStream::connect(options.address).await?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(tls::name(Role::Server).try_into()?, stream).await?;
    let (from, to) = tokio::io::split(stream);
    let client = Tcp { queue: Arc::default(), calls: Arc::default() };
    let (queue, calls) = (client.queue.clone(), client.calls.clone());
    tokio::spawn(async move { queue.write(to).await });
    tokio::spawn(read(from, move |call, body| {
        let caller = calls.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&call);
        // Nobody gives a call up here.
        let _ = caller.map(|caller| caller.send(body.to_vec()));
    }));
    Ok(client)
}

impl Client for Tcp {
    async fn cast(&self, body: &[u8]) -> Result<()> {
        self.queue.push(0, body).await;
        Ok(())
    }

    async fn call(&self, body: &[u8]) -> Result<()> {
        let (caller, answer) = oneshot::channel();
        let call = self.calls.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.calls.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(call, caller);
        self.queue.push(call, body).await;
        let answer = answer.await.context("the connection was closed")?;
        ensure!(answer == body, "the answer is another one");
        Ok(())
    }
}
