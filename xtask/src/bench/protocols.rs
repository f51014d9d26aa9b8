//! One side of a benchmark in a process of its own: reads commands on its standard input, answers on its output.
//!
//! ```text
//!   server:  --> "ready ADDRESS"         "count" --> {"count", "cpu_us", "now_us"}
//!   client:  --> "ready"                 "work KIND BYTES TASKS WARM_MS MS" --> "begin", {"operations", ...}
//! ```
//!
//! A node answers `count` with what its replicas and its log have done.
//!
//! It ends when its input does, and so with whoever started it.

mod fleet;
mod in_process;
mod shard;
mod raft;
mod etcd;
mod openraft_alone;
mod grpc;
mod ours;
mod streams;
mod tcp;
mod tls;

pub use shard::{KEYS as SHARD_KEYS, VALUE_BYTES as SHARD_VALUE_BYTES};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::runtime::{Builder, Runtime};

use super::load::{Client, Kind, Work, closed_loops};
use super::machine::own_cpu_time;

#[derive(clap::Args)]
pub struct PeerOptions {
    protocol: Protocol,
    role: Role,
    /// The folder with the certificates
    #[arg(long, default_value = ".")]
    tls: PathBuf,
    /// Where to listen, or whom to connect to
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// Where the other side is, for protocols in which both dial
    #[arg(long)]
    peer: Option<SocketAddr>,
    /// This node's name, where there are several
    #[arg(long, default_value = "")]
    name: String,
    /// The folder of a node's data
    #[arg(long)]
    data: Option<PathBuf>,
    /// The nodes that replicate, once for each
    #[arg(long = "member", value_name = "NAME=ADDRESS")]
    members: Vec<MemberAddress>,
    /// Raft groups on these nodes; of a fleet, how many nodes make it, 0 for one that joins
    #[arg(long, default_value_t = 1)]
    groups: usize,
}

/// A node that replicates: `NAME=ADDRESS`.
#[derive(Debug, Clone)]
struct MemberAddress {
    name: String,
    address: SocketAddr,
}

impl FromStr for MemberAddress {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, address) = text.split_once('=').context("NAME=ADDRESS is expected")?;
        Ok(MemberAddress { name: name.to_owned(), address: address.parse()? })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Protocol {
    /// batched-comm
    Ours,
    /// batched-comm, without a thread of its own
    OursAsTask,
    /// A QUIC stream per message or call, with quinn
    Streams,
    /// gRPC with tonic: a unary call per call
    Unary,
    /// gRPC with tonic: a bidirectional stream per caller
    Streaming,
    /// Frames like ours over one connection of TLS over TCP
    Tcp,
    /// rafted-value with its log on disk
    Raft,
    /// rafted-value with a shard of raft-kv in its one group, its log on disk
    Shard,
    /// rafted-value with nothing on disk
    RaftInMemory,
    /// rafted-value with nothing on disk, three replicas in the client's process
    RaftInProcess,
    /// openraft by itself, three nodes in the client's process
    OpenraftAlone,
    /// etcd, whose nodes are its own program
    Etcd,
    /// raft-fleet: a node
    Fleet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Server,
    Client,
}

/// Messages, or pieces of a stream, that a server has received; in a stream, bytes.
#[derive(Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes the certificates of a server and a client, and of nodes of these names.
pub fn make_certificates(folder: &Path, nodes: &[&str]) -> Result<()> {
    tls::make(folder, nodes)
}

/// Runs until the input ends.
pub fn run(options: PeerOptions) -> Result<()> {
    runtime(&options)?.block_on(async {
        match (options.role, options.protocol) {
            (Role::Server, Protocol::Ours | Protocol::OursAsTask) => ours::serve(&options).await,
            (Role::Server, Protocol::Streams) => streams::serve(&options).await,
            (Role::Server, Protocol::Unary | Protocol::Streaming) => grpc::serve(&options).await,
            (Role::Server, Protocol::Tcp) => tcp::serve(&options).await,
            (Role::Server, Protocol::Raft | Protocol::RaftInMemory) => raft::serve(&options).await,
            (Role::Server, Protocol::Shard) => shard::serve(&options).await,
            (Role::Server, Protocol::Fleet) => fleet::serve(&options).await,
            (Role::Client, Protocol::Fleet) => bail!("a fleet is called by its nodes"),
            (Role::Server, Protocol::RaftInProcess | Protocol::OpenraftAlone | Protocol::Etcd) => {
                bail!("this protocol has no server of its own")
            }
            (Role::Client, Protocol::Ours | Protocol::OursAsTask) => ours::connect(&options).await,
            (Role::Client, Protocol::Streams) => work(streams::connect(&options).await?).await,
            (Role::Client, Protocol::Unary) => work(grpc::connect_unary(&options).await?).await,
            (Role::Client, Protocol::Streaming) => work(grpc::connect_streaming(&options).await?).await,
            (Role::Client, Protocol::Tcp) => work(tcp::connect(&options).await?).await,
            (Role::Client, Protocol::Raft | Protocol::RaftInMemory) => raft::connect(&options).await,
            (Role::Client, Protocol::Shard) => shard::connect(&options).await,
            (Role::Client, Protocol::RaftInProcess) => work(in_process::connect().await?).await,
            (Role::Client, Protocol::OpenraftAlone) => work(openraft_alone::connect().await?).await,
            (Role::Client, Protocol::Etcd) => work(etcd::connect(&options).await?).await,
        }
    })
}

/// Where there are four processes for two cores, a thread for each process's network and tasks costs least; that is so for
/// the client of etcd, too. Logs, and what applies commands, have their own threads.
fn runtime(options: &PeerOptions) -> std::io::Result<Runtime> {
    match options.protocol {
        Protocol::Raft | Protocol::Shard | Protocol::RaftInMemory | Protocol::Etcd if options.groups == 1 => {
            Builder::new_current_thread().enable_all().build()
        }
        _ => Runtime::new(),
    }
}

/// A server's answers to its commands.
async fn serve_commands(address: SocketAddr, counter: &Counter) -> Result<()> {
    println!("ready {address} {}", now_us());
    let mut input = input();
    while let Some(line) = input.next_line().await? {
        match line.as_str() {
            "count" => {
                let cpu_us = own_cpu_time().as_secs_f64() * 1e6;
                println!("{}", json!({ "count": counter.get(), "cpu_us": cpu_us, "now_us": now_us() }));
            }
            other => bail!("a server knows no command {other:?}"),
        }
    }
    Ok(())
}

/// A client's answers to its commands.
async fn work<C: Client>(client: C) -> Result<()> {
    println!("ready");
    let mut input = input();
    while let Some(line) = input.next_line().await? {
        let work = parse(&line).with_context(|| format!("no work: {line:?}"))?;
        do_work(&client, work).await?;
    }
    Ok(())
}

async fn do_work<C: Client>(client: &C, work: Work) -> Result<()> {
    let measured = closed_loops(client, work, || println!("begin")).await?;
    println!("{}", measured.to_json());
    Ok(())
}

fn input() -> Lines<BufReader<Stdin>> {
    BufReader::new(tokio::io::stdin()).lines()
}

fn parse(line: &str) -> Result<Work> {
    let words: Vec<_> = line.split_whitespace().collect();
    let ["work", kind, bytes, tasks, warm_up, measure] = words[..] else { bail!("six words are expected") };
    let kind = Kind::from_str(kind, false).map_err(anyhow::Error::msg)?;
    let ms = |text: &str| anyhow::Ok(Duration::from_millis(text.parse()?));
    Ok(Work { kind, bytes: bytes.parse()?, tasks: tasks.parse()?, warm_up: ms(warm_up)?, measure: ms(measure)? })
}

/// The same clock for all processes of a machine.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
