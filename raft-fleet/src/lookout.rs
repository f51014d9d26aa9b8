//! Looks which groups have no leader, and tells of them.

use std::sync::Arc;
use std::time::Duration;

use rafted_value::Clock;

use crate::cluster::{CLUSTER_GROUP, GroupPhase};
use crate::event::FleetEvent;
use crate::leaderless::TELL_AFTER;
use crate::node::Node;

/// Changes within this time are looked at together.
const GATHER: Duration = Duration::from_millis(200);

/// Never ends by itself: looks whenever a leader, a node or a group has come or gone.
pub(crate) async fn look_out(node: Arc<Node>) {
    let (mut view, mut silent, mut leaders) = (node.view.subscribe(), node.peers.subscribe(), node.leaders.subscribe());
    loop {
        view.borrow_and_update();
        silent.borrow_and_update();
        leaders.borrow_and_update();
        forget_removed(&node);
        let now = node.clock.wall();
        for group in node.leaderless.update(without_leader(&node).into_iter(), now) {
            tracing::warn!(node = %node.name, group, "has no leader");
            drop(node.events.send(FleetEvent::GroupLeaderless { group }));
        }
        let waits = node.leaderless.waits();
        tokio::select! {
            Ok(()) = view.changed() => {}
            Ok(()) = silent.changed() => {}
            Ok(()) = leaders.changed() => {}
            () = tokio::time::sleep(TELL_AFTER), if waits => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Drops hints of groups that were removed. One of a later incarnation than all that is known here is of a new group.
fn forget_removed(node: &Node) {
    let view = node.view.get();
    let is_there = |group: &str, incarnation: u64| {
        group == CLUSTER_GROUP || view.group(group).is_some() || incarnation > view.changed_at
    };
    node.leaders.retain(is_there);
}

/// The groups of which this node knows no leader now.
fn without_leader(node: &Node) -> Vec<String> {
    let view = node.view.get();
    let may_lead = |name: &str| node.leaders.leader(name).is_some_and(|leader| !node.peers.is_silent(&leader));
    let had_one =
        view.groups().filter(|(_, group)| matches!(group.phase, GroupPhase::Running | GroupPhase::Recovering));
    had_one.filter(|(name, _)| !may_lead(name)).map(|(name, _)| name.clone()).collect()
}
