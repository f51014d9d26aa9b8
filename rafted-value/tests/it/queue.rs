//! The example `queue`, run as the three processes that it is.

use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::PATIENCE;

/// `cargo test` builds the examples with the tests, and puts them beside them; asked for this test binary alone, it does
/// not.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let path = profile.join("examples").join(name);
    if !path.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--example", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "the example {name} cannot be built");
    }
    path
}

/// A running process; killed when it is dropped.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    fn start(dir: &Path, name: &str, ports: u16) -> Self {
        let mut command = Command::new(example("queue"));
        command.args([name, &ports.to_string()]).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (lines, stdout) = (Arc::new(Mutex::new(Vec::new())), child.stdout.take().unwrap());
        let said = lines.clone();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| said.lock().unwrap().push(line));
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines }
    }

    fn count(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    fn wait_for_lines(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        while self.count() < count {
            assert!(Instant::now() < deadline, "{count} lines are expected: {:?}", self.lines.lock().unwrap());
            thread::sleep(Duration::from_millis(5));
        }
        self.lines.lock().unwrap().clone()
    }

    /// Types a line; the two lines that answer it.
    fn ask(&mut self, line: &str) -> [String; 2] {
        let before = self.count();
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
        let said = self.wait_for_lines(before + 2);
        [said[before].clone(), said[before + 1].clone()]
    }

    fn end(mut self) {
        self.stdin = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port with three free ones above it.
fn ports() -> u16 {
    let is_free = |below: &u16| (1..=3).all(|n| UdpSocket::bind(("127.0.0.1", below + n)).is_ok());
    // Each process that asks begins elsewhere.
    let from = 10_000 + (std::process::id() % 5_000) as u16 * 4;
    (from..31_000).step_by(4).find(is_free).unwrap()
}

#[test]
fn the_example_replicates_a_queue_over_three_processes() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), ports());
    let start = |name| Process::start(dir.path(), name, ports);
    let (mut n1, mut n2, mut n3) = (start("n1"), start("n2"), start("n3"));
    for process in [&n1, &n2, &n3] {
        process.wait_for_lines(1);
    }
    assert_eq!(n1.ask("one"), ["None", "1 waiting"]);
    assert_eq!(n2.ask("two"), ["None", "2 waiting"]);
    assert_eq!(n3.ask(""), ["Some(\"one\")", "1 waiting"]);
    // Killed, whether it leads or not.
    drop(n1);
    assert_eq!(n2.ask(""), ["Some(\"two\")", "0 waiting"]);
    assert_eq!(n3.ask("three"), ["None", "1 waiting"]);
    let mut n1 = start("n1");
    n1.wait_for_lines(1);
    assert_eq!(n1.ask(""), ["Some(\"three\")", "0 waiting"]);
    for process in [n1, n2, n3] {
        process.end();
    }
}
