//! The state of every peer as a value to be watched, which is never older than the latest change.
//!
//! Who changes a state is the network's task. So nobody outside can hold a lock here: a [`Watch`] gives copies.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::error::WatchEnded;
use crate::name::NodeName;

/// A value that changes: the latest one, and word of the next change. What it gives is a copy, so that it may be held
/// as long as wanted; clones watch on their own.
#[derive(Clone)]
pub struct Watch<T> {
    receiver: watch::Receiver<T>,
}

impl<T: Clone> Watch<T> {
    /// The latest value, from now on seen.
    pub fn get(&mut self) -> T {
        self.receiver.borrow_and_update().clone()
    }

    /// Returns once there is a value that was not seen: neither given by [`Watch::get`] or [`Watch::wait_for`], nor
    /// there when this watch was made. Values in between may be passed over. Nothing is lost when the future is
    /// dropped.
    ///
    /// # Errors
    /// When the endpoint has ended, and its last value was seen.
    pub async fn changed(&mut self) -> Result<(), WatchEnded> {
        self.receiver.changed().await.map_err(|_| WatchEnded)
    }

    /// The first value from now on for which `wanted` holds. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the endpoint has ended, and it does not hold for its last value.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<T, WatchEnded> {
        loop {
            let value = self.get();
            if wanted(&value) {
                return Ok(value);
            }
            self.changed().await?;
        }
    }

    /// Whether the endpoint has ended: no change follows.
    pub fn is_ended(&self) -> bool {
        self.receiver.has_changed().is_err()
    }
}

impl<T: Clone + fmt::Debug> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.receiver.borrow().clone();
        f.debug_tuple("Watch").field(&value).finish()
    }
}

/// Who watches which peer, or all of them. `S` is a peer's state; `None` of it: it is no peer.
pub(crate) struct Watches<S> {
    /// `None` once the endpoint is shut down.
    watched: Mutex<Option<Watched<S>>>,
}

struct Watched<S> {
    /// Copied when it changes while somebody has the former one.
    all: watch::Sender<Arc<BTreeMap<NodeName, S>>>,
    /// Only those that somebody watches, known or not.
    each: HashMap<NodeName, watch::Sender<Option<S>>>,
}

impl<S: Clone + PartialEq> Watches<S> {
    pub(crate) fn new() -> Watches<S> {
        let watched = Watched { all: watch::Sender::default(), each: HashMap::new() };
        Watches { watched: Mutex::new(Some(watched)) }
    }

    pub(crate) fn watch(&self, peer: &NodeName) -> Watch<Option<S>> {
        let mut watched = self.watched();
        let Some(watched) = watched.as_mut() else { return Watch { receiver: watch::Sender::new(None).subscribe() } };
        // Whom nobody watches any more is dropped here, so that names do not gather.
        watched.each.retain(|name, sender| name == peer || sender.receiver_count() > 0);
        let state = watched.all.borrow().get(peer).cloned();
        let sender = watched.each.entry(peer.clone()).or_insert_with(|| watch::Sender::new(state));
        Watch { receiver: sender.subscribe() }
    }

    pub(crate) fn watch_all(&self) -> Watch<Arc<BTreeMap<NodeName, S>>> {
        let receiver = match self.watched().as_ref() {
            Some(watched) => watched.all.subscribe(),
            None => watch::Sender::default().subscribe(),
        };
        Watch { receiver }
    }

    /// What is said of a peer from now on, when `holds` under the lock; `None`: it is no peer.
    pub(crate) fn set(&self, peer: &NodeName, state: Option<S>, holds: impl FnOnce() -> bool) {
        let mut watched = self.watched();
        let Some(watched) = watched.as_mut().filter(|_| holds()) else { return };
        watched.all.send_if_modified(|all| {
            let changes = all.get(peer) != state.as_ref();
            match &state {
                _ if !changes => {}
                Some(state) => drop(Arc::make_mut(all).insert(peer.clone(), state.clone())),
                None => drop(Arc::make_mut(all).remove(peer)),
            }
            changes
        });
        if let Some(sender) = watched.each.get(peer) {
            sender.send_if_modified(|current| {
                let changed = *current != state;
                *current = state;
                changed
            });
        }
    }

    /// Nobody is a peer any more, and no change follows.
    pub(crate) fn close(&self) {
        let Some(watched) = self.watched().take() else { return };
        watched.all.send_replace(Arc::default());
        for sender in watched.each.values() {
            sender.send_replace(None);
        }
    }

    /// Nothing panics under this lock.
    fn watched(&self) -> MutexGuard<'_, Option<Watched<S>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    #[test]
    fn a_state_is_seen_by_who_watches_the_peer_and_by_who_watches_all() {
        let watches = Watches::new();
        let mut early = watches.watch(&name("n2"));
        let mut all = watches.watch_all();
        assert_eq!(early.get(), None);
        watches.set(&name("n2"), Some(1), || true);
        watches.set(&name("n3"), Some(5), || true);
        watches.set(&name("n2"), Some(2), || false);
        assert_eq!((early.get(), watches.watch(&name("n2")).get()), (Some(1), Some(1)));
        let both = all.get();
        assert_eq!(*both, BTreeMap::from([(name("n2"), 1), (name("n3"), 5)]));
        watches.set(&name("n2"), Some(1), || true);
        for unchanged in [early.receiver.has_changed(), all.receiver.has_changed()] {
            assert!(!unchanged.unwrap(), "the same again is no change");
        }
        watches.set(&name("n2"), None, || true);
        assert_eq!((early.get(), all.get().len(), both.len()), (None, 1, 2), "who has a copy keeps it");
    }

    #[test]
    fn the_end_is_nobody_and_a_closed_channel() {
        let watches = Watches::new();
        watches.set(&name("n2"), Some(1), || true);
        let (each, mut all) = (watches.watch(&name("n2")), watches.watch_all());
        watches.close();
        watches.set(&name("n2"), Some(2), || true);
        for mut watch in [each, watches.watch(&name("n2"))] {
            assert_eq!((watch.get(), watch.is_ended()), (None, true));
        }
        assert!(all.get().is_empty() && watches.watch_all().is_ended());
    }

    #[test]
    fn names_that_nobody_watches_do_not_gather() {
        let watches = Watches::<u8>::new();
        let kept = watches.watch(&name("kept"));
        for n in 0..100 {
            drop(watches.watch(&name(&format!("n{n}"))));
        }
        assert_eq!(watches.watched().as_ref().unwrap().each.len(), 2);
        drop(kept);
    }
}
