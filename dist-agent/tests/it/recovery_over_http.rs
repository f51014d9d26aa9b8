//! Groups that lost their majority, recovered with `ctl` as a person would do it.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Cluster, program, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `ctl` against one node: its exit code, and what it printed.
fn ctl(http: &str, arguments: &[&str]) -> (i32, String) {
    let mut command = program();
    let output = command.stdout(Stdio::piped()).args(["ctl", "--http", http]).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.code().unwrap(), text)
}

/// The group of the keyspace `demo`, with the places of its replicas' nodes.
fn shard(cluster: &Cluster) -> (String, Vec<usize>) {
    let shards = cluster.client(0).get("/v1/keyspaces/demo/shards").expect(200).json();
    let name = shards["shards"][0]["group"].as_str().unwrap().to_owned();
    let groups = || {
        let groups = cluster.client(0).get("/v1/groups").expect(200).json();
        let group = groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == name.as_str())?.clone();
        let replicas: Vec<usize> =
            group["replicas"].as_array()?.iter().filter_map(|node| node.as_str()?[1..].parse().ok()).collect();
        (replicas.len() == 3).then_some(replicas)
    };
    let replicas = until(PATIENCE, "three replicas", groups);
    (name, replicas.into_iter().map(|number| number - 1).collect())
}

#[test]
fn groups_go_on_without_their_majority_when_a_person_applies_the_plan_that_ctl_printed() {
    let mut cluster = Cluster::start(5, false, &[]);
    let slow = [("X-Timeout-Ms", "30000")];
    let one_shard = b"{\"min_shards\": 1, \"max_shards\": 1, \"replicas\": 3}";
    cluster.client(0).send("PUT", "/v1/keyspaces/demo", &slow, Some(one_shard)).expect(201);
    for number in 0..20 {
        cluster.client(number).put(&format!("/v1/kv/demo/k{number}"), number.to_string()).expect(204);
    }
    let (group, replicas) = shard(&cluster);
    let (stays, gone) = (replicas[0], &replicas[1..]);
    for &node in gone {
        cluster.nodes[node].kill();
    }
    let http = cluster.nodes[stays].argument_after("--http");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("plan");
    let file = file.to_str().unwrap();
    let planned = || {
        let (code, text) = ctl(&http, &["recover", "--plan"]);
        (code == 0 && text.contains(&format!("group {group}: goes on with"))).then_some(text)
    };
    let text = until(PATIENCE, "a plan for the group", planned);
    assert!(text.contains("MAY BE LOST") && text.contains(&format!("group {group} has no leader")), "{text}");
    std::fs::write(file, &text).unwrap();
    let (code, text) = ctl(&http, &["recover", "--apply", file]);
    assert_eq!(code, 0, "{text}");
    // Others may have been lost with the same nodes, and have been noticed later.
    until(PATIENCE, "nothing more to recover", || {
        let (code, text) = ctl(&http, &["--output", "json", "recover", "--plan"]);
        let plan: Value = serde_json::from_str(&text).unwrap_or_default();
        if code == 0 && plan["groups"].as_array()?.is_empty() {
            return Some(());
        }
        std::fs::write(file, &text).unwrap();
        ctl(&http, &["recover", "--apply", file]);
        None
    });
    for number in 0..20 {
        let path = format!("/v1/kv/demo/k{number}");
        let read = || cluster.nodes[stays].client.try_get(&path).filter(|response| response.status == 200);
        assert_eq!(until(PATIENCE, "the key", read).body, number.to_string().as_bytes());
    }
    // The nodes come back with what they had: nobody hears it.
    let write = || {
        let written = cluster.nodes[stays].client.try_send("PUT", "/v1/kv/demo/k0", &slow, Some(b"new"));
        written.filter(|response| response.status == 204)
    };
    until(PATIENCE, "a write", write);
    for &node in gone {
        cluster.nodes[node].start();
    }
    for &node in gone {
        cluster.nodes[node].wait_until_ready();
        assert_eq!(cluster.nodes[node].client.get("/v1/kv/demo/k0").expect(200).body, b"new");
    }
    let (code, text) = ctl(&http, &["recover", "--apply", "no such file"]);
    assert!(code == 1 && text.contains("no such file"), "{text}");
    assert_eq!(ctl(&http, &["recover"]).0, 2, "neither to plan nor to apply is a mistake of use");
}
