//! This node's copy of the cluster group's state, shared by all its tasks, and changed by whoever follows.

use std::sync::Arc;

use tokio::sync::watch;

use crate::cluster::{Cluster, Delta};

/// The copy. Reading it costs one reference count.
#[derive(Debug)]
pub(crate) struct View {
    current: watch::Sender<Arc<Cluster>>,
}

impl View {
    pub(crate) fn new() -> Self {
        Self { current: watch::Sender::new(Arc::default()) }
    }

    pub(crate) fn get(&self) -> Arc<Cluster> {
        self.current.borrow().clone()
    }

    /// Wakes whenever the copy has come forward.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Cluster>> {
        self.current.subscribe()
    }

    /// Brings the copy forward; an older delta changes nothing.
    pub(crate) fn follow(&self, delta: Delta) {
        self.current.send_if_modified(|current| {
            let before = current.changed_at;
            Arc::make_mut(current).follow(delta);
            current.changed_at > before
        });
    }

    /// Waits until `judge` finds what it looks for.
    pub(crate) async fn wait<T>(&self, mut judge: impl FnMut(&Cluster) -> Option<T>) -> T {
        let mut changes = self.subscribe();
        loop {
            let found = judge(&changes.borrow_and_update());
            if let Some(found) = found {
                return found;
            }
            if changes.changed().await.is_err() {
                // The sender lives in `self`, which is borrowed here.
                std::future::pending::<()>().await;
            }
        }
    }
}
