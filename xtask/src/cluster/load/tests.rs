//! The client's side against a small key-value server in this process, which answers as it is told to.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use super::*;

/// How the server misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Answers 204 to the write of this key and forgets it.
    Forgets(&'static str),
    /// Answers 204 to a later write of this key and keeps the first.
    KeepsFirst(&'static str),
    /// Every third request is done, and then the connection breaks without an answer.
    BreaksAfterwards,
    /// Every third request is answered 503, not done.
    RefusesSome,
    /// All is answered 501.
    NotImplemented,
}

#[derive(Default)]
struct Store {
    values: BTreeMap<String, Vec<u8>>,
    counters: BTreeMap<String, u64>,
    /// Idempotency keys that ran.
    ran: BTreeSet<String>,
    requests: u64,
}

fn serve(fault: Fault) -> (Client, Arc<Mutex<Store>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let store = Arc::new(Mutex::new(Store::default()));
    let shared = store.clone();
    // Ends with the test's process.
    thread::spawn(move || {
        for connection in listener.incoming() {
            let shared = shared.clone();
            thread::spawn(move || converse(connection.unwrap(), fault, &shared));
        }
    });
    let client = Client::new([("n1".to_owned(), address)]);
    client.set_serves("n1", true);
    (client, store)
}

fn converse(mut connection: TcpStream, fault: Fault, store: &Mutex<Store>) -> Option<()> {
    let mut input = BufReader::new(connection.try_clone().ok()?);
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let (mut length, mut key) = (0, None);
        loop {
            let mut header = String::new();
            input.read_line(&mut header).ok()?;
            let Some((name, value)) = header.trim().split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().ok()?,
                "idempotency-key" => key = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        input.read_exact(&mut body).ok()?;
        let (status, body) = answer(&mut store.lock().unwrap(), fault, &method, &path, key, body)?;
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
        let head = if status == 204 { "HTTP/1.1 204 X\r\n\r\n".to_owned() } else { head };
        connection.write_all(head.as_bytes()).ok()?;
        connection.write_all(&body).ok()?;
    }
}

/// `None` breaks the connection.
fn answer(
    store: &mut Store,
    fault: Fault,
    method: &str,
    path: &str,
    idempotency_key: Option<String>,
    body: Vec<u8>,
) -> Option<(u16, Vec<u8>)> {
    store.requests += 1;
    let third = store.requests.is_multiple_of(3);
    if fault == Fault::NotImplemented {
        return Some((501, br#"{"error": "not_implemented", "message": "later"}"#.to_vec()));
    }
    if fault == Fault::RefusesSome && third {
        return Some((503, br#"{"error": "no_leader", "retry_after_ms": 1}"#.to_vec()));
    }
    let first_time = idempotency_key.is_none_or(|key| store.ran.insert(format!("{path} {key}")));
    let is_of = |key: &str| path == format!("/v1/kv/{DEMO}/{key}");
    let reply = match method {
        "PUT" if drops(fault, is_of, store.values.contains_key(path)) => (204, Vec::new()),
        "PUT" => {
            if first_time {
                store.values.insert(path.to_owned(), body);
            }
            (204, Vec::new())
        }
        "GET" => match store.values.get(path) {
            Some(value) => (200, value.clone()),
            None => (404, br#"{"error": "key_not_found"}"#.to_vec()),
        },
        _ if path.ends_with("/query") => {
            let value = store.counters.get(&path.replace("/query", "/command")).copied();
            (200, format!("{{\"answer\": {}}}", value.unwrap_or(0)).into_bytes())
        }
        _ => {
            let counter = store.counters.entry(path.to_owned()).or_default();
            *counter += u64::from(first_time);
            (200, format!("{{\"reply\": {counter}}}").into_bytes())
        }
    };
    if fault == Fault::BreaksAfterwards && third { None } else { Some(reply) }
}

fn drops(fault: Fault, is_of: impl Fn(&str) -> bool, exists: bool) -> bool {
    match fault {
        Fault::Forgets(key) => is_of(key),
        Fault::KeepsFirst(key) => is_of(key) && exists,
        _ => false,
    }
}

#[test]
fn a_check_after_two_fills_finds_exactly_what_is_wrong() {
    // (what the server does, lost, stale)
    let rows: [(Fault, &[&str], &[&str]); 5] = [
        (Fault::None, &[], &[]),
        (Fault::Forgets("k7"), &["k7"], &[]),
        (Fault::KeepsFirst("k9"), &[], &["k9"]),
        (Fault::BreaksAfterwards, &[], &[]),
        (Fault::RefusesSome, &[], &[]),
    ];
    for (fault, lost, stale) in rows {
        let (client, _) = serve(fault);
        let load = Load::new(&client, 1);
        for _ in 0..2 {
            let tally = load.fill(50).unwrap();
            assert_eq!((tally.acknowledged, tally.failed), (50, vec![]), "{fault:?}");
        }
        let report = load.check().unwrap();
        assert_eq!(report.checked, 50, "{fault:?}");
        assert_eq!(report.lost, lost, "{fault:?}");
        assert_eq!(report.stale, stale, "{fault:?}");
        assert_eq!(report.is_clean(), lost.is_empty() && stale.is_empty());
    }
}

#[test]
fn a_write_that_was_never_sent_is_found() {
    let (client, _) = serve(Fault::None);
    let load = Load::new(&client, 3);
    load.fill(3).unwrap();
    load.record().acknowledged("planted", b"never sent");
    assert_eq!(load.check().unwrap().lost, ["planted"]);
}

#[test]
fn what_is_not_built_fails_at_once_and_is_told() {
    let (client, store) = serve(Fault::NotImplemented);
    let load = Load::new(&client, 3);
    let error = format!("{:#}", load.fill(1_000_000).unwrap_err());
    assert!(error.contains("501") && error.contains("later"), "{error}");
    load.demo_exists.store(true, Ordering::Relaxed);
    let tally = load.fill(1_000_000).unwrap();
    assert_eq!(tally.acknowledged, 0);
    assert!(tally.failed.len() >= MAX_FAILURES);
    assert!(store.lock().unwrap().requests < 100, "the rest was not tried");
}

#[test]
fn commands_are_counted_once_however_often_they_are_sent() {
    let (client, store) = serve(Fault::BreaksAfterwards);
    let load = Load::new(&client, 3);
    let path = "/v1/agents/q/counter/a/command";
    let done = AtomicU64::new(0);
    assert_eq!(load.count(path, 300, &done), Vec::<String>::new());
    assert_eq!(done.into_inner(), 300);
    assert_eq!(store.lock().unwrap().counters[path], 300);
}

#[test]
fn a_closed_loop_measures() {
    let (client, _) = serve(Fault::None);
    let load = Load::new(&client, 3);
    let figures = load.bench("q", Duration::from_millis(200), 4).unwrap();
    assert!(figures.commands > 0 && figures.errors == 0);
    assert!(figures.p50 <= figures.p99);
}

#[test]
fn without_a_node_nothing_happens_and_is_known_not_to() {
    let client = Client::new([]);
    let outcome = client.send(&Request::put("/v1/kv/demo/a", b"1"), || true);
    assert!(matches!(outcome, Outcome::NotHappened(_)), "{outcome:?}");
}
