//! The leader of the cluster group sees which nodes answer, and has it recorded: first that a node is unreachable,
//! and after the purge window that its replicas are to be replaced. A drained node that has nothing left it removes.
//!
//! A node answers when the start that it registered is connected: a process that took its address or its name
//! is another one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use batched_comm::{PeerState, PeerStatus};
use futures_util::future::join_all;
use rafted_value::Clock;
use tokio::time::Instant;

use crate::cluster::{self, Cluster, Command, NodePhase};
use crate::node::{Leadership, Node, leadership};

/// How often the leader looks; a look at connected nodes costs next to nothing.
const LOOK: Duration = Duration::from_millis(500);
/// How long a node may be silent before that is recorded. A new leader counts from its election.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(2);
/// A new leader purges only what it has itself found silent for this long, however long ago that began.
const LEAST_OBSERVATION: Duration = Duration::from_secs(60);
const COMMAND_PATIENCE: Duration = Duration::from_secs(3);

/// Never ends by itself.
pub(crate) async fn monitor(node: Arc<Node>) {
    let mut leads = node.leads_cluster.subscribe();
    loop {
        let led = leadership(&mut leads).await;
        let mut silent_since: HashMap<String, Instant> = HashMap::new();
        while *node.leads_cluster.borrow() == Some(led) {
            look(&node, led, &mut silent_since).await;
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn look(node: &Node, led: Leadership, silent_since: &mut HashMap<String, Instant>) {
    let cluster = node.view.get();
    let peers: HashMap<String, PeerStatus> =
        node.endpoint.peers().into_iter().map(|peer| (peer.name.as_str().to_owned(), peer)).collect();
    silent_since.retain(|name, _| cluster.node(name).is_some());
    let mut commands = Vec::new();
    for (name, record) in cluster.nodes() {
        let answers = node.is_here(name) || peers.get(name).is_some_and(|peer| is_registered_start(peer, record));
        if answers {
            silent_since.remove(name);
        } else {
            silent_since.entry(name.clone()).or_insert(Instant::now().max(led.since));
        }
        let silent_for = silent_since.get(name).map(Instant::elapsed);
        commands.extend(consequence(node, &cluster, name, silent_for));
    }
    let commands = commands.into_iter().map(|command| node.cluster_command(command, COMMAND_PATIENCE));
    for result in join_all(commands).await {
        if let Err(error) = result {
            tracing::debug!(%error, "what was seen of a node is not recorded yet, trying again");
        }
    }
}

/// Whether the start that was registered is connected.
fn is_registered_start(peer: &PeerStatus, record: &cluster::Node) -> bool {
    matches!(peer.state, PeerState::Up { .. } | PeerState::Suspect { .. }) && peer.instance == Some(record.start)
}

/// What is to be recorded of a node that has been silent for so long, or is not.
fn consequence(node: &Node, cluster: &Cluster, name: &str, silent_for: Option<Duration>) -> Option<Command> {
    let record = cluster.node(name)?;
    let (node_name, node_id) = (name.to_owned(), record.node_id);
    let has_nothing = record.drain.is_some_and(|drain| (drain.replicas, drain.leaderships) == (0, 0));
    match (silent_for, record.unreachable_since) {
        (None, None) if record.phase == NodePhase::Draining && has_nothing => {
            tracing::info!(node = name, "has given everything away, and leaves the cluster");
            Some(Command::RemoveNode { node: node_name })
        }
        (None, Some(_)) => Some(Command::SetReachable { node: node_name, node_id, reachable: true }),
        (Some(silent_for), None) if silent_for >= UNREACHABLE_AFTER => {
            tracing::warn!(node = name, "does not answer");
            Some(Command::SetReachable { node: node_name, node_id, reachable: false })
        }
        (Some(silent_for), Some(since)) if record.phase != NodePhase::Dead => {
            let window = node.config.purge_after();
            let recorded = Duration::from_millis(node.clock.wall().as_millis().saturating_sub(since));
            let is_over = recorded >= window && silent_for >= window.min(LEAST_OBSERVATION);
            is_over.then(|| {
                tracing::warn!(
                    node = name,
                    ?recorded,
                    "was unreachable for the whole window, its replicas are replaced"
                );
                match record.phase {
                    // It was to leave anyway: it does not come back as if it had not been asked to.
                    NodePhase::Draining => Command::RemoveNode { node: node_name },
                    NodePhase::Active | NodePhase::Dead => Command::Purge { node: node_name, node_id },
                }
            })
        }
        _ => None,
    }
}
