//! The entries of one replica by their index. They are one run without a hole, a queue to whose end entries come and
//! from whose front they go, except while a start reads the log: copies of older entries come behind newer ones there,
//! and make further runs until the holes are filled.

use std::collections::VecDeque;
use std::ops::Range;

/// Values by index, in runs.
#[derive(Debug)]
pub(super) struct Entries<T> {
    /// In the order of their indexes; none is empty, and none touches the next.
    runs: Vec<Run<T>>,
}

#[derive(Debug)]
struct Run<T> {
    first: u64,
    values: VecDeque<T>,
}

/// A queue gives memory back when so many times more is reserved than used.
const SHRINK_FACTOR: usize = 4;

impl<T> Run<T> {
    /// One above the last index.
    fn end(&self) -> u64 {
        self.first.saturating_add(self.values.len() as u64)
    }

    fn at(&self, index: u64) -> Option<usize> {
        // A queue's length fits into memory, so that the cast loses nothing.
        (index >= self.first && index < self.end()).then(|| (index - self.first) as usize)
    }
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self { runs: Vec::new() }
    }
}

impl<T> Entries<T> {
    pub(super) fn len(&self) -> usize {
        self.runs.iter().map(|run| run.values.len()).sum()
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.runs.first().map(|run| run.first)
    }

    pub(super) fn last(&self) -> Option<(u64, &T)> {
        let run = self.runs.last()?;
        Some((run.end() - 1, run.values.back()?))
    }

    pub(super) fn get(&self, index: u64) -> Option<&T> {
        let run = &self.runs[self.run_of(index)?];
        run.values.get(run.at(index)?)
    }

    pub(super) fn get_mut(&mut self, index: u64) -> Option<&mut T> {
        let at = self.run_of(index)?;
        let run = &mut self.runs[at];
        let at = run.at(index)?;
        run.values.get_mut(at)
    }

    /// In order, with their indexes.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &T)> {
        let numbered = |run: &Run<T>, at: usize| run.first.saturating_add(at as u64);
        self.runs
            .iter()
            .flat_map(move |run| run.values.iter().enumerate().map(move |(at, value)| (numbered(run, at), value)))
    }

    /// Those of a range, in order; empty for a range that is reversed.
    pub(super) fn range(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &T)> {
        self.runs.iter().flat_map(move |run| {
            let (start, end) = (range.start.max(run.first), range.end.min(run.end()));
            let (skip, take) = (start.saturating_sub(run.first) as usize, end.saturating_sub(start) as usize);
            (start..).zip(run.values.iter().skip(skip).take(take))
        })
    }

    /// The first index that is missing between others.
    pub(super) fn hole(&self) -> Option<u64> {
        self.runs.get(1).map(|_| self.runs[0].end())
    }

    /// Puts a value at its index, and gives back the one that was there.
    pub(super) fn insert(&mut self, index: u64, value: T) -> Option<T> {
        // Nearly always it is the next one.
        if let Some(last) = self.runs.last_mut()
            && last.end() == index
        {
            last.values.push_back(value);
            return None;
        }
        if let Some(there) = self.get_mut(index) {
            return Some(std::mem::replace(there, value));
        }
        let at = self.runs.partition_point(|run| run.first <= index);
        if at > 0 && self.runs[at - 1].end() == index {
            self.runs[at - 1].values.push_back(value);
            self.join(at - 1);
        } else if let Some(next) = self.runs.get_mut(at).filter(|next| index.checked_add(1) == Some(next.first)) {
            next.values.push_front(value);
            next.first = index;
        } else {
            self.runs.insert(at, Run { first: index, values: VecDeque::from([value]) });
        }
        None
    }

    /// Removes those from `first` on.
    pub(super) fn truncate(&mut self, first: u64) -> Vec<T> {
        let mut gone = Vec::new();
        for run in &mut self.runs {
            let kept = first.saturating_sub(run.first).min(run.values.len() as u64) as usize;
            gone.extend(run.values.drain(kept..));
        }
        self.tidy();
        gone
    }

    /// Removes those up to `last`.
    pub(super) fn purge(&mut self, last: u64) -> Vec<T> {
        let mut gone = Vec::new();
        for run in &mut self.runs {
            let count = last.saturating_add(1).saturating_sub(run.first).min(run.values.len() as u64);
            gone.extend(run.values.drain(..count as usize));
            run.first += count;
        }
        self.tidy();
        gone
    }

    /// All of them, in order.
    pub(super) fn into_values(self) -> impl Iterator<Item = T> {
        self.runs.into_iter().flat_map(|run| run.values)
    }

    fn run_of(&self, index: u64) -> Option<usize> {
        self.runs.partition_point(|run| run.first <= index).checked_sub(1)
    }

    /// Joins a run with the next one, if they touch.
    fn join(&mut self, at: usize) {
        if self.runs.get(at + 1).is_some_and(|next| next.first == self.runs[at].end()) {
            let mut next = self.runs.remove(at + 1);
            self.runs[at].values.append(&mut next.values);
        }
    }

    fn tidy(&mut self) {
        self.runs.retain(|run| !run.values.is_empty());
        for run in &mut self.runs {
            if run.values.capacity() / SHRINK_FACTOR > run.values.len() {
                run.values.shrink_to(run.values.len() * 2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn it_is_a_map_whatever_the_order_of_indexes() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut entries, mut model) = (Entries::default(), BTreeMap::new());
            for serial in 0..300 {
                let index = random.random_range(0..60);
                match random.random_range(0..20) {
                    0 => {
                        let gone: Vec<i32> = model.split_off(&index).into_values().collect();
                        assert_eq!(entries.truncate(index), gone);
                    }
                    1 => {
                        let kept = model.split_off(&(index + 1));
                        let gone: Vec<i32> = std::mem::replace(&mut model, kept).into_values().collect();
                        assert_eq!(entries.purge(index), gone);
                    }
                    2..8 => {
                        let next = model.last_key_value().map_or(0, |(last, _)| last + 1);
                        assert_eq!(entries.insert(next, serial), model.insert(next, serial));
                    }
                    _ => assert_eq!(entries.insert(index, serial), model.insert(index, serial)),
                }
                assert!(entries.iter().eq(model.iter().map(|(&index, value)| (index, value))), "seed {seed}");
                assert_eq!((entries.len(), entries.first()), (model.len(), model.keys().next().copied()));
                assert_eq!(entries.last(), model.iter().next_back().map(|(&index, value)| (index, value)));
                assert_eq!(entries.get(index), model.get(&index));
                assert_eq!(entries.get_mut(index), model.get_mut(&index));
                let end = index + random.random_range(0..20);
                assert!(entries.range(index..end).eq(model.range(index..end).map(|(&index, value)| (index, value))));
                let hole = model.keys().zip(model.keys().skip(1)).find(|(at, next)| *at + 1 != **next);
                assert_eq!(entries.hole(), hole.map(|(at, _)| at + 1));
            }
            assert!(entries.into_values().eq(model.into_values()));
        }
    }
}
