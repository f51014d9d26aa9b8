//! The dispatcher over groups in memory that fail and move as they are told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex as StdMutex, MutexGuard};

use rafted_value::{Context, decode, encode};
use tokio::time::{Instant, sleep};

use super::*;
use crate::keyed_value::{KeyedValue, Outcome};
use crate::keyspace::{Keyspace, Page};
use crate::policy::Policy;
use crate::shard::{Shard, ShardId, Step, Transfer};

rafted_value::messages! {
    /// A number of how many commands ran.
    pub struct Count { runs: u64 }
}

impl KeyedValue for Count {
    const NAME: &'static str = "count";
    type Command = ();
    type Reply = u64;
    type Query = ();
    type Answer = u64;

    fn command(current: Option<&Self>, _: &str, (): ()) -> Outcome<Self, u64> {
        let runs = current.map_or(0, |count| count.runs) + 1;
        Outcome::set(Self { runs }, runs)
    }

    fn query(&self, _: &str, (): ()) -> u64 {
        self.runs
    }

    fn account(key: &str) -> Option<&str> {
        key.split_once('/').map(|(account, _)| account)
    }
}

/// What happens to the next command at a shard.
enum Fault {
    NotHappened,
    /// It ran, and the reply is lost.
    RanUnknown,
    /// It was lost on the way there.
    LostUnknown,
    Failed,
}

#[derive(Default)]
struct State {
    keyspaces: Keyspaces,
    shards: BTreeMap<String, Shard<Count>>,
    /// As a group keeps them: by group, session and serial.
    replies: BTreeMap<(String, Vec<u8>), Bytes>,
    faults: VecDeque<Fault>,
    index: u64,
    questions: u64,
}

#[derive(Default)]
struct World {
    state: StdMutex<State>,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn keyspaces(&mut self, command: KeyspacesCommand) -> KeyspacesReply {
        self.index += 1;
        self.keyspaces.command_in(&Context::new(LogTime::default(), self.index, None), command)
    }

    /// Creates a keyspace and carries out what it asks for; its id.
    fn create(&mut self, name: &str, shards: u32) -> u64 {
        let policy = Policy::new().with_shards(shards..=shards).unwrap();
        let create = KeyspacesCommand::Create { name: name.into(), type_name: "count".into(), policy };
        let KeyspacesReply::Accepted { id } = self.keyspaces(create) else { panic!() };
        for (shard, &range) in &self.keyspaces.get(id).unwrap().shards.clone() {
            let id = ShardId { keyspace: id, shard: *shard };
            self.shards.insert(id.group(), Shard::default());
            self.take(&id.group(), Step::Serve { id, range });
        }
        while let Some(&(keyspace, effect)) = self.keyspaces.effects().first() {
            self.keyspaces(KeyspacesCommand::Done { keyspace, effect });
        }
        id
    }

    fn take(&mut self, group: &str, step: Step) {
        use crate::shard::{ShardCommand, ShardReply};
        let reply = self.shards.get_mut(group).unwrap().command(ShardCommand::Take(step));
        assert_eq!(reply, ShardReply::Taken(Ok(())));
    }

    fn freeze(&mut self, group: &str, workflow: u64) {
        let range = self.shards[group].stats().phase;
        let crate::shard::Phase::Serving { own: range } = range else { panic!("{range:?}") };
        let transfer = Transfer { workflow, round: 0, range };
        self.take(group, Step::Freeze { transfer });
    }

    fn apply(&mut self, group: &str, command: &Bytes) -> Option<Bytes> {
        // Session and serial, and what follows the header: as rafted-value lays them out.
        let (id, payload) = (command[16..40].to_vec(), &command[64..]);
        if let Some(reply) = self.replies.get(&(group.to_owned(), id.clone())) {
            return Some(reply.clone());
        }
        let reply = if group == KEYSPACES_GROUP {
            encode(&self.keyspaces(decode(payload).unwrap()))
        } else {
            encode(&self.shards.get_mut(group)?.command(decode(payload).unwrap()))
        };
        let reply = Bytes::copy_from_slice(&reply.unwrap());
        self.replies.insert((group.to_owned(), id), reply.clone());
        Some(reply)
    }

    fn runs(&self, group: &str, key: &str) -> Option<u64> {
        self.shards[group].iter().find(|(found, _)| *found == key).map(|(_, count)| count.runs)
    }
}

fn no_leader(group: &str) -> NotHappened {
    NotHappened::NoLeader { group: group.to_owned(), waited: Duration::ZERO }
}

impl Groups for Arc<World> {
    fn command(&self, group: &str, command: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, CommandError>> {
        let (world, group) = (self.clone(), group.to_owned());
        Box::pin(async move {
            let lost = |timeout| Err(UnknownOutcome::Timeout(timeout).into());
            sleep(Duration::from_millis(1)).await;
            let mut state = world.lock();
            let fault = if group == KEYSPACES_GROUP { None } else { state.faults.pop_front() };
            match fault {
                Some(Fault::NotHappened) => Err(no_leader(&group).into()),
                Some(Fault::LostUnknown) => lost(timeout),
                Some(Fault::Failed) => Err(CommandError::Failed("planned".into())),
                Some(Fault::RanUnknown) => {
                    state.apply(&group, &command);
                    lost(timeout)
                }
                None => state.apply(&group, &command).ok_or_else(|| no_leader(&group).into()),
            }
        })
    }

    fn query(&self, group: &str, query: Bytes, _: Duration) -> BoxFuture<Result<Bytes, QueryError>> {
        let (world, group) = (self.clone(), group.to_owned());
        Box::pin(async move {
            sleep(Duration::from_millis(1)).await;
            let mut state = world.lock();
            let answer = if group == KEYSPACES_GROUP {
                state.questions += 1;
                encode(&state.keyspaces.query(decode(&query).unwrap()))
            } else {
                let shard = state.shards.get(&group).ok_or_else(|| no_leader(&group))?;
                encode(&shard.query(decode(&query).unwrap()))
            };
            Ok(Bytes::copy_from_slice(&answer.unwrap()))
        })
    }

    fn now(&self) -> LogTime {
        LogTime::from_millis(1)
    }
}

fn world(shards: u32) -> (Arc<World>, Arc<Dispatcher>, Keyspace<Count>) {
    let world = Arc::<World>::default();
    if shards > 0 {
        assert_eq!(world.lock().create("a", shards), 1);
    }
    let dispatcher = Arc::new(Dispatcher::new(Arc::new(world.clone()), ClientSession::random()));
    let keyspace = Keyspace::new(dispatcher.clone(), "a");
    (world, dispatcher, keyspace)
}

#[tokio::test(start_paused = true)]
async fn every_fault_ends_as_its_caller_may_rely_on() {
    use Fault::*;
    // What the shards do, what the caller gets, how often the command ran.
    let rows = [
        ("nothing fails", vec![], "Ok(1)", Some(1)),
        ("no leader for a while", vec![NotHappened, NotHappened], "Ok(1)", Some(1)),
        ("a lost reply", vec![RanUnknown], "Ok(1)", Some(1)),
        ("lost replies and requests", vec![RanUnknown, LostUnknown, NotHappened, RanUnknown], "Ok(1)", Some(1)),
        ("a lost request", vec![LostUnknown], "Ok(1)", Some(1)),
        ("code that fails", vec![Failed], "Err(Failed", None),
    ];
    for (what, faults, expected, runs) in rows {
        let (world, _, keyspace) = world(1);
        world.lock().faults = faults.into();
        let result = format!("{:?}", keyspace.command("k", ()).await);
        assert!(result.starts_with(expected), "{what}: {result}");
        assert_eq!(world.lock().runs("kv.1.0", "k"), runs, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_unknown_is_told_from_not_happened() {
    let forever = |fault: fn() -> Fault| (0..10_000).map(|_| fault()).collect::<VecDeque<_>>();
    let timeout = Duration::from_secs(1);

    let (no_leader, _, keyspace) = world(1);
    no_leader.lock().faults = forever(|| Fault::NotHappened);
    let error = keyspace.command("k", ()).timeout(timeout).await.unwrap_err();
    assert!(matches!(error, KvError::NotHappened(_)) && error.is_retryable() && !error.is_unknown(), "{error}");

    let (lost, _, keyspace) = world(1);
    lost.lock().faults = forever(|| Fault::LostUnknown);
    let error = keyspace.command("k", ()).timeout(timeout).await.unwrap_err();
    assert!(error.is_unknown() && !error.is_retryable(), "{error}");

    let (once_lost, _, keyspace) = world(1);
    once_lost.lock().faults = forever(|| Fault::NotHappened);
    once_lost.lock().faults.push_front(Fault::LostUnknown);
    let error = keyspace.command("k", ()).timeout(timeout).await.unwrap_err();
    assert!(error.is_unknown(), "one attempt may have run: {error}");

    let (frozen, _, keyspace) = world(1);
    frozen.lock().freeze("kv.1.0", 9);
    let begun = Instant::now();
    let error = keyspace.command("k", ()).timeout(timeout).await.unwrap_err();
    assert!(matches!(error, KvError::Moving { .. }) && error.is_retryable(), "{error}");
    assert!(begun.elapsed() < timeout + Duration::from_millis(100), "{:?}", begun.elapsed());
    let error = keyspace.query("k", ()).timeout(timeout).await.unwrap_err();
    assert!(matches!(error, KvError::Moving { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_command_waits_while_its_key_moves_and_then_runs() {
    let (world, _, keyspace) = world(1);
    world.lock().freeze("kv.1.0", 9);
    let waiting = tokio::spawn(keyspace.command("k", ()).into_future());
    sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    // The shard remembers that it answered `moved` to the serial; it is the owner again all the same.
    world.lock().take("kv.1.0", Step::Unfreeze { workflow: 9 });
    assert_eq!(waiting.await.unwrap(), Ok(1));
    assert_eq!(world.lock().runs("kv.1.0", "k"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn what_may_have_run_keeps_its_serial_while_its_key_moves() {
    let (world, _, keyspace) = world(1);
    world.lock().faults = [Fault::RanUnknown, Fault::NotHappened].into();
    let waiting = tokio::spawn(keyspace.command("k", ()).into_future());
    sleep(Duration::from_millis(10)).await;
    world.lock().freeze("kv.1.0", 9);
    assert_eq!(waiting.await.unwrap(), Ok(1), "its own reply, also from a shard that is frozen by now");
    assert_eq!(world.lock().runs("kv.1.0", "k"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_keyspace_counts_as_missing_only_when_its_group_says_so() {
    let (world, _, keyspace) = world(0);
    let missing = KvError::KeyspaceNotFound { name: "a".into() };
    assert_eq!(keyspace.command("k", ()).await, Err(missing.clone()));
    assert_eq!(world.lock().questions, 1);
    let id = world.lock().create("a", 2);
    assert_eq!(keyspace.command("k", ()).await, Ok(1), "seen at once");
    assert_eq!(world.lock().questions, 2);
    assert_eq!(keyspace.query("k", ()).await, Ok(1));
    assert_eq!(world.lock().questions, 2, "known from now on");

    // Deleted by another node: closed shards send everybody to look again.
    world.lock().keyspaces(KeyspacesCommand::Delete { name: "a".into() });
    for shard in 0..2 {
        world.lock().take(&ShardId { keyspace: id, shard }.group(), Step::Close { keyspace: id });
    }
    assert_eq!(keyspace.query("k", ()).await, Err(missing.clone()));
    assert_eq!(keyspace.command("k", ()).await, Err(missing));
}

#[tokio::test(start_paused = true)]
async fn a_keyspace_that_is_made_again_is_another_one() {
    let (world, _, keyspace) = world(1);
    assert_eq!(keyspace.command("k", ()).await, Ok(1));
    {
        let mut state = world.lock();
        state.keyspaces(KeyspacesCommand::Delete { name: "a".into() });
        state.take("kv.1.0", Step::Close { keyspace: 1 });
        let id = state.create("a", 1);
        assert_ne!(id, 1);
    }
    assert_eq!(keyspace.command("k", ()).await, Ok(1), "a new key");

    // What may have run in the old one must not run in the new one.
    let group = keyspace_group(&world, "a");
    world.lock().faults = [Fault::LostUnknown].into();
    let waiting = tokio::spawn(keyspace.command("other", ()).into_future());
    {
        let mut state = world.lock();
        state.keyspaces(KeyspacesCommand::Delete { name: "a".into() });
        state.shards.remove(&group);
        state.create("a", 1);
    }
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error}");
    let group = keyspace_group(&world, "a");
    assert_eq!(world.lock().runs(&group, "other"), None);
}

fn keyspace_group(world: &Arc<World>, name: &str) -> String {
    let state = world.lock();
    let KeyspacesAnswer::Table(table) = state.keyspaces.query(KeyspacesQuery::Since { revision: 0 }) else { panic!() };
    let (&id, _) = table.keyspaces.iter().find(|(_, keyspace)| keyspace.name == name).unwrap();
    ShardId { keyspace: id, shard: 0 }.group()
}

#[tokio::test(start_paused = true)]
async fn another_type_and_wrong_names_are_refused_before_anything_is_sent() {
    rafted_value::messages! { pub struct Other {} }
    impl KeyedValue for Other {
        const NAME: &'static str = "other";
        type Command = ();
        type Reply = ();
        type Query = ();
        type Answer = ();
        fn command(_: Option<&Self>, _: &str, (): ()) -> Outcome<Self, ()> {
            Outcome::keep(())
        }
        fn query(&self, _: &str, (): ()) {}
    }
    let (world, dispatcher, keyspace) = world(1);
    let error = Keyspace::<Other>::new(dispatcher, "a").command("k", ()).await.unwrap_err();
    assert!(matches!(error, KvError::WrongType { .. }), "{error}");
    let error = keyspace.command("", ()).await.unwrap_err();
    assert_eq!(error, KvError::InvalidKey { bytes: 0 });
    let error = keyspace.command("k", ()).idempotency("a b", 1, 0).await.unwrap_err();
    assert_eq!(error, KvError::InvalidClient { given: "a b".into() });
    let not_found = KvError::KeyNotFound { keyspace: "a".into(), key: "k".into() };
    assert_eq!(keyspace.query("k", ()).await, Err(not_found));
    assert_eq!(world.lock().runs("kv.1.0", "k"), None);
}

#[tokio::test(start_paused = true)]
async fn a_named_request_runs_once_whoever_sends_it() {
    let (world, _, keyspace) = world(3);
    let other_process = Arc::new(Dispatcher::new(Arc::new(world.clone()), ClientSession::random()));
    let from_there = Keyspace::<Count>::new(other_process, "a");
    assert_eq!(keyspace.command("k", ()).idempotency("c", 1, 7).await, Ok(1));
    assert_eq!(from_there.command("k", ()).idempotency("c", 1, 7).await, Ok(1));
    let repeated = from_there.command("k", ()).idempotency("c", 1, 7).versioned().await.unwrap();
    assert!(repeated.repeated);
    let conflict = KvError::IdempotencyConflict { client: "c".into(), serial: 1 };
    assert_eq!(from_there.command("k", ()).idempotency("c", 1, 8).await, Err(conflict));
    assert_eq!(from_there.command("k", ()).idempotency("c", 2, 7).await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn those_who_miss_together_ask_together() {
    let (world, _, keyspace) = world(1);
    let requests: Vec<_> = (0..200).map(|_| tokio::spawn(keyspace.command("k", ()).into_future())).collect();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    assert!(world.lock().questions <= 2, "{}", world.lock().questions);
    assert_eq!(world.lock().runs("kv.1.0", "k"), Some(200));
}

#[tokio::test(start_paused = true)]
async fn a_question_that_nobody_waited_for_was_not_answered() {
    let (world, dispatcher, _) = world(1);
    let limit = Limit::new(Duration::from_secs(1));
    let refresh = |dispatcher: Arc<Dispatcher>| tokio::spawn(async move { dispatcher.refresh(limit).await });
    let (first, second) = (refresh(dispatcher.clone()), refresh(dispatcher.clone()));
    tokio::task::yield_now().await;
    first.abort();
    second.await.unwrap().unwrap();
    assert_eq!((world.lock().questions, dispatcher.routing().revision()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn wide_requests_go_over_all_shards() {
    let (world, _, keyspace) = world(5);
    for number in 0..30 {
        keyspace.command(&format!("{}/{number:02}", ["a", "b"][number % 2]), ()).await.unwrap();
    }
    let keys = |range: std::ops::Range<usize>| range.step_by(2).map(|n| format!("a/{n:02}")).collect::<Vec<_>>();
    assert_eq!(keyspace.list("a/", None, 4).await, Ok(Page { keys: keys(0..8), more: true }));
    assert_eq!(keyspace.list("a/", Some("a/06"), 11).await, Ok(Page { keys: keys(8..30), more: false }));
    assert_eq!(keyspace.list("a/", Some("a/06"), 10).await, Ok(Page { keys: keys(8..28), more: true }));
    assert_eq!(keyspace.list("", None, 1_000).await.unwrap().keys.len(), 30);
    let counts = keyspace.count_by_account().await.unwrap();
    assert_eq!(counts, [("a".to_owned(), 15), ("b".to_owned(), 15)].into());
    assert_eq!(keyspace.remove_prefix("a/").await, Ok(15));
    assert_eq!(keyspace.remove_prefix("a/").await, Ok(0));
    assert_eq!(keyspace.list("", None, 1_000).await.unwrap().keys.len(), 15);

    world.lock().freeze("kv.1.3", 9);
    let waiting = tokio::spawn(keyspace.list("", None, 1_000).into_future());
    sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    let error = keyspace.list("", None, 1_000).timeout(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, KvError::NotServing { .. }), "{error}");
    world.lock().take("kv.1.3", Step::Unfreeze { workflow: 9 });
    assert_eq!(waiting.await.unwrap().unwrap().keys.len(), 15);

    for shard in 0..5 {
        let group = ShardId { keyspace: 1, shard }.group();
        world.lock().take(&group, Step::Close { keyspace: 1 });
    }
    world.lock().keyspaces(KeyspacesCommand::Delete { name: "a".into() });
    let missing = KvError::KeyspaceNotFound { name: "a".into() };
    assert_eq!(keyspace.list("", None, 10).await, Err(missing.clone()));
    assert_eq!(keyspace.remove_prefix("").await, Err(missing.clone()));
    assert_eq!(keyspace.count_by_account().await, Err(missing));
}
