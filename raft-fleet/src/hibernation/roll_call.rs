//! Members that sleep make sure now and then that the leader which they know still leads, all of a node with one question.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rafted_value::ReplicaId;
use tokio::time::Instant;

use super::{abandon, is_away, sleeping};
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
        for hosted in sleeping(&node).filter(|hosted| !hosted.replica.leads()) {
            match hosted.replica.leader_node() {
                // It is to be woken; whoever was to do so may have failed.
                _ if hosted.replica.misses_leader() => node.waking.push(hosted.id(), Instant::now(), true),
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

/// A node that does not answer leads nothing if whoever watches nodes holds it for gone: that may have been before the
/// member fell asleep.
async fn ask(node: &Node, leader: &str, members: &[Hosted]) {
    let known = |hosted: &Hosted| {
        let (leader, term) = hosted.replica.leader_and_term()?;
        Some(Sleeper { leader: leader.get(), term })
    };
    let asked: Vec<_> = members.iter().filter_map(|hosted| Some((hosted, known(hosted)?))).collect();
    let question = RollCall { sleepers: asked.iter().map(|(_, sleeper)| *sleeper).collect() };
    let not_leading: Vec<usize> = match node.call(leader, &question, PATIENCE).await {
        Ok(answer) => answer.not_leading.into_iter().filter_map(|number| usize::try_from(number).ok()).collect(),
        Err(_) if is_away(node, leader) => (0..asked.len()).collect(),
        Err(_) => return,
    };
    for number in not_leading {
        let Some((hosted, sleeper)) = asked.get(number) else { continue };
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
