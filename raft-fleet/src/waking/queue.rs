//! Which sleeping replicas are to be woken, and when: those that somebody waits for at once, the others by and by, so that
//! the death of a node is no storm of elections. Pure.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use rafted_value::ReplicaId;
use tokio::time::Instant;

/// So many are woken ...
const AT_ONCE: usize = 25;
/// ... and so long after that the next ones: 500 a second.
const PACE: Duration = Duration::from_millis(50);

/// How a replica is to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) replica: ReplicaId,
    /// Whether it asks for votes at once.
    pub(crate) elects: bool,
}

/// The replicas to be woken, each once.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: HashMap<ReplicaId, (Instant, bool)>,
    by_time: BTreeSet<(Instant, ReplicaId)>,
    demanded: VecDeque<ReplicaId>,
    /// The same, to be looked up.
    is_demanded: HashSet<ReplicaId>,
    /// Until when no other is woken than those that somebody waits for.
    paced_until: Option<Instant>,
}

impl Queue {
    /// From then on it is due; where it waits already, at the earlier of both times.
    pub(crate) fn push(&mut self, replica: ReplicaId, at: Instant, elects: bool) {
        let before = self.waiting.get(&replica).copied();
        let (earlier, elected) = before.map_or((at, false), |(before, elects)| (before.min(at), elects));
        if let Some((before, _)) = before {
            self.by_time.remove(&(before, replica));
        }
        self.waiting.insert(replica, (earlier, elects || elected));
        self.by_time.insert((earlier, replica));
    }

    /// Somebody waits for it.
    pub(crate) fn demand(&mut self, replica: ReplicaId) {
        if self.is_demanded.insert(replica) {
            self.remove(replica);
            self.demanded.push_back(replica);
        }
    }

    /// It is not to be woken any more, unless somebody waits for it.
    pub(crate) fn remove(&mut self, replica: ReplicaId) {
        if let Some((at, _)) = self.waiting.remove(&replica) {
            self.by_time.remove(&(at, replica));
        }
    }

    /// When [`Queue::take`] gives something out.
    pub(crate) fn next_at(&self, now: Instant) -> Option<Instant> {
        if !self.demanded.is_empty() {
            return Some(now);
        }
        let (first, _) = self.by_time.first()?;
        Some(self.paced_until.map_or(*first, |paced| paced.max(*first)))
    }

    /// Who is to be woken now.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<Call> {
        self.is_demanded.clear();
        let mut calls: Vec<_> = self.demanded.drain(..).map(|replica| Call { replica, elects: true }).collect();
        if self.paced_until.is_some_and(|paced| now < paced) {
            return calls;
        }
        let before = calls.len();
        while calls.len() < before + AT_ONCE
            && let Some(&(at, replica)) = self.by_time.first().filter(|(at, _)| *at <= now)
        {
            self.by_time.remove(&(at, replica));
            let elects = self.waiting.remove(&replica).is_some_and(|(_, elects)| elects);
            calls.push(Call { replica, elects });
        }
        self.paced_until = (calls.len() > before).then(|| now + PACE);
        calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ReplicaId {
        ReplicaId::new(number).unwrap()
    }

    fn taken(queue: &mut Queue, now: Instant) -> Vec<(u64, bool)> {
        queue.take(now).into_iter().map(|call| (call.replica.get(), call.elects)).collect()
    }

    #[test]
    fn each_is_woken_once_at_the_earliest_time_that_was_said() {
        let now = Instant::now();
        let later = |ms| now + Duration::from_millis(ms);
        let mut queue = Queue::default();
        assert_eq!((queue.next_at(now), taken(&mut queue, now)), (None, vec![]));
        queue.push(id(1), later(300), false);
        queue.push(id(1), later(100), true);
        queue.push(id(1), later(200), false);
        queue.push(id(2), later(200), false);
        queue.push(id(3), later(150), false);
        queue.remove(id(3));
        assert_eq!(queue.next_at(now), Some(later(100)));
        assert_eq!(taken(&mut queue, later(99)), []);
        assert_eq!(taken(&mut queue, later(100)), [(1, true)]);
        assert_eq!(queue.next_at(now), Some(later(200)));
        assert_eq!(taken(&mut queue, later(500)), [(2, false)]);
        assert_eq!(queue.next_at(now), None);
    }

    #[test]
    fn five_hundred_are_woken_in_a_second_and_whoever_is_waited_for_at_once() {
        let start = Instant::now();
        let mut queue = Queue::default();
        for number in 1..=2_000 {
            queue.push(id(number), start, false);
        }
        queue.demand(id(1_999));
        queue.demand(id(1_999));
        let mut counts = Vec::new();
        for ms in 0..1_000 {
            let now = start + Duration::from_millis(ms);
            let woken = taken(&mut queue, now);
            if ms == 0 {
                assert_eq!(woken[0], (1_999, true));
                assert_eq!(woken.len(), 1 + AT_ONCE);
            }
            if ms == 10 {
                queue.demand(id(1_500));
                assert_eq!(queue.next_at(now), Some(now));
            }
            if ms == 11 {
                assert_eq!(woken, [(1_500, true)]);
            }
            counts.push(woken.len());
        }
        assert_eq!(counts.iter().sum::<usize>(), 500 + 2);
    }
}
