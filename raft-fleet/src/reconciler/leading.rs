//! Which groups this node leads, and who is told of it.

use std::collections::{BTreeSet, HashMap};

use rafted_value::{ReplicaId, Role, Status};
use tokio::time::Instant;

use crate::cluster::CLUSTER_GROUP;
use crate::event::FleetEvent;
use crate::message::{Leading, Led};
use crate::node::{Leadership, Node};

/// What this node has told of the groups that it leads.
#[derive(Default)]
pub(super) struct Ledger {
    led: HashMap<ReplicaId, Led>,
}

/// Groups in one hint; more go in several.
const GROUPS_PER_HINT: usize = 1_000;

impl Ledger {
    pub(super) fn leads(&self, id: ReplicaId) -> bool {
        self.led.contains_key(&id)
    }

    /// Looks at replicas, tells what has changed, and answers which of them lead.
    pub(super) fn observe(&mut self, node: &Node, replicas: &BTreeSet<ReplicaId>) -> Vec<ReplicaId> {
        let mut leading = Vec::new();
        let mut changes = Vec::new();
        for &id in replicas {
            let status = node.replicas.get(id).map(|hosted| (hosted.replica.status(), hosted));
            match status {
                Some((status, hosted)) if status.role == Role::Leader => {
                    let led = led(hosted.group(), hosted.incarnation(), &status, true);
                    leading.push(id);
                    if self.led.get(&id) != Some(&led) {
                        self.begin(node, id, led.clone());
                        changes.push(led);
                    }
                }
                Some((status, hosted)) => {
                    changes.extend(self.end(node, id, status.term));
                    let leader = status.leader_member().map(|(_, member)| member.name.clone());
                    let heard = led(hosted.group(), hosted.incarnation(), &status, false);
                    node.leaders.learn_from_follower(heard, leader);
                }
                None => changes.extend(self.end(node, id, 0)),
            }
        }
        cast_to_all(node, &changes);
        leading
    }

    fn begin(&mut self, node: &Node, id: ReplicaId, led: Led) {
        let (group, term) = (led.group.clone(), led.term);
        node.leaders.learn(node.name.as_str(), led.clone());
        let before = self.led.insert(id, led);
        if before.is_some_and(|before| before.term == term) {
            return;
        }
        if group == CLUSTER_GROUP {
            node.leads_cluster.send_replace(Some(Leadership { term, since: Instant::now() }));
        } else {
            tracing::debug!(node = %node.name, group, term, "leads");
            drop(node.events.send(FleetEvent::Leading { group, term }));
        }
    }

    /// The hint that this node leads no longer, if it did.
    fn end(&mut self, node: &Node, id: ReplicaId, term: u64) -> Option<Led> {
        let before = self.led.remove(&id)?;
        let after = Led { term: term.max(before.term), leads: false, ..before };
        node.leaders.learn(node.name.as_str(), after.clone());
        if after.group == CLUSTER_GROUP {
            node.leads_cluster.send_replace(None);
        } else {
            drop(node.events.send(FleetEvent::NotLeading { group: after.group.clone() }));
        }
        Some(after)
    }

    /// Tells a node that has just come up all that it may have missed.
    pub(super) fn tell(&self, node: &Node, other: &str) {
        let led: Vec<_> = self.led.values().cloned().collect();
        for groups in led.chunks(GROUPS_PER_HINT) {
            node.cast(other, &Leading { groups: groups.to_vec() });
        }
    }

    /// Tells everybody, when it was missed who has come up.
    pub(super) fn tell_all(&self, node: &Node) {
        cast_to_all(node, &self.led.values().cloned().collect::<Vec<_>>());
    }
}

fn cast_to_all(node: &Node, led: &[Led]) {
    for groups in led.chunks(GROUPS_PER_HINT) {
        let hint = Leading { groups: groups.to_vec() };
        for (other, _) in node.view.get().nodes().filter(|(other, _)| !node.is_here(other)) {
            node.cast(other, &hint);
        }
    }
}

fn led(group: &str, incarnation: u64, status: &Status, leads: bool) -> Led {
    let voters = status.members.voter_ids();
    let members = voters.iter().filter_map(|id| status.members.replicas.get(id)).map(|member| member.name.clone());
    Led { group: group.to_owned(), incarnation, term: status.term, leads, members: members.collect() }
}
