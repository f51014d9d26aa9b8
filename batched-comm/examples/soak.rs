//! Two processes under full load whose connection is lost every two seconds, each time in another way: the wire
//! is cut, the peer is removed and set again, the other process is killed and started anew. In the end, memory
//! must be flat, and no task and no call left over: else the exit code is 1.
//!
//! `cargo run --release --example soak -- 600`

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use batched_comm::{Address, Endpoint, Identity, PeerEvent, PeerState};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::broadcast;
use tokio::time::{sleep, timeout};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const LOOPBACK: &str = "127.0.0.1:0";
/// Each sends as fast as there is room.
const SENDERS: usize = 4;
/// Each has one call under way.
const CALLERS: usize = 128;
const BODY: [u8; 200] = [7; 200];
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
const RECONNECT_EVERY: Duration = Duration::from_secs(2);
/// Longer than it takes to count as dead (1.2 s).
const CUT: Duration = Duration::from_millis(1600);
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Memory is flat when the most of the last third is at most so much more than the most of the second third: a tenth,
/// and what an allocator may hold for buffers that are not there at the moment.
const FLAT_FACTOR: f64 = 1.1;
const FLAT_SLACK_BYTES: u64 = 16 * 1024 * 1024;
/// What is left over must be gone by then.
const SETTLE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [word, dir] if word == "--other-side" => other_side(Path::new(dir)).await,
        [] => soak(Duration::from_secs(60)).await,
        [seconds] => soak(Duration::from_secs(seconds.parse()?)).await,
        _ => Err("usage: soak [SECONDS]".into()),
    }
}

async fn bind(dir: &Path, name: &str) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::bind(LOOPBACK.parse()?, Identity::dev(dir, name)?).await?;
    let mut casts = endpoint.mailbox("in", 100_000)?;
    tokio::spawn(async move { while casts.recv().await.is_some() {} });
    let mut calls = endpoint.mailbox("echo", 100_000)?;
    tokio::spawn(async move {
        while let Some(incoming) = calls.recv().await {
            let body = incoming.body().to_vec();
            // The caller may be gone, with its connection.
            let _ = incoming.reply_bytes(&body);
        }
    });
    Ok(endpoint)
}

/// The process that is killed now and then; it sends back as much as it gets.
async fn other_side(dir: &Path) -> Result<ExitCode, Failure> {
    let endpoint = bind(dir, "other").await?;
    println!("{}", endpoint.local_address());
    std::io::stdout().flush()?;
    let load = Load::start(&endpoint, "soak");
    // The pipe ends with the process that started this one.
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop)).await?;
    load.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Casts and calls to one node.
struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    wrong: AtomicU64,
}

impl Load {
    fn start(endpoint: &Endpoint, to: &str) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let mut tasks = Vec::new();
        for number in 0..SENDERS + CALLERS {
            let (endpoint, to, stop, counts) = (endpoint.clone(), to.to_owned(), stop.clone(), counts.clone());
            tasks.push(tokio::spawn(async move {
                // Both names are fixed and valid.
                let Ok(node) = to.parse() else { return };
                let [Ok(casts), Ok(calls)] = ["in", "echo"].map(|name| Address::new(&node, name)) else { return };
                while !stop.load(Ordering::SeqCst) {
                    let done = match number < SENDERS {
                        true => send(&endpoint, &casts, &counts).await,
                        false => call(&endpoint, &calls, number, &counts).await,
                    };
                    if !done {
                        counts.failed.fetch_add(1, Ordering::Relaxed);
                        sleep(Duration::from_millis(2)).await;
                    }
                }
            }));
        }
        Load { stop, counts, tasks }
    }

    async fn stop(self) -> Arc<Counts> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            // A task that panicked has said so.
            let _ = task.await;
        }
        self.counts
    }
}

async fn send(endpoint: &Endpoint, to: &Address, counts: &Counts) -> bool {
    let sent = endpoint.send_bytes(to, 1, &BODY).await.is_ok();
    counts.sent.fetch_add(u64::from(sent), Ordering::Relaxed);
    sent
}

async fn call(endpoint: &Endpoint, to: &Address, number: usize, counts: &Counts) -> bool {
    let mut body = BODY;
    body[..8].copy_from_slice(&number.to_le_bytes());
    let answer = endpoint.call_bytes(to, 1, &body, CALL_TIMEOUT).await;
    let Ok(answer) = answer else { return false };
    let counter = if answer[..] == body { &counts.answered } else { &counts.wrong };
    counter.fetch_add(1, Ordering::Relaxed);
    true
}

/// The other process, started again as often as it is killed.
struct Other {
    dir: PathBuf,
    process: Child,
    address: SocketAddr,
}

impl Other {
    fn start(dir: &Path) -> Result<Other, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--other-side").arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        Ok(Other { dir: dir.to_owned(), process, address: line.trim().parse()? })
    }

    fn restart(&mut self) -> Result<(), Failure> {
        let dir = self.dir.clone();
        self.kill();
        *self = Other::start(&dir)?;
        Ok(())
    }

    fn kill(&mut self) {
        // It may be dead.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The wire between the two.
struct Wire {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    is_cut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    async fn to(target: SocketAddr) -> Result<Wire, Failure> {
        let (near, far) = (UdpSocket::bind(LOOPBACK).await?, UdpSocket::bind(LOOPBACK).await?);
        let address = near.local_addr()?;
        let target = Arc::new(Mutex::new(target));
        let is_cut = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(forward(near, far, target.clone(), is_cut.clone()));
        Ok(Wire { address, target, is_cut, task })
    }

    fn aim_at(&self, target: SocketAddr) {
        *self.target.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = target;
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(near: UdpSocket, far: UdpSocket, target: Arc<Mutex<SocketAddr>>, is_cut: Arc<AtomicBool>) {
    let (mut there, mut back) = (vec![0; 65_536], vec![0; 65_536]);
    let mut dialler = None;
    loop {
        tokio::select! {
            received = near.recv_from(&mut there) => {
                let Ok((bytes, from)) = received else { continue };
                dialler = Some(from);
                let to = *target.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if !is_cut.load(Ordering::SeqCst) {
                    // A datagram may be lost.
                    let _ = far.send_to(&there[..bytes], to).await;
                }
            }
            received = far.recv_from(&mut back) => {
                let Ok((bytes, _)) = received else { continue };
                if let (Some(dialler), false) = (dialler, is_cut.load(Ordering::SeqCst)) {
                    let _ = near.send_to(&back[..bytes], dialler).await;
                }
            }
        }
    }
}

async fn soak(duration: Duration) -> Result<ExitCode, Failure> {
    let dir = std::env::temp_dir().join(format!("batched-comm-soak-{}", std::process::id()));
    let result = soak_in(&dir, duration).await;
    // Certificates for these minutes only.
    let _ = std::fs::remove_dir_all(&dir);
    result
}

async fn soak_in(dir: &Path, duration: Duration) -> Result<ExitCode, Failure> {
    let endpoint = bind(dir, "soak").await?;
    let mut other = Other::start(dir)?;
    let wire = Wire::to(other.address).await?;
    let name = "other".parse()?;
    endpoint.set_peer(&name, vec![wire.address]);
    connected(&endpoint).await?;
    let mut soak = Soak::new(endpoint.clone());
    let load = Load::start(&endpoint, "other");
    let (began, mut next_report) = (Instant::now(), REPORT_EVERY);
    let mut losses = 0u32;
    while began.elapsed() < duration {
        soak.sampled_sleep(RECONNECT_EVERY).await;
        let mut events = endpoint.events();
        match losses % 3 {
            0 => {
                wire.is_cut.store(true, Ordering::SeqCst);
                soak.sampled_sleep(CUT).await;
                wire.is_cut.store(false, Ordering::SeqCst);
            }
            1 => {
                endpoint.remove_peer(&name);
                endpoint.set_peer(&name, vec![wire.address]);
            }
            _ => {
                other.restart()?;
                wire.aim_at(other.address);
            }
        }
        losses += 1;
        connected_again(&mut events).await?;
        if began.elapsed() >= next_report {
            soak.report(&load.counts, began.elapsed());
            next_report += REPORT_EVERY;
        }
    }
    if began.elapsed() > soak.reported.0 + RECONNECT_EVERY {
        soak.report(&load.counts, began.elapsed());
    }
    let counts = load.stop().await;
    println!("{losses} connections lost on purpose and made again");
    let verdicts = soak.verdicts(&counts, duration).await;
    let failed = verdicts.iter().any(|(good, _)| !good);
    for (good, verdict) in verdicts {
        println!("{}: {verdict}", if good { "ok" } else { "FAILED" });
    }
    endpoint.shutdown().await;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn connected(endpoint: &Endpoint) -> Result<(), Failure> {
    let up = async {
        while !endpoint.peers().iter().any(|peer| matches!(peer.state, PeerState::Up { .. })) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SETTLE, up).await.map_err(|_| format!("no connection: {:?}", endpoint.peers()).into())
}

/// Waits for the next connection.
async fn connected_again(events: &mut broadcast::Receiver<PeerEvent>) -> Result<(), Failure> {
    let up = async { while !matches!(events.recv().await, Ok(PeerEvent::Up { .. })) {} };
    timeout(SETTLE, up).await.map_err(|_| "the connection was not lost, or did not come back".into())
}

/// What is watched.
struct Soak {
    endpoint: Endpoint,
    /// Tasks with a connection and without load.
    idle_tasks: usize,
    began: Instant,
    memory: Vec<(Duration, u64)>,
    reported: (Duration, u64),
}

impl Soak {
    fn new(endpoint: Endpoint) -> Soak {
        let idle_tasks = Handle::current().metrics().num_alive_tasks();
        Soak { endpoint, idle_tasks, began: Instant::now(), memory: Vec::new(), reported: (Duration::ZERO, 0) }
    }

    async fn sampled_sleep(&mut self, duration: Duration) {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            sleep(left.min(Duration::from_millis(200))).await;
            self.memory.extend(resident_bytes().map(|bytes| (self.began.elapsed(), bytes)));
        }
    }

    fn pending_calls(&self) -> usize {
        self.endpoint.peers().iter().map(|peer| peer.pending_calls).sum()
    }

    fn report(&mut self, counts: &Counts, elapsed: Duration) {
        let [sent, answered, failed] =
            [&counts.sent, &counts.answered, &counts.failed].map(|count| count.load(Ordering::Relaxed));
        let messages = sent + 2 * answered;
        let (former, before) = self.reported;
        let rate = (messages - before) as f64 / (elapsed - former).as_secs_f64().max(1e-9);
        self.reported = (elapsed, messages);
        println!(
            "{:>5.0} s: {rate:>8.0} messages/s, {:>6.1} MiB, {} tasks, {} pending calls, {failed} failed so far",
            elapsed.as_secs_f64(),
            resident_bytes().unwrap_or_default() as f64 / (1024.0 * 1024.0),
            Handle::current().metrics().num_alive_tasks(),
            self.pending_calls(),
        );
    }

    /// What came out, each with whether it is as it should be.
    async fn verdicts(&self, counts: &Counts, duration: Duration) -> Vec<(bool, String)> {
        let settled = async {
            let tasks = || Handle::current().metrics().num_alive_tasks();
            while tasks() > self.idle_tasks || self.pending_calls() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        // What is not gone by then is told below.
        let _ = timeout(SETTLE, settled).await;
        let tasks = Handle::current().metrics().num_alive_tasks();
        let pending = self.pending_calls();
        let [answered, wrong] = [&counts.answered, &counts.wrong].map(|count| count.load(Ordering::Relaxed));
        let most = |from: u32| {
            let (from, to) = (duration * from / 3, duration * (from + 1) / 3);
            // The run may be longer than it was asked to be.
            let to = if from * 3 >= duration * 2 { Duration::MAX } else { to };
            self.memory.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, bytes)| *bytes).max()
        };
        let mut verdicts = vec![
            (tasks <= self.idle_tasks, format!("{tasks} tasks, {} at the beginning", self.idle_tasks)),
            (pending == 0, format!("{pending} pending calls")),
            (answered > 0 && wrong == 0, format!("{answered} calls answered, {wrong} with the answer of another")),
        ];
        if let (Some(middle), Some(end)) = (most(1), most(2)) {
            let allowed = (middle as f64 * FLAT_FACTOR) as u64 + FLAT_SLACK_BYTES;
            let text = format!(
                "memory: {:.1} MiB at most in the second third, {:.1} MiB in the last, {:.1} MiB allowed",
                mebibytes(middle),
                mebibytes(end),
                mebibytes(allowed)
            );
            verdicts.push((end <= allowed, text));
        } else {
            println!("memory is not known on this system");
        }
        verdicts
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

/// The memory of this process, where it can be read.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes * 1024)
}
