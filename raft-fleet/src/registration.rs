//! Tells the cluster group that this node runs, and lets its replicas take part only then.
//!
//! ```text
//! in a cluster --> (restarted voter of the cluster group: hear from other voters, see `gate.rs`)
//!              --> Register, until it is done or refused for good --> start all other replicas --> running
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::bootstrap::Bootstrap;
use crate::cluster::{CLUSTER_GROUP, Cluster, Command, NodePhase, Refusal, Registration, Reply};
use crate::error::NodeFailure;
use crate::hibernation::start_asleep;
use crate::joining::{MAX_PATIENCE, check_seeds, look_around};
use crate::message::{LastStart, Start};
use crate::node::{Node, Progress};
use crate::recovering::is_current;
use crate::replicas::Hosted;

const PATIENCE: Duration = Duration::from_secs(1);
const ATTEMPT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(200);
/// How long the cluster may take to see that a crashed process of this name is gone.
const NAME_PATIENCE: Duration = Duration::from_secs(8);
/// How often it is looked whether replicas have stopped. It is rare, and a start that fails is told each time.
const REVIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Replicas that are started at once.
const STARTS_AT_ONCE: usize = 8;

/// Ends when this node is registered and its replicas run.
pub(crate) async fn register(node: &Arc<Node>) -> Result<(), NodeFailure> {
    open_gate(node).await?;
    let index = announce(node).await?;
    node.view.wait(|cluster| (cluster.changed_at >= index).then_some(())).await;
    start_replicas(node).await;
    node.progress.send_if_modified(|progress| {
        let joining = *progress == Progress::Joining;
        if joining {
            *progress = Progress::Running;
        }
        joining
    });
    tracing::info!(node = %node.name, boot = node.start.boot, "registered in the cluster");
    Ok(())
}

/// Lets a stored replica of the cluster group take part, once that is known to be safe. See `gate.rs`.
async fn open_gate(node: &Arc<Node>) -> Result<(), NodeFailure> {
    let ids: Vec<_> = node.replicas.stored().into_iter().filter(|stored| stored.group == CLUSTER_GROUP).collect();
    for stored in ids {
        node.replicas.start(stored.replica).await.map_err(|error| NodeFailure::Storage(error.to_string()))?;
    }
    while !node.gate.is_open() {
        let needed = node.replicas.all_of_group(CLUSTER_GROUP).iter().map(witnesses).collect::<Vec<_>>().concat();
        let answered = ask_last_start(node, &needed).await?;
        let enough = |voters: &BTreeSet<String>| {
            let heard = voters.iter().filter(|voter| node.is_here(voter) || answered.contains(*voter));
            heard.count() * 2 > voters.len()
        };
        if needed.iter().all(enough) {
            node.gate.open();
            break;
        }
        find_others(node).await?;
        tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
    }
    Ok(())
}

/// The voters' nodes, set by set; none when this replica does not vote.
fn witnesses(hosted: &Hosted) -> Vec<BTreeSet<String>> {
    let status = hosted.replica.status();
    if !status.members.is_voter(status.replica) {
        return Vec::new();
    }
    let name = |id| status.members.replicas.get(id).map(|member| member.name.clone());
    status.members.voters.iter().map(|voters| voters.iter().filter_map(name).collect()).collect()
}

/// Who has told which start of this node it saw last. An error when this one is not above it.
async fn ask_last_start(node: &Node, needed: &[BTreeSet<String>]) -> Result<BTreeSet<String>, NodeFailure> {
    let voters: BTreeSet<&String> = needed.iter().flatten().filter(|voter| !node.is_here(voter)).collect();
    let question = LastStart { address: node.address.to_string() };
    let answers = join_all(voters.iter().map(|voter| node.call(voter, &question, PATIENCE))).await;
    let mut answered = BTreeSet::new();
    for (voter, answer) in voters.into_iter().zip(answers) {
        let Ok(answer) = answer else { continue };
        check_start(node, answer.known)?;
        answered.insert(voter.clone());
    }
    Ok(answered)
}

fn check_start(node: &Node, known: Option<Start>) -> Result<(), NodeFailure> {
    match known {
        Some(known) if node.has_forgotten(known) => {
            Err(NodeFailure::RolledBack { given: node.start.boot, registered: known.boot })
        }
        // Another memory of this name may be one before this one, which the other side saw last: that is for
        // the registration to judge.
        _ => Ok(()),
    }
}

/// Whether the seeds belong to the cluster that this node is in.
pub(crate) async fn check_own_seeds(node: &Node) -> Result<(), NodeFailure> {
    match node.memory.get().bootstrap {
        Bootstrap::Member { cluster } => check_seeds(node, cluster, MAX_PATIENCE).await.map(drop),
        _ => Ok(()),
    }
}

/// Looks for nodes of the cluster that this node is in, which it may not know yet.
async fn find_others(node: &Node) -> Result<(), NodeFailure> {
    match node.memory.get().bootstrap {
        Bootstrap::Member { cluster } => look_around(node, cluster).await,
        _ => Ok(()),
    }
}

/// Never ends by itself: a node that was taken for dead, and was not, registers again.
pub(crate) async fn stay_registered(node: &Arc<Node>) {
    let is_dead = |cluster: &Cluster| {
        let record = cluster.node(node.name.as_str())?;
        (record.phase == NodePhase::Dead && record.start == node.start.start).then_some(())
    };
    loop {
        node.running().await;
        node.view.wait(is_dead).await;
        tracing::warn!(node = %node.name, "was taken for dead by the cluster; registers again");
        match announce(node).await {
            Ok(index) => node.view.wait(|cluster| (cluster.changed_at >= index).then_some(())).await,
            Err(failure) => node.fail_for_good(failure).await,
        }
    }
}

/// Registers; answers the index from which on the cluster's state has it.
async fn announce(node: &Arc<Node>) -> Result<u64, NodeFailure> {
    // Since when the other node of this name has been there, as far as was heard.
    let mut in_use_since: Option<Instant> = None;
    let mut told = false;
    loop {
        let refusal = match node.cluster_command(Command::Register(registration(node)), ATTEMPT).await {
            Ok(Reply::Done { index }) => return Ok(index),
            Ok(Reply::Refused(refusal)) => refusal,
            Err(error) => {
                tracing::debug!(node = %node.name, %error, "not registered yet, trying again");
                in_use_since = None;
                find_others(node).await?;
                continue;
            }
        };
        in_use_since = match refusal {
            Refusal::NameInUse { .. } => in_use_since.or_else(|| Some(Instant::now())),
            _ => None,
        };
        match refusal {
            Refusal::RolledBack { given, registered } => return Err(NodeFailure::RolledBack { given, registered }),
            Refusal::Removed => return Err(NodeFailure::Removed),
            Refusal::Fenced => return Err(NodeFailure::Fenced { name: node.name.to_string() }),
            Refusal::NameInUse { address, .. } if in_use_since.is_some_and(|since| since.elapsed() > NAME_PATIENCE) => {
                return Err(NodeFailure::NameInUse { name: node.name.to_string(), address });
            }
            Refusal::WaitsForPurge { node_id, .. } if !std::mem::replace(&mut told, true) => {
                tracing::warn!(
                    node = %node.name,
                    "node {node_id:016x} of this name is unreachable; waiting until it is purged \
                     (or start this node so that it replaces it)"
                );
            }
            _ => {}
        }
        tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
    }
}

fn registration(node: &Node) -> Registration {
    Registration {
        node: node.name.to_string(),
        node_id: node.start.node_id,
        starts: node.store.starts().iter().map(|start| (start.boot, start.number)).collect(),
        start: node.start.start,
        zone: node.zone.clone(),
        address: node.address.to_string(),
        attributes: node.attributes.clone(),
        replace: node.replace,
    }
}

/// Starts what the store holds and does not run, unless its incarnation has ended. A replica that cannot start is told of,
/// and keeps its data.
async fn start_replicas(node: &Arc<Node>) {
    let view = node.view.get();
    let stored = node.replicas.stored().into_iter().filter(|stored| is_current(&view, stored));
    let starts = stored.filter(|stored| node.replicas.get(stored.replica).is_none()).map(|stored| async move {
        match node.replicas.start(stored.replica).await {
            // Its incarnation may have ended meanwhile, when there was nothing to stop yet.
            Ok(_) if !is_current(&node.view.get(), &stored) => drop(node.replicas.stop(stored.replica).await),
            Ok(hosted) => start_asleep(node, &hosted),
            Err(error) => {
                let (group, replica) = (&stored.group, stored.replica);
                tracing::error!(%group, %replica, %error, "a stored replica did not start");
            }
        }
    });
    futures_util::stream::iter(starts).buffer_unordered(STARTS_AT_ONCE).for_each(|()| async {}).await;
}

/// Never ends by itself: starts replicas again that have stopped by themselves, or that did not start.
pub(crate) async fn revive_replicas(node: Arc<Node>) {
    loop {
        tokio::time::sleep(REVIVE_INTERVAL).await;
        node.running().await;
        node.replicas.drop_stopped().await;
        start_replicas(&node).await;
    }
}
