//! What a replica answers to requests that other nodes send, byte for byte.

use std::time::Duration;

use super::*;
use crate::command::Recipient;
use crate::config::ENCODING_VERSION;
use crate::openraft_types::{log_id, vote};
use crate::rpc::{Append, Envelope, Request, RequestBody, Seen};
use crate::starts::Start;
use crate::transport::TransportError;
use crate::value::LogTime;

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

async fn replica(dir: &std::path::Path) -> (Store, UntypedReplica) {
    replica_as(Part::Takes, dir).await
}

async fn replica_as(part: Part, dir: &std::path::Path) -> (Store, UntypedReplica) {
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
    let factory = ValueFactory::of::<Nothing>(None);
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

#[tokio::test]
async fn one_that_waits_says_nothing_that_counts_and_tells_what_it_has_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (store, replica) = replica_as(Part::Waits, dir.path()).await;
    let append = Append { vote: vote(2, OTHER, true), previous: None, commit: None, entries: Vec::new() };
    let pre_vote = RequestBody::PreVote { vote: vote(2, OTHER, false), last: Some(log_id(1, 5)), transfer: false };
    let take_over =
        RequestBody::TransferLeader { from: vote(2, OTHER, true), to: replica.spec().replica.get(), last: None };
    let counts = [RequestBody::Append(append), ask_vote(2), pre_vote, take_over];
    for body in &counts {
        assert_eq!(send(&replica, envelope(&replica), body.clone()).await, Answer::WrongReplica, "{body:?}");
    }
    assert_eq!((replica.status().role, replica.status().term), (Role::Returning, 0));
    let start = |boot| Start { boot, number: boot };
    for (boot, after, known) in [(3, None, 3), (4, None, 3), (4, Some(3), 4)] {
        let returned = RequestBody::Returned { node: 4, start: start(boot), after: after.map(start) };
        let seen = Seen {
            replica: replica.spec().replica,
            start: Some(start(known)),
            members: replica.status().members,
            entries: None,
        };
        assert_eq!(send(&replica, envelope(&replica), returned).await, Answer::Seen(seen), "{boot}");
    }
    replica.take_part();
    for body in counts {
        assert_ne!(send(&replica, envelope(&replica), body.clone()).await, Answer::WrongReplica, "{body:?}");
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
    let returned = RequestBody::Returned { node: 4, start: Start { boot: 1, number: 1 }, after: None };
    for body in [ask_vote(2), returned] {
        assert_eq!(send(&replica, envelope(&replica), body).await, Answer::WrongReplica);
    }
    replica.shutdown().await;
    store.close().await;
    drop((replica, store));
    let opened = Store::open(dir.path(), "n1").await;
    assert!(matches!(opened, Err(crate::error::StoreError::RolledBack { .. })), "{opened:?}");
}
