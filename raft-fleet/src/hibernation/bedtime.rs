//! Puts groups to sleep in which nothing has happened for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rafted_value::{LogPosition, ReplicaId, Rest};
use tokio::time::Instant;

use super::{abandon, is_away};
use crate::message::{Bed, Position, Sleep};
use crate::node::Node;
use crate::replicas::Hosted;

/// How often it is looked which groups are at rest.
const LOOK: Duration = Duration::from_secs(1);
/// How long a node may take to let its replicas sleep.
const PATIENCE: Duration = Duration::from_secs(2);
/// Groups in one message.
const GROUPS_PER_MESSAGE: usize = 1_000;

/// Never ends by itself.
pub(crate) async fn put_to_sleep(node: Arc<Node>) {
    let Some(sleep_after) = node.config.sleep_after() else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(LOOK.min(sleep_after / 2)).await;
        let at_rest = find(&node, sleep_after).await;
        if !at_rest.is_empty() {
            ask_members(&node, at_rest).await;
        }
    }
}

/// A group at rest that this node leads, and the members that are asked.
struct Tired {
    hosted: Hosted,
    rest: Rest,
    asked: Vec<(ReplicaId, String)>,
}

async fn find(node: &Node, sleep_after: Duration) -> Vec<Tired> {
    let mut tired = Vec::new();
    for hosted in node.replicas.awake() {
        if let Some(rest) = hosted.replica.at_rest(sleep_after)
            && let Some(asked) = who_is_asked(&rest, |name| is_away(node, name))
        {
            tired.push(Tired { hosted, rest, asked });
        }
        tokio::task::consume_budget().await;
    }
    tired
}

fn who_is_asked(rest: &Rest, is_silent: impl Fn(&str) -> bool) -> Option<Vec<(ReplicaId, String)>> {
    members_to_ask(&rest.others, &rest.voters, &rest.lagging, is_silent)
}

/// The members that must agree: all on nodes that answer. `None` if the group must stay awake: one of these lacks entries,
/// or they are no majority, so that a leader must be able to find out that it is none. `voters` are with the leader, who
/// votes, `others` without.
fn members_to_ask(
    others: &[(ReplicaId, String)],
    voters: &BTreeSet<ReplicaId>,
    lagging: &BTreeSet<ReplicaId>,
    is_silent: impl Fn(&str) -> bool,
) -> Option<Vec<(ReplicaId, String)>> {
    let present: Vec<_> = others.iter().filter(|(_, name)| !is_silent(name)).cloned().collect();
    let voting = present.iter().filter(|(id, _)| voters.contains(id)).count() + 1;
    let is_quorate = voting * 2 > voters.len();
    let has_all = !present.iter().any(|(id, _)| lagging.contains(id));
    (is_quorate && has_all).then_some(present)
}

/// The leaders fall asleep last, where all members do.
async fn ask_members(node: &Node, tired: Vec<Tired>) {
    let mut by_node: BTreeMap<&str, Vec<(usize, Bed)>> = BTreeMap::new();
    for (number, group) in tired.iter().enumerate() {
        for (member, name) in &group.asked {
            by_node.entry(name).or_default().push((number, bed(*member, &group.rest)));
        }
    }
    let asking = by_node.iter().flat_map(|(name, beds)| beds.chunks(GROUPS_PER_MESSAGE).map(move |beds| (*name, beds)));
    let asking = asking.map(|(name, beds)| async move {
        let request = Sleep { beds: beds.iter().map(|(_, bed)| bed.clone()).collect() };
        let awake = match node.call(name, &request, PATIENCE).await {
            Ok(slept) if slept.asleep.len() == beds.len() => slept.asleep,
            // They may sleep, which does no harm: they are asked again.
            Ok(_) | Err(_) => vec![false; beds.len()],
        };
        let stay_awake = beds.iter().zip(awake).filter(|(_, asleep)| !asleep).map(|((number, _), _)| *number);
        stay_awake.collect::<Vec<_>>()
    });
    let mut all_agree = vec![true; tired.len()];
    for number in join_all(asking).await.into_iter().flatten() {
        all_agree[number] = false;
    }
    let agreed = tired.iter().zip(all_agree).filter(|(_, agree)| *agree).map(|(group, _)| group);
    let asleep = agreed.filter(|group| fall_asleep(node, group)).count();
    tracing::debug!(node = %node.name, asleep, at_rest = tired.len(), "groups fell asleep");
}

/// `false` if something has happened since the members were asked, also to their nodes: whoever watches these may have
/// looked at the group while it was awake.
fn fall_asleep(node: &Node, group: &Tired) -> bool {
    if !group.hosted.replica.fall_asleep(&group.rest) {
        return false;
    }
    if who_is_asked(&group.rest, |name| is_away(node, name)).as_ref() == Some(&group.asked) {
        return true;
    }
    // Not only woken: members that are back are tried at once.
    node.waking.push(group.hosted.id(), Instant::now(), false);
    false
}

fn bed(to: ReplicaId, rest: &Rest) -> Bed {
    let last = Position { term: rest.last.term, index: rest.last.index };
    Bed { to: to.get(), leader: rest.leader.get(), term: rest.term, last }
}

/// Lets replicas of this node fall asleep; which of them do.
pub(crate) fn follow_to_sleep(node: &Node, beds: &[Bed]) -> Vec<bool> {
    let sleeps = node.config.sleep_after().is_some();
    let follow = |bed: &Bed| {
        let (to, leader) = (ReplicaId::new(bed.to)?, ReplicaId::new(bed.leader)?);
        let last = LogPosition { term: bed.last.term, index: bed.last.index };
        let hosted = node.replicas.get(to).filter(|_| sleeps)?;
        let asleep = hosted.replica.follow_to_sleep(leader, bed.term, last);
        // Its node may have gone before the replica slept, when nobody looked at it.
        let is_led = hosted.replica.leader_node().is_some_and(|leader| !is_away(node, &leader));
        if asleep && !is_led {
            abandon(node, &hosted, None);
        }
        Some(asleep && is_led)
    };
    beds.iter().map(|bed| follow(bed).unwrap_or(false)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u64]) -> BTreeSet<ReplicaId> {
        numbers.iter().filter_map(|number| ReplicaId::new(*number)).collect()
    }

    #[test]
    fn all_members_that_answer_are_asked_where_they_have_all_and_are_a_majority() {
        // Replica 1 leads; each other stands on the node of its number.
        type Row = (&'static str, u64, &'static [u64], &'static [u64], &'static [u64], Option<&'static [u64]>);
        let table: [Row; 9] = [
            ("all are there", 3, &[1, 2, 3], &[], &[], Some(&[2, 3])),
            ("one is gone", 3, &[1, 2, 3], &[], &[3], Some(&[2])),
            ("one is gone, and lacks entries", 3, &[1, 2, 3], &[3], &[3], Some(&[2])),
            ("one that is there lacks entries", 3, &[1, 2, 3], &[3], &[], None),
            ("no majority is there", 3, &[1, 2, 3], &[], &[2, 3], None),
            ("half of them is no majority", 4, &[1, 2, 3, 4], &[], &[3, 4], None),
            ("it is alone", 1, &[1], &[], &[], Some(&[])),
            ("a learner is asked, too", 4, &[1, 2, 3], &[], &[3], Some(&[2, 4])),
            ("a learner counts for no majority", 4, &[1, 2, 3], &[], &[2, 3], None),
        ];
        for (name, members, voters, lagging, silent, expected) in table {
            let others: Vec<_> = (2..=members).map(|n| (ReplicaId::new(n).unwrap(), format!("n{n}"))).collect();
            let is_silent = |node: &str| silent.iter().any(|n| node == format!("n{n}"));
            let asked = members_to_ask(&others, &ids(voters), &ids(lagging), is_silent);
            let asked = asked.map(|asked| asked.into_iter().map(|(id, _)| id.get()).collect::<Vec<_>>());
            assert_eq!(asked.as_deref(), expected, "{name}");
        }
    }
}
