//! What commands do to nodes.

use std::sync::Arc;

use rafted_value::{DirectoryStart, DirectoryStarts};

use super::{Cluster, Drain, Forgotten, MAX_GONE, Node, NodePhase, Refusal, Registration};

impl Cluster {
    pub(super) fn register(&mut self, index: u64, now: u64, given: Registration) -> Result<(), Refusal> {
        if self.gone.contains(&given.node_id) {
            return Err(Refusal::Removed);
        }
        let starts: DirectoryStarts =
            given.starts.iter().map(|&(boot, number)| DirectoryStart { boot, number }).collect();
        let this = starts.latest();
        let existing = self.nodes.get(&given.node);
        let (phase, since, fenced) = match existing {
            None => (NodePhase::Active, now, Vec::new()),
            Some(node) if node.node_id == given.node_id => {
                // A directory that was not rolled back has all of its starts, also those that never came here.
                if starts.lack(DirectoryStart { boot: node.boot, number: node.number }) {
                    return Err(Refusal::RolledBack { given: this.boot, registered: node.boot });
                }
                match node.phase {
                    NodePhase::Dead => (NodePhase::Active, now, node.fenced.clone()),
                    phase => (phase, node.since, node.fenced.clone()),
                }
            }
            Some(node) => {
                may_take_over(node, &given)?;
                let mut fenced = node.fenced.clone();
                fenced.push(node.node_id);
                fenced.drain(..fenced.len().saturating_sub(MAX_FENCED));
                (NodePhase::Active, now, fenced)
            }
        };
        let node = Node {
            drain: existing.and_then(|node| node.drain).filter(|_| phase == NodePhase::Draining),
            node_id: given.node_id,
            boot: this.boot,
            number: this.number,
            start: given.start,
            zone: given.zone,
            address: given.address,
            attributes: given.attributes,
            phase,
            unreachable_since: None,
            since,
            fenced,
            changed_at: index,
        };
        self.nodes.insert(given.node, Arc::new(node));
        self.changed_at = index;
        Ok(())
    }

    pub(super) fn set_reachable(
        &mut self,
        index: u64,
        now: u64,
        name: &str,
        node_id: u64,
        reachable: bool,
    ) -> Result<(), Refusal> {
        let node = self.node_of_memory(name, node_id)?;
        if node.unreachable_since.is_none() == reachable {
            return Ok(());
        }
        node.unreachable_since = (!reachable).then_some(now);
        node.changed_at = index;
        self.changed_at = index;
        Ok(())
    }

    pub(super) fn purge(&mut self, index: u64, now: u64, name: &str, node_id: u64) -> Result<(), Refusal> {
        let node = self.node_of_memory(name, node_id)?;
        if node.unreachable_since.is_none() {
            return Err(Refusal::NodeInUse);
        }
        if node.phase != NodePhase::Dead {
            (node.phase, node.since, node.changed_at) = (NodePhase::Dead, now, index);
            self.changed_at = index;
            // If it returns, it finds out by itself that its replicas belong to no group any more.
            self.stop_waiting_for(index, name)?;
        }
        Ok(())
    }

    pub(super) fn drain(&mut self, index: u64, now: u64, name: &str) -> Result<(), Refusal> {
        match self.nodes.get(name).ok_or(Refusal::NodeNotFound)?.phase {
            NodePhase::Active => {}
            NodePhase::Draining => return Err(Refusal::AlreadyDraining),
            NodePhase::Dead => return Err(Refusal::NodeDead),
        }
        let takes = |node: &Node| node.phase == NodePhase::Active && node.unreachable_since.is_none();
        if !self.nodes().any(|(other, node)| other != name && takes(node)) {
            return Err(Refusal::LastNode);
        }
        self.set_phase(index, now, name, NodePhase::Draining)
    }

    pub(super) fn activate(&mut self, index: u64, now: u64, name: &str) -> Result<(), Refusal> {
        match self.nodes.get(name).ok_or(Refusal::NodeNotFound)?.phase {
            NodePhase::Draining => self.set_phase(index, now, name, NodePhase::Active),
            NodePhase::Active => Err(Refusal::AlreadyActive),
            NodePhase::Dead => Err(Refusal::NodeDead),
        }
    }

    fn set_phase(&mut self, index: u64, now: u64, name: &str, phase: NodePhase) -> Result<(), Refusal> {
        let node = Arc::make_mut(self.nodes.get_mut(name).ok_or(Refusal::NodeNotFound)?);
        (node.phase, node.since, node.drain, node.changed_at) = (phase, now, None, index);
        self.changed_at = index;
        Ok(())
    }

    pub(super) fn report_drain(
        &mut self,
        index: u64,
        now: u64,
        name: &str,
        node_id: u64,
        replicas: u64,
        leaderships: u64,
    ) -> Result<(), Refusal> {
        let node = self.node_of_memory(name, node_id)?;
        if node.phase != NodePhase::Draining {
            return Err(Refusal::Outdated);
        }
        if node.drain.is_none_or(|drain| (drain.replicas, drain.leaderships) != (replicas, leaderships)) {
            (node.drain, node.changed_at) = (Some(Drain { replicas, leaderships, since: now }), index);
            self.changed_at = index;
        }
        Ok(())
    }

    pub(super) fn remove_node(&mut self, index: u64, name: &str) -> Result<(), Refusal> {
        let node = self.nodes.get(name).ok_or(Refusal::NodeNotFound)?;
        if node.phase == NodePhase::Active && node.unreachable_since.is_none() {
            return Err(Refusal::NodeInUse);
        }
        let memories = node.fenced.iter().chain([&node.node_id]);
        self.gone.extend(memories);
        self.gone.drain(..self.gone.len().saturating_sub(MAX_GONE));
        self.forget(index, Forgotten::Node(name.to_owned()));
        self.stop_waiting_for(index, name)
    }

    /// Nobody waits any more for this node to clean up.
    fn stop_waiting_for(&mut self, index: u64, name: &str) -> Result<(), Refusal> {
        let waiting = self.removed.iter().filter(|(_, removed)| removed.pending.contains(name));
        let waiting: Vec<_> = waiting.map(|(group, removed)| (group.clone(), removed.incarnation)).collect();
        self.cleaned_up(index, name, &waiting)
    }

    pub(super) fn node_of_memory(&mut self, name: &str, node_id: u64) -> Result<&mut Node, Refusal> {
        let node = self.nodes.get_mut(name).ok_or(Refusal::NodeNotFound)?;
        if node.node_id != node_id {
            return Err(Refusal::Outdated);
        }
        Ok(Arc::make_mut(node))
    }
}

/// Whether a new memory may have the name of another.
fn may_take_over(node: &Node, given: &Registration) -> Result<(), Refusal> {
    if node.fenced.contains(&given.node_id) {
        return Err(Refusal::Fenced);
    }
    match (node.phase, node.unreachable_since) {
        (NodePhase::Dead, _) => Ok(()),
        (_, Some(_)) if given.replace => Ok(()),
        (_, Some(since)) => Err(Refusal::WaitsForPurge { node_id: node.node_id, since }),
        (_, None) => Err(Refusal::NameInUse { node_id: node.node_id, address: node.address.clone() }),
    }
}

/// Lost memories that are remembered for a name.
const MAX_FENCED: usize = 64;
