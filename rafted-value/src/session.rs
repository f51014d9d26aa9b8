//! Exactly once (Raft dissertation, section 6.3), the client's half: hands out serials, says which are closed, and until
//! when a command may be repeated. The replicated half is `sessions.rs`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::command::{CommandId, SessionId};
use crate::error::{CommandError, NotHappened, UnknownOutcome};
use crate::value::LogTime;

/// Commands of one client process that may be open at once; one more waits.
pub const MAX_OPEN_SERIALS: usize = 4_096;

/// How far the newest serial may be ahead of the oldest open one.
pub const MAX_SERIAL_WINDOW: u64 = 65_536;

/// A command may be repeated for this long, however long its caller waits; later it is refused as unknown.
pub const MAX_REPEATABLE: Duration = Duration::from_secs(3_600);

/// How long past a command's deadline the state remembers that it ran. It covers the difference between the
/// client's clock and log time.
pub const RECORD_MARGIN: Duration = Duration::from_secs(60);

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
    /// How far log time is ahead of this process's clock, in milliseconds, as far as a group has said.
    ahead: AtomicI64,
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
        Self {
            inner: Arc::new(Inner {
                id,
                open: Mutex::default(),
                slots,
                closed: Notify::new(),
                ahead: AtomicI64::new(0),
            }),
        }
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
        let repeatable = started.elapsed().saturating_add(timeout.min(MAX_REPEATABLE)).saturating_add(RECORD_MARGIN);
        let not_after = self.corrected(now).saturating_add(repeatable);
        let id = CommandId { session: self.inner.id, serial, low_water, not_after };
        OpenCommand { id, session: self.inner.clone(), _slot: slot }
    }

    /// Learns from a refusal what time it is for the groups: this process's clock, which stood at `now`, was wrong. The
    /// next command has the right time.
    pub fn learn_from(&self, error: &CommandError, now: LogTime) {
        let log_time = match error {
            CommandError::NotHappened(NotHappened::TooFarAhead { log_time, .. })
            | CommandError::Unknown(UnknownOutcome::Expired { log_time: Some(log_time) }) => log_time,
            _ => return,
        };
        let signed = |time: LogTime| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        self.inner.ahead.store(signed(*log_time).saturating_sub(signed(now)), Ordering::Relaxed);
    }

    fn corrected(&self, now: LogTime) -> LogTime {
        LogTime::from_millis(now.as_millis().saturating_add_signed(self.inner.ahead.load(Ordering::Relaxed)))
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

    fn at(millis: u64) -> LogTime {
        LogTime::from_millis(millis)
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
    async fn a_wrong_clock_is_corrected_by_what_a_group_says() {
        let session = ClientSession::random();
        let until = |open: OpenCommand| open.id().not_after;
        let refused = CommandError::Unknown(UnknownOutcome::Expired { log_time: Some(at(5_000_000)) });
        session.learn_from(&refused, at(1_000));
        assert_eq!(until(session.open(at(1_000), Duration::ZERO).await), at(5_000_000).saturating_add(RECORD_MARGIN));
        let refused = NotHappened::TooFarAhead { group: "g".into(), log_time: at(10), not_after: at(90) };
        session.learn_from(&refused.into(), at(70));
        let patient = session.open(at(80), MAX_REPEATABLE * 9).await;
        assert_eq!(until(patient), at(20).saturating_add(MAX_REPEATABLE + RECORD_MARGIN), "for ever is not remembered");
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
