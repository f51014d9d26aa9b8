//! What the store knows of its own starts, and of those of other nodes.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use tokio::sync::watch;

use super::Store;
use crate::error::StoreError;
use crate::starts::{Start, Starts};
use crate::status::ReplicaId;

/// Other nodes whose starts are remembered: far more than ever were members of one node's groups.
const MAX_SEEN: usize = 16_384;

impl Store {
    /// The starts of this directory, this one the latest: what tells whether it was rolled back. In memory, there is one.
    pub fn starts(&self) -> &Starts {
        &self.inner.starts
    }

    /// The number of this node's memory, and this start of it.
    pub(crate) fn this_start(&self) -> (u64, Start) {
        (self.inner.node_id, self.inner.starts.latest())
    }

    /// Whether this directory has forgotten a start of its own.
    pub(crate) fn lacks_start(&self, seen: Start) -> bool {
        self.inner.starts.lack(seen)
    }

    /// Remembers a start of another node, durably, in place of `after`, the one that it has judged to be its own; which
    /// one is known then. Another one stays: it may be all that tells that the other node's directory was rolled back.
    pub(crate) async fn note_start(
        &self,
        node_id: u64,
        start: Start,
        after: Option<Start>,
    ) -> Result<Option<Start>, StoreError> {
        let known = self.seen(node_id);
        if known == Some(start) || known != after {
            return Ok(known);
        }
        let store = self.clone();
        let note = move || store.write_start(node_id, start, after);
        self.threads().run(note).await.map_err(|error| StoreError::Io { path: self.wal_dir(), error })?
    }

    fn write_start(&self, node_id: u64, start: Start, after: Option<Start>) -> Result<Option<Start>, StoreError> {
        // Another group's replica may have told the same meanwhile.
        let known = self.seen(node_id);
        if known != after {
            return Ok(known);
        }
        self.update_node(|node| {
            if node.seen.get(&node_id).copied() == after {
                node.seen.insert(node_id, start);
            }
            while node.seen.len() > MAX_SEEN {
                // Directories that were wiped soon after they were made, rather than one that somebody may still use.
                let others = node.seen.iter().filter(|(id, _)| **id != node_id);
                let Some((&least, _)) = others.min_by_key(|(_, start)| start.boot) else { break };
                node.seen.remove(&least);
            }
        })?;
        let node = self.lock_node();
        self.lock_seen().clone_from(&node.seen);
        Ok(node.seen.get(&node_id).copied())
    }

    fn seen(&self, node_id: u64) -> Option<Start> {
        self.lock_seen().get(&node_id).copied()
    }

    fn lock_seen(&self) -> MutexGuard<'_, BTreeMap<u64, Start>> {
        self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this directory was rolled back.
    pub(crate) fn rolled_back(&self) -> watch::Receiver<bool> {
        self.inner.rolled_back.subscribe()
    }

    /// Whether it keeps something that could be put back.
    pub(crate) fn is_durable(&self) -> bool {
        self.inner.files.is_some()
    }

    /// Remembers that this directory was rolled back: its replicas stop, and it is not opened again.
    pub(crate) async fn note_rolled_back(&self) -> Result<(), StoreError> {
        self.inner.rolled_back.send_replace(true);
        self.update_node_file(|node| node.rolled_back = true).await
    }

    /// Whether a replica was made by this very start, so that nobody can have forgotten anything of it.
    pub(crate) fn is_new(&self, replica: ReplicaId) -> bool {
        self.lock_created().contains(&replica)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_latest_start_of_another_node_is_kept_also_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "n1").await.unwrap();
        let start = |boot| Some(Start { boot, number: boot * 10 });
        let note = async |store: &Store, boot, after| store.note_start(7, start(boot).unwrap(), after).await.unwrap();
        assert_eq!(note(&store, 3, None).await, start(3));
        assert_eq!(note(&store, 3, None).await, start(3), "known already");
        assert_eq!(note(&store, 5, None).await, start(3), "it has not said that this one is its own");
        assert_eq!(note(&store, 5, start(3)).await, start(5));
        assert_eq!(note(&store, 6, start(3)).await, start(5), "it does not know of the latest");
        store.close().await;
        drop(store);
        let store = Store::open(dir.path(), "n1").await.unwrap();
        assert_eq!(note(&store, 1, None).await, start(5));
    }

    #[tokio::test]
    async fn only_what_this_start_has_made_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "n1").await.unwrap();
        let replica = store.create_replica("jobs", 0, Vec::new()).await.unwrap();
        let (node, first) = store.this_start();
        assert!(store.is_new(replica) && !store.lacks_start(first));
        store.close().await;
        drop(store);
        let store = Store::open(dir.path(), "n1").await.unwrap();
        assert!(!store.is_new(replica));
        let (same_node, second) = store.this_start();
        assert!(node == same_node && second.boot == first.boot + 1 && !store.lacks_start(first));
        assert!(store.lacks_start(Start { boot: second.boot, number: second.number.wrapping_add(1) }));
    }
}
