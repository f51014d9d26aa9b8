//! Endpoints, messages and waiting, for all tests.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use batched_comm::{
    Address, BindError, Endpoint, EndpointConfig, Identity, Mailbox, MemoryCa, Message, PeerEvent, PeerState, Request,
    rkyv,
};
use tokio::net::UdpSocket;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// No test waits longer for anything.
pub const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(crate = rkyv)]
pub struct Note {
    pub number: u64,
    pub text: String,
}

impl Message for Note {
    const TYPE: u32 = 7;
}

impl Request for Note {
    type Reply = Note;
}

pub fn note(number: u64) -> Note {
    Note { number, text: format!("note {number}") }
}

pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub fn ca() -> MemoryCa {
    Identity::in_memory_ca().unwrap()
}

pub async fn bind(ca: &MemoryCa, name: &str) -> Endpoint {
    bind_with(ca, name, EndpointConfig::default()).await
}

pub async fn bind_with(ca: &MemoryCa, name: &str, config: EndpointConfig) -> Endpoint {
    Endpoint::bind_with(any_port(), ca.issue(name).unwrap(), config).await.unwrap()
}

/// Binds a port that a former socket may not have given back yet.
pub async fn bind_again(address: SocketAddr, identity: &Identity) -> Endpoint {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match Endpoint::bind(address, identity.clone()).await {
            Ok(endpoint) => return endpoint,
            Err(BindError::AddressInUse { .. }) if Instant::now() < deadline => {
                sleep(Duration::from_millis(2)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Two endpoints, "a" and "b"; a knows where b is, and they are connected.
pub async fn pair() -> (Endpoint, Endpoint) {
    let ca = ca();
    let (a, b) = (bind(&ca, "a").await, bind(&ca, "b").await);
    connect(&a, &b).await;
    (a, b)
}

pub async fn connect(from: &Endpoint, to: &Endpoint) {
    from.set_peer(to.name(), vec![to.local_address()]);
    eventually("a connection", || is_up(from, to) && is_up(to, from)).await;
}

pub fn is_up(endpoint: &Endpoint, peer: &Endpoint) -> bool {
    let peers = endpoint.peers();
    peers.iter().any(|p| p.name == *peer.name() && matches!(p.state, PeerState::Up { .. }))
}

pub fn at(endpoint: &Endpoint, mailbox: &str) -> Address {
    Address::new(endpoint.name(), mailbox).unwrap()
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "no {what} within {DEADLINE:?}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// What the future gives, within the deadline.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("no {what} within {DEADLINE:?}"))
}

/// The next event for which `wanted` gives something.
pub async fn event<T>(
    events: &mut broadcast::Receiver<PeerEvent>,
    what: &str,
    mut wanted: impl FnMut(PeerEvent) -> Option<T>,
) -> T {
    soon(what, async {
        loop {
            if let Some(found) = wanted(events.recv().await.unwrap()) {
                return found;
            }
        }
    })
    .await
}

/// Answers every call with its own note.
pub fn echo(mut mailbox: Mailbox) {
    tokio::spawn(async move {
        while let Some(incoming) = mailbox.recv().await {
            let note: Note = incoming.decode().unwrap();
            // The caller may be gone.
            let _ = incoming.reply(&note);
        }
    });
}

/// A wire between a dialling endpoint and a target, which can be cut without a word to either.
pub struct Relay {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    is_cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Relay {
        let near = UdpSocket::bind(any_port()).await.unwrap();
        let far = UdpSocket::bind(any_port()).await.unwrap();
        let address = near.local_addr().unwrap();
        let target = Arc::new(Mutex::new(target));
        let is_cut = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(forward(near, far, target.clone(), is_cut.clone()));
        Relay { address, target, is_cut, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn cut(&self, cut: bool) {
        self.is_cut.store(cut, Ordering::SeqCst);
    }

    /// The target has moved, and whoever dials does not see it.
    pub fn aim_at(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(near: UdpSocket, far: UdpSocket, target: Arc<Mutex<SocketAddr>>, is_cut: Arc<AtomicBool>) {
    let (mut there, mut back) = (vec![0; 65_536], vec![0; 65_536]);
    let mut dialler = None;
    loop {
        tokio::select! {
            received = near.recv_from(&mut there) => {
                let Ok((bytes, from)) = received else { continue };
                dialler = Some(from);
                let to = *target.lock().unwrap();
                if !is_cut.load(Ordering::SeqCst) {
                    let _ = far.send_to(&there[..bytes], to).await;
                }
            }
            received = far.recv_from(&mut back) => {
                let Ok((bytes, from)) = received else { continue };
                // What a former target still had to say is lost.
                let passes = from == *target.lock().unwrap() && !is_cut.load(Ordering::SeqCst);
                if let (Some(dialler), true) = (dialler, passes) {
                    let _ = near.send_to(&back[..bytes], dialler).await;
                }
            }
        }
    }
}
