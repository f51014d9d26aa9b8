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
use crate::status::{Member, Members, ReplicaId};
use crate::transport::Transport;
use crate::verdict::{Evidence, Found, Told, Verdict, Word, judge};

/// One round of questions.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the others are waited for once enough have answered: any of them may know more.
const GRACE: Duration = Duration::from_millis(200);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Between rounds while it waits; it is of no use meanwhile.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Between rounds once it takes part, for members that were not there.
const MAX_IDLE_PAUSE: Duration = Duration::from_secs(30);

pub(crate) struct Returning {
    pub(crate) replica: UntypedReplica,
    pub(crate) me: Member,
    pub(crate) told: Told,
    pub(crate) route: Arc<dyn Route>,
    pub(crate) transport: Arc<dyn Transport>,
}

/// Whom it has met since it started.
#[derive(Default)]
struct Acquaintances {
    /// Replicas that know of this start.
    heard: BTreeSet<ReplicaId>,
    /// Their nodes.
    heard_at: BTreeSet<String>,
    /// The newest members that anybody knows; its own log may name others.
    members: Members,
}

impl Returning {
    /// Ends when the replica is set aside or has stopped.
    pub(crate) async fn run(self) {
        if !self.replica.knows_members().await {
            return;
        }
        // As long as it waits, nothing is added.
        let found = self.replica.found();
        let mut acquainted = Acquaintances::default();
        let mut pause = FIRST_PAUSE;
        let (mut changes, mut met) = (self.replica.status_changes(), self.replica.met());
        let mut rolled_back = self.replica.rolled_back();
        loop {
            if let Some(evidence) = self.round(&found, &mut acquainted).await {
                return self.set_aside(&evidence).await;
            }
            let waits = self.replica.part() == Part::Waits;
            // Else until somebody is added, or says where it is.
            let is_needed = waits || !self.whom_to_ask(&acquainted).is_empty();
            let rest = pause.mul_f64(crate::runtime::random_range(0.5..1.0));
            tokio::select! {
                biased;
                // Another group's replica has learned it.
                () = is_told(&mut rolled_back) => return self.stop().await,
                met = met.changed() => if met.is_err() { return },
                is_running = changes.changed() => if !is_running { return },
                () = tokio::time::sleep(rest), if is_needed => {}
            }
            let longest = if waits { MAX_PAUSE } else { MAX_IDLE_PAUSE };
            pause = if is_needed { (pause * 2).min(longest) } else { FIRST_PAUSE };
        }
    }

    async fn round(&self, found: &Found, acquainted: &mut Acquaintances) -> Option<Evidence> {
        let waits = self.replica.part() == Part::Waits;
        let asked = self.whom_to_ask(acquainted).into_iter();
        let mut answers: FuturesUnordered<_> = asked.map(|node| self.ask(node)).collect();
        let mut end = Instant::now() + PATIENCE;
        let mut words = Vec::new();
        while let Ok(Some(answer)) = tokio::time::timeout_at(end, answers.next()).await {
            let Some(word) = answer else { continue };
            if word.members.position > acquainted.members.position {
                acquainted.members = word.members.clone();
            }
            if !word.knows_more {
                acquainted.heard.insert(word.from);
                acquainted.heard_at.insert(word.node.clone());
            }
            words.push(word);
            match self.judge(found, &words) {
                Verdict::RolledBack(evidence) => return Some(evidence),
                Verdict::TakesPart => end = end.min(Instant::now() + GRACE),
                Verdict::Waits => {}
            }
        }
        if waits && self.judge(found, &words) == Verdict::TakesPart {
            self.replica.take_part();
        }
        None
    }

    fn judge(&self, found: &Found, words: &[Word]) -> Verdict {
        // Once it takes part, it gets entries while it asks.
        let entries = if self.replica.part() == Part::Waits { found.entries } else { u64::MAX };
        judge(&Found { entries, ..found.clone() }, &self.told, words)
    }

    /// The nodes of all other members that it knows of, of those of whom it was told and of those that it has met; once it
    /// takes part, without those that have heard of this start.
    fn whom_to_ask(&self, acquainted: &Acquaintances) -> BTreeSet<String> {
        let status = self.replica.status();
        let waits = self.replica.part() == Part::Waits;
        let members = status.members.replicas.iter().chain(&acquainted.members.replicas);
        let members = members.filter(|(id, _)| **id != status.replica && (waits || !acquainted.heard.contains(id)));
        let mut nodes: BTreeSet<String> = members.map(|(_, member)| self.learn(member)).collect();
        let (Told::Founders(told) | Told::Sponsors(told)) = &self.told;
        let met = self.replica.met().borrow().clone();
        let others = told.iter().cloned().chain(met.values().map(|member| self.learn(member)));
        nodes.extend(others.filter(|node| waits || !acquainted.heard_at.contains(node)));
        nodes.remove(self.route.here());
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
        let body = |after| RequestBody::Returned { node: own, start, after, asker: self.me.clone() };
        let mut after = None;
        loop {
            let seen = self.call(&node, body(after)).await?;
            let word = |knows_more| Word {
                from: seen.replica,
                node: node.clone(),
                knows_more,
                members: seen.members.clone(),
                told: seen.told,
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
        self.stop().await;
    }

    async fn stop(&self) {
        let group = &self.replica.spec().group;
        if let Err(error) = self.replica.set_aside().await {
            tracing::error!(group, %error, "that this directory was rolled back could not be written down");
        }
    }
}

/// Returns once it is so, at once if it is.
async fn is_told(watched: &mut tokio::sync::watch::Receiver<bool>) {
    // The sender lives as long as the store, which the replica holds.
    let _ = watched.wait_for(|told| *told).await.map(drop);
}
