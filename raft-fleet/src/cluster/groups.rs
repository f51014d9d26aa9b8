//! What commands do to groups.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{CLUSTER_GROUP, Cluster, Forgotten, Founder, Group, GroupPhase, NodePhase, Refusal, RemovedGroup};
use crate::placement;

impl Cluster {
    pub(super) fn add_group(
        &mut self,
        index: u64,
        name: String,
        type_name: String,
        replicas: u32,
    ) -> Result<(), Refusal> {
        if self.groups.contains_key(&name) || name == CLUSTER_GROUP {
            return Err(Refusal::GroupExists);
        }
        if let Some(removed) = self.removed.get(&name) {
            return Err(Refusal::CleanupOngoing { pending: removed.pending.iter().cloned().collect() });
        }
        let founders = self.founders(&name, replicas)?;
        let phase = GroupPhase::Forming { founders };
        let group = Group { type_name, replicas, incarnation: index, phase, recovery: None, changed_at: index };
        self.groups.insert(name, Arc::new(group));
        self.changed_at = index;
        Ok(())
    }

    pub(super) fn reform(&mut self, index: u64, name: &str, incarnation: u64) -> Result<(), Refusal> {
        let replicas = self.group_of(name, incarnation)?.replicas;
        if !matches!(self.group_of(name, incarnation)?.phase, GroupPhase::Forming { .. }) {
            return Err(Refusal::Outdated);
        }
        let founders = self.founders(name, replicas)?;
        let group = self.group_of(name, incarnation)?;
        (group.phase, group.incarnation, group.changed_at) = (GroupPhase::Forming { founders }, index, index);
        self.changed_at = index;
        Ok(())
    }

    pub(super) fn found(
        &mut self,
        index: u64,
        name: &str,
        incarnation: u64,
        replicas: &[(String, u64, u64)],
    ) -> Result<(), Refusal> {
        let GroupPhase::Forming { founders } = &self.group_of(name, incarnation)?.phase else {
            return Err(Refusal::Outdated);
        };
        if !founders.iter().eq(replicas.iter().map(|(node, _, _)| node)) {
            return Err(Refusal::Outdated);
        }
        let mut founders = Vec::new();
        for (node, node_id, replica) in replicas {
            let record = self.node_of_memory(node, *node_id)?;
            if record.phase == NodePhase::Draining {
                return Err(Refusal::Outdated);
            }
            let zone = record.zone.clone();
            founders.push(Founder { node: node.clone(), node_id: *node_id, zone, replica: *replica });
        }
        let group = self.group_of(name, incarnation)?;
        (group.phase, group.changed_at) = (GroupPhase::Founded { founders }, index);
        self.changed_at = index;
        Ok(())
    }

    pub(super) fn set_running(&mut self, index: u64, name: &str, incarnation: u64) -> Result<(), Refusal> {
        let group = self.group_of(name, incarnation)?;
        match group.phase {
            GroupPhase::Forming { .. } => return Err(Refusal::Outdated),
            GroupPhase::Running => {}
            GroupPhase::Founded { .. } | GroupPhase::Recovering => {
                (group.phase, group.changed_at) = (GroupPhase::Running, index);
                self.changed_at = index;
            }
        }
        Ok(())
    }

    pub(super) fn remove_group(&mut self, index: u64, name: &str) -> Result<(), Refusal> {
        let incarnation = self.groups.get(name).ok_or(Refusal::GroupNotFound)?.incarnation;
        self.forget(index, Forgotten::Group(name.to_owned()));
        let alive = self.nodes().filter(|(_, node)| node.phase != NodePhase::Dead);
        let pending: BTreeSet<_> = alive.map(|(name, _)| name.clone()).collect();
        if !pending.is_empty() {
            let removed = RemovedGroup { incarnation, pending, changed_at: index };
            self.removed.insert(name.to_owned(), Arc::new(removed));
        }
        Ok(())
    }

    pub(super) fn cleaned_up(&mut self, index: u64, node: &str, groups: &[(String, u64)]) -> Result<(), Refusal> {
        for (name, incarnation) in groups {
            let Some(removed) = self.removed.get_mut(name).filter(|removed| removed.incarnation == *incarnation) else {
                continue;
            };
            let removed = Arc::make_mut(removed);
            if removed.pending.remove(node) {
                removed.changed_at = index;
                self.changed_at = index;
            }
            if removed.pending.is_empty() {
                self.forget(index, Forgotten::RemovedGroup(name.clone()));
            }
        }
        Ok(())
    }

    pub(super) fn group_of(&mut self, name: &str, incarnation: u64) -> Result<&mut Group, Refusal> {
        let group = self.groups.get_mut(name).ok_or(Refusal::GroupNotFound)?;
        if group.incarnation != incarnation {
            return Err(Refusal::Outdated);
        }
        Ok(Arc::make_mut(group))
    }

    /// The first members' nodes: those that can answer now.
    pub(super) fn founders(&self, group: &str, replicas: u32) -> Result<Vec<String>, Refusal> {
        let able = self.nodes().filter(|(_, n)| n.phase == NodePhase::Active && n.unreachable_since.is_none());
        let able = able.map(|(name, node)| (name.as_str(), node.zone.as_str()));
        let founders = placement::place(group, able, replicas as usize);
        if founders.is_empty() {
            return Err(Refusal::NoNodes);
        }
        Ok(founders.into_iter().map(str::to_owned).collect())
    }
}
