//! Every metric moves when what it counts happens.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use batched_comm::{CallError, Compression, Endpoint, EndpointConfig, stats};
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use crate::support::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Keeps the values of metrics. A test has one thread, and this is the recorder of that thread.
#[derive(Default)]
struct Recorded {
    numbers: Mutex<HashMap<Key, Arc<AtomicU64>>>,
    samples: Mutex<HashMap<Key, Arc<Samples>>>,
}

#[derive(Default)]
struct Samples(Mutex<Vec<f64>>);

impl HistogramFn for Samples {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.numbers.lock().unwrap().entry(key.clone()).or_default().clone())
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.numbers.lock().unwrap().entry(key.clone()).or_default().clone())
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.samples.lock().unwrap().entry(key.clone()).or_default().clone())
    }
}

impl Recorded {
    /// The number under exactly these labels.
    fn number(&self, name: &'static str, labels: &[(&'static str, &'static str)]) -> Option<u64> {
        let key = Key::from_parts(name, labels);
        Some(self.numbers.lock().unwrap().get(&key)?.load(Ordering::SeqCst))
    }

    fn counter(&self, name: &'static str, peer: &'static str) -> u64 {
        self.number(name, &[("peer", peer)]).unwrap_or_else(|| panic!("{name} of {peer} is not recorded"))
    }

    fn gauge(&self, name: &'static str, peer: &'static str) -> f64 {
        f64::from_bits(self.counter(name, peer))
    }

    fn drops(&self, peer: &'static str, reason: &'static str) -> u64 {
        let labels = [("peer", peer), ("reason", reason)];
        self.number(stats::MESSAGES_DROPPED, &labels).unwrap_or_else(|| panic!("drops for {reason} are not recorded"))
    }

    fn dials(&self, peer: &'static str, outcome: &'static str) -> u64 {
        self.number(stats::DIALS, &[("peer", peer), ("outcome", outcome)]).unwrap()
    }

    fn samples(&self, name: &'static str, peer: &'static str) -> Vec<f64> {
        let key = Key::from_parts(name, &[("peer", peer)]);
        let samples = self.samples.lock().unwrap();
        samples[&key].0.lock().unwrap().clone()
    }
}

fn nobodys_address() -> SocketAddr {
    UdpSocket::bind(any_port()).unwrap().local_addr().unwrap()
}

async fn bind_patient(ca: &batched_comm::MemoryCa, name: &str) -> Endpoint {
    let config = EndpointConfig::new().with_max_queued_bytes(64 * 1024).unwrap();
    let config = config.with_hello_timeout(MS(500)).unwrap();
    bind_with(ca, name, config.with_liveness(MS(100), MS(5000), MS(30_000)).unwrap()).await
}

#[tokio::test]
async fn traffic_connections_and_calls_are_recorded() {
    let recorded = Recorded::default();
    let _recording = metrics::set_default_local_recorder(&recorded);
    let ca = ca();
    let (a, b) = (bind_patient(&ca, "a").await, bind_patient(&ca, "b").await);
    a.set_batching(a.batching().with_compression(Compression::Lz4).unwrap());
    a.set_peer(b.name(), vec![nobodys_address()]);
    eventually("a failed dial", || recorded.dials("b", "failed") > 0).await;
    assert_eq!(recorded.dials("b", "ok"), 0);
    connect(&a, &b).await;
    assert_eq!((recorded.dials("b", "ok"), recorded.dials("a", "ok")), (1, 0));
    let mut mailbox = b.mailbox("in", 100).unwrap();
    for _ in 0..10 {
        let to = at(&b, "in");
        let call = a.call_bytes(&to, 1, &[7; 1000], DEADLINE);
        let answer = async { mailbox.recv().await.unwrap().reply_bytes(b"").unwrap() };
        let (answer, ()) = soon("an answer", async { tokio::join!(call, answer) }).await;
        answer.unwrap();
    }
    // Counted once they are written, which may be after the answer.
    let counted =
        || recorded.counter(stats::MESSAGES_SENT, "b") == 10 && recorded.counter(stats::MESSAGES_SENT, "a") == 10;
    eventually("the counts", counted).await;
    for (sent, received) in [
        (stats::MESSAGES_SENT, stats::MESSAGES_RECEIVED),
        (stats::BATCHES_SENT, stats::BATCHES_RECEIVED),
        (stats::RAW_BYTES_SENT, stats::RAW_BYTES_RECEIVED),
        (stats::BYTES_SENT, stats::BYTES_RECEIVED),
    ] {
        assert!(recorded.counter(sent, "b") >= 10, "{sent}");
        assert_eq!(recorded.counter(sent, "b"), recorded.counter(received, "a"), "{sent}");
    }
    let traffic = a.peers()[0].traffic;
    assert_eq!(traffic.raw_bytes_sent, recorded.counter(stats::RAW_BYTES_SENT, "b"));
    assert!(recorded.counter(stats::BYTES_SENT, "b") * 2 < traffic.raw_bytes_sent, "{traffic:?}");
    let seconds = recorded.samples(stats::CALL_SECONDS, "b");
    assert!(seconds.len() == 10 && seconds.iter().all(|s| *s > 0.0 && *s < DEADLINE.as_secs_f64()), "{seconds:?}");
    eventually("a round trip", || recorded.gauge(stats::ROUND_TRIP_SECONDS, "b") > 0.0).await;
    assert!(recorded.gauge(stats::ROUND_TRIP_SECONDS, "b") < 5.0, "in seconds");
    assert_eq!(recorded.counter(stats::RECONNECTS, "b"), 0);
    b.remove_peer(a.name());
    eventually("a reconnect", || recorded.counter(stats::RECONNECTS, "b") == 1).await;
}

#[tokio::test]
async fn what_waits_is_recorded_while_it_waits() {
    let recorded = Recorded::default();
    let _recording = metrics::set_default_local_recorder(&recorded);
    let ca = ca();
    let (a, b) = (bind_patient(&ca, "a").await, bind_patient(&ca, "b").await);
    let relay = Relay::to(b.local_address()).await;
    a.set_peer(b.name(), vec![relay.address()]);
    eventually("a connection", || is_up(&a, &b) && is_up(&b, &a)).await;
    let mut mailbox = b.mailbox("in", 10_000).unwrap();
    let to = at(&b, "in");
    let calling = tokio::spawn({
        let (a, to) = (a.clone(), to.clone());
        async move { a.call_bytes(&to, 1, b"", DEADLINE).await }
    });
    let request = soon("the request", mailbox.recv()).await.unwrap();
    eventually("a pending call", || recorded.gauge(stats::PENDING_CALLS, "b") == 1.0).await;
    request.reply_bytes(b"").unwrap();
    soon("the answer", calling).await.unwrap().unwrap();
    eventually("no pending call", || recorded.gauge(stats::PENDING_CALLS, "b") == 0.0).await;
    relay.cut(true);
    let mut count = 0;
    let filled = || {
        while a.try_send_bytes(&to, 1, &[0; 1000]).is_ok() {
            count += 1;
        }
        recorded.gauge(stats::QUEUED_BYTES, "b") >= 64.0 * 1024.0
    };
    eventually("a full queue", filled).await;
    let messages = recorded.gauge(stats::QUEUED_MESSAGES, "b");
    assert!((60.0..=66.0).contains(&messages), "{messages}");
    relay.cut(false);
    for _ in 0..count {
        soon("a message", mailbox.recv()).await.unwrap();
    }
    let empty =
        || recorded.gauge(stats::QUEUED_BYTES, "b") == 0.0 && recorded.gauge(stats::QUEUED_MESSAGES, "b") == 0.0;
    eventually("an empty queue", empty).await;
}

#[tokio::test]
async fn drops_are_recorded_by_their_reason() {
    let recorded = Recorded::default();
    let _recording = metrics::set_default_local_recorder(&recorded);
    let ca = ca();
    let (a, b) = (bind_patient(&ca, "a").await, bind_patient(&ca, "b").await);
    let (full, nobody) = (b.mailbox("full", 1).unwrap(), "nobody".parse().unwrap());
    a.set_peer(b.name(), vec![nobodys_address()]);
    a.cast_bytes(&at(&b, "full"), 1, b"");
    a.cast_bytes(&batched_comm::Address::new(&nobody, "in").unwrap(), 1, b"");
    a.cast_bytes(&at(&a, "none"), 1, b"");
    assert_eq!((recorded.drops("b", "no_connection"), recorded.drops("a", "no_connection")), (1, 1));
    assert_eq!((recorded.drops("a", "unknown_mailbox"), a.dropped_casts()), (1, 2));
    connect(&a, &b).await;
    a.cast_bytes(&at(&b, "full"), 1, &vec![0; batched_comm::MAX_MESSAGE_BYTES + 1]);
    assert_eq!(recorded.drops("b", "unsendable"), 1);
    for _ in 0..3 {
        a.cast_bytes(&at(&b, "full"), 1, b"");
    }
    eventually("two for a full mailbox", || recorded.drops("a", "mailbox_full") == 2).await;
    a.cast_bytes(&at(&b, "none"), 1, b"");
    eventually("one for no mailbox", || recorded.drops("a", "unknown_mailbox") == 2).await;
    let mut slow = b.mailbox("slow", 10).unwrap();
    let error = a.call_bytes(&at(&b, "slow"), 1, b"", MS(20)).await.unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error}");
    soon("the request", slow.recv()).await.unwrap().reply_bytes(b"").unwrap();
    eventually("a late reply", || recorded.drops("b", "late_reply") == 1).await;
    assert!(recorded.samples(stats::CALL_SECONDS, "b").is_empty(), "it was not answered");
    // Messages leave meanwhile, only not as fast as these come.
    let mut casts = 0;
    while recorded.drops("b", "queue_full") == 0 {
        a.cast_bytes(&at(&b, "full"), 1, &[0; 1000]);
        casts += 1;
        assert!(casts < 10_000_000, "the queue is never full");
    }
    let by_reason: u64 = ["no_connection", "unsendable", "late_reply", "queue_full"]
        .iter()
        .map(|reason| recorded.drops("b", reason))
        .sum();
    assert_eq!(a.peers()[0].traffic.messages_dropped, by_reason);
    drop(full);
}

/// What is documented is what there is.
#[test]
fn the_readme_names_every_metric() {
    let readme = include_str!("../../README.md");
    let source = include_str!("../../src/stats.rs");
    let names: Vec<_> = source.split('"').filter(|text| text.starts_with("batched_comm_")).collect();
    assert_eq!(names.len(), 16);
    for name in names {
        assert!(readme.contains(&format!("`{name}`")), "{name}");
    }
}
