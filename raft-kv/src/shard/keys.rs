//! The keys of a shard with their values, and what is counted and looked up beside them: deadlines in order,
//! keys per account, bytes. What can be told from the values is not archived but built again.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use rafted_value::LogTime;
use rafted_value::rkyv::collections::util::Entry;
use rafted_value::rkyv::rancor::{Fallible, Source};
use rafted_value::rkyv::ser::{Allocator, Writer};
use rafted_value::rkyv::string::ArchivedString;
use rafted_value::rkyv::vec::{ArchivedVec, VecResolver};
use rafted_value::rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use rafted_value::rkyv::{Archive, Deserialize, Place, Serialize};

use super::archive::{AsList, Entries, Key, Pages};
use crate::hash::{HashRange, KeyHash};
use crate::keyed_value::{KeyedValue, Next};

/// The keys of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Keys<K> {
    pages: Pages<Record<K>>,
    /// Every key whose value has a deadline, at that deadline.
    deadlines: OrdSet<(LogTime, Key)>,
    /// How many keys each account has; none is zero.
    accounts: OrdMap<Key, u64>,
    /// The sum of the records' sizes.
    bytes: u64,
}

/// A key's value.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
#[rkyv(crate = rafted_value::rkyv)]
pub(crate) struct Record<K> {
    pub(crate) value: K,
    /// Another one after each write, also of a key that was removed in between.
    pub(crate) version: u64,
    /// The value's size when it was written, with the key's length.
    pub(super) size: u64,
}

impl<K: KeyedValue> Keys<K> {
    pub(crate) fn get(&self, key: &str) -> Option<&Record<K>> {
        self.pages.get(key).map(|record| &**record)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &K)> {
        self.pages.iter().map(|(key, record)| (key.as_str(), &record.value))
    }

    pub(crate) fn len(&self) -> u64 {
        self.pages.len() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn accounts(&self) -> BTreeMap<String, u64> {
        self.accounts.iter().map(|(account, &count)| (account.as_str().to_owned(), count)).collect()
    }

    /// Puts a key into its next state; `version` is taken by a value that is set. Whatever may panic, the
    /// user's functions, runs before anything changes.
    pub(crate) fn apply(&mut self, key: &str, next: Next<K>, version: u64) {
        match next {
            Next::Keep => {}
            Next::Remove => self.remove(key),
            Next::Set(value) => {
                let size = value.size().saturating_add(key.len() as u64);
                self.insert(key, Record { value, version, size });
            }
        }
    }

    /// Up to `limit` keys behind `after` that begin with `prefix`, in order, and whether there are more.
    pub(crate) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> (Vec<String>, bool) {
        let mut keys: Vec<String> = self.from(prefix, after).take(limit.saturating_add(1)).map(str::to_owned).collect();
        let more = keys.len() > limit;
        keys.truncate(limit);
        (keys, more)
    }

    /// Removes up to `limit` keys that begin with `prefix` and lie in `range`; how many, and whether there
    /// are more.
    pub(crate) fn remove_prefix(&mut self, prefix: &str, range: HashRange, limit: usize) -> (u64, bool) {
        let within = |key: &&str| range.contains(KeyHash::of(key));
        let found = self.from(prefix, None).filter(within).take(limit.saturating_add(1));
        let mut keys: Vec<Key> = found.map(Key::new).collect();
        let more = keys.len() > limit;
        keys.truncate(limit);
        for key in &keys {
            self.remove(key.as_str());
        }
        (keys.len() as u64, more)
    }

    /// Removes every key of the range.
    pub(crate) fn remove_range(&mut self, range: HashRange) {
        let inside = |key: &&Key| range.contains(KeyHash::of(key.as_str()));
        let keys: Vec<Key> = self.pages.keys().filter(inside).cloned().collect();
        for key in &keys {
            self.remove(key.as_str());
        }
    }

    /// Up to `limit` keys of the range whose deadline log time has reached, the earliest first, and whether
    /// there are more.
    pub(crate) fn due(&self, now: LogTime, range: HashRange, limit: usize) -> (Vec<Key>, bool) {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, key)| key);
        let within = due.filter(|key| range.contains(KeyHash::of(key.as_str())));
        let mut keys: Vec<Key> = within.take(limit.saturating_add(1)).cloned().collect();
        let more = keys.len() > limit;
        keys.truncate(limit);
        (keys, more)
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<LogTime> {
        self.deadlines.get_min().map(|(at, _)| *at)
    }

    fn from(&self, prefix: &str, after: Option<&str>) -> impl Iterator<Item = &str> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let lower = match after {
            Some(after) if after >= prefix => Excluded(after),
            _ => Included(prefix),
        };
        let keys = self.pages.range::<_, str>((lower, Unbounded)).map(|(key, _)| key.as_str());
        keys.take_while(move |key| key.starts_with(prefix))
    }

    fn insert(&mut self, key: &str, record: Record<K>) {
        let deadline = record.value.deadline();
        let (key, old) = match self.pages.get_key_value(key) {
            Some((key, old)) => (key.clone(), Some((old.size, old.value.deadline()))),
            None => (Key::new(key), None),
        };
        let account = if old.is_none() { K::account(key.as_str()).map(Key::new) } else { None };
        let (old_size, old_deadline) = old.unwrap_or_default();
        self.bytes = self.bytes.saturating_sub(old_size).saturating_add(record.size);
        self.move_deadline(&key, old_deadline, deadline);
        if let Some(account) = account {
            *self.accounts.entry(account).or_insert(0) += 1;
        }
        self.pages.insert(key, Arc::new(record));
    }

    fn remove(&mut self, key: &str) {
        let Some((key, old)) = self.pages.get_key_value(key) else { return };
        let (key, size, deadline) = (key.clone(), old.size, old.value.deadline());
        let account = K::account(key.as_str());
        self.bytes = self.bytes.saturating_sub(size);
        self.move_deadline(&key, deadline, None);
        if let Some(account) = account
            && let Some(count) = self.accounts.get_mut(account)
        {
            *count -= 1;
            if *count == 0 {
                self.accounts.remove(account);
            }
        }
        self.pages.remove(key.as_str());
    }

    /// All entries in order, to be written.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Key, &Arc<Record<K>>)> {
        self.pages.iter()
    }

    /// Takes entries of [`Keys::entries`] up again: keys that are not here yet.
    pub(super) fn restore(&mut self, entries: Entries<Record<K>>) {
        for (key, record) in entries {
            self.count(&key, &record);
            self.pages.insert(key, record);
        }
    }

    /// Counts a key that is new here.
    fn count(&mut self, key: &Key, record: &Record<K>) {
        self.bytes = self.bytes.saturating_add(record.size);
        self.move_deadline(key, None, record.value.deadline());
        if let Some(account) = K::account(key.as_str()) {
            *self.accounts.entry(Key::new(account)).or_insert(0) += 1;
        }
    }

    fn move_deadline(&mut self, key: &Key, old: Option<LogTime>, new: Option<LogTime>) {
        if old == new {
            return;
        }
        if let Some(at) = old {
            self.deadlines.remove(&(at, key.clone()));
        }
        if let Some(at) = new {
            self.deadlines.insert((at, key.clone()));
        }
    }
}

impl<K> Default for Keys<K> {
    fn default() -> Self {
        Self { pages: OrdMap::new(), deadlines: OrdSet::new(), accounts: OrdMap::new(), bytes: 0 }
    }
}

impl<K: Archive> Archive for Keys<K> {
    type Archived = <AsList as ArchiveWith<Pages<Record<K>>>>::Archived;
    type Resolver = VecResolver;

    fn resolve(&self, resolver: VecResolver, out: Place<Self::Archived>) {
        AsList::resolve_with(&self.pages, resolver, out);
    }
}

impl<K, S> Serialize<S> for Keys<K>
where
    K: Serialize<S>,
    S: Fallible<Error: Source> + Allocator + Writer + ?Sized,
{
    fn serialize(&self, serializer: &mut S) -> Result<VecResolver, S::Error> {
        AsList::serialize_with(&self.pages, serializer)
    }
}

impl<K, D> Deserialize<Keys<K>, D> for ArchivedVec<Entry<ArchivedString, ArchivedRecord<K>>>
where
    K: KeyedValue + Archive<Archived: Deserialize<K, D>>,
    D: Fallible + ?Sized,
{
    fn deserialize(&self, deserializer: &mut D) -> Result<Keys<K>, D::Error> {
        let pages: Pages<Record<K>> = AsList::deserialize_with(self, deserializer)?;
        let mut keys = Keys::default();
        for (key, record) in &pages {
            keys.count(key, record);
        }
        keys.pages = pages;
        Ok(keys)
    }
}
