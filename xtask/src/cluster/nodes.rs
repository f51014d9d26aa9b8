//! The node processes of one cluster, from the first start to the last stop.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{
    client::Client,
    command::Which,
    guard::Guard,
    ports::Addresses,
    processes::{Launch, Process, Standing},
    signals,
};

/// Zones are given to the nodes in turn.
const ZONE_COUNT: usize = 3;

/// How long a node may take to serve.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// How often it is asked whether it does.
const READY_POLL: Duration = Duration::from_millis(50);

/// How long a node may take to stop by itself: what it promises, and a little.
const STOP_DEADLINE: Duration = Duration::from_secs(12);

/// How many lines of a log are shown.
const LOG_LINES: usize = 20;

/// The nodes by name, n1 first.
pub struct Nodes {
    nodes: Vec<Node>,
    guard: Guard,
    memory: bool,
}

struct Node {
    name: String,
    zone: String,
    addresses: Addresses,
    process: Process,
    /// Arguments of a start that only joins.
    rejoin: Vec<String>,
    /// The id that the guard knows, until the process has been waited for.
    guarded: Option<u32>,
}

impl Nodes {
    /// The nodes as they will be started: `program` with data and logs in `directory`.
    pub fn new(program: &Path, directory: &Path, addresses: &[Addresses], memory: bool) -> Nodes {
        let node = |(index, own): (usize, &Addresses)| {
            let name = format!("n{}", index + 1);
            let zone = format!("z{}", index % ZONE_COUNT + 1);
            let rejoin = arguments(&name, &zone, directory, *own, addresses, memory);
            let mut arguments = rejoin.clone();
            arguments.extend(["--bootstrap-expect".to_owned(), addresses.len().to_string()]);
            let log: PathBuf = directory.join(format!("{name}.log"));
            let launch = Launch { program: program.to_owned(), arguments, log };
            Node { name, zone, addresses: *own, process: Process::new(launch), rejoin, guarded: None }
        };
        let nodes = addresses.iter().enumerate().map(node).collect();
        Nodes { nodes, guard: Guard::start(), memory }
    }

    pub fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// Names and HTTP addresses.
    pub fn http(&self) -> Vec<(String, SocketAddr)> {
        self.nodes.iter().map(|node| (node.name.clone(), node.addresses.http)).collect()
    }

    /// Starts and waits until each answers that it serves.
    pub fn start(&mut self, which: &Which, client: &Client) -> Result<()> {
        let indexes = self.indexes(which, |process| process.pid().is_none(), "runs already")?;
        let is_restart = |node: &mut Node| node.process.standing() != Standing::NotStarted;
        for &index in &indexes {
            let node = &mut self.nodes[index];
            if self.memory && is_restart(node) {
                // It has forgotten its cluster, and must not make a second one.
                node.process.set_arguments(node.rejoin.clone());
            }
            if let Some(ended) = node.guarded.take() {
                self.guard.remove(ended);
            }
            let pid = node.process.start().with_context(|| format!("cannot start {}", node.name))?;
            node.guarded = Some(pid);
            self.guard.add(pid);
        }
        let deadline = Instant::now() + READY_DEADLINE;
        for &index in &indexes {
            self.wait_ready(index, client, deadline)?;
        }
        for &index in &indexes {
            client.set_serves(&self.nodes[index].name, true);
        }
        Ok(())
    }

    /// SIGKILL; several get it before the first is waited for.
    pub fn kill(&mut self, which: &Which, client: &Client) -> Result<()> {
        let indexes = self.indexes(which, |process| process.pid().is_some(), "does not run")?;
        for &index in &indexes {
            let node = &mut self.nodes[index];
            client.set_serves(&node.name, false);
            node.process.send_kill().with_context(|| format!("cannot kill {}", node.name))?;
        }
        for &index in &indexes {
            let node = &mut self.nodes[index];
            node.process.reap()?;
            if let Some(pid) = node.guarded.take() {
                self.guard.remove(pid);
            }
        }
        Ok(())
    }

    pub fn pause(&mut self, name: &str, client: &Client) -> Result<()> {
        let index = self.index(name)?;
        self.nodes[index].process.pause().with_context(|| format!("cannot pause {name}"))?;
        client.set_serves(name, false);
        Ok(())
    }

    pub fn resume(&mut self, name: &str, client: &Client) -> Result<()> {
        let index = self.index(name)?;
        self.nodes[index].process.resume().with_context(|| format!("cannot resume {name}"))?;
        client.set_serves(name, true);
        Ok(())
    }

    /// Name, zone and what the process does.
    pub fn standings(&mut self) -> Vec<(String, String, Standing)> {
        let standing = |node: &mut Node| (node.name.clone(), node.zone.clone(), node.process.standing());
        self.nodes.iter_mut().map(standing).collect()
    }

    /// The CPU time that all processes have used, where the system tells.
    pub fn cpu_time(&mut self) -> Option<Duration> {
        let running = self.nodes.iter_mut().filter_map(|node| node.process.cpu_time());
        running.reduce(|sum, time| sum + time)
    }

    /// The memory that all processes have, in bytes; 0 where the system does not tell.
    pub fn memory(&mut self) -> u64 {
        self.nodes.iter_mut().filter_map(|node| node.process.memory()).sum()
    }

    /// An error where a node has ended by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if let Standing::Ended(status) = node.process.standing() {
                bail!(ended(node, status));
            }
        }
        Ok(())
    }

    /// The last lines of every log.
    pub fn log_tails(&self) -> String {
        let tail = |node: &Node| {
            let path = node.process.log().display().to_string();
            format!("--- {}, {path}\n{}\n", node.name, node.process.log_tail(LOG_LINES))
        };
        self.nodes.iter().map(tail).collect()
    }

    /// Stops all in good time; kills those that take too long, or all at another Ctrl-C. Answers who was killed.
    pub fn stop_all(&mut self) -> Vec<String> {
        let seen = signals::received();
        let deadline = Instant::now() + STOP_DEADLINE;
        for node in &mut self.nodes {
            node.process.send_stop();
        }
        let mut killed = Vec::new();
        for node in &mut self.nodes {
            if !node.process.wait_stopped(deadline, || signals::received() > seen) {
                killed.push(node.name.clone());
                // A failure means that it has ended.
                let _ = node.process.send_kill();
                let _ = node.process.reap();
            }
            if let Some(pid) = node.guarded.take() {
                self.guard.remove(pid);
            }
        }
        killed
    }

    fn wait_ready(&mut self, index: usize, client: &Client, deadline: Instant) -> Result<()> {
        let node = &mut self.nodes[index];
        while !client.is_ready(&node.name) {
            signals::check()?;
            if let Standing::Ended(status) = node.process.standing() {
                bail!(ended(node, status));
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} does not serve after {READY_DEADLINE:?}; the end of {}:\n{}",
                    node.name,
                    node.process.log().display(),
                    node.process.log_tail(LOG_LINES)
                );
            }
            thread::sleep(READY_POLL);
        }
        Ok(())
    }

    fn index(&self, name: &str) -> Result<usize> {
        let index = self.nodes.iter().position(|node| node.name == name);
        index.ok_or_else(|| anyhow!("no node is named {name:?}: there are {}", self.names().join(", ")))
    }

    /// The nodes that are meant; of all, those that `may`.
    fn indexes(&mut self, which: &Which, may: impl Fn(&mut Process) -> bool, otherwise: &str) -> Result<Vec<usize>> {
        match which {
            Which::One(name) => {
                let index = self.index(name)?;
                if !may(&mut self.nodes[index].process) {
                    bail!("{name} {otherwise}");
                }
                Ok(vec![index])
            }
            Which::All => {
                let nodes = self.nodes.iter_mut().enumerate();
                let nodes = nodes.filter_map(|(index, node)| may(&mut node.process).then_some(index));
                Ok(nodes.collect())
            }
        }
    }
}

/// On the way out of an error or a panic: at once, and before the guard's turn comes.
impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Failures mean that it does not run.
            let _ = node.process.send_kill();
            let _ = node.process.reap();
            if let Some(pid) = node.guarded.take() {
                self.guard.remove(pid);
            }
        }
    }
}

fn ended(node: &Node, status: std::process::ExitStatus) -> String {
    format!(
        "{} ended by itself ({status}); the end of {}:\n{}",
        node.name,
        node.process.log().display(),
        node.process.log_tail(LOG_LINES)
    )
}

fn arguments(name: &str, zone: &str, directory: &Path, own: Addresses, all: &[Addresses], memory: bool) -> Vec<String> {
    let path = |part: &str| directory.join(part).display().to_string();
    let mut arguments: Vec<String> = vec!["node".into()];
    let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    flag("--name", name.to_owned());
    flag("--zone", zone.to_owned());
    flag("--listen", own.listen.to_string());
    flag("--http", own.http.to_string());
    flag("--dev-tls", path("tls"));
    for seed in all {
        flag("--seed", seed.listen.to_string());
    }
    if memory {
        arguments.push("--memory".into());
    } else {
        flag("--data-dir", path(name));
    }
    arguments
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{super::ports, *};

    /// Nodes of which each is this program of the system's, with the node's arguments.
    fn nodes(directory: &Path, program: &str, memory: bool) -> (Nodes, Client) {
        let addresses = ports::addresses(2, None, None).unwrap();
        let nodes = Nodes::new(Path::new(program), directory, &addresses, memory);
        let client = Client::new(nodes.http());
        (nodes, client)
    }

    #[test]
    fn a_node_gets_the_flags_of_the_interface() {
        let directory = tempfile::tempdir().unwrap();
        for memory in [false, true] {
            let (mut nodes, client) = nodes(directory.path(), "echo", memory);
            let error = format!("{:#}", nodes.start(&Which::One("n2".into()), &client).unwrap_err());
            let log = error.lines().last().unwrap();
            let all = [&nodes.nodes[0].addresses, &nodes.nodes[1].addresses];
            let data = match memory {
                true => "--memory".to_owned(),
                false => format!("--data-dir {}", directory.path().join("n2").display()),
            };
            let expected = format!(
                "node --name n2 --zone z2 --listen {} --http {} --dev-tls {} --seed {} --seed {} {data} \
                 --bootstrap-expect 2",
                all[1].listen,
                all[1].http,
                directory.path().join("tls").display(),
                all[0].listen,
                all[1].listen,
            );
            assert_eq!(log, expected);
        }
    }

    #[test]
    fn a_node_that_dies_at_the_start_is_told_with_the_end_of_its_log() {
        let directory = tempfile::tempdir().unwrap();
        // It does not know the flags of a node, and says so.
        let (mut nodes, client) = nodes(directory.path(), "ls", false);
        let error = format!("{:#}", nodes.start(&Which::All, &client).unwrap_err());
        assert!(error.contains("n1 ended by itself (exit status: "), "{error}");
        assert!(error.contains("--name"), "{error}");
        assert!(nodes.check_alive().is_err());
    }

    #[test]
    fn an_unknown_node_is_told_with_those_that_exist() {
        let directory = tempfile::tempdir().unwrap();
        let (mut nodes, client) = nodes(directory.path(), "true", false);
        let error = nodes.kill(&Which::One("n9".into()), &client).unwrap_err().to_string();
        assert_eq!(error, "no node is named \"n9\": there are n1, n2");
        let error = nodes.kill(&Which::One("n1".into()), &client).unwrap_err().to_string();
        assert_eq!(error, "n1 does not run");
        assert!(nodes.stop_all().is_empty());
    }
}
