//! Hooks: the user's own asynchronous code that runs beside the leader, after the commit.
//!
//! ```text
//! apply ----applied, if this leads----.
//! metrics --elected, stepped down, ---+--> bounded queue --> one call at a time, on a thread that may block
//!           member added or removed --'          |
//!                                          full: dropped, and counted
//! ```
//!
//! A hook is for side effects that may be lost and may happen twice: a mail, a cache that is warmed, a counter. What
//! must happen belongs into the value.

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::stats;
use crate::status::Member;
use crate::transport::BoxFuture;
use crate::value::{Context, LogTime, Value, read_command};
use crate::wire::decode;

/// Calls that wait for their turn; of what comes then, nothing is kept.
const MAX_QUEUED_CALLS: usize = 1_024;
/// Bytes of commands and replies that wait.
const MAX_QUEUED_BYTES: usize = 16 << 20;

/// What a user wants to do when this replica leads. Implement the methods of interest, as plain `async fn`s.
///
/// The calls come one after another, in the order of the log, on a thread that may block, only on the replica that
/// leads, and only after the commit. They may be lost (the process dies, the leadership moves, the queue of 1,024
/// calls and 16 MiB is full) and, after a change of leaders, may happen twice. One that panics is reported and the
/// next one comes; one that takes long delays only those behind it.
///
/// ```
/// use rafted_value::{AppliedCommand, LeaderHook, Leading, Value, messages};
/// # messages! { #[derive(Default)] pub struct Count { n: u64 } }
/// # impl Value for Count {
/// #     type Command = u64; type Reply = u64; type Query = (); type Answer = u64;
/// #     fn command(&mut self, n: u64) -> u64 { self.n += n; self.n }
/// #     fn query(&self, (): ()) -> u64 { self.n }
/// # }
/// struct Announcer;
///
/// impl LeaderHook<Count> for Announcer {
///     async fn elected(&self, leading: &Leading<Count>) {
///         println!("leads term {}, at {:?}", leading.term(), leading.read(|count, _| count.query(())));
///     }
///     async fn command_applied(&self, _: &Leading<Count>, applied: &AppliedCommand<Count>) {
///         println!("{} was added: {}", applied.command, applied.reply);
///     }
/// }
/// ```
pub trait LeaderHook<V: Value>: Send + Sync + 'static {
    /// This replica was elected, and its value has everything that was committed before.
    fn elected(&self, leading: &Leading<V>) -> impl Future<Output = ()> + Send {
        let _ = leading;
        async {}
    }

    /// This replica leads no more; it led the given term.
    fn stepped_down(&self, term: u64) -> impl Future<Output = ()> + Send {
        let _ = term;
        async {}
    }

    /// A command was committed and applied. A repetition that got the first one's reply is not reported, nor one that
    /// failed in the value's code.
    fn command_applied(&self, leading: &Leading<V>, applied: &AppliedCommand<V>) -> impl Future<Output = ()> + Send {
        let _ = (leading, applied);
        async {}
    }

    /// A replica has become a member, with or without a vote.
    fn member_added(&self, leading: &Leading<V>, member: &Member) -> impl Future<Output = ()> + Send {
        let _ = (leading, member);
        async {}
    }

    /// A replica is no member any more.
    fn member_removed(&self, leading: &Leading<V>, member: &Member) -> impl Future<Output = ()> + Send {
        let _ = (leading, member);
        async {}
    }
}

/// A command that was applied, as a hook sees it.
#[derive(Debug)]
pub struct AppliedCommand<V: Value> {
    /// Its place in the log.
    pub index: u64,
    /// Its log time.
    pub log_time: LogTime,
    /// The command.
    pub command: V::Command,
    /// What it answered.
    pub reply: V::Reply,
}

/// The replica beside which a hook runs.
pub struct Leading<V> {
    term: u64,
    source: Arc<dyn ReadValue>,
    value: PhantomData<fn() -> V>,
}

impl<V: Value> Leading<V> {
    /// The term that it leads, or led when the call was queued.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Reads the replica's value as it is now, which may be newer than what the call is about. Commands wait
    /// meanwhile: keep it short.
    pub fn read<T>(&self, read: impl FnOnce(&V, &Context<'_>) -> T) -> Option<T> {
        let (mut read, mut found) = (Some(read), None);
        self.source.read_value(&mut |value, context| {
            if let (Some(value), Some(read)) = (value.downcast_ref(), read.take()) {
                found = Some(read(value, context));
            }
        });
        found
    }
}

impl<V> std::fmt::Debug for Leading<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leading").field("term", &self.term).finish_non_exhaustive()
    }
}

/// Whoever holds the value.
pub(crate) trait ReadValue: Send + Sync {
    fn read_value(&self, read: &mut dyn FnMut(&dyn Any, &Context<'_>));
}

/// One call of a hook, before its types are known.
#[derive(Debug)]
pub(crate) enum Call {
    Elected { term: u64 },
    SteppedDown { term: u64 },
    Applied { term: u64, index: u64, log_time: LogTime, schema: u32, command: Bytes, reply: Bytes },
    MemberAdded { term: u64, member: Member },
    MemberRemoved { term: u64, member: Member },
}

impl Call {
    fn term(&self) -> u64 {
        match self {
            Self::Elected { term } | Self::SteppedDown { term } | Self::Applied { term, .. } => *term,
            Self::MemberAdded { term, .. } | Self::MemberRemoved { term, .. } => *term,
        }
    }
}

/// A hook for values of some type.
pub(crate) trait AnyHook: Send + Sync {
    fn call(self: Arc<Self>, source: Arc<dyn ReadValue>, call: Call) -> BoxFuture<()>;
}

/// Forgets the type of a hook.
pub(crate) fn erased<V: Value>(hook: impl LeaderHook<V>) -> Arc<dyn AnyHook> {
    Arc::new(Typed { hook, value: PhantomData })
}

struct Typed<V, H> {
    hook: H,
    value: PhantomData<fn() -> V>,
}

impl<V: Value, H: LeaderHook<V>> AnyHook for Typed<V, H> {
    fn call(self: Arc<Self>, source: Arc<dyn ReadValue>, call: Call) -> BoxFuture<()> {
        Box::pin(async move {
            let leading = Leading { term: call.term(), source, value: PhantomData };
            match call {
                Call::Elected { .. } => self.hook.elected(&leading).await,
                Call::SteppedDown { term } => self.hook.stepped_down(term).await,
                Call::MemberAdded { member, .. } => self.hook.member_added(&leading, &member).await,
                Call::MemberRemoved { member, .. } => self.hook.member_removed(&leading, &member).await,
                Call::Applied { index, log_time, schema, command, reply, .. } => {
                    match (read_command::<V>(schema, &command), decode(&reply)) {
                        (Ok(command), Ok(reply)) => {
                            let applied = AppliedCommand { index, log_time, command, reply };
                            self.hook.command_applied(&leading, &applied).await;
                        }
                        // It was read when it was applied, a moment ago.
                        _ => tracing::error!(index, "a command that was applied cannot be read for a hook"),
                    }
                }
            }
        })
    }
}

/// The queue of one replica's calls, as those who fill it see it.
pub(crate) struct HookQueue {
    group: String,
    calls: mpsc::Sender<Queued>,
    bytes: Arc<Semaphore>,
    /// The term that this replica leads as far as the hook was told, 0 for none. Entries of that term are its own. Changed
    /// under the lock of `seen`, so that calls are queued in order.
    leads: AtomicU64,
    /// The newest term of which an entry was applied.
    seen: Mutex<u64>,
    is_leader_of: OnceLock<IsLeader>,
    dropped: AtomicU64,
}

/// Whether this replica leads that term, as openraft knows it.
type IsLeader = Box<dyn Fn(u64) -> bool + Send + Sync>;

/// A call that waits, with its share of the bytes.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) call: Call,
    _bytes: OwnedSemaphorePermit,
}

impl HookQueue {
    /// An empty queue, and its other end.
    pub(crate) fn new(group: &str) -> (Self, mpsc::Receiver<Queued>) {
        let (calls, queued) = mpsc::channel(MAX_QUEUED_CALLS);
        let queue = Self {
            group: group.to_owned(),
            calls,
            bytes: Arc::new(Semaphore::new(MAX_QUEUED_BYTES)),
            leads: AtomicU64::new(0),
            seen: Mutex::new(0),
            is_leader_of: OnceLock::new(),
            dropped: AtomicU64::new(0),
        };
        (queue, queued)
    }

    /// Says how to ask openraft who leads.
    pub(crate) fn set_is_leader_of(&self, is_leader_of: impl Fn(u64) -> bool + Send + Sync + 'static) {
        // Set twice, the first stays; nobody does.
        let _ = self.is_leader_of.set(Box::new(is_leader_of));
    }

    /// An entry of this term is applied. The first one of a term that this replica leads means that its value has
    /// everything from before.
    pub(crate) fn see_entry(&self, term: u64) {
        let mut seen = self.lock_seen();
        if *seen != term {
            *seen = term;
            self.elect(term);
        }
    }

    /// This replica leads that term, says openraft, which may say so only after the first entry of the term was applied.
    pub(crate) fn see_leadership(&self, term: u64) {
        let seen = self.lock_seen();
        if *seen == term {
            self.elect(term);
        }
    }

    /// Tells of an election, once, and only while this leads that term; before that, of the end of an earlier leadership
    /// that nobody has noticed.
    fn elect(&self, term: u64) {
        let before = self.leads();
        if before != term && self.is_leader_of.get().is_some_and(|is_leader_of| is_leader_of(term)) {
            if before != 0 {
                self.push(Call::SteppedDown { term: before });
            }
            self.leads.store(term, Ordering::Release);
            self.push(Call::Elected { term });
        }
    }

    fn lock_seen(&self) -> MutexGuard<'_, u64> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that this replica does not lead this term any more.
    pub(crate) fn step_down(&self, term: u64) {
        let _seen = self.lock_seen();
        if self.leads.compare_exchange(term, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.push(Call::SteppedDown { term });
        }
    }

    /// The term that this replica leads, 0 for none.
    pub(crate) fn leads(&self) -> u64 {
        self.leads.load(Ordering::Acquire)
    }

    /// Queues a call, or counts it as dropped.
    pub(crate) fn push(&self, call: Call) {
        let bytes = match &call {
            Call::Applied { command, reply, .. } => command.len() + reply.len(),
            _ => 0,
        };
        let room = u32::try_from(bytes).ok().and_then(|bytes| self.bytes.clone().try_acquire_many_owned(bytes).ok());
        let queued = room.is_some_and(|room| self.calls.try_send(Queued { call, _bytes: room }).is_ok());
        if !queued {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            stats::count(stats::DROPPED_HOOK_CALLS, &self.group);
        }
    }

    /// Calls for which there was no room.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue, its other end, and the term that is led, 0 for none.
    fn queue() -> (HookQueue, mpsc::Receiver<Queued>, Arc<AtomicU64>) {
        let (queue, calls) = HookQueue::new("g");
        let led = Arc::new(AtomicU64::new(0));
        let asked = led.clone();
        queue.set_is_leader_of(move |term| asked.load(Ordering::SeqCst) == term);
        (queue, calls, led)
    }

    fn queued(calls: &mut mpsc::Receiver<Queued>) -> Vec<String> {
        std::iter::from_fn(|| calls.try_recv().ok()).map(|queued| format!("{:?}", queued.call)).collect()
    }

    #[test]
    fn an_election_is_told_once_also_when_it_is_known_only_after_its_first_entry() {
        let (queue, mut calls, led) = queue();
        queue.see_entry(5);
        assert!(queued(&mut calls).is_empty(), "nobody says that this leads");
        led.store(5, Ordering::SeqCst);
        queue.see_leadership(5);
        queue.see_leadership(5);
        queue.see_entry(5);
        assert_eq!(queued(&mut calls), ["Elected { term: 5 }"]);
        assert_eq!(queue.leads(), 5);
    }

    #[test]
    fn a_leadership_that_went_and_came_between_two_looks_is_told_as_two() {
        let (queue, mut calls, led) = queue();
        led.store(5, Ordering::SeqCst);
        queue.see_entry(5);
        led.store(7, Ordering::SeqCst);
        queue.see_leadership(7);
        queue.see_entry(7);
        // Whoever looked before notices too late.
        queue.step_down(5);
        assert_eq!(queued(&mut calls), ["Elected { term: 5 }", "SteppedDown { term: 5 }", "Elected { term: 7 }"]);
    }

    #[test]
    fn no_term_is_told_that_others_lead_or_of_which_nothing_is_applied() {
        let (queue, mut calls, led) = queue();
        led.store(9, Ordering::SeqCst);
        queue.see_leadership(9);
        queue.see_entry(8);
        led.store(0, Ordering::SeqCst);
        queue.see_entry(9);
        assert!(queued(&mut calls).is_empty());
        assert_eq!(queue.leads(), 0);
    }
}
