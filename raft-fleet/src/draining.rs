//! A draining node tells the cluster what it still has, so that every node can see how far it is, and the leader of the
//! cluster group removes it when that is nothing.

use std::sync::Arc;
use std::time::Duration;

use rafted_value::Role;

use crate::cluster::{Cluster, Command, NodePhase};
use crate::node::Node;

/// How often it looks what has changed: a draining node of thousands of groups must not write for each.
const LOOK: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(3);

/// Never ends by itself.
pub(crate) async fn report_drain(node: Arc<Node>) {
    loop {
        node.running().await;
        let told = node.view.wait(|cluster| own_drain(&node, cluster)).await;
        let replicas = node.replicas.stored().len() as u64;
        let leads = node.replicas.all().into_iter().filter(|hosted| hosted.replica.status().role == Role::Leader);
        let leaderships = leads.count() as u64;
        if told != Some((replicas, leaderships)) {
            let (name, node_id) = (node.name.to_string(), node.start.node_id);
            let report = Command::ReportDrain { node: name, node_id, replicas, leaderships };
            if let Err(error) = node.cluster_command(report, PATIENCE).await {
                tracing::debug!(%error, "how far the drain is was not told yet, trying again");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// While this node is draining: what it has told.
fn own_drain(node: &Node, cluster: &Cluster) -> Option<Option<(u64, u64)>> {
    let record = cluster.node(node.name.as_str())?;
    let is_own = record.node_id == node.start.node_id && record.phase == NodePhase::Draining;
    is_own.then(|| record.drain.map(|drain| (drain.replicas, drain.leaderships)))
}
