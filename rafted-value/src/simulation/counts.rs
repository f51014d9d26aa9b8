//! What happened, counted: a simulation that quietly stops doing what it is for must fail.

use std::collections::BTreeMap;

/// Something that a run is to bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A client was told that its item is there.
    Appended,
    /// A linearizable read was answered.
    Read,
    /// A read that may be old was answered.
    ReadWithin,
    /// A client was never told what became of its command.
    Unknown,
    /// A command whose outcome was unknown was sent again, and answered.
    RetriedAfterUnknown,
    /// A query reached a replica that believes to lead, while another leads already.
    QueryAtDeposedLeader,
    /// Settings were changed.
    SettingsChanged,
    /// A replica began to lead.
    Led,
    /// A replica to which the leadership was to be handed began to lead.
    LeaderReplaced,
    /// A change of members was made.
    MembersChanged,
    /// A replica has another snapshot than before.
    Snapshot,
    /// It is another replica's.
    SnapshotInstalled,
    /// A node ended while it received or installed a snapshot.
    SnapshotBrokenOff,
    /// A node's log went on in another segment.
    SegmentRolled,
    /// A log was found whose last batch is there in part.
    TornTail,
    /// A process was killed.
    Killed,
    /// A node was stopped in order.
    Stopped,
    /// A node lost power.
    PowerLost,
    /// A node lost its disk.
    DiskLost,
    /// All nodes ended at once.
    AllEnded,
    /// A disk failed, or power was lost, in the midst of a write or sync.
    DiskFault,
    /// A node's disk had no room for the log's next segments.
    DiskFull,
    /// A disk became slow.
    DiskSlow,
    /// A clock jumped.
    ClockJumped,
    /// Some were cut off from the others.
    Cut,
    /// And could still be heard, or hear.
    CutOneWay,
    /// A message came late, or (if it was no command) twice, or not at all.
    MessageLate,
    MessageTwice,
    MessageLost,
}

/// What 1,000 seeds bring at least: well below what was seen. Fewer seeds bring their share, rounded down.
const AT_LEAST: [(Event, u64); 29] = [
    (Event::Appended, 60_000),
    (Event::Read, 20_000),
    (Event::ReadWithin, 8_000),
    (Event::Unknown, 800),
    (Event::RetriedAfterUnknown, 600),
    (Event::QueryAtDeposedLeader, 40),
    (Event::SettingsChanged, 800),
    (Event::Led, 1_600),
    (Event::LeaderReplaced, 60),
    (Event::MembersChanged, 900),
    (Event::Snapshot, 6_000),
    (Event::SnapshotInstalled, 400),
    (Event::SnapshotBrokenOff, 15),
    (Event::SegmentRolled, 800),
    (Event::TornTail, 15),
    (Event::Killed, 1_600),
    (Event::Stopped, 300),
    (Event::PowerLost, 1_600),
    (Event::DiskLost, 40),
    (Event::AllEnded, 300),
    (Event::DiskFault, 400),
    (Event::DiskFull, 100),
    (Event::DiskSlow, 300),
    (Event::ClockJumped, 300),
    (Event::Cut, 1_000),
    (Event::CutOneWay, 160),
    (Event::MessageLate, 4_000),
    (Event::MessageTwice, 4_000),
    (Event::MessageLost, 4_000),
];
/// The seeds that these are for.
const SEEDS: u64 = 1_000;

#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Counts(BTreeMap<Event, u64>);

impl Counts {
    pub(crate) fn add(&mut self, event: Event, count: u64) {
        *self.0.entry(event).or_default() += count;
    }

    pub(crate) fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|(&event, &count)| self.add(event, count));
    }

    /// Of `seeds` that ran, what happened less often than it should.
    pub(crate) fn too_few(&self, seeds: u64) -> Vec<String> {
        let seen = |event| self.0.get(&event).copied().unwrap_or(0);
        let few = AT_LEAST.iter().filter(|(event, least)| seen(*event) < least * seeds / SEEDS);
        few.map(|(event, least)| format!("{event:?}: {} of {}", seen(*event), least * seeds / SEEDS)).collect()
    }
}
