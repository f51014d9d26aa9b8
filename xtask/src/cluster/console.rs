//! Runs the console's commands: on a running cluster, one after another, from a terminal, a pipe or a script.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    client::{Client, escaped},
    command::{self, AgentCall, AgentCallKind, Command, HELP, Which},
    load::{DEMO, Load, Tally},
    nodes::Nodes,
    processes::Standing,
    random,
    record::Report,
    signals,
    table::{grouped, table, uptime},
    view::{self, Load as NodeLoad, View},
};

/// How often a signal is looked for while waiting for a line, and while a count is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long the experiment's table waits for every shard of the demo to have a leader that runs.
const LEADERS_DEADLINE: Duration = Duration::from_secs(5);

/// The quota of `bench`.
const BENCH_QUOTA: &str = "bench";

/// The quota of `count`.
const COUNT_QUOTA: &str = "count";

/// A running cluster with its client side.
pub struct Console<'a> {
    nodes: Nodes,
    client: &'a Client,
    load: Load<'a>,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Continue,
    Quit,
}

impl<'a> Console<'a> {
    pub fn new(nodes: Nodes, client: &'a Client) -> Console<'a> {
        let load = Load::new(client, nodes.names().len());
        Console { nodes, client, load }
    }

    pub fn nodes(&mut self) -> &mut Nodes {
        &mut self.nodes
    }

    pub fn load(&self) -> &Load<'a> {
        &self.load
    }

    /// For those who write while they disturb the nodes.
    pub fn parts(&mut self) -> (&Load<'a>, &mut Nodes, &'a Client) {
        (&self.load, &mut self.nodes, self.client)
    }

    /// Lines from standard input until `quit` or its end. What fails is told, and the next line is read; without
    /// a terminal a failure is the result in the end.
    pub fn run_lines(&mut self) -> Result<()> {
        let is_terminal = io::stdin().is_terminal();
        let lines = read_lines()?;
        let mut failed = 0_u32;
        loop {
            if is_terminal {
                print!("> ");
                io::stdout().flush()?;
            }
            let Some(line) = next_line(&lines)? else {
                break;
            };
            let ran = match command::parse(&line) {
                Ok(None) => Ok(Next::Continue),
                Ok(Some(command)) => self.run(&command),
                Err(error) => Err(error.into()),
            };
            match ran {
                Ok(Next::Continue) => {}
                Ok(Next::Quit) => break,
                Err(error) => {
                    signals::check()?;
                    failed += 1;
                    eprintln!("{error:#}");
                }
            }
        }
        if failed > 0 && !is_terminal {
            bail!("{failed} commands failed");
        }
        Ok(())
    }

    /// Commands with their line numbers, until the first failure.
    pub fn run_script(&mut self, commands: &[(usize, String, Command)]) -> Result<()> {
        for (number, line, command) in commands {
            println!("> {line}");
            let next = self.run(command).with_context(|| format!("line {number}, {line:?}"))?;
            self.nodes.check_alive()?;
            if next == Next::Quit {
                break;
            }
        }
        Ok(())
    }

    /// One command; prints what it finds.
    pub fn run(&mut self, command: &Command) -> Result<Next> {
        match command {
            Command::Help => println!("{HELP}"),
            Command::Stat => self.stat()?,
            Command::Fill { count } => self.fill(*count)?,
            Command::Check => {
                let report = self.check()?;
                if !report.is_clean() {
                    bail!("not everything that was acknowledged is there");
                }
            }
            Command::Kill(which) => self.kill(which)?,
            Command::Start(which) => self.start(which)?,
            Command::Pause { node } => self.nodes.pause(node, self.client)?,
            Command::Resume { node } => self.nodes.resume(node, self.client)?,
            Command::Put { key, value } => {
                self.load.ensure_demo()?;
                self.load.put(key, value.as_bytes())?;
            }
            Command::Get { key } => self.get(key)?,
            Command::Agent(call) => self.agent(call)?,
            Command::Groups => self.groups()?,
            Command::Shards => self.shards()?,
            Command::Agents => self.agents()?,
            Command::Count { count, victim } => self.count(*count, victim.as_deref())?,
            Command::Bench { duration, clients } => self.bench(*duration, *clients)?,
            Command::NotYet { name } => bail!("not yet: `{name}` is named but not built"),
            Command::Quit => return Ok(Next::Quit),
        }
        Ok(Next::Continue)
    }

    /// SIGKILL, told.
    pub fn kill(&mut self, which: &Which) -> Result<()> {
        self.nodes.kill(which, self.client)?;
        println!("{} killed (SIGKILL)", describe(which));
        Ok(())
    }

    /// Starts and waits until it serves, told.
    pub fn start(&mut self, which: &Which) -> Result<()> {
        let start = Instant::now();
        self.nodes.start(which, self.client)?;
        println!("{} ready after {:.1} s", describe(which), start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Writes k1..kN; an error where not all were acknowledged.
    pub fn fill(&mut self, count: u64) -> Result<()> {
        let start = Instant::now();
        let Tally { acknowledged, failed } = self.load.fill(count)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("filled {} of {} keys in {seconds:.1} s", grouped(acknowledged), grouped(count));
        match failed.first() {
            None => Ok(()),
            Some(first) => bail!("{} writes failed, the first: {first}", failed.len()),
        }
    }

    /// Reads all back; prints the result, clean or not.
    pub fn check(&mut self) -> Result<Report> {
        let report = self.load.check()?;
        println!("{report}");
        Ok(report)
    }

    /// The table of nodes, once every shard of the demo has a leader that runs, or after a while without.
    pub fn settled_stat(&mut self) -> Result<()> {
        let view = self.settled_view()?;
        self.print_nodes(&view);
        Ok(())
    }

    fn stat(&mut self) -> Result<()> {
        let view = self.view()?;
        self.print_nodes(&view);
        Ok(())
    }

    fn print_nodes(&mut self, view: &View) {
        let mut rows = Vec::new();
        for (name, zone, standing) in self.nodes.standings() {
            let NodeLoad { replicas, leaders, keys_led, agents_led, .. } = view.load(&name);
            let told = view.node_states.get(&name).map_or("-", String::as_str);
            let (state, up) = match standing {
                Standing::Running { uptime } => (told.to_owned(), Some(uptime)),
                Standing::Paused { uptime } => ("paused".to_owned(), Some(uptime)),
                Standing::Killed => ("killed".to_owned(), None),
                Standing::NotStarted | Standing::Stopped => ("stopped".to_owned(), None),
                Standing::Ended(status) => (format!("ended ({status})"), None),
            };
            let up = up.map_or("-".to_owned(), uptime);
            let mut row = vec![name, state, zone];
            row.extend([replicas, leaders, keys_led, agents_led].map(grouped));
            row.push(up);
            rows.push(row);
        }
        let titles = ["node", "state", "zone", "replicas", "leaders", "keys led", "agents led", "uptime"];
        print!("{}", table(&titles, &rows));
    }

    /// The running node that leads most shards of the demo.
    pub fn busiest(&mut self) -> Result<String> {
        let view = self.settled_view()?;
        let busiest = self.running().into_iter().max_by_key(|name| view.load(name).shards_led);
        busiest.context("no node runs")
    }

    /// A running node that is not the given one.
    pub fn another(&mut self, than: &str) -> Result<String> {
        self.settled_view()?;
        let mut others = self.running();
        others.retain(|name| name != than);
        if others.is_empty() {
            bail!("no node but {than} runs");
        }
        Ok(others.swap_remove(random::below(others.len())))
    }

    fn running(&mut self) -> Vec<String> {
        let standings = self.nodes.standings().into_iter();
        let running = standings.filter(|(.., standing)| matches!(standing, Standing::Running { .. }));
        running.map(|(name, ..)| name).collect()
    }

    fn settled_view(&mut self) -> Result<View> {
        let deadline = Instant::now() + LEADERS_DEADLINE;
        loop {
            let view = self.view()?;
            let running = self.running();
            let is_led = |shard: &view::Shard| {
                let leader = view.leader(&shard.group);
                shard.keyspace != DEMO || leader.is_some_and(|leader| running.iter().any(|name| name == leader))
            };
            if view.shards.iter().all(is_led) || Instant::now() >= deadline {
                return Ok(view);
            }
            signals::check()?;
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn view(&self) -> Result<View> {
        let nodes = self.client.list("/v1/nodes", "nodes")?;
        let groups = self.client.list("/v1/groups", "groups")?;
        let keyspaces = self.client.list("/v1/keyspaces", "keyspaces")?;
        let mut shards = Vec::new();
        for keyspace in view::keyspace_names(&keyspaces) {
            let path = format!("/v1/keyspaces/{}/shards", escaped(&keyspace));
            shards.push((keyspace, self.client.list(&path, "shards")?));
        }
        Ok(View::new(&nodes, &groups, &shards))
    }

    fn get(&self, key: &str) -> Result<()> {
        self.load.ensure_demo()?;
        match self.load.get(key)? {
            Some(value) => println!("{}", String::from_utf8_lossy(&value)),
            None => bail!("{key:?} is absent from the keyspace {DEMO:?}"),
        }
        Ok(())
    }

    fn agent(&self, call: &AgentCall) -> Result<()> {
        let (verb, field) = match call.kind {
            AgentCallKind::Command => ("command", "reply"),
            AgentCallKind::Query => ("query", "answer"),
        };
        let path = agent_path(&call.quota, &call.module, &call.key, verb);
        let body = call.body.to_string();
        let is_command = call.kind == AgentCallKind::Command;
        let mut answer = self.load.agent(&path, body.as_bytes(), is_command);
        if is_command && matches!(&answer, Err(error) if error.to_string().contains("quota_not_found")) {
            self.load.put_unlimited_quota(&call.quota)?;
            println!("made the quota {:?}, without a limit", call.quota);
            answer = self.load.agent(&path, body.as_bytes(), is_command);
        }
        println!("{}", answer?[field]);
        Ok(())
    }

    fn groups(&self) -> Result<()> {
        let rows: Vec<Vec<String>> = self
            .view()?
            .groups
            .into_iter()
            .map(|group| {
                let leader = group.leader.unwrap_or_else(|| "-".to_owned());
                vec![group.name, group.state, leader, group.replicas.join(" ")]
            })
            .collect();
        print!("{}", table(&["group", "state", "leader", "replicas"], &rows));
        Ok(())
    }

    fn shards(&self) -> Result<()> {
        let view = self.view()?;
        let row = |shard: &view::Shard| {
            let leader = view.leader(&shard.group).unwrap_or("-").to_owned();
            let view::Shard { keyspace, group, lower, upper, phase, .. } = shard.clone();
            vec![keyspace, group, lower, upper, grouped(shard.keys), phase, leader]
        };
        let rows: Vec<Vec<String>> = view.shards.iter().map(row).collect();
        let titles = ["keyspace", "group", "lower", "upper", "keys", "phase", "leader"];
        print!("{}", table(&titles, &rows));
        Ok(())
    }

    fn agents(&self) -> Result<()> {
        let mut rows = Vec::new();
        for quota in self.client.list("/v1/quotas", "quotas")? {
            let Value::String(quota) = quota else {
                continue;
            };
            let path = format!("/v1/agents/{}", escaped(&quota));
            for agent in self.client.list(&path, "agents")? {
                rows.push(vec![quota.clone(), view::text(&agent, "module"), view::text(&agent, "key")]);
            }
        }
        print!("{}", table(&["quota", "module", "key"], &rows));
        Ok(())
    }

    /// Counts with many clients; the victim is killed after a third and started after two thirds.
    fn count(&mut self, count: u64, victim: Option<&str>) -> Result<()> {
        let agent = format!("count-{:016x}", random::number());
        self.load.put_unlimited_quota(COUNT_QUOTA)?;
        let path = agent_path(COUNT_QUOTA, "counter", &agent, "command");
        let (done, ended) = (AtomicU64::new(0), AtomicBool::new(false));
        let (load, nodes, client) = (&self.load, &mut self.nodes, self.client);
        let start = Instant::now();
        let failed = thread::scope(|scope| {
            let counting = scope.spawn(|| {
                let failed = load.count(&path, count, &done);
                ended.store(true, Ordering::SeqCst);
                failed
            });
            let disturbed: Result<()> = victim.map_or(Ok(()), |node| {
                let which = Which::One(node.to_owned());
                wait_for(&done, count / 3, &ended)?;
                nodes.kill(&which, client)?;
                println!("  {node} killed after {} commands", grouped(done.load(Ordering::SeqCst)));
                wait_for(&done, count / 3 * 2, &ended)?;
                nodes.start(&which, client)?;
                println!("  {node} ready after {} commands", grouped(done.load(Ordering::SeqCst)));
                Ok(())
            });
            let failed = counting.join().unwrap_or_else(|_| vec!["the clients panicked".into()]);
            disturbed.map(|()| failed)
        })?;
        signals::check()?;
        let path = agent_path(COUNT_QUOTA, "counter", &agent, "query");
        let value = self.load.agent(&path, b"\"get\"", false)?["answer"].as_u64();
        let value_text = value.map_or("nothing".to_owned(), grouped);
        let seconds = start.elapsed().as_secs_f64();
        let answered = done.into_inner();
        println!("counted to {value_text} with {} answers in {seconds:.1} s", grouped(answered));
        if let Some(first) = failed.first() {
            bail!("{} commands failed, the first: {first}", failed.len());
        }
        if value != Some(count) || answered != count {
            bail!("the counter must be exactly {}", grouped(count));
        }
        Ok(())
    }

    fn bench(&mut self, duration: Duration, clients: usize) -> Result<()> {
        let cpu_before = self.nodes.cpu_time();
        let figures = self.load.bench(BENCH_QUOTA, duration, clients)?;
        let cpu = self.nodes.cpu_time().zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
        let per_second = figures.commands as f64 / figures.elapsed.as_secs_f64();
        let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
        println!(
            "{} commands by {clients} clients in {:.1} s: {}/s, p50 {:.2} ms, p99 {:.2} ms, {} errors",
            grouped(figures.commands),
            figures.elapsed.as_secs_f64(),
            grouped(per_second as u64),
            millis(figures.p50),
            millis(figures.p99),
            figures.errors
        );
        if let Some(cpu) = cpu {
            let per_command = cpu.as_micros() as f64 / figures.commands as f64;
            println!("{per_command:.0} us of CPU per command, all nodes together, without the client");
        }
        Ok(())
    }
}

fn agent_path(quota: &str, module: &str, key: &str, verb: &str) -> String {
    format!("/v1/agents/{}/{}/{}/{verb}", escaped(quota), escaped(module), escaped(key))
}

fn describe(which: &Which) -> String {
    match which {
        Which::One(name) => name.clone(),
        Which::All => "all nodes".to_owned(),
    }
}

/// Until so many are done, or all has ended, or the user wants an end.
pub fn wait_for(done: &AtomicU64, count: u64, ended: &AtomicBool) -> Result<()> {
    while done.load(Ordering::SeqCst) < count && !ended.load(Ordering::SeqCst) {
        signals::check()?;
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Standard input by line. Its reader cannot be interrupted, so it has a thread that ends with the process.
fn read_lines() -> Result<Receiver<io::Result<String>>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("console".into()).spawn(move || {
        for line in io::stdin().lock().lines() {
            if sender.send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// `None` at the end of input.
fn next_line(lines: &Receiver<io::Result<String>>) -> Result<Option<String>> {
    loop {
        signals::check()?;
        match lines.recv_timeout(POLL_INTERVAL) {
            Ok(line) => return line.map(Some).context("cannot read the console's input"),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
