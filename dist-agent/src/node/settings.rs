//! What the program is told: flags, and the environment behind them. A flag wins.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use rafted_value::ReplicaId;

use crate::config::{AgentsConfig, ConfigError};
use crate::id::check_name;

pub(crate) use self::seeds::SeedArgs;

mod seeds;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "dist-agent", version, about = "Replicated agents over a sharded store, without a database beside it")]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a node until it is told to stop
    Node(Box<NodeArgs>),
    /// Makes certificates for the nodes of a cluster
    #[command(subcommand)]
    Tls(TlsCommand),
    /// Asks a running cluster, over the HTTP of any of its nodes
    Ctl(CtlArgs),
    /// Looks into the log of a stopped node
    Wal(WalArgs),
    /// Brings a cluster back whose own group lost its majority for good, with all its nodes stopped
    #[command(subcommand)]
    RecoverCluster(RecoverClusterCommand),
}

/// Runs a node.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeArgs {
    /// The node's name, which is in its certificate and decides its place: 1 to 128 of A-Z a-z 0-9 _ . -
    #[arg(long, env = "DIST_AGENT_NAME", value_parser = node_name)]
    pub(crate) name: String,
    /// The zone: replicas of a group are spread over zones
    #[arg(long, env = "DIST_AGENT_ZONE", default_value = "")]
    pub(crate) zone: String,
    /// Where the other nodes reach this one (UDP)
    #[arg(long, env = "DIST_AGENT_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:7101")]
    pub(crate) listen: SocketAddr,
    /// Where HTTP is served (TCP)
    #[arg(long, env = "DIST_AGENT_HTTP", value_name = "ADDR", default_value = "127.0.0.1:8101")]
    pub(crate) http: SocketAddr,
    /// The address told to other nodes, where it is not that of --listen
    #[arg(long, env = "DIST_AGENT_ADVERTISE", value_name = "ADDR")]
    pub(crate) advertise: Option<SocketAddr>,
    /// Where the node keeps its data
    #[arg(long, env = "DIST_AGENT_DATA_DIR", value_name = "DIR", required_unless_present_any = ["memory", "config"])]
    pub(crate) data_dir: Option<PathBuf>,
    /// Keep everything in memory: what the cluster holds is lost when a majority stops
    #[arg(long, env = "DIST_AGENT_MEMORY", conflicts_with = "data_dir")]
    pub(crate) memory: bool,
    #[command(flatten)]
    pub(crate) others: SeedArgs,
    /// Certificates: ca.pem, NAME.pem and NAME.key, as `tls` makes them
    #[arg(long, env = "DIST_AGENT_TLS_DIR", value_name = "DIR", conflicts_with = "dev_tls")]
    pub(crate) tls_dir: Option<PathBuf>,
    /// As --tls-dir, and makes what is missing; for nodes on one machine
    #[arg(long, env = "DIST_AGENT_DEV_TLS", value_name = "DIR")]
    pub(crate) dev_tls: Option<PathBuf>,
    /// A file of settings
    #[arg(long, env = "DIST_AGENT_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The length of a tick: a number with ms, s, m or h; the same on every node
    #[arg(long, env = "DIST_AGENT_TICK_INTERVAL", value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(crate) tick_interval: Duration,
    /// How log lines look on standard error
    #[arg(long, env = "DIST_AGENT_LOG_FORMAT", value_name = "FORMAT", default_value = "human")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum TlsCommand {
    /// Makes a certificate authority: DIR/ca.pem, and DIR/ca.key, which nodes do not need
    InitCa {
        /// Where
        dir: PathBuf,
    },
    /// Makes a node's certificate: DIR/NAME.pem and DIR/NAME.key
    Issue {
        /// Where the authority is
        dir: PathBuf,
        /// The node's name
        #[arg(long, value_parser = node_name)]
        name: String,
        /// A further host name or address to stand in the certificate
        #[arg(long = "host", value_name = "H")]
        hosts: Vec<String>,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CtlArgs {
    /// A node's HTTP address; several are tried in order
    #[arg(
        long = "http",
        env = "DIST_AGENT_CTL_HTTP",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8101",
        global = true
    )]
    pub(crate) http: Vec<String>,
    /// How answers are printed
    #[arg(long, default_value = "table", global = true)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: CtlCommand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// As the node answers
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum CtlCommand {
    /// Whether the cluster serves, and what it consists of
    Status,
    /// The nodes
    Nodes,
    /// The groups, with their leaders
    Groups,
    /// The shards of a keyspace, or of all
    Shards {
        /// Which
        keyspace: Option<String>,
    },
    /// The agents of a quota, or of all
    Agents {
        /// Which
        quota: Option<String>,
        /// Of this module only
        #[arg(long)]
        module: Option<String>,
    },
    /// The quotas: not yet
    Quota {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Moves everything off a node, so that it can leave
    Drain {
        /// Which
        node: String,
        /// Let it hold replicas again instead, if it has not left yet
        #[arg(long)]
        cancel: bool,
    },
    /// Forgets a dead node
    Remove {
        /// Which
        node: String,
    },
    /// Has groups go on that lost their majority for good; what only that had is lost
    #[group(required = true, multiple = false)]
    Recover {
        /// Print what would be done, and change nothing; keep what it prints
        #[arg(long)]
        plan: bool,
        /// Do what was printed into this file
        #[arg(long, value_name = "PLAN")]
        apply: Option<PathBuf>,
    },
    /// Writes everything into a file: not yet
    Backup {
        /// Which
        file: PathBuf,
    },
    /// Reads what `backup` wrote: not yet
    Restore {
        /// Which
        file: PathBuf,
    },
    /// What happens in the cluster, as it happens: not yet
    Events,
}

/// Looks into the log of a stopped node; nothing is written.
#[derive(Debug, Clone, Args)]
pub(crate) struct WalArgs {
    /// How the result is printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: WalCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum WalCommand {
    /// Prints the log's segments and the replicas in it
    Inspect {
        /// The node's data directory
        dir: PathBuf,
        /// Print each record of this replica instead
        #[arg(long, value_name = "ID", value_parser = replica_id)]
        replica: Option<ReplicaId>,
    },
    /// Reads the log, the snapshots and the node file; damage is told with file and byte, and is exit code 1
    Verify {
        /// The node's data directory
        dir: PathBuf,
    },
}

/// For a cluster in which nothing can be decided any more; what only lost nodes knew is lost. Stop all nodes that are
/// left, `report` on each, `plan` once from all reports, read the plan, `apply` it on each, start them; then remove the lost
/// nodes with `ctl remove`, and recover groups that lost their majority, too, with `ctl recover`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum RecoverClusterCommand {
    /// Prints what a stopped node knows; keep it in a file
    Report {
        /// The node's data directory
        dir: PathBuf,
    },
    /// Prints what would be done, from the reports of all nodes that are left; keep it in a file
    Plan {
        /// The files of the reports
        #[arg(required = true, value_name = "REPORT")]
        reports: Vec<PathBuf>,
    },
    /// Does on a stopped node what was planned
    Apply {
        /// The plan's file
        plan: PathBuf,
        /// The node's data directory
        dir: PathBuf,
    },
}

impl NodeArgs {
    /// The settings of the agents.
    pub(crate) fn agents(&self) -> Result<AgentsConfig, ConfigError> {
        AgentsConfig::default().with_tick_interval(self.tick_interval)
    }

    /// Whether the node is a cluster by itself: no other has its certificates.
    pub(crate) fn is_alone(&self) -> bool {
        self.others.is_empty()
    }
}

fn replica_id(given: &str) -> Result<ReplicaId, String> {
    let id = u64::from_str_radix(given, 16).ok().and_then(ReplicaId::new);
    id.ok_or_else(|| "a replica's id is a number above 0 in hexadecimal digits, as `wal inspect` prints it".to_owned())
}

fn node_name(given: &str) -> Result<String, String> {
    check_name("node name", given).map(|()| given.to_owned()).map_err(|error| error.to_string())
}

fn duration(given: &str) -> Result<Duration, String> {
    let digits = given.find(|character: char| !character.is_ascii_digit()).unwrap_or(given.len());
    let (number, unit) = given.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{given:?} is not a number with ms, s, m or h"))?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(format!("{given:?} is not a number with ms, s, m or h")),
    };
    let duration = millis.map(Duration::from_millis).ok_or_else(|| format!("{given:?} is too long"))?;
    AgentsConfig::default().with_tick_interval(duration).map(|_| duration).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(line.split_whitespace())
    }

    fn node(line: &str) -> NodeArgs {
        match parse(&format!("dist-agent node {line}")).unwrap().command {
            Command::Node(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_is_told_everything_by_flags() {
        let args = node(
            "--name n1 --zone z1 --listen 127.0.0.1:7101 --http [::1]:8101 --data-dir d --seed 127.0.0.1:7101 \
             --seed 127.0.0.1:7102 --bootstrap-expect 3 --dev-tls t --advertise 10.0.0.1:7101 --tick-interval 250ms \
             --log-format json",
        );
        assert_eq!((args.name.as_str(), args.zone.as_str()), ("n1", "z1"));
        assert_eq!(args.http.to_string(), "[::1]:8101");
        assert_eq!(args.others.bootstrap_expect, Some(3));
        assert_eq!(args.agents().unwrap().tick_interval(), Duration::from_millis(250));
        assert_eq!(args.log_format, LogFormat::Json);
        assert!(!args.is_alone());
    }

    #[test]
    fn a_node_alone_needs_a_name_and_a_place_for_its_data() {
        assert!(node("--name n1 --memory").is_alone());
        assert!(parse("dist-agent node --memory").is_err());
        assert!(parse("dist-agent node --name n1").is_err());
    }

    #[test]
    fn wrong_flags_are_usage_errors() {
        let wrong = [
            "--name n1 --memory --data-dir d",
            "--name n1 --memory --bootstrap-expect 3",
            "--name n1 --memory --seed 127.0.0.1:1 --bootstrap-expect 0",
            "--name n1 --memory --tls-dir a --dev-tls b",
            "--name n1 --memory --tick-interval 0s",
            "--name n1 --memory --tick-interval 1",
            "--name n1 --memory --tick-interval 99999999999999999999h",
            "--name n/1 --memory",
            "--name n1 --memory --listen nowhere",
            "--name n1 --memory --unknown",
            "--name n1 --memory --log-format xml",
        ];
        for line in wrong {
            let error = parse(&format!("dist-agent node {line}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        assert_eq!(parse("dist-agent").unwrap_err().exit_code(), 2);
        assert_eq!(parse("dist-agent --help").unwrap_err().exit_code(), 0);
    }

    #[test]
    fn ctl_takes_its_flags_on_either_side_of_the_command() {
        for line in ["ctl --http http://h:1 --output json nodes", "ctl nodes --http http://h:1 --output json"] {
            let Command::Ctl(args) = parse(&format!("dist-agent {line}")).unwrap().command else { panic!() };
            assert_eq!(args.command, CtlCommand::Nodes);
            assert_eq!((args.http, args.output), (vec!["http://h:1".to_owned()], Output::Json));
        }
    }

    #[test]
    fn a_replica_is_named_by_the_digits_that_are_printed() {
        let replica = |id: &str| parse(&format!("dist-agent wal inspect d --replica {id} --output json"));
        let Command::Wal(args) = replica("00000000000000ff").unwrap().command else { panic!() };
        let WalCommand::Inspect { replica: Some(id), .. } = args.command else { panic!() };
        assert_eq!((id.get(), args.output), (255, Output::Json));
        for wrong in ["0", "x", "-1", "11112222333344445"] {
            assert_eq!(replica(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        CommandLine::command().debug_assert();
    }
}
