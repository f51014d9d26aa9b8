//! Exactly once (Raft dissertation, section 6.3). The replicated half is pure: which serials of which
//! session ran, and what they answered. The client's half hands out serials and says which are closed.
//!
//! ```text
//!             serial <= low water -------------> expired        (its caller was told the outcome, or that it is unknown)
//! command --> a record of the serial ----------> the kept reply (it ran before)
//!             log time > not_after ------------> expired
//!             else ----------------------------> run, keep a record until log time passes not_after
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::codec::{Malformed, Reader, Writer};
use crate::command::{CommandId, SessionId};
use crate::value::LogTime;

/// Commands of one client process that may be open at once; one more waits.
pub const MAX_OPEN_SERIALS: usize = 4_096;

/// How far the newest serial may be ahead of the oldest open one.
pub const MAX_SERIAL_WINDOW: u64 = 65_536;

/// How long past a command's deadline the state remembers that it ran. It covers the difference between the
/// client's clock and log time.
pub const RECORD_MARGIN: Duration = Duration::from_secs(60);

/// What the sessions say of a command before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has not run: run it, then [`Sessions::record`].
    Run,
    /// It ran before, and this was its reply.
    Ran(Bytes),
    /// Whether it ran is no longer known; it must not run now.
    Expired,
}

/// The replicated half.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
    /// When records and sessions are forgotten; a session stands here with the serial `u64::MAX`.
    expiry: BTreeSet<(LogTime, SessionId, u64)>,
    /// The newest version of which a command was applied: every member reads it, or is known to lag.
    version_in_use: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    low_water: u64,
    /// The latest `not_after` seen: until then the low-water mark must be remembered.
    until: LogTime,
    records: BTreeMap<u64, Record>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    not_after: LogTime,
    key_hash: u32,
    reply: Bytes,
}

/// Sessions are written into a snapshot in pieces of about this size.
const PIECE_BYTES: usize = 64 << 10;

const SESSION_ITSELF: u64 = u64::MAX;

impl Sessions {
    /// Judges a command at log time `now`, and forgets what its low-water mark closes.
    pub(crate) fn judge(&mut self, id: &CommandId, now: LogTime) -> Verdict {
        if id.serial == SESSION_ITSELF || id.serial <= id.low_water {
            return Verdict::Expired;
        }
        if let Some(session) = self.sessions.get(&id.session) {
            if id.serial <= session.low_water {
                return Verdict::Expired;
            }
            if let Some(record) = session.records.get(&id.serial) {
                let reply = record.reply.clone();
                self.raise_low_water(id);
                return Verdict::Ran(reply);
            }
        }
        if now > id.not_after {
            return Verdict::Expired;
        }
        self.raise_low_water(id);
        Verdict::Run
    }

    /// The newest version of which a command was applied, if any was.
    pub(crate) fn version_in_use(&self) -> Option<u32> {
        self.version_in_use
    }

    /// A command of this version is applied.
    pub(crate) fn use_version(&mut self, version: u32) {
        self.version_in_use = self.version_in_use.max(Some(version));
    }

    /// Remembers that the command ran.
    pub(crate) fn record(&mut self, id: &CommandId, key_hash: u32, reply: Bytes) {
        let session = self.sessions.entry(id.session).or_insert_with(|| Session {
            low_water: id.low_water,
            until: LogTime::default(),
            records: BTreeMap::new(),
        });
        if id.not_after > session.until || session.until == LogTime::default() {
            self.expiry.remove(&(session.until, id.session, SESSION_ITSELF));
            session.until = id.not_after;
            self.expiry.insert((session.until, id.session, SESSION_ITSELF));
        }
        session.records.insert(id.serial, Record { not_after: id.not_after, key_hash, reply });
        self.expiry.insert((id.not_after, id.session, id.serial));
    }

    /// Forgets what `now` has passed. Cheap when there is nothing to forget.
    pub(crate) fn expire(&mut self, now: LogTime) {
        while let Some(&(at, id, serial)) = self.expiry.first() {
            if at >= now {
                return;
            }
            self.expiry.pop_first();
            if serial == SESSION_ITSELF {
                self.sessions.remove(&id);
            } else if let Some(session) = self.sessions.get_mut(&id) {
                session.records.remove(&serial);
            }
        }
    }

    fn raise_low_water(&mut self, id: &CommandId) {
        let Some(session) = self.sessions.get_mut(&id.session) else {
            return;
        };
        if id.low_water <= session.low_water {
            return;
        }
        session.low_water = id.low_water;
        while let Some(entry) = session.records.first_entry() {
            if *entry.key() > id.low_water {
                break;
            }
            let (serial, record) = entry.remove_entry();
            self.expiry.remove(&(record.not_after, id.session, serial));
        }
    }

    /// Writes them in pieces, each of whole sessions: some [`PIECE_BYTES`], or one session that is larger.
    pub(crate) fn write_pieces(&self, mut put: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut writer = Writer::default();
        for (id, session) in &self.sessions {
            writer.u128(id.0);
            writer.u64(session.low_water);
            writer.u64(session.until.as_millis());
            writer.length(session.records.len());
            for (serial, record) in &session.records {
                writer.u64(*serial);
                writer.u64(record.not_after.as_millis());
                writer.u32(record.key_hash);
                writer.slice(&record.reply);
            }
            if writer.len() >= PIECE_BYTES {
                put(&std::mem::take(&mut writer).into_bytes())?;
            }
        }
        if writer.len() == 0 { Ok(()) } else { put(&writer.into_bytes()) }
    }

    /// Reads one piece, in addition to those before it.
    pub(crate) fn read_piece(&mut self, piece: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(Bytes::copy_from_slice(piece), "sessions of a snapshot");
        while !reader.is_empty() {
            let id = SessionId(reader.u128()?);
            let low_water = reader.u64()?;
            let until = LogTime::from_millis(reader.u64()?);
            self.expiry.insert((until, id, SESSION_ITSELF));
            let mut records = BTreeMap::new();
            for _ in 0..reader.count(24)? {
                let serial = reader.u64()?;
                let not_after = LogTime::from_millis(reader.u64()?);
                let key_hash = reader.u32()?;
                // Copied: a slice would keep the whole piece in memory.
                let reply = Bytes::copy_from_slice(&reader.slice()?);
                self.expiry.insert((not_after, id, serial));
                records.insert(serial, Record { not_after, key_hash, reply });
            }
            self.sessions.insert(id, Session { low_water, until, records });
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn record_count(&self) -> usize {
        self.sessions.values().map(|session| session.records.len()).sum()
    }
}

/// The client's half: one per process, shared by all groups it talks to.
#[derive(Debug, Clone)]
pub struct ClientSession {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: SessionId,
    open: Mutex<Open>,
    slots: Arc<Semaphore>,
    /// A serial was closed.
    closed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    serials: BTreeSet<u64>,
    /// Somebody waits until the oldest is closed.
    is_awaited: bool,
}

/// An open serial: keep it until the command's outcome is known or given up; dropping it closes the serial.
#[derive(Debug)]
pub struct OpenCommand {
    id: CommandId,
    session: Arc<Inner>,
    _slot: OwnedSemaphorePermit,
}

impl ClientSession {
    /// A session with an id from the operating system's randomness.
    pub fn random() -> Self {
        Self::with_id(SessionId(crate::runtime::random()))
    }

    /// A session with a given id, which no other process may ever use.
    pub fn with_id(id: SessionId) -> Self {
        let slots = Arc::new(Semaphore::new(MAX_OPEN_SERIALS));
        Self { inner: Arc::new(Inner { id, open: Mutex::default(), slots, closed: Notify::new() }) }
    }

    /// Opens a serial for a command that its caller gives up `timeout` after `now`. Waits while
    /// [`MAX_OPEN_SERIALS`] are open, or the oldest open one lies [`MAX_SERIAL_WINDOW`] behind: the groups remember
    /// every serial above it.
    pub async fn open(&self, now: LogTime, timeout: Duration) -> OpenCommand {
        let started = tokio::time::Instant::now();
        let slot = loop {
            // The semaphore is never closed, so that this loop ends at its first turn.
            if let Ok(slot) = self.inner.slots.clone().acquire_owned().await {
                break slot;
            }
        };
        let (serial, low_water) = loop {
            let closed = self.inner.closed.notified();
            if let Some(opened) = self.try_open() {
                break opened;
            }
            closed.await;
        };
        // The time that passed here is the caller's, not the command's.
        let not_after = now.saturating_add(started.elapsed()).saturating_add(timeout).saturating_add(RECORD_MARGIN);
        let id = CommandId { session: self.inner.id, serial, low_water, not_after };
        OpenCommand { id, session: self.inner.clone(), _slot: slot }
    }

    fn try_open(&self) -> Option<(u64, u64)> {
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        let serial = open.last + 1;
        let oldest = open.serials.first().map_or(serial, |&first| first);
        if serial - oldest >= MAX_SERIAL_WINDOW {
            open.is_awaited = true;
            return None;
        }
        open.last = serial;
        open.serials.insert(serial);
        Some((serial, oldest - 1))
    }
}

impl OpenCommand {
    /// What makes the command run once.
    pub fn id(&self) -> CommandId {
        self.id
    }
}

impl Drop for OpenCommand {
    fn drop(&mut self) {
        let is_awaited = {
            let mut open = self.session.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.serials.remove(&self.id.serial);
            std::mem::take(&mut open.is_awaited)
        };
        if is_awaited {
            self.session.closed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(serial: u64, low_water: u64, not_after: u64) -> CommandId {
        CommandId { session: SessionId(9), serial, low_water, not_after: LogTime::from_millis(not_after) }
    }

    fn at(millis: u64) -> LogTime {
        LogTime::from_millis(millis)
    }

    fn run(sessions: &mut Sessions, id: CommandId, now: u64) -> Verdict {
        let verdict = sessions.judge(&id, at(now));
        if verdict == Verdict::Run {
            sessions.record(&id, 0, Bytes::from(format!("reply {}", id.serial)));
        }
        verdict
    }

    #[test]
    fn a_repeated_serial_gets_the_first_reply_however_many_came_between() {
        let mut sessions = Sessions::default();
        for serial in 1..=500 {
            assert_eq!(run(&mut sessions, id(serial, 0, 100), 1), Verdict::Run);
        }
        for serial in 1..=500 {
            let reply = Bytes::from(format!("reply {serial}"));
            assert_eq!(run(&mut sessions, id(serial, 0, 100), 2), Verdict::Ran(reply));
        }
    }

    #[test]
    fn nothing_at_or_below_the_low_water_mark_runs() {
        let mut sessions = Sessions::default();
        run(&mut sessions, id(1, 0, 100), 1);
        run(&mut sessions, id(5, 4, 100), 1);
        for serial in 1..=4 {
            assert_eq!(run(&mut sessions, id(serial, 0, 100), 1), Verdict::Expired, "serial {serial}");
        }
        assert_eq!(sessions.record_count(), 1, "closed records are forgotten");
    }

    #[test]
    fn a_command_past_its_time_is_refused_and_its_record_forgotten() {
        let mut sessions = Sessions::default();
        assert_eq!(run(&mut sessions, id(1, 0, 100), 101), Verdict::Expired);
        assert_eq!(run(&mut sessions, id(2, 0, 100), 100), Verdict::Run);
        sessions.expire(at(101));
        assert_eq!(sessions, Sessions::default());
        assert_eq!(run(&mut sessions, id(2, 0, 100), 101), Verdict::Expired, "never run a second time");
    }

    #[test]
    fn the_low_water_mark_outlives_its_records() {
        let mut sessions = Sessions::default();
        run(&mut sessions, id(1, 0, 500), 1);
        run(&mut sessions, id(2, 1, 100), 1);
        sessions.expire(at(101));
        assert_eq!(run(&mut sessions, id(1, 0, 500), 102), Verdict::Expired, "it ran before");
    }

    #[test]
    fn a_snapshot_keeps_everything() {
        let mut sessions = Sessions::default();
        for serial in 3..40 {
            run(&mut sessions, id(serial, serial / 2, 100 + serial), 1);
        }
        let mut again = Sessions::default();
        sessions.write_pieces(|piece| again.read_piece(piece).map_err(io::Error::other)).unwrap();
        assert_eq!(again, sessions);
    }

    #[tokio::test]
    async fn a_serial_far_ahead_of_the_oldest_open_one_waits() {
        let session = ClientSession::random();
        let oldest = session.open(at(0), Duration::ZERO).await;
        for _ in 1..MAX_SERIAL_WINDOW {
            session.open(at(0), Duration::ZERO).await;
        }
        let next = session.open(at(0), Duration::ZERO);
        tokio::pin!(next);
        assert!(futures_util::poll!(&mut next).is_pending(), "the groups would remember too much");
        drop(oldest);
        assert_eq!(next.await.id().serial, MAX_SERIAL_WINDOW + 1);
    }

    #[tokio::test]
    async fn the_low_water_mark_is_below_the_oldest_open_serial() {
        let session = ClientSession::random();
        let first = session.open(at(0), Duration::ZERO).await;
        let second = session.open(at(0), Duration::ZERO).await;
        assert_eq!((first.id().serial, first.id().low_water), (1, 0));
        assert_eq!((second.id().serial, second.id().low_water), (2, 0));
        drop(first);
        assert_eq!(session.open(at(0), Duration::ZERO).await.id().low_water, 1);
        drop(second);
        assert_eq!(session.open(at(0), Duration::ZERO).await.id().low_water, 3);
    }
}
