//! The repository's own commands: `cargo xtask …`.

mod cluster;
mod test;
mod tidy;

mod workspace;

use std::process::{Command as Process, ExitCode};

use clap::{Args, Parser, Subcommand};

/// What cannot be done yet, as wrong usage, exits with this.
const EXIT_USAGE: u8 = 2;

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
    /// Real processes, real faults, history checked (not yet)
    Chaos(Later),
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

#[derive(Args)]
struct Later {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Cluster(options) => cluster::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Tidy => tidy::run(),
        Command::Chaos(later) => not_yet("chaos", &later, "`cargo xtask cluster --demo` kills real processes"),
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

fn not_yet(command: &str, later: &Later, instead: &str) -> ExitCode {
    let given = [command].into_iter().chain(later.rest.iter().map(String::as_str));
    let given = given.collect::<Vec<_>>().join(" ");
    eprintln!("not yet: `cargo xtask {given}` is named but not built. For now, {instead}.");
    ExitCode::from(EXIT_USAGE)
}
