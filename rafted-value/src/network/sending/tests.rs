//! How many snapshots a node sends at once, and how fast, in virtual time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use tokio::sync::{Semaphore, oneshot};

use super::*;
use crate::any_value::ValueFactory;
use crate::clock::Clock;
use crate::openraft_types::{StoredMembership, log_id, vote};
use crate::rpc::{ClusterTag, Request};
use crate::sender::Sender;
use crate::sessions::Sessions;
use crate::snapshot::{Content, SnapshotLimits, SnapshotStore};
use crate::status::ReplicaId;
use crate::threads::Threads;
use crate::transport::{BoxFuture, Transport, TransportError};
use crate::value::{LogTime, Value};
use crate::wal::{ReplicaRecord, Wal};

const SENDER: u64 = 7;
const VALUE_BYTES: usize = 1 << 20;

/// As large as it says, from the beginning.
#[derive(Debug, Clone, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Large(Vec<u8>);

impl Default for Large {
    fn default() -> Self {
        Self(vec![7; VALUE_BYTES])
    }
}

impl Value for Large {
    type Command = ();
    type Reply = ();
    type Query = ();
    type Answer = ();
    fn command(&mut self, (): ()) {}
    fn query(&self, (): ()) {}
}

/// The time of the paused runtime.
struct Paused(Instant);

impl Clock for Paused {
    fn wall(&self) -> LogTime {
        LogTime::default()
    }
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Takes every snapshot, once it may.
struct Receivers {
    under_way: AtomicUsize,
    begun: AtomicUsize,
    most: AtomicUsize,
    bytes: AtomicU64,
    may_end: Semaphore,
    sizes: Mutex<Vec<u64>>,
}

impl Receivers {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            under_way: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            may_end: Semaphore::new(permits),
            sizes: Mutex::default(),
        })
    }
}

struct Link(Arc<Receivers>);

impl Transport for Link {
    fn call(&self, _: &str, request: Bytes, _: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
        let request = Request::decode(request).unwrap();
        assert!(matches!(request.body, RequestBody::SnapshotOffer { .. }), "{:?}", request.body);
        Box::pin(async { Ok(Answer::SnapshotAt { offset: 0 }.encode()) })
    }

    fn call_with_body(
        &self,
        _: &str,
        _: Bytes,
        mut body: Box<dyn Body>,
        _: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        let at = self.0.clone();
        Box::pin(async move {
            at.begun.fetch_add(1, Ordering::SeqCst);
            at.most.fetch_max(at.under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let mut size = 0;
            while let Some(chunk) = body.next().await.unwrap() {
                size += chunk.len() as u64;
                at.bytes.fetch_add(chunk.len() as u64, Ordering::SeqCst);
            }
            at.sizes.lock().unwrap().push(size);
            at.may_end.acquire().await.unwrap().forget();
            at.under_way.fetch_sub(1, Ordering::SeqCst);
            Ok(Answer::Snapshot { vote: vote(1, SENDER, true) }.encode())
        })
    }
}

fn meta() -> SnapshotMeta {
    SnapshotMeta { last_log_id: Some(log_id(1, 9)), last_membership: StoredMembership::default() }
}

/// Where a snapshot of [`Large`] is.
async fn snapshots() -> SnapshotStore {
    let wal = Wal::memory();
    let (done, created) = oneshot::channel();
    let record = ReplicaRecord { replica: SENDER, group: "g".into(), incarnation: 0, detail: Bytes::new() };
    wal.create(record, Box::new(move |result| drop(done.send(result))));
    created.await.unwrap().unwrap();
    let store = SnapshotStore::new(SENDER, wal, None, Threads::Pool(tokio::runtime::Handle::current()));
    let value = ValueFactory::of::<Large>(None).create();
    let (log_time, sessions) = (LogTime::default(), Sessions::default());
    store.save(Content { meta: meta(), log_time, sessions, config: None, value }).await.unwrap();
    store
}

fn client(traffic: &Arc<Traffic>, receivers: &Arc<Receivers>, to: u64) -> Client {
    Client {
        sender: Sender::new(ClusterTag::default(), "g", ReplicaId::new(SENDER).unwrap(), 0),
        to,
        node: format!("n{to}"),
        transport: Arc::new(Link(receivers.clone())),
        traffic: traffic.clone(),
        asleep: Arc::default(),
        warned_unreadable: AtomicBool::new(false),
    }
}

async fn send(store: &SnapshotStore, client: Client) {
    let (meta, body) = store.current().unwrap().unwrap();
    assert_eq!(client.send(vote(1, SENDER, true), meta, body).await.unwrap(), vote(1, SENDER, true));
}

#[tokio::test(start_paused = true)]
async fn a_node_sends_two_snapshots_at_once_and_the_others_after_them() {
    let store = snapshots().await;
    let traffic = Traffic::new(Arc::new(Paused(Instant::now())));
    let receivers = Receivers::new(0);
    let sends = (1..=5).map(|to| send(&store, client(&traffic, &receivers, to)));
    let all = futures_util::future::join_all(sends);
    let control = async {
        for ended in 0..5 {
            // All that can begin has: nothing more happens by itself.
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert_eq!(receivers.begun.load(Ordering::SeqCst), (ended + 2).min(5), "{ended} have ended");
            receivers.may_end.add_permits(1);
        }
    };
    tokio::join!(all, control);
    assert_eq!(receivers.most.load(Ordering::SeqCst), 2);
    let sizes = receivers.sizes.lock().unwrap().clone();
    assert!(sizes.len() == 5 && sizes.iter().all(|&size| size > VALUE_BYTES as u64), "{sizes:?}");
}

#[tokio::test(start_paused = true)]
async fn all_snapshots_of_a_node_keep_to_its_rate_together() {
    let store = snapshots().await;
    let traffic = Traffic::new(Arc::new(Paused(Instant::now())));
    traffic.set_limits(&SnapshotLimits::default().with_sent_bytes_per_second(64 << 10).unwrap());
    let receivers = Receivers::new(2);
    let started = Instant::now();
    tokio::join!(send(&store, client(&traffic, &receivers, 1)), send(&store, client(&traffic, &receivers, 2)),);
    let (bytes, took) = (receivers.bytes.load(Ordering::SeqCst), started.elapsed());
    let expected = Duration::from_secs(bytes / (64 << 10));
    assert!(bytes > 2 * VALUE_BYTES as u64 && took + Duration::from_secs(1) >= expected, "{bytes} bytes in {took:?}");
    assert!(took < expected + Duration::from_secs(5), "{bytes} bytes in {took:?}");
}
