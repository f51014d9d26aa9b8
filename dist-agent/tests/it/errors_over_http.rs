//! Every endpoint of one node, and every way to use it wrongly.

use serde_json::json;

use crate::support::{Client, Cluster};

#[test]
fn every_endpoint_answers_as_the_interface_says() {
    let cluster = Cluster::start(1, true, &["--tick-interval", "100ms"]);
    let client = cluster.client(0);
    plain_pages(client);
    quotas(client);
    agents(client);
    wrong_requests(client);
    idempotency(client);
    keyspaces(client);
    bytes_by_key(client);
    limits(client);
    deletions(client);
}

fn plain_pages(client: &Client) {
    client.get("/healthz").expect(200);
    client.get("/readyz").expect(200);
    let metrics = client.get("/metrics").expect(200);
    assert!(String::from_utf8(metrics.body).unwrap().contains("dist_agent_http_requests_total"));
    let page = client.get("/").expect(200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(String::from_utf8(page.body).unwrap().contains("n1"));
    let openapi = client.get("/v1/openapi.json").expect(200).json();
    assert!(openapi["paths"].as_object().unwrap().len() > 10);
    let nodes = client.get("/v1/nodes").expect(200).json();
    assert_eq!((&nodes["nodes"][0]["name"], &nodes["nodes"][0]["state"]), (&json!("n1"), &json!("active")));
    assert_eq!(nodes["nodes"][0]["http"], json!(client.address.to_string()));
    let groups = client.get("/v1/groups").expect(200).json();
    let group = groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "agents.quotas").unwrap();
    assert_eq!((&group["leader"], &group["state"]), (&json!("n1"), &json!("active")));
    client.get("/v1/events").expect_error(501, "not_implemented");
    client.get("/v1/agents/q/counter/a/watch").expect_error(501, "not_implemented");
    client.get("/nothing").expect_error(404, "not_found");
    client.get("/v1/agents/q//a").expect_error(400, "invalid_request");
    client.post("/healthz", "").expect_error(405, "method_not_allowed");
    client.post("/v1/quotas", "").expect_error(405, "method_not_allowed");
    client.delete("/v1/nodes/n9").expect_error(404, "node_not_found");
    client.delete("/v1/nodes/n1").expect_error(409, "not_removable");
    client.post("/v1/nodes/n9/drain", "").expect_error(404, "node_not_found");
}

fn quotas(client: &Client) {
    client.get("/v1/quotas/q").expect_error(404, "quota_not_found");
    client.delete("/v1/quotas/q").expect_error(404, "quota_not_found");
    client.put_quota("q", "null");
    client.put_quota("small", "7");
    assert_eq!(client.get("/v1/quotas/small").json(), json!({"quota": "small", "limit": 7, "count": 0}));
    assert_eq!(client.get("/v1/quotas/q").json(), json!({"quota": "q", "limit": null, "count": 0}));
    assert_eq!(client.get("/v1/quotas").json(), json!({"quotas": ["q", "small"]}));
    let first = client.get("/v1/quotas?limit=1").json();
    assert_eq!(first["quotas"], json!(["q"]));
    let next = first["next"].as_str().unwrap();
    assert_eq!(client.get(&format!("/v1/quotas?limit=1&cursor={next}")).json()["quotas"], json!(["small"]));
    for body in ["", "{}", "{\"limit\": -1}", "{\"limit\": \"1\"}", "{\"limit\": 1, \"more\": 2}", "limit"] {
        client.put("/v1/quotas/q", body).expect_error(400, "invalid_request");
    }
    client.put("/v1/quotas/a%20b", "{\"limit\": 1}").expect_error(400, "invalid_request");
    for query in ["limit=0", "limit=1001", "limit=x", "cursor=%21", "other=1"] {
        client.get(&format!("/v1/quotas?{query}")).expect_error(400, "invalid_request");
    }
}

fn agents(client: &Client) {
    client.query("counter/a", "\"get\"").expect_error(404, "agent_not_found");
    assert_eq!(client.command("counter/a", "{\"add\": 1}").expect(200).json(), json!({"reply": 1}));
    assert_eq!(client.command("counter/a", "{\"add\": 41}").expect(200).json(), json!({"reply": 42}));
    assert_eq!(client.query("counter/a", "\"get\"").expect(200).json(), json!({"answer": 42}));
    assert_eq!(client.command("register/r", "{\"set\": {\"a\": [1]}}").expect(200).json(), json!({"reply": null}));
    assert_eq!(client.command("register/r", "{\"cas\": [{\"a\": [1.0]}, 2]}").json(), json!({"reply": true}));
    assert_eq!(client.command("register/r", "\"clear\"").json(), json!({"reply": null}));
    client.query("register/r", "\"get\"").expect_error(404, "agent_not_found");
    assert_eq!(client.command("log/l", "{\"append\": \"x\"}").json(), json!({"reply": 1}));
    assert_eq!(client.query("log/l", "{\"from\": 0}").json(), json!({"answer": ["x"]}));
    assert_eq!(
        client.command("lease/e", "{\"acquire\": {\"owner\": \"o\", \"ticks\": 3}}").json(),
        json!({"reply": true})
    );
    assert_eq!(client.query("lease/e", "\"owner\"").json(), json!({"answer": "o"}));
    let timer = "{\"after\": {\"ticks\": 2, \"note\": {\"n\": 1}}}";
    assert_eq!(client.command("timer/t", timer).json(), json!({"reply": null}));
    let patience = std::time::Duration::from_secs(10);
    crate::support::until(patience, "the timer fires", || {
        (client.query("timer/t", "\"fired\"").json() == json!({"answer": [{"n": 1}]})).then_some(())
    });
    crate::support::until(patience, "the lease expires", || {
        (client.query("lease/e", "\"owner\"").json() == json!({"answer": null})).then_some(())
    });
    // Any UTF-8 is a key.
    let odd = "counter/%2Fa%20b%C3%A9%0A%25";
    client.command(odd, "{\"add\": 1}").expect(200);
    let listed = client.get("/v1/agents/q?module=counter").expect(200).json();
    let keys: Vec<&str> =
        listed["agents"].as_array().unwrap().iter().map(|agent| agent["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["/a bé\n%", "a"]);
    let first = client.get("/v1/agents/q?limit=2").json();
    assert_eq!(first["agents"].as_array().unwrap().len(), 2);
    let rest = client.get(&format!("/v1/agents/q?cursor={}", first["next"].as_str().unwrap())).json();
    let modules: Vec<&str> = rest["agents"].as_array().unwrap().iter().map(|a| a["module"].as_str().unwrap()).collect();
    assert_eq!(modules, ["lease", "log", "timer"]);
}

fn wrong_requests(client: &Client) {
    let path = "/v1/agents/q/counter/w/command";
    client.post("/v1/agents/q/nobody/w/command", "}").expect_error(404, "unknown_module");
    client.post("/v1/agents/nobody/nobody/w/query", "1").expect_error(404, "unknown_module");
    for body in ["", "}", "{\"add\": \"1\"}", "{\"add\": 1}}", "\"get\"", "{\"add\": 1, \"set\": 2}"] {
        client.post(path, body).expect_error(400, "invalid_request");
        client.post("/v1/agents/nobody/counter/w/command", body).expect_error(400, "invalid_request");
    }
    client.query("counter/w", "\"get\"").expect_error(404, "agent_not_found");
    client.post("/v1/agents/nobody/counter/w/command", "{\"add\": 1}").expect_error(404, "quota_not_found");
    client.post("/v1/agents/nobody/counter/w/query", "\"get\"").expect_error(404, "quota_not_found");
    client.get("/v1/agents/nobody").expect_error(404, "quota_not_found");
    client.post("/v1/agents/q/a%20b/w/command", "1").expect_error(400, "invalid_request");
    client.post("/v1/agents/q/counter/%FF/command", "{\"add\": 1}").expect_error(400, "invalid_request");
    let long = "k".repeat(1_025);
    client.post(&format!("/v1/agents/q/counter/{long}/command"), "{\"add\": 1}").expect_error(400, "invalid_request");
    client.post(&format!("/v1/agents/q/counter/{}/command", &long[1..]), "{\"add\": 1}").expect(200);
    client.delete("/v1/agents/q").expect_error(400, "invalid_request");

    let with = |name: &str, value: &str| client.send("POST", path, &[(name, value)], Some(b"{\"add\": 1}"));
    for timeout in ["0", "-1", "x", "99999999"] {
        with("X-Timeout-Ms", timeout).expect_error(400, "invalid_request");
    }
    for key in ["", "c", "c:x", ":1", "c d:1"] {
        with("Idempotency-Key", key).expect_error(400, "invalid_request");
    }
    with("X-Rate-Limit", "10,3").expect_error(501, "not_implemented");
    client.query("counter/w", "\"get\"").expect_error(404, "agent_not_found");

    let big = format!("{{\"append\": \"{}\"}}", "x".repeat(1 << 20));
    client.command("log/big", &big).expect_error(413, "too_large");
    let fits = format!("{{\"append\": \"{}\"}}", "x".repeat((1 << 20) - 14));
    assert_eq!(fits.len(), 1 << 20);
    client.command("log/big", &fits).expect(200);
}

fn idempotency(client: &Client) {
    let path = "/v1/agents/q/counter/once/command";
    let add = |key: &str, body: &str| client.send("POST", path, &[("Idempotency-Key", key)], Some(body.as_bytes()));
    for _ in 0..3 {
        assert_eq!(add("c:5", "{\"add\": 3}").expect(200).json(), json!({"reply": 3}));
    }
    assert_eq!(add("c:4", "{\"add\": 3}").json(), json!({"reply": 6}));
    assert_eq!(add("d:5", "{\"add\": 3}").json(), json!({"reply": 9}));
    assert_eq!(add("c:5", "{ \"add\" : 3 }").json(), json!({"reply": 3}), "the command counts, not its spaces");
    add("c:5", "{\"add\": 4}").expect_error(409, "idempotency_conflict");
    for serial in 100..164 {
        add(&format!("c:{serial}"), "{\"add\": 1}").expect(200);
    }
    add("c:6", "{\"add\": 3}").expect_error(409, "serial_too_old");
    add("c:5", "{\"add\": 3}").expect_error(409, "serial_too_old");
    assert_eq!(client.query("counter/once", "\"get\"").json(), json!({"answer": 9 + 64}));

    // Also over the end of the agent.
    let set = |key: &str, body: &str| {
        let path = "/v1/agents/q/register/once/command";
        client.send("POST", path, &[("Idempotency-Key", key)], Some(body.as_bytes())).expect(200).json()
    };
    assert_eq!(set("c:1", "{\"set\": 1}"), json!({"reply": null}));
    assert_eq!(set("c:2", "\"clear\""), json!({"reply": null}));
    assert_eq!(set("c:1", "{\"set\": 1}"), json!({"reply": null}));
    client.query("register/once", "\"get\"").expect_error(404, "agent_not_found");

    // A reply that is too large to keep.
    let large = format!("{{\"set\": \"{}\"}}", "x".repeat(5_000));
    set("c:10", &large);
    assert!(set("c:11", "{\"set\": 2}").to_string().len() > 5_000);
    let again = client.send(
        "POST",
        "/v1/agents/q/register/once/command",
        &[("Idempotency-Key", "c:11")],
        Some(b"{\"set\": 2}"),
    );
    again.expect_error(409, "already_done");
}

fn keyspaces(client: &Client) {
    client.get("/v1/keyspaces/demo").expect_error(404, "keyspace_not_found");
    client.get("/v1/keyspaces/demo/shards").expect_error(404, "keyspace_not_found");
    client.delete("/v1/keyspaces/demo").expect_error(404, "keyspace_not_found");
    client.get("/v1/kv/demo/k").expect_error(404, "keyspace_not_found");
    let policy = "{\"min_shards\": 2, \"max_shards\": 2, \"replicas\": 1}";
    let slow =
        |body: &str| client.send("PUT", "/v1/keyspaces/demo", &[("X-Timeout-Ms", "30000")], Some(body.as_bytes()));
    slow(policy).expect(201);
    slow(policy).expect(204);
    slow("{\"min_shards\": 3, \"max_shards\": 3, \"replicas\": 1}").expect_error(501, "not_implemented");
    slow("{\"min_shards\": 2, \"max_keys_per_shard\": 10}").expect_error(501, "not_implemented");
    slow("{\"min_shards\": 0}").expect_error(400, "invalid_request");
    slow("{").expect_error(400, "invalid_request");
    slow("{\"shards\": 3}").expect_error(400, "invalid_request");
    client.put("/v1/keyspaces/a%2Fb", "{}").expect_error(400, "invalid_request");
    let shards = client.get("/v1/keyspaces/demo/shards").expect(200).json();
    let shards = shards["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 2);
    assert_eq!((&shards[0]["lower"], &shards[1]["upper"]), (&json!(0), &json!(u32::MAX)));
    assert!(shards.iter().all(|shard| shard["phase"] == "serving" && shard["keys"] == 0));
    let demo = client.get("/v1/keyspaces/demo").expect(200).json();
    assert_eq!((&demo["name"], &demo["type"], &demo["shards"]), (&json!("demo"), &json!("blob"), &json!(2)));
    assert_eq!(demo["policy"]["min_shards"], json!(2));
    let names = client.get("/v1/keyspaces").json();
    let names: Vec<&str> = names["keyspaces"].as_array().unwrap().iter().map(|k| k["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["agents", "demo"]);
    client.delete("/v1/keyspaces/agents").expect_error(400, "invalid_request");
}

fn bytes_by_key(client: &Client) {
    let path = "/v1/kv/demo/k%2F1";
    client.get(path).expect_error(404, "key_not_found");
    let bytes: Vec<u8> = (0..=255).collect();
    let first = client.put(path, &bytes).expect(204).header("etag").unwrap().to_owned();
    let read = client.get(path).expect(200);
    assert_eq!((read.body.as_slice(), read.header("etag")), (bytes.as_slice(), Some(first.as_str())));
    assert_eq!(read.header("content-type"), Some("application/octet-stream"));
    let with =
        |method: &str, name: &str, value: &str, body: Option<&[u8]>| client.send(method, path, &[(name, value)], body);
    with("PUT", "If-None-Match", "*", Some(b"x")).expect_error(412, "precondition_failed");
    let second = with("PUT", "If-Match", &first, Some(b"two")).expect(204).header("etag").unwrap().to_owned();
    assert_ne!(first, second);
    with("PUT", "If-Match", &first, Some(b"x")).expect_error(412, "precondition_failed");
    with("PUT", "If-Match", "\"foreign\"", Some(b"x")).expect_error(412, "precondition_failed");
    with("GET", "If-None-Match", &second, None).expect(304);
    with("GET", "If-Match", &first, None).expect_error(412, "precondition_failed");
    assert_eq!(client.get(path).body, b"two");
    with("DELETE", "If-Match", &first, None).expect_error(412, "precondition_failed");
    with("DELETE", "If-Match", &second, None).expect(204);
    client.get(path).expect_error(404, "key_not_found");
    client.delete(path).expect(204);
    client.put(path, b"").expect(204);
    assert_eq!(client.get(path).expect(200).body, b"");

    for _ in 0..2 {
        with("PUT", "Idempotency-Key", "c:1", Some(b"once")).expect(204);
    }
    with("PUT", "Idempotency-Key", "c:1", Some(b"other")).expect_error(409, "idempotency_conflict");
    with("DELETE", "Idempotency-Key", "c:1", None).expect_error(409, "idempotency_conflict");
    assert_eq!(client.get(path).body, b"once");

    client.put("/v1/kv/agents/k", "x").expect_error(400, "invalid_request");
    client.put("/v1/kv/other/k", "x").expect_error(404, "keyspace_not_found");
    client.put("/v1/kv/demo/%FF", "x").expect_error(400, "invalid_request");
    client.put(&format!("/v1/kv/demo/{}", "k".repeat(1_025)), "x").expect_error(400, "invalid_request");
    client.put(&format!("/v1/kv/demo/{}", "k".repeat(1_024)), "x").expect(204);
    client.put("/v1/kv/demo/big", vec![7; (1 << 20) + 1]).expect_error(413, "too_large");
    client.put("/v1/kv/demo/big", vec![7; 1 << 20]).expect(204);
    assert_eq!(client.get("/v1/kv/demo/big").body.len(), 1 << 20);
}

fn limits(client: &Client) {
    client.put_quota("three", "3");
    let start = |key: usize| client.post(&format!("/v1/agents/three/counter/{key}/command"), "{\"add\": 1}");
    for key in 0..3 {
        start(key).expect(200);
    }
    let refused = start(3).expect_error(429, "quota_limit_reached");
    assert!(refused.header("retry-after").is_some());
    assert!(refused.json()["retry_after_ms"].as_u64().is_some());
    start(0).expect(200);
    client.post("/v1/agents/three/counter/3/query", "\"get\"").expect_error(404, "agent_not_found");
    let patience = std::time::Duration::from_secs(5);
    crate::support::until(patience, "the count is 3", || {
        (client.get("/v1/quotas/three").json()["count"] == 3).then_some(())
    });
    client.put_quota("three", "4");
    start(3).expect(200);
    start(4).expect_error(429, "quota_limit_reached");
    // One goes, one comes.
    client.put_quota("one", "1");
    let set = |key: &str, command: &str| client.post(&format!("/v1/agents/one/register/{key}/command"), command);
    set("a", "{\"set\": 1}").expect(200);
    set("b", "{\"set\": 1}").expect_error(429, "quota_limit_reached");
    set("a", "\"clear\"").expect(200);
    set("b", "{\"set\": 1}").expect(200);
    client.put_quota("none", "0");
    client.post("/v1/agents/none/counter/a/command", "{\"add\": 1}").expect_error(429, "quota_limit_reached");
}

fn deletions(client: &Client) {
    client.delete("/v1/agents/q?module=counter").expect(204);
    assert_eq!(client.get("/v1/agents/q?module=counter").json()["agents"], json!([]));
    client.delete("/v1/keyspaces/demo").expect(204);
    client.get("/v1/kv/demo/k").expect_error(404, "keyspace_not_found");
    client.delete("/v1/quotas/three").expect(204);
    let path = "/v1/agents/three/counter/0/command";
    client.post(path, "{\"add\": 1}").expect_error(404, "quota_not_found");
    client.get("/v1/agents/three").expect_error(404, "quota_not_found");
    client.put_quota("three", "5");
    assert_eq!(client.post(path, "{\"add\": 1}").expect(200).json(), json!({"reply": 1}), "the old one is gone");
    let patience = std::time::Duration::from_secs(60);
    crate::support::until(patience, "the old agents are gone", || {
        let listed = client.get("/v1/agents/three").json();
        (listed["agents"].as_array().unwrap().len() == 1).then_some(())
    });
    assert_eq!(client.post(path, "{\"add\": 1}").json(), json!({"reply": 2}), "the new one is not");
}
