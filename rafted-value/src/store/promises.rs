//! Promises of who founds a lone group. A node that starts thousands of groups promises for all of them at once: those
//! that wait are written together.

use std::io;
use std::sync::PoisonError;

use tokio::sync::oneshot;

use super::Store;
use crate::error::StoreError;
use crate::status::ReplicaId;

/// A promise that is asked for.
pub(super) struct Waiting {
    group: String,
    founder: ReplicaId,
    /// Hears whether it is given, once that is durable.
    answer: oneshot::Sender<Result<bool, StoreError>>,
}

impl Store {
    /// Promises that the lone group is founded by this replica and no other; durable on return. `false` if it was
    /// promised to another one before.
    pub(crate) async fn promise_founder(&self, group: &str, founder: ReplicaId) -> Result<bool, StoreError> {
        let (answer, promised) = oneshot::channel();
        let waiting = Waiting { group: group.to_owned(), founder, answer };
        self.inner.promises.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
        let store = self.clone();
        let gone = |error| StoreError::Io { path: self.wal_dir(), error };
        self.threads().run(move || store.write_promises()).await.map_err(gone)?;
        promised.await.unwrap_or_else(|_| Err(gone(io::Error::other("the promise was not written"))))
    }

    /// Writes what waits, unless another thread has taken it along.
    fn write_promises(&self) {
        if self.inner.promises.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return;
        }
        let mut judged = Vec::new();
        let written = self.update_node(|node| {
            // Taken when the file is this thread's: whoever came while it was not goes along.
            let waiting = std::mem::take(&mut *self.inner.promises.lock().unwrap_or_else(PoisonError::into_inner));
            for Waiting { group, founder, answer } in waiting {
                let promised = *node.founders.entry(group).or_insert(founder.get());
                judged.push((answer, promised == founder.get()));
            }
        });
        let outcome = |is_given| match &written {
            Ok(()) => Ok(is_given),
            Err(error) => Err(StoreError::Io { path: self.wal_dir(), error: io::Error::other(error.to_string()) }),
        };
        for (answer, is_given) in judged {
            // Whoever asked may have given up.
            let _ = answer.send(outcome(is_given));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::disk::faulty::FaultyDisk;
    use crate::wal::WalConfig;

    fn id(number: u64) -> ReplicaId {
        ReplicaId::new(number).unwrap()
    }

    fn open(disk: &FaultyDisk) -> Store {
        let clock = Arc::new(crate::clock::SystemClock::default());
        let disk = Arc::new(disk.clone());
        Store::open_simulated(disk, Path::new("/data"), "n1", clock, WalConfig::default()).unwrap().0
    }

    #[tokio::test]
    async fn promises_for_many_groups_share_a_write_and_the_first_of_two_for_one_is_kept() {
        let disk = FaultyDisk::default();
        let store = open(&disk);
        let before = disk.syncs();
        store.promise_founder("alone", id(1)).await.unwrap();
        let each = disk.syncs() - before;
        let names: Vec<String> = (0..500).map(|group| format!("g{group}")).collect();
        let asked =
            names.iter().flat_map(|name| [store.promise_founder(name, id(1)), store.promise_founder(name, id(2))]);
        let before = disk.syncs();
        let given: Vec<bool> = futures_util::future::try_join_all(asked).await.unwrap();
        assert_eq!(given, [true, false].repeat(500));
        assert_eq!(disk.syncs() - before, each, "one write");
        drop(store);
        let store = open(&disk.restart(1));
        assert!(!store.promise_founder("g499", id(2)).await.unwrap(), "it was durable");
        assert!(store.promise_founder("g499", id(1)).await.unwrap());
    }
}
