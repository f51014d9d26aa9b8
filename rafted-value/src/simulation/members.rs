//! Changes the group's members towards a wanted set of nodes, one step at a time, as a fleet would.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::counts::Event;
use super::node::{Node, Surroundings};
use super::truth::Truth;
use crate::change::is_close;
use crate::status::{ReplicaId, Role, Status};

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(crate) struct Placement {
    pub(crate) wanted: BTreeSet<String>,
    step: Option<JoinHandle<()>>,
    /// Numbers the steps, as the log of a cluster group would.
    decided: u64,
}

/// The running leader with the highest term.
pub(crate) fn leader(nodes: &[Node]) -> Option<(usize, Status)> {
    let led = nodes.iter().enumerate().filter_map(|(at, node)| Some((at, node.status()?)));
    led.filter(|(_, status)| status.role == Role::Leader).max_by_key(|(_, status)| status.term)
}

impl Placement {
    /// Whether the committed members are those that are wanted, and nobody else.
    pub(crate) fn is_reached(&self, nodes: &[Node]) -> bool {
        let Some((_, status)) = leader(nodes) else { return false };
        let members = &status.members;
        members.committed
            && !members.is_joint()
            && members.voter_ids() == self.wanted_ids(nodes)
            && members.learner_ids().is_empty()
    }

    fn wanted_ids(&self, nodes: &[Node]) -> BTreeSet<ReplicaId> {
        nodes.iter().filter(|node| self.wanted.contains(&node.name)).filter_map(Node::id).collect()
    }

    /// Begins the next step, unless one is under way.
    pub(crate) async fn go_on(&mut self, nodes: &mut [Node], around: &Surroundings) {
        if self.step.as_ref().is_some_and(|step| !step.is_finished()) {
            return;
        }
        self.clean_up(nodes, around).await;
        for node in nodes.iter_mut().filter(|node| self.wanted.contains(&node.name)) {
            // A disk that failed is seen by whoever looks after the node.
            let _ = node.create_replica(around).await;
        }
        let Some((at, status)) = leader(nodes) else { return };
        let (Some(replica), Some(scope)) = (nodes[at].replica(), nodes[at].running.as_ref()) else { return };
        let (replica, scope) = (replica.clone(), scope.scope.clone());
        let expected = status.members.position;
        self.decided += 1;
        let decided = self.decided;
        let wanted = self.wanted_ids(nodes);
        if status.members.is_joint() {
            self.step =
                Some(scope.spawn(step(around.truth.clone(), async move { replica.finish_joint(expected).await })));
            return;
        }
        let missing = nodes.iter().filter(|node| node.id().is_some_and(|id| wanted.contains(&id)));
        let missing = missing.filter(|node| node.id().is_some_and(|id| !status.members.replicas.contains_key(&id)));
        if let Some((id, member)) = missing.filter_map(|node| Some((node.id()?, node.member(decided)?))).next() {
            self.step = Some(
                scope.spawn(step(around.truth.clone(), async move { replica.add_learner(id, member, expected).await })),
            );
        } else if status.members.voter_ids() != wanted && wanted.len() == self.wanted.len() {
            let are_close = wanted.iter().all(|&id| is_close(&status, id));
            // The leader hands over before it is let go.
            let stays = wanted.contains(&status.replica);
            self.step = match (are_close, stays) {
                (false, _) => None,
                (true, true) => {
                    let change = async move { replica.change_voters(wanted, expected, decided).await };
                    Some(scope.spawn(step(around.truth.clone(), change)))
                }
                (true, false) => wanted.first().copied().filter(|&to| status.members.is_voter(to)).map_or_else(
                    || {
                        let mut with_leader = wanted.clone();
                        with_leader.insert(status.replica);
                        let replica = replica.clone();
                        let change = async move { replica.change_voters(with_leader, expected, decided).await };
                        Some(scope.spawn(step(around.truth.clone(), change)))
                    },
                    |to| {
                        let (replica, truth) = (replica.clone(), around.truth.clone());
                        around.truth.is_heir(to);
                        Some(scope.spawn(hand_over(truth, async move { replica.transfer_leader(to).await })))
                    },
                ),
            };
        } else if let Some(id) = status.members.learner_ids().into_iter().find(|id| !wanted.contains(id)) {
            let change = async move { replica.remove_learner(id, expected, decided).await };
            self.step = Some(scope.spawn(step(around.truth.clone(), change)));
        }
    }

    /// Forgets replicas that the group has let go: not wanted, and left out by a committed membership.
    async fn clean_up(&mut self, nodes: &mut [Node], around: &Surroundings) {
        let Some((_, status)) = leader(nodes) else { return };
        if !status.members.committed || status.members.is_joint() {
            return;
        }
        for node in nodes.iter_mut().filter(|node| !self.wanted.contains(&node.name)) {
            let gone = node.id().is_some_and(|id| !status.members.replicas.contains_key(&id));
            if gone {
                around.truth.tell(format!("{} forgets its replica", node.name));
                node.remove_replica(around).await;
            }
        }
    }
}

/// A change of members. One that fails is seen by the next look at the members.
async fn step<E: std::fmt::Display>(truth: Arc<Truth>, change: impl Future<Output = Result<(), E>>) {
    if is_done(&truth, change).await {
        truth.count(Event::MembersChanged);
    }
}

async fn hand_over<E: std::fmt::Display>(truth: Arc<Truth>, change: impl Future<Output = Result<(), E>>) {
    is_done(&truth, change).await;
}

async fn is_done<E: std::fmt::Display>(truth: &Truth, change: impl Future<Output = Result<(), E>>) -> bool {
    match tokio::time::timeout(PATIENCE, change).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => truth.tell(format!("a step fails: {error}")),
        Err(_) => truth.tell("a step does not end".into()),
    }
    false
}
