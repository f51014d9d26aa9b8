//! The program: from the command line to an exit code.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use super::NodeBuilder;
use super::cluster_recovery;
use super::ctl;
use super::running::{Parts, Running};
use super::settings::{Command, CommandLine, LogFormat, NodeArgs, TlsCommand};
use super::wal;

/// How long a node may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What is logged unless `RUST_LOG` says otherwise: the libraries below only when something is wrong.
/// openraft warns of every late heartbeat; what matters of it, the layers say themselves.
const DEFAULT_LOG: &str = "warn,dist_agent=info,raft_kv=info,raft_fleet=info,rafted_value=info,batched_comm=info,\
    openraft=error,openraft::core::heartbeat=off";

/// Where the buckets of durations end, in seconds.
const SECONDS_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

pub(super) fn main(builder: NodeBuilder) -> ExitCode {
    match CommandLine::parse().command {
        Command::Node(args) => node(&args, builder),
        Command::Tls(command) => tls(&command),
        Command::Ctl(args) => ctl::run(&args),
        Command::Wal(args) => wal::run(&args),
        Command::RecoverCluster(command) => cluster_recovery::run(&command),
    }
}

fn node(args: &NodeArgs, builder: NodeBuilder) -> ExitCode {
    if args.config.is_some() {
        return not_yet("--config");
    }
    if let Err(missing) = args.others.check() {
        CommandLine::command().error(ErrorKind::MissingRequiredArgument, missing).exit();
    }
    start_logging(args.log_format);
    let (registry, codecs) = match builder.parts() {
        Ok(parts) => parts,
        Err(error) => return fail(&error),
    };
    let metrics = match start_metrics() {
        Ok(metrics) => metrics,
        Err(error) => return fail(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let parts = Parts { registry, codecs, metrics: Some(metrics) };
    let code = runtime.block_on(run(args, parts));
    // What has not ended by now is not waited for.
    runtime.shutdown_background();
    code
}

async fn run(args: &NodeArgs, parts: Parts) -> ExitCode {
    // Before anything is started, so that no signal is lost.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail(&error),
    };
    let started = tokio::select! {
        started = Running::start(args, parts) => started,
        () = signals.next() => return ExitCode::SUCCESS,
    };
    let mut running = match started {
        Ok(running) => running,
        Err(error) => return fail(&error),
    };
    let failure = tokio::select! {
        error = running.failed() => Some(error),
        () = signals.next() => None,
    };
    if let Some(error) = &failure {
        fail(error);
    }
    tokio::select! {
        stopped = tokio::time::timeout(STOP_PATIENCE, running.stop()) => {
            if stopped.is_err() {
                return fail(&format!("the node did not stop within {STOP_PATIENCE:?}"));
            }
        }
        () = signals.next() => return fail(&"stopped at once, as a second signal asks for"),
    }
    if failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The signals that ask a program to stop.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn tls(command: &TlsCommand) -> ExitCode {
    let (result, made) = match command {
        TlsCommand::InitCa { dir } => {
            (batched_comm::tls::init_ca(dir), format!("a certificate authority in {}", dir.display()))
        }
        TlsCommand::Issue { dir, name, hosts } => {
            (batched_comm::tls::issue(dir, name, hosts), format!("{name}.pem and {name}.key in {}", dir.display()))
        }
    };
    match result {
        Ok(_) => {
            eprintln!("made {made}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Somebody else's subscriber is as good as ours.
    let _ = match format {
        LogFormat::Human => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}

fn start_metrics() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .install_recorder()
}

fn not_yet(what: &str) -> ExitCode {
    fail(&format!("`{what}` is not implemented yet in this version"))
}

fn fail(error: &impl std::fmt::Display) -> ExitCode {
    eprintln!("dist-agent: {error}");
    ExitCode::FAILURE
}
