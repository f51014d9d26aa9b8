//! Quotas by the step, and a simulation of shards, nodes and late reports.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use rafted_value::LogTime;

const QUOTA: &str = "acme";

fn at(group: &mut QuotaGroup, millis: u64, command: QuotaCommand) -> QuotaReply {
    group.command_in(&Context::new(LogTime::from_millis(millis), 0, None), command)
}

fn put(group: &mut QuotaGroup, limit: Option<u64>) {
    assert_eq!(at(group, 0, QuotaCommand::Put { quota: QUOTA.into(), limit }), QuotaReply::Done);
}

fn grant(holder: &str, wanted: u64) -> QuotaCommand {
    QuotaCommand::Grant { quota: QUOTA.into(), holder: holder.into(), wanted, holder_time: 0 }
}

/// Incarnation, use, and the places taken of each reservation.
type Told<'a> = (u64, u64, &'a [(u64, u64)]);

fn report(holder: &str, index: u64, log_time: u64, used: &[Told<'_>]) -> QuotaCommand {
    let quota_use = |(incarnation, used, spent): &Told<'_>| QuotaUse {
        quota: QUOTA.into(),
        incarnation: *incarnation,
        used: *used,
        spent: spent.to_vec(),
    };
    let used = used.iter().map(quota_use).collect();
    QuotaCommand::Report(ShardReport { holder: holder.into(), index, log_time, used, without: Vec::new() })
}

fn entry(group: &QuotaGroup) -> QuotaEntry {
    group.entry(QUOTA).unwrap()
}

#[test]
fn an_unknown_quota_grants_nothing_and_cannot_be_deleted() {
    let mut group = QuotaGroup::default();
    assert_eq!(at(&mut group, 0, grant("s1", 1)), QuotaReply::NotFound);
    assert_eq!(at(&mut group, 0, QuotaCommand::Delete { quota: QUOTA.into() }), QuotaReply::NotFound);
    assert_eq!(group.query(QuotaQuery::Get { quota: QUOTA.into() }), QuotaAnswer::Quota(None));
}

#[test]
fn the_last_place_is_given_and_one_more_is_not() {
    let mut group = QuotaGroup::default();
    put(&mut group, Some(3));
    let mut given = Vec::new();
    while let QuotaReply::Granted { reservation, amount, .. } = at(&mut group, 10, grant("s1", 100)) {
        given.push((reservation, amount));
    }
    assert_eq!(given.iter().map(|(_, amount)| amount).sum::<u64>(), 3);
    assert_eq!(at(&mut group, 10, grant("s1", 1)), QuotaReply::Held);
    let incarnation = entry(&group).incarnation;
    let reply = at(&mut group, 20, report("s1", 7, 15, &[(incarnation, 3, &given)]));
    assert_eq!(reply, QuotaReply::Pending(Pending { in_use: true, ..Pending::default() }));
    assert_eq!(at(&mut group, 20, grant("s1", 1)), QuotaReply::LimitReached { limit: 3, used: 3 });
}

#[test]
fn a_zero_limit_is_reached_at_once() {
    let mut group = QuotaGroup::default();
    put(&mut group, Some(0));
    assert_eq!(at(&mut group, 0, grant("s1", 1)), QuotaReply::LimitReached { limit: 0, used: 0 });
}

#[test]
fn a_place_nobody_took_comes_back_by_a_report_past_its_time_and_not_before() {
    let mut group = QuotaGroup::default();
    put(&mut group, Some(1));
    let QuotaReply::Granted { use_by, reservation, .. } = at(&mut group, 1_000, grant("s1", 1)) else { panic!() };
    assert_eq!(use_by, 1_000 + GRANT_LIFE.as_millis() as u64);
    let waiting = Pending { reservations: vec![(reservation, use_by)], ..Pending::default() };
    let rows: [(&str, u64, u64, Pending); 3] = [
        ("s2", 9, use_by + 1_000, Pending::default()),
        ("s1", 5, use_by, waiting),
        ("s1", 6, use_by + 1, Pending::default()),
    ];
    for (holder, index, log_time, pending) in rows {
        assert_eq!(at(&mut group, 2_000, grant("s1", 1)), QuotaReply::Held, "before the report of {holder}");
        assert_eq!(at(&mut group, 2_000, report(holder, index, log_time, &[])), QuotaReply::Pending(pending));
    }
    assert!(matches!(at(&mut group, 2_000, grant("s1", 1)), QuotaReply::Granted { .. }));
}

#[test]
fn a_shard_whose_clock_is_ahead_gets_places_it_can_take() {
    let mut group = QuotaGroup::default();
    put(&mut group, None);
    let ahead = QuotaCommand::Grant { quota: QUOTA.into(), holder: "s1".into(), wanted: 1, holder_time: 90_000 };
    let QuotaReply::Granted { use_by, .. } = at(&mut group, 1_000, ahead) else { panic!() };
    assert!(use_by > 90_000);
}

#[test]
fn a_late_report_changes_nothing() {
    let mut group = QuotaGroup::default();
    put(&mut group, None);
    let incarnation = entry(&group).incarnation;
    at(&mut group, 0, report("s1", 8, 80, &[(incarnation, 5, &[])]));
    at(&mut group, 0, report("s1", 7, 70, &[]));
    assert_eq!(entry(&group).used, 5);
    at(&mut group, 0, report("s1", 9, 90, &[]));
    assert_eq!(entry(&group).used, 0, "what a report does not name is not in use");
}

#[test]
fn a_deleted_quota_counts_anew_and_its_old_agents_count_nowhere() {
    let mut group = QuotaGroup::default();
    put(&mut group, Some(10));
    let old = entry(&group).incarnation;
    at(&mut group, 0, report("s1", 1, 10, &[(old, 4, &[])]));
    at(&mut group, 0, QuotaCommand::Delete { quota: QUOTA.into() });
    put(&mut group, Some(10));
    let new = entry(&group).incarnation;
    assert!(new > old);
    at(&mut group, 0, report("s1", 2, 20, &[(old, 4, &[]), (new, 1, &[])]));
    assert_eq!(entry(&group).used, 1);
    at(&mut group, 0, report("s1", 3, 30, &[(old, 4, &[])]));
    assert_eq!(entry(&group).used, 0);
}

#[test]
fn a_shard_is_clean_of_a_deleted_quota_only_past_its_places() {
    let mut group = QuotaGroup::default();
    put(&mut group, Some(10));
    let incarnation = entry(&group).incarnation;
    let QuotaReply::Granted { use_by, .. } = at(&mut group, 0, grant("s1", 1)) else { panic!() };
    at(&mut group, 0, QuotaCommand::Delete { quota: QUOTA.into() });
    let clean = |index, log_time| {
        let report = ShardReport { holder: "s1".into(), index, log_time, used: Vec::new(), without: vec![incarnation] };
        QuotaCommand::Report(report)
    };
    let waiting =
        Pending { reservations: vec![(0, use_by)], deleted: vec![(incarnation, QUOTA.into())], in_use: false };
    assert_eq!(at(&mut group, 0, clean(1, use_by)), QuotaReply::Pending(waiting));
    assert_eq!(at(&mut group, 0, clean(2, use_by + 1)), QuotaReply::Pending(Pending::default()));
    let tombstones = vec![(incarnation, BTreeSet::from(["s1".to_owned()]))];
    assert_eq!(group.query(QuotaQuery::Tombstones), QuotaAnswer::Tombstones(tombstones));
    at(&mut group, 0, QuotaCommand::Forget { incarnation });
    assert_eq!(group.query(QuotaQuery::Tombstones), QuotaAnswer::Tombstones(Vec::new()));
}

#[test]
fn names_are_listed_in_order_by_pages() {
    let mut group = QuotaGroup::default();
    for quota in ["c", "a", "b"] {
        at(&mut group, 0, QuotaCommand::Put { quota: quota.into(), limit: None });
    }
    let list = |after: Option<&str>, limit| group.query(QuotaQuery::List { after: after.map(str::to_owned), limit });
    assert_eq!(list(None, 2), QuotaAnswer::Names(vec!["a".into(), "b".into()]));
    assert_eq!(list(Some("b"), 2), QuotaAnswer::Names(vec!["c".into()]));
}

#[test]
fn the_value_survives_its_archive() {
    let mut group = QuotaGroup::default();
    put(&mut group, Some(10));
    at(&mut group, 0, grant("s1", 4));
    at(&mut group, 0, QuotaCommand::Put { quota: "gone".into(), limit: None });
    at(&mut group, 0, QuotaCommand::Delete { quota: "gone".into() });
    let bytes = rafted_value::encode(&group).unwrap();
    assert_eq!(rafted_value::decode::<QuotaGroup>(&bytes).unwrap(), group);
}

/// Shards with clocks of their own, nodes that take places and crash, reports that are late, lost or out of
/// order, agents that come and go.
struct World {
    seed: u64,
    random: StdRng,
    group: QuotaGroup,
    now: u64,
    limit: u64,
    shards: Vec<Shard>,
    /// What nodes hold.
    held: Vec<Held>,
    /// Reports on their way.
    reports: Vec<ShardReport>,
    /// A planted fault: shards take places past their time.
    shards_ignore_time: bool,
}

#[derive(Debug, Clone, Default)]
struct Shard {
    index: u64,
    log_time: u64,
    /// The reservations of the agents that are active.
    agents: Vec<u64>,
}

/// The places of one grant.
#[derive(Debug, Clone)]
struct Held {
    shard: usize,
    reservation: u64,
    incarnation: u64,
    use_by: u64,
    left: u64,
    filled: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = StdRng::seed_from_u64(seed);
        let mut group = QuotaGroup::default();
        let limit = random.random_range(1..30);
        put(&mut group, Some(limit));
        let shards = vec![Shard::default(); 3];
        let (held, reports) = (Vec::new(), Vec::new());
        World { seed, random, group, now: 0, limit, shards, held, reports, shards_ignore_time: false }
    }

    fn active(&self) -> u64 {
        self.shards.iter().map(|shard| shard.agents.len() as u64).sum()
    }

    fn step(&mut self) {
        match self.random.random_range(0..24) {
            0..6 => self.take_grant(),
            6..10 => self.activate(),
            10 => self.crash(),
            11 => self.release(),
            12 => self.deactivate(),
            13..17 => {
                let shard = self.random.random_range(0..self.shards.len());
                let report = self.shard_report(shard);
                self.reports.push(report);
            }
            17..21 => self.deliver(),
            _ => self.pass_time(),
        }
    }

    fn take_grant(&mut self) {
        let shard = self.random.random_range(0..self.shards.len());
        let command = grant(&format!("s{shard}"), self.random.random_range(1..12));
        let reply = at(&mut self.group, self.now, command);
        if let QuotaReply::Granted { incarnation, reservation, amount, use_by } = reply {
            self.held.push(Held { shard, reservation, incarnation, use_by, left: amount, filled: 0 });
        }
    }

    /// A stamped command arrives at its shard, perhaps late.
    fn activate(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let chosen = self.random.random_range(0..self.held.len());
        let held = &mut self.held[chosen];
        let shard = &mut self.shards[held.shard];
        shard.index += 1;
        if held.left > 0 && (self.shards_ignore_time || shard.log_time <= held.use_by) {
            held.left -= 1;
            held.filled += 1;
            shard.agents.push(held.reservation);
        }
    }

    fn crash(&mut self) {
        if !self.held.is_empty() {
            let lost = self.random.random_range(0..self.held.len());
            self.held.swap_remove(lost);
        }
    }

    fn release(&mut self) {
        if let Some(held) = self.held.pop() {
            let Held { incarnation, reservation, filled, .. } = held;
            let command = QuotaCommand::Release { quota: QUOTA.into(), incarnation, reservation, filled };
            at(&mut self.group, self.now, command);
        }
    }

    fn deactivate(&mut self) {
        let chosen = self.random.random_range(0..self.shards.len());
        let shard = &mut self.shards[chosen];
        shard.index += 1;
        shard.agents.pop();
    }

    fn shard_report(&self, shard: usize) -> ShardReport {
        let Shard { index, log_time, ref agents } = self.shards[shard];
        let mut spent = BTreeMap::<u64, u64>::new();
        for reservation in agents {
            *spent.entry(*reservation).or_default() += 1;
        }
        let incarnation = entry(&self.group).incarnation;
        let used = QuotaUse {
            quota: QUOTA.into(),
            incarnation,
            used: agents.len() as u64,
            spent: spent.into_iter().collect(),
        };
        let used = if agents.is_empty() { Vec::new() } else { vec![used] };
        ShardReport { holder: format!("s{shard}"), index, log_time, used, without: Vec::new() }
    }

    fn deliver(&mut self) {
        if !self.reports.is_empty() {
            let chosen = self.random.random_range(0..self.reports.len());
            // Delivered again, or lost.
            let report = if self.random.random_bool(0.3) {
                self.reports[chosen].clone()
            } else {
                self.reports.swap_remove(chosen)
            };
            at(&mut self.group, self.now, QuotaCommand::Report(report));
        }
    }

    fn pass_time(&mut self) {
        self.now += self.random.random_range(0..4_000);
        for shard in 0..self.shards.len() {
            // Each shard's log time is its own: behind, or a little ahead.
            let to = (self.now + 300).saturating_sub(self.random.random_range(0..3_000));
            let shard = &mut self.shards[shard];
            shard.log_time = shard.log_time.max(to);
            shard.index += 1;
        }
    }

    fn check(&self) {
        let seed = self.seed;
        assert!(self.active() <= self.limit, "seed {seed}: {} of {} active", self.active(), self.limit);
        let QuotaEntry { used, reserved, .. } = entry(&self.group);
        assert!(used + reserved <= self.limit, "seed {seed}: used {used}, reserved {reserved} of {}", self.limit);
    }

    /// Everybody reports, past every time: what is free can be had, to the last place.
    fn settle_and_fill(&mut self) {
        self.held.clear();
        self.now += 60_000;
        for shard in 0..self.shards.len() {
            self.shards[shard].log_time = self.now;
            self.shards[shard].index += 1;
            let report = self.shard_report(shard);
            at(&mut self.group, self.now, QuotaCommand::Report(report));
        }
        let seed = self.seed;
        assert_eq!(entry(&self.group).used, self.active(), "seed {seed}");
        assert_eq!(entry(&self.group).reserved, 0, "seed {seed}");
        for _ in self.active()..self.limit {
            let reply = at(&mut self.group, self.now, grant("s0", 1));
            assert!(matches!(reply, QuotaReply::Granted { amount: 1, .. }), "seed {seed}: {reply:?}");
        }
        let one_more = at(&mut self.group, self.now, grant("s0", 1));
        assert!(!matches!(one_more, QuotaReply::Granted { .. }), "seed {seed}: {one_more:?}");
    }
}

#[test]
fn a_limit_is_never_exceeded_and_its_last_place_is_given_whatever_happens() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
            world.check();
        }
        world.settle_and_fill();
    }
}

#[test]
fn the_simulation_finds_shards_that_ignore_the_time() {
    let found = (0..300).any(|seed| {
        let mut world = World::new(seed);
        world.shards_ignore_time = true;
        (0..400).any(|_| {
            world.step();
            world.active() > world.limit
        })
    });
    assert!(found, "the planted fault was not found");
}
