//! What a replica answers to requests that other nodes send, byte for byte.

use std::sync::Condvar;
use std::time::Duration;

use super::*;
use crate::command::Recipient;
use crate::config::ENCODING_VERSION;
use crate::encoding::encode_command;
use crate::openraft_types::{EntryData, SnapshotMeta, encode_payload, log_id, vote};
use crate::rpc::{Append, Envelope, Request, RequestBody, Seen, SnapshotForm, SnapshotId};
use crate::starts::Start;
use crate::transport::TransportError;
use crate::value::{LogTime, UpgradeError};

#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Nothing;

impl Value for Nothing {
    type Command = ();
    type Reply = ();
    type Query = ();
    type Answer = ();
    fn command(&mut self, (): ()) {}
    fn query(&self, (): ()) {}
}

struct NoNetwork;

impl Transport for NoNetwork {
    fn call(&self, _: &str, _: Bytes, _: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
        Box::pin(async { Err(TransportError::NotSent("there is no network".into())) })
    }

    fn call_with_body(
        &self,
        node: &str,
        request: Bytes,
        _: Box<dyn Body>,
        timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        self.call(node, request, timeout)
    }
}

const OTHER: u64 = 77;

/// A body of a snapshot that nobody reads.
struct NoBody;

impl Body for NoBody {
    fn next(&mut self) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Option<Bytes>>> + Send + '_>> {
        Box::pin(async { Ok(None) })
    }
}

async fn replica(dir: &std::path::Path) -> (Store, UntypedReplica) {
    replica_as(Part::Takes, dir).await
}

async fn replica_as(part: Part, dir: &std::path::Path) -> (Store, UntypedReplica) {
    replica_of(part, dir, ValueFactory::of::<Nothing>(None)).await
}

async fn replica_of(part: Part, dir: &std::path::Path, factory: ValueFactory) -> (Store, UntypedReplica) {
    let store = Store::open(dir, "n1").await.unwrap();
    let replica = match store.replicas().first() {
        Some(stored) => stored.replica,
        None => store.create_replica("g", 3, Vec::new()).await.unwrap(),
    };
    let cluster = ClusterTag { id: 9, generation: 1 };
    let spec = ReplicaSpec {
        group: "g".into(),
        incarnation: 3,
        replica,
        cluster,
        config: GroupConfig::default(),
        is_alone: part == Part::Waits,
    };
    let replica = UntypedReplica::start_as(part, &store, spec, factory, Arc::new(NoNetwork)).await.unwrap();
    (store, replica)
}

fn envelope(replica: &UntypedReplica) -> Envelope {
    let spec = replica.spec();
    Envelope {
        cluster: spec.cluster,
        incarnation: spec.incarnation,
        from: ReplicaId::new(OTHER),
        to: Some(spec.replica),
        group: "g".into(),
    }
}

fn ask_vote(term: u64) -> RequestBody {
    RequestBody::Vote { vote: vote(term, OTHER, false), last: Some(log_id(1, 5)), transfer: false }
}

fn asker() -> Member {
    Member { name: "n2".into(), node: 4, zone: String::new(), decided_at: 0, addresses: Vec::new() }
}

async fn send(replica: &UntypedReplica, envelope: Envelope, body: RequestBody) -> Answer {
    let answer = replica.handle(Request { envelope, body }.encode(), Duration::from_secs(5)).await;
    Answer::decode(answer).unwrap()
}

#[tokio::test]
async fn a_vote_is_synced_before_it_is_answered_and_kept_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, first) = replica(dir.path()).await;
    for term in 1..10 {
        let before = store.log_stats().syncs;
        let answer = send(&first, envelope(&first), ask_vote(term)).await;
        assert!(matches!(answer, Answer::Vote { granted: true, .. }), "{answer:?}");
        assert!(store.log_stats().syncs > before, "term {term} was answered before a sync");
    }
    first.shutdown().await;
    store.close().await;
    drop((first, store));
    let (store, again) = replica(dir.path()).await;
    let rival = RequestBody::Vote { vote: vote(9, OTHER + 1, false), last: Some(log_id(1, 9)), transfer: false };
    let answer = send(&again, envelope(&again), rival).await;
    assert!(matches!(answer, Answer::Vote { granted: false, .. }), "a second vote in one term: {answer:?}");
    again.shutdown().await;
    store.close().await;
}

#[tokio::test]
async fn whatever_is_for_another_replica_is_neither_a_vote_nor_a_log_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (store, replica) = replica(dir.path()).await;
    let right = envelope(&replica);
    let wrong = [
        ("another replica", Envelope { to: ReplicaId::new(OTHER), ..right.clone() }),
        ("nobody in particular", Envelope { to: None, ..right.clone() }),
        ("another incarnation", Envelope { incarnation: 2, ..right.clone() }),
        ("another cluster", Envelope { cluster: ClusterTag { id: 8, generation: 1 }, ..right.clone() }),
        ("another generation", Envelope { cluster: ClusterTag { id: 9, generation: 2 }, ..right.clone() }),
        ("another group", Envelope { group: "h".into(), ..right.clone() }),
    ];
    for (name, envelope) in wrong {
        assert_eq!(send(&replica, envelope, ask_vote(50)).await, Answer::WrongReplica, "{name}");
    }
    assert_eq!(replica.status().term, 0, "none of them raised the term");
    replica.shutdown().await;
    store.close().await;
}

#[tokio::test]
async fn garbage_is_answered_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, replica) = replica(dir.path()).await;
    let good = Request { envelope: envelope(&replica), body: ask_vote(1) }.encode();
    for length in 0..good.len() {
        let answer = replica.handle(good.slice(..length), Duration::from_secs(5)).await;
        let answer = Answer::decode(answer).unwrap();
        assert!(matches!(answer, Answer::NotHappened(NotHappened::Malformed(_))), "{length}: {answer:?}");
    }
    replica.shutdown().await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_are_not_allowed_are_refused_before_they_are_logged() {
    let dir = tempfile::tempdir().unwrap();
    let (store, replica) = replica(dir.path()).await;
    let member = Member { name: "n1".into(), node: 1, zone: String::new(), decided_at: 0, addresses: Vec::new() };
    replica.initialize(BTreeMap::from([(replica.spec().replica, member)])).await.unwrap();
    let patience = Duration::from_secs(20);
    let mut changes = replica.status_changes();
    while replica.status().role != Role::Leader {
        assert!(tokio::time::timeout(patience, changes.changed()).await.unwrap());
    }
    let (to, schema, stamp) = (Recipient::Group, ENCODING_VERSION, LogTime::default());
    let good = GroupConfig::default().with_max_command_bytes(1).unwrap();
    let settings = |schema, payload| Command { id: None, to, schema, stamp, key_hash: 0, payload }.encode().freeze();
    replica.propose(settings(schema, good.encode()), patience).await.unwrap();
    let logged = replica.status().last_log_index;
    let no_queue = [&good.encode()[..32], &[0; 16]].concat();
    let long = [&good.encode()[..], &[0; 5_000]].concat();
    for bad in [settings(schema, no_queue.into()), settings(schema + 1, good.encode()), settings(schema, long.into())] {
        let refused = replica.propose(bad, patience).await.unwrap_err();
        assert!(matches!(refused, ProposeError::Command(CommandError::NotHappened(_))), "{refused:?}");
    }
    assert_eq!(replica.status().last_log_index, logged);
    assert_eq!(replica.status().config, good);
    replica.shutdown().await;
    store.close().await;
}

#[tokio::test]
async fn a_replica_runs_again_only_once_its_core_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (store, replica) = replica(dir.path()).await;
    let id = replica.spec().replica;
    drop(replica);
    // Nothing else has run on this thread since: the core is there, and could vote.
    assert!(store.claim(id).is_none(), "a second core could have been started beside the first");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while store.claim(id).is_none() {
        assert!(tokio::time::Instant::now() < deadline, "the core does not end");
        tokio::task::yield_now().await;
    }
    store.close().await;
}

/// Whether an answer to this could count as a vote, as a copy of entries or as a leader's confirmation.
fn counts(body: &RequestBody) -> bool {
    match body {
        RequestBody::Append(_)
        | RequestBody::Vote { .. }
        | RequestBody::PreVote { .. }
        | RequestBody::TransferLeader { .. }
        | RequestBody::Snapshot { .. }
        | RequestBody::SnapshotOffer { .. } => true,
        // Answered by a leader alone, which one that waits is not, or with what counts for nothing.
        RequestBody::Command(_)
        | RequestBody::Query(_)
        | RequestBody::QueryAny(_)
        | RequestBody::QueryWithStaleness { .. }
        | RequestBody::ReadIndex
        | RequestBody::Facts
        | RequestBody::Hello { .. }
        | RequestBody::Change { .. }
        | RequestBody::Seat { .. }
        | RequestBody::Returned { .. }
        | RequestBody::Introduce(_) => false,
    }
}

/// What counts, from a leader or candidate of term 2.
fn every_kind(replica: &UntypedReplica) -> Vec<RequestBody> {
    let (leads, asks, last) = (vote(2, OTHER, true), vote(2, OTHER, false), Some(log_id(1, 5)));
    let (meta, id) = (SnapshotMeta { last_log_id: last, ..SnapshotMeta::default() }, SnapshotId { id: 3, length: 4 });
    vec![
        RequestBody::Append(Append { vote: leads, previous: None, commit: None, entries: Vec::new() }),
        RequestBody::Vote { vote: asks, last, transfer: false },
        RequestBody::PreVote { vote: asks, last, transfer: false },
        RequestBody::TransferLeader { from: leads, to: replica.spec().replica.get(), last: None },
        RequestBody::SnapshotOffer {
            vote: leads,
            meta: meta.clone(),
            id,
            form: SnapshotForm { format: 1, version: 1 },
        },
        RequestBody::Snapshot { vote: leads, meta, id, offset: 0 },
    ]
}

#[tokio::test]
async fn one_that_waits_stands_for_no_election_either() {
    let dir = tempfile::tempdir().unwrap();
    let (store, founder) = replica(dir.path()).await;
    let member = Member { name: "n1".into(), node: 1, zone: String::new(), decided_at: 0, addresses: Vec::new() };
    founder.initialize(BTreeMap::from([(founder.spec().replica, member)])).await.unwrap();
    let mut changes = founder.status_changes();
    while founder.status().role != Role::Leader {
        assert!(changes.changed().await);
    }
    founder.shutdown().await;
    store.close().await;
    drop((founder, store));
    let (store, replica) = replica_as(Part::Waits, dir.path()).await;
    // The only voter, it would win at once.
    let term = async || replica.inner.raft.with_raft_state(|state| state.vote_ref().leader_id.term).await.unwrap();
    let before = term().await;
    replica.elect().await;
    assert_eq!((term().await, replica.status().role), (before, Role::Returning));
    replica.take_part();
    replica.elect().await;
    assert_eq!(term().await, before + 1);
    replica.shutdown().await;
    store.close().await;
}

#[tokio::test]
async fn one_that_waits_says_nothing_that_counts_and_tells_what_it_has_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (store, replica) = replica_as(Part::Waits, dir.path()).await;
    for body in every_kind(&replica).iter().filter(|body| counts(body)) {
        assert_eq!(send(&replica, envelope(&replica), body.clone()).await, Answer::WrongReplica, "{body:?}");
        let request = Request { envelope: envelope(&replica), body: body.clone() }.encode();
        let answer = replica.handle_with_body(request, Box::new(NoBody)).await;
        assert_eq!(Answer::decode(answer).unwrap(), Answer::WrongReplica, "{body:?}");
    }
    assert_eq!((replica.status().role, replica.status().term), (Role::Returning, 0));
    let start = |boot| Start { boot, number: boot };
    for (boot, after, known) in [(3, None, 3), (4, None, 3), (4, Some(3), 4)] {
        let returned = RequestBody::Returned { node: 4, start: start(boot), after: after.map(start), asker: asker() };
        let seen = Seen {
            replica: replica.spec().replica,
            start: Some(start(known)),
            members: replica.status().members,
            told: None,
        };
        assert_eq!(send(&replica, envelope(&replica), returned).await, Answer::Seen(seen), "{boot}");
    }
    replica.take_part();
    for body in every_kind(&replica).into_iter().filter(counts) {
        let answer = match &body {
            RequestBody::Snapshot { .. } => {
                let request = Request { envelope: envelope(&replica), body: body.clone() }.encode();
                Answer::decode(replica.handle_with_body(request, Box::new(NoBody)).await).unwrap()
            }
            _ => send(&replica, envelope(&replica), body.clone()).await,
        };
        assert_ne!(answer, Answer::WrongReplica, "{body:?}");
    }
    assert_eq!(replica.status().term, 2);
    replica.shutdown().await;
    store.close().await;
}

#[tokio::test]
async fn one_that_was_rolled_back_never_answers_and_its_directory_is_not_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, replica) = replica_as(Part::Waits, dir.path()).await;
    replica.set_aside().await.unwrap();
    assert_eq!(replica.status().role, Role::RolledBack);
    let returned = RequestBody::Returned { node: 4, start: Start { boot: 1, number: 1 }, after: None, asker: asker() };
    for body in [ask_vote(2), returned] {
        assert_eq!(send(&replica, envelope(&replica), body).await, Answer::WrongReplica);
    }
    replica.shutdown().await;
    store.close().await;
    drop((replica, store));
    let opened = Store::open(dir.path(), "n1").await;
    assert!(matches!(opened, Err(crate::error::StoreError::RolledBack { .. })), "{opened:?}");
}

/// How often an older command was read, and how often somebody else was answered meanwhile.
static READ: Mutex<u64> = Mutex::new(0);
static ANSWERED: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());

/// Reads older commands once somebody else was answered, each.
#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Newer;

impl Value for Newer {
    const VERSION: u32 = 2;
    type Command = ();
    type Reply = ();
    type Query = ();
    type Answer = ();
    fn command(&mut self, (): ()) {}
    fn query(&self, (): ()) {}
    fn upgrade_command(_: u32, _: &[u8]) -> Result<(), UpgradeError> {
        let call = {
            let mut read = READ.lock().unwrap();
            *read += 1;
            *read
        };
        let (answered, changed) = &ANSWERED;
        let patience = Duration::from_secs(10);
        let (done, waited) =
            changed.wait_timeout_while(answered.lock().unwrap(), patience, |done| *done < call).unwrap();
        drop(done);
        if waited.timed_out() { Err(UpgradeError::Failed("nobody was answered meanwhile".into())) } else { Ok(()) }
    }
}

/// On a runtime of one thread, which is also the network's.
#[tokio::test]
async fn others_are_answered_while_the_code_of_a_value_reads_an_older_command() {
    let dir = tempfile::tempdir().unwrap();
    let (store, replica) = replica_of(Part::Takes, dir.path(), ValueFactory::of::<Newer>(None)).await;
    let older = encode_command::<Nothing>(&(), None, 0).unwrap();
    let is_answered = async || {
        let answer = send(&replica, envelope(&replica), RequestBody::Hello { founder: false }).await;
        assert!(matches!(answer, Answer::Hello { .. }), "{answer:?}");
        *ANSWERED.0.lock().unwrap() += 1;
        ANSWERED.1.notify_all();
    };
    let payload = encode_payload(&openraft::EntryPayload::Normal(EntryData(older.clone())));
    let append = Append { vote: vote(2, OTHER, true), previous: None, commit: None, entries: vec![(2, 0, payload)] };
    let append = send(&replica, envelope(&replica), RequestBody::Append(append));
    assert_eq!(tokio::join!(append, is_answered()).0, Answer::AppendSuccess);
    let (proposed, ()) = tokio::join!(replica.propose(older, Duration::from_secs(20)), is_answered());
    assert!(matches!(proposed, Err(ProposeError::NotLeader { .. })), "{proposed:?}");
    assert_eq!(*READ.lock().unwrap(), 2);
    replica.shutdown().await;
    store.close().await;
}
