//! Who waits for room.
//!
//! Room calls all who wait at the same moment, which makes batches, and whoever comes takes of it, in any order:
//! if each had to let all earlier ones go first, then every message would wait for a turn as soon as one
//! had, and the line would never be empty again. But who has lost its turn [`MAX_LOST_TURNS`] times goes
//! before all others: nobody waits for ever, and among those the earlier one goes first.
//!
//! A future that was called in such a turn and is never polled would hold up everybody, and is passed over
//! until it is polled again.

use std::collections::BTreeMap;
use std::task::Waker;

/// So often, who waits was called and found that others had taken the room; then the others wait.
const MAX_LOST_TURNS: u32 = 3;

/// Places by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Line {
    places: BTreeMap<u64, Place>,
    /// How many of them go before all others.
    overdue: usize,
    next: u64,
}

#[derive(Debug, Default)]
struct Place {
    /// `None` from when it is called until it is polled.
    waker: Option<Waker>,
    has_waited: bool,
    lost_turns: u32,
    patience: Patience,
}

/// What is done about an overdue place that was called.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It is waited for.
    #[default]
    Full,
    /// It has been waited for once.
    Short,
    /// The others go on without it.
    Spent,
}

impl Place {
    fn is_overdue(&self) -> bool {
        self.lost_turns >= MAX_LOST_TURNS
    }

    fn goes_first(&self) -> bool {
        self.is_overdue() && self.patience != Patience::Spent
    }
}

impl Line {
    /// A place at the end.
    pub(crate) fn join(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.places.insert(number, Place::default());
        number
    }

    pub(crate) fn leave(&mut self, number: u64) {
        if self.places.remove(&number).is_some_and(|place| place.is_overdue()) {
            self.overdue -= 1;
        }
    }

    /// Whether `number` may take room that there is, or with `None`, who has no place: nobody else goes first.
    pub(crate) fn may_take(&self, number: Option<u64>) -> bool {
        if self.overdue == 0 {
            return true;
        }
        let is_overdue = number.and_then(|number| self.places.get(&number)).is_some_and(Place::is_overdue);
        let others = if is_overdue { ..number.unwrap_or(u64::MAX) } else { ..u64::MAX };
        !self.places.range(others).any(|(_, place)| place.goes_first())
    }

    /// `number` was polled, found no room, and waits on.
    pub(crate) fn wait(&mut self, number: u64, waker: &Waker) {
        let place = self.places.entry(number).or_default();
        if place.waker.is_none() && place.has_waited && !place.is_overdue() {
            place.lost_turns += 1;
            self.overdue += usize::from(place.is_overdue());
        }
        place.has_waited = true;
        place.patience = Patience::Full;
        place.waker = Some(waker.clone());
    }

    /// Calls everybody; gives whom to wake, the first one first.
    pub(crate) fn call_all(&mut self) -> Vec<Waker> {
        self.places.values_mut().filter_map(|place| place.waker.take()).collect()
    }

    /// There may still be room: calls those who go first, or else everybody.
    pub(crate) fn call_next(&mut self) -> Vec<Waker> {
        if self.overdue == 0 {
            return self.call_all();
        }
        let mut first = self.places.values_mut().filter(|place| place.goes_first());
        first.next().and_then(|place| place.waker.take()).into_iter().collect()
    }

    /// To be called now and then while there is room: passes over who goes first and was called twice this
    /// long ago, and calls the next ones.
    pub(crate) fn tend(&mut self) -> Vec<Waker> {
        for place in self.places.values_mut().filter(|place| place.goes_first()) {
            if let Some(waker) = place.waker.take() {
                return vec![waker];
            }
            if place.patience == Patience::Full {
                place.patience = Patience::Short;
                return Vec::new();
            }
            place.patience = Patience::Spent;
        }
        self.call_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lose_turns(line: &mut Line, number: u64, turns: u32) {
        line.wait(number, Waker::noop());
        for _ in 0..turns {
            line.call_all();
            line.wait(number, Waker::noop());
        }
    }

    #[test]
    fn room_is_for_whoever_comes_until_somebody_has_lost_too_many_turns() {
        let mut line = Line::default();
        let (first, second) = (line.join(), line.join());
        lose_turns(&mut line, second, MAX_LOST_TURNS - 1);
        line.wait(first, Waker::noop());
        assert!(line.may_take(None) && line.may_take(Some(first)) && line.may_take(Some(second)));
        lose_turns(&mut line, second, 1);
        assert!(!line.may_take(None) && !line.may_take(Some(first)) && line.may_take(Some(second)));
        lose_turns(&mut line, first, MAX_LOST_TURNS);
        assert!(line.may_take(Some(first)), "among those, the earlier one goes first");
        assert!(!line.may_take(Some(second)));
        line.leave(first);
        line.leave(second);
        assert!(line.may_take(None));
    }

    #[test]
    fn who_is_polled_again_without_being_called_has_lost_no_turn() {
        let mut line = Line::default();
        let number = line.join();
        for _ in 0..10 {
            line.wait(number, Waker::noop());
        }
        assert!(line.may_take(None));
    }

    #[test]
    fn who_goes_first_and_does_not_come_is_passed_over() {
        let mut line = Line::default();
        let (first, second) = (line.join(), line.join());
        lose_turns(&mut line, first, MAX_LOST_TURNS);
        line.wait(second, Waker::noop());
        assert_eq!(line.call_next().len(), 1, "the first alone");
        assert!(line.tend().is_empty());
        assert!(!line.may_take(Some(second)));
        assert_eq!(line.tend().len(), 1, "the second is called");
        assert!(line.may_take(Some(second)) && line.may_take(None));
        // It comes after all, and has its place again.
        line.wait(first, Waker::noop());
        assert!(!line.may_take(Some(second)));
        line.leave(first);
        line.leave(second);
        assert!(line.may_take(None));
    }
}
