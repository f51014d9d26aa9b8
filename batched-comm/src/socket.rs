//! A UDP socket that can be closed, whoever still holds it.
//!
//! Every handle on a QUIC connection, and so every held end of a bulk transfer, holds the socket. A node
//! that is shut down gives its address back all the same.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// The socket of an endpoint.
#[derive(Debug)]
pub(crate) struct ClosableSocket {
    /// `None` once it was closed: what is sent then is lost, and nothing comes.
    open: RwLock<Option<Arc<dyn AsyncUdpSocket>>>,
    address: SocketAddr,
    max_transmit_segments: usize,
    max_receive_segments: usize,
    may_fragment: bool,
}

impl ClosableSocket {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>) -> io::Result<ClosableSocket> {
        Ok(ClosableSocket {
            address: socket.local_addr()?,
            max_transmit_segments: socket.max_transmit_segments(),
            max_receive_segments: socket.max_receive_segments(),
            may_fragment: socket.may_fragment(),
            open: RwLock::new(Some(socket)),
        })
    }

    /// Closes it; it is gone when what this gives is, which takes as long as calls into it that are running.
    pub(crate) fn close(&self) -> Option<Weak<dyn AsyncUdpSocket>> {
        let open = self.open.write().unwrap_or_else(PoisonError::into_inner).take();
        open.map(|socket| Arc::downgrade(&socket))
    }

    fn open(&self) -> Option<Arc<dyn AsyncUdpSocket>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl AsyncUdpSocket for ClosableSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.open().map_or(Ok(()), |socket| socket.try_send(transmit))
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match self.open() {
            Some(socket) => socket.poll_recv(context, buffers, meta),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        // It can fall while the socket is used.
        self.open().map_or(self.max_transmit_segments, |socket| socket.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.max_receive_segments
    }

    fn may_fragment(&self) -> bool {
        self.may_fragment
    }
}

/// Holds the socket only while it waits.
#[derive(Debug)]
struct Poller {
    socket: Arc<ClosableSocket>,
    waiting: Option<Pin<Box<dyn UdpPoller>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(socket) = self.socket.open() else {
            self.waiting = None;
            return Poll::Ready(Ok(()));
        };
        let waiting = self.waiting.get_or_insert_with(|| socket.create_io_poller());
        let writable = ready!(waiting.as_mut().poll_writable(context));
        self.waiting = None;
        Poll::Ready(writable)
    }
}
