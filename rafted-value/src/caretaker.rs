//! What a member of a lone group sees to as long as it runs, since no fleet does.
//!
//! ```text
//! members changed -----------------------------------------> tell the network where they are
//! it is elsewhere than the members say --------------------> tell the leader
//! it leads, and a change of members stays half done -------> finish it
//! it leads, and a member does not answer ------------------> tell that one where this one is
//! no leader is heard --------------------------------------> tell all others where this one is
//! no leader is heard, or it is no member any more ---------> ask the others; not a member, says a leader: retire
//! the group goes on as a later incarnation ----------------> retire
//! ```
//!
//! Only a leader that a majority confirms says that a replica is no member, and only a replica that was a member for
//! sure believes it: one that is just being let in is not told from a removed one otherwise.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::change::Change;
use crate::client::{GroupClient, Route};
use crate::group::UntypedReplica;
use crate::rpc::RequestBody;
use crate::seat;
use crate::status::{LogPosition, Member, ReplicaId, Role, Status};
use crate::transport::Transport;

/// How often it looks while there is something to finish or to find out.
const TICK: Duration = Duration::from_millis(250);
/// How long the two halves of a change may be apart before the leader finishes it for whoever began it.
const HALF_DONE: Duration = Duration::from_secs(1);
/// How long no leader is heard before the others are asked, at least ...
const MIN_SILENCE: Duration = Duration::from_secs(1);
/// ... and in the longest election timeouts: leaders of groups whose heartbeats are rare are silent for long.
const SILENCE_IN_ELECTIONS: u32 = 2;
/// Members that do not answer are told where this one is at least so often.
const MAX_INTRODUCTION_PAUSE: Duration = Duration::from_secs(15);
/// One member's time to answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// To tell the leader where this node is.
const MOVE_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Caretaker {
    pub(crate) replica: UntypedReplica,
    pub(crate) me: Member,
    pub(crate) route: Arc<dyn Route>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) client: GroupClient,
}

/// What it remembers between two looks.
#[derive(Default)]
struct Memory {
    /// The members that the network was told.
    told: Option<LogPosition>,
    /// The half-done change, and since when it stands.
    joint: Option<(LogPosition, Instant)>,
    /// When members that do not answer are told next where this one is, and the pause after that.
    introduction: Option<(Instant, Duration)>,
}

impl Caretaker {
    /// Ends when the group has removed the replica.
    pub(crate) async fn run(self) {
        let mut memory = Memory::default();
        let mut changes = self.replica.status_changes();
        // What is read right after a change may be of the moment before it: it is read once more.
        let mut has_changed = true;
        loop {
            let status = self.replica.status();
            self.introduce(&status, &mut memory);
            self.finish_joint(&status, &mut memory).await;
            let is_elsewhere = self.tell_address(&status).await;
            self.introduce_myself(&status, &mut memory).await;
            let may_be_removed = self.may_be_removed(&status).await;
            if may_be_removed && self.is_removed().await {
                match self.replica.retire().await {
                    Ok(()) => {
                        let group = &self.replica.spec().group;
                        return tracing::info!(group, node = self.me.name, "this member was removed, and has stopped");
                    }
                    Err(error) => tracing::warn!(%error, "that this member was removed could not be written down"),
                }
            }
            let is_busy = has_changed || memory.joint.is_some() || is_elsewhere || may_be_removed;
            let silent_for = self.replica.leader_silent_for();
            let pause = until_next_look(is_busy, status.role, silent_for, self.silence());
            match tokio::time::timeout(pause, changes.changed()).await {
                Ok(true) => has_changed = true,
                Ok(false) => return,
                Err(_) => has_changed = false,
            }
        }
    }

    fn silence(&self) -> Duration {
        silence(self.replica.longest_election())
    }

    fn introduce(&self, status: &Status, memory: &mut Memory) {
        if status.members.position != memory.told {
            status.members.replicas.values().for_each(|member| self.route.learn(member));
            memory.told = status.members.position;
        }
    }

    async fn finish_joint(&self, status: &Status, memory: &mut Memory) {
        let half_done = status.members.position.filter(|_| status.members.is_joint() && status.role == Role::Leader);
        memory.joint = half_done.map(|position| match memory.joint {
            Some((same, since)) if same == position => (same, since),
            _ => (position, Instant::now()),
        });
        if memory.joint.is_some_and(|(_, since)| since.elapsed() > HALF_DONE)
            && let Err(error) = self.replica.finish_joint(half_done).await
        {
            tracing::debug!(%error, "a half-done change of members was not finished, trying again");
        }
    }

    /// Whether the members know another address.
    async fn tell_address(&self, status: &Status) -> bool {
        let id = status.replica;
        let known = status.members.replicas.get(&id);
        let is_elsewhere =
            known.is_some_and(|known| !self.me.addresses.is_empty() && known.addresses != self.me.addresses);
        let is_led = status.role == Role::Leader || self.replica.leader_silent_for() < self.silence();
        if is_elsewhere && is_led && status.members.committed {
            let here = Change::Describe { replica: id, member: self.me.clone() };
            // Looked at again at the next turn.
            let _ = self.client.change(&self.replica.spec().group, here, MOVE_PATIENCE).await;
        }
        is_elsewhere
    }

    /// A member that has restarted takes no part before it has heard from the others, and those that its log names may all
    /// be gone: the others say where they are, more and more seldom.
    async fn introduce_myself(&self, status: &Status, memory: &mut Memory) {
        let silent: Vec<ReplicaId> = match status.role {
            Role::Leader | Role::Isolated => status.unresponsive.keys().copied().collect(),
            Role::Follower | Role::Candidate if self.replica.leader_silent_for() > self.silence() => {
                status.members.replicas.keys().copied().collect()
            }
            _ => Vec::new(),
        };
        let silent = silent.into_iter().filter(|id| *id != status.replica);
        let silent: Vec<_> = silent.filter_map(|id| Some((id, status.members.replicas.get(&id)?))).collect();
        if silent.is_empty() {
            memory.introduction = None;
            return;
        }
        let now = Instant::now();
        let (due, pause) = memory.introduction.unwrap_or((now, MIN_SILENCE));
        if due > now {
            return;
        }
        let telling = silent.into_iter().map(|(id, member)| {
            let request = self.replica.sender().request(Some(id), RequestBody::Introduce(self.me.clone()));
            self.transport.call(&member.name, request, PATIENCE)
        });
        // Whoever did not get it is told again.
        futures_util::future::join_all(telling).await;
        memory.introduction = Some((Instant::now() + pause, (pause * 2).min(MAX_INTRODUCTION_PAUSE)));
    }

    /// Whether it is time to ask.
    async fn may_be_removed(&self, status: &Status) -> bool {
        if matches!(status.role, Role::Leader | Role::Stopped | Role::Removed | Role::RolledBack) {
            return false;
        }
        let is_member = status.members.replicas.contains_key(&status.replica);
        self.replica.was_admitted().await && (!is_member || self.replica.leader_silent_for() > self.silence())
    }

    /// Whether a leader says so.
    async fn is_removed(&self) -> bool {
        seat::ask(&self.replica, &*self.transport, &*self.route).await == Some(false)
    }
}

/// How long no leader is heard before the others are asked.
fn silence(longest_election: Duration) -> Duration {
    (longest_election * SILENCE_IN_ELECTIONS).max(MIN_SILENCE)
}

/// When to look again though nothing changes: a node may have thousands of groups, in which nothing is to be done.
fn until_next_look(is_busy: bool, role: Role, silent_for: Duration, silence: Duration) -> Duration {
    match role {
        _ if is_busy => TICK,
        // It may turn out to be isolated, which no change tells.
        Role::Leader => silence,
        _ => silence.saturating_sub(silent_for).max(TICK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_in_which_nothing_is_to_be_done_is_left_alone_until_its_leader_may_be_gone() {
        let ms = Duration::from_millis;
        let (by_default, patient) = (silence(ms(300)), silence(ms(80_000)));
        assert_eq!((by_default, patient), (ms(1_000), ms(160_000)));
        let table = [
            ("something is to be done", true, Role::Leader, ms(0), patient, TICK),
            ("it leads", false, Role::Leader, ms(900_000), patient, patient),
            ("it heard its leader just now", false, Role::Follower, ms(0), by_default, by_default),
            ("it heard its leader some time ago", false, Role::Follower, ms(10_000), patient, ms(150_000)),
            ("its leader is silent", false, Role::Follower, ms(170_000), patient, TICK),
            ("it is about to be", false, Role::Learner, ms(990), by_default, TICK),
        ];
        for (name, is_busy, role, silent_for, silence, expected) in table {
            assert_eq!(until_next_look(is_busy, role, silent_for, silence), expected, "{name}");
        }
    }
}
