//! Deletes replicas that are no longer needed, only on proof, never from silence: that the cluster group,
//! read linearizably, knows no such incarnation of the group; or a committed membership of the group, made after
//! the replica was, that does not name it. A replica that a membership does not name is never added later:
//! it is made for one membership, and added only as the next one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rafted_value::{ReplicaId, StoredReplica};

use crate::cluster::{Answer, CLUSTER_GROUP, Command, Query};
use crate::message::{GroupMembers, Membership, Position, Released};
use crate::node::Node;
use crate::replicas::Hosted;

const PATIENCE: Duration = Duration::from_secs(3);
/// Removed groups that are reported in one command.
const GROUPS_PER_REPORT: usize = 256;

/// Never ends by itself.
pub(crate) async fn clean_up(node: Arc<Node>) {
    let mut view = node.view.subscribe();
    loop {
        node.running().await;
        view.borrow_and_update();
        let finished = clean_removed(&node).await;
        let pause = if finished { node.config.reconcile_interval() } else { PATIENCE / 10 };
        let pause = tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25)));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                Ok(()) = view.changed() => {
                    let cluster = view.borrow_and_update().clone();
                    let me = node.name.as_str();
                    let concerned = cluster.removed().any(|(_, removed)| removed.pending.contains(me));
                    if concerned { break; }
                }
                () = &mut pause => {
                    check_all(&node).await;
                    break;
                }
            }
        }
    }
}

/// Deletes what is left of removed groups and says so; `false` when something could not be done now.
async fn clean_removed(node: &Node) -> bool {
    let cluster = node.view.get();
    let mut cleaned = Vec::new();
    let mut finished = true;
    for (name, removed) in cluster.removed().filter(|(_, removed)| removed.pending.contains(node.name.as_str())) {
        let stored = node.replicas.stored();
        let old: Vec<_> = stored
            .into_iter()
            .filter(|stored| stored.group == *name && stored.incarnation <= removed.incarnation)
            .collect();
        // No recovery spares a replica of a group that was removed.
        if old.is_empty() || (is_gone(node, name, removed.incarnation, None).await && remove_all(node, &old).await) {
            cleaned.push((name.clone(), removed.incarnation));
        } else {
            finished = false;
        }
    }
    for groups in cleaned.chunks(GROUPS_PER_REPORT) {
        let report = Command::CleanedUp { node: node.name.to_string(), groups: groups.to_vec() };
        finished &= node.cluster_command(report, PATIENCE).await.is_ok();
    }
    finished
}

/// Whether the cluster group, read linearizably, has no place for this incarnation any more, nor spares this replica.
async fn is_gone(node: &Node, group: &str, incarnation: u64, replica: Option<ReplicaId>) -> bool {
    match node.cluster_query(Query::Incarnation { group: group.to_owned() }, PATIENCE).await {
        Ok(Answer::Incarnation { current, spared, .. }) => {
            let is_spared = replica.is_some_and(|replica| spared.contains(&replica.get()));
            current.is_none_or(|current| current > incarnation) && !is_spared
        }
        Ok(Answer::ChangedAt(_)) | Err(_) => false,
    }
}

async fn remove_all(node: &Node, replicas: &[StoredReplica]) -> bool {
    let mut removed = true;
    for stored in replicas {
        removed &= remove(node, stored.replica, &stored.group, "its group is gone").await;
    }
    removed
}

async fn remove(node: &Node, replica: ReplicaId, group: &str, why: &str) -> bool {
    tracing::info!(node = %node.name, group, %replica, why, "deletes a replica");
    match node.replicas.remove(replica).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(group, %replica, %error, "a replica was not deleted, trying again");
            false
        }
    }
}

/// Looks at every replica that may be here without need.
async fn check_all(node: &Node) {
    let cluster = node.view.get();
    for stored in node.replicas.stored() {
        if stored.group != CLUSTER_GROUP {
            let current = cluster.group(&stored.group).map(|group| group.incarnation);
            if current != Some(stored.incarnation) {
                if is_gone(node, &stored.group, stored.incarnation, Some(stored.replica)).await {
                    remove(node, stored.replica, &stored.group, "its group is gone").await;
                }
                continue;
            }
        }
        let Some(hosted) = node.replicas.get(stored.replica).filter(|hosted| is_doubtful(node, hosted)) else {
            continue;
        };
        let proves = |(position, members): (Position, BTreeSet<u64>)| may_go(&hosted, position, &members);
        if own_members(node, &hosted).into_iter().any(proves) || ask_members(node, &hosted).await.is_some_and(proves) {
            remove(node, stored.replica, &stored.group, "its group goes on without it").await;
        }
    }
}

/// Whether the replica may have left its group without having heard of it: then its own view is the last to tell.
fn is_doubtful(node: &Node, hosted: &Hosted) -> bool {
    let status = hosted.replica.status();
    let is_member = status.leader.is_some() && status.members.replicas.contains_key(&status.replica);
    let heard = node.leaders.get(hosted.group()).unwrap_or_default();
    let is_heard_of = heard.members.iter().any(|member| node.is_here(member));
    !is_member || !is_heard_of || node.replicas.all_of_group(hosted.group()).len() > 1
}

/// Committed memberships that other replicas of this node know: what is committed stays true.
fn own_members(node: &Node, hosted: &Hosted) -> Vec<(Position, BTreeSet<u64>)> {
    let others = node.replicas.all_of_group(hosted.group()).into_iter();
    let others = others.filter(|other| other.id() != hosted.id() && other.incarnation() == hosted.incarnation());
    let committed = others.filter_map(|other| {
        let members = other.replica.status().members;
        let position = members.position.filter(|_| members.committed)?;
        let position = Position { term: position.term, index: position.index };
        Some((position, members.replicas.keys().map(|id| id.get()).collect()))
    });
    committed.collect()
}

/// A committed membership, from the node that leads the group.
async fn ask_members(node: &Node, hosted: &Hosted) -> Option<(Position, BTreeSet<u64>)> {
    let group = hosted.group();
    let question = Membership { group: group.to_owned(), incarnation: hosted.incarnation() };
    let heard = node.leaders.get(group).unwrap_or_default();
    let mut asked: Vec<String> = heard.leader.into_iter().chain(heard.members).collect();
    if hosted.is_cluster() {
        let view = node.view.get();
        asked.extend(view.voters(node.config.cluster_voters()).into_iter().map(str::to_owned));
    }
    let mut seen = BTreeSet::new();
    asked.retain(|name| !node.is_here(name) && !node.peers.is_silent(name) && seen.insert(name.clone()));
    for name in asked {
        if let Ok(GroupMembers::Committed { position, replicas }) = node.call(&name, &question, PATIENCE).await {
            return Some((position, replicas.into_iter().collect()));
        }
    }
    None
}

/// Whether a committed membership proves that the replica is not needed, and never will be.
fn may_go(hosted: &Hosted, position: Position, members: &BTreeSet<u64>) -> bool {
    let is_later = hosted.after.is_none_or(|after| position.index > after.index);
    is_later && !members.contains(&hosted.id().get())
}

/// A leader says that a replica of this node has left its group: the membership that it tells is the proof.
pub(crate) async fn released(node: &Node, released: Released) {
    let Some(hosted) = ReplicaId::new(released.replica).and_then(|id| node.replicas.get(id)) else { return };
    let is_same = hosted.group() == released.group && hosted.incarnation() == released.incarnation;
    if is_same && may_go(&hosted, released.position, &BTreeSet::new()) {
        remove(node, hosted.id(), &released.group, "it has left its group").await;
    }
}
