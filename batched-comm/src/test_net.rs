//! A simulated network, for tests of this crate and of what is built on it (feature `test-net`).
//!
//! [`Endpoint::bind_in`](crate::Endpoint::bind_in) gives a node in it: the same type, with real QUIC and real
//! TLS, whose datagrams go through memory instead of a socket. Addresses are made up. Links have delay, jitter,
//! loss and duplicates; they can be cut, also in one direction; nodes vanish without a goodbye.
//!
//! All of it lives by tokio's clock. Under `#[tokio::test(start_paused = true)]` hours pass in no time, and a
//! delay is what it says (rounded up to tokio's milliseconds), however slow the machine.
//!
//! ```
//! # use std::time::Duration;
//! # use batched_comm::{Endpoint, EndpointConfig, Identity, test_net::{Link, TestNet}};
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
//! # runtime.block_on(async {
//! let net = TestNet::new(7);
//! net.set_default_link(Link::with_delay(Duration::from_millis(10)..Duration::from_millis(30)));
//! let ca = Identity::in_memory_ca()?;
//! let (at_a, at_b) = ("10.0.0.1:1".parse()?, "10.0.0.2:1".parse()?);
//! let a = Endpoint::bind_in(&net, at_a, ca.issue("a")?, EndpointConfig::new()).await?;
//! let b = Endpoint::bind_in(&net, at_b, ca.issue("b")?, EndpointConfig::new()).await?;
//! a.set_peer(b.name(), vec![at_b]);
//! let mut events = a.events();
//! println!("{:?}", events.recv().await?); // up
//! net.cut(at_a, at_b);
//! println!("{:?}", events.recv().await?); // suspect
//! println!("{:?}", events.recv().await?); // down: dead
//! net.heal(at_a, at_b);
//! println!("{:?}", events.recv().await?); // up again
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a seed reproduces
//!
//! From the seed come every delay, loss and duplicate, and for each node its instance number, its waits before
//! dialling, its connection ids, and what QUIC draws. Not reproducible are the keys and signatures of TLS
//! (a signature's length can differ by a byte or two, and with it a datagram's), the order in which
//! `tokio::select!` looks at branches that are ready at the same moment, and on a runtime of several threads
//! the order of tasks. One datagram more or less shifts all that is drawn after it. So a seed is a sample, not
//! a recording: what a test does by a seed of its own comes at the same times again, but a long and busy run
//! takes another course each time. Repeat a seed that failed until it fails again.

mod socket;
mod state;
mod flows;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::AsyncUdpSocket;

use crate::clock;
use crate::tls::Identity;
use socket::NetSocket;
use state::State;

/// Nodes that a network may have at once.
pub const MAX_NODES: usize = 4096;
/// Datagrams that may be on their way to one node; what comes beyond is lost, as in a full socket buffer.
pub const MAX_DATAGRAMS_IN_FLIGHT: usize = 8192;
/// A longer datagram is lost: an Ethernet frame holds no more.
pub const MAX_DATAGRAM_BYTES: usize = 1472;

/// A network in memory; clones are one network. See the [module](self).
#[derive(Clone)]
pub struct TestNet {
    state: Arc<Mutex<State>>,
}

/// What one direction between two nodes does to datagrams.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// How long a datagram is on its way: drawn anew for each, so that a wide range puts them out of order.
    /// An empty range is a fixed delay, its start.
    pub delay: Range<Duration>,
    /// How likely a datagram is lost: 0 to 1.
    pub loss: f64,
    /// How likely a datagram arrives twice: 0 to 1.
    pub duplicates: f64,
}

impl Default for Link {
    /// One millisecond, nothing lost.
    fn default() -> Link {
        let delay = Duration::from_millis(1);
        Link { delay: delay..delay, loss: 0.0, duplicates: 0.0 }
    }
}

impl Link {
    /// A link that loses nothing.
    pub fn with_delay(delay: Range<Duration>) -> Link {
        Link { delay, ..Link::default() }
    }

    /// The same with loss, 0 to 1.
    #[must_use]
    pub fn with_loss(self, loss: f64) -> Link {
        Link { loss, ..self }
    }

    /// The same with duplicates, 0 to 1.
    #[must_use]
    pub fn with_duplicates(self, duplicates: f64) -> Link {
        Link { duplicates, ..self }
    }
}

/// What went through a network since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetTraffic {
    /// Datagrams that nodes sent.
    pub sent: u64,
    /// Datagrams that nodes received, duplicates among them.
    pub delivered: u64,
    /// Datagrams that were lost: by a link, a cut, a full queue, or because nobody is there.
    pub lost: u64,
    /// Datagrams that were sent once and put on their way twice.
    pub duplicated: u64,
    /// QUIC handshakes that were begun.
    pub handshakes: u64,
}

impl TestNet {
    /// A network without nodes, whose chance is that of `seed`.
    pub fn new(seed: u64) -> TestNet {
        TestNet { state: Arc::new(Mutex::new(State::new(seed))) }
    }

    /// Sets what all links do that were not set on their own. For datagrams that are sent from now on.
    pub fn set_default_link(&self, link: Link) {
        self.state().set_default_link(link);
    }

    /// Sets what the link from one node to another does; the other direction stays as it is.
    pub fn set_link(&self, from: SocketAddr, to: SocketAddr, link: Link) {
        self.state().set_link(from, to, link);
    }

    /// Lets nothing pass between two nodes, nor arrive what is on its way.
    pub fn cut(&self, a: SocketAddr, b: SocketAddr) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Lets nothing pass in one direction.
    pub fn cut_one_way(&self, from: SocketAddr, to: SocketAddr) {
        self.state().cut(from, to);
    }

    /// Undoes cuts between two nodes, in both directions. What was lost stays lost.
    pub fn heal(&self, a: SocketAddr, b: SocketAddr) {
        let mut state = self.state();
        state.heal(a, b);
        state.heal(b, a);
    }

    /// Cuts each group off from all the others. Nodes in no group go on with everybody; cuts within a group
    /// stay as they are.
    pub fn partition(&self, groups: &[&[SocketAddr]]) {
        let mut state = self.state();
        for (index, group) in groups.iter().enumerate() {
            let others = groups.iter().enumerate().filter(|(other, _)| *other != index).flat_map(|(_, other)| *other);
            for to in others {
                group.iter().for_each(|from| state.cut(*from, *to));
            }
        }
    }

    /// Undoes all cuts.
    pub fn heal_all(&self) {
        self.state().heal_all();
    }

    /// Ends the connections that stand between two nodes, and lets new ones come about: as a middlebox does that
    /// has lost its table. Nothing passes over them any more, and both nodes receive what a restarted peer would
    /// send, a stateless reset. Whoever dialled believes it at once and dials anew; whoever was dialled has no
    /// token to believe it by, and notices by the new connection or by silence.
    pub fn drop_connections(&self, a: SocketAddr, b: SocketAddr) {
        let now = clock::now();
        let mut state = self.state();
        let wakers = [state.drop_connections(now, a, b), state.drop_connections(now, b, a)];
        drop(state);
        wakers.into_iter().flatten().for_each(std::task::Waker::wake);
    }

    /// Takes a node off the network without a goodbye: nothing it sends arrives, nothing reaches it, and its
    /// address can be bound again. The endpoint itself goes on, unheard, until it is dropped.
    pub fn crash(&self, address: SocketAddr) {
        self.state().crash(address);
    }

    /// What went through so far.
    pub fn traffic(&self) -> NetTraffic {
        self.state().traffic()
    }

    /// A socket at `address` (port 0: any free one), and a seed for whoever uses it.
    pub(crate) fn bind(&self, address: SocketAddr, identity: &Identity) -> io::Result<(Arc<dyn AsyncUdpSocket>, u64)> {
        let (number, address, seed) = self.state().bind(address, identity.reset_key())?;
        Ok((Arc::new(NetSocket::new(self.state.clone(), number, address)), seed))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl fmt::Debug for TestNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TestNet({:?})", self.traffic())
    }
}

/// Nothing panics under this lock.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
