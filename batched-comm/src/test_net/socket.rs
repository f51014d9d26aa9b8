//! The socket of a node in a simulated network. It delivers by a timer of its own: the network has no task.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Sleep, sleep_until};

use super::lock;
use super::state::{Received, State};
use crate::clock;

pub(super) struct NetSocket {
    state: Arc<Mutex<State>>,
    number: u64,
    address: SocketAddr,
    /// Fires when the next datagram arrives.
    arrival: Mutex<Option<Pin<Box<Sleep>>>>,
}

impl NetSocket {
    pub(super) fn new(state: Arc<Mutex<State>>, number: u64, address: SocketAddr) -> NetSocket {
        NetSocket { state, number, address, arrival: Mutex::new(None) }
    }
}

impl Drop for NetSocket {
    fn drop(&mut self) {
        lock(&self.state).close(self.number, self.address);
    }
}

impl fmt::Debug for NetSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetSocket({})", self.address)
    }
}

impl AsyncUdpSocket for NetSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let now = clock::now();
        let segment_bytes = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let mut state = lock(&self.state);
        let wakers: Vec<Waker> = transmit
            .contents
            .chunks(segment_bytes)
            .filter_map(|segment| {
                state.send(now, (self.number, self.address), transmit.destination, segment, transmit.ecn)
            })
            .collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut count = 0;
            let next_arrival = {
                let mut state = lock(&self.state);
                let now = clock::now();
                loop {
                    let (Some(buffer), Some(meta)) = (buffers.get_mut(count), meta.get_mut(count)) else { break None };
                    match state.receive(now, self.number, self.address, context.waker()) {
                        Received::Datagram { from, bytes, ecn } => {
                            // As a system does, what is too long for the buffer is cut off.
                            let len = bytes.len().min(buffer.len());
                            buffer[..len].copy_from_slice(&bytes[..len]);
                            *meta = RecvMeta { addr: from, len, stride: len, ecn, dst_ip: Some(self.address.ip()) };
                            count += 1;
                        }
                        Received::NothingBefore(at) => break at,
                    }
                }
            };
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            let Some(at) = next_arrival else { return Poll::Pending };
            let mut arrival = self.arrival.lock().unwrap_or_else(PoisonError::into_inner);
            let arrival = arrival.get_or_insert_with(|| Box::pin(sleep_until(at.into())));
            if arrival.deadline() != at.into() {
                arrival.as_mut().reset(at.into());
            }
            if arrival.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// What there is no room for is lost.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
