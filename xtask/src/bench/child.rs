//! The processes of a benchmark: started, told what to do line by line, ended with their handle.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::Value;

use super::load::{Kind, Work};
use super::machine::busy_time;
use super::protocols::{Protocol, Role};

/// A process that is killed when this is dropped.
pub struct Killed(pub Child);

impl Killed {
    /// An error if it has ended by itself.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("process {} has ended: {status}", self.0.id()),
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One side of a benchmark: this program again, which is told what to do line by line.
pub struct Peer {
    pub process: Killed,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    role: Role,
}

/// What a server has counted up to a moment.
#[derive(Debug, Clone, Copy)]
pub struct Count {
    pub count: f64,
    pub cpu_us: f64,
    pub now_us: f64,
}

/// One round of one side.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// What the server received, messages or bytes of a stream; or what the client completed.
    pub per_second: f64,
    /// All processes of the side together, for each operation.
    pub cpu_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of all cores; of whoever does not belong to the side.
    pub foreign_share: f64,
}

impl Peer {
    /// Starts this program again as one side.
    pub fn start(
        protocol: Protocol,
        role: Role,
        tls: &Path,
        address: SocketAddr,
        peer: Option<SocketAddr>,
    ) -> Result<Peer> {
        Ok(Self::start_at(protocol, role, tls, address, peer)?.0)
    }

    /// The same; answers when it was ready, too, as it says itself.
    pub fn start_at(
        protocol: Protocol,
        role: Role,
        tls: &Path,
        address: SocketAddr,
        peer: Option<SocketAddr>,
    ) -> Result<(Peer, f64)> {
        let mut arguments: Vec<OsString> = ["--tls".into(), tls.into(), "--address".into()].into();
        arguments.push(address.to_string().into());
        if let Some(peer) = peer {
            arguments.extend(["--peer".into(), peer.to_string().into()]);
        }
        Self::spawn(protocol, role, &arguments)
    }

    /// Starts this program again with further arguments; answers when it was ready, too, as it says itself.
    pub fn spawn(protocol: Protocol, role: Role, arguments: &[OsString]) -> Result<(Peer, f64)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["peer", &value_name(protocol), &value_name(role)]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let mut peer = Peer {
            process: Killed(child),
            input: input.context("no input")?,
            output: BufReader::new(output.context("no output")?),
            role,
        };
        let ready = peer.expect("ready").with_context(|| format!("a {protocol:?} {role:?} did not start"))?;
        let at = ready.split_whitespace().next_back().and_then(|word| word.parse().ok());
        Ok((peer, at.unwrap_or(f64::NAN)))
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    pub fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.input, "{command}")?;
        Ok(self.input.flush()?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let bytes = self.output.read_line(&mut line)?;
        ensure!(bytes > 0, "the {:?} ended; what it said stands above", self.role);
        Ok(line.trim_end().to_owned())
    }

    /// Tells a client to work, and waits until its warm-up is over; `before` stands before the command.
    pub fn begin(&mut self, before: &str, work: Work) -> Result<()> {
        let Work { kind, bytes, tasks, warm_up, measure } = work;
        let kind = value_name::<Kind>(kind);
        let (warm_up, measure) = (warm_up.as_millis(), measure.as_millis());
        self.tell(&format!("{before}work {kind} {bytes} {tasks} {warm_up} {measure}"))?;
        self.expect("begin").map(drop)
    }

    pub fn expect(&mut self, beginning: &str) -> Result<String> {
        let line = self.line()?;
        ensure!(line.starts_with(beginning), "the {:?} said {line:?} instead of {beginning:?}", self.role);
        Ok(line)
    }

    pub fn json(&mut self) -> Result<Value> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("the {:?} said {line:?}", self.role))
    }

    fn count(&mut self) -> Result<Count> {
        self.tell("count")?;
        let answer = self.json()?;
        Ok(Count {
            count: number(&answer, "count")?,
            cpu_us: number(&answer, "cpu_us")?,
            now_us: number(&answer, "now_us")?,
        })
    }
}

/// A client and a server of one protocol.
pub struct Pair {
    pub client: Peer,
    pub server: Peer,
}

impl Pair {
    pub fn start(protocol: Protocol, tls: &Path) -> Result<Pair> {
        let address = free_address()?;
        let server = Peer::start(protocol, Role::Server, tls, address, None)?;
        let client = Peer::start(protocol, Role::Client, tls, address, None)?;
        Ok(Pair { client, server })
    }

    /// One round; `before` stands before the command of the client.
    pub fn round(&mut self, before: &str, work: Work) -> Result<Round> {
        self.client.begin(before, work)?;
        let (busy, start) = (busy_time(), Instant::now());
        let first = self.server.count()?;
        std::thread::sleep(work.measure.saturating_sub(start.elapsed()));
        let last = self.server.count()?;
        let (busy_end, time) = (busy_time(), start.elapsed());
        let client = self.client.json()?;
        let (operations, client_cpu) = (last.count - first.count, number(&client, "cpu_us")?);
        ensure!(operations > 0.0, "the server received nothing");
        let own = (client_cpu + last.cpu_us - first.cpu_us) / 1e6;
        let foreign_share = foreign_share(busy, busy_end, time, own);
        Ok(Round {
            per_second: operations / (last.now_us - first.now_us) * 1e6,
            cpu_us: own * 1e6 / operations,
            p50_us: number(&client, "p50_us")?,
            p99_us: number(&client, "p99_us")?,
            foreign_share,
        })
    }
}

/// The share of the machine that others used between two readings of [`busy_time`], `own` seconds being one's own.
pub fn foreign_share(
    before: Option<(Duration, usize)>,
    after: Option<(Duration, usize)>,
    time: Duration,
    own: f64,
) -> f64 {
    match (before, after) {
        (Some((before, cores)), Some((after, _))) => {
            ((after - before).as_secs_f64() - own) / (time.as_secs_f64() * cores as f64)
        }
        _ => 0.0,
    }
}

/// An address that was free a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

pub fn number(object: &Value, field: &str) -> Result<f64> {
    match object[field].as_f64() {
        Some(number) => Ok(number),
        None => bail!("no number {field:?} in {object}"),
    }
}

fn value_name<V: ValueEnum>(value: V) -> String {
    // Only a skipped value has no name, and none is.
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// How long a round is not measured at its beginning.
pub const WARM_UP: Duration = Duration::from_millis(300);
