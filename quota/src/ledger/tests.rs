//! The ledger by table, and with holders that report late, lose reports and come back.
#![allow(clippy::unwrap_used)]

use super::*;

const USE_BY: Duration = Duration::from_secs(10);

fn report(index: u64, seconds: u64, used: u64, spent: &[(ReservationId, u64)]) -> Report {
    Report { index, time: Duration::from_secs(seconds), used, spent: spent.to_vec() }
}

fn ledger(limit: Option<u64>) -> (Ledger, Incarnation) {
    let mut ledger = Ledger::new();
    match ledger.put("q", limit) {
        Put::Created(incarnation) => (ledger, incarnation),
        Put::Changed(_) => panic!("a new ledger has no quota"),
    }
}

#[test]
fn grants_are_a_share_of_what_is_free_and_of_one_when_little_remains() {
    // (limit, wanted, granted)
    let rows = [
        (None, 500, 500),
        (None, 0, 1),
        (Some(800), 500, 100),
        (Some(800), 7, 7),
        (Some(9), 500, 2),
        (Some(8), 500, 1),
        (Some(1), 500, 1),
    ];
    for (limit, wanted, granted) in rows {
        let (mut ledger, _) = ledger(limit);
        let grant = ledger.grant("q", "a", wanted, USE_BY).unwrap();
        assert_eq!(grant.amount, granted, "{wanted} of {limit:?}");
        assert_eq!(ledger.usage("q").unwrap(), Usage { limit, used: 0, reserved: granted });
    }
}

#[test]
fn unknown_quotas_and_old_incarnations_are_refused() {
    let (mut ledger, incarnation) = ledger(Some(1));
    assert_eq!(ledger.put("q", Some(2)), Put::Changed(incarnation));
    assert!(ledger.remove("q").is_some());
    assert!(ledger.remove("q").is_none());
    let unknown = LedgerError::UnknownQuota { quota: "q".into() };
    let refused = ledger.grant("q", "a", 1, USE_BY);
    assert_eq!(refused, Err(GrantError::UnknownQuota { quota: "q".into() }));
    assert_eq!(ledger.recall("q"), Err(unknown.clone()));
    assert_ne!(ledger.put("q", Some(2)), Put::Created(incarnation));
    assert_eq!(ledger.settle("q", incarnation, "a", &report(1, 0, 1, &[])), Err(unknown));
    assert_eq!(ledger.usage("q").unwrap().used, 0);
    assert_eq!(ledger.quotas().collect::<Vec<_>>(), ["q"]);
}

#[test]
fn before_a_refusal_it_recalls_once() {
    let (mut ledger, incarnation) = ledger(Some(2));
    let one = ledger.grant("q", "a", 1, USE_BY).unwrap().reservation;
    let two = ledger.grant("q", "b", 1, USE_BY).unwrap().reservation;
    let recalls =
        vec![Recall { holder: "a".into(), reservation: one }, Recall { holder: "b".into(), reservation: two }];
    assert_eq!(ledger.grant("q", "c", 1, USE_BY), Err(GrantError::Recall { recalls }));
    let held = GrantError::Held { reserved: 2, use_by: USE_BY };
    assert_eq!(ledger.grant("q", "c", 1, USE_BY), Err(held));
    // One was filled, the other was not needed.
    ledger.release("q", incarnation, one, 1).unwrap();
    ledger.release("q", incarnation, two, 0).unwrap();
    ledger.release("q", incarnation, two, 0).unwrap();
    assert_eq!(ledger.usage("q").unwrap(), Usage { limit: Some(2), used: 0, reserved: 1 });
    let three = ledger.grant("q", "c", 1, USE_BY).unwrap().reservation;
    ledger.settle("q", incarnation, "a", &report(1, 0, 1, &[(one, 1)])).unwrap();
    ledger.settle("q", incarnation, "c", &report(1, 0, 1, &[(three, 1)])).unwrap();
    let reached = GrantError::LimitReached { limit: 2, used: 2 };
    assert_eq!(ledger.grant("q", "c", 1, USE_BY), Err(reached));
    assert_eq!(ledger.account("q").unwrap().reservations().count(), 0);
}

#[test]
fn reports_count_once_and_end_what_is_past_its_use_by() {
    let (mut ledger, incarnation) = ledger(Some(80));
    let id = ledger.grant("q", "a", 10, USE_BY).unwrap().reservation;
    // (the report, what the ledger answers, used, reserved)
    let rows = [
        ("three filled", report(5, 1, 3, &[(id, 3)]), Settled::Applied, 3, 7),
        ("the same again", report(5, 1, 3, &[(id, 3)]), Settled::Stale, 3, 7),
        ("an older one", report(4, 1, 2, &[(id, 2)]), Settled::Stale, 3, 7),
        ("one was freed", report(6, 10, 2, &[(id, 3)]), Settled::Applied, 2, 7),
        ("past use_by, one more filled", report(7, 11, 3, &[(id, 4)]), Settled::Applied, 3, 0),
        ("a claim beyond what is known", report(8, 12, 3, &[(id, 9)]), Settled::Applied, 3, 0),
    ];
    for (what, report, answer, used, reserved) in rows {
        assert_eq!(ledger.settle("q", incarnation, "a", &report), Ok(answer), "{what}");
        let usage = ledger.usage("q").unwrap();
        assert_eq!((usage.used, usage.reserved), (used, reserved), "{what}");
    }
    ledger.forget_holder("a");
    assert_eq!(ledger.usage("q").unwrap().used, 0);
}

#[test]
fn a_holder_cannot_spend_anothers_reservation() {
    let (mut ledger, incarnation) = ledger(Some(8));
    let id = ledger.grant("q", "a", 1, USE_BY).unwrap().reservation;
    ledger.settle("q", incarnation, "b", &report(1, 99, 1, &[(id, 1)])).unwrap();
    assert_eq!(ledger.usage("q").unwrap(), Usage { limit: Some(8), used: 1, reserved: 1 });
}

#[test]
fn a_lowered_limit_stops_grants_and_takes_nothing_back() {
    let (mut ledger, incarnation) = ledger(Some(100));
    let id = ledger.grant("q", "a", 5, USE_BY).unwrap().reservation;
    ledger.settle("q", incarnation, "a", &report(1, 0, 5, &[(id, 5)])).unwrap();
    ledger.put("q", Some(3));
    let reached = GrantError::LimitReached { limit: 3, used: 5 };
    assert_eq!(ledger.grant("q", "a", 1, USE_BY), Err(reached));
    ledger.put("q", None);
    assert!(ledger.grant("q", "a", 1, USE_BY).is_ok());
}

/// A holder as a shard would be: fills from its reservations, frees, reports a state of some moment.
#[derive(Default)]
struct Holder {
    name: String,
    index: u64,
    used: u64,
    open: Vec<(ReservationId, u64, u64, Duration)>, // id, amount, filled, use by
    /// Reports on their way, in any order, some never to arrive.
    sent: Vec<Report>,
}

impl Holder {
    fn report(&self, now: Duration) -> Report {
        let spent = self.open.iter().map(|(id, _, filled, _)| (*id, *filled)).collect();
        Report { index: self.index, time: now, used: self.used, spent }
    }
}

/// A small generator, so that a failure names the seed that shows it again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

fn step(seed: u64, random: &mut Random, ledger: &mut Ledger, holders: &mut [Holder], now: Duration) {
    let incarnation = ledger.account("q").unwrap().incarnation();
    let at = random.below(holders.len());
    let holder = &mut holders[at];
    holder.index += 1;
    match random.below(7) {
        0 => {
            let use_by = now + Duration::from_secs(random.below(20) as u64);
            if let Ok(grant) = ledger.grant("q", &holder.name, random.below(5) as u64, use_by) {
                holder.open.push((grant.reservation, grant.amount, 0, use_by));
            }
        }
        1 | 2 => {
            let open = |(_, amount, filled, use_by): &&mut (_, u64, u64, Duration)| filled < amount && *use_by >= now;
            if let Some((_, _, filled, _)) = holder.open.iter_mut().find(open) {
                *filled += 1;
                holder.used += 1;
            }
        }
        3 => holder.used = holder.used.saturating_sub(1),
        4 => holder.sent.push(holder.report(now)),
        5 if !holder.sent.is_empty() => {
            let report = holder.sent.swap_remove(random.below(holder.sent.len()));
            ledger.settle("q", incarnation, &holder.name, &report).unwrap();
        }
        6 if !holder.open.is_empty() => {
            let (id, _, filled, _) = holder.open[random.below(holder.open.len())];
            for open in &mut holder.open {
                if open.0 == id {
                    open.1 = filled; // it fills no more from this one
                }
            }
            ledger.release("q", incarnation, id, filled).unwrap();
        }
        _ => {}
    }
    let usage = ledger.usage("q").unwrap();
    let truly_used: u64 = holders.iter().map(|holder| holder.used).sum();
    let limit = usage.limit.unwrap();
    assert!(truly_used <= limit, "seed {seed}: {truly_used} used of {limit}");
    assert!(usage.used + usage.reserved <= limit, "seed {seed}: {usage:?}");
}

#[test]
fn whatever_holders_do_the_limit_holds_and_the_last_place_is_given() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let limit = 1 + random.below(20) as u64;
        let (mut ledger, incarnation) = ledger(Some(limit));
        let named = |name: &str| Holder { name: name.into(), ..Holder::default() };
        let mut holders = [named("a"), named("b"), named("c")];
        for second in 0..400 {
            let now = Duration::from_secs(second / 4);
            step(seed, &mut random, &mut ledger, &mut holders, now);
        }
        // When all have reported past every use_by, exactly what is truly free is given.
        let late = Duration::from_secs(1_000);
        for holder in &mut holders {
            holder.index += 1;
            ledger.settle("q", incarnation, &holder.name, &holder.report(late)).unwrap();
        }
        let truly_used: u64 = holders.iter().map(|holder| holder.used).sum();
        let mut given = 0;
        while let Ok(grant) = ledger.grant("q", "a", u64::MAX, late) {
            given += grant.amount;
        }
        assert_eq!(given, limit - truly_used, "seed {seed}");
    }
}

#[cfg(feature = "rkyv")]
#[test]
fn a_ledger_survives_being_archived() {
    let (mut ledger, incarnation) = ledger(Some(80));
    let id = ledger.grant("q", "a", 10, USE_BY).unwrap().reservation;
    ledger.settle("q", incarnation, "a", &report(5, 1, 3, &[(id, 3)])).unwrap();
    let bytes = rkyv::to_bytes::<rkyv::rancor::Error>(&ledger).unwrap();
    let back = rkyv::from_bytes::<Ledger, rkyv::rancor::Error>(&bytes).unwrap();
    assert_eq!(back, ledger);
}
