//! Groups that hang in a command keep no others from snapshots.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use super::*;

/// As many as build at once.
const HUNG: usize = 2;

static GATE: Mutex<bool> = Mutex::new(false);
static OPENED: Condvar = Condvar::new();
static HANGING: AtomicUsize = AtomicUsize::new(0);

/// A command hangs until the gate is open, if it is told to.
#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Patient {
    commands: u64,
}

impl Value for Patient {
    type Command = bool;
    type Reply = ();
    type Query = ();
    type Answer = ();
    fn command(&mut self, hangs: bool) {
        if hangs {
            HANGING.fetch_add(1, Ordering::SeqCst);
            drop(OPENED.wait_while(GATE.lock().unwrap(), |is_open| !*is_open).unwrap());
        }
        self.commands += 1;
    }
    fn query(&self, (): ()) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_hang_in_a_command_keep_no_other_from_its_snapshot() {
    let store = Store::memory("n1");
    let mut replicas = Vec::new();
    for group in 0..=HUNG {
        let factory = ValueFactory::of::<Patient>(None);
        replicas.push(start_as(&store, &format!("g{group}"), GroupConfig::default(), factory).await);
    }
    let command = |hangs: bool| encode_command::<Patient>(&hangs, None, 0).unwrap();
    for replica in &replicas {
        replica.propose(command(false), PATIENCE).await.unwrap();
    }
    let (hung, free) = replicas.split_at(HUNG);
    let mut waiting = tokio::task::JoinSet::new();
    for replica in hung {
        let replica = replica.clone();
        waiting.spawn(async move { replica.propose(command(true), PATIENCE).await });
    }
    eventually("they hang", || HANGING.load(Ordering::SeqCst) == HUNG).await;
    for replica in hung {
        replica.snapshot().await;
    }
    free[0].snapshot().await;
    eventually("the one that is free has a snapshot", || free[0].status().snapshot.is_some()).await;
    assert!(hung.iter().all(|replica| replica.status().snapshot.is_none()), "they do hang");
    *GATE.lock().unwrap() = true;
    OPENED.notify_all();
    while let Some(outcome) = waiting.join_next().await {
        outcome.unwrap().unwrap();
    }
    eventually("the others have one, too", || hung.iter().all(|replica| replica.status().snapshot.is_some())).await;
    for replica in replicas {
        replica.shutdown().await;
    }
}
