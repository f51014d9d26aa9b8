//! What shards have in use, told to the quotas by who leads them; and the end of agents whose quota was deleted.
//!
//! ```text
//!   every look, for each led shard:  changed, or something pending?  --> count --> report --> what is pending now
//!   every sweep:                     what is pending for my shards?      deleted quotas that are gone everywhere?
//! ```
//!
//! A report is read from applied state, which is committed: also one of a leader that was deposed is true.

mod survey;

use std::collections::{BTreeMap, HashMap};
use std::future::IntoFuture as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raft_kv::{Keyspace, Kv, LedShard};
use rafted_value::Context;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::survey::Survey;
use crate::agent_state::{AGENTS_KEYSPACE, AgentCell, AgentCommand};
use crate::error::AgentError;
use crate::quota_group::Pending;
use crate::quotas::Quotas;

/// How often a node looks at its shards.
const LOOK: Duration = Duration::from_millis(250);

/// How often it asks what it was not told: reservations that nobody used, quotas that were deleted.
const SWEEP: Duration = Duration::from_secs(5);

/// Counting a shard may take one part in this many of the time.
const COUNTING_SHARE: u32 = 50;

/// Agents of deleted quotas that are ended at once, and per look.
const DROPS_AT_ONCE: usize = 32;
const DROPS_PER_LOOK: usize = 2_000;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Reports, until it is dropped.
pub(crate) struct QuotaReporter {
    kv: Kv,
    keyspace: Keyspace<AgentCell>,
    quotas: Quotas,
    /// By the names of their groups.
    shards: HashMap<String, Seen>,
    next_sweep: Instant,
}

/// What is known of a led shard.
#[derive(Debug, Default)]
struct Seen {
    /// The last reported index and counts.
    reported: Option<(u64, BTreeMap<String, u64>)>,
    pending: Pending,
    /// Reservations up to this one were reported as far as they are pending.
    known_reservation: Option<u64>,
    /// When it may be counted again.
    not_before: Option<Instant>,
}

impl QuotaReporter {
    pub(crate) fn new(kv: Kv, keyspace: Keyspace<AgentCell>, quotas: Quotas) -> Self {
        Self { kv, keyspace, quotas, shards: HashMap::new(), next_sweep: Instant::now() }
    }

    pub(crate) async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.quotas.release_idle(TIMEOUT).await;
            let led = self.kv.led_shards::<AgentCell>(AGENTS_KEYSPACE);
            self.shards.retain(|group, _| led.iter().any(|shard| shard.group() == group));
            let is_new = led.iter().any(|shard| !self.shards.contains_key(shard.group()));
            if !led.is_empty() && (is_new || Instant::now() >= self.next_sweep) {
                self.sweep(&led).await;
            }
            for shard in &led {
                self.look(shard).await;
            }
        }
    }

    async fn sweep(&mut self, led: &[LedShard<AgentCell>]) {
        let holders = led.iter().map(|shard| shard.group().to_owned()).collect();
        match self.quotas.pending(holders, TIMEOUT).await {
            Ok(pending) => {
                for (group, pending) in pending {
                    self.shards.entry(group).or_default().pending = pending;
                }
            }
            Err(error) => return tracing::debug!(%error, "the quotas did not say what is pending"),
        }
        if let Err(error) = self.forget_tombstones().await {
            tracing::debug!(%error, "deleted quotas were not forgotten");
        }
        self.next_sweep = Instant::now() + SWEEP;
    }

    /// Ends the tombstones of which every shard is clean.
    async fn forget_tombstones(&self) -> Result<(), AgentError> {
        let tombstones = self.quotas.tombstones(TIMEOUT).await?;
        if tombstones.is_empty() {
            return Ok(());
        }
        let shards = self.kv.shards(AGENTS_KEYSPACE).await?;
        for (incarnation, clean) in tombstones {
            if shards.iter().all(|shard| clean.contains(&shard.group)) {
                self.quotas.forget_tombstone(incarnation, TIMEOUT).await?;
            }
        }
        Ok(())
    }

    async fn look(&mut self, shard: &LedShard<AgentCell>) {
        let Some(seen) = self.shards.get_mut(shard.group()) else { return };
        if seen.not_before.is_some_and(|time| Instant::now() < time) {
            return;
        }
        if shard.read(|_, context| seen.waits_for_an_entry(context, wall_millis())).unwrap_or(false) {
            // One without effect. When it is refused, the next look tries again.
            let _ = shard.propose_tick(0).await;
        }
        let Some(accounts) = shard.accounts() else { return };
        if !seen.is_due(accounts.index, &accounts.counts) {
            return;
        }
        let started = Instant::now();
        let Some(survey) = shard.read(|shard, context| Survey::of(shard.iter(), context, seen)) else { return };
        seen.not_before = Some(started + started.elapsed() * COUNTING_SHARE);
        self.end_agents(&survey.doomed).await;
        let report = survey.report(shard.group());
        match self.quotas.report(report, TIMEOUT).await {
            Ok(pending) => {
                let Some(seen) = self.shards.get_mut(shard.group()) else { return };
                seen.pending = pending;
                seen.known_reservation = Some(survey.last_reservation);
                seen.reported = Some((survey.index, accounts.counts));
            }
            Err(error) => {
                tracing::debug!(group = shard.group(), %error, "a report was not delivered; the next one will")
            }
        }
    }

    /// Ends agents whose quota was deleted.
    async fn end_agents(&self, doomed: &[(String, u64)]) {
        for some in doomed.iter().take(DROPS_PER_LOOK).collect::<Vec<_>>().chunks(DROPS_AT_ONCE) {
            let mut drops = JoinSet::new();
            for (key, incarnation) in some {
                let command = AgentCommand::Drop { incarnation: *incarnation };
                drops.spawn(self.keyspace.command(key, command).timeout(TIMEOUT).into_future());
            }
            // Those that fail are found again by the next look.
            while drops.join_next().await.is_some() {}
        }
    }
}

impl Seen {
    /// Whether a report would say something new.
    fn is_due(&self, index: u64, counts: &BTreeMap<String, u64>) -> bool {
        match &self.reported {
            None => self.pending != Pending::default() || !counts.is_empty(),
            Some((reported, before)) => {
                let has_work = !self.pending.reservations.is_empty() || !self.pending.deleted.is_empty();
                counts != before || (has_work && *reported != index)
            }
        }
    }

    /// Whether only a further entry lets a report say something new: log time must pass places that nobody took,
    /// or the index a report before the quota was deleted.
    fn waits_for_an_entry(&self, context: &Context<'_>, wall: u64) -> bool {
        let mut use_bys = self.pending.reservations.iter().map(|(_, use_by)| *use_by);
        let passes =
            |use_by: u64| use_by.saturating_add(PAST_MILLIS) < wall && context.log_time().as_millis() <= use_by;
        let is_reported = self.reported.as_ref().is_some_and(|(index, _)| *index == context.index());
        use_bys.any(passes) || (!self.pending.deleted.is_empty() && is_reported)
    }
}

/// So far past its time a place is looked after: the shard's clock may be a little behind.
const PAST_MILLIS: u64 = 200;

fn wall_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
