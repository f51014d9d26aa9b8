//! What a snapshot of a large shard costs the commands that run meanwhile, and in memory: rounds without any take turns
//! with rounds in which every node takes one after the other.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Options;
use super::child::{Round, number};
use super::cluster::{Cluster, Side};
use super::load::{Kind, Work};
use super::machine::{forget_peak_memory_of, peak_memory_of};
use super::protocols::{SHARD_KEYS, SHARD_VALUE_BYTES};
use super::row::{Rounds, Row};
use super::side::{Measured, at_most, describe, undisturbed};

pub const NAMES: [&str; 2] = ["snapshot-p99", "snapshot-memory"];

const CLIENTS: usize = 64;
/// A round is this many times as long as others: a whole snapshot takes some four seconds.
const LONGER: f64 = 2.5;
const WARM_UP: Duration = Duration::from_secs(1);
/// A snapshot of the filled shard is there by then.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
/// Keys and values together.
const STATE_BYTES: f64 = (SHARD_KEYS * (SHARD_VALUE_BYTES as u64 + 12)) as f64;

/// Both rows.
pub fn measure(options: &Options, tls: &Path) -> Result<Vec<Row>> {
    let mut cluster = Cluster::start(Side::Shard, tls).context("the nodes with the shard do not start")?;
    fill(&mut cluster)?;
    let (mut without, mut with) = (Measured::default(), Measured::default());
    let mut extra = Rounds::default();
    for _ in 0..options.rounds {
        let (round, before) = phase(options, &mut cluster)?;
        println!("  without snapshots: {}, {}", describe(&round), mebibytes(&before));
        without.add(&round);
        cluster.tell_nodes("snapshots on")?;
        let (round, peaks) = phase(options, &mut cluster)?;
        let taken = numbers(&cluster.tell_nodes("snapshots off")?, "snapshots")?;
        println!("  with {taken:?} snapshots: {}, {}", describe(&round), mebibytes(&peaks));
        ensure!(taken.iter().all(|count| *count >= 1.0), "a node took no snapshot");
        let more = peaks.iter().zip(&before).map(|(with, without)| (with - without) / STATE_BYTES);
        extra.add(more.fold(0.0, f64::max), Some(round.cpu_us));
        with.add(&round);
    }
    let without_any = ("without", &without.p99_us);
    Ok(vec![
        Row::against(NAMES[0], "us", &with.p99_us, without_any, at_most(3.0)),
        Row::alone(NAMES[1], "of the state", &extra, at_most(0.3)),
        Row::against("snapshot-rate", "1/s", &with.per_second, ("without", &without.per_second), None),
    ])
}

/// Waits until a snapshot of the filled shard is there, too: none comes by itself before as many bytes again.
fn fill(cluster: &mut Cluster) -> Result<()> {
    let filled = cluster.tell_client(&format!("fill {SHARD_KEYS} {SHARD_VALUE_BYTES}"))?;
    println!("  {SHARD_KEYS} keys of {SHARD_VALUE_BYTES} bytes were written in {:.1} s", number(&filled, "seconds")?);
    cluster.tell_nodes("snapshots on")?;
    let start = Instant::now();
    while numbers(&cluster.tell_nodes("count")?, "snapshot")?.iter().any(|entries| *entries < SHARD_KEYS as f64) {
        ensure!(start.elapsed() < PATIENCE, "a filled shard takes no snapshot");
        std::thread::sleep(LOOK);
    }
    cluster.tell_nodes("snapshots off").map(drop)
}

/// A round, and the most memory that each node had during it.
fn phase(options: &Options, cluster: &mut Cluster) -> Result<(Round, Vec<f64>)> {
    let measure = Duration::from_secs_f64(options.seconds * LONGER);
    let work = Work { kind: Kind::Write, bytes: SHARD_VALUE_BYTES, tasks: CLIENTS, warm_up: WARM_UP, measure };
    let nodes = cluster.node_ids();
    for node in &nodes {
        forget_peak_memory_of(*node).context("the peak of a process's memory cannot be reset")?;
    }
    let round = undisturbed(options, || Ok(cluster.round(work)?.0))?;
    let peaks = nodes.iter().map(|node| peak_memory_of(*node).map(|bytes| bytes as f64));
    Ok((round, peaks.collect::<Option<_>>().context("the memory of a process is not known")?))
}

fn numbers(answers: &[Value], field: &str) -> Result<Vec<f64>> {
    answers.iter().map(|answer| number(answer, field)).collect()
}

fn mebibytes(peaks: &[f64]) -> String {
    let peaks: Vec<_> = peaks.iter().map(|bytes| format!("{:.0}", bytes / f64::from(1 << 20))).collect();
    format!("at most {} MiB", peaks.join(", "))
}
