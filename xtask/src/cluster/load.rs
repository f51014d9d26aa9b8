//! Many requests at once, from as many threads: filling, checking, counting, measuring.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    client::{Client, Outcome, Request, escaped},
    command::DEFAULT_CLIENTS,
    random,
    record::{Record, Report},
    signals,
    table::grouped,
};

/// The keyspace of `fill`, `put` and `get`.
pub const DEMO: &str = "demo";

/// How many shards it has.
const DEMO_SHARDS: u64 = 16;

/// How many replicas each has, where there are as many nodes.
const DEMO_REPLICAS: usize = 3;

/// Threads that fill and check.
const WORKERS: usize = 32;

/// After this many requests that failed for good, the rest is not tried.
const MAX_FAILURES: usize = 10;

/// How often progress is looked at.
const PROGRESS_POLL: Duration = Duration::from_millis(50);

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Fills, checks and remembers.
pub struct Load<'a> {
    client: &'a Client,
    record: Mutex<Record>,
    /// The one `CLIENT` of this run's idempotency keys.
    name: String,
    serial: AtomicU64,
    fills: AtomicU64,
    replicas: usize,
    demo_exists: AtomicBool,
}

/// What a fill or a count came to.
#[derive(Debug, Default)]
pub struct Tally {
    pub acknowledged: u64,
    /// Each with the reason.
    pub failed: Vec<String>,
}

/// What a closed loop of commands came to.
#[derive(Debug)]
pub struct Figures {
    pub commands: u64,
    pub errors: u64,
    pub elapsed: Duration,
    pub p50: Duration,
    pub p99: Duration,
}

impl<'a> Load<'a> {
    pub fn new(client: &'a Client, node_count: usize) -> Load<'a> {
        Load {
            client,
            record: Mutex::default(),
            name: format!("xtask-{:016x}", random::number()),
            serial: AtomicU64::new(0),
            fills: AtomicU64::new(0),
            replicas: node_count.min(DEMO_REPLICAS),
            demo_exists: AtomicBool::new(false),
        }
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the demo keyspace where it is missing.
    pub fn ensure_demo(&self) -> Result<()> {
        if self.demo_exists.load(Ordering::Relaxed) {
            return Ok(());
        }
        let policy =
            format!("{{\"min_shards\":{DEMO_SHARDS},\"max_shards\":{DEMO_SHARDS},\"replicas\":{}}}", self.replicas);
        // Putting the same policy twice changes nothing, so an unknown outcome may be tried again.
        let deadline = Instant::now() + super::client::RETRY_DEADLINE;
        let path = format!("/v1/keyspaces/{DEMO}");
        loop {
            match self.client.send(&Request::put(&path, policy.as_bytes()), || false) {
                Outcome::Unknown(_) if Instant::now() < deadline => signals::check()?,
                outcome => {
                    outcome.done().with_context(|| format!("cannot make the keyspace {DEMO:?}"))?;
                    self.demo_exists.store(true, Ordering::Relaxed);
                    return Ok(());
                }
            }
        }
    }

    /// Writes one key and remembers what came of it.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.write(key, value, || false).map_err(anyhow::Error::msg)
    }

    /// Reads one key; `None` where it is absent.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.read(key).map_err(anyhow::Error::msg)
    }

    /// Writes k1..kN with values that tell this fill from earlier ones.
    pub fn fill(&self, count: u64) -> Result<Tally> {
        self.ensure_demo()?;
        let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
        let failed = self.fill_counted(count, &stop, &acknowledged, |done| {
            println!("  {} of {} written", grouped(done), grouped(count));
        });
        signals::check()?;
        Ok(Tally { acknowledged: acknowledged.into_inner(), failed })
    }

    /// As [`fill`](Self::fill), over and over until `stop`; what fails after `stop` is no failure.
    pub fn fill_on_and_on(&self, count: u64, stop: &AtomicBool, acknowledged: &AtomicU64) -> Tally {
        let mut sum = Tally::default();
        while !stop.load(Ordering::SeqCst) && sum.failed.is_empty() && !signals::interrupted() {
            let before = acknowledged.load(Ordering::SeqCst);
            let round = self.fill_counted(count, stop, acknowledged, |_| {});
            sum.acknowledged += acknowledged.load(Ordering::SeqCst) - before;
            sum.failed.extend(round);
        }
        sum
    }

    fn fill_counted(
        &self,
        count: u64,
        stop: &AtomicBool,
        acknowledged: &AtomicU64,
        progress: impl Fn(u64),
    ) -> Vec<String> {
        let fill = self.fills.fetch_add(1, Ordering::Relaxed) + 1;
        let give_up = || stop.load(Ordering::SeqCst);
        let work = Work::new(count);
        work.run(WORKERS, give_up, progress, |_, index| {
            let key = format!("k{}", index + 1);
            let value = format!("{key} of fill {fill}");
            match self.write(&key, value.as_bytes(), give_up) {
                Ok(()) => {
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
                Err(_) if give_up() => Ok(()),
                Err(why) => Err(format!("{key}: {why}")),
            }
        })
    }

    /// Reads everything back that was acknowledged.
    pub fn check(&self) -> Result<Report> {
        let keys = self.record().acknowledged_keys();
        let total = Mutex::new(Report::default());
        let work = Work::new(keys.len() as u64);
        let progress = |done| println!("  {} of {} read", grouped(done), grouped(keys.len() as u64));
        let unread = work.run(
            WORKERS,
            || false,
            progress,
            |_, index| {
                let key = &keys[index as usize];
                let read = self.read(key).map_err(|why| format!("{key}: {why}"))?;
                let verdict = self.record().judge(key, read.as_deref());
                total.lock().unwrap_or_else(PoisonError::into_inner).add(key, verdict);
                Ok(())
            },
        );
        signals::check()?;
        let mut report = total.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.skipped = (keys.len() as u64).saturating_sub(report.checked + unread.len() as u64);
        report.unread = unread;
        Ok(report)
    }

    /// A command or query to an agent; answers the body.
    pub fn agent(&self, path: &str, body: &[u8], is_command: bool) -> Result<Value> {
        let mut request = Request::post(path, body);
        if is_command {
            request = request.once(self.next_key());
        }
        self.client.send(&request, || false).done()?.json()
    }

    /// Makes a quota without a limit where it is missing, or lifts its limit.
    pub fn put_unlimited_quota(&self, quota: &str) -> Result<()> {
        let path = format!("/v1/quotas/{}", escaped(quota));
        let request = Request::put(path, b"{\"limit\": null}");
        self.client.send(&request, || false).done().context("cannot make the quota")?;
        Ok(())
    }

    /// Sends `count` times `{"add":1}` to one counter from many clients. Every client tries each until it is answered.
    pub fn count(&self, path: &str, count: u64, done: &AtomicU64) -> Vec<String> {
        let work = Work::new(count);
        let progress = |done| println!("  {} of {} counted", grouped(done), grouped(count));
        work.run(
            DEFAULT_CLIENTS,
            || false,
            progress,
            |client, _| {
                // A client has one command open at a time, so that its serials rise in order.
                let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
                let key = format!("{}-{client}:{serial}", self.name);
                let request = Request::post(path, b"{\"add\":1}").once(key);
                self.client.send(&request, || false).done().map_err(|error| format!("{error:#}"))?;
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            },
        )
    }

    /// A closed loop: each client sends a command to a counter of its own, waits for the answer, and so on.
    pub fn bench(&self, quota: &str, duration: Duration, clients: usize) -> Result<Figures> {
        self.put_unlimited_quota(quota)?;
        let (errors, last) = (AtomicU64::new(0), Mutex::new(String::new()));
        let start = Instant::now();
        let client = |index: usize| {
            let path = format!("/v1/agents/{}/counter/bench-{index}/command", escaped(quota));
            let mut latencies = Vec::new();
            while start.elapsed() < duration && !signals::interrupted() {
                let sent = Instant::now();
                let request = Request::post(&path, b"{\"add\":1}").once(self.next_key());
                match self.client.send(&request, || start.elapsed() >= duration).done() {
                    Ok(_) => latencies.push(sent.elapsed()),
                    Err(error) => {
                        errors.fetch_add(1, Ordering::Relaxed);
                        *last.lock().unwrap_or_else(PoisonError::into_inner) = format!("{error:#}");
                    }
                }
            }
            latencies
        };
        let mut latencies = thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|index| {
                    scope.spawn({
                        let client = &client;
                        move || client(index)
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect::<Vec<_>>()
        });
        let elapsed = start.elapsed();
        signals::check()?;
        latencies.sort_unstable();
        if latencies.is_empty() {
            bail!("no command was answered: {}", last.into_inner().unwrap_or_default());
        }
        let at = |part: usize| latencies[(latencies.len() - 1) * part / 100];
        let (p50, p99) = (at(50), at(99));
        let commands = latencies.len() as u64;
        Ok(Figures { commands, errors: errors.into_inner(), elapsed, p50, p99 })
    }

    fn write(&self, key: &str, value: &[u8], give_up: impl Fn() -> bool) -> Result<(), String> {
        self.record().sending(key, value);
        let request = Request::put(path_of(key), value).once(self.next_key());
        let outcome = self.client.send(&request, give_up);
        let mut record = self.record();
        match outcome {
            Outcome::Done(_) => {
                record.acknowledged(key, value);
                Ok(())
            }
            Outcome::Refused(response) => {
                record.not_happened(key, value);
                Err(response.describe())
            }
            Outcome::NotHappened(why) => {
                record.not_happened(key, value);
                Err(why)
            }
            Outcome::Unknown(why) => Err(format!("it may or may not have happened: {why}")),
        }
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        match self.client.send(&Request::get(path_of(key)), || false) {
            Outcome::Done(response) => Ok(Some(response.body)),
            Outcome::Refused(response) if response.error() == "key_not_found" => Ok(None),
            Outcome::Refused(response) => Err(response.describe()),
            Outcome::NotHappened(why) | Outcome::Unknown(why) => Err(why),
        }
    }

    fn next_key(&self) -> String {
        format!("{}:{}", self.name, self.serial.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

fn path_of(key: &str) -> String {
    format!("/v1/kv/{DEMO}/{}", escaped(key))
}

/// Numbered pieces of work for threads that take one after another.
struct Work {
    count: u64,
    next: AtomicU64,
    done: AtomicU64,
    failures: Mutex<Vec<String>>,
    running: AtomicU64,
}

impl Work {
    fn new(count: u64) -> Work {
        let zero = || AtomicU64::new(0);
        Work { count, next: zero(), done: zero(), failures: Mutex::default(), running: zero() }
    }

    /// Runs `piece` with the thread's number for each piece's number, tells progress, answers what failed.
    fn run(
        &self,
        threads: usize,
        give_up: impl Fn() -> bool + Sync,
        progress: impl Fn(u64),
        piece: impl Fn(usize, u64) -> Result<(), String> + Sync,
    ) -> Vec<String> {
        self.running.store(threads as u64, Ordering::SeqCst);
        thread::scope(|scope| {
            for number in 0..threads {
                let (give_up, piece) = (&give_up, &piece);
                scope.spawn(move || {
                    let _leaving = Leaving(&self.running);
                    self.worker(give_up, |index| piece(number, index));
                });
            }
            let mut told = Instant::now();
            while self.running.load(Ordering::SeqCst) > 0 {
                thread::sleep(PROGRESS_POLL);
                if told.elapsed() >= PROGRESS_INTERVAL {
                    told = Instant::now();
                    progress(self.done.load(Ordering::Relaxed));
                }
            }
        });
        std::mem::take(&mut *self.failures())
    }

    fn worker(&self, give_up: &impl Fn() -> bool, piece: impl Fn(u64) -> Result<(), String>) {
        while !give_up() && !signals::interrupted() && self.failures().len() < MAX_FAILURES {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.count {
                return;
            }
            match piece(index) {
                Ok(()) => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(why) => self.failures().push(why),
            }
        }
    }

    fn failures(&self) -> MutexGuard<'_, Vec<String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a worker down, also when it panics.
struct Leaving<'a>(&'a AtomicU64);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
