//! When and how batches leave: for all peers, and for single ones.

use std::collections::HashMap;

use crate::config::Batching;
use crate::error::ConfigError;
use crate::name::NodeName;

/// Peers that may have batching of their own.
const MAX_PEER_BATCHINGS: usize = 4096;

pub(super) struct Limits {
    all: Batching,
    by_peer: HashMap<NodeName, Batching>,
}

impl Limits {
    pub(super) fn new(all: Batching) -> Limits {
        Limits { all, by_peer: HashMap::new() }
    }

    /// What holds for whoever has nothing of their own.
    pub(super) fn all(&self) -> Batching {
        self.all
    }

    pub(super) fn set_all(&mut self, batching: Batching) {
        self.all = batching;
    }

    /// What was set for one peer.
    pub(super) fn own(&self, peer: &NodeName) -> Option<Batching> {
        self.by_peer.get(peer).copied()
    }

    /// What holds for one peer.
    pub(super) fn of(&self, peer: &NodeName) -> Batching {
        self.own(peer).unwrap_or(self.all)
    }

    pub(super) fn set_own(&mut self, peer: &NodeName, batching: Option<Batching>) -> Result<(), ConfigError> {
        let Some(batching) = batching else {
            self.by_peer.remove(peer);
            return Ok(());
        };
        if self.by_peer.len() >= MAX_PEER_BATCHINGS && !self.by_peer.contains_key(peer) {
            return Err(ConfigError {
                setting: "peers with batching of their own",
                given: (self.by_peer.len() + 1).to_string(),
                allowed: format!("up to {MAX_PEER_BATCHINGS}: set those to None that are gone"),
            });
        }
        self.by_peer.insert(peer.clone(), batching);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_its_own_until_it_is_taken_back() {
        let [small, large] = [10, 20].map(|n| Batching::default().with_max_batch_messages(n).unwrap());
        let [n1, n2]: [NodeName; 2] = ["n1", "n2"].map(|name| name.parse().unwrap());
        let mut limits = Limits::new(small);
        limits.set_own(&n1, Some(large)).unwrap();
        assert_eq!((limits.of(&n1), limits.of(&n2)), (large, small));
        limits.set_all(Batching::default());
        assert_eq!((limits.own(&n1), limits.of(&n2)), (Some(large), Batching::default()));
        limits.set_own(&n1, None).unwrap();
        assert_eq!((limits.own(&n1), limits.of(&n1)), (None, Batching::default()));
    }

    #[test]
    fn beyond_the_bound_only_those_are_changed_that_have_their_own() {
        let mut limits = Limits::new(Batching::default());
        let name = |n: usize| format!("n{n}").parse::<NodeName>().unwrap();
        for n in 0..MAX_PEER_BATCHINGS {
            limits.set_own(&name(n), Some(Batching::default())).unwrap();
        }
        let newcomer = name(MAX_PEER_BATCHINGS);
        let error = limits.set_own(&newcomer, Some(Batching::default())).unwrap_err();
        assert!(error.to_string().contains("4097: allowed is up to 4096"), "{error}");
        limits.set_own(&newcomer, None).unwrap();
        limits.set_own(&name(7), Some(Batching::default())).unwrap();
        limits.set_own(&name(7), None).unwrap();
        limits.set_own(&newcomer, Some(Batching::default())).unwrap();
    }
}
