//! Clusters of real processes on loopback, and a small HTTP client. Everything ends with the test, also a failed one.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long a cluster may take to serve.
pub const START: Duration = Duration::from_secs(40);

/// The program under test.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dist-agent"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DIST_AGENT_")) {
        command.env_remove(name);
    }
    command
}

/// A UDP port nobody uses now.
pub fn free_udp() -> SocketAddr {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// A TCP port nobody uses now.
pub fn free_tcp() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// A process that is killed when it is dropped.
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub fn adopt(child: Child) -> Self {
        Self(child)
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        until(patience, "the process ends", || self.0.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks until there is an answer.
pub fn until<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "after {patience:?} still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One node of a cluster.
pub struct NodeProcess {
    name: String,
    arguments: Vec<String>,
    log: std::path::PathBuf,
    process: Option<Process>,
    pub client: Client,
}

impl NodeProcess {
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = program();
        self.process = Some(Process::spawn(command.args(&self.arguments).stderr(log)));
    }

    /// As SIGKILL does it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    pub fn argument_after(&self, flag: &str) -> String {
        let at = self.arguments.iter().position(|argument| argument == flag).unwrap();
        self.arguments[at + 1].clone()
    }

    /// Waits until it has logged this.
    pub fn wait_until_logged(&self, text: &str) {
        let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
        until(START, text, || log().contains(text).then_some(()));
    }

    pub fn wait_until_ready(&self) {
        let ready = || self.client.try_get("/readyz").filter(|response| response.status == 200);
        let ended = || std::fs::read_to_string(&self.log).unwrap_or_default();
        let deadline = Instant::now() + START;
        while ready().is_none() {
            assert!(Instant::now() < deadline, "{} is not ready; its log:\n{}", self.name, ended());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A cluster of processes.
pub struct Cluster {
    pub nodes: Vec<NodeProcess>,
    directory: TempDir,
}

impl Cluster {
    /// Starts nodes n1, n2, … in memory, or with data, and waits until all serve.
    pub fn start(count: usize, in_memory: bool, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let addresses: Vec<(SocketAddr, SocketAddr)> = (0..count).map(|_| (free_udp(), free_tcp())).collect();
        let nodes = (0..count).map(|at| node(directory.path(), at, &addresses, in_memory, more)).collect();
        let mut cluster = Self { nodes, directory };
        for node in &mut cluster.nodes {
            node.start();
        }
        for node in &cluster.nodes {
            node.wait_until_ready();
        }
        cluster
    }

    /// One more node in memory, which is told this of the others; it is not started yet.
    pub fn joiner(&self, name: &str, seeds: &[&str]) -> NodeProcess {
        let (listen, http) = (free_udp().to_string(), free_tcp());
        let tls = self.nodes[0].argument_after("--dev-tls");
        let own =
            ["node", "--name", name, "--memory", "--listen", &listen, "--http", &http.to_string(), "--dev-tls", &tls];
        let arguments = own.iter().chain(seeds).map(|&argument| argument.to_owned()).collect();
        let log = self.directory.path().join(format!("{name}.log"));
        NodeProcess { name: name.to_owned(), arguments, log, process: None, client: Client::new(http) }
    }

    /// Where files of a test may be.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn client(&self, at: usize) -> &Client {
        &self.nodes[at % self.nodes.len()].client
    }
}

fn node(
    directory: &Path,
    at: usize,
    addresses: &[(SocketAddr, SocketAddr)],
    in_memory: bool,
    more: &[&str],
) -> NodeProcess {
    let name = format!("n{}", at + 1);
    let (listen, http) = addresses[at];
    let text = |path: &Path| path.display().to_string();
    let mut arguments: Vec<String> = ["node", "--name", &name, "--zone", &format!("z{at}")].map(str::to_owned).to_vec();
    arguments.extend(["--listen".into(), listen.to_string(), "--http".into(), http.to_string()]);
    arguments.extend(["--dev-tls".into(), text(&directory.join("tls"))]);
    for (seed, _) in addresses {
        arguments.extend(["--seed".into(), seed.to_string()]);
    }
    arguments.extend(["--bootstrap-expect".into(), addresses.len().to_string()]);
    if in_memory {
        arguments.push("--memory".into());
    } else {
        arguments.extend(["--data-dir".into(), text(&directory.join(&name))]);
    }
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    let log = directory.join(format!("{name}.log"));
    NodeProcess { name, arguments, log, process: None, client: Client::new(http) }
}

/// What a node answered.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of an error.
    pub fn error(&self) -> String {
        let json = self.json();
        assert!(json["message"].as_str().is_some_and(|message| !message.is_empty()), "{json}");
        json["error"].as_str().unwrap().to_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) -> Self {
        let response = self.expect(status);
        assert_eq!(response.error(), code);
        response
    }
}

/// An HTTP client of one node.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    pub address: SocketAddr,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30)));
        // A connection of its own for each request: one that the server closes while it is idle would look like a
        // node that does not answer.
        let config = config.max_idle_connections(0).max_idle_connections_per_host(0);
        let config = config.http_status_as_error(false).build();
        Self { agent: config.into(), address }
    }

    /// `None`: nobody answered.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Option<Response> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = match body {
            Some(body) => self.agent.run(request.body(body.to_vec()).unwrap()),
            None => self.agent.run(request.body(()).unwrap()),
        };
        let sent = sent.inspect_err(|error| eprintln!("{method} {path}: {error}"));
        let (parts, mut body) = sent.ok()?.into_parts();
        let body = body.with_config().limit(64 << 20).read_to_vec().ok()?;
        Some(Response { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Response {
        self.try_send(method, path, headers, body).unwrap_or_else(|| panic!("{method} {path}: nobody answered"))
    }

    pub fn try_get(&self, path: &str) -> Option<Response> {
        self.try_send("GET", path, &[], None)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], None)
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> Response {
        self.send("DELETE", path, &[], None)
    }

    #[track_caller]
    pub fn put(&self, path: &str, body: impl AsRef<[u8]>) -> Response {
        self.send("PUT", path, &[], Some(body.as_ref()))
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Response {
        self.send("POST", path, &[], Some(body.as_ref()))
    }

    /// Runs an agent's command, given as `MODULE/KEY`, in the quota `q`.
    #[track_caller]
    pub fn command(&self, agent: &str, command: &str) -> Response {
        self.post(&format!("/v1/agents/q/{agent}/command"), command)
    }

    #[track_caller]
    pub fn query(&self, agent: &str, query: &str) -> Response {
        self.post(&format!("/v1/agents/q/{agent}/query"), query)
    }

    #[track_caller]
    pub fn put_quota(&self, quota: &str, limit: &str) {
        self.put(&format!("/v1/quotas/{quota}"), format!("{{\"limit\": {limit}}}")).expect(204);
    }
}
