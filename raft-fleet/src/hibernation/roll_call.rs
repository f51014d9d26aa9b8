//! Members that sleep make sure now and then that the leader which they know still leads, all of a node with one question.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rafted_value::ReplicaId;

use super::{abandon, sleeping};
use crate::message::{RollCall, Sleeper};
use crate::node::Node;
use crate::replicas::Hosted;

/// How often, give or take a quarter.
const INTERVAL: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(2);
/// Groups in one message.
const GROUPS_PER_MESSAGE: usize = 4_096;

/// Never ends by itself.
pub(crate) async fn call_the_roll(node: Arc<Node>) {
    loop {
        tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.75..1.25))).await;
        let mut by_node: BTreeMap<String, Vec<Hosted>> = BTreeMap::new();
        for hosted in sleeping(&node).filter(|hosted| !hosted.replica.leads() && !hosted.replica.misses_leader()) {
            match hosted.replica.leader_node() {
                Some(leader) => by_node.entry(leader).or_default().push(hosted),
                None => abandon(&node, &hosted, None),
            }
            tokio::task::consume_budget().await;
        }
        for (leader, members) in by_node {
            for members in members.chunks(GROUPS_PER_MESSAGE) {
                ask(&node, &leader, members).await;
            }
        }
    }
}

/// A node that does not answer is left to whoever watches nodes.
async fn ask(node: &Node, leader: &str, members: &[Hosted]) {
    let known = |hosted: &Hosted| {
        let (leader, term) = hosted.replica.leader_and_term()?;
        Some(Sleeper { leader: leader.get(), term })
    };
    let asked: Vec<_> = members.iter().filter_map(|hosted| Some((hosted, known(hosted)?))).collect();
    let question = RollCall { sleepers: asked.iter().map(|(_, sleeper)| *sleeper).collect() };
    let Ok(answer) = node.call(leader, &question, PATIENCE).await else { return };
    for number in answer.not_leading {
        let Some((hosted, sleeper)) = usize::try_from(number).ok().and_then(|number| asked.get(number)) else {
            continue;
        };
        // It may have woken meanwhile, and follow another.
        if hosted.replica.is_asleep() && known(hosted) == Some(*sleeper) {
            tracing::info!(node = %node.name, group = hosted.group(), leader, "a sleeping group's leader leads no longer");
            abandon(node, hosted, None);
        }
    }
}

/// Which of these replicas do not lead on this node, by their place in the question.
pub(crate) fn not_leading(node: &Node, sleepers: &[Sleeper]) -> Vec<u32> {
    let leads = |sleeper: &Sleeper| {
        let hosted = ReplicaId::new(sleeper.leader).and_then(|id| node.replicas.get(id));
        hosted.is_some_and(|hosted| {
            let known = hosted.replica.leader_and_term();
            hosted.replica.leads() && known.is_some_and(|(_, term)| term == sleeper.term)
        })
    };
    (0..).zip(sleepers).filter(|(_, sleeper)| !leads(sleeper)).map(|(number, _)| number).collect()
}
