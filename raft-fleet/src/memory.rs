//! What a node keeps beside its replicas: how far its bootstrap has come, and the other nodes as it last knew
//! them. Every change is synced before anyone is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rafted_value::{Store, messages};
use tokio::sync::watch;

use crate::bootstrap::{Bootstrap, ClusterKey, Event, Part};
use crate::error::{FleetError, NodeFailure};
use crate::message::Start;

messages! {
    /// The stored form; a first byte with the format's number stands before it.
    #[derive(Default)]
    pub(crate) struct Memories {
        pub(crate) bootstrap: Bootstrap,
        /// The registered nodes, by name; until the first of them is heard of, those that the bootstrap met.
        pub(crate) known: BTreeMap<String, Known>,
        /// That the cluster has refused the directory for ever: it is not started again to hear the same, or to be
        /// believed when nobody remembers any more.
        pub(crate) refused: Option<Refused>,
    }

    /// Why a directory is of no use any more.
    #[derive(Copy, Eq)]
    pub(crate) enum Refused {
        RolledBack { given: u64, registered: u64 },
        Fenced,
        Removed,
    }

    /// A node as it was last known.
    #[derive(Eq)]
    pub(crate) struct Known {
        pub(crate) address: String,
        pub(crate) start: Start,
    }
}

const FORMAT: u8 = 2;

impl Refused {
    /// What the directory must remember of a failure, if anything.
    pub(crate) fn of(failure: &NodeFailure) -> Option<Self> {
        match *failure {
            NodeFailure::RolledBack { given, registered } => Some(Self::RolledBack { given, registered }),
            NodeFailure::Fenced { .. } => Some(Self::Fenced),
            NodeFailure::Removed => Some(Self::Removed),
            NodeFailure::ForeignCluster { .. }
            | NodeFailure::NameInUse { .. }
            | NodeFailure::Storage(_)
            | NodeFailure::ShutDown => None,
        }
    }

    pub(crate) fn failure(self, node: &str) -> NodeFailure {
        match self {
            Self::RolledBack { given, registered } => NodeFailure::RolledBack { given, registered },
            Self::Fenced => NodeFailure::Fenced { name: node.to_owned() },
            Self::Removed => NodeFailure::Removed,
        }
    }
}

/// Clones share it.
#[derive(Clone)]
pub(crate) struct Memory {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    /// Held while a change is synced, so that changes are stored in order; only blocking threads take it.
    writing: Mutex<()>,
    current: watch::Sender<Arc<Memories>>,
}

impl Memory {
    pub(crate) fn open(store: &Store) -> Result<Self, FleetError> {
        let memories = decode(&store.node().extra)?;
        let inner =
            Inner { store: store.clone(), writing: Mutex::new(()), current: watch::Sender::new(Arc::new(memories)) };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn get(&self) -> Arc<Memories> {
        self.inner.current.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Memories>> {
        self.inner.current.subscribe()
    }

    /// Brings the bootstrap forward; the state that it returns is synced. A node that is bound to a cluster from
    /// here on finds it again by its `contacts` (names and addresses), which are stored with that.
    pub(crate) async fn bootstrap(
        &self,
        part: Part,
        event: Event,
        contacts: BTreeMap<String, String>,
    ) -> Result<Bootstrap, NodeFailure> {
        self.change(move |memories| {
            let next = std::mem::take(&mut memories.bootstrap).next(part, event);
            memories.bootstrap =
                next.map_err(|foreign| NodeFailure::ForeignCluster { own: foreign.own, other: foreign.other })?;
            if memories.bootstrap.bound_to().is_some() {
                for (name, address) in contacts {
                    memories.known.entry(name).or_insert(Known { address, start: Start::default() });
                }
            }
            Ok(memories.bootstrap.clone())
        })
        .await
    }

    /// Makes the directory one of another generation of its cluster.
    pub(crate) async fn set_cluster(&self, cluster: ClusterKey) -> Result<(), NodeFailure> {
        self.change(move |memories| {
            memories.bootstrap = Bootstrap::Member { cluster };
            Ok(())
        })
        .await
    }

    /// Remembers the registered nodes.
    pub(crate) async fn set_known(&self, known: BTreeMap<String, Known>) -> Result<(), NodeFailure> {
        self.change(move |memories| {
            memories.known = known;
            Ok(())
        })
        .await
    }

    /// Remembers that the directory is of no use any more.
    pub(crate) async fn set_refused(&self, refused: Refused) -> Result<(), NodeFailure> {
        self.change(move |memories| {
            memories.refused = Some(refused);
            Ok(())
        })
        .await
    }

    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Memories) -> Result<T, NodeFailure> + Send + 'static,
    ) -> Result<T, NodeFailure> {
        let inner = self.inner.clone();
        let changed = tokio::task::spawn_blocking(move || {
            let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let before = inner.current.borrow().clone();
            let mut after = Memories::clone(&before);
            let result = change(&mut after)?;
            if after != *before {
                let bytes = encode(&after).map_err(NodeFailure::Storage)?;
                inner.store.set_extra(bytes).map_err(|error| NodeFailure::Storage(error.to_string()))?;
                inner.current.send_replace(Arc::new(after));
            }
            Ok(result)
        });
        // The closure does not panic; a runtime that shuts down ends here.
        changed.await.unwrap_or_else(|error| Err(NodeFailure::Storage(error.to_string())))
    }
}

fn encode(memories: &Memories) -> Result<Vec<u8>, String> {
    let encoded = rafted_value::encode(memories).map_err(|error| error.to_string())?;
    let mut bytes = vec![FORMAT];
    bytes.extend_from_slice(&encoded);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Memories, FleetError> {
    let unreadable = |reason: String| FleetError::Unreadable { what: "record of the cluster", reason };
    match bytes.split_first() {
        None => Ok(Memories::default()),
        Some((&FORMAT, encoded)) => rafted_value::decode(encoded).map_err(|error| unreadable(error.to_string())),
        Some((format, _)) => Err(unreadable(format!("its format is {format}, this program knows {FORMAT}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::{Promise, Standing};

    #[tokio::test]
    async fn what_was_remembered_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "n1").await.unwrap();
        let memory = Memory::open(&store).unwrap();
        let cluster = ClusterKey { id: 7, generation: 0 };
        let met = BTreeMap::from([("n3".to_owned(), "127.0.0.1:1".to_owned())]);
        let asked = Event::Heard(Standing::Asking { cluster });
        assert_eq!(memory.bootstrap(Part::Founder, asked, met).await.unwrap(), Bootstrap::Promised { cluster });
        let address = "127.0.0.1:1".to_owned();
        let n3 = Known { address: address.clone(), start: Start::default() };
        assert_eq!(memory.get().known, BTreeMap::from([("n3".to_owned(), n3)]), "whom it met, it finds again");
        let start = Start { node_id: 1, boot: 2, number: 3, start: 4 };
        let known = BTreeMap::from([("n2".to_owned(), Known { address, start })]);
        memory.set_known(known.clone()).await.unwrap();
        store.close().await;
        drop((memory, store));
        let store = Store::open(dir.path(), "n1").await.unwrap();
        let memory = Memory::open(&store).unwrap();
        assert_eq!(*memory.get(), Memories { bootstrap: Bootstrap::Promised { cluster }, known, refused: None });
        let other = Event::Heard(Standing::Member { cluster: ClusterKey { id: 8, generation: 0 } });
        assert!(memory.bootstrap(Part::Founder, other, BTreeMap::new()).await.is_err());
        assert_eq!(memory.get().bootstrap, Bootstrap::Promised { cluster }, "a refused event changes nothing");
    }

    #[test]
    fn unknown_formats_and_garbage_are_errors() {
        assert!(decode(&[1, 0, 0]).is_err());
        assert!(decode(&[2, 9]).is_err());
        assert_eq!(decode(&[]).unwrap(), Memories::default());
    }

    #[test]
    fn the_bytes_are_these() {
        let promise = Promise { node: "n1".into(), node_id: 1, zone: "z".into(), replica: 2 };
        let memories = Memories {
            bootstrap: Bootstrap::Decided { cluster: ClusterKey { id: 3, generation: 4 }, members: vec![promise] },
            known: BTreeMap::new(),
            refused: None,
        };
        let bytes = encode(&memories).unwrap();
        assert_eq!(decode(&bytes).unwrap(), memories);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = concat!(
            "02",
            "6e31ffffffffffff01000000000000007affffffffffffff0200000000000000",
            "0200000000000000000000000000000003000000000000000000000000000000",
            "04000000000000000000000000000000b0ffffff010000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "00000000000000000000000000000000",
        );
        assert_eq!(hex, golden);
    }
}
