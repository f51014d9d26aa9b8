//! Requests that callers name (`CLIENT:SERIAL`) run once per key: which serials of which client ran on which
//! key, and what they answered. It outlives the key's value.
//!
//! ```text
//!                      the client is new to the key --------------> run   (256 others: too_many_clients)
//! (client, serial) --> a record, another fingerprint --------------> idempotency_conflict
//!                      a record older than 24 h -------------------> serial_too_old
//!                      a record, its reply was too large ----------> already_done
//!                      a record -----------------------------------> the kept reply
//!                      no record, below a full window -------------> serial_too_old
//!                      no record ----------------------------------> run, keep a record
//! ```
//!
//! A client's window holds the 64 highest serials that ran. So serials may have gaps, and up to 64 may be open
//! at once in any order. A client that ran no request for 24 h of log time is forgotten. A live record is
//! never evicted to make room for another client.

use std::sync::Arc;
use std::time::Duration;

use imbl::OrdSet;
use rafted_value::LogTime;
use rafted_value::rkyv::collections::util::Entry;
use rafted_value::rkyv::rancor::{Fallible, Source};
use rafted_value::rkyv::ser::{Allocator, Writer};
use rafted_value::rkyv::string::ArchivedString;
use rafted_value::rkyv::vec::{ArchivedVec, VecResolver};
use rafted_value::rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use rafted_value::rkyv::{Archive, Deserialize, Place, Serialize};

use super::archive::{AsBytes, AsList, AsMillis, Entries, Key, Pages};
use super::message::{Once, Refused};
use crate::hash::{HashRange, KeyHash};

/// Serials that a client may have open at once on one key, and whose replies are kept.
pub const WINDOW: usize = 64;

/// Clients that are remembered per key.
pub const MAX_CLIENTS_PER_KEY: usize = 256;

/// The largest encoded reply that is kept.
pub const MAX_KEPT_REPLY_BYTES: usize = 4_096;

/// How long a reply is kept and an idle client remembered, in log time.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The clients of all keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clients {
    pages: Pages<KeyClients>,
    /// For each key, since when its longest idle client has been idle.
    idle: OrdSet<(LogTime, Key)>,
}

/// The clients of one key, by name: never empty.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
#[rkyv(crate = rafted_value::rkyv)]
pub(crate) struct KeyClients {
    clients: Vec<Client>,
}

#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
#[rkyv(crate = rafted_value::rkyv)]
struct Client {
    name: Box<str>,
    /// When it last ran a request.
    #[rkyv(with = AsMillis)]
    used: LogTime,
    /// By serial; at most [`WINDOW`], at least one.
    records: Vec<Record>,
}

#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
#[rkyv(crate = rafted_value::rkyv)]
struct Record {
    serial: u64,
    #[rkyv(with = AsMillis)]
    at: LogTime,
    fingerprint: u64,
    reply: Kept,
}

/// What is remembered of a request that ran.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
#[rkyv(crate = rafted_value::rkyv)]
pub(crate) enum Kept {
    /// It ran.
    Reply {
        /// The encoded reply, shared with the copy that a snapshot holds.
        #[rkyv(with = AsBytes)]
        bytes: Arc<[u8]>,
        /// The key's version after it.
        version: Option<u64>,
    },
    /// It ran, and its reply was too large to keep, or was kept long enough.
    Gone,
    /// It was refused for the key's version.
    PreconditionFailed {
        /// The version that it found.
        version: Option<u64>,
    },
}

/// What the records say of a request before it runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// It has not run: run it, then [`Clients::record`].
    Run,
    /// It ran before.
    Ran(Kept),
    /// It must not run.
    Refused(Refused),
}

impl Clients {
    /// Judges a request at log time `now`; changes nothing.
    pub(crate) fn judge(&self, key: &str, once: &Once, now: LogTime) -> Verdict {
        let Some(known) = self.pages.get(key) else { return Verdict::Run };
        let Some(client) = known.find(&once.client).filter(|client| !client.is_idle(now)) else {
            let live = known.clients.iter().filter(|client| !client.is_idle(now)).count();
            let full = live >= MAX_CLIENTS_PER_KEY;
            return if full { Verdict::Refused(Refused::TooManyClients) } else { Verdict::Run };
        };
        let record = match client.records.binary_search_by_key(&once.serial, |record| record.serial) {
            Ok(at) => &client.records[at],
            Err(0) if client.records.len() >= WINDOW => return Verdict::Refused(Refused::SerialTooOld),
            Err(_) => return Verdict::Run,
        };
        if record.fingerprint != once.fingerprint {
            return Verdict::Refused(Refused::IdempotencyConflict);
        }
        if has_passed(record.at, now) {
            return Verdict::Refused(Refused::SerialTooOld);
        }
        match &record.reply {
            Kept::Gone => Verdict::Refused(Refused::AlreadyDone),
            kept => Verdict::Ran(kept.clone()),
        }
    }

    /// Remembers a request that [`Clients::judge`] let run at the same `now`.
    pub(crate) fn record(&mut self, key: &str, once: Once, reply: Kept, now: LogTime) {
        let reply = match reply {
            Kept::Reply { bytes, .. } if bytes.len() > MAX_KEPT_REPLY_BYTES => Kept::Gone,
            reply => reply,
        };
        let key = self.pages.get_key_value(key).map_or_else(|| Key::new(key), |(key, _)| key.clone());
        let mut known = self.take(&key);
        known.clients.retain(|client| !client.is_idle(now));
        let at = match known.clients.binary_search_by(|client| (*client.name).cmp(&once.client)) {
            Ok(at) => at,
            Err(at) => {
                let name = once.client.into_boxed_str();
                // Most keys have one client with one request: no room for more is set aside.
                known.clients.reserve_exact(1);
                known.clients.insert(at, Client { name, used: now, records: Vec::new() });
                at
            }
        };
        let record = Record { serial: once.serial, at: now, fingerprint: once.fingerprint, reply };
        known.clients[at].remember(record, now);
        self.put(key, known);
    }

    /// Forgets clients that are idle too long, of at most `limit` keys: so that what is forgotten keeps up
    /// with what is remembered, and no command forgets for long.
    pub(crate) fn forget_idle(&mut self, now: LogTime, limit: usize) {
        for _ in 0..limit {
            let Some((since, key)) = self.idle.get_min().cloned() else { return };
            if !has_passed(since, now) {
                return;
            }
            let mut known = self.take(&key);
            known.clients.retain(|client| !client.is_idle(now));
            self.put(key, known);
        }
    }

    /// Forgets the keys of the range.
    pub(crate) fn remove_range(&mut self, range: HashRange) {
        let inside = |key: &&Key| range.contains(KeyHash::of(key.as_str()));
        let keys: Vec<Key> = self.pages.keys().filter(inside).cloned().collect();
        for key in &keys {
            self.take(key);
        }
    }

    /// All entries in order, to be written.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Key, &Arc<KeyClients>)> {
        self.pages.iter()
    }

    /// Takes entries of [`Clients::entries`] up again: keys that are not here yet.
    pub(super) fn restore(&mut self, entries: Entries<KeyClients>) {
        for (key, known) in entries {
            if let Some(since) = known.idle_since() {
                self.idle.insert((since, key.clone()));
                self.pages.insert(key, known);
            }
        }
    }

    /// Takes the clients of a key out of the pages and the index.
    fn take(&mut self, key: &Key) -> KeyClients {
        let Some(known) = self.pages.remove(key) else { return KeyClients { clients: Vec::new() } };
        if let Some(since) = known.idle_since() {
            self.idle.remove(&(since, key.clone()));
        }
        Arc::unwrap_or_clone(known)
    }

    fn put(&mut self, key: Key, known: KeyClients) {
        if let Some(since) = known.idle_since() {
            self.idle.insert((since, key.clone()));
            self.pages.insert(key, Arc::new(known));
        }
    }
}

impl KeyClients {
    /// About how many bytes it has in a snapshot.
    pub(super) fn size(&self) -> u64 {
        let of = |record: &Record| match &record.reply {
            Kept::Reply { bytes, .. } => bytes.len() + size_of::<Record>(),
            _ => size_of::<Record>(),
        };
        self.clients.iter().flat_map(|client| &client.records).map(|record| of(record) as u64).sum()
    }

    fn find(&self, name: &str) -> Option<&Client> {
        let at = self.clients.binary_search_by(|client| (*client.name).cmp(name)).ok()?;
        self.clients.get(at)
    }

    fn idle_since(&self) -> Option<LogTime> {
        self.clients.iter().map(|client| client.used).min()
    }
}

impl Client {
    fn is_idle(&self, now: LogTime) -> bool {
        has_passed(self.used, now)
    }

    fn remember(&mut self, record: Record, now: LogTime) {
        self.used = now;
        if let Err(at) = self.records.binary_search_by_key(&record.serial, |record| record.serial) {
            self.records.reserve_exact(1);
            self.records.insert(at, record);
        }
        if self.records.len() > WINDOW {
            self.records.remove(0);
        }
        for record in &mut self.records {
            if has_passed(record.at, now) {
                record.reply = Kept::Gone;
            }
        }
    }
}

fn has_passed(since: LogTime, now: LogTime) -> bool {
    now > since.saturating_add(KEPT_FOR)
}

impl Archive for Clients {
    type Archived = <AsList as ArchiveWith<Pages<KeyClients>>>::Archived;
    type Resolver = VecResolver;

    fn resolve(&self, resolver: VecResolver, out: Place<Self::Archived>) {
        AsList::resolve_with(&self.pages, resolver, out);
    }
}

impl<S> Serialize<S> for Clients
where
    KeyClients: Serialize<S>,
    S: Fallible<Error: Source> + Allocator + Writer + ?Sized,
{
    fn serialize(&self, serializer: &mut S) -> Result<VecResolver, S::Error> {
        AsList::serialize_with(&self.pages, serializer)
    }
}

impl<D> Deserialize<Clients, D> for ArchivedVec<Entry<ArchivedString, ArchivedKeyClients>>
where
    ArchivedKeyClients: Deserialize<KeyClients, D>,
    D: Fallible + ?Sized,
{
    fn deserialize(&self, deserializer: &mut D) -> Result<Clients, D::Error> {
        let pages: Pages<KeyClients> = AsList::deserialize_with(self, deserializer)?;
        let since = |(key, known): (&Key, &Arc<KeyClients>)| known.idle_since().map(|since| (since, key.clone()));
        let idle = pages.iter().filter_map(since).collect();
        Ok(Clients { pages, idle })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60 * 60 * 1_000;

    fn at(millis: u64) -> LogTime {
        LogTime::from_millis(millis)
    }

    fn once(client: &str, serial: u64) -> Once {
        Once { client: client.into(), serial, fingerprint: 1 }
    }

    fn reply(length: usize) -> Kept {
        Kept::Reply { bytes: vec![7; length].into(), version: Some(1) }
    }

    fn run(clients: &mut Clients, client: &str, serial: u64, now: u64) -> Verdict {
        let verdict = clients.judge("key", &once(client, serial), at(now));
        if verdict == Verdict::Run {
            clients.record("key", once(client, serial), reply(1), at(now));
        }
        verdict
    }

    #[test]
    fn a_request_in_the_window_runs_once_whatever_the_order_and_the_gaps() {
        let orders: [Vec<u64>; 4] = [
            (1..=64).collect(),
            (1..=64).rev().collect(),
            (1..=64).map(|n| n * 1_000).rev().collect(),
            (0..64).map(|n| n * 37 % 64).collect(),
        ];
        for order in orders {
            let mut clients = Clients::default();
            for &serial in &order {
                assert_eq!(run(&mut clients, "c", serial, 5), Verdict::Run, "{serial} of {order:?}");
            }
            for &serial in &order {
                assert_eq!(run(&mut clients, "c", serial, 6), Verdict::Ran(reply(1)), "{serial} of {order:?}");
            }
        }
    }

    #[test]
    fn below_the_window_nothing_runs() {
        let mut clients = Clients::default();
        for serial in 10..=74 {
            assert_eq!(run(&mut clients, "c", serial, 5), Verdict::Run);
        }
        for serial in [0, 9, 10] {
            assert_eq!(run(&mut clients, "c", serial, 5), Verdict::Refused(Refused::SerialTooOld), "{serial}");
        }
        assert_eq!(run(&mut clients, "c", 11, 5), Verdict::Ran(reply(1)));
        assert_eq!(run(&mut clients, "other", 9, 5), Verdict::Run, "each client has its own window");
        assert_eq!(clients.judge("other key", &once("c", 9), at(5)), Verdict::Run, "and each key");
    }

    #[test]
    fn another_request_under_the_same_name_is_a_conflict() {
        let mut clients = Clients::default();
        run(&mut clients, "c", 1, 5);
        let other = Once { fingerprint: 2, ..once("c", 1) };
        assert_eq!(clients.judge("key", &other, at(5)), Verdict::Refused(Refused::IdempotencyConflict));
    }

    #[test]
    fn a_reply_is_kept_up_to_its_size_and_for_a_day() {
        let mut clients = Clients::default();
        clients.record("key", once("c", 1), reply(MAX_KEPT_REPLY_BYTES), at(0));
        clients.record("key", once("c", 2), reply(MAX_KEPT_REPLY_BYTES + 1), at(0));
        let judge = |clients: &Clients, serial, now| clients.judge("key", &once("c", serial), at(now));
        assert_eq!(judge(&clients, 1, DAY), Verdict::Ran(reply(MAX_KEPT_REPLY_BYTES)));
        assert_eq!(judge(&clients, 2, DAY), Verdict::Refused(Refused::AlreadyDone));
        clients.record("key", once("c", 3), reply(1), at(DAY));
        for serial in [1, 2] {
            assert_eq!(judge(&clients, serial, DAY + 1), Verdict::Refused(Refused::SerialTooOld), "{serial}");
        }
        assert_eq!(judge(&clients, 4, DAY + 1), Verdict::Run);
    }

    #[test]
    fn an_idle_client_is_forgotten_after_a_day_whether_or_not_it_was_swept() {
        for sweep in [false, true] {
            let mut clients = Clients::default();
            run(&mut clients, "c", 1, 0);
            run(&mut clients, "d", 1, 1);
            if sweep {
                clients.forget_idle(at(DAY + 1), 10);
            }
            assert_eq!(run(&mut clients, "d", 1, DAY + 1), Verdict::Ran(reply(1)), "swept: {sweep}");
            assert_eq!(run(&mut clients, "c", 1, DAY + 1), Verdict::Run, "swept: {sweep}");
            clients.forget_idle(at(10 * DAY), 10);
            assert!(clients.pages.is_empty() && clients.idle.is_empty());
        }
    }

    #[test]
    fn one_client_too_many_is_refused_and_none_evicted() {
        let mut clients = Clients::default();
        let name = |number: usize| format!("c{number}");
        for number in 0..MAX_CLIENTS_PER_KEY {
            assert_eq!(run(&mut clients, &name(number), 1, number as u64), Verdict::Run);
        }
        let refused = Verdict::Refused(Refused::TooManyClients);
        assert_eq!(run(&mut clients, "new", 1, DAY), refused);
        for number in 0..MAX_CLIENTS_PER_KEY {
            assert_eq!(run(&mut clients, &name(number), 1, DAY), Verdict::Ran(reply(1)));
        }
        assert_eq!(run(&mut clients, "new", 1, DAY + 1), Verdict::Run, "the first client is idle for a day");
        assert_eq!(run(&mut clients, "newer", 1, DAY + 1), refused);
    }
}
