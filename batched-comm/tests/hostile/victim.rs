//! The node that is attacked: a process of its own, so that its memory is its own.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use batched_comm::{Address, Endpoint, Identity};

use crate::{LOOPBACK, patient};

/// What stands first in the arguments of the process.
pub const ARGUMENT: &str = "--victim";
/// Messages that the mailbox has room for that nobody reads.
pub const DEAF_CAPACITY: usize = 1000;

/// The process: a node with an echo and two mailboxes that nobody reads, and a few words on its pipes.
pub fn run(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let identity = Identity::load(dir, "victim").unwrap();
        let endpoint = Endpoint::bind_with(LOOPBACK.parse().unwrap(), identity, patient()).await.unwrap();
        let mut echo = endpoint.mailbox("echo", 1000).unwrap();
        let _deaf = endpoint.mailbox("deaf", DEAF_CAPACITY).unwrap();
        let _deaf_wide = endpoint.mailbox("deaf_wide", 1 << 20).unwrap();
        let _deaf_bulk = endpoint.bulk_listener("deaf", 64).unwrap();
        tokio::spawn(async move {
            while let Some(incoming) = echo.recv().await {
                let body = incoming.body().to_vec();
                // The caller may be gone.
                let _ = incoming.reply_bytes(&body);
            }
        });
        let flooded = Arc::new(AtomicU64::new(0));
        println!("{}", endpoint.local_address());
        let handle = tokio::runtime::Handle::current();
        // Blocks this thread, which has nothing else to do; the pipe ends with the process that started this one.
        for line in std::io::stdin().lock().lines() {
            match line.unwrap().split_once(' ') {
                Some(("flood", name)) => {
                    let to = Address::new(&name.parse().unwrap(), "in").unwrap();
                    tokio::spawn(flood(endpoint.clone(), to, flooded.clone()));
                    println!("ok");
                }
                _ => println!("{} {}", handle.metrics().num_alive_tasks(), flooded.load(Ordering::SeqCst)),
            }
        }
    });
}

/// Sends for ever, waiting for room.
async fn flood(endpoint: Endpoint, to: Address, sent: Arc<AtomicU64>) {
    while endpoint.send_bytes(&to, 1, &[7; 1024]).await.is_ok() {
        sent.fetch_add(1, Ordering::SeqCst);
    }
}

/// The process as seen by those who attack it.
pub struct Victim {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub address: SocketAddr,
}

/// What it says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    pub tasks: usize,
    pub flooded: u64,
}

impl Victim {
    pub fn start(dir: &Path) -> Victim {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(ARGUMENT)
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = process.stdin.take().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap();
        Victim { process, stdin, stdout, address }
    }

    fn ask(&mut self, word: &str) -> String {
        writeln!(self.stdin, "{word}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the victim is dead: {:?}", self.process.try_wait());
        line
    }

    pub fn status(&mut self) -> Status {
        let line = self.ask("status");
        let (tasks, flooded) = line.trim().split_once(' ').unwrap();
        Status { tasks: tasks.parse().unwrap(), flooded: flooded.parse().unwrap() }
    }

    /// Has it send to `name` for ever.
    pub fn flood(&mut self, name: &str) {
        self.ask(&format!("flood {name}"));
    }

    /// The memory that it has now, or had at most since [`Victim::forget_peak`], in bytes.
    #[cfg(target_os = "linux")]
    pub fn memory(&self, which: Memory) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let key = match which {
            Memory::Now => "VmRSS:",
            Memory::Peak => "VmHWM:",
        };
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
        kibibytes * 1024
    }

    #[cfg(target_os = "linux")]
    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5").unwrap();
    }
}

/// Which figure of the memory.
pub enum Memory {
    Now,
    Peak,
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may be dead.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
