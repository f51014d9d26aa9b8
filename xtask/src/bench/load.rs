//! Closed loops of a client: N tasks with one operation in flight each.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::machine::own_cpu_time;

/// Latencies are kept with three digits, up to a minute.
const MAX_LATENCY_NS: u64 = 60_000_000_000;

const WARM_UP: u8 = 0;
const MEASURE: u8 = 1;
const END: u8 = 2;

/// What a client measured.
pub struct Measured {
    pub operations: u64,
    pub time: Duration,
    pub cpu: Duration,
    pub latencies: Histogram<u64>,
}

impl Measured {
    pub fn to_json(&self) -> Value {
        json!({
            "operations": self.operations,
            "seconds": self.time.as_secs_f64(),
            "cpu_us": self.cpu.as_secs_f64() * 1e6,
            "p50_us": self.latencies.value_at_quantile(0.5) as f64 / 1e3,
            "p99_us": self.latencies.value_at_quantile(0.99) as f64 / 1e3,
        })
    }
}

/// How long operations took, in milliseconds.
pub fn percentiles(mut took: Vec<Duration>) -> Value {
    took.sort_unstable();
    let ms = |share: f64| {
        let at = ((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1));
        took.get(at).map(|took| took.as_secs_f64() * 1e3)
    };
    json!({ "operations": took.len(), "p50_ms": ms(0.5), "p99_ms": ms(0.99), "max_ms": ms(1.0) })
}

/// What one operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A message without an answer.
    Cast,
    /// A message and its answer, which is the same.
    Call,
    /// A piece of one long stream of bytes.
    Stream,
    /// Stores the body under the task's key, replicated.
    Write,
    /// Reads the task's key linearizably.
    Read,
}

/// One side of a protocol that sends. What a protocol does not have is an error.
pub trait Client: Clone + Send + Sync + 'static {
    /// Returns when the protocol takes more.
    fn cast(&self, body: &[u8]) -> impl Future<Output = Result<()>> + Send {
        absent("messages without an answer", body)
    }

    /// Returns with the answer, after comparing it with `body`.
    fn call(&self, body: &[u8]) -> impl Future<Output = Result<()>> + Send {
        absent("calls", body)
    }

    /// Returns when the stream takes more.
    fn stream(&self, piece: &[u8]) -> impl Future<Output = Result<()>> + Send {
        absent("streams", piece)
    }

    /// Returns when `body` is stored under `key` as safely as the protocol promises.
    fn write(&self, _key: u64, body: &[u8]) -> impl Future<Output = Result<()>> + Send {
        absent("writes", body)
    }

    /// Reads `key` linearizably, and compares what is there with `body`.
    fn read(&self, _key: u64, body: &[u8]) -> impl Future<Output = Result<()>> + Send {
        absent("reads", body)
    }
}

fn absent(what: &'static str, _body: &[u8]) -> Ready<Result<()>> {
    ready(Err(anyhow!("this protocol has no {what}")))
}

/// What to do, for how long.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub kind: Kind,
    pub bytes: usize,
    pub tasks: usize,
    pub warm_up: Duration,
    pub measure: Duration,
}

/// Runs closed loops; `begin` is called when the warm-up is over. Any error ends it with that error: a run with an
/// error does not count.
pub async fn closed_loops<C: Client>(client: &C, work: Work, begin: impl FnOnce()) -> Result<Measured> {
    let phase = Arc::new(AtomicU8::new(WARM_UP));
    let mut loops = tokio::task::JoinSet::new();
    for task in 0..work.tasks {
        let (phase, client) = (phase.clone(), client.clone());
        // Every task has a body of its own, so that an answer to another's call would be seen.
        let body: Vec<u8> = (0..work.bytes).map(|index| (task * 31 + index) as u8).collect();
        loops.spawn(async move { one_loop(&phase, &client, work.kind, task as u64, &body).await });
    }
    tokio::time::sleep(work.warm_up).await;
    begin();
    let (start, cpu) = (Instant::now(), own_cpu_time());
    phase.store(MEASURE, Ordering::Relaxed);
    tokio::time::sleep(work.measure).await;
    phase.store(END, Ordering::Relaxed);
    let (time, cpu) = (start.elapsed(), own_cpu_time().saturating_sub(cpu));
    let mut latencies = histogram()?;
    while let Some(done) = loops.join_next().await {
        latencies.add(done??)?;
    }
    Ok(Measured { operations: latencies.len(), time, cpu, latencies })
}

async fn one_loop<C: Client>(
    phase: &AtomicU8,
    client: &C,
    kind: Kind,
    key: u64,
    body: &[u8],
) -> Result<Histogram<u64>> {
    let mut latencies = histogram()?;
    if kind == Kind::Read {
        client.write(key, body).await?;
    }
    loop {
        let before = phase.load(Ordering::Relaxed);
        if before == END {
            return Ok(latencies);
        }
        let start = Instant::now();
        match kind {
            // Their receiver counts them; how long it took to hand them over says little.
            Kind::Cast => {
                client.cast(body).await?;
                continue;
            }
            Kind::Stream => {
                client.stream(body).await?;
                continue;
            }
            Kind::Call => client.call(body).await?,
            Kind::Write => client.write(key, body).await?,
            Kind::Read => client.read(key, body).await?,
        }
        if before == MEASURE && phase.load(Ordering::Relaxed) == MEASURE {
            let nanos = start.elapsed().as_nanos() as u64;
            latencies.record(nanos.clamp(1, MAX_LATENCY_NS))?;
        }
    }
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3).map_err(|error| anyhow!("no histogram: {error}"))
}
