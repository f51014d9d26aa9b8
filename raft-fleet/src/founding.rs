//! New groups: the leader of the cluster group has their first replicas made and recorded, and one of the founders
//! writes the recorded members into its replica.
//!
//! ```text
//! Forming --> every founder makes a replica (synced) --> Found (compare-and-set) --> Founded
//!         \-> one does not answer ------------------> Reform: other founders, new incarnation
//! Founded --> the first founder with its memory initializes --> a leader --> SetRunning (reconciler)
//! ```
//!
//! Only what `Found` recorded is ever initialized, and a group's record has at most one such list; if two founders
//! both initialize, because each takes the other's memory for lost, they write the same first entry.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use rafted_value::{InitializeError, Member, ReplicaId};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{Cluster, Command, Founder, Group, GroupPhase};
use crate::message::{CreateReplica, Created};
use crate::node::{Node, leadership};

/// Groups that are founded at once.
const GROUPS_AT_ONCE: usize = 16;
/// How long a founder may take to make its replica, and how often it is asked before others are chosen.
const CREATE_PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);
const COMMAND_PATIENCE: Duration = Duration::from_secs(5);
/// When nothing changes, unfinished groups are looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A group that was founded this long ago, and is not running, has lost its first founder to silence.
const INITIALIZER_PATIENCE: Duration = Duration::from_secs(3);

/// Never ends by itself: founds groups while this node leads the cluster group.
pub(crate) async fn found_groups(node: Arc<Node>) {
    let mut leads = node.leads_cluster.subscribe();
    let mut view = node.view.subscribe();
    let mut busy: HashSet<String> = HashSet::new();
    let mut founding: JoinSet<String> = JoinSet::new();
    loop {
        leadership(&mut leads).await;
        let cluster = view.borrow_and_update().clone();
        for (name, group) in cluster.new_groups() {
            let GroupPhase::Forming { founders } = &group.phase else { continue };
            if founding.len() >= GROUPS_AT_ONCE || !busy.insert(name.clone()) {
                continue;
            }
            let (node, name, group, founders) = (node.clone(), name.clone(), group.clone(), founders.clone());
            founding.spawn(async move {
                found(&node, &name, &group, &founders).await;
                name
            });
        }
        tokio::select! {
            Some(done) = founding.join_next() => match done {
                Ok(name) => drop(busy.remove(&name)),
                // Founding does not panic; if it does, all are looked at again.
                Err(_) => busy.clear(),
            },
            Ok(()) = view.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN), if !cluster.new_groups().is_empty() => {}
        }
    }
}

/// Has a group's replicas made and recorded, or has other founders chosen.
async fn found(node: &Node, name: &str, group: &Group, founders: &[String]) {
    let incarnation = group.incarnation;
    for _ in 0..ATTEMPTS {
        let request = CreateReplica {
            group: name.to_owned(),
            incarnation,
            type_name: group.type_name.clone(),
            after: None,
            known_at: node.view.get().changed_at,
        };
        match try_join_all(founders.iter().map(|founder| create(node, founder, &request))).await {
            Ok(replicas) => {
                let found = Command::Found { group: name.to_owned(), incarnation, replicas };
                if let Err(error) = node.cluster_command(found, COMMAND_PATIENCE).await {
                    tracing::debug!(group = name, %error, "not founded yet, trying again");
                }
                return;
            }
            Err(reason) => {
                tracing::info!(group = name, reason, "a founder made no replica, asking again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    let reform = Command::Reform { group: name.to_owned(), incarnation };
    if let Err(error) = node.cluster_command(reform, COMMAND_PATIENCE).await {
        tracing::debug!(group = name, %error, "no other founders chosen yet, trying again");
    }
}

async fn create(node: &Node, founder: &str, request: &CreateReplica) -> Result<(String, u64, u64), String> {
    match node.call(founder, request, CREATE_PATIENCE).await {
        Ok(Created::Replica { node_id, replica }) => Ok((founder.to_owned(), node_id, replica)),
        Ok(Created::Refused(reason)) => Err(format!("{founder}: {reason}")),
        Err(error) => Err(format!("{founder}: {error}")),
    }
}

/// Never ends by itself: initializes the groups whose first founder this node is.
pub(crate) async fn initialize_groups(node: Arc<Node>) {
    let mut view = node.view.subscribe();
    let mut founded_since: BTreeMap<(String, u64), Instant> = BTreeMap::new();
    loop {
        node.running().await;
        let cluster = view.borrow_and_update().clone();
        let mut seen = BTreeMap::new();
        let mut mine = Vec::new();
        for (name, group) in cluster.new_groups() {
            let GroupPhase::Founded { founders } = &group.phase else { continue };
            let key = (name.clone(), group.incarnation);
            let since = founded_since.get(&key).copied().unwrap_or_else(Instant::now);
            seen.insert(key, since);
            if is_initializer(&node, &cluster, founders, since.elapsed() > INITIALIZER_PATIENCE) {
                mine.push((name.clone(), founders.clone()));
            }
        }
        founded_since = seen;
        let own = &node;
        let initializing =
            mine.into_iter().map(|(name, founders)| async move { initialize(own, &name, &founders).await });
        futures_util::stream::iter(initializing).buffer_unordered(GROUPS_AT_ONCE).for_each(|()| async {}).await;
        tokio::select! {
            Ok(()) = view.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN), if !founded_since.is_empty() => {}
        }
    }
}

/// The first founder that still has its memory and, once some time has passed, answers.
fn is_initializer(node: &Node, cluster: &Cluster, founders: &[Founder], is_late: bool) -> bool {
    let first = founders.iter().find(|founder| {
        let record = cluster.node(&founder.node).filter(|record| record.node_id == founder.node_id);
        record.is_some_and(|record| !is_late || record.unreachable_since.is_none())
    });
    first.is_some_and(|first| node.is_here(&first.node) && first.node_id == node.start.node_id)
}

async fn initialize(node: &Node, group: &str, founders: &[Founder]) {
    let own = founders.iter().find(|founder| node.is_here(&founder.node));
    let Some(id) = own.and_then(|own| ReplicaId::new(own.replica)) else { return };
    let hosted = match node.replicas.start(id).await {
        Ok(hosted) => hosted,
        Err(error) => {
            tracing::warn!(group, %error, "the first replica did not start, trying again");
            return;
        }
    };
    if hosted.replica.status().members.position.is_some() {
        return;
    }
    let members: BTreeMap<_, _> = founders.iter().filter_map(first_member).collect();
    match hosted.replica.initialize(members).await {
        Ok(()) | Err(InitializeError::AlreadyInitialized) => {}
        Err(error) => tracing::warn!(group, %error, "not initialized, trying again"),
    }
}

fn first_member(founder: &Founder) -> Option<(ReplicaId, Member)> {
    let (name, zone) = (founder.node.clone(), founder.zone.clone());
    Some((
        ReplicaId::new(founder.replica)?,
        Member { name, node: founder.node_id, zone, decided_at: 0, addresses: Vec::new() },
    ))
}
