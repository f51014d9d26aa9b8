//! Side-by-side benchmarks: `cargo xtask bench [LAYER] [--json FILE]`.
//!
//! Both sides of a ratio run as processes of their own, take turns (A B A B …) and are measured over several rounds; a
//! row shows the medians. CPU time per operation is that of client and server together.
//!
//! ```text
//!   main --> batched_comm (rows) --> pair, one per side --> child: this program again, as `peer PROTOCOL server|client`
//!      |                                                       '--> protocols/{ours, streams, grpc, tcp}
//!      '---> rafted_value (rows) --> cluster, one per side --> child, as `peer PROTOCOL ...`, or etcd
//!      |---> raft_fleet (rows) --> nodes of fleets, as `peer fleet server`
//!                 |    '--> snapshots (rows)                    '--> protocols/{raft, shard, in_process, ...}
//!                 '--> row: medians, ratio, target
//! ```

mod batched_comm;
mod raft_fleet;
mod rafted_value;
mod snapshots;
mod side;
mod cluster;
mod child;
mod protocols;
mod load;
mod machine;
mod row;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use row::Row;

/// What cannot be measured yet, as wrong usage, exits with this.
const EXIT_USAGE: u8 = 2;

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Side-by-side benchmarks, ratios first", version)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    peer: Option<Internal>,
}

#[derive(clap::Args, Clone)]
struct Options {
    /// What to measure; all layers that can be measured without it
    layer: Option<Layer>,
    /// Writes the rows as a list of objects
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only rows whose name begins so
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Rounds of each side; a row shows their median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds measured in each round
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Entries in all logs together before everything is restarted
    #[arg(long, default_value_t = 1_000_000)]
    entries: usize,
    /// Percent of the machine that others may use in a round that counts
    #[arg(long, default_value_t = 12.0)]
    max_foreign: f64,
}

impl Options {
    /// Whether rows of any of these names are wanted.
    fn wants(&self, names: &[&str]) -> bool {
        let only = self.only.as_deref().unwrap_or_default();
        names.iter().any(|name| name.starts_with(only))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layer {
    BatchedComm,
    RaftedValue,
    RaftFleet,
    RaftKv,
    Quota,
    DistAgent,
}

#[derive(Subcommand)]
enum Internal {
    /// One side of a benchmark, told on its standard input what to do
    #[command(hide = true)]
    Peer(protocols::PeerOptions),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.peer {
        Some(Internal::Peer(options)) => protocols::run(options).map(|()| ExitCode::SUCCESS),
        None => measure(&cli.options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn measure(options: &Options) -> Result<ExitCode> {
    if !matches!(options.layer, None | Some(Layer::BatchedComm | Layer::RaftedValue | Layer::RaftFleet)) {
        eprintln!("not yet: only batched-comm, rafted-value and raft-fleet can be measured so far");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let seconds = options.seconds;
    anyhow::ensure!((0.1..=600.0).contains(&seconds), "--seconds {seconds}: allowed is 0.1 to 600");
    let mut rows = Vec::new();
    if matches!(options.layer, None | Some(Layer::BatchedComm)) {
        rows.extend(batched_comm::measure(options)?);
    }
    if matches!(options.layer, None | Some(Layer::RaftedValue)) {
        rows.extend(rafted_value::measure(options)?);
    }
    if matches!(options.layer, None | Some(Layer::RaftFleet)) {
        rows.extend(raft_fleet::measure(options)?);
    }
    println!("\n{}", row::table(&rows));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows.iter().map(Row::to_json).collect::<Vec<_>>())?;
        std::fs::write(path, text + "\n").with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let missed: Vec<_> = rows.iter().filter(|row| row.is_met() == Some(false)).map(|row| row.name).collect();
    if !missed.is_empty() {
        println!("\nbelow their targets: {}", missed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}
