//! What holders and the ledger tell each other.

use std::time::Duration;

/// Tells a quota from an earlier one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
#[cfg_attr(feature = "rkyv", rkyv(derive(PartialEq, Eq, PartialOrd, Ord)))]
pub struct Incarnation(pub u64);

/// Names a reservation; never given twice by one ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
#[cfg_attr(feature = "rkyv", rkyv(derive(PartialEq, Eq, PartialOrd, Ord)))]
pub struct ReservationId(pub u64);

/// Places that a holder may fill on its own until `use_by`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
pub struct Grant {
    /// The quota's incarnation, to be stamped on what is filled.
    pub incarnation: Incarnation,
    /// To be stamped on what is filled, and told in reports.
    pub reservation: ReservationId,
    /// How many places; at least 1.
    pub amount: u64,
    /// After this, in the holder's own time, the holder fills no place any more.
    pub use_by: Duration,
}

/// Places given to a holder, of which not all are reported as filled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
pub struct Reservation {
    /// Who may fill the places.
    pub(crate) holder: String,
    /// How many places there are in all, filled ones included.
    pub(crate) amount: u64,
    /// How many the holder has reported as filled: these are counted as used. At most `amount`.
    pub(crate) spent: u64,
    /// After this, in the holder's own time, none is filled any more.
    pub(crate) use_by: Duration,
    /// Whether the holder was asked to give back what it does not need.
    pub(crate) recalled: bool,
}

impl Reservation {
    /// Who may fill the places.
    #[must_use]
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// How many places may still be filled, as far as reports tell.
    #[must_use]
    pub fn unspent(&self) -> u64 {
        self.amount - self.spent
    }

    /// After this, in the holder's own time, none is filled any more.
    #[must_use]
    pub fn use_by(&self) -> Duration {
        self.use_by
    }
}

/// A reservation to ask back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
pub struct Recall {
    /// Whom to ask.
    pub holder: String,
    /// What to ask for.
    pub reservation: ReservationId,
}

/// What a holder has in use, all as of one moment of its own state. Later reports carry greater indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "rkyv", derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize))]
pub struct Report {
    /// Orders the reports of one holder, e.g. the index of the last applied entry.
    pub index: u64,
    /// The holder's time at `index`, on the clock that `use_by` is compared with.
    pub time: Duration,
    /// How many places are filled now: what was filled less what was freed.
    pub used: u64,
    /// How many places each of the holder's reservations has filled in all. Those that filled none may be
    /// left out.
    pub spent: Vec<(ReservationId, u64)>,
}
