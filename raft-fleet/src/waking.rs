//! Sleeping replicas that are to be woken: who says so, and who wakes them, meet here.

mod queue;

use std::sync::{Mutex, MutexGuard, PoisonError};

use rafted_value::ReplicaId;
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use self::queue::Call;
use self::queue::Queue;

/// The replicas that are to be woken.
#[derive(Debug, Default)]
pub(crate) struct Waking {
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Waking {
    /// Somebody waits for a sleeping replica's group.
    pub(crate) fn demand(&self, replica: ReplicaId) {
        self.lock().demand(replica);
        self.changed.notify_one();
    }

    /// It is woken from then on, in its turn; `elects`: to ask for votes at once.
    pub(crate) fn push(&self, replica: ReplicaId, at: Instant, elects: bool) {
        self.lock().push(replica, at, elects);
        self.changed.notify_one();
    }

    /// It is not to be woken any more, unless somebody waits for it.
    pub(crate) fn remove(&self, replica: ReplicaId) {
        self.lock().remove(replica);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until some are due, and takes them.
    pub(crate) async fn due(&self) -> Vec<Call> {
        loop {
            let changed = self.changed.notified();
            let now = Instant::now();
            let (calls, next) = {
                let mut queue = self.lock();
                (queue.take(now), queue.next_at(now))
            };
            if !calls.is_empty() {
                return calls;
            }
            match next {
                Some(next) => drop(tokio::time::timeout_at(next, changed).await),
                None => changed.await,
            }
        }
    }
}
