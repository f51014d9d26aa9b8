//! Where the replicas of a group are, as far as this node knows: what the client of all groups asks.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use rafted_value::{ClusterTag, Route, UntypedReplica};

use crate::cluster::{CLUSTER_GROUP, CLUSTER_INCARNATION};
use crate::leaders::Leaders;
use crate::peers::Peers;
use crate::replicas::Replicas;
use crate::view::View;
use crate::waking::Waking;

/// Nodes that were heard of, with their addresses, before the cluster's state told of them.
#[derive(Debug, Default)]
pub(crate) struct Contacts {
    nodes: Mutex<BTreeMap<String, String>>,
}

impl Contacts {
    pub(crate) fn add(&self, node: &str, address: &str) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), address.to_owned());
    }

    pub(crate) fn get(&self) -> BTreeMap<String, String> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(crate) struct Routes {
    pub(crate) here: String,
    pub(crate) view: Arc<View>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) leaders: Arc<Leaders>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) contacts: Arc<Contacts>,
    pub(crate) waking: Arc<Waking>,
    pub(crate) cluster_voters: u32,
}

impl Route for Routes {
    fn here(&self) -> &str {
        &self.here
    }

    fn local(&self, group: &str) -> Option<UntypedReplica> {
        let hosted = self.replicas.of_group(group)?;
        let (_, incarnation) = self.identity(group)?;
        if hosted.replica.misses_leader() {
            self.waking.demand(hosted.id());
        }
        (hosted.incarnation() == incarnation).then_some(hosted.replica)
    }

    fn nodes(&self, group: &str) -> Vec<String> {
        let view = self.view.get();
        let mut nodes = self.leaders.get(group).map(|heard| heard.members).unwrap_or_default();
        if group == CLUSTER_GROUP {
            nodes.extend(view.voters(self.cluster_voters).into_iter().map(str::to_owned));
            nodes.extend(self.contacts.get().into_keys());
            nodes.push(self.here.clone());
        } else if let Some(record) = view.group(group) {
            nodes.extend(view.places(group, record.replicas).into_iter().map(str::to_owned));
        }
        nodes.extend(view.nodes().map(|(name, _)| name.clone()));
        let mut seen = HashSet::new();
        nodes.retain(|node| seen.insert(node.clone()));
        nodes.sort_by_key(|node| self.peers.is_silent(node));
        nodes
    }

    fn identity(&self, group: &str) -> Option<(ClusterTag, u64)> {
        let cluster = self.replicas.cluster()?;
        if group == CLUSTER_GROUP {
            return Some((cluster, CLUSTER_INCARNATION));
        }
        self.view.get().group(group).map(|record| (cluster, record.incarnation))
    }

    fn leader(&self, group: &str) -> Option<String> {
        self.leaders.leader(group).filter(|leader| !self.peers.is_silent(leader))
    }

    fn set_leader(&self, group: &str, node: Option<&str>) {
        self.leaders.set(group, node);
    }
}
