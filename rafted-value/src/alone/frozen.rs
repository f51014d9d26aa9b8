//! While a value is written for a snapshot, which may take long, commands and queries go on.

use std::sync::{Condvar, Mutex};

use super::*;
use crate::encoding::{decode_answer, encode_query};
use crate::pieces::{PieceError, PieceWriter};

/// How far the writing of a value has come.
#[derive(Debug, PartialEq)]
enum Writing {
    NotBegun,
    Waits,
    MayEnd,
}

/// A value has no other way to the one test that uses this type.
static WRITING: (Mutex<Writing>, Condvar) = (Mutex::new(Writing::NotBegun), Condvar::new());

/// A number that is written once it may be.
#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Held(u64);

impl Value for Held {
    type Command = u64;
    type Reply = u64;
    type Query = ();
    type Answer = u64;
    fn command(&mut self, more: u64) -> u64 {
        self.0 += more;
        self.0
    }
    fn query(&self, (): ()) -> u64 {
        self.0
    }
    fn write_pieces(&self, pieces: &mut PieceWriter<'_>) -> Result<(), PieceError> {
        let (writing, changed) = &WRITING;
        let mut now = writing.lock().unwrap();
        if *now == Writing::NotBegun {
            *now = Writing::Waits;
        }
        let (now, waited) = changed.wait_timeout_while(now, PATIENCE, |now| *now != Writing::MayEnd).unwrap();
        drop(now);
        assert!(!waited.timed_out(), "nobody lets the value be written");
        pieces.write(self)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_queries_go_on_while_a_value_is_written() {
    let store = Store::memory("n1");
    let replica = start_as(&store, "g", GroupConfig::default(), ValueFactory::of::<Held>(None)).await;
    let add = || encode_command::<Held>(&1, None, 0).unwrap();
    replica.propose(add(), PATIENCE).await.unwrap();
    let frozen = replica.status().applied.unwrap().index;
    replica.snapshot().await;
    let (writing, changed) = &WRITING;
    eventually("a snapshot is begun", || *writing.lock().unwrap() == Writing::Waits).await;
    for count in 2..=21 {
        replica.propose(add(), PATIENCE).await.unwrap();
        let answer = replica.read(encode_query::<Held>(&()).unwrap(), PATIENCE).await.unwrap();
        assert_eq!(decode_answer::<Held>(&answer).unwrap(), count);
    }
    assert!(*writing.lock().unwrap() == Writing::Waits && replica.status().snapshot.is_none());
    *writing.lock().unwrap() = Writing::MayEnd;
    changed.notify_all();
    eventually("the snapshot is there", || replica.status().snapshot.is_some()).await;
    let index = replica.status().snapshot.unwrap().index;
    assert!((frozen..frozen + 20).contains(&index), "of what the value was when it was copied: {index}, {frozen}");
    replica.shutdown().await;
}
