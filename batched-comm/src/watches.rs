//! The state of every peer as a value to be watched, which is never older than the latest change.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::name::NodeName;

/// Who watches which peer, or all of them. `S` is a peer's state; `None` of it: it is no peer.
pub(crate) struct Watches<S> {
    /// `None` once the endpoint is shut down.
    watched: Mutex<Option<Watched<S>>>,
}

struct Watched<S> {
    all: watch::Sender<BTreeMap<NodeName, S>>,
    /// Only those that somebody watches, known or not.
    each: HashMap<NodeName, watch::Sender<Option<S>>>,
}

impl<S: Clone + PartialEq> Watches<S> {
    pub(crate) fn new() -> Watches<S> {
        let watched = Watched { all: watch::Sender::new(BTreeMap::new()), each: HashMap::new() };
        Watches { watched: Mutex::new(Some(watched)) }
    }

    pub(crate) fn watch(&self, peer: &NodeName) -> watch::Receiver<Option<S>> {
        let mut watched = self.watched();
        let Some(watched) = watched.as_mut() else { return watch::Sender::new(None).subscribe() };
        // Whom nobody watches any more is dropped here, so that names do not gather.
        watched.each.retain(|name, sender| name == peer || sender.receiver_count() > 0);
        let state = watched.all.borrow().get(peer).cloned();
        watched.each.entry(peer.clone()).or_insert_with(|| watch::Sender::new(state)).subscribe()
    }

    pub(crate) fn watch_all(&self) -> watch::Receiver<BTreeMap<NodeName, S>> {
        match self.watched().as_ref() {
            Some(watched) => watched.all.subscribe(),
            None => watch::Sender::new(BTreeMap::new()).subscribe(),
        }
    }

    /// What is said of a peer from now on, when `holds` under the lock; `None`: it is no peer.
    pub(crate) fn set(&self, peer: &NodeName, state: Option<S>, holds: impl FnOnce() -> bool) {
        let mut watched = self.watched();
        let Some(watched) = watched.as_mut().filter(|_| holds()) else { return };
        watched.all.send_if_modified(|all| match &state {
            Some(state) => all.insert(peer.clone(), state.clone()).as_ref() != Some(state),
            None => all.remove(peer).is_some(),
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
        watched.all.send_replace(BTreeMap::new());
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
        let all = watches.watch_all();
        assert_eq!(*early.borrow_and_update(), None);
        watches.set(&name("n2"), Some(1), || true);
        watches.set(&name("n3"), Some(5), || true);
        watches.set(&name("n2"), Some(2), || false);
        assert_eq!((*early.borrow_and_update(), *watches.watch(&name("n2")).borrow()), (Some(1), Some(1)));
        assert_eq!(*all.borrow(), BTreeMap::from([(name("n2"), 1), (name("n3"), 5)]));
        watches.set(&name("n2"), Some(1), || true);
        assert!(!early.has_changed().unwrap(), "the same again is no change");
        watches.set(&name("n2"), None, || true);
        assert_eq!((*early.borrow(), all.borrow().len()), (None, 1));
    }

    #[test]
    fn the_end_is_nobody_and_a_closed_channel() {
        let watches = Watches::new();
        watches.set(&name("n2"), Some(1), || true);
        let (each, all) = (watches.watch(&name("n2")), watches.watch_all());
        watches.close();
        watches.set(&name("n2"), Some(2), || true);
        for receiver in [each, watches.watch(&name("n2"))] {
            assert_eq!(*receiver.borrow(), None);
            assert!(receiver.has_changed().is_err());
        }
        assert!(all.borrow().is_empty() && watches.watch_all().has_changed().is_err());
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
