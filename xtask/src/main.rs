//! The repository's own commands: `cargo xtask …`.

mod cluster;
mod test;
mod tidy;

mod workspace;

use std::process::ExitCode;

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
    /// Side-by-side benchmarks (not yet; the console of `cluster` has `bench SECONDS`)
    Bench(Later),
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
        Command::Bench(later) => {
            not_yet("bench", &later, "the console of `cargo xtask cluster` has `bench SECONDS [CLIENTS]`")
        }
    }
}

fn not_yet(command: &str, later: &Later, instead: &str) -> ExitCode {
    let given = [command].into_iter().chain(later.rest.iter().map(String::as_str));
    let given = given.collect::<Vec<_>>().join(" ");
    eprintln!("not yet: `cargo xtask {given}` is named but not built. For now, {instead}.");
    ExitCode::from(EXIT_USAGE)
}
