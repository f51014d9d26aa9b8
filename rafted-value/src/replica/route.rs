//! Where a lone group's members are: as the membership says, and before there is one, as the builder was told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use batched_comm::{Endpoint, NodeName};

use crate::client::Route;
use crate::group::UntypedReplica;
use crate::rpc::ClusterTag;
use crate::status::Member;

pub(super) struct MemberRoute {
    endpoint: Endpoint,
    here: String,
    /// What the builder was told, which may be newer than what the membership says.
    told: BTreeMap<String, SocketAddr>,
    replica: UntypedReplica,
    leader: Mutex<Option<String>>,
}

impl MemberRoute {
    pub(super) fn new(endpoint: Endpoint, told: BTreeMap<String, SocketAddr>, replica: UntypedReplica) -> Self {
        let here = endpoint.name().as_str().to_owned();
        Self { endpoint, here, told, replica, leader: Mutex::new(None) }
    }
}

impl Route for MemberRoute {
    fn here(&self) -> &str {
        &self.here
    }

    fn local(&self, _group: &str) -> Option<UntypedReplica> {
        Some(self.replica.clone())
    }

    fn nodes(&self, _group: &str) -> Vec<String> {
        let status = self.replica.status();
        let mut nodes: Vec<String> = status.members.replicas.into_values().map(|member| member.name).collect();
        // Those told to a member that joins: what it knows of the membership may be old, or nothing.
        if !status.members.voters.iter().any(|voters| voters.contains(&status.replica)) {
            nodes.extend(self.told.keys().cloned());
        }
        nodes.sort();
        nodes.dedup();
        nodes
    }

    fn identity(&self, _group: &str) -> Option<(ClusterTag, u64)> {
        Some((self.replica.spec().cluster, self.replica.sender().incarnation()))
    }

    fn leader(&self, _group: &str) -> Option<String> {
        let known = self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.or_else(|| self.replica.status().leader_member().map(|(_, member)| member.name.clone()))
    }

    fn set_leader(&self, _group: &str, node: Option<&str>) {
        let mut leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        // After each answer it is told again who gave it.
        if leader.as_deref() != node {
            *leader = node.map(str::to_owned);
        }
    }

    fn learn(&self, member: &Member) {
        if member.addresses.is_empty() || member.name == self.here {
            return;
        }
        match member.name.parse::<NodeName>() {
            Ok(name) => {
                let told = self.told.get(&member.name).filter(|told| !member.addresses.contains(told));
                self.endpoint.set_peer(&name, member.addresses.iter().chain(told).copied().collect());
            }
            Err(error) => tracing::warn!(member = member.name, %error, "a member has a name that no node can have"),
        }
    }
}
