//! What happens between a request about a keyspace and its end, as values: pure.
//!
//! ```text
//!   Registration:    Groups --all created--> Shards --all opened--> registered
//!   Deregistration:  Shards --all closed---> Groups --all removed-> deregistered
//! ```
//!
//! The values live in the `keyspaces` group; the node that leads it carries the effects out and commits each
//! one as done. A driver that crashes, or is deposed, leaves at worst an effect that is carried out twice:
//! all of them are idempotent. An effect that is not, or no more, awaited is reported without an effect.
//!
//! Shards are closed before their groups are removed, so that a node with an old table gets `moved` and looks
//! again, instead of an answer from a keyspace that is no more.

use std::collections::BTreeSet;

rafted_value::messages! {
    /// A keyspace on its way into service.
    #[derive(Eq)]
    pub enum Registration {
        /// Groups are created.
        Groups {
            /// The shards whose group is not known to exist: never empty.
            missing: BTreeSet<u64>,
        },
        /// Every group exists. Shards learn what they own.
        Shards {
            /// The shards that are not known to serve: never empty.
            missing: BTreeSet<u64>,
        },
    }

    /// A keyspace on its way out.
    #[derive(Eq)]
    pub enum Deregistration {
        /// Shards stop to serve.
        Shards {
            /// The shards that may still serve: never empty.
            left: BTreeSet<u64>,
        },
        /// No shard serves. Groups are removed.
        Groups {
            /// The shards whose group may still exist: never empty.
            left: BTreeSet<u64>,
        },
    }

    /// What a driver does for a workflow, idempotent.
    #[derive(Copy, Eq, PartialOrd, Ord)]
    pub enum Effect {
        /// Create the shard's group.
        CreateGroup(u64),
        /// Tell the shard what it owns.
        OpenShard(u64),
        /// Tell the shard that it owns nothing any more.
        CloseShard(u64),
        /// Remove the shard's group.
        RemoveGroup(u64),
    }
}

/// Where a workflow is after an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next<W> {
    /// On its way.
    Goes(W),
    /// At its end.
    Ends,
}

impl Registration {
    /// The workflow's first value; `None` without shards, when there is nothing to do.
    pub(crate) fn first(shards: impl Iterator<Item = u64>) -> Option<Self> {
        let missing: BTreeSet<u64> = shards.collect();
        (!missing.is_empty()).then_some(Self::Groups { missing })
    }

    /// What is to be done now, in any order.
    pub(crate) fn effects(&self) -> impl Iterator<Item = Effect> {
        let (missing, effect): (_, fn(u64) -> Effect) = match self {
            Self::Groups { missing } => (missing, Effect::CreateGroup),
            Self::Shards { missing } => (missing, Effect::OpenShard),
        };
        missing.iter().map(move |&shard| effect(shard))
    }

    /// The next value once `done` is done; `all` are the keyspace's shards.
    pub(crate) fn next(self, done: Effect, all: impl Iterator<Item = u64>) -> Next<Self> {
        match (self, done) {
            (Self::Groups { mut missing }, Effect::CreateGroup(shard)) => {
                missing.remove(&shard);
                if missing.is_empty() {
                    return Next::Goes(Self::Shards { missing: all.collect() });
                }
                Next::Goes(Self::Groups { missing })
            }
            (Self::Shards { mut missing }, Effect::OpenShard(shard)) => {
                missing.remove(&shard);
                if missing.is_empty() { Next::Ends } else { Next::Goes(Self::Shards { missing }) }
            }
            (same, _) => Next::Goes(same),
        }
    }
}

impl Deregistration {
    /// The workflow's first value; `None` without shards, when there is nothing to do.
    pub(crate) fn first(shards: impl Iterator<Item = u64>) -> Option<Self> {
        let left: BTreeSet<u64> = shards.collect();
        (!left.is_empty()).then_some(Self::Shards { left })
    }

    /// What is to be done now, in any order.
    pub(crate) fn effects(&self) -> impl Iterator<Item = Effect> {
        let (left, effect): (_, fn(u64) -> Effect) = match self {
            Self::Shards { left } => (left, Effect::CloseShard),
            Self::Groups { left } => (left, Effect::RemoveGroup),
        };
        left.iter().map(move |&shard| effect(shard))
    }

    /// The next value once `done` is done; `all` are the keyspace's shards.
    pub(crate) fn next(self, done: Effect, all: impl Iterator<Item = u64>) -> Next<Self> {
        match (self, done) {
            (Self::Shards { mut left }, Effect::CloseShard(shard)) => {
                left.remove(&shard);
                if left.is_empty() {
                    return Next::Goes(Self::Groups { left: all.collect() });
                }
                Next::Goes(Self::Shards { left })
            }
            (Self::Groups { mut left }, Effect::RemoveGroup(shard)) => {
                left.remove(&shard);
                if left.is_empty() { Next::Ends } else { Next::Goes(Self::Groups { left }) }
            }
            (same, _) => Next::Goes(same),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use expect_test::expect;

    use super::*;

    const ALL: [u64; 2] = [0, 1];

    fn effects() -> impl Iterator<Item = Effect> {
        let kinds: [fn(u64) -> Effect; 4] =
            [Effect::CreateGroup, Effect::OpenShard, Effect::CloseShard, Effect::RemoveGroup];
        kinds.into_iter().flat_map(|kind| [kind(0), kind(1), kind(2)])
    }

    /// Writes what each effect makes of each state that can be reached from `first`.
    fn table<W: Clone + PartialEq + std::fmt::Debug>(first: W, next: fn(W, Effect) -> Next<W>) -> String {
        let (mut table, mut states) = (String::new(), vec![first]);
        let mut at = 0;
        while let Some(state) = states.get(at).cloned() {
            writeln!(table, "{state:?}").unwrap();
            for effect in effects() {
                match next(state.clone(), effect) {
                    Next::Ends => writeln!(table, "    {effect:?}: ends").unwrap(),
                    Next::Goes(to) if to == state => {}
                    Next::Goes(to) => {
                        writeln!(table, "    {effect:?}: {to:?}").unwrap();
                        if !states.contains(&to) {
                            states.push(to);
                        }
                    }
                }
            }
            at += 1;
        }
        table
    }

    #[test]
    fn registration_creates_every_group_and_then_opens_every_shard() {
        let first = Registration::first(ALL.into_iter()).unwrap();
        expect![[r#"
            Groups { missing: {0, 1} }
                CreateGroup(0): Groups { missing: {1} }
                CreateGroup(1): Groups { missing: {0} }
            Groups { missing: {1} }
                CreateGroup(1): Shards { missing: {0, 1} }
            Groups { missing: {0} }
                CreateGroup(0): Shards { missing: {0, 1} }
            Shards { missing: {0, 1} }
                OpenShard(0): Shards { missing: {1} }
                OpenShard(1): Shards { missing: {0} }
            Shards { missing: {1} }
                OpenShard(1): ends
            Shards { missing: {0} }
                OpenShard(0): ends
        "#]]
        .assert_eq(&table(first, |state, effect| state.next(effect, ALL.into_iter())));
    }

    #[test]
    fn deregistration_closes_every_shard_and_then_removes_every_group() {
        let first = Deregistration::first(ALL.into_iter()).unwrap();
        expect![[r#"
            Shards { left: {0, 1} }
                CloseShard(0): Shards { left: {1} }
                CloseShard(1): Shards { left: {0} }
            Shards { left: {1} }
                CloseShard(1): Groups { left: {0, 1} }
            Shards { left: {0} }
                CloseShard(0): Groups { left: {0, 1} }
            Groups { left: {0, 1} }
                RemoveGroup(0): Groups { left: {1} }
                RemoveGroup(1): Groups { left: {0} }
            Groups { left: {1} }
                RemoveGroup(1): ends
            Groups { left: {0} }
                RemoveGroup(0): ends
        "#]]
        .assert_eq(&table(first, |state, effect| state.next(effect, ALL.into_iter())));
    }

    #[test]
    fn carrying_out_what_is_asked_for_ends_whatever_is_repeated() {
        let mut workflow = Registration::first(0..5).unwrap();
        let mut done = Vec::new();
        loop {
            let effect = workflow.effects().next().unwrap();
            done.push(effect);
            // A driver that does not know what it did before reports everything again.
            let end = done.iter().try_fold(workflow, |workflow, &effect| match workflow.next(effect, 0..5) {
                Next::Goes(next) => Ok(next),
                Next::Ends => Err(()),
            });
            match end {
                Ok(next) => workflow = next,
                Err(()) => break,
            }
        }
        assert_eq!(done.len(), 10);
    }
}
