//! The limiter from many threads.
#![allow(clippy::unwrap_used)]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use quota::{Limiter, Rate, TakeError};

/// An admission: tokens were taken at some moment between these two, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Admitted {
    before: u64,
    after: u64,
    tokens: u64,
}

/// The greatest excess over `rate x window + burst` among all windows; 0 where none has any.
fn greatest_excess(admitted: &[Admitted], millis_per_token: u64, burst: u64) -> u64 {
    let mut by_end = admitted.to_vec();
    by_end.sort_by_key(|one| one.after);
    let mut excess = 0;
    for lower in admitted.iter().map(|one| one.before) {
        let mut tokens = 0;
        for one in by_end.iter().filter(|one| one.before >= lower) {
            tokens += one.tokens;
            let allowed = (one.after - lower) / millis_per_token + burst;
            excess = excess.max(tokens.saturating_sub(allowed));
        }
    }
    excess
}

/// Eight threads on two keys, and a clock that each of them moves on a little.
fn run(limiters: &[Limiter<u8>], millis_per_token: u64, burst: u32) -> Vec<Admitted> {
    let rate = Rate::new(Duration::from_millis(millis_per_token), burst).unwrap();
    let (start, clock) = (Instant::now(), AtomicU64::new(0));
    let worker = |thread: usize| {
        let mut admitted = Vec::new();
        for turn in 0..200_usize {
            let before = clock.load(Ordering::SeqCst);
            let now = start + Duration::from_millis(before);
            let tokens = 1 + (turn % 3) as u32;
            let limiter = &limiters[(turn / 2) % limiters.len()];
            // Both keys are used, one is watched.
            let taken = limiter.take_at((turn % 2) as u8, tokens, rate, now);
            let after = clock.fetch_add(((thread + turn) % 3) as u64, Ordering::SeqCst);
            match taken {
                Ok(()) if turn % 2 == 0 => {
                    admitted.push(Admitted { before, after, tokens: tokens.into() });
                }
                Ok(()) => {}
                Err(TakeError::Wait { retry_after }) => assert!(!retry_after.is_zero()),
                Err(other) => panic!("{other}"),
            }
        }
        admitted
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|thread| scope.spawn(move || worker(thread))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

#[test]
fn no_window_lets_through_more_than_rate_times_window_plus_burst() {
    for (millis_per_token, burst) in [(1, 3), (3, 5), (7, 10), (20, 50)] {
        let rate = Rate::new(Duration::from_millis(millis_per_token), burst).unwrap();
        let admitted = run(&[Limiter::new(rate)], millis_per_token, burst);
        assert!(!admitted.is_empty());
        let excess = greatest_excess(&admitted, millis_per_token, burst.into());
        assert_eq!(excess, 0, "{millis_per_token} ms per token, {burst} at most");
    }
}

#[test]
fn the_check_above_finds_two_buckets_where_one_is_meant() {
    let rate = Rate::new(Duration::from_millis(20), 50).unwrap();
    let admitted = run(&[Limiter::new(rate), Limiter::new(rate)], 20, 50);
    assert!(greatest_excess(&admitted, 20, 50) > 0);
}

#[test]
fn waiting_for_what_it_says_suffices_on_the_real_clock() {
    let limiter = Limiter::new(Rate::new(Duration::from_millis(5), 1).unwrap());
    assert_eq!(limiter.take("a", 1), Ok(()));
    let mut refusals = 0;
    while let Err(refused) = limiter.take("a", 1) {
        thread::sleep(refused.retry_after().unwrap());
        refusals += 1;
    }
    assert!(refusals <= 1, "{refusals} refusals");
}
