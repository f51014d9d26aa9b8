//! Keeps this node's copy of the cluster's state up to date: from its own replica of the cluster group where that
//! votes, else from a node whose replica does, resumed by index.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use batched_comm::{NodeName, PeerState};
use rafted_value::{Role, Status};

use crate::cluster::{self, CLUSTER_GROUP, CLUSTER_INCARNATION, Cluster, Drain, GroupPhase, NodePhase};
use crate::error::NodeFailure;
use crate::event::FleetEvent;
use crate::memory::Known;
use crate::message::{Follow, Followed, GroupMembers, Membership, Start};
use crate::node::Node;
use crate::replicas::Hosted;

/// How long the other side waits for a change before it says that there is none.
pub(crate) const FOLLOW_WAIT: Duration = Duration::from_secs(10);
/// How much longer its answer may take.
const SLACK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);
/// How long the leader's word that a replica votes is good for; it is asked again at half of it.
const CONFIRMED_FOR: Duration = Duration::from_secs(10);
const CONFIRM_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether the own replica has begun or ceased to vote.
const LOOK: Duration = Duration::from_secs(1);

/// Never ends by itself.
pub(crate) async fn follow(node: &Arc<Node>) {
    let mut source = None;
    loop {
        match confirm_own(node).await {
            Some(hosted) => follow_own(node, &hosted).await,
            None => source = follow_other(node, source).await,
        }
    }
}

/// This node's replica of the cluster group, if what it has applied is as new as anybody's: it votes, and the
/// leader has said so lately. A replica that was removed, or is cut off, does not notice it by itself.
fn own_voter(node: &Node) -> Option<Hosted> {
    let is_confirmed = |status: &Status| {
        let elapsed = node.confirmed.elapsed(status.replica, status.term);
        elapsed.is_some_and(|elapsed| elapsed < CONFIRMED_FOR)
    };
    candidates(node).find(|(_, status)| is_confirmed(status)).map(|(hosted, _)| hosted)
}

/// Replicas of the cluster group that vote, as far as they know.
fn candidates(node: &Node) -> impl Iterator<Item = (Hosted, Status)> {
    let hosted = if node.gate.is_open() { node.replicas.all_of_group(CLUSTER_GROUP) } else { Vec::new() };
    let with_status = hosted.into_iter().map(|hosted| (hosted.replica.status(), hosted));
    let votes = with_status.filter(|(status, _)| status.members.is_voter(status.replica) && status.leader.is_some());
    votes.map(|(status, hosted)| (hosted, status))
}

/// The same, after asking the leader where its word is old.
async fn confirm_own(node: &Node) -> Option<Hosted> {
    for (hosted, status) in candidates(node) {
        let elapsed = node.confirmed.elapsed(status.replica, status.term);
        let is_fresh = elapsed.is_some_and(|elapsed| elapsed < CONFIRMED_FOR / 2);
        if is_fresh || status.role == Role::Leader || leader_confirms(node, &status).await {
            if !is_fresh {
                node.confirmed.set(status.replica, status.term);
            }
            return Some(hosted);
        }
    }
    None
}

async fn leader_confirms(node: &Node, status: &Status) -> bool {
    let Some((_, leader)) = status.leader_member() else { return false };
    let question = Membership { group: CLUSTER_GROUP.to_owned(), incarnation: CLUSTER_INCARNATION };
    match node.call(&leader.name, &question, CONFIRM_PATIENCE).await {
        Ok(GroupMembers::Committed { replicas, .. }) => replicas.contains(&status.replica.get()),
        Ok(GroupMembers::NotHere) | Err(_) => false,
    }
}

/// Copies what the own replica has applied, until something may have happened to it.
async fn follow_own(node: &Node, hosted: &Hosted) {
    let mut applied = hosted.replica.applied();
    applied.borrow_and_update();
    let since = node.view.get().changed_at;
    if let Some(Some(delta)) = hosted.replica.read_local(|cluster: &Cluster, _| cluster.delta(since)) {
        node.view.follow(delta);
    }
    if let Ok(Err(_)) = tokio::time::timeout(LOOK, applied.changed()).await {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks one other node; answers whom to ask next.
async fn follow_other(node: &Node, source: Option<String>) -> Option<String> {
    let Some(source) = source.or_else(|| choose_source(node)) else {
        tokio::time::sleep(PAUSE).await;
        return None;
    };
    let request = Follow { since: node.view.get().changed_at };
    let answer = tokio::select! {
        answer = node.call(&source, &request, FOLLOW_WAIT + SLACK) => answer,
        () = node.peers.wait_silent(&source) => return None,
        () = becomes_voter(node) => return None,
    };
    match answer {
        Ok(Followed::Changed(delta)) => node.view.follow(delta),
        // Another one next time: one that is cut off from its leader has nothing to tell, and does not know it.
        Ok(Followed::Unchanged) => return None,
        Ok(Followed::NotHere) | Err(_) => {
            tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
            return None;
        }
    }
    Some(source)
}

async fn becomes_voter(node: &Node) {
    while confirm_own(node).await.is_none() {
        tokio::time::sleep(LOOK).await;
    }
}

/// A node that should vote in the cluster group, or any other; a different one each time.
fn choose_source(node: &Node) -> Option<String> {
    let view = node.view.get();
    let mut names: Vec<String> = view.voters(node.config.cluster_voters()).into_iter().map(str::to_owned).collect();
    // Where the members are being moved, those that should vote may not do so yet: ask others now and then.
    if names.is_empty() || rand::random_range(0..3) == 0 {
        names.extend(node.contacts.get().into_keys());
        names.extend(view.nodes().map(|(name, _)| name.clone()));
    }
    names.retain(|name| !node.is_here(name) && !node.peers.is_silent(name));
    // A question to one that was never reached waits for the whole of its time.
    let connected = node.endpoint.peers().into_iter().filter(|peer| matches!(peer.state, PeerState::Up { .. }));
    let connected: HashSet<String> = connected.map(|peer| peer.name.to_string()).collect();
    if names.iter().any(|name| connected.contains(name)) {
        names.retain(|name| connected.contains(name));
    }
    if names.is_empty() {
        return None;
    }
    Some(names.swap_remove(rand::random_range(0..names.len())))
}

/// Answers another node that follows.
pub(crate) async fn serve(node: &Node, since: u64) -> Followed {
    let unchanged = async {
        let mut changes = node.view.subscribe();
        loop {
            let delta = changes.borrow_and_update().delta(since);
            if let Some(delta) = delta {
                return Followed::Changed(delta);
            }
            if changes.changed().await.is_err() {
                return Followed::NotHere;
            }
        }
    };
    if own_voter(node).is_none() {
        return Followed::NotHere;
    }
    match tokio::time::timeout(FOLLOW_WAIT, unchanged).await {
        Ok(followed) => followed,
        Err(_) if own_voter(node).is_some() => Followed::Unchanged,
        Err(_) => Followed::NotHere,
    }
}

/// Draws the consequences of every change: addresses, what is remembered, events. Never ends by itself.
pub(crate) async fn draw_consequences(node: &Arc<Node>) {
    let mut changes = node.view.subscribe();
    let mut before = Arc::new(Cluster::default());
    loop {
        let after = changes.borrow_and_update().clone();
        update_peers(node, &before, &after);
        remember(node, &after).await;
        judge_self(node, &before, &after).await;
        if before.changed_at > 0 {
            tell(node, &before, &after);
        }
        before = after;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn update_peers(node: &Node, before: &Cluster, after: &Cluster) {
    for (name, record) in after.nodes().filter(|(name, _)| !node.is_here(name)) {
        let changed = before.node(name).is_none_or(|old| old.address != record.address);
        if let (true, Ok(peer), Ok(address)) = (changed, name.parse::<NodeName>(), record.address.parse()) {
            node.endpoint.set_peer(&peer, vec![address]);
        }
    }
    for (name, _) in before.nodes().filter(|(name, _)| after.node(name).is_none()) {
        node.leaders.forget_node(name);
        if let Ok(peer) = name.parse::<NodeName>() {
            node.endpoint.remove_peer(&peer);
        }
    }
}

/// Stores the nodes, where they have changed.
async fn remember(node: &Node, cluster: &Cluster) {
    let nodes = cluster
        .nodes()
        .map(|(name, record)| (name.clone(), Known { address: record.address.clone(), start: start_of(record) }));
    let known: BTreeMap<_, _> = nodes.collect();
    // Before anything was heard, what was known before the restart stands.
    if known.is_empty() || known == node.memory.get().known {
        return;
    }
    if let Err(failure) = node.memory.set_known(known).await {
        node.fail(failure);
    }
}

/// Whether this node is still itself in the cluster's eyes. What a copy of the state lacks or has in its place ends this
/// run only: whether the directory may be used again, the cluster group says when the node registers.
async fn judge_self(node: &Node, before: &Cluster, after: &Cluster) {
    let name = node.name.as_str();
    match (before.node(name), after.node(name)) {
        (Some(old), None) if old.start == node.start.start => node.fail(NodeFailure::Removed),
        (_, Some(record)) if node.is_running() && record.node_id != node.start.node_id => {
            node.fail(NodeFailure::Fenced { name: name.to_owned() });
        }
        // A copy of the directory runs elsewhere, and has come later.
        (_, Some(record)) if node.is_running() && node.has_forgotten(start_of(record)) => {
            let failure = NodeFailure::RolledBack { given: node.start.boot, registered: record.boot };
            node.fail_for_good(failure).await;
        }
        _ => {}
    }
}

fn start_of(record: &cluster::Node) -> Start {
    Start { node_id: record.node_id, boot: record.boot, number: record.number, start: record.start }
}

fn tell(node: &Node, before: &Cluster, after: &Cluster) {
    let tell = |event| drop(node.events.send(event));
    for (name, new) in after.nodes() {
        let name = name.clone();
        let Some(old) = before.node(&name) else {
            tell(FleetEvent::NodeRegistered { node: name });
            continue;
        };
        if old.start != new.start {
            tell(FleetEvent::NodeRegistered { node: name.clone() });
        }
        match (old.unreachable_since.is_some(), new.unreachable_since.is_some()) {
            (false, true) => tell(FleetEvent::NodeUnreachable { node: name.clone() }),
            (true, false) => tell(FleetEvent::NodeReachable { node: name.clone() }),
            _ => {}
        }
        match new.drain {
            Some(Drain { replicas, leaderships, .. }) if old.drain != new.drain => {
                tell(FleetEvent::DrainProgress { node: name.clone(), replicas, leaderships });
            }
            _ => {}
        }
        match new.phase {
            NodePhase::Active if old.phase == NodePhase::Draining => tell(FleetEvent::NodeActivated { node: name }),
            NodePhase::Dead if old.phase != new.phase => tell(FleetEvent::NodeDead { node: name }),
            NodePhase::Draining if old.phase != new.phase => tell(FleetEvent::NodeDraining { node: name }),
            _ => {}
        }
    }
    for (name, _) in before.nodes().filter(|(name, _)| after.node(name).is_none()) {
        tell(FleetEvent::NodeRemoved { node: name.clone() });
    }
    for (name, group) in after.groups() {
        let old = before.group(name);
        let is_recovery = old.is_some() && group.recovery.is_some();
        if !is_recovery && old.is_none_or(|old| old.incarnation != group.incarnation) {
            tell(FleetEvent::GroupAdded { group: name.clone() });
        }
        let recovered_before =
            old.is_some_and(|old| (old.incarnation, &old.phase) == (group.incarnation, &GroupPhase::Running));
        if is_recovery && group.phase == GroupPhase::Running && !recovered_before {
            tell(FleetEvent::GroupRecovered { group: name.clone() });
        }
    }
    for (name, _) in before.groups().filter(|(name, _)| after.group(name).is_none()) {
        node.leaders.forget_group(name);
        tell(FleetEvent::GroupRemoved { group: name.clone() });
    }
}
