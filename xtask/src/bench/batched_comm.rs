//! The rows of batched-comm: against QUIC without batches, gRPC, and TLS over TCP.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Options;
use super::child::{Pair, Peer, Round, WARM_UP, free_address, number};
use super::load::{Kind, Work};
use super::protocols::{self, Protocol, Role};
use super::row::{Rounds, Row};
use super::side::{Measured, at_least, at_most, describe, exactly, undisturbed};

/// Times that a process is stopped, or killed and started.
const FAULTS: u32 = 5;

const CALLERS: usize = 256;
const SENDERS: usize = 64;

/// Measures rows that share their rounds.
type Group<'a> = fn(&mut Bench<'a>) -> Result<Vec<Row>>;

struct Bench<'a> {
    options: &'a Options,
    tls: &'a Path,
    pairs: HashMap<Protocol, RefCell<Pair>>,
}

/// All rows.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let tls = tempfile::tempdir().context("no folder for certificates")?;
    protocols::make_certificates(tls.path(), &[])?;
    let bench = Bench { options, tls: tls.path(), pairs: HashMap::new() };
    bench.rows()
}

impl<'a> Bench<'a> {
    fn rows(mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let groups: [(&[&str], Group<'a>); 7] = [
            (&["cast-64", "cast-64-cpu"], Bench::casts),
            (&["call-256-vs-stream", "call-256-vs-tonic", "call-256-rate", "call-256-p99"], Bench::calls),
            (&["call-1-p50"], Bench::one_caller),
            (&["call-p50-under-bulk"], Bench::under_bulk),
            (&["cast-1024-bytes"], Bench::bytes),
            (&["dead-peer"], Bench::dead_peer),
            (&["restarted-peer"], Bench::restarted_peer),
        ];
        let groups: Vec<_> = groups.into_iter().filter(|(names, _)| self.options.wants(names)).collect();
        for (names, group) in groups {
            println!("{} …", names.join(", "));
            rows.extend(group(&mut self)?);
            // Nobody who is measured shares the machine with who was measured before.
            self.pairs.clear();
        }
        Ok(rows)
    }

    fn work(&self, kind: Kind, bytes: usize, tasks: usize) -> Work {
        let measure = Duration::from_secs_f64(self.options.seconds);
        Work { kind, bytes, tasks, warm_up: WARM_UP, measure }
    }

    /// Takes turns between the sides, and measures each once a round.
    fn interleave(&mut self, sides: &[(Protocol, &str, Work)]) -> Result<Vec<Measured>> {
        for (protocol, _, _) in sides {
            if !self.pairs.contains_key(protocol) {
                self.pairs.insert(*protocol, RefCell::new(Pair::start(*protocol, self.tls)?));
            }
        }
        let mut measured: Vec<_> = sides.iter().map(|_| Measured::default()).collect();
        for _ in 0..self.options.rounds {
            for ((protocol, before, work), measured) in sides.iter().zip(&mut measured) {
                let round = self.round(*protocol, before, *work)?;
                println!("  {protocol:?} {before}{:?}: {}", work.kind, describe(&round));
                measured.add(&round);
            }
        }
        Ok(measured)
    }

    fn round(&self, protocol: Protocol, before: &str, work: Work) -> Result<Round> {
        let pair = self.pairs.get(&protocol).context("not started")?;
        undisturbed(self.options, || pair.borrow_mut().round(before, work))
    }

    fn casts(&mut self) -> Result<Vec<Row>> {
        let work = self.work(Kind::Cast, 64, SENDERS);
        let sides = [Protocol::Ours, Protocol::Streams, Protocol::Tcp].map(|protocol| (protocol, "", work));
        let [ours, streams, tcp] = exactly(self.interleave(&sides)?)?;
        Ok(vec![
            Row::against(
                "cast-64",
                "1/s",
                &ours.per_second,
                ("stream per message", &streams.per_second),
                at_least(6.0),
            ),
            Row::saving("cast-64-cpu", "us", ours.cpu(), ("stream per message", streams.cpu()), at_least(9.0)),
            Row::against("cast-64-vs-tcp", "1/s", &ours.per_second, ("TLS over TCP", &tcp.per_second), None),
        ])
    }

    fn calls(&mut self) -> Result<Vec<Row>> {
        let work = self.work(Kind::Call, 64, CALLERS);
        let protocols = [
            Protocol::Ours,
            Protocol::OursAsTask,
            Protocol::Streams,
            Protocol::Unary,
            Protocol::Streaming,
            Protocol::Tcp,
        ];
        let sides = protocols.map(|protocol| (protocol, "", work));
        let [ours, as_task, streams, unary, streaming, tcp] = exactly(self.interleave(&sides)?)?;
        let rate = &ours.per_second;
        let against =
            |name, peer, theirs: &Measured, target| Row::against(name, "1/s", rate, (peer, &theirs.per_second), target);
        Ok(vec![
            against("call-256-vs-stream", "stream per call", &streams, at_least(10.0)),
            against("call-256-vs-tonic", "tonic unary", &unary, at_least(20.0)),
            against("call-256-vs-tonic-streaming", "tonic streaming", &streaming, None),
            against("call-256-vs-tcp", "TLS over TCP", &tcp, None),
            against("call-256-vs-task", "without its own thread", &as_task, None),
            Row::alone("call-256-rate", "1/s", rate, at_least(1_000_000.0)),
            Row::alone("call-256-p99", "us", &ours.p99_us, at_most(1_000.0)),
        ])
    }

    fn one_caller(&mut self) -> Result<Vec<Row>> {
        let work = self.work(Kind::Call, 64, 1);
        let protocols = [Protocol::Ours, Protocol::OursAsTask, Protocol::Streams, Protocol::Unary, Protocol::Tcp];
        let sides = protocols.map(|protocol| (protocol, "", work));
        let [ours, as_task, streams, unary, tcp] = exactly(self.interleave(&sides)?)?;
        let against = |name, side: &Measured, peer, theirs: &Measured, target| {
            Row::against(name, "us", &side.p50_us, (peer, &theirs.p50_us), target)
        };
        Ok(vec![
            against("call-1-p50", &ours, "stream per call", &streams, at_most(1.1)),
            against("call-1-p50-as-task", &as_task, "stream per call", &streams, None),
            against("call-1-p50-vs-tonic", &ours, "tonic unary", &unary, None),
            against("call-1-p50-vs-tcp", &ours, "TLS over TCP", &tcp, None),
        ])
    }

    fn under_bulk(&mut self) -> Result<Vec<Row>> {
        let work = self.work(Kind::Call, 64, 1);
        let sides = [(Protocol::Ours, "bulk ", work), (Protocol::Ours, "", work)];
        let [under_bulk, idle] = exactly(self.interleave(&sides)?)?;
        let row = Row::against("call-p50-under-bulk", "us", &under_bulk.p50_us, ("idle", &idle.p50_us), at_most(4.0));
        Ok(vec![row])
    }

    fn bytes(&mut self) -> Result<Vec<Row>> {
        let ours = (Protocol::Ours, "", self.work(Kind::Cast, 1024, SENDERS));
        let stream = (Protocol::Streams, "", self.work(Kind::Stream, 64 * 1024, 1));
        let [ours, stream] = exactly(self.interleave(&[ours, stream])?)?;
        // A message counts as one, a stream counts its bytes.
        let ours = ours.per_second.scaled(1024.0 / 1e6);
        let stream = stream.per_second.scaled(1.0 / 1e6);
        Ok(vec![Row::against("cast-1024-bytes", "MB/s", &ours, ("one raw stream", &stream), at_least(0.7))])
    }

    fn dead_peer(&mut self) -> Result<Vec<Row>> {
        let mut times = Rounds::default();
        for _ in 0..FAULTS {
            let (server, mut client, _) = self.watched()?;
            let stopped = now_us();
            signal(&server, Signal::Stop)?;
            let noticed = client.event("down")?;
            signal(&server, Signal::Continue)?;
            times.add((noticed - stopped) / 1e3, None);
        }
        Ok(vec![Row::alone("dead-peer", "ms", &times, at_most(1_200.0))])
    }

    fn restarted_peer(&mut self) -> Result<Vec<Row>> {
        let mut times = Rounds::default();
        for _ in 0..FAULTS {
            let (server, mut client, [server_at, client_at]) = self.watched()?;
            drop(server);
            let (server, ready) = Peer::start_at(Protocol::Ours, Role::Server, self.tls, server_at, Some(client_at))?;
            let noticed = client.event("down")?;
            times.add(((noticed - ready) / 1e3).max(0.0), None);
            client.event("up")?;
            drop(server);
        }
        Ok(vec![Row::alone("restarted-peer", "ms", &times, at_most(50.0))])
    }

    /// A server, and a client that tells what becomes of it; each knows where the other is, as nodes of a cluster do.
    fn watched(&self) -> Result<(Peer, Peer, [SocketAddr; 2])> {
        let (server_at, client_at) = (free_address()?, free_address()?);
        let server = Peer::start(Protocol::Ours, Role::Server, self.tls, server_at, Some(client_at))?;
        let mut client = Peer::start(Protocol::Ours, Role::Client, self.tls, server_at, Some(client_at))?;
        client.tell("watch")?;
        client.expect("watching")?;
        Ok((server, client, [server_at, client_at]))
    }
}

enum Signal {
    Stop,
    Continue,
}

#[cfg(unix)]
fn signal(peer: &Peer, signal: Signal) -> Result<()> {
    let process = i32::try_from(peer.id()).ok().and_then(rustix::process::Pid::from_raw).context("no process")?;
    let signal = match signal {
        Signal::Stop => rustix::process::Signal::STOP,
        Signal::Continue => rustix::process::Signal::CONT,
    };
    Ok(rustix::process::kill_process(process, signal)?)
}

#[cfg(not(unix))]
fn signal(_peer: &Peer, _signal: Signal) -> Result<()> {
    anyhow::bail!("a process can be stopped on Unix only: leave this row out with --only")
}

impl Peer {
    /// When the next event of this name happened.
    fn event(&mut self, wanted: &str) -> Result<f64> {
        loop {
            let event = self.json()?;
            if event["event"] == wanted {
                return number(&event, "now_us");
            }
        }
    }
}

fn now_us() -> f64 {
    protocols::now_us() as f64
}
