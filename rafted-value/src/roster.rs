//! What the leader knows of the members' programs, so that no member ever finds a command in its log that it cannot
//! read.
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

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::error::NotHappened;
use crate::peers::Peers;
use crate::rpc::{Answer, RequestBody};

/// How long the members may take to say what they read.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long what they said is not asked again.
const MAX_AGE: Duration = Duration::from_secs(1);

/// What the members said when they were last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Round {
    /// By the own monotonic clock, before they were asked.
    asked_at: Duration,
    /// The name of each other member, and the newest version that it reads, if it answered.
    others: Vec<(String, Option<u32>)>,
}

/// Asks the members, and judges commands.
pub(crate) struct Roster {
    peers: Peers,
    latest: Option<Round>,
}

impl Roster {
    pub(crate) fn new(peers: Peers) -> Self {
        Self { peers, latest: None }
    }

    /// Whether a command of this version may be proposed; `in_use` is the newest one that the state has seen, if any.
    /// Asks the members where that is not known, which takes a round trip, at most once in a while.
    pub(crate) async fn admit(&mut self, version: u32, in_use: Option<u32>, now: Duration) -> Result<(), NotHappened> {
        if in_use.is_some_and(|in_use| version <= in_use) {
            return Ok(());
        }
        let round = match self.latest.take() {
            Some(round) if now.saturating_sub(round.asked_at) < MAX_AGE => round,
            _ => self.ask(now).await,
        };
        let verdict = judge(&self.peers.group, version, in_use, &round.others);
        self.latest = Some(round);
        verdict
    }

    async fn ask(&self, asked_at: Duration) -> Round {
        let ask = |(id, member)| async move {
            let answer = self.peers.ask(id, &member, RequestBody::Versions, PATIENCE).await;
            let newest = match answer {
                Some(Answer::Versions { newest }) => Some(newest),
                _ => None,
            };
            (member.name, newest)
        };
        let asking: FuturesUnordered<_> = self.peers.others().into_iter().map(ask).collect();
        let mut others: Vec<_> = asking.collect().await;
        others.sort();
        Round { asked_at, others }
    }
}

/// The rule of the header. The own program reads the version: that was judged before.
fn judge(group: &str, version: u32, in_use: Option<u32>, others: &[(String, Option<u32>)]) -> Result<(), NotHappened> {
    let lags = |newest: &Option<u32>| match newest {
        Some(newest) => *newest < version,
        None => in_use.is_some(),
    };
    let lagging: Vec<String> = others.iter().filter(|(_, newest)| lags(newest)).map(|(name, _)| name.clone()).collect();
    if lagging.is_empty() {
        return Ok(());
    }
    let everyone: Option<Vec<u32>> = others.iter().map(|(_, newest)| *newest).collect();
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
        type Said<'a> = &'a [(&'a str, Option<u32>)];
        type Row<'a> = (&'a str, Said<'a>, Option<u32>, Result<(), (Option<u32>, &'a str)>);
        let table: [Row<'_>; 6] = [
            ("everyone reads it", &everyone, Some(1), Ok(())),
            ("one member does not", &one_lags, Some(1), Err((Some(1), "n2"))),
            ("one member does not say", &one_is_down, Some(1), Err((Some(1), "n2"))),
            ("a new group, one does not say", &one_is_down, None, Ok(())),
            ("a new group, one does not read it", &one_lags, None, Err((Some(1), "n2"))),
            ("a group of one", &[], Some(1), Ok(())),
        ];
        for (name, others, in_use, expected) in table {
            let others: Vec<_> = others.iter().map(|(name, newest)| ((*name).to_owned(), *newest)).collect();
            let expected = expected.map_err(|(readable, lagging)| NotHappened::VersionNotReadable {
                group: "g".into(),
                version: 2,
                readable,
                lagging: vec![lagging.to_owned()],
            });
            assert_eq!(judge("g", 2, in_use, &others), expected, "{name}");
        }
    }
}
