//! A chat between processes: lines from stdin go to everybody who is there, and who comes and goes is shown.
//!
//!     cargo run -p batched-comm --example chat -- n1 127.0.0.1:7101
//!     cargo run -p batched-comm --example chat -- n2 127.0.0.1:7102 127.0.0.1:7101
//!     cargo run -p batched-comm --example chat -- n3 127.0.0.1:7103 127.0.0.1:7101 127.0.0.1:7102
//!
//! It ends with its input, or by Ctrl-C. Certificates are made in the directory `TLS_DIR`, or else in one below
//! the system's directory for temporary files: all processes must use the same.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use batched_comm::{Address, Endpoint, Identity, Message, NodeName, PeerState, PeersWatch, rkyv};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(crate = rkyv)]
struct Line {
    text: String,
}

impl Message for Line {
    const TYPE: u32 = 1;
}

/// The name of everybody's mailbox.
const MAILBOX: &str = "chat";
/// Lines that may wait to be shown, and lines that may wait to be sent.
const MAX_WAITING: usize = 1000;
/// How long the first line waits for those whose addresses were given.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited for an answer from an address, and between two attempts.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const PROBE_INTERVAL: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(listen)) = (arguments.next(), arguments.next()) else {
        return Err("usage: chat NAME OWN_ADDRESS [ADDRESS_OF_ANOTHER ...]".into());
    };
    let others: Vec<SocketAddr> = arguments.map(|address| address.parse()).collect::<Result<_, _>>()?;
    let dir = std::env::var_os("TLS_DIR").map_or_else(|| std::env::temp_dir().join("batched-comm-chat"), Into::into);
    let endpoint = Endpoint::bind(listen.parse()?, Identity::dev(dir, &name)?).await?;
    eprintln!("{name} listens on {}", endpoint.local_address());
    let chatting = chat(&endpoint, others).await;
    // Sends what is still waiting, and says goodbye.
    endpoint.shutdown().await;
    chatting
}

async fn chat(endpoint: &Endpoint, others: Vec<SocketAddr>) -> Result<(), Box<dyn Error>> {
    let mut mailbox = endpoint.typed_mailbox::<Line>(MAILBOX, MAX_WAITING)?;
    let mut peers = endpoint.watch_peers();
    let mut present = BTreeSet::new();
    let (found, mut finding) = mpsc::channel::<()>(1);
    for address in others {
        let (endpoint, found) = (endpoint.clone(), found.clone());
        tokio::spawn(async move {
            find(&endpoint, address).await;
            drop(found);
        });
    }
    drop(found);
    // What comes through a pipe is there at once: others should be, too. Closed when all are found.
    let patience = timeout(PATIENCE, async move { finding.recv().await });
    tokio::pin!(patience);
    let mut waits = true;
    let mut lines = read_lines();
    loop {
        tokio::select! {
            _ = &mut patience, if waits => waits = false,
            line = lines.recv(), if !waits => match line {
                Some(text) => say(endpoint, text).await?,
                None => return Ok(()),
            },
            received = mailbox.recv() => match received {
                Some((from, Line { text }, _)) => println!("{from}: {text}"),
                None => return Ok(()),
            },
            changed = peers.changed() => {
                changed?;
                let now = connected(&mut peers);
                now.difference(&present).for_each(|name| println!("* {name} has joined"));
                present.difference(&now).for_each(|name| println!("* {name} has left"));
                present = now;
            }
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
        }
    }
}

/// Learns who lives at `address` and waits for the connection; from then on, it is kept.
async fn find(endpoint: &Endpoint, address: SocketAddr) {
    loop {
        match endpoint.probe(address, PROBE_TIMEOUT).await {
            Ok(name) => {
                // Where it takes longer, what is said until then does not reach it.
                let _ = endpoint.connected(&name, PATIENCE).await;
                return;
            }
            Err(_) => sleep(PROBE_INTERVAL).await,
        }
    }
}

fn connected(peers: &mut PeersWatch) -> BTreeSet<NodeName> {
    let is_connected = |state: &PeerState| matches!(state, PeerState::Up { .. } | PeerState::Suspect { .. });
    let states = peers.get();
    states.iter().filter(|(_, state)| is_connected(state)).map(|(name, _)| name.clone()).collect()
}

async fn say(endpoint: &Endpoint, text: String) -> Result<(), Box<dyn Error>> {
    // As of now, and not as of the last change that was shown.
    let present = connected(&mut endpoint.watch_peers());
    let to: Result<Vec<_>, _> = present.iter().map(|name| Address::new(name, MAILBOX)).collect();
    for (address, sent) in endpoint.broadcast(&to?, &Line { text }).await {
        if let Err(error) = sent {
            eprintln!("not to {}: {error}", address.node);
        }
    }
    Ok(())
}

/// Reads stdin in a thread of its own, because nothing can interrupt such a read.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(MAX_WAITING);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
