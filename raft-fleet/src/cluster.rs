//! The cluster group's value: which nodes there are, which groups, and what is still to be cleaned up.
//! Pure; every change is a command, every node holds a copy that follows (see [`Cluster::delta`]).
//!
//! ```text
//! node:   (new) --Register--> Active --Drain-----> Draining --RemoveNode--> (gone)
//!                              |  ^  <--Activate--
//!                        Purge v  | Register
//!                             Dead (its memory may return)
//!
//! group:  AddGroup --> Forming --Found--> Founded --SetRunning--> Running --RemoveGroup--> removed, until every
//!                      |     ^                                                             node has cleaned up
//!                      |     ^                        ^  |
//!                      +-----+ Reform: other          |  | Recover: without its majority, a new incarnation
//!                              founders, a new        |  v
//!                              incarnation            Recovering (SetRunning ends it)
//! ```
//!
//! A group is founded once: `Found` records the exact replicas, and only those are ever initialized. Until
//! then nothing of the group exists but empty replicas, so `Reform` may choose others.
//!
//! An incarnation is the log index of the command that made it, so that no two are equal.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rafted_value::{Context, Value, messages};

use crate::placement;
use crate::report::Recovery;

mod groups;
mod nodes;
mod recoveries;

/// The name of the cluster group, and the key under which its voters are placed. No other group may have it.
pub(crate) const CLUSTER_GROUP: &str = "cluster";
/// The cluster group is never recovered into another incarnation under the same cluster id and generation.
pub(crate) const CLUSTER_INCARNATION: u64 = 0;

messages! {
    /// The replicated state, and every node's copy of it.
    #[derive(Default)]
    pub(crate) struct Cluster {
        /// The log index of the last command that changed anything.
        pub(crate) changed_at: u64,
        /// Removals at or below this index are no longer listed in `forgotten`.
        horizon: u64,
        nodes: BTreeMap<String, Arc<Node>>,
        groups: BTreeMap<String, Arc<Group>>,
        removed: BTreeMap<String, Arc<RemovedGroup>>,
        /// Memories of removed nodes, newest last: never registered again. At most [`MAX_GONE`]. Copies do without.
        gone: VecDeque<u64>,
        /// What was removed, with the log index, oldest first; at most [`MAX_FORGOTTEN`].
        forgotten: VecDeque<(u64, Forgotten)>,
    }

    /// A registered node.
    pub(crate) struct Node {
        pub(crate) node_id: u64,
        pub(crate) boot: u64,
        /// What the directory drew for this start. A later one knows of it.
        pub(crate) number: u64,
        /// What the process drew for itself; its connections tell it.
        pub(crate) start: u64,
        pub(crate) zone: String,
        pub(crate) address: String,
        pub(crate) attributes: BTreeMap<String, String>,
        pub(crate) phase: NodePhase,
        /// Since when, in log time, the cluster group's leader has not reached it.
        pub(crate) unreachable_since: Option<u64>,
        /// Since when, in log time, it is in its phase.
        pub(crate) since: u64,
        /// While it is draining: how far it has come.
        pub(crate) drain: Option<Drain>,
        /// Memories that this name had before, newest last: never registered again. At most [`MAX_FENCED`].
        pub(crate) fenced: Vec<u64>,
        changed_at: u64,
    }

    /// What a draining node still has, as it has told last.
    #[derive(Copy, Eq)]
    pub(crate) struct Drain {
        /// The cluster group's included.
        pub(crate) replicas: u64,
        /// The replicas among them that lead.
        pub(crate) leaderships: u64,
        /// Since when, in log time.
        pub(crate) since: u64,
    }

    /// What a node is asked to do.
    #[derive(Copy, Eq)]
    pub(crate) enum NodePhase {
        /// Holds replicas.
        Active,
        /// Gives its replicas away.
        Draining,
        /// Was unreachable for so long that its replicas are replaced.
        Dead,
    }

    /// A group.
    pub(crate) struct Group {
        pub(crate) type_name: String,
        pub(crate) replicas: u32,
        pub(crate) incarnation: u64,
        pub(crate) phase: GroupPhase,
        /// The last one that was made of it. It stays, because a survivor's node may learn of it late.
        pub(crate) recovery: Option<Recovery>,
        changed_at: u64,
    }

    /// How far a group has come.
    #[derive(Eq)]
    pub(crate) enum GroupPhase {
        /// These nodes are asked to make replicas; the preferred leader first.
        Forming { founders: Vec<String> },
        /// These replicas are the first members. The first founder that still has its memory initializes.
        Founded { founders: Vec<Founder> },
        /// It had a leader. Its members are its own affair from here on.
        Running,
        /// It lost its majority; its survivors are made the members of a new incarnation.
        Recovering,
    }

    /// One of a group's first members.
    #[derive(Eq)]
    pub(crate) struct Founder {
        pub(crate) node: String,
        pub(crate) node_id: u64,
        pub(crate) zone: String,
        pub(crate) replica: u64,
    }

    /// A removed group: its replicas are deleted, and its name is free when nobody is left in `pending`.
    pub(crate) struct RemovedGroup {
        /// Replicas up to this incarnation are to be deleted.
        pub(crate) incarnation: u64,
        /// The nodes that have not cleaned up yet.
        pub(crate) pending: BTreeSet<String>,
        changed_at: u64,
    }

    /// What is no longer in the state.
    #[derive(Eq)]
    pub(crate) enum Forgotten {
        Node(String),
        Group(String),
        RemovedGroup(String),
    }

    /// What changes the state.
    pub(crate) enum Command {
        /// A node's memory says that it runs. Idempotent.
        Register(Registration),
        /// The leader sees a node, or sees it no more. Idempotent.
        SetReachable { node: String, node_id: u64, reachable: bool },
        /// The node's replicas are to be replaced. Idempotent.
        Purge { node: String, node_id: u64 },
        /// The node is to give its replicas away.
        Drain { node: String },
        /// What a draining node still has. Idempotent.
        ReportDrain { node: String, node_id: u64, replicas: u64, leaderships: u64 },
        /// A draining node is to hold replicas again.
        Activate { node: String },
        /// Forgets a node that is draining, dead or unreachable.
        RemoveNode { node: String },
        AddGroup { group: String, type_name: String, replicas: u32 },
        /// Chooses other founders, as long as none are recorded.
        Reform { group: String, incarnation: u64 },
        /// Records the replicas that the founders have made: the exact first members.
        Found { group: String, incarnation: u64, replicas: Vec<(String, u64, u64)> },
        /// The group has a leader. Idempotent.
        SetRunning { group: String, incarnation: u64 },
        RemoveGroup { group: String },
        /// The group goes on with what survives of it. Idempotent.
        Recover { group: String, recovery: Recovery },
        /// The node holds nothing more of these removed groups. Idempotent.
        CleanedUp { node: String, groups: Vec<(String, u64)> },
    }

    /// What a node says of itself.
    pub(crate) struct Registration {
        pub(crate) node: String,
        pub(crate) node_id: u64,
        /// The starts that the directory remembers, by boot number, this one the last.
        pub(crate) starts: Vec<(u64, u64)>,
        pub(crate) start: u64,
        pub(crate) zone: String,
        pub(crate) address: String,
        pub(crate) attributes: BTreeMap<String, String>,
        /// Whether it may take over the name of an unreachable node at once.
        pub(crate) replace: bool,
    }

    /// What a command answers; `Done` with the log index at which it is true.
    #[derive(Eq)]
    pub(crate) enum Reply {
        Done { index: u64 },
        Refused(Refusal),
    }

    /// Why nothing was changed.
    #[derive(Eq)]
    pub(crate) enum Refusal {
        /// The data directory is older than what the node has registered.
        RolledBack { given: u64, registered: u64 },
        /// Another memory took this name over.
        Fenced,
        /// The node was removed with this memory.
        Removed,
        /// Another memory runs under this name.
        NameInUse { node_id: u64, address: String },
        /// Another memory under this name is unreachable, and not purged yet.
        WaitsForPurge { node_id: u64, since: u64 },
        NoNodes,
        NodeNotFound,
        NodeInUse,
        AlreadyDraining,
        AlreadyActive,
        /// It is dead, and is active again when it returns.
        NodeDead,
        /// No other active node answers: nobody could take its replicas.
        LastNode,
        GroupExists,
        CleanupOngoing { pending: Vec<String> },
        GroupNotFound,
        /// The step was decided for a state that is no more.
        Outdated,
    }

    /// What is read linearizably.
    pub(crate) enum Query {
        /// Whether a replica of this group's incarnation has a place in the world.
        Incarnation { group: String },
        /// Whether the last command that changed anything is known to whoever asks.
        ChangedAt,
    }

    /// What a query answers.
    #[derive(Eq)]
    pub(crate) enum Answer {
        /// The group's incarnation, or `None`: there is no such group, and all older incarnations are gone but for replicas
        /// that are `spared`: they are to be made ones of this incarnation.
        Incarnation { current: Option<u64>, spared: Vec<u64>, index: u64 },
        ChangedAt(u64),
    }

    /// What changed since an index: how a copy follows.
    pub(crate) struct Delta {
        changed_at: u64,
        horizon: u64,
        /// Whether everything is here, and what is not is gone.
        whole: bool,
        nodes: BTreeMap<String, Arc<Node>>,
        groups: BTreeMap<String, Arc<Group>>,
        removed: BTreeMap<String, Arc<RemovedGroup>>,
        forgotten: VecDeque<(u64, Forgotten)>,
    }
}

impl Value for Cluster {
    type Command = Command;
    type Reply = Reply;
    type Query = Query;
    type Answer = Answer;

    /// Without a context there is no index, and without an index no incarnation.
    fn command(&mut self, command: Command) -> Reply {
        let context = Context::new(Default::default(), self.changed_at + 1, None);
        self.command_in(&context, command)
    }

    fn query(&self, query: Query) -> Answer {
        match query {
            Query::Incarnation { group } => Answer::Incarnation {
                current: self.groups.get(&group).map(|group| group.incarnation),
                spared: self.groups.get(&group).map(|group| group.spared()).unwrap_or_default(),
                index: self.changed_at,
            },
            Query::ChangedAt => Answer::ChangedAt(self.changed_at),
        }
    }

    fn command_in(&mut self, context: &Context<'_>, command: Command) -> Reply {
        let index = context.index();
        let now = context.log_time().as_millis();
        let result = match command {
            Command::Register(registration) => self.register(index, now, registration),
            Command::SetReachable { node, node_id, reachable } => {
                self.set_reachable(index, now, &node, node_id, reachable)
            }
            Command::Purge { node, node_id } => self.purge(index, now, &node, node_id),
            Command::Drain { node } => self.drain(index, now, &node),
            Command::ReportDrain { node, node_id, replicas, leaderships } => {
                self.report_drain(index, now, &node, node_id, replicas, leaderships)
            }
            Command::Activate { node } => self.activate(index, now, &node),
            Command::RemoveNode { node } => self.remove_node(index, &node),
            Command::AddGroup { group, type_name, replicas } => self.add_group(index, group, type_name, replicas),
            Command::Reform { group, incarnation } => self.reform(index, &group, incarnation),
            Command::Found { group, incarnation, replicas } => self.found(index, &group, incarnation, &replicas),
            Command::SetRunning { group, incarnation } => self.set_running(index, &group, incarnation),
            Command::RemoveGroup { group } => self.remove_group(index, &group),
            Command::Recover { group, recovery } => self.recover(index, &group, recovery),
            Command::CleanedUp { node, groups } => self.cleaned_up(index, &node, &groups),
        };
        match result {
            Ok(()) => Reply::Done { index: self.changed_at },
            Err(refusal) => Reply::Refused(refusal),
        }
    }
}

/// Reading.
impl Cluster {
    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).map(Arc::as_ref)
    }

    pub(crate) fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name).map(Arc::as_ref)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.nodes.iter().map(|(name, node)| (name, node.as_ref()))
    }

    /// Whether the nodes are the same, in the same phases, as in another copy; how far a drain is makes no difference.
    pub(crate) fn has_same_nodes(&self, other: &Self) -> bool {
        let same = |(a, b): (&Arc<Node>, &Arc<Node>)| {
            let rest = |node: &Node| Node { drain: None, changed_at: 0, ..node.clone() };
            Arc::ptr_eq(a, b) || a == b || rest(a) == rest(b)
        };
        self.nodes.keys().eq(other.nodes.keys()) && self.nodes.values().zip(other.nodes.values()).all(same)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = (&String, &Group)> {
        self.groups.iter().map(|(name, group)| (name, group.as_ref()))
    }

    /// Groups that have no leader yet, and never had one. Those that wait longest come first: by name, one could wait for
    /// as long as others are added.
    pub(crate) fn new_groups(&self) -> Vec<(&String, &Group)> {
        let is_new = |group: &Group| matches!(group.phase, GroupPhase::Forming { .. } | GroupPhase::Founded { .. });
        let mut groups: Vec<_> = self.groups().filter(|(_, group)| is_new(group)).collect();
        groups.sort_by_key(|(_, group)| group.incarnation);
        groups
    }

    /// Groups of which something has changed since this index.
    pub(crate) fn groups_since(&self, index: u64) -> impl Iterator<Item = (&String, &Group)> {
        self.groups().filter(move |(_, group)| group.changed_at > index)
    }

    pub(crate) fn removed(&self) -> impl Iterator<Item = (&String, &RemovedGroup)> {
        self.removed.iter().map(|(name, group)| (name, group.as_ref()))
    }

    /// Where a group's replicas belong, the preferred leader first: unreachable nodes keep their places
    /// until they are dead.
    pub(crate) fn places(&self, group: &str, replicas: u32) -> Vec<&str> {
        let active = self.nodes().filter(|(_, node)| node.phase == NodePhase::Active);
        let active = active.map(|(name, node)| (name.as_str(), node.zone.as_str()));
        placement::place(group, active, replicas as usize)
    }

    /// Which nodes vote in the cluster group: at most `most` (3, 5 or 7), spread over zones. An even number
    /// would tolerate no more failures than the odd one below it; two nodes both vote, so that either has all.
    pub(crate) fn voters(&self, most: u32) -> Vec<&str> {
        let active = self.nodes.values().filter(|node| node.phase == NodePhase::Active);
        self.places(CLUSTER_GROUP, voter_count(active.count(), most))
    }

    /// What changed since `since`; everything when it is too long ago, `None` when nothing did.
    pub(crate) fn delta(&self, since: u64) -> Option<Delta> {
        if since >= self.changed_at {
            return None;
        }
        let whole = since < self.horizon || since == 0;
        let since = if whole { 0 } else { since };
        Some(Delta {
            changed_at: self.changed_at,
            horizon: self.horizon,
            whole,
            nodes: changed(&self.nodes, |node| node.changed_at > since),
            groups: changed(&self.groups, |group| group.changed_at > since),
            removed: changed(&self.removed, |group| group.changed_at > since),
            forgotten: self.forgotten.iter().filter(|(at, _)| *at > since).cloned().collect(),
        })
    }

    /// Brings a copy forward. A delta that is not newer changes nothing.
    pub(crate) fn follow(&mut self, delta: Delta) {
        if delta.changed_at <= self.changed_at {
            return;
        }
        if delta.whole {
            *self = Self::default();
        }
        self.changed_at = delta.changed_at;
        for (at, forgotten) in delta.forgotten {
            self.erase(&forgotten);
            self.forgotten.push_back((at, forgotten));
        }
        self.nodes.extend(delta.nodes);
        self.groups.extend(delta.groups);
        self.removed.extend(delta.removed);
        self.bound_forgotten();
        self.horizon = self.horizon.max(delta.horizon);
    }
}

impl Group {
    /// Replicas of earlier incarnations that are to become ones of this.
    fn spared(&self) -> Vec<u64> {
        let survivors = self.recovery.iter().flat_map(|recovery| &recovery.survivors);
        survivors.map(|survivor| survivor.seat.replica).collect()
    }
}

/// How many of `nodes` vote in the cluster group when at most `most` may.
pub(crate) fn voter_count(nodes: usize, most: u32) -> u32 {
    let count = u32::try_from(nodes).unwrap_or(u32::MAX).min(most);
    if count > 2 && count % 2 == 0 { count - 1 } else { count }
}

fn changed<T>(records: &BTreeMap<String, Arc<T>>, is_changed: impl Fn(&T) -> bool) -> BTreeMap<String, Arc<T>> {
    let changed = records.iter().filter(|(_, record)| is_changed(record));
    changed.map(|(name, record)| (name.clone(), record.clone())).collect()
}

/// Forgetting.
impl Cluster {
    fn forget(&mut self, index: u64, forgotten: Forgotten) {
        self.erase(&forgotten);
        self.forgotten.push_back((index, forgotten));
        self.changed_at = index;
        self.bound_forgotten();
    }

    fn erase(&mut self, forgotten: &Forgotten) {
        match forgotten {
            Forgotten::Node(name) => drop(self.nodes.remove(name)),
            Forgotten::Group(name) => drop(self.groups.remove(name)),
            Forgotten::RemovedGroup(name) => drop(self.removed.remove(name)),
        }
    }

    fn bound_forgotten(&mut self) {
        while self.forgotten.len() > MAX_FORGOTTEN {
            if let Some((at, _)) = self.forgotten.pop_front() {
                self.horizon = at;
            }
        }
    }
}

/// Removed memories that are remembered.
const MAX_GONE: usize = 16_384;
/// A copy that is behind by more removals than this is sent everything.
const MAX_FORGOTTEN: usize = 1_024;
#[cfg(test)]
mod tests;
