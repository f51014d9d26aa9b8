//! `wal inspect` and `wal verify` of a node's directory: refused while it runs, sound after a kill, damage told.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::{Cluster, program};

fn wal(arguments: &[&str]) -> Output {
    let mut command: Command = program();
    command.arg("wal").args(arguments).stdout(Stdio::piped()).output().unwrap()
}

fn text(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(text).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

#[test]
fn the_log_of_a_stopped_node_is_inspected_and_verified() {
    let mut cluster = Cluster::start(1, false, &[]);
    cluster.client(0).put_quota("q", "10");
    cluster.client(0).command("counter/c1", r#"{"add":1}"#).expect(200);
    let dir = cluster.nodes[0].argument_after("--data-dir");
    for command in ["inspect", "verify"] {
        let refused = wal(&[command, &dir]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused).contains("is in use by another process; stop that one"), "{}", text(&refused));
    }
    cluster.nodes[0].kill();
    let inspected = wal(&["inspect", &dir, "--output", "json"]);
    assert!(inspected.status.success(), "{}", text(&inspected));
    let inspected = json(&inspected);
    assert_eq!((&inspected["node"]["boot"], &inspected["segments"][0]["state"]), (&1.into(), &"active".into()));
    let replicas = inspected["replicas"].as_array().unwrap();
    assert!(replicas.iter().any(|replica| replica["group"] == "cluster"), "{inspected}");
    let id = replicas[0]["replica"].as_str().unwrap();
    let records = text(&wal(&["inspect", &dir, "--replica", id]));
    assert!(records.lines().any(|line| line.contains("live created")), "{records}");
    let unknown = wal(&["inspect", &dir, "--replica", "1"]);
    assert!(unknown.status.code() == Some(2) && text(&unknown).contains("has no replica"), "{}", text(&unknown));
    let printed = text(&wal(&["inspect", &dir]));
    assert!(printed.contains("SEGMENT") || printed.contains("FILE"), "{printed}");
    let verified = wal(&["verify", &dir]);
    assert!(verified.status.success() && text(&verified).contains("no damage"), "{}", text(&verified));

    let segment = std::path::Path::new(&dir).join("wal").join(inspected["segments"][0]["file"].as_str().unwrap());
    let sound = std::fs::read(&segment).unwrap();
    let mut bytes = sound.clone();
    bytes[4096 + 20] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let damaged = wal(&["verify", &dir]);
    assert_eq!(damaged.status.code(), Some(1));
    let told = format!("{}, byte 4096", segment.display());
    assert!(text(&damaged).contains(&told), "{}", text(&damaged));
    let damaged = wal(&["verify", &dir, "--output", "json"]);
    assert_eq!((damaged.status.code(), &json(&damaged)["findings"][0]["offset"]), (Some(1), &4096.into()));

    // Damage in the middle: what stands before it is shown.
    let middle = inspected["segments"][0]["used_bytes"].as_u64().unwrap() / 2 / 8 * 8;
    let mut bytes = sound;
    bytes[middle as usize] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let damaged = wal(&["inspect", &dir, "--output", "json"]);
    assert_eq!(damaged.status.code(), Some(1), "{}", text(&damaged));
    let shown = json(&damaged);
    let (stopped, read) = (&shown["damage"][0]["offset"], &shown["segments"][0]["used_bytes"]);
    assert!(stopped == read && read.as_u64().unwrap() > 4096 && shown["end"].is_null(), "{shown}");
    assert!(shown["replicas"].as_array().unwrap().iter().any(|replica| replica["group"] == "cluster"), "{shown}");
    let damaged = wal(&["inspect", &dir]);
    let told = text(&damaged);
    assert!(damaged.status.code() == Some(1) && told.starts_with("damage: ") && told.contains("cluster"), "{told}");
    let damaged = wal(&["inspect", &dir, "--replica", id]);
    assert!(damaged.status.code() == Some(1) && text(&damaged).contains("live created"), "{}", text(&damaged));
}
