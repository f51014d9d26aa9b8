//! Three processes that replicate, and a client process that loads them: ours, or etcd as it ships.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::child::{Peer, Round, foreign_share, free_address, number};
use super::load::{Kind, Work};
use super::machine::{busy_time, cpu_time_of};
use super::protocols::{Protocol, Role};

/// The nodes' names; the client has a certificate, too.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
const CLIENT: &str = "client";

/// What replicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// rafted-value with so many groups, durable.
    Ours { groups: usize },
    /// rafted-value with a shard of raft-kv in its one group, durable.
    Shard,
    /// rafted-value with its one group in memory.
    InMemory,
    /// rafted-value in memory, all in one process.
    InProcess,
    /// openraft by itself, in memory, all in one process.
    Openraft,
    /// etcd.
    Etcd,
}

/// What the logs of all nodes have done together.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogCount {
    pub entries: f64,
    pub batches: f64,
}

/// A node's process: this program, or the watcher of a foreign one.
enum Node {
    Ours(Peer),
    Etcd { _watcher: Watcher, id: u32, client: SocketAddr },
}

/// A shell that runs a foreign program and ends it when its own input ends.
struct Watcher(Child);

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Nobody is there to be told.
        let _ = self.0.wait();
    }
}

/// The processes of one side; they end with this, before their data goes.
pub struct Cluster {
    client: Peer,
    nodes: Vec<Node>,
    _data: TempDir,
}

/// Whether there is an etcd to start.
pub fn has_etcd() -> Result<bool> {
    match Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) => Ok(status.success()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("etcd cannot be started"),
    }
}

impl Cluster {
    /// Starts all processes, and waits until the client has had an answer.
    pub fn start(side: Side, tls: &Path) -> Result<Cluster> {
        // Beside this program, not among the system's temporary files, which may be in memory: both sides have their
        // data on the same file system.
        let program = std::env::current_exe()?;
        let folder = program.parent().context("a program without a folder")?;
        let data = tempfile::tempdir_in(folder).context("no folder for data")?;
        let (client, nodes) = match side {
            Side::Ours { groups } => ours(Protocol::Raft, groups, tls, data.path())?,
            Side::Shard => ours(Protocol::Shard, 1, tls, data.path())?,
            Side::InMemory => ours(Protocol::RaftInMemory, 1, tls, data.path())?,
            Side::InProcess => (Peer::spawn(Protocol::RaftInProcess, Role::Client, &[])?.0, Vec::new()),
            Side::Openraft => (Peer::spawn(Protocol::OpenraftAlone, Role::Client, &[])?.0, Vec::new()),
            Side::Etcd => etcd(data.path())?,
        };
        Ok(Cluster { client, nodes, _data: data })
    }

    fn process_ids(&self) -> Vec<u32> {
        let nodes = self.nodes.iter().map(|node| match node {
            Node::Ours(peer) => peer.id(),
            Node::Etcd { id, .. } => *id,
        });
        nodes.chain([self.client.id()]).collect()
    }

    /// The CPU time of the nodes together, and of the client, in seconds.
    fn cpu(&self) -> (f64, f64) {
        let times: Vec<_> = self.process_ids().into_iter().map(|id| cpu_time_of(id).as_secs_f64()).collect();
        let (client, nodes) = times.split_last().map_or((0.0, 0.0), |(client, nodes)| (*client, nodes.iter().sum()));
        (nodes, client)
    }

    /// One round, and the client's share of the CPU time per operation in microseconds.
    pub fn round(&mut self, work: Work) -> Result<(Round, f64)> {
        let applied = self.applied()?;
        self.client.begin("", work)?;
        let (busy, start, cpu) = (busy_time(), Instant::now(), self.cpu());
        std::thread::sleep(work.measure.saturating_sub(start.elapsed()));
        let (busy_end, time, cpu_end) = (busy_time(), start.elapsed(), self.cpu());
        let client = self.client.json()?;
        let (operations, seconds) = (number(&client, "operations")?, number(&client, "seconds")?);
        ensure!(operations > 0.0, "the client completed nothing");
        let own = cpu_end.0 - cpu.0 + cpu_end.1 - cpu.1;
        self.check(&applied, operations, work.kind)?;
        let round = Round {
            per_second: operations / seconds,
            cpu_us: own * 1e6 / operations,
            p50_us: number(&client, "p50_us")?,
            p99_us: number(&client, "p99_us")?,
            foreign_share: foreign_share(busy, busy_end, time, own),
        };
        Ok((round, (cpu_end.1 - cpu.1) * 1e6 / operations))
    }

    /// A run with a dead node, or one that does not keep up, does not count.
    fn check(&mut self, before: &[f64], operations: f64, kind: Kind) -> Result<()> {
        for node in &mut self.nodes {
            match node {
                Node::Ours(peer) => peer.process.still_runs()?,
                Node::Etcd { client, .. } => {
                    TcpStream::connect(*client)
                        .with_context(|| format!("etcd at {client} does not listen any more"))?;
                }
            }
        }
        let after = self.applied()?;
        for (before, after) in before.iter().zip(&after).filter(|_| kind == Kind::Write) {
            let applied = after - before;
            ensure!(applied >= operations * 0.9, "a node applied {applied} of {operations} commands: it is behind");
        }
        Ok(())
    }

    /// What each of our nodes has applied.
    fn applied(&mut self) -> Result<Vec<f64>> {
        self.counts()?.iter().map(|count| number(count, "applied")).collect()
    }

    /// What the logs of our nodes have done so far.
    pub fn log_count(&mut self) -> Result<LogCount> {
        let mut sum = LogCount::default();
        for count in self.counts()? {
            sum.entries += number(&count, "entries")?;
            sum.batches += number(&count, "batches")?;
        }
        Ok(sum)
    }

    fn counts(&mut self) -> Result<Vec<serde_json::Value>> {
        self.tell_nodes("count")
    }

    /// Tells our nodes something, one after the other; their answers.
    pub fn tell_nodes(&mut self, command: &str) -> Result<Vec<serde_json::Value>> {
        let tell = |node: &mut Node| match node {
            Node::Ours(peer) => Some(peer.tell(command).and_then(|()| peer.json())),
            Node::Etcd { .. } => None,
        };
        self.nodes.iter_mut().filter_map(tell).collect()
    }

    /// Tells the client something; its answer.
    pub fn tell_client(&mut self, command: &str) -> Result<serde_json::Value> {
        self.client.tell(command)?;
        self.client.json()
    }

    /// The nodes' processes.
    pub fn node_ids(&self) -> Vec<u32> {
        let mut ids = self.process_ids();
        ids.pop();
        ids
    }
}

fn ours(protocol: Protocol, groups: usize, tls: &Path, data: &Path) -> Result<(Peer, Vec<Node>)> {
    let addresses = NODES.iter().map(|name| Ok((*name, free_address()?))).collect::<Result<Vec<_>>>()?;
    let arguments = |name: &str| {
        let mut arguments: Vec<OsString> = vec!["--tls".into(), tls.into(), "--name".into(), name.into()];
        arguments.extend(["--groups".into(), groups.to_string().into()]);
        for (name, address) in &addresses {
            arguments.extend(["--member".into(), format!("{name}={address}").into()]);
        }
        arguments
    };
    let mut nodes = Vec::new();
    for (name, address) in &addresses {
        let mut arguments = arguments(name);
        arguments.extend(["--address".into(), address.to_string().into()]);
        arguments.extend(["--data".into(), data.join(name).into()]);
        nodes.push(Node::Ours(Peer::spawn(protocol, Role::Server, &arguments)?.0));
    }
    let (client, _) = Peer::spawn(protocol, Role::Client, &arguments(CLIENT))?;
    Ok((client, nodes))
}

/// Runs a program until the input ends, and so with whoever holds the other end, however that ends.
const WATCHER: &str = r#""$@" </dev/null >/dev/null 2>&1 & echo $!; cat >/dev/null; kill -9 $!; wait"#;

/// etcd with its defaults, each member a process, without TLS.
fn etcd(data: &Path) -> Result<(Peer, Vec<Node>)> {
    let free = || anyhow::Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?);
    let members = NODES.iter().map(|name| Ok((*name, free()?, free()?))).collect::<Result<Vec<_>>>()?;
    let all: Vec<_> = members.iter().map(|(name, peer, _)| format!("{name}=http://{peer}")).collect();
    let (all, mut nodes) = (all.join(","), Vec::new());
    for (name, peer, client) in &members {
        nodes.push(etcd_node(&data.join(name), name, *peer, *client, &all)?);
    }
    let member =
        |(name, _, client): &(&str, SocketAddr, SocketAddr)| ["--member".into(), format!("{name}={client}").into()];
    let arguments: Vec<OsString> = members.iter().flat_map(member).collect();
    Ok((Peer::spawn(Protocol::Etcd, Role::Client, &arguments)?.0, nodes))
}

fn etcd_node(data: &Path, name: &str, peer: SocketAddr, client: SocketAddr, all: &str) -> Result<Node> {
    let (peer_url, client_url) = (format!("http://{peer}"), format!("http://{client}"));
    let mut command = Command::new("sh");
    command.args(["-c", WATCHER, "watcher", "etcd", "--name", name, "--data-dir"]).arg(data);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
    command.args(["--initial-cluster", all, "--initial-cluster-state", "new", "--logger", "zap"]);
    let mut watcher = Watcher(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    BufReader::new(watcher.0.stdout.take().context("no output")?).read_line(&mut line)?;
    let id = line.trim().parse().with_context(|| format!("the watcher said {line:?}"))?;
    Ok(Node::Etcd { _watcher: watcher, id, client })
}
