//! `recover-cluster`: brings a cluster back that lost the majority of its own group, with its nodes stopped.

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use raft_fleet::{
    ClusterRecovered, ClusterRecoveryPlan, ClusterReport, OfflineError, PlanUnreadable, cluster_report,
    plan_cluster_recovery, recover_cluster,
};

use super::settings::RecoverClusterCommand;

/// Before the digits of a report or a plan, on a line of their own.
const MARK: &str = "digits: ";

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// A directory or the reports are not fit for it.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The file cannot be read.
    #[error("{path}: {error}")]
    File { path: String, error: std::io::Error },
    /// It holds something else.
    #[error("{path}: {error}")]
    Unreadable { path: String, error: PlanUnreadable },
    /// No runtime, or nobody who reads the answer.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Runs one command.
pub(crate) fn run(command: &RecoverClusterCommand) -> ExitCode {
    match answer(command).and_then(|text| Ok(std::io::stdout().lock().write_all(text.as_bytes())?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dist-agent recover-cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn answer(command: &RecoverClusterCommand) -> Result<String, CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        RecoverClusterCommand::Report { dir } => {
            let report = runtime.block_on(cluster_report(dir))?;
            Ok(marked(&report, &report.to_text()))
        }
        RecoverClusterCommand::Plan { reports } => {
            let reports = reports.iter().map(|file| read(file, ClusterReport::from_text));
            let plan = plan_cluster_recovery(&reports.collect::<Result<Vec<_>, _>>()?)?;
            Ok(marked(&plan, &plan.to_text()))
        }
        RecoverClusterCommand::Apply { plan, dir } => {
            let plan = read(plan, ClusterRecoveryPlan::from_text)?;
            let done = match runtime.block_on(recover_cluster(dir, &plan))? {
                ClusterRecovered::Chosen => "the cluster goes on with what this node knows of it",
                ClusterRecovered::Follows => "this node follows",
                ClusterRecovered::AlreadyDone => "this was done before",
            };
            Ok(format!("{done}; start it when all nodes of the plan are done\n"))
        }
    }
}

fn marked(what: &impl Display, digits: &str) -> String {
    format!("{what}{MARK}{digits}\n")
}

fn read<T>(file: &PathBuf, parse: impl Fn(&str) -> Result<T, PlanUnreadable>) -> Result<T, CommandError> {
    let path = || Path::display(file).to_string();
    let text = std::fs::read_to_string(file).map_err(|error| CommandError::File { path: path(), error })?;
    let digits = text.lines().rev().find_map(|line| line.strip_prefix(MARK)).unwrap_or(&text);
    parse(digits).map_err(|error| CommandError::Unreadable { path: path(), error })
}
