//! The rows of raft-fleet: what idle groups cost, how fast they wake, and how a fleet takes the death of a node, a new node and
//! a restart of all. Nothing to compare with does the same: the rows have targets, and no ratios.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::Options;
use super::child::{Peer, free_address, number};
use super::machine::{cpu_time_of, memory_of};
use super::protocols::{self, Protocol, Role};
use super::row::{Rounds, Row};
use super::side::at_most;

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
/// Nodes that make the cluster; the last one joins.
const FOUNDERS: usize = 3;
/// Groups on the nodes where their number is not the point.
const SOME_GROUPS: usize = 60;
/// How long an idle fleet is watched.
const IDLE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);
/// For anything that the nodes bring about by themselves.
const PATIENCE: Duration = Duration::from_secs(180);
/// Sleeping groups that are each asked once.
const WOKEN: usize = 300;

type Group = fn(&Options, &Path) -> Result<Vec<Row>>;

/// All rows.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let tls = tempfile::tempdir().context("no folder for certificates")?;
    protocols::make_certificates(tls.path(), &NODES)?;
    let idle = |options: &Options, tls: &Path| idle(options, tls, 1_000, IDLE_1000, 0.5);
    let more_idle = |options: &Options, tls: &Path| self::idle(options, tls, 10_000, IDLE_10000, 2.0);
    let groups: [(&[&str], Group); 5] = [
        (&IDLE_1000, idle),
        (&["failover-awake", "failover-asleep"], failover),
        (&["join-2000", "join-2000-p99"], join),
        (&["restart-1000"], restart),
        (&IDLE_10000, more_idle),
    ];
    let mut rows = Vec::new();
    for (names, group) in groups.into_iter().filter(|(names, _)| options.wants(names)) {
        println!("{} …", names.join(", "));
        rows.extend(group(options, tls.path())?);
    }
    Ok(rows)
}

const IDLE_1000: [&str; 4] = ["idle-1000", "idle-1000-memory", "idle-1000-first", "idle-1000-one-down"];
const IDLE_10000: [&str; 4] = ["idle-10000", "idle-10000-memory", "idle-10000-first", "idle-10000-one-down"];

/// A fleet in processes; they end with this, before their data goes.
struct FleetOf<'a> {
    tls: &'a Path,
    addresses: Vec<SocketAddr>,
    /// `None`: killed, or not started yet.
    nodes: Vec<Option<Peer>>,
    data: TempDir,
}

impl<'a> FleetOf<'a> {
    fn start(tls: &'a Path) -> Result<Self> {
        let program = std::env::current_exe()?;
        let data = tempfile::tempdir_in(program.parent().context("a program without a folder")?)?;
        let addresses = NODES.iter().map(|_| free_address()).collect::<Result<Vec<_>>>()?;
        let mut fleet = FleetOf { tls, addresses, nodes: NODES.iter().map(|_| None).collect(), data };
        fleet.start_nodes(0..FOUNDERS)?;
        Ok(fleet)
    }

    /// Starts nodes, and waits until they are ready.
    fn start_nodes(&mut self, nodes: std::ops::Range<usize>) -> Result<()> {
        for node in nodes.clone() {
            let mut arguments: Vec<OsString> =
                vec!["--tls".into(), self.tls.into(), "--name".into(), NODES[node].into()];
            arguments.extend(["--address".into(), self.addresses[node].to_string().into()]);
            arguments.extend(["--data".into(), self.directory(node).into()]);
            let expect = if node < FOUNDERS { FOUNDERS } else { 0 };
            arguments.extend(["--groups".into(), expect.to_string().into()]);
            for (name, address) in NODES.iter().zip(&self.addresses).take(FOUNDERS) {
                arguments.extend(["--member".into(), format!("{name}={address}").into()]);
            }
            self.nodes[node] = Some(Peer::spawn(Protocol::Fleet, Role::Server, &arguments)?.0);
        }
        for node in nodes {
            self.tell(node, "ready")?;
        }
        Ok(())
    }

    fn directory(&self, node: usize) -> PathBuf {
        self.data.path().join(NODES[node])
    }

    fn tell(&mut self, node: usize, command: &str) -> Result<Value> {
        self.begin(node, command)?;
        self.end(node)
    }

    fn begin(&mut self, node: usize, command: &str) -> Result<()> {
        self.nodes[node].as_mut().context("it was killed")?.tell(command)
    }

    fn end(&mut self, node: usize) -> Result<Value> {
        self.nodes[node].as_mut().context("it was killed")?.json()
    }

    /// Without a word to anybody.
    fn kill(&mut self, node: usize) {
        self.nodes[node] = None;
    }

    fn running(&self) -> Vec<usize> {
        (0..NODES.len()).filter(|node| self.nodes[*node].is_some()).collect()
    }

    fn process(&self, node: usize) -> Result<u32> {
        Ok(self.nodes[node].as_ref().context("it was killed")?.id())
    }

    /// Waits until all nodes say this of so many groups.
    fn wait(&mut self, what: &str, groups: usize) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let mut counts = Vec::new();
            for node in self.running() {
                counts.push(number(&self.tell(node, &format!("state 0 {groups}"))?, what)?);
            }
            if counts.iter().all(|count| *count == groups as f64) {
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < PATIENCE, "not all of {groups} groups are {what}: {counts:?}");
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until no node takes this one for a leader.
    fn wait_deposed(&mut self, node: usize) -> Result<()> {
        let start = Instant::now();
        for asked in self.running() {
            while led_by(self, asked, node).is_ok() {
                ensure!(start.elapsed() < PATIENCE, "a killed node still leads");
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Percent of a core that the busiest node takes while nothing happens.
    fn idle_cpu(&self) -> Result<f64> {
        let times = |fleet: &Self| -> Result<Vec<Duration>> {
            fleet.running().into_iter().map(|node| Ok(cpu_time_of(fleet.process(node)?))).collect()
        };
        let (start, before) = (Instant::now(), times(self)?);
        std::thread::sleep(IDLE);
        let (time, after) = (start.elapsed(), times(self)?);
        let shares =
            before.iter().zip(after).map(|(before, after)| (after - *before).as_secs_f64() / time.as_secs_f64());
        Ok(shares.fold(0.0, f64::max) * 100.0)
    }

    /// The mean of all nodes, in bytes.
    fn memory(&self) -> Result<f64> {
        let running = self.running();
        let mut sum = 0.0;
        for node in &running {
            sum += memory_of(self.process(*node)?).context("the memory of a process is not known")? as f64;
        }
        Ok(sum / running.len() as f64)
    }
}

fn idle(options: &Options, tls: &Path, groups: usize, names: [&'static str; 4], target: f64) -> Result<Vec<Row>> {
    let mut fleet = FleetOf::start(tls)?;
    let before = fleet.memory()?;
    let added = number(&fleet.tell(0, &format!("add 0 {groups}"))?, "seconds")?;
    let slept = fleet.wait("asleep", groups)?;
    println!("  {groups} groups added in {added:.1} s, asleep after {:.1} s more", slept.as_secs_f64());
    let mut memory = Rounds::default();
    memory.add((fleet.memory()? - before) / groups as f64 / 1e3, None);
    let (mut cpu, mut one_down, mut first) = (Rounds::default(), Rounds::default(), Rounds::default());
    let rounds = options.rounds.min(3);
    for round in 0..rounds {
        cpu.add(fleet.idle_cpu()?, None);
        let from = (round as usize * WOKEN) % (groups - WOKEN);
        let woken = fleet.tell(1, &format!("one-by-one {from} {}", from + WOKEN))?;
        println!("  {:.2} % of a core; the first commands: {woken}", cpu.median());
        first.add(number(&woken, "p99_ms")?, None);
        fleet.wait("asleep", groups)?;
    }
    fleet.kill(2);
    let start = Instant::now();
    fleet.wait_deposed(2)?;
    fleet.wait("led", groups)?;
    let led = start.elapsed();
    let slept = fleet.wait("asleep", groups)?;
    println!(
        "  a node was killed: all led after {:.1} s, asleep after {:.1} s more",
        led.as_secs_f64(),
        slept.as_secs_f64()
    );
    for _ in 0..rounds {
        one_down.add(fleet.idle_cpu()?, None);
    }
    Ok(vec![
        Row::alone(names[0], "% of a core", &cpu, at_most(target)),
        Row::alone(names[1], "KB/replica", &memory, at_most(160.0)),
        Row::alone(names[2], "ms p99", &first, at_most(5.0)),
        Row::alone(names[3], "% of a core", &one_down, at_most(target)),
    ])
}

/// A leader's node is killed: the longest time without an answer of a client that never pauses, and of one whose group slept.
fn failover(options: &Options, tls: &Path) -> Result<Vec<Row>> {
    let mut fleet = FleetOf::start(tls)?;
    fleet.tell(0, &format!("add 0 {SOME_GROUPS}"))?;
    let (mut awake, mut asleep) = (Rounds::default(), Rounds::default());
    for round in 0..options.rounds {
        for is_awake in [true, false] {
            fleet.wait("placed", SOME_GROUPS)?;
            fleet.wait("asleep", SOME_GROUPS)?;
            let group = led_by(&mut fleet, 0, 2)?;
            let took = if is_awake {
                fleet.begin(0, &format!("load {group} {} 1 4000", group + 1))?;
                std::thread::sleep(Duration::from_secs(1));
                fleet.kill(2);
                fleet.end(0)?
            } else {
                fleet.kill(2);
                fleet.tell(0, &format!("one-by-one {group} {}", group + 1))?
            };
            let gap = number(&took, "max_ms")?;
            println!("  round {round}, {}: {gap:.0} ms", if is_awake { "awake" } else { "asleep" });
            if is_awake { &mut awake } else { &mut asleep }.add(gap, None);
            fleet.start_nodes(2..3)?;
            // Leaders go back to their places.
            let start = Instant::now();
            while led_by(&mut fleet, 0, 2).is_err() {
                ensure!(start.elapsed() < PATIENCE, "the node that returned leads nothing");
                std::thread::sleep(LOOK);
            }
        }
    }
    Ok(vec![
        Row::alone("failover-awake", "ms", &awake, at_most(700.0)),
        Row::alone("failover-asleep", "ms", &asleep, at_most(700.0)),
    ])
}

/// A group that one node leads, as another one knows.
fn led_by(fleet: &mut FleetOf<'_>, asked: usize, leader: usize) -> Result<u64> {
    let answer = fleet.tell(asked, &format!("led-by {}", NODES[leader]))?;
    answer["groups"].as_array().and_then(|groups| groups.first()?.as_u64()).context("it leads nothing")
}

/// A fourth node joins three with 2,000 groups, of which some are written to all the time.
fn join(_: &Options, tls: &Path) -> Result<Vec<Row>> {
    const GROUPS: usize = 2_000;
    const CLIENTS: usize = 16;
    let mut fleet = FleetOf::start(tls)?;
    fleet.tell(0, &format!("add 0 {GROUPS}"))?;
    fleet.wait("placed", GROUPS)?;
    let load = format!("load 0 {CLIENTS} {CLIENTS}");
    fleet.tell(0, &format!("{load} 2000"))?;
    let before = number(&fleet.tell(0, &format!("{load} 10000"))?, "p99_ms")?;
    let start = Instant::now();
    fleet.start_nodes(3..4)?;
    let mut during = 0.0_f64;
    // The clients are asked between two looks.
    while fleet.running().len() < NODES.len() || !is_placed(&mut fleet, GROUPS)? {
        ensure!(start.elapsed() < PATIENCE * 2, "not all groups are where four nodes want them");
        during = during.max(number(&fleet.tell(0, &format!("{load} 5000"))?, "p99_ms")?);
    }
    let took = start.elapsed().as_secs_f64();
    println!("  in place after {took:.1} s; p99 {before:.1} ms before, {during:.1} ms meanwhile");
    let (mut seconds, mut p99, mut p99_before) = (Rounds::default(), Rounds::default(), Rounds::default());
    seconds.add(took, None);
    p99.add(during, None);
    p99_before.add(before, None);
    Ok(vec![
        Row::alone("join-2000", "s", &seconds, at_most(60.0)),
        Row::against("join-2000-p99", "ms", &p99, ("before", &p99_before), at_most(3.0)),
    ])
}

fn is_placed(fleet: &mut FleetOf<'_>, groups: usize) -> Result<bool> {
    let state = fleet.tell(3, &format!("state 0 {groups}"))?;
    Ok(number(&state, "placed")? == groups as f64 && number(&state, "nodes")? == NODES.len() as f64)
}

/// All nodes are killed, and started again: when have 99 % of the groups answered?
fn restart(options: &Options, tls: &Path) -> Result<Vec<Row>> {
    const GROUPS: usize = 1_000;
    let mut fleet = FleetOf::start(tls)?;
    fleet.tell(0, &format!("add 0 {GROUPS}"))?;
    let entries = options.entries / GROUPS;
    let filled = number(&fleet.tell(0, &format!("fill 0 {GROUPS} {entries}"))?, "seconds")?;
    println!("  {entries} entries in each of {GROUPS} groups: {filled:.0} s");
    let mut seconds = Rounds::default();
    for _ in 0..options.rounds.min(3) {
        for node in 0..FOUNDERS {
            fleet.kill(node);
        }
        let start = Instant::now();
        fleet.start_nodes(0..FOUNDERS)?;
        let ready = start.elapsed().as_secs_f64();
        let answered = fleet.tell(0, &format!("ask 0 {GROUPS}"))?;
        let took = ready + number(&answered, "p99_ms")? / 1e3;
        println!("  ready after {ready:.1} s, 99 % have answered after {took:.1} s: {answered}");
        seconds.add(took, None);
    }
    Ok(vec![Row::alone("restart-1000", "s", &seconds, at_most(10.0))])
}
