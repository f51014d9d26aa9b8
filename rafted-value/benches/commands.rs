//! Commands and queries per second of one group of three, over QUIC on loopback in one process, with 1, 64 and 256
//! clients, durable and in memory: `cargo bench -p rafted-value --bench commands`. CPU is that of the whole process.

#![allow(clippy::unwrap_used, reason = "a bench has no caller to tell")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use batched_comm::{Endpoint, Identity};
use rafted_value::{Replica, Store, Value};

rafted_value::messages! {
    /// Keeps the last 64 bytes it was given.
    #[derive(Default)]
    pub struct Register { bytes: Vec<u8> }
}

impl Value for Register {
    type Command = Vec<u8>;
    type Reply = u64;
    type Query = ();
    type Answer = u64;
    fn command(&mut self, bytes: Vec<u8>) -> u64 {
        self.bytes = bytes;
        self.bytes.len() as u64
    }
    fn query(&self, (): ()) -> u64 {
        self.bytes.len() as u64
    }
}

const RUN: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    for durable in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (replicas, stores) = group(dir.path(), durable).await;
        for clients in [1, 64, 256] {
            for read in [false, true] {
                run(&replicas, clients, durable, read).await;
            }
        }
        for store in &stores {
            let stats = store.log_stats();
            println!("    log: {} entries, {} batches, {} syncs", stats.entries, stats.batches, stats.syncs);
        }
        for (replica, store) in replicas.iter().zip(stores) {
            replica.shutdown().await;
            store.close().await;
        }
    }
}

async fn group(dir: &std::path::Path, durable: bool) -> (Vec<Replica<Register>>, Vec<Store>) {
    let ca = Identity::in_memory_ca().unwrap();
    let names = ["n1", "n2", "n3"];
    let mut endpoints = Vec::new();
    for name in names {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        endpoints.push(Endpoint::bind(address, ca.issue(name).unwrap()).await.unwrap());
    }
    let (mut replicas, mut stores) = (Vec::new(), Vec::new());
    for (name, endpoint) in names.iter().zip(&endpoints) {
        let store = if durable { Store::open(dir.join(name), name).await.unwrap() } else { Store::memory(name) };
        let mut builder = Replica::<Register>::builder("bench");
        for other in &endpoints {
            builder = builder.member(other.name().as_str(), other.local_address());
        }
        replicas.push(builder.start(&store, endpoint).await.unwrap());
        stores.push(store);
    }
    replicas[0].command(vec![0; 64]).timeout(Duration::from_secs(20)).await.unwrap();
    (replicas, stores)
}

async fn run(replicas: &[Replica<Register>], clients: usize, durable: bool, read: bool) {
    let (done, measuring, stop) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut tasks = Vec::new();
    for client in 0..clients {
        let replica = replicas[client % replicas.len()].clone();
        let (done, measuring, stop) = (done.clone(), measuring.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let mut waits = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                if read {
                    replica.query(()).await.unwrap();
                } else {
                    replica.command(vec![7; 64]).await.unwrap();
                }
                if measuring.load(Ordering::Relaxed) {
                    done.fetch_add(1, Ordering::Relaxed);
                    waits.push(started.elapsed());
                }
            }
            waits
        }));
    }
    tokio::time::sleep(WARM_UP).await;
    let (started, cpu) = (Instant::now(), cpu_micros());
    measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(RUN).await;
    stop.store(true, Ordering::Relaxed);
    let (took, cpu) = (started.elapsed(), cpu_micros() - cpu);
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    waits.sort();
    let count = done.load(Ordering::Relaxed).max(1);
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    println!(
        "{} {} {clients:>3} clients: {:>8.0}/s  p50 {:>9.3?}  p99 {:>9.3?}  {:>6.1} us of CPU each",
        if durable { "durable" } else { "memory " },
        if read { "query  " } else { "command" },
        count as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        cpu as f64 / count as f64,
    );
}

/// User and system time of this process, from /proc; 0 where there is none.
fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10_000
}
