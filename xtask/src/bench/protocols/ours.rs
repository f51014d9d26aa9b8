//! batched-comm: casts and calls to a mailbox, bulk beside them, and what becomes of a peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use batched_comm::{
    Address, Endpoint, EndpointConfig, Identity, Mailbox, Message, NodeName, PeerEvent, PeerState, Request, Sender,
    rkyv,
};
use bytes::Bytes;
use serde_json::json;

use super::{Client, Counter, PeerOptions, Protocol, Role, do_work, input, now_us, parse, serve_commands, tls};

const MAILBOX: &str = "bench";
/// A cast that finds the mailbox full is lost; this one is deep enough for the flow control to stop the sender first.
const MAILBOX_CAPACITY: usize = 1 << 20;
const BULK: &str = "bulk";
const BULK_BYTES: usize = 64 * 1024 * 1024;
const BULK_PIECE_BYTES: usize = 256 * 1024;
const TIMEOUT: Duration = Duration::from_secs(10);

async fn bind(options: &PeerOptions) -> Result<Endpoint> {
    let identity = Identity::load(&options.tls, tls::name(options.role))?;
    let address = match options.role {
        Role::Server => options.address,
        Role::Client => options.peer.unwrap_or("127.0.0.1:0".parse()?),
    };
    let config = EndpointConfig::new().with_network_thread(options.protocol == Protocol::Ours);
    Ok(Endpoint::bind_with(address, identity, config).await?)
}

pub async fn serve(options: &PeerOptions) -> Result<()> {
    let endpoint = bind(options).await?;
    let counter = Counter::default();
    let mailbox = endpoint.mailbox(MAILBOX, MAILBOX_CAPACITY)?;
    let mut bulk = endpoint.bulk_listener(BULK, 4)?;
    if let Some(peer) = options.peer {
        endpoint.set_peer(&tls::name(Role::Client).parse()?, vec![peer]);
    }
    let swallow = async move {
        while let Some(mut transfer) = bulk.accept().await {
            tokio::spawn(async move {
                while let Ok(Some(_)) = transfer.read_chunk().await {}
                let _ = transfer.reply(b"").await;
            });
        }
    };
    tokio::spawn(swallow);
    tokio::spawn(answer(mailbox, counter.clone()));
    serve_commands(endpoint.local_address(), &counter).await?;
    let peers = endpoint.peers();
    let dropped: u64 = peers.iter().map(|peer| peer.traffic.messages_dropped).sum();
    ensure!(dropped == 0, "{dropped} messages were dropped: what was measured is not what was sent");
    Ok(())
}

async fn answer(mut mailbox: Mailbox, counter: Counter) {
    while let Some(incoming) = mailbox.recv().await {
        counter.add(1);
        if incoming.is_call() {
            let (_, _, body, reply) = incoming.into_parts();
            // Where the caller is gone, nobody misses the answer.
            let _ = reply.map(|reply| reply.reply_bytes(&body));
        }
    }
}

/// The message of a benchmark.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(crate = rkyv)]
struct Payload<const BYTES: usize> {
    bytes: [u8; BYTES],
}

impl<const BYTES: usize> Message for Payload<BYTES> {
    const TYPE: u32 = 1;
}

impl<const BYTES: usize> Request for Payload<BYTES> {
    type Reply = Payload<BYTES>;
}

impl<const BYTES: usize> Payload<BYTES> {
    fn of(body: &[u8]) -> Result<Self> {
        Ok(Payload { bytes: body.try_into().context("another size is expected")? })
    }
}

#[derive(Clone)]
struct Ours {
    endpoint: Endpoint,
    small: Sender<Payload<64>>,
    large: Sender<Payload<1024>>,
}

impl Client for Ours {
    async fn cast(&self, body: &[u8]) -> Result<()> {
        match body.len() {
            64 => self.small.send(&Payload::of(body)?).await?,
            _ => self.large.send(&Payload::of(body)?).await?,
        }
        Ok(())
    }

    async fn call(&self, body: &[u8]) -> Result<()> {
        let answer = self.small.call(&Payload::of(body)?, TIMEOUT).await?;
        ensure!(answer.bytes == body, "the answer is another one");
        Ok(())
    }
}

/// A client that knows some commands more: `work` with bulk beside it, and `watch`.
pub async fn connect(options: &PeerOptions) -> Result<()> {
    let endpoint = bind(options).await?;
    let server: NodeName = tls::name(Role::Server).parse()?;
    endpoint.set_peer(&server, vec![options.address]);
    let to = Address::new(&server, MAILBOX)?;
    let client = Ours { small: endpoint.sender(&to), large: endpoint.sender(&to), endpoint };
    client.call(&[0; 64]).await.context("no connection")?;
    println!("ready {}", client.endpoint.local_address());
    let mut input = input();
    while let Some(line) = input.next_line().await? {
        match line.strip_prefix("bulk ") {
            Some(line) => under_bulk(&client, line).await?,
            None if line == "watch" => watch(&client.endpoint, &server).await?,
            None => do_work(&client, parse(&line)?).await?,
        }
    }
    Ok(())
}

/// Works while bulk transfers, one after the other, go to the same peer.
async fn under_bulk(client: &Ours, line: &str) -> Result<()> {
    let moved = Arc::new(AtomicU64::new(0));
    let transfers = async {
        loop {
            transfer(&client.endpoint, &moved).await?;
        }
    };
    tokio::select! {
        ended = transfers => return ended,
        done = do_work(client, parse(line)?) => done?,
    }
    let moved = moved.load(Ordering::Relaxed);
    ensure!(moved >= BULK_BYTES as u64, "only {moved} bytes went in bulk meanwhile");
    Ok(())
}

async fn transfer(endpoint: &Endpoint, moved: &AtomicU64) -> Result<()> {
    let server: NodeName = tls::name(Role::Server).parse()?;
    let mut sender = endpoint.open_bulk(&Address::new(&server, BULK)?, b"").await?;
    let piece = Bytes::from(vec![7; BULK_PIECE_BYTES]);
    for _ in 0..BULK_BYTES / BULK_PIECE_BYTES {
        sender.write(piece.clone()).await?;
        moved.fetch_add(BULK_PIECE_BYTES as u64, Ordering::Relaxed);
    }
    sender.finish().await?;
    Ok(())
}

/// Says what becomes of the server, until it has gone and come back.
async fn watch(endpoint: &Endpoint, server: &NodeName) -> Result<()> {
    let mut events = endpoint.events();
    let is_up = endpoint.peers().iter().any(|peer| peer.name == *server && matches!(peer.state, PeerState::Up { .. }));
    ensure!(is_up, "the server is not connected");
    println!("watching");
    let mut was_down = false;
    loop {
        let event = events.recv().await?;
        let (what, reason) = match &event {
            PeerEvent::Up { .. } => ("up", String::new()),
            PeerEvent::Suspect { .. } => ("suspect", String::new()),
            PeerEvent::Alive { .. } => ("alive", String::new()),
            PeerEvent::Down { reason, .. } => ("down", reason.to_string()),
        };
        println!("{}", json!({ "event": what, "reason": reason, "now_us": now_us() }));
        was_down |= what == "down";
        if was_down && what == "up" {
            return Ok(());
        }
    }
}
