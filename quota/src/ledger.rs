//! Limits, use and reservations: pure, so that it can be part of a replicated value.
//!
//! Holders (shards, processes) fill places on their own, from reservations, and report. At any moment
//!
//! ```text
//!   limit >= used + reserved      used       what the holders' latest reports tell
//!                                 reserved   what they may have filled since, or may still fill
//! ```
//!
//! A reservation's life:
//!
//! ```text
//!   grant --> open --recall--> open, recalled --release--> shrunk to what was filled
//!              |                    |                               |
//!              +--------------------+-- report past `use_by`, or all filled and reported --> gone
//! ```
//!
//! Time is the holders' own: a reservation ends by a report of *its holder* from a time past its `use_by`, which
//! holds everything that was filled. No clock of the ledger's could know that.
//!
//! A lowered limit takes nothing back: it stops grants until use has fallen below it.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    error::{GrantError, LedgerError},
    reservation::{Grant, Incarnation, Recall, Report, Reservation, ReservationId},
};

/// A grant is at most one part in this many of what is free, so that many holders get their share, and
/// of one place when little remains.
pub const RESERVATION_SHARE: u64 = 8;

/// Quotas by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
pub struct Ledger {
    quotas: BTreeMap<String, Account>,
    /// Incarnations and reservations have numbers from one counter; none is given twice.
    last_number: u64,
}

/// One quota.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
pub struct Account {
    incarnation: Incarnation,
    /// `None`: unlimited.
    limit: Option<u64>,
    /// The latest report of each holder.
    holders: BTreeMap<String, Holding>,
    reservations: BTreeMap<ReservationId, Reservation>,
    /// The sum over `holders`.
    used: u64,
    /// The sum of what is unspent over `reservations`.
    reserved: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
struct Holding {
    index: u64,
    used: u64,
}

/// What a quota allows and what of it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
pub struct Usage {
    /// `None`: unlimited.
    pub limit: Option<u64>,
    /// By the holders' latest reports.
    pub used: u64,
    /// What may have been filled since, or may still be.
    pub reserved: u64,
}

/// What [`Ledger::put`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// There was no such quota.
    Created(Incarnation),
    /// There was; it has the limit now.
    Changed(Incarnation),
}

/// What [`Ledger::settle`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The report counts now.
    Applied,
    /// A report with this index or a greater one is known; nothing changed.
    Stale,
}

impl Ledger {
    /// A ledger without quotas.
    #[must_use]
    pub fn new() -> Ledger {
        Ledger::default()
    }

    /// Makes a quota or changes its limit; `None` is unlimited.
    pub fn put(&mut self, quota: &str, limit: Option<u64>) -> Put {
        if let Some(account) = self.quotas.get_mut(quota) {
            account.limit = limit;
            return Put::Changed(account.incarnation);
        }
        let incarnation = Incarnation(self.next_number());
        self.quotas.insert(quota.to_owned(), Account::new(incarnation, limit));
        Put::Created(incarnation)
    }

    /// Forgets a quota with all its reservations. Who waits out what holders may still fill does so with the
    /// answered account, under its incarnation: a new quota of this name has another.
    pub fn remove(&mut self, quota: &str) -> Option<Account> {
        self.quotas.remove(quota)
    }

    /// The names in order.
    pub fn quotas(&self) -> impl Iterator<Item = &str> {
        self.quotas.keys().map(String::as_str)
    }

    /// One quota.
    #[must_use]
    pub fn account(&self, quota: &str) -> Option<&Account> {
        self.quotas.get(quota)
    }

    /// Limit and use of one quota.
    #[must_use]
    pub fn usage(&self, quota: &str) -> Option<Usage> {
        self.quotas.get(quota).map(Account::usage)
    }

    /// Reserves up to `wanted` places (at least 1) for `holder`, to be filled until `use_by` in the holder's time.
    /// The amount is bounded by [`RESERVATION_SHARE`].
    ///
    /// # Errors
    /// [`GrantError::Recall`] before a refusal: then nothing changed but that the named reservations count as
    /// recalled. Nothing is reserved on any error.
    pub fn grant(&mut self, quota: &str, holder: &str, wanted: u64, use_by: Duration) -> Result<Grant, GrantError> {
        let reservation = ReservationId(self.last_number + 1);
        let Some(account) = self.quotas.get_mut(quota) else {
            return Err(GrantError::UnknownQuota { quota: quota.to_owned() });
        };
        let grant = account.grant(reservation, holder, wanted.max(1), use_by)?;
        self.last_number += 1;
        Ok(grant)
    }

    /// Counts what a holder reports, and ends its reservations that are past their `use_by` or all filled.
    ///
    /// # Errors
    /// Where the quota is unknown or has another incarnation.
    pub fn settle(
        &mut self,
        quota: &str,
        incarnation: Incarnation,
        holder: &str,
        report: &Report,
    ) -> Result<Settled, LedgerError> {
        Ok(self.account_mut(quota, incarnation)?.settle(holder, report))
    }

    /// Takes back what a holder does not need of a reservation: of all its places `filled` are, or may be, filled,
    /// reported or not. The holder must fill none beyond, and must know the outcome of each that it tried. Again, or
    /// with a reservation that is gone: nothing changes.
    ///
    /// # Errors
    /// Where the quota is unknown or has another incarnation.
    pub fn release(
        &mut self,
        quota: &str,
        incarnation: Incarnation,
        reservation: ReservationId,
        filled: u64,
    ) -> Result<(), LedgerError> {
        self.account_mut(quota, incarnation)?.release(reservation, filled);
        Ok(())
    }

    /// Marks all unspent reservations of a quota as recalled and answers them, e.g. after its limit was lowered.
    ///
    /// # Errors
    /// Where the quota is unknown.
    pub fn recall(&mut self, quota: &str) -> Result<Vec<Recall>, LedgerError> {
        match self.quotas.get_mut(quota) {
            Some(account) => Ok(account.recall()),
            None => Err(LedgerError::UnknownQuota { quota: quota.to_owned() }),
        }
    }

    /// Forgets a holder that is no more, with its use and its reservations, in all quotas. Whoever took over its
    /// places must have reported them before.
    pub fn forget_holder(&mut self, holder: &str) {
        for account in self.quotas.values_mut() {
            account.forget_holder(holder);
        }
    }

    fn account_mut(&mut self, quota: &str, incarnation: Incarnation) -> Result<&mut Account, LedgerError> {
        match self.quotas.get_mut(quota) {
            Some(account) if account.incarnation == incarnation => Ok(account),
            _ => Err(LedgerError::UnknownQuota { quota: quota.to_owned() }),
        }
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

impl Account {
    fn new(incarnation: Incarnation, limit: Option<u64>) -> Account {
        Account { incarnation, limit, holders: BTreeMap::new(), reservations: BTreeMap::new(), used: 0, reserved: 0 }
    }

    /// Tells this quota from others of its name.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Limit and use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage { limit: self.limit, used: self.used, reserved: self.reserved }
    }

    /// The reservations that are not known to be all filled, in the order of their ids.
    pub fn reservations(&self) -> impl Iterator<Item = (ReservationId, &Reservation)> {
        self.reservations.iter().map(|(id, reservation)| (*id, reservation))
    }

    fn grant(&mut self, id: ReservationId, holder: &str, wanted: u64, use_by: Duration) -> Result<Grant, GrantError> {
        let amount = match self.limit {
            None => wanted.min(u64::MAX - self.used.saturating_add(self.reserved)),
            Some(limit) => {
                let free = limit.saturating_sub(self.used.saturating_add(self.reserved));
                wanted.min(free.div_ceil(RESERVATION_SHARE))
            }
        };
        if amount == 0 {
            return Err(self.why_nothing_is_free());
        }
        let reservation = Reservation { holder: holder.to_owned(), amount, spent: 0, use_by, recalled: false };
        self.reservations.insert(id, reservation);
        self.reserved += amount;
        Ok(Grant { incarnation: self.incarnation, reservation: id, amount, use_by })
    }

    fn why_nothing_is_free(&mut self) -> GrantError {
        let limit = self.limit.unwrap_or(u64::MAX);
        if self.used >= limit {
            return GrantError::LimitReached { limit, used: self.used };
        }
        let recalls = self.recall();
        if !recalls.is_empty() {
            return GrantError::Recall { recalls };
        }
        let use_by = self.reservations.values().map(|reservation| reservation.use_by).min();
        GrantError::Held { reserved: self.reserved, use_by: use_by.unwrap_or_default() }
    }

    fn recall(&mut self) -> Vec<Recall> {
        let mut recalls = Vec::new();
        for (id, reservation) in &mut self.reservations {
            if !reservation.recalled {
                reservation.recalled = true;
                recalls.push(Recall { holder: reservation.holder.clone(), reservation: *id });
            }
        }
        recalls
    }

    fn settle(&mut self, holder: &str, report: &Report) -> Settled {
        let known = self.holders.get(holder).copied();
        if known.is_some_and(|known| known.index >= report.index) {
            return Settled::Stale;
        }
        let used_before = known.map_or(0, |known| known.used);
        self.used = self.used.saturating_sub(used_before).saturating_add(report.used);
        // An empty holder is kept: its index refuses older reports.
        self.holders.insert(holder.to_owned(), Holding { index: report.index, used: report.used });
        for (id, spent) in &report.spent {
            if let Some(reservation) = self.reservations.get_mut(id)
                && reservation.holder == holder
            {
                let spent = (*spent).clamp(reservation.spent, reservation.amount);
                self.reserved -= spent - reservation.spent;
                reservation.spent = spent;
            }
        }
        self.drop_reservations(|reservation| {
            let past = reservation.holder == holder && reservation.use_by < report.time;
            past || reservation.unspent() == 0
        });
        Settled::Applied
    }

    fn release(&mut self, id: ReservationId, filled: u64) {
        let Some(reservation) = self.reservations.get_mut(&id) else {
            return;
        };
        let amount = filled.clamp(reservation.spent, reservation.amount);
        self.reserved -= reservation.amount - amount;
        reservation.amount = amount;
        reservation.recalled = true;
        self.drop_reservations(|reservation| reservation.unspent() == 0);
    }

    fn forget_holder(&mut self, holder: &str) {
        if let Some(holding) = self.holders.remove(holder) {
            self.used = self.used.saturating_sub(holding.used);
        }
        self.drop_reservations(|reservation| reservation.holder == holder);
    }

    fn drop_reservations(&mut self, ends: impl Fn(&Reservation) -> bool) {
        let reserved = &mut self.reserved;
        self.reservations.retain(|_, reservation| {
            let ends = ends(reservation);
            if ends {
                *reserved -= reservation.unspent();
            }
            !ends
        });
    }
}

#[cfg(test)]
mod tests;
