//! Who waits for room.
//!
//! Room calls those who wait, many at the same moment, which makes batches, and whoever comes takes of it, in any
//! order: if each had to let all earlier ones go first, then every message would wait for a turn as soon as one had,
//! and the line would never be empty again. But who has lost its turn [`MAX_LOST_TURNS`] times is *overdue*, and only
//! the first [`WINDOW`] of those who are, in the order in which they became so, may take room: nobody waits for ever.
//!
//! A future that is overdue, was called and is not polled would hold up everybody. It is passed over after a while,
//! and overdue again when it is polled.

use std::collections::{BTreeMap, BTreeSet};
use std::task::Waker;

/// So often, who waits was called and found that others had taken the room; then others wait.
const MAX_LOST_TURNS: u32 = 3;
/// So many of those who are overdue may take room: one at a time, each would have to wake the next.
const WINDOW: usize = 64;
/// So many are called at once of those who are not overdue; each that goes calls one more, if there is room.
const CALLED_AT_ONCE: usize = 256;

/// Places by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Line {
    places: BTreeMap<u64, Place>,
    /// Who has a waker and is not overdue.
    sleepers: BTreeSet<u64>,
    /// Who is overdue, by the order in which they became so.
    overdue: BTreeMap<u64, u64>,
    next: u64,
    next_order: u64,
    /// The last one who was overdue has gone: the others may take room again.
    freed: bool,
}

#[derive(Debug, Default)]
struct Place {
    /// `None` from when it is called until it is polled.
    waker: Option<Waker>,
    has_waited: bool,
    lost_turns: u32,
    /// Its order among those who are overdue.
    overdue: Option<u64>,
    /// It was called, and not polled for a while.
    is_late: bool,
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
        self.sleepers.remove(&number);
        if let Some(order) = self.places.remove(&number).and_then(|place| place.overdue) {
            self.remove_overdue(order);
        }
    }

    fn remove_overdue(&mut self, order: u64) {
        self.overdue.remove(&order);
        self.freed |= self.overdue.is_empty();
    }

    /// Whether `number` may take room that there is, or with `None`, who has no place: not too many go first.
    pub(crate) fn may_take(&self, number: Option<u64>) -> bool {
        if self.overdue.is_empty() {
            return true;
        }
        let order = number.and_then(|number| self.places.get(&number)).and_then(|place| place.overdue);
        order.is_some_and(|order| self.overdue.range(..order).take(WINDOW).count() < WINDOW)
    }

    /// `number` was polled, found no room, and waits on.
    pub(crate) fn wait(&mut self, number: u64, waker: &Waker) {
        let place = self.places.entry(number).or_default();
        if place.waker.is_none() && place.has_waited && place.overdue.is_none() {
            place.lost_turns += 1;
            if place.lost_turns >= MAX_LOST_TURNS {
                place.overdue = Some(self.next_order);
                self.overdue.insert(self.next_order, number);
                self.next_order += 1;
            }
        }
        place.has_waited = true;
        place.is_late = false;
        place.waker = Some(waker.clone());
        if place.overdue.is_none() {
            self.sleepers.insert(number);
        }
    }

    /// There is room: calls who may take it. Gives whom to wake.
    pub(crate) fn call(&mut self) -> Vec<Waker> {
        self.freed = false;
        self.call_up_to(CALLED_AT_ONCE)
    }

    /// Everybody, whether there is room or not.
    pub(crate) fn call_all(&mut self) -> Vec<Waker> {
        self.freed = false;
        self.sleepers.clear();
        self.places.values_mut().filter_map(|place| place.waker.take()).collect()
    }

    /// Somebody has left, and there is still room: calls who may take it now and was not called yet.
    pub(crate) fn call_next(&mut self) -> Vec<Waker> {
        if self.places.is_empty() {
            return Vec::new();
        }
        if std::mem::take(&mut self.freed) { self.call_up_to(CALLED_AT_ONCE) } else { self.call_up_to(1) }
    }

    fn call_up_to(&mut self, count: usize) -> Vec<Waker> {
        if self.overdue.is_empty() {
            let called = (0..count).map_while(|_| self.sleepers.pop_first());
            return called.filter_map(|number| self.places.get_mut(&number)?.waker.take()).collect();
        }
        let window = self.overdue.values().take(WINDOW);
        window.filter_map(|number| self.places.get_mut(number)?.waker.take()).collect()
    }

    /// To be called now and then while there is room: passes over those who are overdue and were called twice this
    /// long ago, and calls who may take the room.
    pub(crate) fn tend(&mut self) -> Vec<Waker> {
        let window: Vec<_> = self.overdue.iter().take(WINDOW).map(|(order, number)| (*order, *number)).collect();
        for (order, number) in window {
            let Some(place) = self.places.get_mut(&number).filter(|place| place.waker.is_none()) else { continue };
            if !place.is_late {
                place.is_late = true;
                continue;
            }
            place.overdue = None;
            place.lost_turns = MAX_LOST_TURNS - 1;
            self.remove_overdue(order);
        }
        self.call()
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

    /// Places that all are overdue.
    fn overdue(line: &mut Line, count: usize) -> Vec<u64> {
        let numbers: Vec<_> = (0..count).map(|_| line.join()).collect();
        numbers.iter().for_each(|number| line.wait(*number, Waker::noop()));
        for _ in 0..MAX_LOST_TURNS {
            line.call_all();
            numbers.iter().for_each(|number| line.wait(*number, Waker::noop()));
        }
        numbers
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
        line.wait(first, Waker::noop());
        line.leave(second);
        assert!(line.may_take(None) && line.may_take(Some(first)));
        assert_eq!(line.call_next().len(), 1, "who was held up is called");
    }

    #[test]
    fn who_becomes_overdue_does_not_overtake_who_is() {
        let mut line = Line::default();
        let (earlier, later) = (line.join(), line.join());
        lose_turns(&mut line, later, MAX_LOST_TURNS);
        line.wait(earlier, Waker::noop());
        for _ in 1..MAX_LOST_TURNS {
            line.call_all();
            line.wait(later, Waker::noop());
            line.wait(earlier, Waker::noop());
        }
        assert_eq!(line.call_all().len(), 2);
        line.wait(earlier, Waker::noop());
        assert!(line.may_take(Some(later)), "it was called, and nobody wakes it again");
    }

    #[test]
    fn among_many_who_are_overdue_those_who_became_so_first_go_first() {
        let mut line = Line::default();
        let numbers = overdue(&mut line, WINDOW + 2);
        assert_eq!(line.call().len(), WINDOW);
        assert!(line.may_take(Some(numbers[WINDOW - 1])) && !line.may_take(Some(numbers[WINDOW])));
        line.leave(numbers[3]);
        assert_eq!(line.call_next().len(), 1, "the next one comes into the window");
        assert!(line.may_take(Some(numbers[WINDOW])) && !line.may_take(Some(numbers[WINDOW + 1])));
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
    fn room_calls_not_all_of_very_many_and_each_that_goes_calls_one_more() {
        let mut line = Line::default();
        let numbers: Vec<_> = (0..CALLED_AT_ONCE as u64 + 2).map(|_| line.join()).collect();
        numbers.iter().for_each(|number| line.wait(*number, Waker::noop()));
        assert_eq!(line.call().len(), CALLED_AT_ONCE);
        line.leave(numbers[0]);
        assert_eq!(line.call_next().len(), 1);
        assert_eq!(line.call_all().len(), 1, "the last one");
    }

    #[test]
    fn those_who_go_first_and_do_not_come_are_passed_over_together() {
        let mut line = Line::default();
        let idle = overdue(&mut line, WINDOW);
        let waiting = line.join();
        line.wait(waiting, Waker::noop());
        assert_eq!(line.call().len(), WINDOW);
        assert!(line.tend().is_empty());
        assert!(!line.may_take(Some(waiting)));
        assert_eq!(line.tend().len(), 1, "the one that waits is called");
        assert!(line.may_take(Some(waiting)) && line.may_take(None));
        // They come after all, and are overdue again.
        line.wait(idle[0], Waker::noop());
        assert!(!line.may_take(Some(waiting)) && line.may_take(Some(idle[0])));
        idle.iter().for_each(|number| line.leave(*number));
        assert!(line.may_take(None));
    }
}
