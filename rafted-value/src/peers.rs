//! A replica's way to ask the other members of its group something.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;

use crate::machine::Raft;
use crate::rpc::{Answer, RequestBody};
use crate::sender::Sender;
use crate::status::{Member, ReplicaId};
use crate::transport::Transport;

/// The other members, as the newest membership names them.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(crate) raft: Raft,
    pub(crate) sender: Sender,
    pub(crate) transport: Arc<dyn Transport>,
}

impl Peers {
    /// The leader, where it is known; it may be this replica.
    pub(crate) fn leader(&self) -> Option<(ReplicaId, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        Some((ReplicaId::new(id)?, metrics.membership_config.membership().get_node(&id)?.clone()))
    }

    /// All other members, voters and learners.
    pub(crate) fn others(&self) -> Vec<(ReplicaId, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership().nodes();
        let known = members.filter_map(|(&id, member)| Some((ReplicaId::new(id)?, member.clone())));
        known.filter(|(id, _)| *id != self.sender.replica()).collect()
    }

    /// Asks one member, and no other replica that may be on its node.
    pub(crate) async fn ask(
        &self,
        to: ReplicaId,
        member: &Member,
        body: RequestBody,
        patience: Duration,
    ) -> Option<Answer> {
        let request = self.sender.request(Some(to), body);
        let answer = self.transport.call(&member.name, request, patience).await.ok()?;
        Answer::decode(answer).ok()
    }
}
