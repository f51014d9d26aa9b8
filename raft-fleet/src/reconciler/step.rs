//! One look at one group that this node leads, and at most one step.

use std::collections::BTreeMap;
use std::time::Duration;

use rafted_value::{MAX_CATCH_UP_LAG, Member, Members, MembersError, ReplicaId, Role, Status};
use tokio::time::Instant;

use crate::adjustment::{Observed, Place, Replica, Step, next_step};
use crate::cluster::{Cluster, Command, GroupPhase};
use crate::joining::CLUSTER_TYPE;
use crate::message::{CreateReplica, Created, Position, Released};
use crate::node::Node;
use crate::replicas::Hosted;

/// How the look went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All is as it should be.
    Idle,
    /// A step was taken.
    Stepped,
    /// The leadership was handed over.
    Transferred,
    /// The leadership should be handed over, a little later.
    MayNotTransfer,
    /// A step will be possible soon.
    Waiting,
    /// A step was not possible; perhaps it is later.
    Failed,
}

/// How long another node may take to make a replica.
const CREATE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a change of members may take; after that the group is looked at again.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// Looks at the group, and takes the next step.
pub(super) async fn take(node: &Node, id: ReplicaId, may_transfer: bool) -> Outcome {
    let Some(hosted) = node.replicas.get(id) else { return Outcome::Idle };
    let status = hosted.replica.status();
    let view = node.view.get();
    if status.role == Role::Isolated {
        // It is told of as if it had changed: that nobody answers changes nothing by itself.
        node.replicas.dirty.mark(id);
    }
    if status.role != Role::Leader || !node.is_running() {
        return Outcome::Idle;
    }
    if !status.members.committed {
        return Outcome::Waiting;
    }
    if hosted.is_cluster() && is_being_founded(node, &view, &status.members) {
        // Nodes register one by one: do not take those that have not yet for gone.
        return Outcome::Waiting;
    }
    if !report_running(node, &hosted, &view).await {
        return Outcome::Failed;
    }
    let Some(desired) = desired(node, &hosted, &view) else { return Outcome::Idle };
    let observed = observe(node, &status, &view);
    let step = next_step(&desired, &observed);
    match step {
        // It may be about to lose its majority. Awake, it finds that out.
        Step::Nothing if !observed.has_majority() => {
            if hosted.replica.is_asleep() {
                node.waking.push(id, Instant::now(), false);
            }
            Outcome::Failed
        }
        Step::Nothing => Outcome::Idle,
        Step::Wait => Outcome::Waiting,
        Step::TransferLeader { .. } if !may_transfer => Outcome::MayNotTransfer,
        step => match tokio::time::timeout(CHANGE_PATIENCE, run(node, &hosted, &status, &view, step)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => {
                tracing::warn!(node = %node.name, group = hosted.group(), %error, "a step was not taken, looking again");
                Outcome::Failed
            }
            Err(_) => Outcome::Failed,
        },
    }
}

/// Whether some first member of the cluster group has not registered, and may still.
fn is_being_founded(node: &Node, view: &Cluster, members: &Members) -> bool {
    let led_since = node.leads_cluster.borrow().map(|leadership| leadership.since);
    if led_since.is_none_or(|since| since.elapsed() > node.config.purge_after()) {
        return false;
    }
    members.replicas.values().any(|member| member.decided_at == 0 && view.node(&member.name).is_none())
}

/// Tells the cluster group that the group has a leader; `false` when that did not work.
async fn report_running(node: &Node, hosted: &Hosted, view: &Cluster) -> bool {
    let Some(group) = view.group(hosted.group()).filter(|group| group.incarnation == hosted.incarnation()) else {
        return true;
    };
    if !matches!(group.phase, GroupPhase::Founded { .. } | GroupPhase::Recovering) {
        return true;
    }
    let running = Command::SetRunning { group: hosted.group().to_owned(), incarnation: hosted.incarnation() };
    node.cluster_command(running, REPORT_PATIENCE).await.is_ok()
}

/// Where the replicas belong; `None` for a group that is not in the cluster's state (any more).
fn desired(node: &Node, hosted: &Hosted, view: &Cluster) -> Option<Vec<Place>> {
    let names = if hosted.is_cluster() {
        view.voters(node.config.cluster_voters())
    } else {
        let group = view.group(hosted.group()).filter(|group| group.incarnation == hosted.incarnation())?;
        view.places(hosted.group(), group.replicas)
    };
    let place = |name: &str| {
        let record = view.node(name)?;
        Some(Place {
            node: name.to_owned(),
            node_id: record.node_id,
            reachable: is_reachable(node, view, name, record.node_id),
        })
    };
    Some(names.into_iter().filter_map(place).collect())
}

fn is_reachable(node: &Node, view: &Cluster, name: &str, node_id: u64) -> bool {
    if node.is_here(name) {
        return node_id == node.start.node_id;
    }
    let answers = |record: &crate::cluster::Node| record.node_id == node_id && record.unreachable_since.is_none();
    view.node(name).is_some_and(answers) && !node.peers.is_silent(name)
}

fn observe(node: &Node, status: &Status, view: &Cluster) -> Observed {
    let last = status.last_log_index.unwrap_or(0);
    let replica = |(&id, member): (&ReplicaId, &Member)| {
        let matched = status.matched.get(&id).copied().flatten();
        let replica = Replica {
            node: member.name.clone(),
            node_id: member.node,
            voter: status.members.is_voter(id),
            reachable: is_reachable(node, view, &member.name, member.node),
            caught_up: id == status.replica
                || matched.is_some_and(|matched| matched.saturating_add(MAX_CATCH_UP_LAG) >= last),
        };
        (id, replica)
    };
    let replicas: BTreeMap<_, _> = status.members.replicas.iter().map(replica).collect();
    Observed { leader: status.replica, joint: status.members.is_joint(), replicas }
}

async fn run(
    node: &Node,
    hosted: &Hosted,
    status: &Status,
    view: &Cluster,
    step: Step,
) -> Result<Outcome, MembersError> {
    tracing::info!(node = %node.name, group = hosted.group(), ?step, "next step");
    let (replica, expected, decided_at) = (&hosted.replica, status.members.position, view.changed_at);
    match step {
        Step::Nothing | Step::Wait => return Ok(Outcome::Idle),
        Step::FinishJoint => replica.finish_joint(expected).await?,
        Step::AddLearner { node: name, node_id } => {
            let id = create(node, hosted, status, view, &name, node_id).await?;
            let zone = view.node(&name).map(|record| record.zone.clone()).unwrap_or_default();
            replica
                .add_learner(id, Member { name, node: node_id, zone, decided_at, addresses: Vec::new() }, expected)
                .await?;
        }
        Step::Promote { replica: learner } => {
            let mut voters = status.members.voter_ids();
            voters.insert(learner);
            replica.change_voters(voters, expected, decided_at).await?;
        }
        Step::ChangeVoters { voters } => replica.change_voters(voters, expected, decided_at).await?,
        Step::RemoveLearner { replica: learner } => replica.remove_learner(learner, expected, decided_at).await?,
        Step::TransferLeader { to } => {
            replica.transfer_leader(to).await?;
            return Ok(Outcome::Transferred);
        }
    }
    release(node, hosted, status);
    Ok(Outcome::Stepped)
}

/// Asks a node to make a replica for the members as they are now.
async fn create(
    node: &Node,
    hosted: &Hosted,
    status: &Status,
    view: &Cluster,
    name: &str,
    node_id: u64,
) -> Result<ReplicaId, MembersError> {
    let refused = |reason: String| MembersError::NotAllowed(format!("{name} made no replica: {reason}"));
    let after = status.members.position.map(|position| Position { term: position.term, index: position.index });
    let request = CreateReplica {
        group: hosted.group().to_owned(),
        incarnation: hosted.incarnation(),
        type_name: if hosted.is_cluster() { CLUSTER_TYPE.to_owned() } else { hosted.type_name.to_string() },
        after,
        known_at: view.changed_at,
    };
    match node.call(name, &request, CREATE_PATIENCE).await {
        Ok(Created::Replica { node_id: made_by, replica }) if made_by == node_id => {
            ReplicaId::new(replica).ok_or_else(|| refused("it answered with 0".into()))
        }
        Ok(Created::Replica { .. }) => Err(refused("another memory runs there now".into())),
        Ok(Created::Refused(reason)) => Err(refused(reason)),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// Tells the nodes of replicas that have left that they may delete them. Who misses it asks by itself.
fn release(node: &Node, hosted: &Hosted, before: &Status) {
    let after = hosted.replica.status().members;
    let Some(position) = after.position.filter(|_| after.committed && !after.is_joint()) else { return };
    for (id, member) in before.members.replicas.iter().filter(|(id, _)| !after.replicas.contains_key(id)) {
        let released = Released {
            group: hosted.group().to_owned(),
            incarnation: hosted.incarnation(),
            replica: id.get(),
            position: Position { term: position.term, index: position.index },
        };
        node.cast(&member.name, &released);
    }
}
