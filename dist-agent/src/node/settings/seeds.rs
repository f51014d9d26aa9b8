//! How a node finds the others, as the program is told.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use raft_fleet::{FleetBuilder, Seed, SeedFile, SeedList};

use super::node_name;

/// Where other nodes are, and who makes a fresh cluster.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("others").multiple(true).args(["seeds", "seed_file", "services"])))]
pub(crate) struct SeedArgs {
    /// A node to join through, by address or by host name; the one that listens on the first makes a fresh cluster
    #[arg(long = "seed", env = "DIST_AGENT_SEED", value_name = "HOST:PORT", value_delimiter = ',', value_parser = node)]
    seeds: Vec<Seed>,
    /// A file with an address, host or service on each line; it is read again while the node looks for others
    #[arg(long, env = "DIST_AGENT_SEED_FILE", value_name = "FILE")]
    seed_file: Option<PathBuf>,
    /// A service whose SRV records name nodes, as _NAME._PROTOCOL.DOMAIN
    #[arg(long = "seed-srv", env = "DIST_AGENT_SEED_SRV", value_name = "NAME", value_delimiter = ',', value_parser = service)]
    services: Vec<Seed>,
    /// With how many nodes a fresh cluster begins; without it this node only joins
    #[arg(long, env = "DIST_AGENT_BOOTSTRAP_EXPECT", value_name = "N", requires = "others", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) bootstrap_expect: Option<u32>,
    /// The node that makes a fresh cluster, where it is not the one that listens on the first --seed
    #[arg(long, env = "DIST_AGENT_BOOTSTRAP_NODE", value_name = "NAME", requires = "bootstrap_expect", value_parser = node_name)]
    pub(crate) bootstrap_node: Option<String>,
}

impl SeedArgs {
    /// Whether the node is to find nobody.
    pub(crate) fn is_empty(&self) -> bool {
        self.seeds.is_empty() && self.seed_file.is_none() && self.services.is_empty()
    }

    /// What is missing, if anything. Configuration decides who makes a cluster, and names in DNS may change.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let is_named = self.bootstrap_node.is_some() || matches!(self.seeds.first(), Some(Seed::Address(_)));
        if self.bootstrap_expect.is_some() && !is_named {
            return Err(
                "with --bootstrap-expect, the first --seed is the address of the node that makes the cluster; \
                        where it is a host name, or where there is none, name that node by --bootstrap-node",
            );
        }
        Ok(())
    }

    /// Tells the fleet.
    pub(crate) fn give_to(&self, mut builder: FleetBuilder) -> FleetBuilder {
        let starts_with_address = matches!(self.seeds.first(), Some(Seed::Address(_)));
        let (mut addresses, mut names) = (Vec::new(), Vec::new());
        for seed in &self.seeds {
            match seed {
                Seed::Address(address) if starts_with_address => addresses.push(*address),
                other => names.push(other.clone()),
            }
        }
        names.extend(self.services.iter().cloned());
        builder = builder.seeds(addresses);
        if !names.is_empty() {
            builder = builder.discovery(SeedList::new(names));
        }
        if let Some(file) = &self.seed_file {
            builder = builder.discovery(SeedFile::new(file));
        }
        if let Some(name) = &self.bootstrap_node {
            builder = builder.bootstrap_node(name);
        }
        match self.bootstrap_expect {
            Some(expect) => builder.bootstrap_expect(expect),
            None => builder,
        }
    }
}

fn node(given: &str) -> Result<Seed, String> {
    match given.parse() {
        Ok(Seed::Service(name)) => Err(format!("{name} is a service: give it by --seed-srv")),
        Ok(seed) => Ok(seed),
        Err(error) => Err(error.to_string()),
    }
}

fn service(given: &str) -> Result<Seed, String> {
    match given.parse() {
        Ok(seed @ Seed::Service(_)) => Ok(seed),
        Ok(seed) => Err(format!("{seed} is no service: give it by --seed")),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Command, CommandLine};
    use super::*;

    fn parse(line: &str) -> Result<SeedArgs, clap::Error> {
        let line = format!("dist-agent node --name n1 --memory {line}");
        match CommandLine::try_parse_from(line.split_whitespace())?.command {
            Command::Node(args) => Ok(args.others),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn seeds_are_addresses_hosts_files_and_services() {
        let args = parse("--seed 127.0.0.1:1,db1:7101 --seed [::1]:2 --seed-file f --seed-srv _db._udp.corp").unwrap();
        assert_eq!(args.seeds.len(), 3);
        assert_eq!(args.seed_file, Some("f".into()));
        assert_eq!(args.services, [Seed::Service("_db._udp.corp".into())]);
        assert!(!args.is_empty() && args.check().is_ok());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_seed_is_a_usage_error() {
        let wrong = [
            "--seed db1",
            "--seed _db._udp.corp",
            "--seed-srv db1:7101",
            "--seed-srv corp",
            "--bootstrap-expect 3",
            "--seed 127.0.0.1:1 --bootstrap-node n1",
            "--seed 127.0.0.1:1 --bootstrap-expect 3 --bootstrap-node n/1",
        ];
        for line in wrong {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn who_makes_the_cluster_is_named_by_an_address_or_by_name() {
        let table = [
            ("--seed 127.0.0.1:1 --seed db1:1 --bootstrap-expect 3", true),
            ("--seed db1:1 --seed 127.0.0.1:1 --bootstrap-expect 3", false),
            ("--seed db1:1 --bootstrap-expect 3 --bootstrap-node n1", true),
            ("--seed db1:1", true),
            ("--seed-file f --bootstrap-expect 3", false),
            ("--seed-file f --bootstrap-expect 3 --bootstrap-node n2", true),
            ("--seed-srv _db._udp.corp --bootstrap-expect 3", false),
            ("--seed-srv _db._udp.corp", true),
        ];
        for (line, is_complete) in table {
            assert_eq!(parse(line).unwrap().check().is_ok(), is_complete, "{line}");
        }
    }
}
