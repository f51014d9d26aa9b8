//! Real processes, real faults, and a history that is checked: `cargo xtask chaos`.
//!
//! ```text
//! clients   add 1 to counters, write and read keys, each with its own: every reply is compared with what must be there
//! faults    from the seed: kill, start, pause (a partition that no timeout tells from a death), kill all, wipe, drain and join
//! the end   all nodes run; every group is led, on its replicas; idle, nobody is elected; all values are as acknowledged
//! ```
//!
//! A command whose outcome is unknown is sent again under its number until the outcome is known, so that a reply says
//! exactly how often each command ran: one lost makes it too small, one that ran twice too large.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    client::{Client, Outcome, Request},
    command::Which,
    nodes::Nodes,
    signals,
};

/// The fewest nodes of which one may be wiped while the others hold all groups.
pub const MIN_NODES: u64 = 4;
/// Shards of the keyspace, each a group.
const SHARDS: usize = 200;
const KEYSPACE: &str = "chaos";
const QUOTA: &str = "chaos";
/// Threads that each count on their own counters and keys.
const CLIENTS: usize = 8;
const KEYS_PER_CLIENT: usize = 32;
/// Each client works on so many of its keys for so long, and then on the next ones.
const KEYS_AT_ONCE: u64 = 4;
const TURN_SECONDS: u64 = 4;
/// Between two faults.
const PAUSES: (u64, u64) = (1_000, 5_000);
/// How long a node is down or stopped.
const ABSENCES: (u64, u64) = (200, 6_000);
/// For what the nodes bring about by themselves.
const PATIENCE: Duration = Duration::from_secs(240);
const LOOK: Duration = Duration::from_millis(500);
/// Without a fault, for so long, nobody may be elected.
const CALM: Duration = Duration::from_secs(20);
/// Errors that are shown.
const MAX_SHOWN: usize = 10;

/// Where a run's faults come from (SplitMix64: Steele, Lea and Flood, 2014): a seed in a message is enough.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }

    fn between(&mut self, (lower, upper): (u64, u64)) -> Duration {
        Duration::from_millis(lower + self.below(upper - lower))
    }
}

/// What happens to the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    /// SIGKILL, and a start a while later.
    Kill(String),
    KillAll,
    /// SIGSTOP, and SIGCONT a while later.
    Pause(String),
    /// Killed, removed from the cluster, its directory deleted: it joins as new.
    Wipe(String),
    /// Drained until it holds nothing, then stopped and wiped: it joins as new.
    Drain(String),
}

fn choose(random: &mut Random, names: &[String]) -> Fault {
    let name = names[random.below(names.len() as u64) as usize].clone();
    match random.below(12) {
        0..5 => Fault::Kill(name),
        5..9 => Fault::Pause(name),
        9 => Fault::KillAll,
        10 => Fault::Wipe(name),
        _ => Fault::Drain(name),
    }
}

/// What the clients have done, and what was wrong.
#[derive(Default)]
struct Tally {
    commands: AtomicU64,
    writes: AtomicU64,
    reads: AtomicU64,
    /// Answers that said that the outcome is unknown.
    unknown: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    fn wrong(&self, what: String) {
        eprintln!("WRONG: {what}");
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
}

/// Runs faults for so long; an error if anything was lost, doubled, stale, or did not come back to its place.
pub fn run(nodes: &mut Nodes, client: &Client, directory: &Path, seed: u64, time: Duration) -> Result<()> {
    nodes.start(&Which::All, client)?;
    put(client, &format!("/v1/quotas/{QUOTA}"), r#"{"limit":null}"#)?;
    let policy = format!(r#"{{"min_shards":{SHARDS},"max_shards":{SHARDS},"replicas":3}}"#);
    put(client, &format!("/v1/keyspaces/{KEYSPACE}"), &policy)?;
    settle(nodes, client)?;
    println!("{} nodes, {SHARDS} shards, seed {seed}", nodes.names().len());
    let (tally, stop) = (Tally::default(), AtomicBool::new(false));
    let mut usage = vec![Usage::of(nodes, directory)];
    let (faults, counting) = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (tally, stop) = (&tally, &stop);
                scope.spawn(move || Counting::new(client, tally, seed, number).run(stop))
            })
            .collect();
        let result = torment(nodes, client, directory, &mut Random(seed), time, &mut usage);
        if let Err(error) = &result {
            eprintln!("FAILED: {error:#}");
        }
        stop.store(true, Ordering::SeqCst);
        (result, clients.into_iter().filter_map(|client| client.join().ok()).collect::<Vec<_>>())
    });
    let faults = faults?;
    ensure!(counting.len() == CLIENTS, "a client has panicked");
    settle(nodes, client)?;
    stay_calm(client)?;
    // Once more, of groups that sleep: the last commands, too, must have run once.
    thread::scope(|scope| counting.into_iter().for_each(|client| drop(scope.spawn(move || client.last_round()))));
    usage.push(Usage::of(nodes, directory));
    report(&tally, &faults, &usage)
}

/// One fault after the other; how many there were of each kind.
fn torment(
    nodes: &mut Nodes,
    client: &Client,
    directory: &Path,
    random: &mut Random,
    time: Duration,
    usage: &mut Vec<Usage>,
) -> Result<BTreeMap<&'static str, u32>> {
    let start = Instant::now();
    let names = nodes.names();
    let mut faults = BTreeMap::new();
    while start.elapsed() < time {
        let fault = choose(random, &names);
        println!("{:>6.1} s  {fault:?}", start.elapsed().as_secs_f64());
        let kind = bring_about(nodes, client, directory, random, &fault).with_context(|| format!("at {fault:?}"))?;
        *faults.entry(kind).or_default() += 1;
        nodes.check_alive()?;
        if start.elapsed().as_secs() / 60 >= usage.len() as u64 {
            usage.push(Usage::of(nodes, directory));
        }
        wait(random.between(PAUSES))?;
    }
    Ok(faults)
}

fn bring_about(
    nodes: &mut Nodes,
    client: &Client,
    directory: &Path,
    random: &mut Random,
    fault: &Fault,
) -> Result<&'static str> {
    let absence = random.between(ABSENCES);
    match fault {
        Fault::Kill(name) => {
            nodes.kill(&Which::One(name.clone()), client)?;
            wait(absence)?;
            nodes.start(&Which::One(name.clone()), client)?;
            Ok("killed")
        }
        Fault::KillAll => {
            nodes.kill(&Which::All, client)?;
            nodes.start(&Which::All, client)?;
            Ok("all killed")
        }
        Fault::Pause(name) => {
            nodes.pause(name, client)?;
            wait(absence)?;
            nodes.resume(name, client)?;
            Ok("paused")
        }
        Fault::Wipe(name) => {
            // Every group has two others that have all: one more may then be lost for good.
            settle(nodes, client)?;
            nodes.kill(&Which::One(name.clone()), client)?;
            until("the dead node may be removed", || remove(client, name))?;
            rejoin(nodes, client, directory, name)?;
            Ok("wiped")
        }
        Fault::Drain(name) => {
            settle(nodes, client)?;
            // What may have happened shows in the nodes.
            drop(client.send(&Request::post(format!("/v1/nodes/{name}/drain"), b""), || false));
            until("the drained node is gone", || Ok(!nodes_of(client)?.contains_key(name)))?;
            nodes.kill(&Which::One(name.clone()), client)?;
            rejoin(nodes, client, directory, name)?;
            Ok("drained")
        }
    }
}

fn rejoin(nodes: &mut Nodes, client: &Client, directory: &Path, name: &str) -> Result<()> {
    let data = directory.join(name);
    std::fs::remove_dir_all(&data).with_context(|| format!("cannot wipe {}", data.display()))?;
    nodes.start(&Which::One(name.to_owned()), client)
}

fn put(client: &Client, path: &str, body: &str) -> Result<()> {
    let sent = || Ok(client.send(&Request::put(path, body.as_bytes()), || false).done().is_ok());
    until(&format!("PUT {path}"), sent)
}

fn remove(client: &Client, name: &str) -> Result<bool> {
    let outcome = client.send(&Request::delete(format!("/v1/nodes/{name}")), || false);
    Ok(outcome.done().is_ok() || !nodes_of(client)?.contains_key(name))
}

/// Names and states.
fn nodes_of(client: &Client) -> Result<BTreeMap<String, String>> {
    let nodes = client.list("/v1/nodes", "nodes")?;
    let text = |node: &Value, field: &str| node[field].as_str().unwrap_or_default().to_owned();
    Ok(nodes.iter().map(|node| (text(node, "name"), text(node, "state"))).collect())
}

fn groups_of(client: &Client) -> Result<Vec<Value>> {
    client.list("/v1/groups", "groups")
}

/// Waits until all nodes are active, and every group is led, and has its replicas, each on another node.
fn settle(nodes: &Nodes, client: &Client) -> Result<()> {
    let names = nodes.names();
    until("all groups are led, on three nodes each", || {
        let active = nodes_of(client)?;
        let all_active = names.iter().all(|name| active.get(name).is_some_and(|state| state == "active"));
        let groups = groups_of(client)?;
        let is_well = |group: &Value| {
            let replicas = group["replicas"].as_array().map_or(0, Vec::len);
            // The cluster's own groups have more.
            !group["leader"].is_null() && replicas >= 3
        };
        Ok(all_active && groups.len() > SHARDS && groups.iter().all(is_well))
    })
}

/// Without faults and commands, no group's term may rise.
fn stay_calm(client: &Client) -> Result<()> {
    let terms = || -> Result<BTreeMap<String, u64>> {
        let groups = groups_of(client)?;
        let term = |group: &Value| (group["name"].as_str().unwrap_or_default().to_owned(), group["term"].as_u64());
        Ok(groups.iter().map(term).map(|(name, term)| (name, term.unwrap_or(0))).collect())
    };
    // Leaders may still be on their way to their places.
    let mut before = terms()?;
    until("terms stay as they are", || {
        wait(CALM / 4)?;
        let now = terms()?;
        Ok(std::mem::replace(&mut before, now.clone()) == now)
    })?;
    wait(CALM)?;
    let after = terms()?;
    let risen: Vec<_> = after.iter().filter(|(name, term)| before.get(*name) != Some(term)).collect();
    ensure!(risen.is_empty(), "elections without a fault: {risen:?}");
    Ok(())
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        match done() {
            Ok(true) => return Ok(()),
            Ok(false) => last = None,
            Err(error) => last = Some(error),
        }
        wait(LOOK)?;
    }
    match last {
        Some(error) => Err(error.context(format!("{what}: not within {PATIENCE:?}"))),
        None => bail!("{what}: not within {PATIENCE:?}"),
    }
}

/// Ends early when the user wants an end.
fn wait(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        signals::check()?;
        thread::sleep((until - Instant::now()).min(LOOK));
    }
    signals::check()
}

/// One client: its counters and keys, which nobody else writes, and what they must hold.
struct Counting<'a> {
    client: &'a Client,
    tally: &'a Tally,
    random: Random,
    number: usize,
    serial: u64,
    counts: Vec<u64>,
    values: Vec<u64>,
}

impl<'a> Counting<'a> {
    fn new(client: &'a Client, tally: &'a Tally, seed: u64, number: usize) -> Self {
        let random = Random(seed ^ (number as u64 + 1).wrapping_mul(0xA076_1D64_78BD_642F));
        let zeroes = vec![0; KEYS_PER_CLIENT];
        Self { client, tally, random, number, serial: 0, counts: zeroes.clone(), values: zeroes }
    }

    /// On some keys for a while, then on others, so that groups with data fall asleep, too.
    fn run(mut self, stop: &AtomicBool) -> Self {
        let start = Instant::now();
        while !stop.load(Ordering::SeqCst) && !signals::interrupted() {
            let turn = start.elapsed().as_secs() / TURN_SECONDS;
            let at = (turn * KEYS_AT_ONCE + self.random.below(KEYS_AT_ONCE)) as usize % KEYS_PER_CLIENT;
            match self.random.below(3) {
                0 => self.count(at),
                1 => self.write(at),
                _ => self.read(at),
            }
        }
        self
    }

    fn last_round(mut self) {
        for at in 0..KEYS_PER_CLIENT {
            self.count(at);
            self.read(at);
        }
    }

    /// The request's answer, however often it must be sent; `None` at the user's end.
    fn settle(&mut self, request: &Request<'_>) -> Option<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if Instant::now() > deadline {
                self.tally.wrong(format!("{} was not answered within {PATIENCE:?}", request.path));
                return None;
            }
            match self.client.send(request, || false) {
                Outcome::Done(response) => return Some(response.body),
                Outcome::Refused(response) => {
                    self.tally.wrong(format!("{} refused: {}", request.path, response.describe()));
                    return None;
                }
                Outcome::Unknown(_) => drop(self.tally.unknown.fetch_add(1, Ordering::Relaxed)),
                Outcome::NotHappened(_) => {}
            }
            if signals::interrupted() {
                return None;
            }
        }
    }

    fn next_id(&mut self) -> String {
        self.serial += 1;
        format!("chaos-{}:{}", self.number, self.serial)
    }

    fn count(&mut self, at: usize) {
        let path = format!("/v1/agents/{QUOTA}/counter/c{}-{at}/command", self.number);
        let request = Request::post(path, br#"{"add":1}"#).once(self.next_id());
        let Some(answer) = self.settle(&request) else { return };
        let reply = serde_json::from_slice::<Value>(&answer).unwrap_or_default()["reply"].as_u64();
        let expected = self.counts[at] + 1;
        if reply != Some(expected) {
            self.tally.wrong(format!("counter c{}-{at} is {reply:?} after {expected} increments", self.number));
        }
        self.counts[at] = reply.unwrap_or(expected);
        self.tally.commands.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&mut self, at: usize) {
        let value = (self.values[at] + 1).to_string();
        let path = self.key(at);
        let request = Request::put(path, value.as_bytes()).once(self.next_id());
        if self.settle(&request).is_some() {
            self.values[at] += 1;
            self.tally.writes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&mut self, at: usize) {
        if self.values[at] == 0 {
            return;
        }
        let Some(found) = self.settle(&Request::get(self.key(at))) else { return };
        if found != self.values[at].to_string().as_bytes() {
            let (found, path) = (String::from_utf8_lossy(&found).into_owned(), self.key(at));
            self.tally.wrong(format!("{path} is {found}, {} was acknowledged", self.values[at]));
        }
        self.tally.reads.fetch_add(1, Ordering::Relaxed);
    }

    fn key(&self, at: usize) -> String {
        format!("/v1/kv/{KEYSPACE}/k{}-{at}", self.number)
    }
}

/// What all nodes take together, in MiB.
#[derive(Debug, Clone, Copy)]
struct Usage {
    memory: u64,
    disk: u64,
}

impl Usage {
    fn of(nodes: &mut Nodes, directory: &Path) -> Self {
        Self { memory: nodes.memory() >> 20, disk: bytes_in(directory) >> 20 }
    }
}

fn bytes_in(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        // Removed meanwhile.
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn report(tally: &Tally, faults: &BTreeMap<&'static str, u32>, usage: &[Usage]) -> Result<()> {
    let count = |count: &AtomicU64| count.load(Ordering::SeqCst);
    println!("faults: {faults:?}");
    println!(
        "{} increments, {} writes, {} reads, {} unknown outcomes that were settled",
        count(&tally.commands),
        count(&tally.writes),
        count(&tally.reads),
        count(&tally.unknown)
    );
    println!(
        "memory and disk of all nodes, MiB, each minute: {:?}",
        usage.iter().map(|u| (u.memory, u.disk)).collect::<Vec<_>>()
    );
    let wrong = tally.wrong.lock().unwrap_or_else(PoisonError::into_inner);
    if !wrong.is_empty() {
        bail!("{} wrong answers, among them:\n  {}", wrong.len(), wrong[..wrong.len().min(MAX_SHOWN)].join("\n  "));
    }
    println!(
        "lost 0, doubled 0, stale 0; every group has its replicas and a leader, nobody was elected without a fault"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_and_all_kinds_of_them() {
        let names: Vec<_> = (1..=5).map(|n| format!("n{n}")).collect();
        let faults = |seed| {
            let mut random = Random(seed);
            (0..200).map(|_| choose(&mut random, &names)).collect::<Vec<_>>()
        };
        assert_eq!(faults(7), faults(7));
        assert_ne!(faults(7), faults(8));
        let has = |is: fn(&Fault) -> bool| faults(7).iter().any(is);
        assert!(has(|fault| *fault == Fault::KillAll));
        assert!(has(|fault| matches!(fault, Fault::Wipe(_))) && has(|fault| matches!(fault, Fault::Drain(_))));
    }
}
