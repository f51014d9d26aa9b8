//! When to tell of a trouble that lasts: after a while, then ever more seldom; and at once, within reason, when it
//! becomes another one. Pure.

use std::time::{Duration, Instant};

/// Between the first two times; it doubles from there.
const FIRST_INTERVAL: Duration = Duration::from_secs(10);
const MAX_INTERVAL: Duration = Duration::from_secs(300);

/// What was told of one kind of trouble.
#[derive(Debug)]
pub(crate) struct Telling {
    /// How long a trouble must last to be told.
    patience: Duration,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    what: String,
    since: Instant,
    interval: Duration,
    /// When it was told last.
    told: Option<Instant>,
}

/// That something is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// How long it has lasted.
    pub(crate) lasts: Duration,
    /// When it is told again, if it is the same then.
    pub(crate) again_in: Duration,
}

impl Telling {
    pub(crate) fn after(patience: Duration) -> Self {
        Self { patience, trouble: None }
    }

    /// What is to be told of the state at this time; `None` in `what`: all is well.
    pub(crate) fn next(&mut self, at: Instant, what: Option<&str>) -> Option<Now> {
        let Some(what) = what else {
            self.trouble = None;
            return None;
        };
        let interval = FIRST_INTERVAL;
        let trouble =
            self.trouble.get_or_insert_with(|| Trouble { what: what.to_owned(), since: at, interval, told: None });
        if trouble.what != what {
            (trouble.what, trouble.interval) = (what.to_owned(), FIRST_INTERVAL);
        }
        let is_due = match trouble.told {
            None => at - trouble.since >= self.patience,
            Some(told) => at - told >= trouble.interval,
        };
        is_due.then(|| {
            if trouble.told.replace(at).is_some() {
                trouble.interval = (trouble.interval * 2).min(MAX_INTERVAL);
            }
            Now { lasts: at - trouble.since, again_in: trouble.interval }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds at which it is told, when it is looked at each second.
    fn told(patience: u64, what: impl Fn(u64) -> Option<&'static str>) -> Vec<u64> {
        let (start, mut telling) = (Instant::now(), Telling::after(Duration::from_secs(patience)));
        let at = |second| start + Duration::from_secs(second);
        (0..1_000).filter(|&second| telling.next(at(second), what(second)).is_some()).collect()
    }

    #[test]
    fn a_trouble_that_lasts_is_told_ever_more_seldom() {
        assert_eq!(told(3, |_| Some("a")), [3, 13, 33, 73, 153, 313, 613, 913]);
        assert_eq!(told(0, |_| Some("a"))[..3], [0, 10, 30]);
    }

    #[test]
    fn what_is_over_soon_is_not_told_and_what_comes_again_is_new() {
        assert_eq!(told(3, |second| (second % 3 != 0).then_some("a")), [0; 0]);
        assert_eq!(told(0, |second| (second != 5).then_some("a"))[..3], [0, 6, 16]);
    }

    #[test]
    fn another_trouble_is_told_soon_and_many_in_turn_are_no_flood() {
        assert_eq!(told(3, |second| Some(if second < 40 { "a" } else { "b" }))[..5], [3, 13, 33, 43, 63]);
        let in_turn = told(3, |second| Some(if second % 2 == 0 { "a" } else { "b" }));
        assert_eq!(in_turn.len(), 100, "one in ten seconds");
    }
}
