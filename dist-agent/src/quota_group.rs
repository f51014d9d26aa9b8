//! The quotas of the whole cluster: limits, use and reservations, as the value of one group.
//!
//! ```text
//!   node that activates         this group                shard (its leader's reporter)
//!        |------ Grant --------->| reserves for the shard        |
//!        |<----- places ---------|                               |
//!        |------ stamped command, one per place --------------- >| takes it up to `use_by`
//!        |------ Release ------->| what it does not need         |
//!        |                       |<------------- Report ---------| use now, and of each reservation
//! ```
//!
//! At any moment `limit >= used + reserved`, and no shard takes a place that is not reserved for it. A place
//! nobody took comes back by a release, or by a report of the shard from a log time past `use_by`.
//!
//! A deleted quota leaves a tombstone for its incarnation. A shard whose log time is past every `use_by` of
//! that incarnation, and that holds none of its agents, says it is clean; when all are, the tombstone goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quota::{GrantError, Incarnation, Ledger, Put, Report, ReservationId};
use rafted_value::{Context, Value};

/// The group's name.
pub(crate) const GROUP_NAME: &str = "agents.quotas";

/// The type's name in the fleet.
pub(crate) const TYPE_NAME: &str = "agents.quotas";

/// How long places may be taken. After a crash of the node that asked for them they are away for as long.
pub(crate) const GRANT_LIFE: Duration = Duration::from_secs(5);

/// The most places of one grant.
pub(crate) const MAX_GRANT: u64 = 1_024;

/// The most names of one answer.
pub(crate) const MAX_LISTED: u32 = 1_000;

rafted_value::messages! {
    /// The group's value.
    #[derive(Default)]
    pub(crate) struct QuotaGroup {
        ledger: Ledger,
        holders: BTreeMap<String, Holder>,
        /// By incarnation.
        tombstones: BTreeMap<u64, Tombstone>,
    }

    /// What the latest report of a shard said.
    #[derive(Default)]
    pub(crate) struct Holder {
        /// The report's index: older ones are ignored.
        index: u64,
        /// The quotas in which it had something in use: the next report that does not name one of them says
        /// that it has nothing any more.
        in_use: BTreeSet<String>,
    }

    /// A deleted quota whose agents may still be there.
    pub(crate) struct Tombstone {
        pub(crate) quota: String,
        /// The latest `use_by` per holder, in ms.
        pub(crate) use_by: BTreeMap<String, u64>,
        /// The shards that have none of its agents, and get none.
        pub(crate) clean: BTreeSet<String>,
    }

    /// What changes the quotas.
    pub(crate) enum QuotaCommand {
        /// Makes a quota, or changes its limit; `None` is unlimited.
        Put { quota: String, limit: Option<u64> },
        /// Deletes a quota.
        Delete { quota: String },
        /// Asks for places.
        Grant {
            quota: String,
            /// The shard that will take them.
            holder: String,
            wanted: u64,
            /// The shard's log time in ms as the caller last saw it; 0 if it never did.
            holder_time: u64,
        },
        /// Gives places back.
        Release { quota: String, incarnation: u64, reservation: u64, filled: u64 },
        /// What a shard has in use, all of it.
        Report(ShardReport),
        /// Ends a tombstone; its caller has seen that every shard is clean.
        Forget { incarnation: u64 },
    }

    /// The use of one shard as of one entry of its log.
    #[derive(Eq)]
    pub(crate) struct ShardReport {
        pub(crate) holder: String,
        /// The entry's index.
        pub(crate) index: u64,
        /// Its log time, in ms.
        pub(crate) log_time: u64,
        /// Quotas that are not named have nothing in use.
        pub(crate) used: Vec<QuotaUse>,
        /// Incarnations of deleted quotas of which it has no agent.
        pub(crate) without: Vec<u64>,
    }

    /// The use of one quota.
    #[derive(Eq)]
    pub(crate) struct QuotaUse {
        pub(crate) quota: String,
        pub(crate) incarnation: u64,
        pub(crate) used: u64,
        /// How many places of each reservation were taken.
        pub(crate) spent: Vec<(u64, u64)>,
    }

    /// What a command answers.
    pub(crate) enum QuotaReply {
        Done,
        NotFound,
        Granted { incarnation: u64, reservation: u64, amount: u64, use_by: u64 },
        /// Nothing is free now; something may come back.
        Held,
        LimitReached { limit: u64, used: u64 },
        /// What the shard must report on, or wait for.
        Pending(Pending),
    }

    /// What a shard's reporter has to do.
    #[derive(Default, Eq)]
    pub(crate) struct Pending {
        /// The open reservations of the shard: id and `use_by` in ms.
        pub(crate) reservations: Vec<(u64, u64)>,
        /// Incarnations of deleted quotas of which the shard is not clean, with their names.
        pub(crate) deleted: Vec<(u64, String)>,
        /// Whether the group counts something as used at this shard.
        pub(crate) in_use: bool,
    }

    /// What reads the quotas.
    pub(crate) enum QuotaQuery {
        Get { quota: String },
        /// Names above `after`, in order.
        List { after: Option<String>, limit: u32 },
        /// For each of the shards.
        Pending { holders: Vec<String> },
        /// All tombstones.
        Tombstones,
    }

    /// What a query answers.
    pub(crate) enum QuotaAnswer {
        Quota(Option<QuotaEntry>),
        Names(Vec<String>),
        Pending(Vec<(String, Pending)>),
        /// Incarnation and the shards that are clean.
        Tombstones(Vec<(u64, BTreeSet<String>)>),
    }

    /// One quota.
    #[derive(Copy, Eq)]
    pub(crate) struct QuotaEntry {
        pub(crate) incarnation: u64,
        pub(crate) limit: Option<u64>,
        pub(crate) used: u64,
        pub(crate) reserved: u64,
    }
}

impl Value for QuotaGroup {
    type Command = QuotaCommand;
    type Reply = QuotaReply;
    type Query = QuotaQuery;
    type Answer = QuotaAnswer;

    /// Without log time, which only grants ask for.
    fn command(&mut self, command: QuotaCommand) -> QuotaReply {
        self.run(Duration::ZERO, command)
    }

    fn command_in(&mut self, context: &Context<'_>, command: QuotaCommand) -> QuotaReply {
        self.run(Duration::from_millis(context.log_time().as_millis()), command)
    }

    fn query(&self, query: QuotaQuery) -> QuotaAnswer {
        match query {
            QuotaQuery::Get { quota } => QuotaAnswer::Quota(self.entry(&quota)),
            QuotaQuery::List { after, limit } => QuotaAnswer::Names(self.names(after.as_deref(), limit)),
            QuotaQuery::Pending { holders } => {
                let pending = |holder: String| (holder.clone(), self.pending(&holder));
                QuotaAnswer::Pending(holders.into_iter().map(pending).collect())
            }
            QuotaQuery::Tombstones => {
                let clean = |(incarnation, tombstone): (&u64, &Tombstone)| (*incarnation, tombstone.clean.clone());
                QuotaAnswer::Tombstones(self.tombstones.iter().map(clean).collect())
            }
        }
    }
}

impl QuotaGroup {
    fn run(&mut self, now: Duration, command: QuotaCommand) -> QuotaReply {
        match command {
            QuotaCommand::Put { quota, limit } => {
                let (Put::Created(_) | Put::Changed(_)) = self.ledger.put(&quota, limit);
                QuotaReply::Done
            }
            QuotaCommand::Delete { quota } => self.delete(&quota),
            QuotaCommand::Grant { quota, holder, wanted, holder_time } => {
                let since = now.max(Duration::from_millis(holder_time));
                self.grant(&quota, &holder, wanted, since + GRANT_LIFE)
            }
            QuotaCommand::Release { quota, incarnation, reservation, filled } => {
                let (incarnation, reservation) = (Incarnation(incarnation), ReservationId(reservation));
                // The quota may be gone: nothing to give back to.
                let _ = self.ledger.release(&quota, incarnation, reservation, filled);
                QuotaReply::Done
            }
            QuotaCommand::Report(report) => self.report(&report),
            QuotaCommand::Forget { incarnation } => {
                self.tombstones.remove(&incarnation);
                QuotaReply::Done
            }
        }
    }

    fn delete(&mut self, quota: &str) -> QuotaReply {
        let Some(account) = self.ledger.remove(quota) else { return QuotaReply::NotFound };
        let mut use_by = BTreeMap::<String, u64>::new();
        for (_, reservation) in account.reservations() {
            let latest = use_by.entry(reservation.holder().to_owned()).or_default();
            *latest = (*latest).max(millis(reservation.use_by()));
        }
        let tombstone = Tombstone { quota: quota.to_owned(), use_by, clean: BTreeSet::new() };
        self.tombstones.insert(account.incarnation().0, tombstone);
        QuotaReply::Done
    }

    fn grant(&mut self, quota: &str, holder: &str, wanted: u64, use_by: Duration) -> QuotaReply {
        // The first refusal of a ledger asks reservations back; nodes give back what they do not need by
        // themselves within a moment, so that the caller only has to ask again.
        match self.ledger.grant(quota, holder, wanted.clamp(1, MAX_GRANT), use_by) {
            Ok(grant) => QuotaReply::Granted {
                incarnation: grant.incarnation.0,
                reservation: grant.reservation.0,
                amount: grant.amount,
                use_by: millis(grant.use_by),
            },
            Err(GrantError::UnknownQuota { .. }) => QuotaReply::NotFound,
            Err(GrantError::Recall { .. } | GrantError::Held { .. }) => QuotaReply::Held,
            Err(GrantError::LimitReached { limit, used }) => QuotaReply::LimitReached { limit, used },
        }
    }

    fn report(&mut self, report: &ShardReport) -> QuotaReply {
        let holder = self.holders.get(&report.holder);
        if holder.is_none_or(|holder| holder.index < report.index) {
            self.settle_all(report);
            self.mark_clean(report);
        }
        QuotaReply::Pending(self.pending(&report.holder))
    }

    fn settle_all(&mut self, report: &ShardReport) {
        // Agents of an earlier incarnation count nowhere.
        let present = |used: &&QuotaUse| self.incarnation(&used.quota) == Some(Incarnation(used.incarnation));
        let used: Vec<&QuotaUse> = report.used.iter().filter(present).collect();
        let in_use: BTreeSet<String> = used.iter().map(|used| used.quota.clone()).collect();
        let now = Holder { index: report.index, in_use };
        let before = self.holders.insert(report.holder.clone(), now.clone()).unwrap_or_default();
        let mut empty = before.in_use;
        empty.extend(self.reservations_of(&report.holder).map(|(quota, _, _)| quota.to_owned()));
        for used in used {
            let spent = used.spent.iter().map(|(id, count)| (ReservationId(*id), *count)).collect();
            self.settle(report, &used.quota, used.used, spent);
        }
        for quota in empty.difference(&now.in_use) {
            self.settle(report, quota, 0, Vec::new());
        }
    }

    fn settle(&mut self, report: &ShardReport, quota: &str, used: u64, spent: Vec<(ReservationId, u64)>) {
        let Some(incarnation) = self.incarnation(quota) else { return };
        let time = Duration::from_millis(report.log_time);
        let settled = Report { index: report.index, time, used, spent };
        // Known, as it was just looked up; and newer than any before, as its holder's reports go in order.
        let _ = self.ledger.settle(quota, incarnation, &report.holder, &settled);
    }

    fn incarnation(&self, quota: &str) -> Option<Incarnation> {
        self.ledger.account(quota).map(quota::Account::incarnation)
    }

    fn mark_clean(&mut self, report: &ShardReport) {
        for incarnation in &report.without {
            let Some(tombstone) = self.tombstones.get_mut(incarnation) else { continue };
            let use_by = tombstone.use_by.get(&report.holder).copied().unwrap_or(0);
            if report.log_time > use_by {
                tombstone.clean.insert(report.holder.clone());
            }
        }
    }

    fn reservations_of(&self, holder: &str) -> impl Iterator<Item = (&str, u64, u64)> {
        self.ledger.quotas().filter_map(|quota| Some((quota, self.ledger.account(quota)?))).flat_map(
            move |(quota, account)| {
                let of_holder = account.reservations().filter(move |(_, r)| r.holder() == holder);
                of_holder.map(move |(id, reservation)| (quota, id.0, millis(reservation.use_by())))
            },
        )
    }

    fn pending(&self, holder: &str) -> Pending {
        let mut reservations: Vec<(u64, u64)> =
            self.reservations_of(holder).map(|(_, id, use_by)| (id, use_by)).collect();
        let unclean = self.tombstones.iter().filter(|(_, tombstone)| !tombstone.clean.contains(holder));
        let deleted = unclean.map(|(incarnation, tombstone)| {
            // A shard that is not clean yet must get past the places of the deleted quota, too.
            if let Some(use_by) = tombstone.use_by.get(holder) {
                reservations.push((0, *use_by));
            }
            (*incarnation, tombstone.quota.clone())
        });
        let deleted = deleted.collect();
        let in_use = self.holders.get(holder).is_some_and(|holder| !holder.in_use.is_empty());
        Pending { reservations, deleted, in_use }
    }

    fn entry(&self, quota: &str) -> Option<QuotaEntry> {
        let account = self.ledger.account(quota)?;
        let usage = account.usage();
        Some(QuotaEntry {
            incarnation: account.incarnation().0,
            limit: usage.limit,
            used: usage.used,
            reserved: usage.reserved,
        })
    }

    fn names(&self, after: Option<&str>, limit: u32) -> Vec<String> {
        let above = |name: &&str| after.is_none_or(|after| *name > after);
        self.ledger.quotas().filter(above).take(limit.min(MAX_LISTED) as usize).map(str::to_owned).collect()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
