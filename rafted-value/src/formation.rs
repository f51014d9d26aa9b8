//! How a member of a lone group gets in: the listed ones form it, exactly once, others join.
//!
//! ```text
//!            every other member answers, none knows members
//! initiator ------------------------------------------------> initialize with everyone's replica id
//! listed    -- somebody knows members, and I am not in -----> ask the leader to let me in
//! joining   ------------------------------------------------> ask the leader to let me in
//! anybody   -- the leader's entries reach me ---------------> done
//! ```
//!
//! Whether a replica that is not a voter by its own log asks to be let in depends on whether it ever was a member for sure,
//! which is written down once it is, since a snapshot does not tell:
//!
//! ```text
//! its log says      was it ever let in?
//! nothing           no                   it asks
//! others only       no                   it asks: entries from before its admission reached it, and then it stopped
//! others only       yes                  it never asks: it was removed, of which caretaker.rs makes sure
//! itself, no vote   yes                  it asks for its vote, if a leader says that it is still a member
//! itself, no vote   not for sure         it asks
//! ```
//!
//! Only the member that stands first in the list ever initializes, and only when *all* others have said that
//! they know no members, and promised (synced) that no other replica founds the group: a first member whose disk
//! was lost is another replica, finds a group or waits for it, and joins it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::change::Change;
use crate::client::{GroupClient, Route};
use crate::error::MembershipError;
use crate::group::UntypedReplica;
use crate::rpc::{ANY_INCARNATION, Answer, ClusterTag, Envelope, Request, RequestBody};
use crate::seat;
use crate::status::{Member, ReplicaId, Status};
use crate::transport::Transport;

const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long an initialized group has to reach a member before that one asks to be let in.
const ROUNDS_BEFORE_JOINING: u32 = 4;
/// One attempt to be let in; the next one goes on where it stopped.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);

/// How a replica becomes a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// It is one of those listed, who form the group.
    Founding {
        /// The first of the list.
        is_initiator: bool,
    },
    /// It asks members of an existing group to let it in.
    Joining,
    /// It waits until a member adds it.
    Waiting,
}

/// The incarnation of the group as the others know it; 0 where nobody answers, as for a group that is yet to be.
pub(crate) async fn discover_incarnation(
    transport: &dyn Transport,
    group: &str,
    others: impl Iterator<Item = &String>,
    patience: Duration,
) -> u64 {
    let envelope = Envelope {
        cluster: ClusterTag::default(),
        incarnation: ANY_INCARNATION,
        from: None,
        to: None,
        group: group.to_owned(),
    };
    let hello = Request { envelope, body: RequestBody::Hello { founder: false } }.encode();
    let asked = others.map(|node| transport.call(node, hello.clone(), patience));
    let answers = futures_util::future::join_all(asked).await.into_iter().flatten();
    let incarnations = answers.filter_map(|answer| match Answer::decode(answer) {
        Ok(Answer::Hello { incarnation, .. }) => Some(incarnation),
        _ => None,
    });
    incarnations.max().unwrap_or(0)
}

/// What the task that forms or joins the group knows.
pub(crate) struct Formation {
    pub(crate) replica: UntypedReplica,
    pub(crate) me: Member,
    pub(crate) entrance: Entrance,
    /// The other listed members, or those through whom it joins, and where they are.
    pub(crate) others: BTreeMap<String, Vec<SocketAddr>>,
    pub(crate) route: Arc<dyn Route>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) client: GroupClient,
}

impl Formation {
    /// Ends once this replica is a member, also if it is none any more: whoever was let in and removed must not ask to be
    /// let in again.
    pub(crate) async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut rounds_initialized = 0;
        let mut changes = self.replica.status_changes();
        if !self.replica.takes_part().await {
            return;
        }
        // Who it was with is in its log; until raft tells of it, it looks like new.
        if !self.replica.knows_members().await {
            return;
        }
        while !self.is_over().await {
            match self.entrance {
                Entrance::Founding { is_initiator } => self.form(is_initiator, &mut rounds_initialized).await,
                Entrance::Joining => self.ask_to_join().await,
                Entrance::Waiting => {}
            }
            // Every change is looked at: a member that votes may be removed before the pause is over.
            let end = Instant::now() + pause.mul_f64(crate::runtime::random_range(0.5..1.0));
            while let Ok(is_running) = tokio::time::timeout_at(end, changes.changed()).await {
                if !is_running || self.is_over().await {
                    return;
                }
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Whether it votes, or was a member for sure and is none any more.
    async fn is_over(&self) -> bool {
        let was_admitted = self.replica.was_admitted().await;
        let Status { replica, members, .. } = self.replica.status();
        members.is_voter(replica) || (was_admitted && !members.replicas.contains_key(&replica))
    }

    async fn form(&self, is_initiator: bool, rounds_initialized: &mut u32) {
        let answers = self.ask_all(false).await;
        let initialized = answers.values().any(|(_, _, initialized)| *initialized);
        if initialized {
            *rounds_initialized += 1;
            if *rounds_initialized > ROUNDS_BEFORE_JOINING {
                self.ask_to_join().await;
            }
        } else if is_initiator && answers.len() == self.others.len() {
            self.found().await;
        }
    }

    /// Each other member's replica, its node's number, and whether it knows members.
    async fn ask_all(&self, founder: bool) -> BTreeMap<String, (ReplicaId, Member, bool)> {
        let mut answers = BTreeMap::new();
        for (node, addresses) in &self.others {
            let hello = RequestBody::Hello { founder };
            if let Some(Answer::Hello { replica, node: number, initialized, .. }) = self.ask(node, hello).await
                && let Some(id) = ReplicaId::new(replica)
            {
                let addresses = addresses.clone();
                let member = Member { name: node.clone(), node: number, zone: String::new(), decided_at: 0, addresses };
                answers.insert(node.clone(), (id, member, initialized));
            }
        }
        answers
    }

    /// Everybody is there, and nobody knows members: now they are asked to promise. Not before: whoever promised itself to
    /// a replica that is gone waits for it for ever.
    async fn found(&self) {
        let group = &self.replica.spec().group;
        if !self.replica.promise_to_found().await {
            return tracing::error!(group, "this node has promised that another replica founds the group");
        }
        let answers = self.ask_all(true).await;
        if let Some((node, _)) = answers.iter().find(|(_, (_, _, refused))| *refused) {
            tracing::error!(group, node, "it has promised that another replica founds the group, or knows members");
        } else if answers.len() == self.others.len() {
            self.initialize(&answers).await;
        }
    }

    async fn initialize(&self, answers: &BTreeMap<String, (ReplicaId, Member, bool)>) {
        let mut members: BTreeMap<ReplicaId, Member> =
            answers.values().map(|(id, member, _)| (*id, member.clone())).collect();
        members.insert(self.replica.spec().replica, self.me.clone());
        if let Err(error) = self.replica.initialize(members).await {
            tracing::warn!(group = %self.replica.spec().group, %error, "the group was not initialized, trying again");
        }
    }

    async fn ask_to_join(&self) {
        // Removed while it was down, it would come back.
        let may_be_gone = self.replica.was_admitted().await;
        if may_be_gone && seat::ask(&self.replica, &*self.transport, &*self.route).await != Some(true) {
            return;
        }
        self.follow_incarnation().await;
        let spec = self.replica.spec();
        let join = Change::Add { replica: spec.replica, member: self.me.clone() };
        match self.client.change(&spec.group, join, JOIN_PATIENCE).await {
            // Its entries are on their way.
            Ok(()) | Err(MembershipError::AlreadyJoined { .. }) => {}
            Err(error) => tracing::info!(group = %spec.group, %error, "not let in yet, asking again"),
        }
    }

    /// The group may have been recovered since this replica was created, when nobody answered.
    async fn follow_incarnation(&self) {
        if !self.replica.has_log() {
            let (group, others) = (&self.replica.spec().group, self.others.keys());
            let found = discover_incarnation(&*self.transport, group, others, PATIENCE).await;
            self.replica.follow_incarnation(found).await;
        }
    }

    async fn ask(&self, node: &str, body: RequestBody) -> Option<Answer> {
        let request = self.replica.sender().request(None, body);
        let answer = self.transport.call(node, request, PATIENCE).await.ok()?;
        Answer::decode(answer).ok()
    }
}

#[cfg(test)]
mod tests;
