//! When a replica takes its next snapshot, and which entries it keeps behind it: a pure count of what it has applied since
//! the last one.
//!
//! ```text
//!   kept          last snapshot                  mark    due
//! ----|=================|--------------------------|========|-----> applied
//!                                                  '- kept -'
//! ```
//!
//! A snapshot is due when the entries behind the last one weigh as much as that snapshot, or
//! [`MIN_DISTANCE_BYTES`], whichever is more. So a replica writes about as many bytes into snapshots as commands put
//! into its log, whatever the state's size, and its log is never much longer than its state. What the log copies, from
//! its oldest segment to its front, weighs like what was written to it. A group's setting bounds the entries besides,
//! and with them what a start has to apply again.
//!
//! After a restart the same entries are applied again, and counted again.

/// What an entry weighs besides its bytes: its header in the log, its place in memory, and the work to apply it.
pub(crate) const ENTRY_BYTES: u64 = 64;
/// No snapshot is due before the entries weigh so much, however small the state is; and so much stays behind one.
pub(crate) const MIN_DISTANCE_BYTES: u64 = 1 << 20;
/// Of a large state's weight, one in so many bytes of entries stays behind a snapshot, for members that lag: a snapshot
/// costs them so many times more.
const KEPT_SHARE: u64 = 4;
/// Of the entries that the group's setting allows, one in so many stays at most.
const KEPT_ENTRIES_SHARE: u64 = 5;
/// Replicas take their snapshots at different times: between this share of the distance, of [`JITTER_SCALE`], and all.
const MIN_JITTER: u64 = 192;
const JITTER_SCALE: u64 = 256;

/// How much was applied since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) entries: u64,
    /// Of their commands.
    pub(crate) bytes: u64,
}

impl Amount {
    /// One entry, with a command of so many bytes.
    pub(crate) fn of_entry(bytes: usize) -> Self {
        Self { entries: 1, bytes: bytes as u64 }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self { entries: self.entries.saturating_add(other.entries), bytes: self.bytes.saturating_add(other.bytes) }
    }

    fn since(self, earlier: Self) -> Self {
        let (entries, bytes) = (self.entries.saturating_sub(earlier.entries), self.bytes.saturating_sub(earlier.bytes));
        Self { entries, bytes }
    }

    fn weight(self) -> u64 {
        self.entries.saturating_mul(ENTRY_BYTES).saturating_add(self.bytes)
    }
}

/// What one replica has applied since its last snapshot.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// This replica's share of the distance, of [`JITTER_SCALE`].
    jitter: u64,
    applied: Amount,
    /// What of `applied` is in the last snapshot.
    covered: Amount,
    /// What the log has copied of this replica since the last snapshot.
    copied_bytes: u64,
    /// The last snapshot's size; 0 without one.
    snapshot_bytes: u64,
    /// When the next snapshot is taken, the entries up to here go.
    mark: Option<u64>,
}

impl Backlog {
    /// Nothing is applied, and there is no snapshot. A replica's id, which is random, tells its share of the distance.
    pub(crate) fn new(replica: u64) -> Self {
        Self {
            jitter: MIN_JITTER + replica % (JITTER_SCALE - MIN_JITTER + 1),
            applied: Amount::default(),
            covered: Amount::default(),
            copied_bytes: 0,
            snapshot_bytes: 0,
            mark: None,
        }
    }

    /// Entries were applied, the last of them at `index`.
    pub(crate) fn add(&mut self, amount: Amount, index: u64) {
        self.applied = self.applied.plus(amount);
        if self.mark.is_none() && self.since().weight() >= self.distance_bytes().saturating_sub(self.kept_bytes()) {
            self.mark = Some(index);
        }
    }

    /// The log copies so many bytes of this replica's.
    pub(crate) fn add_copied(&mut self, bytes: u64) {
        self.copied_bytes = self.copied_bytes.saturating_add(bytes);
    }

    /// All that was applied so far: what a snapshot of this moment covers.
    pub(crate) fn applied(&self) -> Amount {
        self.applied
    }

    /// Whether there is anything that the last snapshot does not cover.
    fn is_empty(&self) -> bool {
        self.since() == Amount::default()
    }

    /// Whether the next snapshot is due, where the group allows so many entries.
    pub(crate) fn is_due(&self, max_entries: u64) -> bool {
        let since = self.since();
        let max_entries = self.jittered(max_entries).max(1);
        let weight = since.weight().saturating_add(self.copied_bytes);
        !self.is_empty() && (weight >= self.distance_bytes() || since.entries >= max_entries)
    }

    /// A snapshot was taken, up to the entry at `index`, when `covered` was applied. The entries up to the index that is
    /// returned may go.
    pub(crate) fn snapshotted(&mut self, covered: Amount, index: u64, bytes: u64, max_entries: u64) -> Option<u64> {
        let by_entries = index.checked_sub(max_entries / KEPT_ENTRIES_SHARE);
        let gone = by_entries.max(self.mark.take().filter(|&mark| mark <= index));
        // One that was received meanwhile may cover more.
        self.covered =
            Amount { entries: self.covered.entries.max(covered.entries), bytes: self.covered.bytes.max(covered.bytes) };
        self.follow(index, bytes);
        gone
    }

    /// All is as a snapshot of so many bytes says, which ends at `index`.
    pub(crate) fn restored(&mut self, index: u64, bytes: u64) {
        self.covered = self.applied;
        self.follow(index, bytes);
    }

    fn follow(&mut self, index: u64, bytes: u64) {
        self.copied_bytes = 0;
        self.snapshot_bytes = bytes;
        // All behind this snapshot may stay behind the next one.
        self.mark = (self.distance_bytes() <= self.kept_bytes()).then_some(index);
    }

    fn since(&self) -> Amount {
        self.applied.since(self.covered)
    }

    fn distance_bytes(&self) -> u64 {
        self.jittered(self.snapshot_bytes.max(MIN_DISTANCE_BYTES))
    }

    fn kept_bytes(&self) -> u64 {
        (self.snapshot_bytes / KEPT_SHARE).max(MIN_DISTANCE_BYTES)
    }

    fn jittered(&self, distance: u64) -> u64 {
        // In two steps, so that nothing overflows.
        distance / JITTER_SCALE * self.jitter + distance % JITTER_SCALE * self.jitter / JITTER_SCALE
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const MIB: u64 = 1 << 20;
    /// An id whose distance is all of it.
    const ALL: u64 = JITTER_SCALE - MIN_JITTER;
    const MANY: u64 = 1_000_000;

    fn amount(entries: u64, bytes: u64) -> Amount {
        Amount { entries, bytes }
    }

    /// A backlog behind a snapshot of so many bytes.
    fn behind(snapshot_bytes: u64, replica: u64) -> Backlog {
        let mut backlog = Backlog::new(replica);
        backlog.restored(0, snapshot_bytes);
        backlog
    }

    #[test]
    fn a_snapshot_is_due_when_the_entries_weigh_as_much_as_the_last_one_or_are_too_many() {
        let rows = [
            ("nothing is applied", 0, amount(0, 0), 1, false),
            ("one entry is all that the group allows", 0, amount(1, 0), 1, true),
            ("a small state waits for its least distance", 1_000, amount(1, MIB - 65), MANY, false),
            ("a small state at its least distance", 1_000, amount(1, MIB - 64), MANY, true),
            ("small entries weigh something, too", 1_000, amount(MIB / 64, 0), MANY, true),
            ("a large state waits for as many bytes", 100 * MIB, amount(1, 100 * MIB - 65), MANY, false),
            ("a large state at as many bytes", 100 * MIB, amount(1, 100 * MIB - 64), MANY, true),
            ("5,000 small commands are no matter for a large state", 100 * MIB, amount(5_000, 320_000), MANY, false),
            ("but the group's bound is", 100 * MIB, amount(5_000, 320_000), 5_000, true),
        ];
        for (what, snapshot_bytes, applied, max_entries, is_due) in rows {
            let mut backlog = behind(snapshot_bytes, ALL);
            backlog.add(applied, applied.entries);
            assert_eq!(backlog.is_due(max_entries), is_due, "{what}");
        }
    }

    #[test]
    fn what_the_log_copies_weighs_like_what_it_was_given() {
        let mut backlog = behind(100 * MIB, ALL);
        backlog.add_copied(200 * MIB);
        assert!(!backlog.is_due(MANY), "there is nothing to take a snapshot of");
        let mut backlog = behind(100 * MIB, ALL);
        backlog.add(amount(1_000, 2 * MIB), 1_000);
        for round in 1..=60 {
            backlog.add_copied(2 * MIB);
            assert_eq!(backlog.is_due(MANY), round >= 49, "round {round}");
        }
        let covered = backlog.applied();
        backlog.add(amount(1, 0), 1_001);
        backlog.snapshotted(covered, 1_000, 100 * MIB, MANY);
        assert!(!backlog.is_due(MANY), "copies of what is in a snapshot do not count");
    }

    #[test]
    fn replicas_differ_and_none_waits_longer_than_the_distance() {
        let due_at = |replica| {
            let mut backlog = behind(0, replica);
            (1..).find(|&index| {
                backlog.add(amount(1, 1_000 - ENTRY_BYTES), index);
                backlog.is_due(MANY)
            })
        };
        let found: Vec<u64> = (0..1_000).filter_map(due_at).collect();
        let (least, most) = (found.iter().min().unwrap(), found.iter().max().unwrap());
        assert_eq!((*least, *most), (787, 1_049), "of 1,048,576 bytes in entries of 1,000");
        assert!(found.iter().collect::<std::collections::BTreeSet<_>>().len() > 50);
        for replica in [0, 1, ALL, u64::MAX] {
            let mut backlog = Backlog::new(replica);
            backlog.add(amount(1, 0), 1);
            assert!(backlog.is_due(1) && backlog.is_due(0), "replica {replica}");
        }
    }

    #[test]
    fn what_stays_behind_a_snapshot_is_what_a_member_that_lags_is_likely_to_lack() {
        // Entries of 1,000 bytes, one after the other, and a snapshot whenever one is due.
        let kept = |snapshot_bytes: u64, max_entries: u64| {
            let mut backlog = behind(snapshot_bytes, ALL);
            let mut kept = Vec::new();
            for index in 1..1_000_000 {
                backlog.add(amount(1, 1_000 - ENTRY_BYTES), index);
                if backlog.is_due(max_entries) {
                    let covered = backlog.applied();
                    kept.push(index - backlog.snapshotted(covered, index, snapshot_bytes, max_entries).unwrap());
                }
            }
            (kept[1], kept[2], kept[3])
        };
        assert_eq!(kept(1_000, MANY), (1_049, 1_049, 1_049), "all since the last one: 1 MiB");
        assert_eq!(kept(100_000_000, MANY), (25_000, 25_000, 25_000), "a quarter of the state");
        assert_eq!(kept(1_000, 50), (10, 10, 10), "a fifth of what the group allows");
    }

    #[test]
    fn a_snapshot_covers_what_was_applied_when_it_was_frozen() {
        let mut backlog = Backlog::new(ALL);
        backlog.add(amount(10, 2 * MIB), 10);
        let frozen = backlog.applied();
        backlog.add(amount(10, 2 * MIB), 20);
        backlog.snapshotted(frozen, 10, 1_000, MANY);
        assert!(backlog.is_due(MANY), "another 2 MiB came while it was written");
        let frozen = backlog.applied();
        backlog.snapshotted(frozen, 20, 1_000, MANY);
        assert!(backlog.is_empty() && !backlog.is_due(1));
        // A slow build ends after a newer snapshot was received.
        let frozen = backlog.applied();
        backlog.add(amount(5, 2 * MIB), 25);
        backlog.restored(30, 1_000);
        backlog.snapshotted(frozen, 20, 1_000, MANY);
        assert!(backlog.is_empty());
    }

    #[test]
    fn a_state_is_written_about_as_often_as_its_size_in_commands_and_the_log_stays_as_short() {
        for seed in 0..100 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut backlog = Backlog::new(random.random());
            let (mut state, mut index) = (0u64, 0u64);
            let (mut written, mut snapshots, mut taken, mut log_start) = (0u64, 0u64, 0u64, 0u64);
            // The weight of the log up to each entry.
            let mut weights = vec![0u64];
            let largest = 1 << random.random_range(4..20);
            let growth = random.random_range(0..=100);
            if random.random_bool(0.5) {
                state = random.random_range(0..200 * MIB);
                backlog.restored(0, state);
                taken = state;
            }
            for _ in 0..3_000 {
                let (count, bytes) = (random.random_range(1..512), random.random_range(0..largest));
                index += count;
                backlog.add(amount(count, count * bytes), index);
                for _ in 0..count {
                    written += bytes + ENTRY_BYTES;
                    weights.push(written);
                }
                // A state grows by no more than its commands' bytes.
                state += count * bytes * growth / 100;
                if backlog.is_due(MANY) {
                    let covered = backlog.applied();
                    let gone = backlog.snapshotted(covered, index, state, MANY);
                    log_start = gone.unwrap_or(0).max(log_start);
                    snapshots += state;
                    taken = state;
                }
                let log = written - weights[log_start as usize];
                // The distance, what is kept, and a batch.
                let allowed = taken.max(MIB) + (taken / KEPT_SHARE).max(MIB) + 512 * (largest + ENTRY_BYTES);
                assert!(log <= allowed, "seed {seed}: {log} bytes of log behind a snapshot of {taken}");
                assert!(index - log_start <= MANY + MANY / 5 + 512, "seed {seed}");
            }
            // Each has at most 4/3 of the weight of the entries before it, and what these made the state grow by.
            let is_bounded = snapshots as f64 <= written as f64 * (4.0 / 3.0 + 1.0);
            assert!(is_bounded, "seed {seed}: {snapshots} bytes of snapshots for {written} of commands");
        }
    }
}
