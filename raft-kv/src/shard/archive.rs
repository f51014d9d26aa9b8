//! The archived form of a shard's copy-on-write maps: a list of entries in order, written straight from the
//! map, so that a snapshot holds no second copy of the keys.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;
use rafted_value::LogTime;
use rafted_value::rkyv::collections::util::{Entry, EntryAdapter};
use rafted_value::rkyv::rancor::{Fallible, Source};
use rafted_value::rkyv::rend::u64_le;
use rafted_value::rkyv::ser::{Allocator, Writer};
use rafted_value::rkyv::string::{ArchivedString, StringResolver};
use rafted_value::rkyv::vec::{ArchivedVec, VecResolver};
use rafted_value::rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use rafted_value::rkyv::{Archive, Deserialize, Place, Serialize, SerializeUnsized};

/// A key: shared by the maps and indexes of its shard.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(Arc<str>);

/// Copy-on-write pages of entries by key: a clone costs the same for one key and for a million.
pub(crate) type Pages<V> = OrdMap<Key, Arc<V>>;

/// Archives [`Pages`] as a list.
pub(crate) struct AsList;

/// Entries in order: a part of [`Pages`] on its way into a snapshot or out of it.
pub(crate) type Entries<V> = Vec<(Key, Arc<V>)>;

/// Archives a [`LogTime`] as its milliseconds.
pub(crate) struct AsMillis;

/// Archives shared bytes as bytes.
pub(crate) struct AsBytes;

impl Key {
    pub(crate) fn new(key: &str) -> Self {
        Self(Arc::from(key))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Archive for Key {
    type Archived = ArchivedString;
    type Resolver = StringResolver;

    fn resolve(&self, resolver: StringResolver, out: Place<ArchivedString>) {
        ArchivedString::resolve_from_str(&self.0, resolver, out);
    }
}

impl<S> Serialize<S> for Key
where
    S: Fallible<Error: Source> + ?Sized,
    str: SerializeUnsized<S>,
{
    fn serialize(&self, serializer: &mut S) -> Result<StringResolver, S::Error> {
        ArchivedString::serialize_from_str(&self.0, serializer)
    }
}

impl<V: Archive> ArchiveWith<Pages<V>> for AsList {
    type Archived = ArchivedVec<Entry<ArchivedString, V::Archived>>;
    type Resolver = VecResolver;

    fn resolve_with(pages: &Pages<V>, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(pages.len(), resolver, out);
    }
}

impl<V, S> SerializeWith<Pages<V>, S> for AsList
where
    V: Serialize<S>,
    S: Fallible<Error: Source> + Allocator + Writer + ?Sized,
{
    fn serialize_with(pages: &Pages<V>, serializer: &mut S) -> Result<VecResolver, S::Error> {
        let entries = pages.iter().map(|(key, value)| EntryAdapter::<&Key, &V, Key, V>::new(key, &**value));
        ArchivedVec::serialize_from_iter::<EntryAdapter<&Key, &V, Key, V>, _, S>(entries, serializer)
    }
}

impl<V, D> DeserializeWith<ArchivedVec<Entry<ArchivedString, V::Archived>>, Pages<V>, D> for AsList
where
    V: Archive<Archived: Deserialize<V, D>>,
    D: Fallible + ?Sized,
{
    fn deserialize_with(
        list: &ArchivedVec<Entry<ArchivedString, V::Archived>>,
        deserializer: &mut D,
    ) -> Result<Pages<V>, D::Error> {
        let entry = |entry: &Entry<ArchivedString, V::Archived>| {
            Ok((Key::new(entry.key.as_str()), Arc::new(entry.value.deserialize(deserializer)?)))
        };
        list.iter().map(entry).collect()
    }
}

impl<V: Archive> ArchiveWith<Entries<V>> for AsList {
    type Archived = ArchivedVec<Entry<ArchivedString, V::Archived>>;
    type Resolver = VecResolver;

    fn resolve_with(entries: &Entries<V>, resolver: VecResolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(entries.len(), resolver, out);
    }
}

impl<V, S> SerializeWith<Entries<V>, S> for AsList
where
    V: Serialize<S>,
    S: Fallible<Error: Source> + Allocator + Writer + ?Sized,
{
    fn serialize_with(entries: &Entries<V>, serializer: &mut S) -> Result<VecResolver, S::Error> {
        let entries = entries.iter().map(|(key, value)| EntryAdapter::<&Key, &V, Key, V>::new(key, &**value));
        ArchivedVec::serialize_from_iter::<EntryAdapter<&Key, &V, Key, V>, _, S>(entries, serializer)
    }
}

impl<V, D> DeserializeWith<ArchivedVec<Entry<ArchivedString, V::Archived>>, Entries<V>, D> for AsList
where
    V: Archive<Archived: Deserialize<V, D>>,
    D: Fallible + ?Sized,
{
    fn deserialize_with(
        list: &ArchivedVec<Entry<ArchivedString, V::Archived>>,
        deserializer: &mut D,
    ) -> Result<Entries<V>, D::Error> {
        let entry = |entry: &Entry<ArchivedString, V::Archived>| {
            Ok((Key::new(entry.key.as_str()), Arc::new(entry.value.deserialize(deserializer)?)))
        };
        list.iter().map(entry).collect()
    }
}

impl ArchiveWith<LogTime> for AsMillis {
    type Archived = u64_le;
    type Resolver = ();

    fn resolve_with(time: &LogTime, (): (), out: Place<u64_le>) {
        time.as_millis().resolve((), out);
    }
}

impl<S: Fallible + ?Sized> SerializeWith<LogTime, S> for AsMillis {
    fn serialize_with(_: &LogTime, _: &mut S) -> Result<(), S::Error> {
        Ok(())
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<u64_le, LogTime, D> for AsMillis {
    fn deserialize_with(millis: &u64_le, _: &mut D) -> Result<LogTime, D::Error> {
        Ok(LogTime::from_millis(millis.to_native()))
    }
}

impl ArchiveWith<Arc<[u8]>> for AsBytes {
    type Archived = ArchivedVec<u8>;
    type Resolver = VecResolver;

    fn resolve_with(bytes: &Arc<[u8]>, resolver: VecResolver, out: Place<ArchivedVec<u8>>) {
        ArchivedVec::resolve_from_slice(bytes, resolver, out);
    }
}

impl<S: Fallible + Allocator + Writer + ?Sized> SerializeWith<Arc<[u8]>, S> for AsBytes {
    fn serialize_with(bytes: &Arc<[u8]>, serializer: &mut S) -> Result<VecResolver, S::Error> {
        ArchivedVec::serialize_from_slice(bytes, serializer)
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<ArchivedVec<u8>, Arc<[u8]>, D> for AsBytes {
    fn deserialize_with(bytes: &ArchivedVec<u8>, _: &mut D) -> Result<Arc<[u8]>, D::Error> {
        Ok(Arc::from(bytes.as_slice()))
    }
}
