//! Whether a replica sleeps: no heartbeats, no election timers, no timers at all. See `group/sleeping.rs` for when.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::machine::Raft;

type OnWake = Box<dyn Fn() + Send + Sync>;

/// A replica's sleep, and what has happened to it.
pub(crate) struct Sleeper {
    raft: Raft,
    clock: Arc<dyn Clock>,
    asleep: Arc<AtomicBool>,
    /// The leader that it knows is not there any more: whoever asks for votes wakes it.
    leader_gone: AtomicBool,
    /// Counts what would wake it.
    activity: AtomicU64,
    /// When something happened last, and when it woke last, in microseconds of the clock.
    active_at: AtomicU64,
    woken_at: AtomicU64,
    /// Whoever changes the flag lets openraft's timer follow it under this lock: the last one sees the last flag.
    settling: Mutex<()>,
    on_wake: OnceLock<OnWake>,
}

impl Sleeper {
    /// Awake. The flag is shared with whoever tries members again and again.
    pub(crate) fn new(raft: Raft, clock: Arc<dyn Clock>, asleep: Arc<AtomicBool>) -> Self {
        let now = AtomicU64::new(micros(clock.monotonic()));
        let woken_at = AtomicU64::new(now.load(Ordering::SeqCst));
        let (settling, on_wake) = (Mutex::default(), OnceLock::new());
        let (leader_gone, activity) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { raft, clock, asleep, leader_gone, activity, active_at: now, woken_at, settling, on_wake }
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    pub(crate) fn set_leader_gone(&self, is_gone: bool) {
        self.leader_gone.store(is_gone, Ordering::SeqCst);
    }

    pub(crate) fn is_leader_gone(&self) -> bool {
        self.leader_gone.load(Ordering::SeqCst)
    }

    /// For how long nothing has happened.
    pub(crate) fn idle_for(&self) -> Duration {
        self.since(&self.active_at)
    }

    /// Since when it is awake without a break; `None` while it sleeps.
    pub(crate) fn awake_for(&self) -> Option<Duration> {
        (!self.is_asleep()).then(|| self.since(&self.woken_at))
    }

    /// Called each time that it wakes; set once.
    pub(crate) fn on_wake(&self, call: OnWake) {
        // Set twice, the first stays; nobody does.
        let _ = self.on_wake.set(call);
    }

    /// How much has happened.
    pub(crate) fn activity(&self) -> u64 {
        self.activity.load(Ordering::SeqCst)
    }

    /// Falls asleep; `false` if something has happened since. Either whoever is active sees that it sleeps, and wakes it,
    /// or this sees the activity.
    pub(crate) fn sleep_unless_active_since(&self, activity: u64) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        self.let_timer_follow();
        if self.activity() == activity {
            return true;
        }
        self.wake();
        false
    }

    /// Wakes it; `false` if it was awake.
    pub(crate) fn wake(&self) -> bool {
        if !self.asleep.swap(false, Ordering::SeqCst) {
            return false;
        }
        self.leader_gone.store(false, Ordering::SeqCst);
        let now = micros(self.clock.monotonic());
        self.active_at.store(now, Ordering::SeqCst);
        self.woken_at.store(now, Ordering::SeqCst);
        self.let_timer_follow();
        if let Some(on_wake) = self.on_wake.get() {
            on_wake();
        }
        true
    }

    /// Something happens that the group must be awake for.
    pub(crate) fn stir(&self) {
        self.note_activity();
        self.wake();
    }

    /// A command comes: a leader wakes, while another member only says who leads.
    pub(crate) fn stir_leader(&self) {
        self.note_activity();
        self.wake_leader();
    }

    /// Wakes it if it leads.
    pub(crate) fn wake_leader(&self) {
        if self.is_asleep() && self.raft.is_leader() {
            self.wake();
        }
    }

    fn note_activity(&self) {
        self.active_at.store(micros(self.clock.monotonic()), Ordering::SeqCst);
        self.activity.fetch_add(1, Ordering::SeqCst);
    }

    fn let_timer_follow(&self) {
        let _settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        self.raft.runtime_config().tick(!self.is_asleep());
    }

    fn since(&self, at: &AtomicU64) -> Duration {
        let at = Duration::from_micros(at.load(Ordering::SeqCst));
        self.clock.monotonic().saturating_sub(at)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
