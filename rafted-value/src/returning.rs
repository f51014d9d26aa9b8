//! Tells the other members of a lone group of this start of the directory, and, where the replica has been here before,
//! decides by what they say whether it takes part: see `verdict.rs`.
//!
//! ```text
//! made by this start:  takes part ----------------------------.
//! was here before:     waits --> asks all members, again and --+--> tells every member of its start, also those that come
//!                      again --> enough of them, no evidence --'    later or are back later
//!                                evidence, also later -----------> set aside, for good
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::client::Route;
use crate::group::{Part, UntypedReplica};
use crate::rpc::{Answer, RequestBody, Seen};
use crate::status::{Member, Members};
use crate::transport::Transport;
use crate::verdict::{Evidence, Told, Verdict, Word, judge};

/// One round of questions. A leader asks its majority meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Between rounds while it waits; it is of no use meanwhile.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Between rounds once it takes part, for members that were not there.
const MAX_IDLE_PAUSE: Duration = Duration::from_secs(10);

pub(crate) struct Returning {
    pub(crate) replica: UntypedReplica,
    pub(crate) told: Told,
    pub(crate) route: Arc<dyn Route>,
    pub(crate) transport: Arc<dyn Transport>,
}

/// Whom it has met since it started.
#[derive(Default)]
struct Acquaintances {
    /// Nodes that know of this start.
    heard: BTreeSet<String>,
    /// The newest members that anybody knows; its own log may name others.
    members: Members,
}

impl Returning {
    /// Ends when the replica is set aside or has stopped.
    pub(crate) async fn run(self) {
        // As long as it waits, none come.
        let entries = self.replica.stored_entries();
        let mut acquainted = Acquaintances::default();
        let mut pause = FIRST_PAUSE;
        let (mut changes, mut introduced) = (self.replica.status_changes(), self.replica.introduced());
        // Raft tells of the members in the log a moment after its start.
        while self.replica.has_log() && self.replica.status().members.position.is_none() {
            if !changes.changed().await {
                return;
            }
        }
        loop {
            if let Some(evidence) = self.round(entries, &mut acquainted).await {
                return self.set_aside(&evidence).await;
            }
            let waits = self.replica.part() == Part::Waits;
            if !waits && self.whom_to_ask(&acquainted).is_empty() {
                // Somebody may be added.
                pause = FIRST_PAUSE;
                if !changes.changed().await {
                    return;
                }
                continue;
            }
            let rest = tokio::time::sleep(pause.mul_f64(crate::runtime::random_range(0.5..1.0)));
            tokio::select! {
                biased;
                met = introduced.changed(), if waits => if met.is_err() { return },
                is_running = changes.changed(), if waits => if !is_running { return },
                () = rest => {}
            }
            pause = (pause * 2).min(if waits { MAX_PAUSE } else { MAX_IDLE_PAUSE });
        }
    }

    async fn round(&self, entries: u64, acquainted: &mut Acquaintances) -> Option<Evidence> {
        let waits = self.replica.part() == Part::Waits;
        let asked = self.whom_to_ask(acquainted).into_iter();
        let mut answers: FuturesUnordered<_> = asked.map(|node| self.ask(node)).collect();
        let end = Instant::now() + PATIENCE;
        let mut words = Vec::new();
        while let Ok(Some(answer)) = tokio::time::timeout_at(end, answers.next()).await {
            let Some(word) = answer else { continue };
            acquainted.heard.insert(word.node.clone());
            if word.members.position > acquainted.members.position {
                acquainted.members = word.members.clone();
            }
            words.push(word);
            match self.judge(entries, &words) {
                Verdict::RolledBack(evidence) => return Some(evidence),
                // A leader knows the most; as long as it may still answer, it is waited for.
                Verdict::TakesPart if words.iter().any(|word| word.entries.is_some()) => break,
                Verdict::TakesPart | Verdict::Waits => {}
            }
        }
        if waits && self.judge(entries, &words) == Verdict::TakesPart {
            self.replica.take_part();
        }
        None
    }

    fn judge(&self, entries: u64, words: &[Word]) -> Verdict {
        // Once it takes part, it gets entries while it asks.
        let entries = if self.replica.part() == Part::Waits { entries } else { u64::MAX };
        let status = self.replica.status();
        judge(status.replica, entries, &status.members, &self.told, words)
    }

    /// The nodes of all other members that it knows of; once it takes part, of those that have not said anything yet.
    fn whom_to_ask(&self, acquainted: &Acquaintances) -> BTreeSet<String> {
        let status = self.replica.status();
        let others = status.members.replicas.iter().chain(&acquainted.members.replicas);
        let others = others.filter(|(id, _)| **id != status.replica);
        let mut nodes: BTreeSet<String> = others.map(|(_, member)| self.learn(member)).collect();
        if status.members.position.is_none() {
            let (Told::Founders(told) | Told::Sponsors(told)) = &self.told;
            nodes.extend(told.iter().cloned());
        }
        let leader = self.replica.introduced().borrow().clone();
        nodes.extend(leader.map(|leader| self.learn(&leader)));
        let waits = self.replica.part() == Part::Waits;
        nodes.retain(|node| node != self.route.here() && (waits || !acquainted.heard.contains(node)));
        nodes
    }

    fn learn(&self, member: &Member) -> String {
        self.route.learn(member);
        member.name.clone()
    }

    /// Tells a node of this start. What it says counts once it has written that down: before, it may have known of a
    /// later one, and the answer been lost.
    async fn ask(&self, node: String) -> Option<Word> {
        let (own, start) = self.replica.this_start();
        let mut after = None;
        loop {
            let seen = self.call(&node, RequestBody::Returned { node: own, start, after }).await?;
            let word = |knows_more| Word {
                from: seen.replica,
                node: node.clone(),
                knows_more,
                members: seen.members.clone(),
                entries: seen.entries,
            };
            match seen.start {
                Some(known) if known == start => return Some(word(false)),
                Some(known) if self.replica.lacks_start(known) => return Some(word(true)),
                // Another group's replica may be telling it the same.
                known => after = known,
            }
        }
    }

    async fn call(&self, node: &str, body: RequestBody) -> Option<Seen> {
        let answer = self.transport.call(node, self.replica.sender().request(None, body), PATIENCE).await.ok()?;
        match Answer::decode(answer) {
            Ok(Answer::Seen(seen)) => Some(seen),
            _ => None,
        }
    }

    async fn set_aside(&self, evidence: &Evidence) {
        let group = &self.replica.spec().group;
        match evidence {
            Evidence::Start { node } => {
                tracing::error!(group, node, "it knows of a start of this directory that is not in it");
            }
            Evidence::Entries { node, said, found } => {
                tracing::error!(group, node, said, found, "the leader was told of more entries than are here");
            }
        }
        tracing::error!(group, "this directory was rolled back to an older copy; wipe it, and the node joins as new");
        if let Err(error) = self.replica.set_aside().await {
            tracing::error!(group, %error, "that this directory was rolled back could not be written down");
        }
    }
}
