//! Makes decided recoveries true on this node, and ends what is of an ended incarnation.
//!
//! ```text
//! the cluster's state: group g, incarnation 9, survivors r1, r2
//!   r1 here, of incarnation 5: stop it --> is its log as it was? --> Store::recover --> start it, of incarnation 9
//!                                                \-> no: it stays stopped, with what it has, for another plan
//!   r3 here, of incarnation 5: stop it; cleanup.rs deletes it, on the cluster group's word
//! ```
//!
//! Every step may be repeated: the log takes a recovery as a whole or not at all, and a replica that has it is of the new
//! incarnation.

use std::sync::Arc;
use std::time::Duration;

use rafted_value::{ReplicaId, StoredReplica};

use crate::cluster::{CLUSTER_GROUP, Cluster, Group, GroupPhase};
use crate::node::Node;
use crate::report::LogEnd;

/// Before what failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Never ends by itself.
pub(crate) async fn carry_out(node: Arc<Node>) {
    let mut view = node.view.subscribe();
    // Up to which index everything is done.
    let mut done_to = 0;
    loop {
        node.running().await;
        let cluster = view.borrow_and_update().clone();
        let mut finished = true;
        for (name, group) in cluster.groups_since(done_to) {
            finished &= bring_up(&node, name, group).await;
        }
        if finished {
            done_to = cluster.changed_at;
        }
        tokio::select! {
            Ok(()) = view.changed() => {}
            () = tokio::time::sleep(RETRY), if !finished => {}
        }
    }
}

/// Whether the cluster's state knows this replica's incarnation: only such replicas run.
pub(crate) fn is_current(cluster: &Cluster, stored: &StoredReplica) -> bool {
    stored.group == CLUSTER_GROUP
        || cluster.group(&stored.group).is_some_and(|group| group.incarnation == stored.incarnation)
}

/// Stops what runs of the group's earlier incarnations, and makes survivors ones of this; `false` if that is to be tried
/// again.
async fn bring_up(node: &Node, name: &str, group: &Group) -> bool {
    let hosted = node.replicas.all_of_group(name).into_iter();
    for ended in hosted.filter(|hosted| hosted.incarnation() < group.incarnation) {
        if node.replicas.stop(ended.id()).await {
            tracing::info!(node = %node.name, group = name, replica = %ended.id(), "its incarnation has ended");
        }
    }
    let survivors = group.recovery.iter().flat_map(|recovery| &recovery.survivors);
    let mut finished = true;
    for survivor in survivors.filter(|survivor| survivor.seat.node_id == node.start.node_id) {
        let stored = ReplicaId::new(survivor.seat.replica).and_then(|id| node.replicas.stored_as(id));
        if let Some(stored) = stored.filter(|stored| stored.incarnation < group.incarnation) {
            finished &= recover(node, name, group, &stored).await;
        }
    }
    finished
}

/// `false` if it is to be tried again.
async fn recover(node: &Node, name: &str, group: &Group, stored: &StoredReplica) -> bool {
    let recovery = group.recovery.as_ref().and_then(|made| Some((made, made.survivor(stored.replica)?)));
    let Some((recovery, survivor)) = recovery else { return true };
    let failed = |error: &dyn std::fmt::Display| {
        tracing::warn!(group = name, replica = %stored.replica, %error, "not recovered yet, trying again");
        false
    };
    let reports = match node.store.recovery_reports_of([name.to_owned()].into()).await {
        Ok(reports) => reports,
        Err(error) => return failed(&error),
    };
    let Some(report) = reports.into_iter().find(|report| report.replica == stored.replica) else { return true };
    let last = report.last.map(LogEnd::from);
    // Once the group runs, a survivor that comes late follows it, whatever it had.
    if group.phase == GroupPhase::Recovering && last != survivor.last {
        tracing::error!(
            group = name, replica = %stored.replica, planned = ?survivor.last, found = ?last,
            "a replica has changed since the recovery of its group was planned; it is not started: make another plan"
        );
        return true;
    }
    let found = rafted_value::Found { incarnation: report.incarnation, term: report.term, last: report.last };
    let Some(plan) = recovery.to_plan(name, group.incarnation, stored.replica, found) else { return true };
    match node.replicas.recover(stored.replica, &plan).await {
        Ok(()) => {
            tracing::warn!(
                node = %node.name, group = name, replica = %stored.replica, incarnation = group.incarnation,
                "recovered: the group goes on without the majority that it lost"
            );
            true
        }
        Err(error) => failed(&error),
    }
}
