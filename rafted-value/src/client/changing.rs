//! Gets a change of members made: the same search for the leader as for commands.

use std::time::Duration;

use super::{GroupClient, Search, deadline_in};
use crate::change::Change;
use crate::error::{MembershipError, NotHappened, UnknownOutcome};
use crate::group::Changed;
use crate::rpc::{Answer, Envelope, Request, RequestBody};
use crate::transport::TransportError;

/// The leader may wait until a replica has caught up, and says after this time that it goes on.
const CHANGE_PATIENCE: Duration = Duration::from_secs(8);

impl GroupClient {
    /// Gets a change made by the group's leader. It is asked for again until the deadline where its outcome is not
    /// known: a change that is made already says so.
    pub(crate) async fn change(&self, group: &str, change: Change, timeout: Duration) -> Result<(), MembershipError> {
        let mut search = Search::new(self, group, deadline_in(timeout));
        search.patience = CHANGE_PATIENCE;
        let mut maybe: Option<UnknownOutcome> = None;
        while let Some((node, patience)) = search.next().await {
            match self.attempt_change(group, &node, &change, patience).await {
                Changed::Done => {
                    self.route.set_leader(group, Some(&node));
                    return Ok(());
                }
                Changed::NotYet => {
                    maybe = Some(UnknownOutcome::Interrupted("the new member still lacks entries".into()));
                    search.hint = Some(node);
                }
                Changed::NotLeader { leader } => {
                    let leader = leader.map(|(_, member)| member);
                    leader.iter().for_each(|member| self.route.learn(member));
                    search.elsewhere(&node, leader.map(|member| member.name));
                }
                Changed::Failed(MembershipError::Unknown(reason)) => {
                    maybe = Some(reason);
                    search.lost(&node);
                }
                Changed::Failed(MembershipError::NotHappened(
                    NotHappened::Stopped { .. } | NotHappened::NoLeader { .. },
                )) => search.elsewhere(&node, None),
                Changed::Failed(error) => {
                    return match maybe {
                        Some(_) if error.says_that_it_was_made() => Ok(()),
                        // An earlier attempt may have got further than this one.
                        Some(reason) => Err(reason.into()),
                        None => Err(error),
                    };
                }
            }
        }
        Err(match maybe {
            Some(reason) => reason.into(),
            None => NotHappened::NoLeader { group: group.to_owned(), waited: timeout }.into(),
        })
    }

    async fn attempt_change(&self, group: &str, node: &str, change: &Change, patience: Duration) -> Changed {
        if node == self.route.here() {
            return match self.route.local(group) {
                Some(replica) => replica.change(change.clone(), patience).await,
                None => Changed::NotLeader { leader: None },
            };
        }
        let Some((cluster, incarnation)) = self.route.identity(group) else {
            return Changed::NotLeader { leader: None };
        };
        let envelope = Envelope { cluster, incarnation, from: None, to: None, group: group.to_owned() };
        let body = RequestBody::Change { change: change.clone(), within: patience };
        match self.transport.call(node, Request { envelope, body }.encode(), patience).await {
            Ok(answer) => changed(Answer::decode(answer)),
            Err(TransportError::NotSent(_)) => Changed::NotLeader { leader: None },
            Err(TransportError::Lost(reason)) => Changed::Failed(UnknownOutcome::Interrupted(reason).into()),
        }
    }
}

fn changed(answer: Result<Answer, crate::codec::Malformed>) -> Changed {
    let interrupted = |reason: String| Changed::Failed(UnknownOutcome::Interrupted(reason).into());
    match answer {
        Ok(Answer::Done) => Changed::Done,
        Ok(Answer::NotYet) => Changed::NotYet,
        Ok(Answer::NotLeader { leader }) => {
            let known = |(id, member)| Some((crate::status::ReplicaId::new(id)?, member));
            Changed::NotLeader { leader: leader.and_then(known) }
        }
        Ok(Answer::WrongReplica | Answer::Ended { .. }) => Changed::NotLeader { leader: None },
        Ok(Answer::NotChanged(error)) => Changed::Failed(error),
        Ok(Answer::NotHappened(reason)) => Changed::Failed(reason.into()),
        Ok(other) => interrupted(format!("an answer to another question: {other:?}")),
        Err(error) => interrupted(error.to_string()),
    }
}
