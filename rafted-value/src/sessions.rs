//! Exactly once (Raft dissertation, section 6.3), the replicated half: which serials of which session ran, and what they
//! answered. It is pure, and persistent: a copy for a snapshot shares what does not change, however much it is.
//!
//! ```text
//!             serial <= low water -------------> expired        (its caller was told the outcome, or that it is unknown)
//! command --> a record of the serial ----------> the kept reply (it ran before)
//!             log time > not_after ------------> expired
//!             not_after far ahead of log time -> too far ahead  (it did not run: the client's clock is wrong)
//!             no room for a record ------------> crowded        (it did not run)
//!             else ----------------------------> run, keep a record until log time passes not_after
//! ```
//!
//! Why nothing runs twice: a record goes only when its session's low-water mark passes it, or when log time passes its
//! `not_after`. The mark is kept until log time passes the `not_after` of every command of the session that ran, and log
//! time never goes back, so that a repetition which comes later than its record is refused by one or the other.
//!
//! Memory is bounded by [`MAX_REMEMBERED`] and [`MAX_KEPT_REPLY_BYTES`], and in time by [`MAX_AHEAD`].

use std::io;
use std::time::Duration;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};

use crate::codec::{Malformed, Reader, Writer};
use crate::command::{CommandId, SessionId};
use crate::value::LogTime;

/// Records and sessions that one group remembers; a command beyond that is refused. About 200 MiB.
pub(crate) const MAX_REMEMBERED: usize = 1 << 20;
/// Bytes of replies that one group keeps. Beyond that it remembers of a command only that it ran.
pub(crate) const MAX_KEPT_REPLY_BYTES: usize = 64 << 20;
/// How far a command's `not_after` may be ahead of log time, so that a client's wrong clock does not make the group
/// remember for ever: twice what a client with the right time asks for.
pub(crate) const MAX_AHEAD: Duration = Duration::from_secs(2 * 3_600);

/// What the sessions say of a command before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has not run: run it, then [`Sessions::record`].
    Run,
    /// It ran before, and this was its reply, if it was kept.
    Ran(Option<Bytes>),
    /// Whether it ran is no longer known; it must not run now.
    Expired,
    /// It has not run, and does not run now: its time is too far ahead.
    TooFarAhead,
    /// It has not run, and does not run now: too much is remembered.
    Crowded,
}

/// See the header.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    sessions: OrdMap<SessionId, Session>,
    records: OrdMap<(SessionId, u64), Record>,
    /// When records and sessions are forgotten. A session stands here once, with the serial `u64::MAX`, at its `until` or
    /// earlier: it is looked at then, and put off.
    expiry: OrdSet<(LogTime, SessionId, u64)>,
    /// Nothing in `expiry` is before this: nearly every command asks, and finds nothing to forget.
    nothing_before: LogTime,
    /// Of the replies in `records`.
    reply_bytes: usize,
    /// The newest version of which a command was applied: every member reads it, or is known to lag.
    version_in_use: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    low_water: u64,
    /// The latest `not_after` seen: until then the low-water mark must be remembered.
    until: LogTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    not_after: LogTime,
    key_hash: u32,
    reply: Option<Bytes>,
}

/// Sessions are written into a snapshot in pieces of about this size.
const PIECE_BYTES: usize = 64 << 10;

const SESSION_ITSELF: u64 = u64::MAX;

/// Serials that are forgotten one by one.
const FEW: u64 = 16;

impl Sessions {
    /// Judges a command at log time `now`, and forgets what its low-water mark closes.
    pub(crate) fn judge(&mut self, id: &CommandId, now: LogTime) -> Verdict {
        let session = self.sessions.get(&id.session);
        let low_water = session.map_or(0, |session| session.low_water).max(id.low_water);
        if id.serial == SESSION_ITSELF || id.serial <= low_water {
            return Verdict::Expired;
        }
        if let Some(record) = self.records.get(&(id.session, id.serial)) {
            let reply = record.reply.clone();
            self.raise_low_water(id);
            return Verdict::Ran(reply);
        }
        if now > id.not_after {
            return Verdict::Expired;
        }
        // While the group does not know the time, it cannot say who is ahead.
        if now != LogTime::default() && id.not_after > now.saturating_add(MAX_AHEAD) {
            return Verdict::TooFarAhead;
        }
        self.raise_low_water(id);
        if self.expiry.len() >= MAX_REMEMBERED { Verdict::Crowded } else { Verdict::Run }
    }

    /// The newest version of which a command was applied, if any was.
    pub(crate) fn version_in_use(&self) -> Option<u32> {
        self.version_in_use
    }

    /// A command of this version is applied.
    pub(crate) fn use_version(&mut self, version: u32) {
        self.version_in_use = self.version_in_use.max(Some(version));
    }

    /// Remembers that the command ran. There is room for one more, as [`Sessions::judge`] said.
    pub(crate) fn record(&mut self, id: &CommandId, key_hash: u32, reply: Bytes) {
        match self.sessions.get_mut(&id.session) {
            Some(session) => session.until = session.until.max(id.not_after),
            None => {
                self.sessions.insert(id.session, Session { low_water: id.low_water, until: id.not_after });
                self.expire_at(id.not_after, id.session, SESSION_ITSELF);
            }
        }
        let reply = Some(reply).filter(|reply| self.reply_bytes + reply.len() <= MAX_KEPT_REPLY_BYTES);
        self.put(id.session, id.serial, Record { not_after: id.not_after, key_hash, reply });
    }

    fn put(&mut self, session: SessionId, serial: u64, record: Record) {
        self.reply_bytes += record.reply.as_ref().map_or(0, Bytes::len);
        self.expire_at(record.not_after, session, serial);
        self.records.insert((session, serial), record);
    }

    fn expire_at(&mut self, at: LogTime, session: SessionId, serial: u64) {
        self.nothing_before = self.nothing_before.min(at);
        self.expiry.insert((at, session, serial));
    }

    /// Forgets what `now` has passed. Cheap when there is nothing to forget.
    pub(crate) fn expire(&mut self, now: LogTime) {
        if self.nothing_before >= now {
            return;
        }
        while let Some(&(at, id, serial)) = self.expiry.get_min() {
            if at >= now {
                self.nothing_before = at;
                return;
            }
            if serial != SESSION_ITSELF {
                self.forget(id, serial);
                continue;
            }
            self.expiry.remove(&(at, id, serial));
            match self.sessions.get(&id) {
                Some(session) if session.until >= now => {
                    let until = session.until;
                    self.expire_at(until, id, serial);
                }
                _ => drop(self.sessions.remove(&id)),
            }
        }
        // Whatever comes is put in with its time.
        self.nothing_before = now;
    }

    fn forget(&mut self, session: SessionId, serial: u64) {
        if let Some(record) = self.records.remove(&(session, serial)) {
            self.expiry.remove(&(record.not_after, session, serial));
            self.reply_bytes -= record.reply.as_ref().map_or(0, Bytes::len);
        }
    }

    fn raise_low_water(&mut self, id: &CommandId) {
        let before = match self.sessions.get_mut(&id.session) {
            Some(session) if id.low_water > session.low_water => {
                std::mem::replace(&mut session.low_water, id.low_water)
            }
            _ => return,
        };
        // Nothing is remembered up to the mark before. Each of a few serials is found faster than their range.
        if id.low_water - before <= FEW {
            (before + 1..=id.low_water).for_each(|serial| self.forget(id.session, serial));
            return;
        }
        let closed = (id.session, 0)..=(id.session, id.low_water);
        while let Some(serial) = self.records.range(closed.clone()).next().map(|((_, serial), _)| *serial) {
            self.forget(id.session, serial);
        }
    }

    /// Writes them in pieces, each of whole sessions: some [`PIECE_BYTES`], or one session that is larger.
    pub(crate) fn write_pieces(&self, mut put: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut writer = Writer::default();
        for (id, session) in &self.sessions {
            writer.u128(id.0);
            writer.u64(session.low_water);
            writer.u64(session.until.as_millis());
            let records: Vec<_> = self.records.range((*id, 0)..=(*id, SESSION_ITSELF)).collect();
            writer.length(records.len());
            for ((_, serial), record) in records {
                writer.u64(*serial);
                writer.u64(record.not_after.as_millis());
                writer.u32(record.key_hash);
                writer.option(record.reply.as_ref(), |writer, reply| writer.slice(reply));
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
            self.expire_at(until, id, SESSION_ITSELF);
            self.sessions.insert(id, Session { low_water, until });
            for _ in 0..reader.count(21)? {
                let serial = reader.u64()?;
                let not_after = LogTime::from_millis(reader.u64()?);
                let key_hash = reader.u32()?;
                // Copied: a slice would keep the whole piece in memory.
                let reply = reader.option(|reader| Ok(Bytes::copy_from_slice(&reader.slice()?)))?;
                self.put(id, serial, Record { not_after, key_hash, reply });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
