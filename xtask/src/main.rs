//! The repository's own commands: `cargo xtask …`.

mod cluster;
mod test;
mod tidy;

mod workspace;

use std::process::{Command as Process, ExitCode};

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The repository's own commands", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the node, start real processes on loopback, open a console
    Cluster(cluster::Options),
    /// All that must be green: format, lints, tests, docs, layout
    Test(test::Options),
    /// The layout alone: module order, pure files, crate borders, lengths
    Tidy,
    /// Real processes, real faults, history checked
    Chaos(cluster::ChaosOptions),
    /// Side-by-side benchmarks of a layer, ratios first; `bench --help` says more
    #[command(disable_help_flag = true)]
    Bench(Rest),
}

/// What is handed on as it is.
#[derive(Args)]
struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Cluster(options) => cluster::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Tidy => tidy::run(),
        Command::Chaos(options) => cluster::run_chaos(&options),
        Command::Bench(options) => bench(&options.rest),
    }
}

/// The benchmarks are a program of their own, in release, so that nobody else builds what they need.
fn bench(arguments: &[String]) -> ExitCode {
    let build = ["run", "--release", "--package", "xtask", "--features", "bench", "--bin", "bench", "--"];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    match Process::new(cargo).args(build).args(arguments).current_dir(workspace::root()).status() {
        Ok(status) => status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from),
        Err(error) => {
            eprintln!("error: cargo cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}
