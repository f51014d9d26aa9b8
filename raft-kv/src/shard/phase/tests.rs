//! Every phase times every step.

use std::fmt::Write as _;

use expect_test::expect;

use super::*;

const ID: ShardId = ShardId { keyspace: 3, shard: 1 };

fn range(lower: u32, upper: u32) -> HashRange {
    HashRange::new(KeyHash(lower), KeyHash(upper)).unwrap()
}

fn transfer(workflow: u64, lower: u32, upper: u32) -> Transfer {
    Transfer { workflow, round: 0, range: range(lower, upper) }
}

fn steps() -> Vec<(&'static str, Step)> {
    vec![
        ("Serve 10-19", Step::Serve { id: ID, range: range(10, 19) }),
        ("Serve 10-29", Step::Serve { id: ID, range: range(10, 29) }),
        ("Serve other", Step::Serve { id: ShardId { keyspace: 4, shard: 1 }, range: range(10, 19) }),
        ("Receive 7", Step::Receive { id: ID, transfer: transfer(7, 20, 29) }),
        ("Receive 6", Step::Receive { id: ID, transfer: transfer(6, 20, 29) }),
        ("Receive far", Step::Receive { id: ID, transfer: transfer(7, 40, 49) }),
        ("Own 7", Step::Own { workflow: 7, chunks: 0 }),
        ("Own 7 of 2", Step::Own { workflow: 7, chunks: 2 }),
        ("Abandon 7", Step::Abandon { workflow: 7 }),
        ("Freeze 7 edge", Step::Freeze { transfer: transfer(7, 15, 19) }),
        ("Freeze 7 all", Step::Freeze { transfer: transfer(7, 10, 19) }),
        ("Freeze 7 middle", Step::Freeze { transfer: transfer(7, 12, 15) }),
        ("Unfreeze 7", Step::Unfreeze { workflow: 7 }),
        ("Drop 7", Step::Drop { workflow: 7 }),
        ("Drop 6", Step::Drop { workflow: 6 }),
        ("Close", Step::Close { keyspace: 3 }),
        ("Close other", Step::Close { keyspace: 4 }),
    ]
}

fn phases() -> Vec<(&'static str, Ownership)> {
    let after = |steps: &[Step]| {
        let mut ownership = Ownership::default();
        for &step in steps {
            ownership.take(step).unwrap();
        }
        ownership
    };
    let serve = Step::Serve { id: ID, range: range(10, 19) };
    let receive = Step::Receive { id: ID, transfer: transfer(7, 20, 29) };
    let freeze = |lower| Step::Freeze { transfer: transfer(7, lower, 19) };
    vec![
        ("Fresh", after(&[])),
        ("Serving", after(&[serve])),
        ("Receiving, fresh", after(&[receive])),
        ("Receiving", after(&[serve, receive])),
        ("Owned 7", after(&[serve, receive, Step::Own { workflow: 7, chunks: 0 }])),
        ("Abandoned 7", after(&[serve, receive, Step::Abandon { workflow: 7 }])),
        ("Frozen edge", after(&[serve, freeze(15)])),
        ("Frozen all", after(&[serve, freeze(10)])),
        ("Unfrozen 7", after(&[serve, freeze(15), Step::Unfreeze { workflow: 7 }])),
        ("Moved 7", after(&[serve, freeze(15), Step::Drop { workflow: 7 }])),
        ("Moved all 7", after(&[serve, freeze(10), Step::Drop { workflow: 7 }])),
        ("Closed", after(&[serve, Step::Close { keyspace: 3 }])),
    ]
}

fn describe(range: HashRange) -> String {
    format!("{}-{}", range.lower().0, range.upper().0)
}

fn name(phase: &Phase) -> String {
    match phase {
        Phase::Fresh => "Fresh".into(),
        Phase::Serving { own } => format!("Serving {}", describe(*own)),
        Phase::Receiving { own, transfer, .. } => {
            format!("Receiving {} beside {:?}", describe(transfer.range), own.map(describe))
        }
        Phase::Frozen { own, transfer } => format!("Frozen {} of {}", describe(transfer.range), describe(*own)),
        Phase::Dropped => "Dropped".into(),
    }
}

#[test]
fn every_phase_times_every_step() {
    let mut table = String::new();
    for (from, ownership) in phases() {
        writeln!(table, "{from}: {}", name(ownership.phase())).unwrap();
        for (label, step) in steps() {
            let mut next = ownership.clone();
            match next.take(step) {
                Ok(Taken::Already) => {
                    assert_eq!(next, ownership);
                    writeln!(table, "  {label:<16}already").unwrap();
                }
                Ok(Taken::Forget(gone)) => {
                    writeln!(table, "  {label:<16}{}, forget {}", name(next.phase()), describe(gone)).unwrap();
                }
                Ok(Taken::ForgetAll) => writeln!(table, "  {label:<16}{}, forget all", name(next.phase())).unwrap(),
                Ok(Taken::Changed) => writeln!(table, "  {label:<16}{}", name(next.phase())).unwrap(),
                Err(refused) => {
                    assert_eq!(next, ownership, "a refused step changes nothing");
                    if !matches!(refused, StepRefused::WrongPhase { .. }) {
                        let why = format!("{refused:?}");
                        let why = why.split([' ', '{']).next().unwrap();
                        writeln!(table, "  {label:<16}{why}").unwrap();
                    }
                }
            }
        }
    }
    expect![[r#"
        Fresh: Fresh
          Serve 10-19     Serving 10-19
          Serve 10-29     Serving 10-29
          Serve other     Serving 10-19
          Receive 7       Receiving 20-29 beside None
          Receive 6       Receiving 20-29 beside None
          Receive far     Receiving 40-49 beside None
          Abandon 7       Fresh
          Close           Dropped, forget all
          Close other     Dropped, forget all
        Serving: Serving 10-19
          Serve 10-19     already
          Serve other     WrongShard
          Receive 7       Receiving 20-29 beside Some("10-19")
          Receive 6       Receiving 20-29 beside Some("10-19")
          Abandon 7       Serving 10-19
          Freeze 7 edge   Frozen 15-19 of 10-19
          Freeze 7 all    Frozen 10-19 of 10-19
          Close           Dropped, forget all
          Close other     WrongShard
        Receiving, fresh: Receiving 20-29 beside None
          Serve other     WrongShard
          Receive 7       already
          Receive 6       Gone
          Own 7           Serving 20-29
          Abandon 7       Fresh, forget 20-29
          Drop 6          Gone
          Close           Dropped, forget all
          Close other     WrongShard
        Receiving: Receiving 20-29 beside Some("10-19")
          Serve other     WrongShard
          Receive 7       already
          Receive 6       Gone
          Own 7           Serving 10-29
          Abandon 7       Serving 10-19, forget 20-29
          Drop 6          Gone
          Close           Dropped, forget all
          Close other     WrongShard
        Owned 7: Serving 10-29
          Serve other     WrongShard
          Receive 7       Gone
          Receive 6       Gone
          Receive far     Gone
          Own 7           already
          Own 7 of 2      already
          Abandon 7       Gone
          Freeze 7 edge   Gone
          Freeze 7 all    Gone
          Freeze 7 middle Gone
          Unfreeze 7      Gone
          Drop 7          Gone
          Drop 6          Gone
          Close           Dropped, forget all
          Close other     WrongShard
        Abandoned 7: Serving 10-19
          Serve other     WrongShard
          Receive 7       Gone
          Receive 6       Gone
          Receive far     Gone
          Own 7           Gone
          Own 7 of 2      Gone
          Abandon 7       already
          Freeze 7 edge   Gone
          Freeze 7 all    Gone
          Freeze 7 middle Gone
          Unfreeze 7      Gone
          Drop 7          Gone
          Drop 6          Gone
          Close           Dropped, forget all
          Close other     WrongShard
        Frozen edge: Frozen 15-19 of 10-19
          Serve other     WrongShard
          Receive 6       Gone
          Freeze 7 edge   already
          Unfreeze 7      Serving 10-19
          Drop 7          Serving 10-14, forget 15-19
          Drop 6          Gone
          Close           Dropped, forget all
          Close other     WrongShard
        Frozen all: Frozen 10-19 of 10-19
          Serve other     WrongShard
          Receive 6       Gone
          Freeze 7 all    already
          Unfreeze 7      Serving 10-19
          Drop 7          Dropped, forget all
          Drop 6          Gone
          Close           Dropped, forget all
          Close other     WrongShard
        Unfrozen 7: Serving 10-19
          Serve other     WrongShard
          Receive 7       Gone
          Receive 6       Gone
          Receive far     Gone
          Own 7           Gone
          Own 7 of 2      Gone
          Abandon 7       Gone
          Freeze 7 edge   Gone
          Freeze 7 all    Gone
          Freeze 7 middle Gone
          Unfreeze 7      already
          Drop 7          Gone
          Drop 6          Gone
          Close           Dropped, forget all
          Close other     WrongShard
        Moved 7: Serving 10-14
          Serve other     WrongShard
          Receive 7       Gone
          Receive 6       Gone
          Receive far     Gone
          Own 7           Gone
          Own 7 of 2      Gone
          Abandon 7       Gone
          Freeze 7 edge   Gone
          Freeze 7 all    Gone
          Freeze 7 middle Gone
          Unfreeze 7      Gone
          Drop 7          already
          Drop 6          Gone
          Close           Dropped, forget all
          Close other     WrongShard
        Moved all 7: Dropped
          Serve other     WrongShard
          Receive 7       Gone
          Receive 6       Gone
          Receive far     Gone
          Own 7           Gone
          Own 7 of 2      Gone
          Abandon 7       Gone
          Freeze 7 edge   Gone
          Freeze 7 all    Gone
          Freeze 7 middle Gone
          Unfreeze 7      Gone
          Drop 7          already
          Drop 6          Gone
          Close           already
          Close other     WrongShard
        Closed: Dropped
          Serve other     WrongShard
          Close           already
          Close other     WrongShard
    "#]]
    .assert_eq(&table);
}

#[test]
fn a_taken_step_can_be_taken_again() {
    for (from, ownership) in phases() {
        for (label, step) in steps() {
            let mut next = ownership.clone();
            if next.take(step).is_ok() {
                assert_eq!(next.take(step), Ok(Taken::Already), "{label} twice in {from}");
            }
        }
    }
}

#[test]
fn keys_are_served_inside_the_range_and_moved_outside() {
    let here = Owner::Here;
    let (moved, wait) = (Owner::Moved { wait: false }, Owner::Moved { wait: true });
    let expected = [
        ("Fresh", [wait, wait, wait, wait, wait]),
        ("Serving", [moved, here, here, moved, moved]),
        ("Receiving, fresh", [moved, moved, moved, wait, moved]),
        ("Receiving", [moved, here, here, wait, moved]),
        ("Owned 7", [moved, here, here, here, moved]),
        ("Abandoned 7", [moved, here, here, moved, moved]),
        ("Frozen edge", [moved, here, wait, moved, moved]),
        ("Frozen all", [moved, wait, wait, moved, moved]),
        ("Unfrozen 7", [moved, here, here, moved, moved]),
        ("Moved 7", [moved, here, moved, moved, moved]),
        ("Moved all 7", [moved; 5]),
        ("Closed", [moved; 5]),
    ];
    for ((label, ownership), (expected_label, owners)) in phases().into_iter().zip(expected) {
        assert_eq!(label, expected_label);
        // Just below the range, its first, its last, and both sides of the moving range's end.
        for (hash, owner) in [9, 10, 19, 20, 30].into_iter().zip(owners) {
            assert_eq!(ownership.owner(KeyHash(hash)), owner, "{label}: {hash}");
            let served = ownership.served().is_some_and(|range| range.contains(KeyHash(hash)));
            assert_eq!(served, owner == Owner::Here, "{label}: {hash}");
        }
    }
}
