//! A cluster of real node processes on loopback, with a console: `cargo xtask cluster`.
//!
//! It knows the node by its flags and its HTTP alone. However it ends, no node stays behind: each is stopped in
//! good time at the end, killed on an error or a panic, and killed by a guard should this process be killed.

mod chaos;
mod demo;

mod console;

mod load;
mod nodes;

mod client;
mod guard;
mod ports;
mod processes;

mod command;
mod record;
mod table;
mod view;

mod random;
mod signals;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use self::{
    client::Client,
    command::{Command, Which},
    console::Console,
    nodes::Nodes,
};
use crate::workspace;

/// Where people find the nodes, unless told otherwise.
const BASE_PORT: u16 = 7101;
const HTTP_PORT: u16 = 8101;

/// Each node is a process of some hundred megabytes at most, on one machine.
const MAX_NODES: u64 = 99;

/// As a shell has it for SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

/// Wrong use, told before anything is started.
const EXIT_USAGE: u8 = 2;

#[derive(Args)]
pub struct Options {
    /// How many nodes, named n1, n2, …
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=MAX_NODES))]
    nodes: u64,
    /// Keep data and logs in this directory, and use what is there [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The first node's port for other nodes; 0 picks free ones [default: 7101; free ones with --demo and --script]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// The first node's port for HTTP; 0 picks free ones [default: 8101; free ones with --demo and --script]
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// Keep everything in memory: a killed node forgets
    #[arg(long)]
    memory: bool,
    /// Run the cache experiment and leave; exit status 0 only if nothing was lost or stale
    #[arg(long, conflicts_with = "script")]
    demo: bool,
    /// Count one write as acknowledged that was never sent: the experiment must find it and exit with 1
    #[arg(long, requires = "demo")]
    plant_loss: bool,
    /// Run the console's commands from a file and leave with the status of the first failure
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Build the nodes for debugging instead of for release
    #[arg(long)]
    debug: bool,
}

/// Of `cargo xtask chaos`.
#[derive(Args)]
pub struct ChaosOptions {
    /// For how long things go wrong
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: u64,
    /// Where the faults come from [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(chaos::MIN_NODES..=MAX_NODES))]
    nodes: u64,
    /// Build the nodes for debugging instead of for release
    #[arg(long)]
    debug: bool,
}

/// What is done with a running cluster.
enum Session {
    Lines,
    Script(Vec<(usize, String, Command)>),
    Demo(demo::Plan),
}

/// Runs the cluster until it is left.
pub fn run(options: &Options) -> ExitCode {
    let session = match session(options) {
        Ok(session) => session,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run_session(options, &session) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if signals::interrupted() => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs faults on a cluster of its own, and checks what its clients saw.
pub fn run_chaos(options: &ChaosOptions) -> ExitCode {
    match chaos(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if signals::interrupted() => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chaos(options: &ChaosOptions) -> Result<()> {
    signals::install().context("cannot listen to signals")?;
    let program = build(options.debug)?;
    signals::check()?;
    let temporary = tempfile::Builder::new().prefix("xtask-chaos-").tempdir()?;
    let addresses = ports::addresses(options.nodes as usize, None, None)?;
    let mut nodes = Nodes::new(&program, temporary.path(), &addresses, false);
    let client = Client::new(nodes.http());
    let seed = options.seed.unwrap_or_else(random::number);
    let time = Duration::from_secs(options.minutes * 60);
    let result = chaos::run(&mut nodes, &client, temporary.path(), seed, time);
    if result.is_err() && !signals::interrupted() {
        eprintln!("{}", nodes.log_tails());
    }
    nodes.stop_all();
    result.with_context(|| format!("with --nodes {} --seed {seed}", options.nodes))
}

/// What can be wrong is told before anything is built or started.
fn session(options: &Options) -> Result<Session> {
    if options.demo {
        if options.nodes < demo::MIN_NODES as u64 {
            bail!("--demo kills nodes and needs at least --nodes {}", demo::MIN_NODES);
        }
        let plan = demo::Plan { plant_loss: options.plant_loss, kill_all: !options.memory };
        return Ok(Session::Demo(plan));
    }
    match &options.script {
        None => Ok(Session::Lines),
        Some(path) => {
            let text = fs::read_to_string(path);
            let text = text.with_context(|| format!("cannot read the script {}", path.display()))?;
            script(&text, path).map(Session::Script)
        }
    }
}

fn script(text: &str, path: &Path) -> Result<Vec<(usize, String, Command)>> {
    let mut commands = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let parsed = command::parse(line);
        let parsed = parsed.with_context(|| format!("{}:{}", path.display(), index + 1))?;
        if let Some(command) = parsed {
            commands.push((index + 1, line.trim().to_owned(), command));
        }
    }
    Ok(commands)
}

fn run_session(options: &Options, session: &Session) -> Result<()> {
    signals::install().context("cannot listen to signals")?;
    let automatic = !matches!(session, Session::Lines);
    let port = |given: Option<u16>, default: u16| match given {
        None if automatic => None,
        None => Some(default),
        Some(0) => None,
        Some(port) => Some(port),
    };
    // Told before the build, which takes longer.
    let base_port = port(options.base_port, BASE_PORT);
    let http_port = match options.base_port {
        Some(0) if options.http_port.is_none() => None,
        _ => port(options.http_port, HTTP_PORT),
    };
    ports::addresses(options.nodes as usize, base_port, http_port)?;
    let program = build(options.debug)?;
    signals::check()?;

    let temporary = match options.data_dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("xtask-cluster-").tempdir()?),
    };
    let directory = match (&options.data_dir, &temporary) {
        (Some(directory), _) => std::path::absolute(directory)?,
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => bail!("there is no directory for data"), // one of the two is there
    };
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make the data directory {}", directory.display()))?;
    let addresses = ports::addresses(options.nodes as usize, base_port, http_port)?;
    let nodes = Nodes::new(&program, &directory, &addresses, options.memory);
    let client = Client::new(nodes.http());
    let mut console = Console::new(nodes, &client);
    let result = run_console(&mut console, &client, &directory, session);
    let killed = stop(&mut console, &result);
    result.and(killed)
}

fn run_console(console: &mut Console<'_>, client: &Client, directory: &Path, session: &Session) -> Result<()> {
    let start = Instant::now();
    console.nodes().start(&Which::All, client)?;
    let http = console.nodes().http();
    println!("{} nodes ready after {:.1} s", http.len(), start.elapsed().as_secs_f64());
    for (name, address) in &http {
        println!("  {name}  http://{address}/");
    }
    println!("data and logs: {}", directory.display());
    match session {
        Session::Lines => {
            println!("`help` lists the commands, `quit` stops all nodes");
            console.run_lines()
        }
        Session::Script(commands) => console.run_script(commands),
        Session::Demo(plan) => demo::run(console, *plan),
    }
}

/// Stops the nodes; after a failure shows what they said, since their directory may go.
fn stop(console: &mut Console<'_>, result: &Result<()>) -> Result<()> {
    if result.is_err() && !signals::interrupted() {
        eprintln!("{}", console.nodes().log_tails());
    }
    let hurried = signals::received();
    let killed = console.nodes().stop_all();
    if killed.is_empty() || signals::received() > hurried {
        return Ok(());
    }
    bail!("did not stop in time and had to be killed: {}", killed.join(", "))
}

/// Builds the node, with progress on the terminal, and answers where it is.
fn build(debug: bool) -> Result<PathBuf> {
    let mut arguments = vec!["build", "-p", "dist-agent", "--features", "node", "--bin", "dist-agent"];
    arguments.push("--message-format=json-render-diagnostics");
    if !debug {
        arguments.push("--release");
    }
    let mut cargo = workspace::cargo(&arguments);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut program = None;
    for line in BufReader::new(output).lines() {
        let message: Value = serde_json::from_str(&line?).unwrap_or_default();
        if message["reason"] == "compiler-artifact"
            && message["target"]["name"] == "dist-agent"
            && let Some(path) = message["executable"].as_str()
        {
            program = Some(PathBuf::from(path));
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("the node cannot be built: `cargo build -p dist-agent --features node` shows why ({status})");
    }
    program.context("cargo built no executable named dist-agent")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_before_anything_starts() {
        let text = "# warm up\nfill 10\n\n  check # all\nquit\n";
        let commands = script(text, Path::new("s")).unwrap();
        let expected = vec![
            (2, "fill 10".to_owned(), Command::Fill { count: 10 }),
            (4, "check # all".to_owned(), Command::Check),
            (5, "quit".to_owned(), Command::Quit),
        ];
        assert_eq!(commands, expected);
        let error = format!("{:#}", script("fill 10\nfil 3\n", Path::new("s.txt")).unwrap_err());
        assert_eq!(error, "s.txt:2: no command is named \"fil\": `help` lists them");
    }
}
