//! A node copies no more values for snapshots than it writes at once, however many of its groups are due.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Condvar, Mutex};

use super::*;
use crate::pieces::{PieceError, PieceWriter};

const GROUPS: usize = 6;
const AT_ONCE: i64 = 2;

static COPIES: AtomicI64 = AtomicI64::new(0);
static MOST_COPIES: AtomicI64 = AtomicI64::new(0);
static WRITING: AtomicI64 = AtomicI64::new(0);
static GATE: Mutex<bool> = Mutex::new(false);
static OPENED: Condvar = Condvar::new();

/// Counts those that were made by `clone`.
#[derive(Debug, PartialEq, Default)]
struct Counted {
    is_copy: bool,
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        MOST_COPIES.fetch_max(COPIES.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Self { is_copy: true }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COPIES.fetch_sub(i64::from(self.is_copy), Ordering::SeqCst);
    }
}

/// Is written once the gate is open.
#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Slow {
    commands: u64,
    #[rkyv(with = rkyv::with::Skip)]
    counted: Counted,
}

impl Value for Slow {
    type Command = ();
    type Reply = ();
    type Query = ();
    type Answer = ();
    fn command(&mut self, (): ()) {
        self.commands += 1;
    }
    fn query(&self, (): ()) {}
    fn write_pieces(&self, pieces: &mut PieceWriter<'_>) -> Result<(), PieceError> {
        WRITING.fetch_add(1, Ordering::SeqCst);
        drop(OPENED.wait_while(GATE.lock().unwrap(), |is_open| !*is_open).unwrap());
        pieces.write(self)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_values_are_copied_for_snapshots_than_are_written_at_once() {
    let store = Store::memory("n1");
    let mut replicas = Vec::new();
    for group in 0..GROUPS {
        let factory = ValueFactory::of::<Slow>(None);
        replicas.push(start_as(&store, &format!("g{group}"), GroupConfig::default(), factory).await);
    }
    let add = async |replica: &UntypedReplica| {
        let command = encode_command::<Slow>(&(), None, 0).unwrap();
        replica.propose(command, PATIENCE).await.unwrap();
    };
    for replica in &replicas {
        add(replica).await;
        replica.snapshot().await;
    }
    eventually("the first are written", || WRITING.load(Ordering::SeqCst) == AT_ONCE).await;
    // They wait with all that their groups have to do, but for commands.
    for replica in &replicas {
        for _ in 0..20 {
            add(replica).await;
        }
    }
    *GATE.lock().unwrap() = true;
    OPENED.notify_all();
    eventually("all are taken", || replicas.iter().all(|replica| replica.status().snapshot.is_some())).await;
    assert_eq!(MOST_COPIES.load(Ordering::SeqCst), AT_ONCE);
    eventually("no copy is left", || COPIES.load(Ordering::SeqCst) == 0).await;
    for replica in replicas {
        replica.shutdown().await;
    }
}
