//! Looks after the groups that this node leads: tells who leads, compares members with their places, and runs the
//! next single step.
//!
//! ```text
//! status of a replica ----.                        .--> event, hint to all nodes
//! cluster's state --------+--> which groups are due +--> adjustment --> one step --> due again
//! a node silent or back --'                        '--> idle: due after the slow interval
//! ```

mod leading;
mod step;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use batched_comm::PeerEvent;
use rafted_value::ReplicaId;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::Instant;

use self::leading::Ledger;
use self::step::Outcome;
use crate::node::Node;

/// Groups whose steps run at once.
const STEPS_AT_ONCE: usize = 8;
/// After a step that waits for a learner, and after one that failed.
const SOON: Duration = Duration::from_millis(150);
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// A group changes its leader for placement at most this often, so that two views do not play ball with it.
const BETWEEN_TRANSFERS: Duration = Duration::from_secs(3);

/// What the loop keeps for each group that this node leads.
struct Due {
    /// `None` while the group sleeps, and nothing was to be done: until it wakes, or the nodes change.
    at: Option<Instant>,
    running: bool,
    /// From when on the leadership may be handed on.
    may_transfer: Instant,
}

struct Desk {
    node: Arc<Node>,
    ledger: Ledger,
    due: HashMap<ReplicaId, Due>,
    steps: JoinSet<Outcome>,
    /// Which replica's step a task is.
    stepping: HashMap<task::Id, ReplicaId>,
    /// Replicas that lead as far as they know, and that no majority answers: nothing tells when that ends.
    isolated: BTreeSet<ReplicaId>,
    look_at_isolated: Instant,
}

/// Never ends by itself.
pub(crate) async fn reconcile(node: Arc<Node>) {
    let mut view = node.view.subscribe();
    let mut before = view.borrow_and_update().clone();
    let mut silent = node.peers.subscribe();
    let mut peers = node.endpoint.events();
    let mut desk = Desk::new(node.clone());
    // A run before this one may have ended in a panic.
    node.leads_cluster.send_replace(None);
    for hosted in node.replicas.all() {
        node.replicas.dirty.mark(hosted.id());
    }
    loop {
        let next = desk.next_due();
        tokio::select! {
            replicas = node.replicas.dirty.take() => desk.observe(replicas),
            Ok(()) = view.changed() => {
                let after = view.borrow_and_update().clone();
                // What is new of groups comes with their leaders.
                if !after.has_same_nodes(&before) {
                    desk.all_due();
                }
                before = after;
            }
            Ok(()) = silent.changed() => {
                silent.borrow_and_update();
                desk.all_due();
            }
            event = peers.recv() => match event {
                Ok(PeerEvent::Up { peer, .. }) => desk.ledger.tell(&node, peer.as_str()),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => desk.ledger.tell_all(&node),
                Err(RecvError::Closed) => return,
            },
            Some(ended) = desk.steps.join_next_with_id() => desk.end(ended),
            () = tokio::time::sleep_until(next) => {}
        }
        desk.observe_isolated();
        desk.begin_steps();
    }
}

impl Desk {
    fn new(node: Arc<Node>) -> Self {
        let (steps, stepping) = (JoinSet::new(), HashMap::new());
        let (isolated, look_at_isolated) = (BTreeSet::new(), Instant::now());
        Self { node, ledger: Ledger::default(), due: HashMap::new(), steps, stepping, isolated, look_at_isolated }
    }

    fn next_due(&self) -> Instant {
        let mut idle = Instant::now() + self.node.config.reconcile_interval();
        if !self.isolated.is_empty() {
            idle = idle.min(self.look_at_isolated);
        }
        if self.steps.len() >= STEPS_AT_ONCE {
            return idle;
        }
        self.due.values().filter(|due| !due.running).filter_map(|due| due.at).min().map_or(idle, |at| at.min(idle))
    }

    /// Looks at replicas whose status may have changed.
    fn observe(&mut self, replicas: BTreeSet<ReplicaId>) {
        let now = Instant::now();
        let led = self.ledger.observe(&self.node, &replicas);
        self.isolated.retain(|id| !replicas.contains(id));
        self.isolated.extend(replicas.into_iter().filter(|&id| is_isolated(&self.node, id)));
        self.due.retain(|id, _| self.ledger.leads(*id));
        for id in led {
            let due = Due { at: None, running: false, may_transfer: now + BETWEEN_TRANSFERS / 3 };
            self.due.entry(id).or_insert(due).at = Some(now);
        }
    }

    /// Looks now and then at replicas that no majority answers.
    fn observe_isolated(&mut self) {
        let now = Instant::now();
        if self.isolated.is_empty() || now < self.look_at_isolated {
            return;
        }
        self.look_at_isolated = now + AFTER_FAILURE;
        self.observe(self.isolated.clone());
    }

    /// The world around the groups has changed.
    fn all_due(&mut self) {
        let now = Instant::now();
        for due in self.due.values_mut() {
            due.at = Some(now);
        }
    }

    fn begin_steps(&mut self) {
        let now = Instant::now();
        let interval = self.node.config.reconcile_interval();
        for (&id, due) in &mut self.due {
            if self.steps.len() >= STEPS_AT_ONCE {
                return;
            }
            if due.running || due.at.is_none_or(|at| at > now) {
                continue;
            }
            due.running = true;
            let sleeps = self.node.replicas.get(id).is_some_and(|hosted| hosted.replica.is_asleep());
            // Spread out, so that the groups of a node are not looked at all at once.
            due.at = (!sleeps).then(|| now + interval.mul_f64(rand::random_range(0.75..1.25)));
            let (node, may_transfer) = (self.node.clone(), now >= due.may_transfer);
            let step = self.steps.spawn(async move { step::take(&node, id, may_transfer).await });
            self.stepping.insert(step.id(), id);
        }
    }

    /// A step that panicked has failed, and is taken again later.
    fn end(&mut self, ended: Result<(task::Id, Outcome), JoinError>) {
        let (task, outcome) = ended.unwrap_or_else(|error| (error.id(), Outcome::Failed));
        if let Some(replica) = self.stepping.remove(&task) {
            self.finish(replica, outcome);
        }
    }

    fn finish(&mut self, replica: ReplicaId, outcome: Outcome) {
        let now = Instant::now();
        let Some(due) = self.due.get_mut(&replica) else { return };
        due.running = false;
        let again = match outcome {
            Outcome::Idle => return,
            Outcome::Stepped => now,
            Outcome::Transferred => {
                due.may_transfer = now + BETWEEN_TRANSFERS;
                due.may_transfer
            }
            Outcome::MayNotTransfer => due.may_transfer,
            Outcome::Waiting => now + SOON,
            Outcome::Failed => now + AFTER_FAILURE.mul_f64(rand::random_range(0.5..1.5)),
        };
        due.at = Some(due.at.map_or(again, |at| at.min(again)));
    }
}

/// Whether no majority answers it, or none has yet: nothing tells of either.
fn is_isolated(node: &Node, id: ReplicaId) -> bool {
    node.replicas.get(id).is_some_and(|hosted| hosted.replica.is_unanswered())
}
