//! Idle groups sleep: a group in which nothing happens costs neither messages nor timers. Nodes are watched instead, by the
//! transport, and a node that is gone wakes the groups that it led.
//!
//! ```text
//! every second  a leader's groups at rest --one message per node--> members asleep, all agreed --> leader asleep
//! a node falls silent, or restarts --> the groups that it led: one member is woken to elect, the others if that fails
//! a node is back --> the groups that sleep without its replica, or whose replica there was restarted, are woken
//! a node starts --> its replicas sleep until somebody waits for them, or their turn comes
//! somebody waits --> at once
//! every ten seconds  members asleep --one message per node--> does the leader that they know still lead?
//! ```
//!
//! The last line is for what was missed: a leader whose replica has stopped says so to all, and such a word may be lost.
//! What is decided here costs time where it is wrong, never data: see `rafted-value/src/group/sleeping.rs`.

mod bedtime;
mod roll_call;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use batched_comm::{PeerEvent, PeerState};
use rafted_value::{Members, ReplicaId, Status};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

pub(crate) use self::bedtime::{follow_to_sleep, put_to_sleep};
pub(crate) use self::roll_call::{call_the_roll, not_leading};
use crate::cluster;
use crate::node::Node;
use crate::replicas::Hosted;
use crate::waking::Call;

/// How long the member that is to elect may take, before the others try.
const BACKUP_AFTER: Duration = Duration::from_secs(1);
/// After a start: until then, leaders that live may have reached the replica.
const AFTER_START: Duration = Duration::from_millis(500);
/// How long a replica may take to listen. One that is stuck is woken by its timer.
const PATIENCE: Duration = Duration::from_millis(100);

/// Lets a replica that has just been started from what is stored sleep until its turn comes.
pub(crate) fn start_asleep(node: &Node, hosted: &Hosted) {
    if hosted.is_cluster() || node.config.sleep_after().is_none() {
        return;
    }
    hosted.replica.doze();
    node.waking.push(hosted.id(), Instant::now() + AFTER_START, false);
}

/// Never ends by itself: wakes groups.
pub(crate) async fn wake_groups(node: Arc<Node>) {
    let mut silent_changes = node.peers.subscribe();
    let mut events = node.endpoint.events();
    let mut starts = Starts::default();
    starts.look(&node);
    let mut silent: Arc<HashSet<String>> = silent_changes.borrow_and_update().clone();
    loop {
        tokio::select! {
            Ok(()) = silent_changes.changed() => {
                let now = silent_changes.borrow_and_update().clone();
                for name in now.difference(&silent) {
                    lost(&node, name).await;
                }
                for name in silent.difference(&now) {
                    back(&node, name, false).await;
                }
                silent = now;
            }
            event = events.recv() => {
                let started = match event {
                    Ok(PeerEvent::Up { peer, instance }) => starts.see(peer.as_str(), instance),
                    Ok(_) => Vec::new(),
                    Err(RecvError::Lagged(_)) => starts.look(&node),
                    Err(RecvError::Closed) => return,
                };
                for name in started {
                    lost(&node, &name).await;
                    back(&node, &name, true).await;
                }
            }
            calls = node.waking.due() => {
                for call in calls {
                    wake(&node, call).await;
                }
            }
        }
    }
}

/// Which start of each node was connected last.
#[derive(Default)]
struct Starts(HashMap<String, u64>);

impl Starts {
    /// The node, if this start of it was not connected before.
    fn see(&mut self, node: &str, instance: u64) -> Vec<String> {
        let before = self.0.insert(node.to_owned(), instance);
        (before != Some(instance)).then(|| node.to_owned()).into_iter().collect()
    }

    /// Events were missed: all nodes of which a start is new.
    fn look(&mut self, node: &Node) -> Vec<String> {
        let peers = node.endpoint.peers().into_iter().filter(|peer| matches!(peer.state, PeerState::Up { .. }));
        let seen: Vec<_> = peers.filter_map(|peer| Some((peer.name.to_string(), peer.instance?))).collect();
        seen.into_iter().flat_map(|(name, instance)| self.see(&name, instance)).collect()
    }
}

async fn wake(node: &Node, call: Call) {
    let Some(hosted) = node.replicas.get(call.replica) else { return };
    let woke = hosted.replica.wake();
    if hosted.replica.leads() {
        // Also where somebody else has woken it: members that are back are tried no sooner for that.
        retry(node, &hosted).await;
    } else if woke && call.elects {
        // Not at once: by its timer.
        let _ = tokio::time::timeout(PATIENCE, hosted.replica.elect()).await;
    }
}

/// Has members that can be reached tried again at once.
async fn retry(node: &Node, hosted: &Hosted) {
    let status = hosted.replica.status();
    let behind = behind(&status).filter(|(_, name)| !node.peers.is_silent(name));
    let behind: Vec<_> = behind.map(|(id, _)| id).collect();
    if !behind.is_empty() {
        let _ = tokio::time::timeout(PATIENCE, hosted.replica.retry_members(behind)).await;
    }
}

/// The members that lack entries, as their leader knows.
fn behind(status: &Status) -> impl Iterator<Item = (ReplicaId, &str)> {
    let others = status.members.replicas.iter().filter(|(id, _)| **id != status.replica);
    let has_all = |id: &ReplicaId| status.matched.get(id).copied().flatten() == status.last_log_index;
    others.filter(move |(id, _)| !has_all(id)).map(|(id, member)| (*id, member.name.as_str()))
}

/// The node is gone, and leads nothing any more: not even if it is back already, as another start.
async fn lost(node: &Node, name: &str) {
    let mut groups = 0;
    for hosted in sleeping(node) {
        if hosted.replica.leads() || hosted.replica.leader_node().as_deref() != Some(name) {
            continue;
        }
        abandon(node, &hosted, Some(name));
        groups += 1;
        tokio::task::consume_budget().await;
    }
    if groups > 0 {
        tracing::info!(node = %node.name, gone = name, groups, "groups that slept have lost their leader, and wake");
    }
}

/// Whether a node does not answer, as the transport knows, or, of one that was never connected, the cluster.
fn is_away(node: &Node, name: &str) -> bool {
    let is_unreachable = |record: &cluster::Node| record.unreachable_since.is_some();
    let is_missing = || !node.peers.was_met(name) && node.view.get().node(name).is_some_and(is_unreachable);
    node.peers.is_silent(name) || is_missing()
}

/// Has a sleeping member's group elect another leader.
fn abandon(node: &Node, hosted: &Hosted, gone: Option<&str>) {
    hosted.replica.set_leader_gone(true);
    let status = hosted.replica.status();
    let can_elect = |name: &str| Some(name) != gone && !is_away(node, name);
    let at = if elects_first(status.replica, &status.members, can_elect) {
        Instant::now()
    } else {
        Instant::now() + BACKUP_AFTER
    };
    node.waking.push(hosted.id(), at, true);
}

/// Whether this is the member that is to elect: the same one as all others take for it, or else votes are split. Ids are
/// random, so that the work is spread over the nodes.
fn elects_first(replica: ReplicaId, members: &Members, can_elect: impl Fn(&str) -> bool) -> bool {
    let able = |id: &ReplicaId| members.replicas.get(id).is_some_and(|member| can_elect(&member.name));
    members.voter_ids().into_iter().find(able) == Some(replica)
}

/// The node is back, perhaps as another start.
async fn back(node: &Node, name: &str, restarted: bool) {
    for hosted in node.replicas.all().into_iter().filter(|hosted| !hosted.is_cluster()) {
        if hosted.replica.leads() {
            welcome(node, &hosted, name, restarted).await;
        } else if !restarted && hosted.replica.misses_leader() && hosted.replica.leader_node().as_deref() == Some(name)
        {
            // It was only silent for a while.
            hosted.replica.set_leader_gone(false);
            node.waking.remove(hosted.id());
        }
        tokio::task::consume_budget().await;
    }
}

/// Lets a led group know that one of its members is back.
async fn welcome(node: &Node, hosted: &Hosted, name: &str, restarted: bool) {
    let status = hosted.replica.status();
    let is_behind = behind(&status).any(|(_, member)| member == name);
    let is_member = status.members.named(name).is_some();
    match (status.is_asleep, is_behind) {
        (true, _) if is_behind || (restarted && is_member) => node.waking.push(hosted.id(), Instant::now(), false),
        (false, true) => retry(node, hosted).await,
        _ => {}
    }
}

fn sleeping(node: &Node) -> impl Iterator<Item = Hosted> {
    node.replicas.all().into_iter().filter(|hosted| hosted.replica.is_asleep())
}

/// A node says that it leads a group no longer: its members here need another one, unless they know another already. The
/// term may be that of its successor.
pub(crate) fn lost_leader(node: &Node, from: &str, group: &str, incarnation: u64, term: u64) {
    for hosted in node.replicas.all_of_group(group) {
        let is_meant = hosted.incarnation() == incarnation && hosted.replica.is_asleep() && !hosted.replica.leads();
        let is_its = hosted.replica.leader_node().as_deref() == Some(from);
        if is_meant && is_its && hosted.replica.status().term <= term {
            abandon(node, &hosted, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use rafted_value::Member;

    use super::*;

    fn id(number: u64) -> ReplicaId {
        ReplicaId::new(number).unwrap()
    }

    #[test]
    fn exactly_one_of_the_voters_that_can_elects_first() {
        let member = |n: u64| {
            let name = format!("n{n}");
            (id(n), Member { name, node: n, zone: String::new(), decided_at: 0, addresses: Vec::new() })
        };
        let voters = vec![[2, 3, 4].map(id).into()];
        let members = Members { replicas: (1..=4).map(member).collect(), voters, position: None, committed: true };
        for gone in 2..=4 {
            let can_elect = |name: &str| name != format!("n{gone}");
            let first: Vec<_> = (1..=4).filter(|n| elects_first(id(*n), &members, can_elect)).collect();
            assert_eq!(first, [if gone == 2 { 3 } else { 2 }], "n{gone} is gone, and n1 does not vote");
        }
        assert!((1..=4).all(|n| !elects_first(id(n), &members, |_| false)));
    }

    #[test]
    fn only_the_first_connection_of_a_start_is_news() {
        let mut starts = Starts::default();
        assert_eq!(starts.see("n1", 5), ["n1"]);
        assert!(starts.see("n1", 5).is_empty());
        assert_eq!(starts.see("n1", 6), ["n1"]);
        assert_eq!(starts.see("n2", 6), ["n2"]);
    }
}
