//! How the listed members of a lone group become a group, exactly once.
//!
//! ```text
//!            every other member answers, none knows members
//! initiator ------------------------------------------------> initialize with everyone's replica id
//! anybody   -- somebody knows members, and I am not in -----> ask the leader to let me in
//! anybody   -- the leader's entries reach me ---------------> done
//! ```
//!
//! Only the member that stands first in the list ever initializes, and only when *all* others have said that
//! they know no members, and promised (synced) that no other replica founds the group: a first member whose disk
//! was lost is another replica, finds a group or waits for it, and joins it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::group::UntypedReplica;
use crate::rpc::{Answer, Envelope, Request, RequestBody};
use crate::status::{Member, ReplicaId};
use crate::transport::Transport;

const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long an initialized group has to reach a member before that one asks to be let in.
const ROUNDS_BEFORE_JOINING: u32 = 4;

/// What the task that forms the group knows.
pub(crate) struct Formation {
    pub(crate) replica: UntypedReplica,
    pub(crate) me: Member,
    pub(crate) is_initiator: bool,
    pub(crate) others: Vec<String>,
    pub(crate) transport: Arc<dyn Transport>,
}

impl Formation {
    /// Ends once this replica is a member.
    pub(crate) async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut rounds_initialized = 0;
        while !self.is_member() {
            let answers = self.ask_all().await;
            let initialized = answers.values().any(|(_, _, initialized)| *initialized);
            if initialized {
                rounds_initialized += 1;
                if rounds_initialized > ROUNDS_BEFORE_JOINING {
                    self.ask_to_join().await;
                }
            } else if self.is_initiator && answers.len() == self.others.len() {
                self.initialize(&answers).await;
            }
            tokio::time::sleep(pause.mul_f64(crate::runtime::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    fn is_member(&self) -> bool {
        let status = self.replica.status();
        status.members.is_voter(status.replica)
    }

    /// Each other member's replica, its node's number, and whether it knows members.
    async fn ask_all(&self) -> BTreeMap<String, (ReplicaId, Member, bool)> {
        let mut answers = BTreeMap::new();
        for node in &self.others {
            if let Some(Answer::Hello { replica, node: number, initialized }) =
                self.ask(node, RequestBody::Hello { founder: self.is_initiator }).await
                && let Some(id) = ReplicaId::new(replica)
            {
                let member = Member { name: node.clone(), node: number, zone: String::new(), decided_at: 0 };
                answers.insert(node.clone(), (id, member, initialized));
            }
        }
        answers
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
        let join = RequestBody::Join { replica: self.replica.spec().replica.get(), member: self.me.clone() };
        for node in &self.others {
            if let Some(Answer::Done) = self.ask(node, join.clone()).await {
                return;
            }
        }
    }

    async fn ask(&self, node: &str, body: RequestBody) -> Option<Answer> {
        let spec = self.replica.spec();
        let envelope = Envelope {
            cluster: spec.cluster,
            incarnation: spec.incarnation,
            from: Some(spec.replica),
            to: None,
            group: spec.group.clone(),
        };
        let answer = self.transport.call(node, Request { envelope, body }.encode(), PATIENCE).await.ok()?;
        Answer::decode(answer).ok()
    }
}
