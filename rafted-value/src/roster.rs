//! What the leader knows of the members' programs and clocks.
//!
//! No member ever finds a command in its log that it cannot read:
//!
//! ```text
//! a command of a version that is in use already ----------------> proposed
//! of a newer one: the members are asked which they read
//!   every member, voter or learner, says that it reads it ------> proposed; from then on the version is in use
//!   the group has no command yet, and no member says no --------> proposed (a member that is down holds up no new group)
//!   else -------------------------------------------------------> refused: it did not happen; who lags is named
//! ```
//!
//! "In use" is state: the newest version of which a command was applied, so that a member which is down does not hold
//! up what everybody reads. A member may be given an older program after it was asked: it then refuses the entries that
//! it cannot read (`readable.rs`), and neither stops nor differs.
//!
//! And no wrong clock moves the group's time: a leader's stamps follow the middle one of the clocks of a majority.
//!
//! The members are asked in rounds, by a task of their own: nobody waits for one that does not answer, but a command of a
//! version that it may not read (`admission.rs`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;

use crate::error::NotHappened;
use crate::machine::Shared;
use crate::peers::Peers;
use crate::rpc::{Answer, RequestBody};
use crate::runtime::watch;
use crate::status::{Member, ReplicaId};
use crate::value::LogTime;

/// How long the members may take to answer.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long the others may take once a majority has said the time.
const GRACE: Duration = Duration::from_millis(20);
/// How long what they said of their programs lets commands pass.
const MAX_AGE_OF_VERSIONS: Duration = Duration::from_secs(1);
/// How long what they said of their programs refuses commands, while they are asked again.
const MAX_AGE_OF_REFUSALS: Duration = Duration::from_secs(10);
/// How long what they said of their clocks is used.
const MAX_AGE_OF_CLOCKS: Duration = Duration::from_secs(10);
/// From when on they are asked for their clocks again, beside what goes on.
const OLD_CLOCKS: Duration = Duration::from_secs(5);
/// A clock that is further off than this is worth a warning.
const WARN_OFF: Duration = Duration::from_secs(10);

/// What a member said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    /// The newest version that its program reads.
    newest: u32,
    /// Its wall time when this node's monotonic clock stood at zero, in milliseconds: it may lie before the epoch.
    wall_at_zero: i64,
}

/// What the other members said when they were last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Round {
    /// By the own monotonic clock, before they were asked.
    asked_at: Duration,
    /// The name of each other member, and what it said, if it answered.
    others: Vec<(String, Option<Said>)>,
}

/// The latest rounds.
#[derive(Debug, Clone, Default)]
struct Heard {
    /// All were waited for.
    complete: Option<Round>,
    /// Some that are slow may be missing.
    clocks: Option<Round>,
}

/// Judges commands, and tells the time, by what the members say. Clones share what they say.
#[derive(Clone)]
pub(crate) struct Roster {
    shared: Arc<Shared>,
    heard: watch::Receiver<Heard>,
    wanted: Arc<Notify>,
    is_off: bool,
}

/// Asks the members.
pub(crate) struct Asking {
    peers: Peers,
    shared: Arc<Shared>,
    heard: watch::Sender<Heard>,
    wanted: Arc<Notify>,
}

/// A roster, and what must run for it.
pub(crate) fn new(peers: Peers, shared: Arc<Shared>) -> (Roster, Asking) {
    let (heard, wanted) = (watch::Sender::new(Heard::default()), Arc::new(Notify::new()));
    let roster = Roster { shared: shared.clone(), heard: heard.subscribe(), wanted: wanted.clone(), is_off: false };
    (roster, Asking { peers, shared, heard, wanted })
}

impl Roster {
    /// Whether a command of this version may be proposed; `in_use` is the newest one that the state has seen, if any.
    /// `None` if the members must be asked, which they are from here on.
    pub(crate) fn judge(&self, version: u32, in_use: Option<u32>) -> Option<Result<(), NotHappened>> {
        if in_use.is_some_and(|in_use| version <= in_use) {
            return Some(Ok(()));
        }
        let round = self.heard.borrow().complete.clone();
        let age = |round: &Round| self.shared.monotonic().saturating_sub(round.asked_at);
        let judged = round.map(|round| (age(&round), judge(self.shared.group(), version, in_use, &round.others)));
        let is_young = judged.as_ref().is_some_and(|(age, _)| *age < MAX_AGE_OF_VERSIONS);
        if !is_young {
            self.wanted.notify_one();
        }
        let holds = |age: Duration, judged: &Result<_, _>| is_young || (judged.is_err() && age < MAX_AGE_OF_REFUSALS);
        judged.filter(|(age, judged)| holds(*age, judged)).map(|(_, judged)| judged)
    }

    /// As [`Roster::judge`]; waits until the members have been asked.
    pub(crate) async fn admit(&mut self, version: u32, in_use: Option<u32>) -> Result<(), NotHappened> {
        loop {
            if let Some(judged) = self.judge(version, in_use) {
                return judged;
            }
            if self.heard.changed().await.is_err() {
                let reason = "the replica was stopped".to_owned();
                return Err(NotHappened::Stopped { group: self.shared.group().to_owned(), reason });
            }
        }
    }

    /// The time by the clocks of a majority; `None` while no majority says its own. Waits for a majority's answers where
    /// none were heard for long.
    pub(crate) async fn time(&mut self) -> Option<LogTime> {
        let now = self.shared.monotonic();
        let age = |round: &Round| now.saturating_sub(round.asked_at);
        let latest = self.heard.borrow().clocks.clone();
        if latest.as_ref().is_none_or(|round| age(round) >= OLD_CLOCKS) {
            self.wanted.notify_one();
        }
        let round = match latest.filter(|round| age(round) < MAX_AGE_OF_CLOCKS) {
            Some(round) => round,
            None => {
                let is_young = |round: &Round| age(round) < MAX_AGE_OF_CLOCKS;
                let heard = self.heard.wait_for(|heard| heard.clocks.as_ref().is_some_and(is_young)).await.ok()?;
                heard.clocks.clone()?
            }
        };
        let (zero, own) = (millis(self.shared.monotonic()), self.shared.wall());
        let said = round.others.iter().map(|(_, said)| said.map(|said| said.wall_at_zero.saturating_add(zero)));
        let agreed = middle(own, said);
        self.warn(own, agreed);
        agreed
    }

    fn warn(&mut self, own: LogTime, agreed: Option<LogTime>) {
        let Some(agreed) = agreed else { return };
        let off = Duration::from_millis(own.as_millis().abs_diff(agreed.as_millis()));
        let is_off = off > WARN_OFF;
        if is_off && !self.is_off {
            let group = self.shared.group();
            tracing::warn!(%group, ?off, "this node's clock is far from its peers'; log time follows theirs");
        }
        self.is_off = is_off;
    }
}

impl Asking {
    /// Asks a round whenever one is wanted; runs until it is dropped.
    pub(crate) async fn run(self) {
        loop {
            self.wanted.notified().await;
            self.ask().await;
        }
    }

    async fn ask(&self) {
        let asked_at = self.shared.monotonic();
        let members = self.peers.others();
        // With this member, a majority of all.
        let needed = members.len().div_ceil(2);
        let others = members.iter().map(|(_, member)| (member.name.clone(), None)).collect();
        let mut round = Round { asked_at, others };
        let asking = members.iter().enumerate().map(|(at, (id, member))| self.ask_one(at, *id, member));
        let mut asking: FuturesUnordered<_> = asking.collect();
        let mut patience = Box::pin(tokio::time::sleep(PATIENCE));
        let mut grace = Box::pin(tokio::time::sleep(PATIENCE));
        let (mut answers, mut is_waited_for) = (0, false);
        loop {
            tokio::select! {
                biased;
                answer = asking.next() => match answer {
                    None => break,
                    Some((_, None)) => {}
                    Some((at, said)) => {
                        round.others[at].1 = said;
                        answers += 1;
                        if answers == needed {
                            grace = Box::pin(tokio::time::sleep(GRACE));
                            is_waited_for = true;
                        }
                    }
                },
                () = &mut patience => break,
                () = &mut grace, if is_waited_for => {
                    is_waited_for = false;
                    self.heard.send_modify(|heard| heard.clocks = Some(round.clone()));
                }
            }
        }
        self.heard.send_replace(Heard { complete: Some(round.clone()), clocks: Some(round) });
    }

    async fn ask_one(&self, at: usize, id: ReplicaId, member: &Member) -> (usize, Option<Said>) {
        let before = self.shared.monotonic();
        let answer = self.peers.ask(id, member, RequestBody::Facts, PATIENCE).await;
        let middle = (before + self.shared.monotonic()) / 2;
        let said = match answer {
            Some(Answer::Facts { newest, wall }) => {
                let wall = i64::try_from(wall.as_millis()).unwrap_or(i64::MAX);
                Some(Said { newest, wall_at_zero: wall.saturating_sub(millis(middle)) })
            }
            _ => None,
        };
        (at, said)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The middle one of the clocks, if a majority says its own; of two middle ones the earlier, since time cannot go back.
fn middle(own: LogTime, others: impl ExactSizeIterator<Item = Option<i64>>) -> Option<LogTime> {
    let members = others.len() + 1;
    let own = i64::try_from(own.as_millis()).unwrap_or(i64::MAX);
    let mut clocks: Vec<i64> = others.flatten().chain([own]).collect();
    if clocks.len() * 2 <= members {
        return None;
    }
    clocks.sort_unstable();
    let middle = clocks.get((clocks.len() - 1) / 2)?;
    Some(LogTime::from_millis(u64::try_from(*middle).unwrap_or(0)))
}

/// The rule of the header. The own program reads the version: that was judged before.
fn judge(group: &str, version: u32, in_use: Option<u32>, others: &[(String, Option<Said>)]) -> Result<(), NotHappened> {
    let lags = |said: &Option<Said>| match said {
        Some(said) => said.newest < version,
        None => in_use.is_some(),
    };
    let lagging: Vec<String> = others.iter().filter(|(_, said)| lags(said)).map(|(name, _)| name.clone()).collect();
    if lagging.is_empty() {
        return Ok(());
    }
    let everyone: Option<Vec<u32>> = others.iter().map(|(_, said)| said.map(|said| said.newest)).collect();
    let readable = everyone.and_then(|newest| newest.into_iter().min()).max(in_use);
    Err(NotHappened::VersionNotReadable { group: group.to_owned(), version, readable, lagging })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_proposed_when_everyone_reads_it_or_it_is_in_use() {
        let everyone = [("n1", Some(2)), ("n2", Some(2))];
        let one_lags = [("n1", Some(2)), ("n2", Some(1))];
        let one_is_down = [("n1", Some(2)), ("n2", None)];
        type Newest<'a> = &'a [(&'a str, Option<u32>)];
        type Row<'a> = (&'a str, Newest<'a>, Option<u32>, Result<(), (Option<u32>, &'a str)>);
        let table: [Row<'_>; 6] = [
            ("everyone reads it", &everyone, Some(1), Ok(())),
            ("one member does not", &one_lags, Some(1), Err((Some(1), "n2"))),
            ("one member does not say", &one_is_down, Some(1), Err((Some(1), "n2"))),
            ("a new group, one does not say", &one_is_down, None, Ok(())),
            ("a new group, one does not read it", &one_lags, None, Err((Some(1), "n2"))),
            ("a group of one", &[], Some(1), Ok(())),
        ];
        for (name, others, in_use, expected) in table {
            let said = |newest: Option<u32>| newest.map(|newest| Said { newest, wall_at_zero: 0 });
            let others: Vec<_> = others.iter().map(|(name, newest)| ((*name).to_owned(), said(*newest))).collect();
            let expected = expected.map_err(|(readable, lagging)| NotHappened::VersionNotReadable {
                group: "g".into(),
                version: 2,
                readable,
                lagging: vec![lagging.to_owned()],
            });
            assert_eq!(judge("g", 2, in_use, &others), expected, "{name}");
        }
    }

    #[test]
    fn the_time_is_the_middle_clock_of_a_majority() {
        const HOUR: i64 = 3_600_000;
        let table = [
            ("all agree", 5 * HOUR, vec![Some(5 * HOUR), Some(5 * HOUR + 1)], Some(5 * HOUR)),
            ("the own clock is ahead", 9 * HOUR, vec![Some(5 * HOUR), Some(5 * HOUR + 1)], Some(5 * HOUR + 1)),
            ("the own clock is behind", HOUR, vec![Some(5 * HOUR), Some(5 * HOUR + 1)], Some(5 * HOUR)),
            ("another's is wrong", 5 * HOUR, vec![Some(-9 * HOUR), Some(5 * HOUR + 1)], Some(5 * HOUR)),
            ("two, of which one is ahead", 9 * HOUR, vec![Some(5 * HOUR), None], Some(5 * HOUR)),
            ("no majority says", 5 * HOUR, vec![None, None], None),
            ("a group of one", 5 * HOUR, vec![], Some(5 * HOUR)),
        ];
        for (name, own, others, expected) in table {
            let expected = expected.map(|millis| LogTime::from_millis(millis as u64));
            assert_eq!(middle(LogTime::from_millis(own as u64), others.into_iter()), expected, "{name}");
        }
    }
}
