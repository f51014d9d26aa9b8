//! Who leads which group, as far as this node has heard: from its own replicas, from the leaders themselves, and
//! from redirects. A hint, never a truth.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use tokio::sync::watch;

use crate::message::Led;

/// What was heard of one group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Heard {
    incarnation: u64,
    pub(crate) term: u64,
    pub(crate) leader: Option<String>,
    /// The nodes with a replica that votes.
    pub(crate) members: Vec<String>,
    /// The node that said last that it leads no longer, and the incarnation and term of that: its followers may not have
    /// noticed.
    gave_up: Option<(String, u64, u64)>,
}

/// All hints. A group that is unknown here has none.
#[derive(Debug, Default)]
pub(crate) struct Leaders {
    heard: RwLock<HashMap<String, Heard>>,
    /// Wakes when a leader has come or gone.
    changes: watch::Sender<()>,
}

impl Leaders {
    /// Wakes when a leader may have come or gone.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    pub(crate) fn get(&self, group: &str) -> Option<Heard> {
        self.heard.read().unwrap_or_else(PoisonError::into_inner).get(group).cloned()
    }

    pub(crate) fn leader(&self, group: &str) -> Option<String> {
        self.heard.read().unwrap_or_else(PoisonError::into_inner).get(group)?.leader.clone()
    }

    /// Takes in what `node` says of itself.
    pub(crate) fn learn(&self, node: &str, led: Led) {
        let mut heard = self.heard.write().unwrap_or_else(PoisonError::into_inner);
        // The last word of a removed group's leader must not bring the group back.
        if !led.leads && !heard.contains_key(&led.group) {
            return;
        }
        let entry = heard.entry(led.group).or_default();
        if (led.incarnation, led.term) < (entry.incarnation, entry.term) {
            return;
        }
        if led.leads {
            entry.leader = Some(node.to_owned());
            entry.members = led.members;
            entry.gave_up = None;
        } else {
            entry.gave_up = Some((node.to_owned(), led.incarnation, led.term));
            if entry.leader.as_deref() == Some(node) {
                entry.leader = None;
            }
        }
        (entry.incarnation, entry.term) = (led.incarnation, led.term);
        self.changes.send_replace(());
    }

    /// What a replica of this node knows as a follower.
    pub(crate) fn learn_from_follower(&self, led: Led, leader: Option<String>) {
        let mut heard = self.heard.write().unwrap_or_else(PoisonError::into_inner);
        let entry = heard.entry(led.group).or_default();
        if (led.incarnation, led.term) <= (entry.incarnation, entry.term) && entry.leader.is_some() {
            return;
        }
        let has_given_up = |(node, incarnation, term): &(String, u64, u64)| {
            leader.as_ref() == Some(node) && (led.incarnation, led.term) <= (*incarnation, *term)
        };
        if entry.gave_up.as_ref().is_some_and(has_given_up) {
            return;
        }
        if leader.is_some() || (led.incarnation, led.term) > (entry.incarnation, entry.term) {
            let gave_up = entry.gave_up.take();
            *entry = Heard { incarnation: led.incarnation, term: led.term, leader, members: led.members, gave_up };
            self.changes.send_replace(());
        }
    }

    /// A redirect's hint, or the end of one; and who answered, which is mostly known.
    pub(crate) fn set(&self, group: &str, node: Option<&str>) {
        let known = |heard: &HashMap<String, Heard>| heard.get(group).and_then(|entry| entry.leader.as_deref()) == node;
        if known(&self.heard.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut heard = self.heard.write().unwrap_or_else(PoisonError::into_inner);
        match (heard.get_mut(group), node) {
            (Some(entry), _) => entry.leader = node.map(str::to_owned),
            (None, Some(_)) => {
                heard.insert(group.to_owned(), Heard { leader: node.map(str::to_owned), ..Heard::default() });
            }
            (None, None) => {}
        }
        self.changes.send_replace(());
    }

    /// A node that is gone leads nothing.
    pub(crate) fn forget_node(&self, node: &str) {
        let mut heard = self.heard.write().unwrap_or_else(PoisonError::into_inner);
        for entry in heard.values_mut().filter(|entry| entry.leader.as_deref() == Some(node)) {
            entry.leader = None;
        }
        self.changes.send_replace(());
    }

    pub(crate) fn forget_group(&self, group: &str) {
        self.heard.write().unwrap_or_else(PoisonError::into_inner).remove(group);
    }

    /// Forgets groups that are gone, of which a hint came late: by name and incarnation.
    pub(crate) fn retain(&self, is_there: impl Fn(&str, u64) -> bool) {
        let mut heard = self.heard.write().unwrap_or_else(PoisonError::into_inner);
        heard.retain(|group, entry| is_there(group, entry.incarnation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(incarnation: u64, term: u64, leads: bool) -> Led {
        Led { group: "g".into(), incarnation, term, leads, members: vec!["n1".into()] }
    }

    #[test]
    fn the_higher_term_wins_and_only_a_leader_itself_gives_up() {
        let leaders = Leaders::default();
        let leader = |expected: Option<&str>| assert_eq!(leaders.leader("g").as_deref(), expected);
        leaders.learn("n1", led(1, 5, true));
        leaders.learn("n2", led(1, 4, true));
        leader(Some("n1"));
        leaders.learn("n2", led(1, 5, false));
        leader(Some("n1"));
        leaders.learn("n2", led(1, 6, true));
        leader(Some("n2"));
        leaders.learn("n2", led(1, 7, false));
        leader(None);
        leaders.learn("n3", led(2, 1, true));
        leader(Some("n3"));
        leaders.forget_node("n3");
        leader(None);
    }

    #[test]
    fn a_late_hint_does_not_bring_a_removed_group_back() {
        let leaders = Leaders::default();
        leaders.learn("n1", led(1, 5, false));
        assert_eq!(leaders.get("g"), None);
        leaders.learn("n1", led(7, 5, true));
        leaders.retain(|_, incarnation| incarnation > 6);
        assert!(leaders.get("g").is_some(), "it is newer than what is known of groups");
        leaders.retain(|_, incarnation| incarnation > 7);
        assert_eq!(leaders.get("g"), None);
    }

    #[test]
    fn a_follower_that_has_not_noticed_brings_no_leader_back() {
        let leaders = Leaders::default();
        leaders.learn("n1", led(1, 5, true));
        leaders.learn("n1", led(1, 5, false));
        leaders.learn_from_follower(led(1, 5, false), Some("n1".into()));
        assert_eq!(leaders.leader("g"), None);
        leaders.learn_from_follower(led(1, 6, false), Some("n1".into()));
        assert_eq!(leaders.leader("g").as_deref(), Some("n1"), "it was elected again");
        leaders.learn("n1", led(1, 6, false));
        leaders.learn("n1", led(1, 6, true));
        leaders.learn_from_follower(led(1, 6, false), Some("n1".into()));
        assert_eq!(leaders.leader("g").as_deref(), Some("n1"), "a majority answers it again");
    }

    #[test]
    fn a_follower_fills_gaps_only() {
        let leaders = Leaders::default();
        leaders.learn_from_follower(led(1, 3, false), Some("n1".into()));
        leaders.learn_from_follower(led(1, 3, false), Some("n9".into()));
        assert_eq!(leaders.leader("g").as_deref(), Some("n1"));
        leaders.learn_from_follower(led(1, 4, false), None);
        assert_eq!(leaders.leader("g"), None);
        leaders.learn_from_follower(led(1, 4, false), Some("n2".into()));
        assert_eq!(leaders.leader("g").as_deref(), Some("n2"));
        assert_eq!(leaders.get("g").unwrap().term, 4);
    }
}
