//! Calls that wait for their answers: numbers, who waits, until when.
//!
//! A slot is used again under a new number, so that a late answer finds nobody. There is no timer per
//! call: the table knows a moment before which nothing expires, and is looked through then. A steady
//! stream of calls is answered long before, and is looked at about once per timeout.

use std::task::{Poll, Waker};
use std::time::Instant;

/// Calls to one peer that may be pending at once.
pub(crate) const MAX_CALLS: usize = 1 << 20;

/// Pending calls, each to be answered with an `A`.
pub(crate) struct Calls<A> {
    slots: Vec<Slot<A>>,
    free: Vec<u32>,
    /// Nothing expires before.
    next_deadline: Option<Instant>,
}

struct Slot<A> {
    /// The upper half of the number of the call that has the slot, or will have it.
    generation: u32,
    state: State<A>,
}

enum State<A> {
    Free,
    Waiting { deadline: Instant, waker: Option<Waker> },
    Answered(A),
}

/// A new call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entered {
    pub(crate) id: u64,
    /// The table's next deadline has come nearer.
    pub(crate) sooner: bool,
}

/// What became of an answer.
pub(crate) enum Delivered {
    /// Wake this one, if it waits already.
    To(Option<Waker>),
    /// Nobody waits any more.
    Late,
}

impl<A> Calls<A> {
    pub(crate) fn new() -> Self {
        Calls { slots: Vec::new(), free: Vec::new(), next_deadline: None }
    }

    /// A call that expires at `deadline`; `None` when too many are pending.
    pub(crate) fn enter(&mut self, deadline: Instant) -> Option<Entered> {
        let state = State::Waiting { deadline, waker: None };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize].state = state;
                index
            }
            None if self.slots.len() < MAX_CALLS => {
                self.slots.push(Slot { generation: 1, state });
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        let sooner = self.next_deadline.is_none_or(|next| deadline < next);
        if sooner {
            self.next_deadline = Some(deadline);
        }
        let generation = self.slots[index as usize].generation;
        Some(Entered { id: (u64::from(generation) << 32) | u64::from(index), sooner })
    }

    /// How many have not been forgotten.
    pub(crate) fn pending(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The answer to call `id`.
    pub(crate) fn answer(&mut self, id: u64, answer: A) -> Delivered {
        match self.slot(id) {
            Some(slot) => match std::mem::replace(&mut slot.state, State::Answered(answer)) {
                State::Waiting { waker, .. } => Delivered::To(waker),
                // A second answer changes nothing.
                State::Answered(first) => {
                    slot.state = State::Answered(first);
                    Delivered::Late
                }
                State::Free => {
                    slot.state = State::Free;
                    Delivered::Late
                }
            },
            None => Delivered::Late,
        }
    }

    /// The answer to `id`, which is then forgotten; `waker` is woken when there is none yet. `None` when
    /// there is no such call.
    pub(crate) fn poll(&mut self, id: u64, waker: &Waker) -> Poll<Option<A>> {
        let Some(slot) = self.slot(id) else { return Poll::Ready(None) };
        if let State::Waiting { waker: waiting, .. } = &mut slot.state {
            match waiting {
                Some(old) => old.clone_from(waker),
                None => *waiting = Some(waker.clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(self.forget(id))
    }

    /// Forgets `id`: an answer is late from now on. Gives the answer that had come.
    pub(crate) fn forget(&mut self, id: u64) -> Option<A> {
        let slot = self.slot(id)?;
        let state = std::mem::replace(&mut slot.state, State::Free);
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.free.push(id as u32);
        match state {
            State::Answered(answer) => Some(answer),
            State::Waiting { .. } | State::Free => None,
        }
    }

    /// When to call [`Calls::expire`] next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// Answers what has expired; gives whom to wake.
    pub(crate) fn expire(&mut self, now: Instant, answer: impl Fn() -> A) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let mut next_deadline = None;
        for slot in &mut self.slots {
            let State::Waiting { deadline, waker } = &mut slot.state else { continue };
            if *deadline <= now {
                wakers.extend(waker.take());
                slot.state = State::Answered(answer());
            } else {
                let sooner = next_deadline.is_none_or(|next| *deadline < next);
                next_deadline = if sooner { Some(*deadline) } else { next_deadline };
            }
        }
        self.next_deadline = next_deadline;
        wakers
    }

    /// Answers all that wait; gives whom to wake.
    pub(crate) fn answer_all(&mut self, answer: impl Fn() -> A) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for slot in &mut self.slots {
            if let State::Waiting { waker, .. } = &mut slot.state {
                wakers.extend(waker.take());
                slot.state = State::Answered(answer());
            }
        }
        self.next_deadline = None;
        wakers
    }

    fn slot(&mut self, id: u64) -> Option<&mut Slot<A>> {
        let slot = self.slots.get_mut(id as u32 as usize)?;
        let used = !matches!(slot.state, State::Free);
        (used && u64::from(slot.generation) == id >> 32).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn poll(calls: &mut Calls<&'static str>, id: u64) -> Poll<Option<&'static str>> {
        calls.poll(id, Waker::noop())
    }

    #[test]
    fn an_answer_reaches_its_call_once() {
        let mut calls = Calls::new();
        let now = Instant::now();
        let first = calls.enter(now).unwrap().id;
        let second = calls.enter(now).unwrap().id;
        assert_eq!(poll(&mut calls, second), Poll::Pending);
        assert!(matches!(calls.answer(second, "two"), Delivered::To(Some(_))));
        assert!(matches!(calls.answer(second, "again"), Delivered::Late));
        assert_eq!(poll(&mut calls, second), Poll::Ready(Some("two")));
        assert_eq!(poll(&mut calls, second), Poll::Ready(None));
        assert_eq!(poll(&mut calls, first), Poll::Pending);
    }

    #[test]
    fn a_late_answer_never_reaches_the_next_call_in_the_slot() {
        let mut calls = Calls::new();
        let old = calls.enter(Instant::now()).unwrap().id;
        calls.forget(old);
        let new = calls.enter(Instant::now()).unwrap().id;
        assert_eq!(old as u32, new as u32);
        assert!(matches!(calls.answer(old, "late"), Delivered::Late));
        assert_eq!(poll(&mut calls, new), Poll::Pending);
        assert!(matches!(calls.answer(u64::MAX, "nobody"), Delivered::Late));
    }

    #[test]
    fn beyond_the_bound_there_is_no_call_until_one_is_forgotten() {
        let mut calls = Calls::<&str>::new();
        let now = Instant::now();
        let ids: Vec<_> = (0..MAX_CALLS).map(|_| calls.enter(now).unwrap().id).collect();
        assert_eq!(calls.enter(now), None);
        assert_eq!(calls.pending(), MAX_CALLS);
        // An answer that nobody has taken has its place still.
        calls.answer(ids[7], "answer");
        assert_eq!(calls.enter(now), None);
        assert_eq!(poll(&mut calls, ids[7]), Poll::Ready(Some("answer")));
        assert!(calls.enter(now).is_some());
        assert_eq!(calls.enter(now), None);
        for id in ids {
            calls.forget(id);
        }
        assert_eq!(calls.pending(), 1);
    }

    #[test]
    fn calls_expire_at_their_deadlines() {
        let mut calls = Calls::new();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let late = calls.enter(at(20)).unwrap();
        let early = calls.enter(at(10)).unwrap();
        let later = calls.enter(at(30)).unwrap();
        assert_eq!((late.sooner, early.sooner, later.sooner), (true, true, false));
        assert_eq!(calls.next_deadline(), Some(at(10)));
        calls.expire(at(10), || "late");
        assert_eq!(calls.next_deadline(), Some(at(20)));
        assert_eq!(poll(&mut calls, early.id), Poll::Ready(Some("late")));
        assert_eq!(poll(&mut calls, late.id), Poll::Pending);
        calls.answer_all(|| "lost");
        assert_eq!(calls.next_deadline(), None);
        assert_eq!(poll(&mut calls, late.id), Poll::Ready(Some("lost")));
        assert_eq!(poll(&mut calls, later.id), Poll::Ready(Some("lost")));
    }
}
