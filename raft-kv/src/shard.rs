//! The value of one shard's group: the keys of one range of hashes.
//!
//! ```text
//!             phase       named requests      precondition        the user's code
//!   Run ----> owned? -------> ran before? -----> holds? --------> command(current) ---> next value, reply
//!               | no             | yes             | no                                  (recorded when named)
//!               v                v                 v
//!             moved      the kept reply, or   precondition
//!                          why it cannot         failed
//! ```
//!
//! The user's code gets the present value by reference; what it answers is put in place after it has returned,
//! so that one that panics has changed nothing.

mod pieces;
mod keys;
mod clients;
mod archive;
mod message;
mod phase;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rafted_value::rkyv::{Archive, Deserialize, Serialize};
use rafted_value::{Context, LogTime, PieceError, PieceReader, PieceWriter, UpgradeError, Value, decode, encode};

use self::clients::{Clients, Kept, Verdict};
use self::keys::Keys;
use self::phase::{Owner, Ownership, Taken};
use crate::hash::KeyHash;
use crate::keyed_value::KeyedValue;

pub use self::clients::{KEPT_FOR, MAX_CLIENTS_PER_KEY, MAX_KEPT_REPLY_BYTES, WINDOW};
pub use self::message::{
    Accounts, MAX_KEYS_PER_REQUEST, Once, Precondition, Ran, Refused, Removed, Run, ShardAnswer, ShardCommand,
    ShardQuery, ShardReply, ShardStats, Ticked,
};
pub use self::phase::{Ending, Phase, ShardId, Step, StepRefused, Transfer};

/// The keys of one range of hashes: what a shard's group replicates.
#[derive(Debug, Clone, Archive, Serialize, Deserialize)]
#[rkyv(crate = rafted_value::rkyv)]
pub struct Shard<K: KeyedValue> {
    ownership: Ownership,
    /// Not below any version that a key here has had.
    last_version: u64,
    load: u64,
    keys: Keys<K>,
    clients: Clients,
}

impl<K: KeyedValue> Default for Shard<K> {
    fn default() -> Self {
        Self {
            ownership: Ownership::default(),
            last_version: 0,
            load: 0,
            keys: Keys::default(),
            clients: Clients::default(),
        }
    }
}

impl<K: KeyedValue> Value for Shard<K> {
    const VERSION: u32 = (FORMAT << 16) | (K::VERSION & 0xFFFF);
    type Command = ShardCommand<K::Command>;
    type Reply = ShardReply<K::Reply>;
    type Query = ShardQuery<K::Query>;
    type Answer = ShardAnswer<K::Answer>;

    /// As [`Value::command_in`] at the beginning of time.
    fn command(&mut self, command: Self::Command) -> Self::Reply {
        self.command_in(&Context::new(LogTime::default(), 0, None), command)
    }

    /// As [`Value::query_in`] at the beginning of time.
    fn query(&self, query: Self::Query) -> Self::Answer {
        self.query_in(&Context::new(LogTime::default(), 0, None), query)
    }

    fn command_in(&mut self, context: &Context<'_>, command: Self::Command) -> Self::Reply {
        match command {
            ShardCommand::Run(run) => self.run(context, run),
            ShardCommand::Tick { limit } => self.tick(context, limit),
            ShardCommand::RemovePrefix { prefix, limit } => self.remove_prefix(&prefix, limit),
            ShardCommand::Take(step) => ShardReply::Taken(self.take(step)),
        }
    }

    fn query_in(&self, context: &Context<'_>, query: Self::Query) -> Self::Answer {
        match query {
            ShardQuery::Get { key, query } => self.get(context, &key, query),
            ShardQuery::List { prefix, after, limit } => {
                if self.ownership.served().is_none() {
                    return ShardAnswer::Moved { wait: *self.ownership.phase() != Phase::Dropped };
                }
                let (keys, more) = self.keys.list(&prefix, after.as_deref(), bounded(limit));
                ShardAnswer::Keys { keys, more }
            }
            ShardQuery::Accounts => ShardAnswer::Accounts(self.accounts(context)),
            ShardQuery::Stats => ShardAnswer::Stats(self.stats()),
        }
    }

    fn write_pieces(&self, pieces: &mut PieceWriter<'_>) -> Result<(), PieceError> {
        pieces::write(self, pieces)
    }

    fn read_pieces(version: u32, pieces: &mut PieceReader<'_>) -> Result<Self, UpgradeError> {
        pieces::read(version, pieces)
    }
}

impl<K: KeyedValue> Shard<K> {
    /// How large and how busy it is.
    pub fn stats(&self) -> ShardStats {
        ShardStats {
            keys: self.keys.len(),
            bytes: self.keys.bytes(),
            load: self.load,
            phase: self.ownership.phase().clone(),
        }
    }

    /// Which shard this is; `None` before its first step.
    pub fn id(&self) -> Option<ShardId> {
        self.ownership.id()
    }

    /// How many keys each account has.
    pub fn accounts(&self, context: &Context<'_>) -> Accounts {
        Accounts { counts: self.keys.accounts(), index: context.index() }
    }

    /// How many keys are due at `now`, counted up to [`MAX_KEYS_PER_REQUEST`].
    pub fn due(&self, now: LogTime) -> u32 {
        let Some(range) = self.ownership.served() else { return 0 };
        let (keys, _) = self.keys.due(now, range, bounded(MAX_KEYS_PER_REQUEST));
        // At most the limit.
        keys.len() as u32
    }

    /// The keys in order with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &K)> {
        self.keys.iter()
    }

    /// The earliest deadline, if any key has one.
    pub fn next_deadline(&self) -> Option<LogTime> {
        self.keys.next_deadline()
    }

    fn run(&mut self, context: &Context<'_>, run: Run<K::Command>) -> ShardReply<K::Reply> {
        let Run { key, precondition, once, command } = run;
        if let Owner::Moved { wait } = self.ownership.owner(KeyHash::of(&key)) {
            return ShardReply::Moved { wait };
        }
        let now = context.log_time();
        self.clients.forget_idle(now, FORGOTTEN_PER_COMMAND);
        if let Some(once) = &once {
            match self.clients.judge(&key, once, now) {
                Verdict::Run => {}
                Verdict::Ran(kept) => return repeat(&kept),
                Verdict::Refused(refused) => return ShardReply::Refused(refused),
            }
        }
        let current = self.keys.get(&key);
        let found = current.map(|record| record.version);
        if !precondition.holds(found) {
            if let Some(once) = once {
                self.clients.record(&key, once, Kept::PreconditionFailed { version: found }, now);
            }
            return ShardReply::Refused(Refused::PreconditionFailed { version: found });
        }
        let outcome = K::command_in(context, current.map(|record| &record.value), &key, command);
        self.load = self.load.saturating_add(u64::from(outcome.load));
        let version = self.next_version(now);
        self.keys.apply(&key, outcome.next, version);
        self.last_version = version;
        let version = self.keys.get(&key).map(|record| record.version);
        if let Some(once) = once
            && outcome.ran
        {
            self.clients.record(&key, once, keep(&outcome.reply, version), now);
        }
        ShardReply::Ran(Ran { reply: outcome.reply, version, repeated: false })
    }

    /// Runs each due key once, also when its value stays due.
    fn tick(&mut self, context: &Context<'_>, limit: u32) -> ShardReply<K::Reply> {
        let now = context.log_time();
        let mut ticked = Ticked::default();
        let Some(range) = self.ownership.served() else { return ShardReply::Ticked(ticked) };
        let (due, more) = self.keys.due(now, range, bounded(limit));
        ticked.more = more;
        for key in due {
            let key = key.as_str();
            let Some(current) = self.keys.get(key) else { continue };
            // Nothing is shared with what panics: it sees the present value by reference and may only answer.
            let outcome = catch_unwind(AssertUnwindSafe(|| K::timeout(context, &current.value, key)));
            let Ok(outcome) = outcome else {
                ticked.failed.push(key.to_owned());
                continue;
            };
            self.load = self.load.saturating_add(u64::from(outcome.load));
            let version = self.next_version(now);
            self.keys.apply(key, outcome.next, version);
            self.last_version = version;
            ticked.ran.push(key.to_owned());
        }
        ShardReply::Ticked(ticked)
    }

    fn remove_prefix(&mut self, prefix: &str, limit: u32) -> ShardReply<K::Reply> {
        let Some(range) = self.ownership.served() else {
            return ShardReply::Moved { wait: *self.ownership.phase() != Phase::Dropped };
        };
        let (count, more) = self.keys.remove_prefix(prefix, range, bounded(limit));
        self.load = self.load.saturating_add(count);
        ShardReply::Removed(Removed { count, more })
    }

    fn take(&mut self, step: Step) -> Result<(), StepRefused> {
        match self.ownership.take(step)? {
            Taken::Already | Taken::Changed => {}
            Taken::Forget(range) => {
                self.keys.remove_range(range);
                self.clients.remove_range(range);
            }
            Taken::ForgetAll => (self.keys, self.clients) = Default::default(),
        }
        Ok(())
    }

    fn get(&self, context: &Context<'_>, key: &str, query: K::Query) -> ShardAnswer<K::Answer> {
        if let Owner::Moved { wait } = self.ownership.owner(KeyHash::of(key)) {
            return ShardAnswer::Moved { wait };
        }
        let Some(record) = self.keys.get(key) else { return ShardAnswer::NotFound };
        ShardAnswer::Got { answer: record.value.query_in(context, key, query), version: record.version }
    }

    /// Above every version so far, and near log time: a keyspace that is deleted and made again, or restored,
    /// does not give out a version twice.
    fn next_version(&self, now: LogTime) -> u64 {
        self.last_version.saturating_add(1).max(now.as_millis() << VERSIONS_PER_MILLISECOND_BITS)
    }
}

/// Raised when the shard's own part of the archived form changes.
const FORMAT: u32 = 1;

/// Keys whose idle clients one command forgets: more than the one that it may add.
const FORGOTTEN_PER_COMMAND: usize = 4;

/// Log time in milliseconds shifted by this stays below 2^53 for centuries, which JSON's numbers can hold.
const VERSIONS_PER_MILLISECOND_BITS: u32 = 10;

fn bounded(limit: u32) -> usize {
    limit.min(MAX_KEYS_PER_REQUEST) as usize
}

fn keep<R: rafted_value::Wire>(reply: &R, version: Option<u64>) -> Kept {
    match encode(reply) {
        Ok(bytes) => Kept::Reply { bytes: Arc::from(&bytes[..]), version },
        Err(_) => Kept::Gone,
    }
}

fn repeat<R: rafted_value::Wire>(kept: &Kept) -> ShardReply<R> {
    match kept {
        Kept::PreconditionFailed { version } => ShardReply::Refused(Refused::PreconditionFailed { version: *version }),
        Kept::Gone => ShardReply::Refused(Refused::AlreadyDone),
        Kept::Reply { bytes, version } => match decode(bytes) {
            Ok(reply) => ShardReply::Ran(Ran { reply, version: *version, repeated: true }),
            // Written by a program whose replies had another form.
            Err(_) => ShardReply::Refused(Refused::AlreadyDone),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashRange;
    use crate::keyed_value::Outcome;

    rafted_value::messages! {
        /// A note that may have a deadline, at which it is removed, kept due or moved on.
        pub struct Note { text: String, deadline: Option<u64> }

        pub enum NoteCommand { Write(String), WriteUntil(String, u64), Clear, Refuse, Panic }
    }

    impl KeyedValue for Note {
        const NAME: &'static str = "note";
        type Command = NoteCommand;
        type Reply = Option<String>;
        type Query = ();
        type Answer = String;

        fn command(current: Option<&Self>, _: &str, command: NoteCommand) -> Outcome<Self, Option<String>> {
            let before = current.map(|note| note.text.clone());
            match command {
                NoteCommand::Write(text) => Outcome::set(Self { text, deadline: None }, before),
                NoteCommand::WriteUntil(text, at) => Outcome::set(Self { text, deadline: Some(at) }, before),
                NoteCommand::Clear => Outcome::remove(before).with_load(5),
                NoteCommand::Refuse => Outcome::refuse(before),
                NoteCommand::Panic => panic!("planned"),
            }
        }

        fn query(&self, _: &str, (): ()) -> String {
            self.text.clone()
        }

        fn size(&self) -> u64 {
            self.text.len() as u64
        }

        fn deadline(&self) -> Option<LogTime> {
            self.deadline.map(LogTime::from_millis)
        }

        fn timeout(context: &Context<'_>, current: &Self, _: &str) -> Outcome<Self, ()> {
            match current.text.as_str() {
                "panic" => panic!("planned"),
                "keep" => Outcome::keep(()),
                "again" => {
                    let deadline = Some(context.log_time().as_millis() + 10);
                    Outcome::set(Self { deadline, ..current.clone() }, ())
                }
                _ => Outcome::remove(()),
            }
        }

        fn account(key: &str) -> Option<&str> {
            key.split_once('/').map(|(account, _)| account)
        }
    }

    type Reply = ShardReply<Option<String>>;

    fn serving(range: HashRange) -> Shard<Note> {
        let mut shard = Shard::default();
        let id = ShardId { keyspace: 1, shard: 0 };
        assert_eq!(take(&mut shard, Step::Serve { id, range }), Ok(()));
        shard
    }

    fn take(shard: &mut Shard<Note>, step: Step) -> Result<(), StepRefused> {
        match shard.command(ShardCommand::Take(step)) {
            ShardReply::Taken(result) => result,
            other => panic!("{other:?}"),
        }
    }

    fn at(shard: &mut Shard<Note>, now: u64, command: ShardCommand<NoteCommand>) -> Reply {
        shard.command_in(&Context::new(LogTime::from_millis(now), now, None), command)
    }

    fn run(key: &str, command: NoteCommand) -> Run<NoteCommand> {
        Run { key: key.into(), precondition: Precondition::None, once: None, command }
    }

    fn write(shard: &mut Shard<Note>, now: u64, key: &str, text: &str) -> Reply {
        at(shard, now, ShardCommand::Run(run(key, NoteCommand::Write(text.into()))))
    }

    fn write_until(shard: &mut Shard<Note>, key: &str, text: &str, until: u64) {
        at(shard, 1, ShardCommand::Run(run(key, NoteCommand::WriteUntil(text.into(), until))));
    }

    fn ran(reply: Option<&str>, version: Option<u64>) -> Reply {
        ShardReply::Ran(Ran { reply: reply.map(str::to_owned), version, repeated: false })
    }

    fn tick(shard: &mut Shard<Note>, now: u64, limit: u32) -> Ticked {
        match at(shard, now, ShardCommand::Tick { limit }) {
            ShardReply::Ticked(ticked) => ticked,
            other => panic!("{other:?}"),
        }
    }

    fn list(shard: &Shard<Note>, prefix: &str, after: Option<&str>, limit: u32) -> (Vec<String>, bool) {
        let after = after.map(str::to_owned);
        match shard.query(ShardQuery::List { prefix: prefix.into(), after, limit }) {
            ShardAnswer::Keys { keys, more } => (keys, more),
            other => panic!("{other:?}"),
        }
    }

    fn pieces(shard: &Shard<Note>) -> Vec<Vec<u8>> {
        let mut list = Vec::new();
        shard.write_pieces(&mut PieceWriter::to_list(&mut list)).unwrap();
        list
    }

    /// As a replica that has just been restored has it.
    fn reread(shard: &Shard<Note>) -> Shard<Note> {
        let mut list = pieces(shard).into_iter();
        Shard::read_pieces(<Shard<Note> as Value>::VERSION, &mut PieceReader::of_list(&mut list)).unwrap()
    }

    #[test]
    fn each_write_has_a_higher_version_also_over_a_removal() {
        let mut shard = serving(HashRange::ALL);
        assert_eq!(write(&mut shard, 0, "k", "a"), ran(None, Some(1)));
        assert_eq!(write(&mut shard, 0, "k", "b"), ran(Some("a"), Some(2)));
        assert_eq!(at(&mut shard, 0, ShardCommand::Run(run("k", NoteCommand::Clear))), ran(Some("b"), None));
        assert_eq!(at(&mut shard, 0, ShardCommand::Run(run("k", NoteCommand::Clear))), ran(None, None));
        assert_eq!(write(&mut shard, 0, "k", "c"), ran(None, Some(5)));
        assert_eq!(write(&mut shard, 3, "k", "d"), ran(Some("c"), Some(3 << 10)), "never below log time");
        assert_eq!(write(&mut shard, 2, "k", "e"), ran(Some("d"), Some((3 << 10) + 1)));
        let get = |key: &str| shard.query(ShardQuery::Get { key: key.into(), query: () });
        assert_eq!(get("k"), ShardAnswer::Got { answer: "e".into(), version: (3 << 10) + 1 });
        assert_eq!(get("absent"), ShardAnswer::NotFound);
        let stats = shard.stats();
        assert_eq!((stats.keys, stats.bytes, stats.load), (1, 2, 4 + 2 * 5 + 1));
    }

    #[test]
    fn a_precondition_is_checked_before_the_code_runs() {
        let rows = [
            ("absent key", None, Precondition::Absent, true),
            ("absent key", None, Precondition::Present, false),
            ("absent key", None, Precondition::VersionIs(1), false),
            ("key of version 1", Some("old"), Precondition::Absent, false),
            ("key of version 1", Some("old"), Precondition::Present, true),
            ("key of version 1", Some("old"), Precondition::VersionIs(1), true),
            ("key of version 1", Some("old"), Precondition::VersionIs(2), false),
        ];
        for (what, text, precondition, holds) in rows {
            let mut shard = serving(HashRange::ALL);
            if let Some(text) = text {
                write(&mut shard, 0, "k", text);
            }
            let command = Run { precondition, ..run("k", NoteCommand::Write("new".into())) };
            let reply = at(&mut shard, 0, ShardCommand::Run(command));
            let version = text.map(|_| 1);
            let refused = ShardReply::Refused(Refused::PreconditionFailed { version });
            assert_eq!(reply != refused, holds, "{what}, {precondition:?}: {reply:?}");
        }
    }

    #[test]
    fn a_named_request_runs_once_and_outlives_its_key() {
        let mut shard = serving(HashRange::ALL);
        let named = |serial, precondition, command| {
            let once = Once { client: "c".into(), serial, fingerprint: serial };
            ShardCommand::Run(Run { once: Some(once), precondition, ..run("k", command) })
        };
        let put = || named(1, Precondition::Absent, NoteCommand::Write("a".into()));
        let remove = || named(2, Precondition::VersionIs(1), NoteCommand::Clear);
        let stale = || named(3, Precondition::Present, NoteCommand::Clear);
        assert_eq!(at(&mut shard, 0, put()), ran(None, Some(1)));
        assert_eq!(at(&mut shard, 0, remove()), ran(Some("a"), None));
        let failed = ShardReply::Refused(Refused::PreconditionFailed { version: None });
        assert_eq!(at(&mut shard, 0, stale()), failed);
        write(&mut shard, 0, "k", "b");
        let repeated = |reply: Option<&str>, version| {
            ShardReply::Ran(Ran { reply: reply.map(str::to_owned), version, repeated: true })
        };
        // Also by a replica that has just been restored.
        for mut shard in [shard.clone(), reread(&shard)] {
            assert_eq!(at(&mut shard, 9, put()), repeated(None, Some(1)));
            assert_eq!(at(&mut shard, 9, remove()), repeated(Some("a"), None));
            assert_eq!(at(&mut shard, 9, stale()), failed, "what was refused stays refused");
            let other = Once { client: "c".into(), serial: 1, fingerprint: 2 };
            let other = Run { once: Some(other), ..run("k", NoteCommand::Clear) };
            let conflict = ShardReply::Refused(Refused::IdempotencyConflict);
            assert_eq!(at(&mut shard, 9, ShardCommand::Run(other)), conflict);
            assert_eq!(shard.stats().keys, 1);
        }
    }

    #[test]
    fn a_command_that_counts_as_not_run_may_be_sent_again_under_its_name() {
        let mut shard = serving(HashRange::ALL);
        let named = |fingerprint, command| {
            let once = Once { client: "c".into(), serial: 1, fingerprint };
            ShardCommand::Run(Run { once: Some(once), ..run("k", command) })
        };
        assert_eq!(at(&mut shard, 0, named(1, NoteCommand::Refuse)), ran(None, None));
        assert_eq!(at(&mut shard, 0, named(2, NoteCommand::Write("a".into()))), ran(None, Some(2)));
        assert_eq!(shard.stats().keys, 1);
    }

    #[test]
    fn code_that_panics_leaves_the_shard_as_it_was() {
        let mut shard = serving(HashRange::ALL);
        write(&mut shard, 0, "k", "a");
        let before = encode(&shard).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            at(&mut shard, 1, ShardCommand::Run(run("k", NoteCommand::Panic)));
        }));
        assert!(panicked.is_err());
        assert_eq!(&encode(&shard).unwrap()[..], &before[..]);
    }

    #[test]
    fn a_tick_runs_what_is_due_the_earliest_first() {
        let mut shard = serving(HashRange::ALL);
        for (key, text, until) in
            [("d", "gone", 40), ("a", "gone", 30), ("b", "again", 20), ("c", "panic", 10), ("e", "keep", 10)]
        {
            write_until(&mut shard, key, text, until);
        }
        write(&mut shard, 1, "never", "x");
        assert_eq!(shard.next_deadline(), Some(LogTime::from_millis(10)));
        assert_eq!((shard.due(LogTime::from_millis(9)), shard.due(LogTime::from_millis(30))), (0, 4));
        assert_eq!(tick(&mut shard, 9, 1_000), Ticked::default());
        let ticked = tick(&mut shard, 30, 3);
        assert_eq!((ticked.ran, ticked.failed, ticked.more), (vec!["e".into(), "b".into()], vec!["c".into()], true));
        let mut shard = reread(&shard);
        let ticked = tick(&mut shard, 40, 1_000);
        assert_eq!(ticked.ran, ["e", "a", "b", "d"], "b had moved on to 40");
        assert_eq!(list(&shard, "", None, 9).0, ["b", "c", "e", "never"]);
    }

    #[test]
    fn listings_come_in_pages_in_order() {
        let mut shard = serving(HashRange::ALL);
        for key in ["b/2", "a/1", "b/1", "b", "b/3", "c/1", "b0"] {
            write(&mut shard, 0, key, "x");
        }
        let keys = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>();
        assert_eq!(list(&shard, "b/", None, 2), (keys(&["b/1", "b/2"]), true));
        assert_eq!(list(&shard, "b/", Some("b/2"), 2), (keys(&["b/3"]), false));
        assert_eq!(list(&shard, "b/", Some("a"), 1), (keys(&["b/1"]), true), "behind a key before the prefix");
        assert_eq!(list(&shard, "b/", Some("b0"), 9), (keys(&[]), false));
        assert_eq!(list(&shard, "", Some("b/3"), 9), (keys(&["b0", "c/1"]), false));
        assert_eq!(list(&shard, "", None, 0), (keys(&[]), true));
    }

    #[test]
    fn accounts_and_sizes_follow_the_keys() {
        let mut shard = serving(HashRange::ALL);
        for key in ["a/1", "a/2", "b/1", "plain", "a/1"] {
            write(&mut shard, 0, key, "xyz");
        }
        let counts = |shard: &Shard<Note>| shard.accounts(&Context::new(LogTime::default(), 7, None)).counts;
        let expected = |counts: &[(&str, u64)]| counts.iter().map(|&(account, n)| (account.to_owned(), n)).collect();
        assert_eq!(counts(&shard), expected(&[("a", 2), ("b", 1)]));
        assert_eq!(shard.stats().bytes, 3 * 3 + 5 + 4 * 3);
        let removed = at(&mut shard, 0, ShardCommand::RemovePrefix { prefix: "a/".into(), limit: 1 });
        assert_eq!(removed, ShardReply::Removed(Removed { count: 1, more: true }));
        let removed = at(&mut shard, 0, ShardCommand::RemovePrefix { prefix: "a/".into(), limit: 1 });
        assert_eq!(removed, ShardReply::Removed(Removed { count: 1, more: false }));
        for shard in [shard.clone(), reread(&shard)] {
            assert_eq!(counts(&shard), expected(&[("b", 1)]));
            assert_eq!((shard.stats().keys, shard.stats().bytes), (2, 3 + 5 + 2 * 3));
        }
    }

    #[test]
    fn what_is_not_owned_is_moved_and_forgotten_when_it_went() {
        // "k1" lies in the lower half, "k7" in the upper one.
        let [lower, upper] = HashRange::divide(2)[..] else { panic!() };
        let (low, high) = ("k1", "k7");
        assert!(lower.contains(KeyHash::of(low)) && upper.contains(KeyHash::of(high)));
        let get = |shard: &Shard<Note>, key: &str| shard.query(ShardQuery::Get { key: key.into(), query: () });
        let moved = |wait| ShardReply::Moved { wait };

        let mut fresh = Shard::<Note>::default();
        assert_eq!(write(&mut fresh, 0, low, "x"), moved(true));
        assert_eq!(get(&fresh, low), ShardAnswer::Moved { wait: true });

        let mut shard = serving(lower);
        assert_eq!(write(&mut shard, 0, high, "x"), moved(false));
        let mut shard_of_all = serving(HashRange::ALL);
        for key in [low, high] {
            write_until(&mut shard_of_all, key, "x", 5);
        }
        let transfer = Transfer { workflow: 9, round: 1, range: upper };
        assert_eq!(take(&mut shard_of_all, Step::Freeze { transfer }), Ok(()));
        assert_eq!(write(&mut shard_of_all, 0, high, "y"), moved(true));
        assert_eq!(get(&shard_of_all, high), ShardAnswer::Moved { wait: true });
        assert_eq!(tick(&mut shard_of_all, 9, 9).ran, [low], "a frozen key does not tick");
        assert_eq!(take(&mut shard_of_all, Step::Drop { workflow: 9 }), Ok(()));
        assert_eq!(list(&shard_of_all, "", None, 9), (vec![], false));
        assert_eq!(write(&mut shard_of_all, 0, high, "y"), moved(false));

        assert_eq!(take(&mut shard, Step::Close { keyspace: 1 }), Ok(()));
        assert_eq!(take(&mut shard, Step::Close { keyspace: 1 }), Ok(()), "again");
        assert_eq!(write(&mut shard, 0, low, "x"), moved(false));
        assert_eq!(get(&shard, low), ShardAnswer::Moved { wait: false });
        assert_eq!(at(&mut shard, 0, ShardCommand::RemovePrefix { prefix: "".into(), limit: 1 }), moved(false));
    }

    #[test]
    fn a_clone_does_not_see_what_comes_after_it() {
        let mut shard = serving(HashRange::ALL);
        for number in 0..1_000 {
            write(&mut shard, 0, &format!("k{number}"), "before");
        }
        let frozen = shard.clone();
        let before = pieces(&frozen);
        for number in 0..1_000 {
            write(&mut shard, 0, &format!("k{number}"), "after");
        }
        assert_eq!(pieces(&frozen), before);
    }

    #[test]
    fn a_large_shard_is_written_in_small_pieces_and_read_again() {
        let mut shard = serving(HashRange::ALL);
        for number in 0..5_000 {
            let text = "x".repeat(number % 300);
            let until = 10_000 + number as u64;
            let command = NoteCommand::WriteUntil(text, until);
            let once = (number % 3 == 0).then(|| Once { client: "c".into(), serial: 1, fingerprint: 1 });
            at(&mut shard, 5, ShardCommand::Run(Run { once, ..run(&format!("a{}/k{number}", number % 7), command) }));
        }
        let list = pieces(&shard);
        let largest = list.iter().map(Vec::len).max().unwrap();
        assert!(list.len() > 5 && largest < 512 << 10, "{} pieces, the largest has {largest} bytes", list.len());
        let again = reread(&shard);
        assert_eq!(pieces(&again), list);
        let context = Context::new(LogTime::from_millis(5), 1, None);
        assert_eq!(again.stats(), shard.stats());
        assert_eq!(again.accounts(&context), shard.accounts(&context));
        assert_eq!(again.next_deadline(), shard.next_deadline());
        assert!(again.iter().eq(shard.iter()));
    }

    #[test]
    fn pieces_of_another_version_are_refused() {
        let mut list = pieces(&serving(HashRange::ALL)).into_iter();
        let error = Shard::<Note>::read_pieces(9, &mut PieceReader::of_list(&mut list)).unwrap_err();
        assert!(matches!(error, UpgradeError::UnknownVersion { found: 9, .. }), "{error}");
    }
}
