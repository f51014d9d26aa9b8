//! Who builds a snapshot, and when: the compactor waits for the node's turn and leaves it here, openraft asks the machine
//! for a builder, and the builder takes the turn with it to its end.
//!
//! ```text
//!   compactor --turn--> Building --turn--> Builder --Built--> compactor
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Built {
    /// The snapshot up to this entry is durable; entries up to `purge` may go.
    Taken {
        /// The last entry in it.
        index: u64,
        /// None may go.
        purge: Option<u64>,
    },
    /// The value cannot be copied or written.
    Failed,
}

/// A node's turn to build; it is over when this is dropped.
pub(crate) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
    ended: oneshot::Sender<Built>,
}

impl Turn {
    pub(super) fn end(self, built: Built) {
        // Nobody waits for it when the replica stops.
        let _ = self.ended.send(built);
    }
}

/// A turn that was left for a builder. It is taken back when this is dropped, if no builder has come.
pub(crate) struct Offer<'a> {
    building: &'a Building,
    end: oneshot::Receiver<Built>,
}

impl Offer<'_> {
    /// How the build ended; no word means that none was begun.
    pub(crate) async fn end(&mut self) -> Option<Built> {
        (&mut self.end).await.ok()
    }
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        drop(self.building.take());
    }
}

/// One replica's.
#[derive(Default)]
pub(crate) struct Building {
    turn: Mutex<Option<Turn>>,
    asked: AtomicBool,
    wanted: Notify,
}

impl Building {
    /// Leaves a turn for the next builder.
    pub(crate) fn offer(&self, permit: Option<OwnedSemaphorePermit>) -> Offer<'_> {
        let (ended, end) = oneshot::channel();
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(Turn { _permit: permit, ended });
        Offer { building: self, end }
    }

    pub(super) fn take(&self) -> Option<Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Takes the turn back, unless a builder has it.
    pub(crate) fn withdraw(&self) -> bool {
        self.take().is_some()
    }

    /// Somebody wants a snapshot now.
    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether somebody has asked since the last call.
    pub(crate) fn was_asked(&self) -> bool {
        self.asked.swap(false, Ordering::AcqRel)
    }

    /// A snapshot may be due.
    pub(crate) fn wake(&self) {
        self.wanted.notify_one();
    }

    /// Waits until a snapshot may be due or was asked for.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}
