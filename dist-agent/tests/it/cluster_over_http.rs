//! Three processes with data on disk: any node answers for all, and no acknowledged command is lost or run twice when
//! nodes are killed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Cluster, until};

const INCREMENTS: u64 = 1_500;
const CLIENTS: u64 = 16;

#[test]
fn increments_over_all_nodes_are_exact_while_a_node_is_killed_and_started() {
    let mut cluster = Cluster::start(3, false, &[]);
    cluster.client(0).put_quota("q", "null");
    let clients: Vec<Client> = (0..3).map(|at| cluster.client(at).clone()).collect();
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (clients, done) = (&clients, &done);
            scope.spawn(move || {
                for serial in 0..INCREMENTS / CLIENTS {
                    increment(clients, number, serial);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let reached = |part: u64| done.load(Ordering::Relaxed) >= INCREMENTS * part / 10;
        until(Duration::from_secs(120), "a third is done", || reached(3).then_some(()));
        cluster.nodes[1].kill();
        until(Duration::from_secs(120), "more is done", || reached(6).then_some(()));
        cluster.nodes[1].start();
    });
    cluster.nodes[1].wait_until_ready();
    let expected = json!({"answer": INCREMENTS / CLIENTS * CLIENTS});
    for client in &clients {
        assert_eq!(client.query("counter/total", "\"get\"").expect(200).json(), expected);
    }
}

/// Sends one increment to one node after another under one key, until it is answered.
fn increment(clients: &[Client], number: u64, serial: u64) {
    let key = format!("client-{number}:{serial}");
    let deadline = Instant::now() + Duration::from_secs(60);
    for attempt in 0.. {
        let client = &clients[((number + serial + attempt) % clients.len() as u64) as usize];
        let headers = [("Idempotency-Key", key.as_str()), ("X-Timeout-Ms", "2000")];
        let path = "/v1/agents/q/counter/total/command";
        match client.try_send("POST", path, &headers, Some(b"{\"add\": 1}")) {
            Some(response) if response.status == 200 => return,
            Some(response) => {
                assert!(matches!(response.status, 503 | 504 | 429), "{}", String::from_utf8_lossy(&response.body));
            }
            None => {}
        }
        assert!(Instant::now() < deadline, "{key} is not answered");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn everything_acknowledged_is_there_after_all_nodes_were_killed_at_once() {
    let mut cluster = Cluster::start(3, false, &[]);
    cluster.client(0).put_quota("q", "null");
    let slow = [("X-Timeout-Ms", "30000")];
    cluster
        .client(1)
        .send("PUT", "/v1/keyspaces/demo", &slow, Some(b"{\"min_shards\": 2, \"max_shards\": 2}"))
        .expect(201);
    for number in 0..60 {
        cluster.client(number).put(&format!("/v1/kv/demo/k{number}"), number.to_string()).expect(204);
        cluster.client(number + 1).command(&format!("counter/c{}", number % 10), "{\"add\": 1}").expect(200);
    }
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    for node in &cluster.nodes {
        node.wait_until_ready();
    }
    for number in 0..60 {
        let read = cluster.client(number + 2).get(&format!("/v1/kv/demo/k{number}")).expect(200);
        assert_eq!(read.body, number.to_string().as_bytes());
    }
    for number in 0..10 {
        let answer = cluster.client(number).query(&format!("counter/c{number}"), "\"get\"").expect(200).json();
        assert_eq!(answer, json!({"answer": 6}));
    }
}

#[test]
fn a_limit_holds_over_all_nodes_and_a_deletion_is_seen_by_all() {
    let cluster = Cluster::start(3, true, &[]);
    cluster.client(0).put_quota("ten", "10");
    let admitted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for number in 0..40 {
            let (client, admitted) = (cluster.client(number).clone(), &admitted);
            scope.spawn(move || {
                let path = format!("/v1/agents/ten/counter/{number}/command");
                let headers = [("X-Timeout-Ms", "15000")];
                let response = client.send("POST", &path, &headers, Some(b"{\"add\": 1}"));
                match response.status {
                    200 => admitted.fetch_add(1, Ordering::Relaxed),
                    _ => u64::from(response.expect_error(429, "quota_limit_reached").status == 0),
                }
            });
        }
    });
    assert_eq!(admitted.load(Ordering::Relaxed), 10);
    let path = "/v1/agents/ten/register/late/command";
    cluster.client(1).post(path, "{\"set\": 1}").expect_error(429, "quota_limit_reached");
    for at in 0..3 {
        let listed = cluster.client(at).get("/v1/agents/ten").json();
        assert_eq!(listed["agents"].as_array().unwrap().len(), 10);
    }
    cluster.client(2).delete("/v1/quotas/ten").expect(204);
    for at in 0..3 {
        for number in 0..3 {
            let path = format!("/v1/agents/ten/counter/{number}/command");
            cluster.client(at).post(&path, "{\"add\": 1}").expect_error(404, "quota_not_found");
        }
    }
}

#[test]
fn first_commands_on_one_agent_from_all_nodes_run_once_each() {
    let cluster = Cluster::start(3, true, &[]);
    cluster.client(0).put_quota("q", "1");
    let mut replies: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..24)
            .map(|number| {
                let client = cluster.client(number).clone();
                scope.spawn(move || {
                    client.command("counter/one", "{\"add\": 1}").expect(200).json()["reply"].as_u64().unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    replies.sort_unstable();
    assert_eq!(replies, (1..=24).collect::<Vec<_>>());
}

#[test]
fn without_a_majority_nothing_is_acknowledged_and_nothing_is_mixed_up() {
    let mut cluster = Cluster::start(3, true, &[]);
    cluster.client(0).put_quota("q", "null");
    cluster.client(0).command("counter/a", "{\"add\": 1}").expect(200);
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let client = cluster.client(0);
    let headers = [("X-Timeout-Ms", "1500")];
    let started = Instant::now();
    let response = client.send("POST", "/v1/agents/q/counter/a/command", &headers, Some(b"{\"add\": 1}"));
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    match response.status {
        503 => assert_eq!(response.error(), "no_leader"),
        _ => assert_eq!(response.expect(504).error(), "unknown_outcome"),
    }
    let response = client.send("POST", "/v1/agents/q/counter/a/query", &headers, Some(b"\"get\""));
    response.expect_error(503, "no_leader");
    until(Duration::from_secs(10), "it is not ready", || client.get("/readyz").status.eq(&503).then_some(()));
    client.get("/healthz").expect(200);
    client.get("/").expect(200);
}
