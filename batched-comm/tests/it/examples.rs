//! The examples, run as the processes that they are.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::DEADLINE;

/// `cargo test` builds the examples with the tests, and puts them beside them; asked for this test binary alone,
/// it does not.
fn example(name: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let path = profile.join("examples").join(name);
    let _building = BUILDING.lock();
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

/// A running example; killed when it is dropped.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    /// All that it has said, on stdout and on stderr.
    said: Arc<Mutex<String>>,
}

impl Process {
    fn start(name: &str, tls: &Path, arguments: &[&str]) -> Process {
        let mut command = Command::new(example(name));
        command.args(arguments).env("TLS_DIR", tls);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        for pipe in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn Read + Send>,
            Box::new(child.stderr.take().unwrap()) as Box<dyn Read + Send>,
        ] {
            let said = said.clone();
            thread::spawn(move || {
                let mut pipe = BufReader::new(pipe);
                let mut bytes = Vec::new();
                // A progress bar's lines end with the beginning of the next one.
                while let Ok(1..) = pipe.read_until(b'\n', &mut bytes) {
                    said.lock().unwrap().write_str(&String::from_utf8_lossy(&bytes)).unwrap();
                    bytes.clear();
                }
            });
        }
        let stdin = child.stdin.take();
        Process { child, stdin, said }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn wait_for(&self, what: &str) {
        eventually(&format!("{what:?}"), || self.said().contains(what), || self.said());
    }

    /// What stands behind `before` in the line that has it.
    fn word_after(&self, before: &str) -> String {
        self.wait_for(before);
        let said = self.said();
        let (_, rest) = said.split_once(before).unwrap();
        rest.split_whitespace().next().unwrap().to_owned()
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn end_of_input(&mut self) {
        self.stdin = None;
    }

    fn interrupt(&self) {
        let killed = Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
    }

    fn exit(&mut self) -> ExitStatus {
        let said = self.said.clone();
        let mut status = None;
        let child = &mut self.child;
        let ended = || {
            status = child.try_wait().unwrap();
            status.is_some()
        };
        eventually("the end of the process", ended, || said.lock().unwrap().clone());
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool, said: impl Fn() -> String) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "no {what} within {DEADLINE:?}; it said:\n{}", said());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn echo_answers_all_its_calls() {
    let dir = tempfile::tempdir().unwrap();
    let mut echo = Process::start("echo", dir.path(), &[]);
    assert!(echo.exit().success());
    echo.wait_for("51200 calls in ");
}

#[test]
fn chat_shows_lines_joins_and_leaves_between_three_processes_and_works_when_piped() {
    let dir = tempfile::tempdir().unwrap();
    let start = |name: &str, others: &[String]| {
        let mut arguments = vec![name, "127.0.0.1:0"];
        arguments.extend(others.iter().map(String::as_str));
        Process::start("chat", dir.path(), &arguments)
    };
    let mut n1 = start("n1", &[]);
    let first = n1.word_after("listens on ");
    let mut n2 = start("n2", std::slice::from_ref(&first));
    let second = n2.word_after("listens on ");
    n1.wait_for("* n2 has joined");
    // Piped: all of its input is there before it has begun.
    let mut n3 = start("n3", &[first, second]);
    n3.type_line("hello from the pipe");
    n3.end_of_input();
    assert!(n3.exit().success(), "{}", n3.said());
    for process in [&n1, &n2] {
        process.wait_for("* n3 has joined");
        process.wait_for("n3: hello from the pipe");
        process.wait_for("* n3 has left");
    }
    n1.type_line("one");
    n2.wait_for("n1: one");
    n2.type_line("two");
    n1.wait_for("n2: two");
    n2.interrupt();
    assert!(n2.exit().success());
    n1.wait_for("* n2 has left");
    n1.end_of_input();
    assert!(n1.exit().success());
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("there")).unwrap();
        Files { dir }
    }

    fn source(&self, name: &str, bytes: usize) -> (String, Vec<u8>) {
        let content: Vec<u8> = (0..bytes).map(|n| (n * n / 7) as u8).collect();
        let path = self.dir.path().join(name);
        std::fs::write(&path, &content).unwrap();
        (path.to_str().unwrap().to_owned(), content)
    }

    fn there(&self) -> PathBuf {
        self.dir.path().join("there")
    }

    /// What is in the receiver's directory.
    fn arrived(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.there()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn receiver(&self) -> (Process, String) {
        let there = self.there();
        let arguments = ["receive", "127.0.0.1:0", there.to_str().unwrap()];
        let receiver = Process::start("file_transfer", self.dir.path(), &arguments);
        let address = receiver.word_after("listens on ");
        (receiver, address)
    }

    fn sender(&self, arguments: &[&str]) -> Process {
        Process::start("file_transfer", self.dir.path(), &[&["send"], arguments].concat())
    }
}

#[test]
fn file_transfer_brings_files_whole_and_says_how_far_it_is() {
    let files = Files::new();
    let (receiver, address) = files.receiver();
    for (name, bytes) in [("large", 20 * 1024 * 1024 + 17), ("empty", 0)] {
        let (path, content) = files.source(name, bytes);
        let mut sender = files.sender(&[&path, &address]);
        assert!(sender.exit().success(), "{}", sender.said());
        assert!(std::fs::read(files.there().join(name)).unwrap() == content);
        receiver.wait_for(&format!("/there/{name}"));
        if bytes > 0 {
            sender.wait_for("[##############################] 100% 20.0 of 20.0 MiB, ");
            receiver.wait_for("[##############################] 100% 20.0 of 20.0 MiB, ");
        }
    }
    assert_eq!(files.arrived().len(), 2);
    let (path, _) = files.source("large", 5);
    let mut sender = files.sender(&[&path, &address]);
    assert!(!sender.exit().success());
    sender.wait_for("large is there already");
}

#[test]
fn file_transfer_is_cancelled_by_an_interrupt_on_either_side_and_leaves_nothing_behind() {
    let files = Files::new();
    let (path, content) = files.source("large", 8 * 1024 * 1024);
    let (mut receiver, address) = files.receiver();
    // Slow enough to be caught in its middle.
    let begin = || {
        let sender = files.sender(&[&path, &address, "2"]);
        eventually("a beginning", || files.arrived() == [".large.part"], || sender.said());
        sender
    };
    let mut sender = begin();
    sender.interrupt();
    assert!(!sender.exit().success());
    sender.wait_for("error: cancelled");
    receiver.wait_for("not received: ");
    eventually("nothing left", || files.arrived().is_empty(), || receiver.said());
    // The receiver goes on, until it is interrupted itself.
    let mut sender = begin();
    receiver.interrupt();
    assert!(receiver.exit().success());
    assert!(!sender.exit().success(), "{}", sender.said());
    sender.wait_for("error: the ");
    assert!(files.arrived().is_empty(), "{:?}", files.arrived());
    let (receiver, address) = files.receiver();
    let mut sender = files.sender(&[&path, &address]);
    assert!(sender.exit().success(), "{}", sender.said());
    receiver.wait_for("received ");
    assert!(std::fs::read(files.there().join("large")).unwrap() == content);
}

#[test]
fn a_short_soak_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    // Long enough for each way to lose a connection.
    let mut soak = Process::start("soak", dir.path(), &["7"]);
    let status = soak.exit();
    assert!(status.success(), "{}", soak.said());
    soak.wait_for("3 connections lost on purpose and made again");
    soak.wait_for("ok: 0 pending calls");
}
