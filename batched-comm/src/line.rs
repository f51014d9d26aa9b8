//! Who waits for room, in the order in which they came.
//!
//! Whoever has a place and finds no room keeps the place, so that a sender that comes back at once does
//! not go first again. Room calls all of them at the same moment, which makes batches; each goes when
//! nobody is before it. A future that was called and is never polled would hold up everybody behind it,
//! and is passed over until it is polled again.

use std::collections::BTreeMap;
use std::task::Waker;

/// Places by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Line {
    places: BTreeMap<u64, Place>,
    next: u64,
}

#[derive(Debug, Default)]
struct Place {
    /// `None` from when it is called until it is polled.
    waker: Option<Waker>,
    patience: Patience,
}

/// What is done about a place that was called.
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

impl Line {
    /// A place at the end.
    pub(crate) fn join(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.places.insert(number, Place::default());
        number
    }

    pub(crate) fn leave(&mut self, number: u64) {
        self.places.remove(&number);
    }

    /// Whether nobody is before `number`; with `None`, whether nobody waits.
    pub(crate) fn is_first(&self, number: Option<u64>) -> bool {
        let before = ..number.unwrap_or(u64::MAX);
        self.places.range(before).all(|(_, place)| place.patience == Patience::Spent)
    }

    /// `number` was polled, and waits on.
    pub(crate) fn wait(&mut self, number: u64, waker: &Waker) {
        self.places.insert(number, Place { waker: Some(waker.clone()), patience: Patience::Full });
    }

    /// Calls everybody; gives whom to wake, the first one first.
    pub(crate) fn call_all(&mut self) -> Vec<Waker> {
        self.places.values_mut().filter_map(|place| place.waker.take()).collect()
    }

    /// Calls the first one that is there.
    pub(crate) fn call_first(&mut self) -> Option<Waker> {
        let first = self.places.values_mut().find(|place| place.patience != Patience::Spent);
        first.and_then(|place| place.waker.take())
    }

    /// To be called now and then while there is room: passes over who was called twice this long ago, and
    /// calls the next one.
    pub(crate) fn tend(&mut self) -> Option<Waker> {
        for place in self.places.values_mut() {
            if let Some(waker) = place.waker.take() {
                return Some(waker);
            }
            match place.patience {
                Patience::Full => {
                    place.patience = Patience::Short;
                    return None;
                }
                Patience::Short | Patience::Spent => place.patience = Patience::Spent,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_goes_first_and_who_does_not_come_is_passed_over() {
        let mut line = Line::default();
        let (first, second) = (line.join(), line.join());
        for number in [first, second] {
            line.wait(number, Waker::noop());
        }
        assert!(line.is_first(Some(first)) && !line.is_first(Some(second)) && !line.is_first(None));
        assert_eq!(line.call_all().len(), 2);
        line.wait(second, Waker::noop());
        assert!(line.tend().is_none());
        assert!(!line.is_first(Some(second)));
        assert!(line.tend().is_some(), "the second is called");
        assert!(line.is_first(Some(second)));
        // It comes after all, and has its place again.
        line.wait(first, Waker::noop());
        assert!(!line.is_first(Some(second)));
        line.leave(first);
        line.leave(second);
        assert!(line.is_first(None));
    }
}
