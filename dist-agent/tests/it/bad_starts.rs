//! Starts that must fail, each with an exit code and words that say what to do; and the other subcommands.

use std::io::Read as _;
use std::net::{TcpListener, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use crate::support::{Cluster, Process, free_tcp, free_udp, program};

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the program to its end; its exit code and what it wrote to standard error and output.
fn run(arguments: &[&str]) -> (i32, String) {
    let mut child = program().args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let (mut errors, mut output) = (child.stderr.take().unwrap(), child.stdout.take().unwrap());
    let mut process = Process::adopt(child);
    let code = process.wait(PATIENCE).code().unwrap();
    let mut text = String::new();
    errors.read_to_string(&mut text).unwrap();
    output.read_to_string(&mut text).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    (code, text)
}

fn node<'a>(listen: &'a str, http: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["node", "--name", "n1", "--listen", listen, "--http", http];
    arguments.extend(more);
    arguments
}

#[test]
fn a_wrong_command_line_is_exit_code_2_and_help_is_0() {
    for arguments in [&["--unknown"][..], &[], &["node", "--memory"], &["node", "--name", "n1", "--memory", "--what"]] {
        assert_eq!(run(arguments).0, 2, "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["node", "--help"], &["--version"]] {
        let (code, text) = run(arguments);
        assert_eq!(code, 0, "{arguments:?}");
        assert!(!text.is_empty());
    }
}

#[test]
fn a_port_in_use_is_named() {
    let (udp, tcp) = (UdpSocket::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (udp_used, tcp_used) = (udp.local_addr().unwrap().to_string(), tcp.local_addr().unwrap().to_string());
    let (udp_free, tcp_free) = (free_udp().to_string(), free_tcp().to_string());
    for (listen, http, used) in [(&udp_used, &tcp_free, &udp_used), (&udp_free, &tcp_used, &tcp_used)] {
        let (code, text) = run(&node(listen, http, &["--memory"]));
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(used.as_str()), "{text}");
    }
}

#[test]
fn a_data_directory_that_is_not_the_nodes_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (listen, http) = (free_udp().to_string(), free_tcp().to_string());
    let file = directory.path().join("file");
    std::fs::write(&file, "no directory").unwrap();
    let garbage = directory.path().join("garbage");
    std::fs::create_dir(&garbage).unwrap();
    std::fs::write(garbage.join("node"), "not a node file").unwrap();
    for path in [&file, &garbage] {
        let path = path.to_str().unwrap();
        let (code, text) = run(&node(&listen, &http, &["--data-dir", path]));
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(path), "{text}");
    }
}

#[test]
fn a_certificate_for_another_name_or_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let tls = directory.path().to_str().unwrap();
    let (listen, http) = (free_udp().to_string(), free_tcp().to_string());
    let (code, text) = run(&node(&listen, &http, &["--memory", "--tls-dir", tls]));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("ca.pem"), "{text}");
    assert_eq!(run(&["tls", "init-ca", tls]).0, 0);
    assert_eq!(run(&["tls", "issue", tls, "--name", "n2"]).0, 0);
    for (from, to) in [("n2.pem", "n1.pem"), ("n2.key", "n1.key")] {
        std::fs::rename(directory.path().join(from), directory.path().join(to)).unwrap();
    }
    let (code, text) = run(&node(&listen, &http, &["--memory", "--tls-dir", tls]));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("n1") && text.contains("n2"), "{text}");
    let seeds = &["--memory", "--seed", &listen, "--bootstrap-expect", "1"];
    let (code, text) = run(&node(&listen, &http, seeds));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("--dev-tls"), "{text}");
}

#[test]
fn who_makes_the_cluster_must_be_named_where_the_first_seed_is_no_address() {
    let (listen, http) = (free_udp().to_string(), free_tcp().to_string());
    for seed in [["--seed", "localhost:7101"], ["--seed-file", "seeds"], ["--seed-srv", "_db._udp.corp"]] {
        let seeds = [&["--memory", "--bootstrap-expect", "3"], &seed[..]].concat();
        let (code, text) = run(&node(&listen, &http, &seeds));
        assert_eq!(code, 2, "{text}");
        assert!(text.contains("--bootstrap-node"), "{text}");
    }
}

#[test]
fn what_is_not_there_yet_says_so() {
    let not_yet: [&[&str]; 4] = [
        &["node", "--name", "n1", "--config", "file"],
        &["ctl", "backup", "file"],
        &["ctl", "restore", "file"],
        &["ctl", "events"],
    ];
    for arguments in not_yet {
        let (code, text) = run(arguments);
        assert_eq!(code, 1, "{arguments:?}");
        assert!(text.contains("not implemented yet"), "{text}");
    }
}

#[test]
fn a_cluster_of_one_serves_is_asked_by_ctl_and_stops_when_told() {
    let mut cluster = Cluster::start(1, true, &[]);
    let url = format!("http://{}", cluster.client(0).address);
    cluster.client(0).put_quota("q", "null");
    cluster.client(0).command("counter/a", r#"{"add": 1}"#).expect(200);
    for (command, word) in [
        (&["status"][..], "1 of 1"),
        (&["nodes"], "n1"),
        (&["groups"], "agents.quotas"),
        (&["shards"], "serving"),
        (&["shards", "agents"], "serving"),
        (&["agents"], "counter"),
        (&["agents", "q", "--module", "counter"], "counter"),
    ] {
        let arguments: Vec<&str> = ["ctl", "--http", &url].iter().chain(command).copied().collect();
        let (code, text) = run(&arguments);
        assert_eq!(code, 0, "{command:?}: {text}");
        assert!(text.contains(word), "{command:?}: {text}");
    }
    let (code, text) = run(&["ctl", "--http", &url, "--output", "json", "nodes"]);
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["nodes"][0]["name"], "n1");
    let (code, text) = run(&["ctl", "--http", &url, "remove", "n9"]);
    assert_eq!(code, 1);
    assert!(text.contains("node_not_found"), "{text}");

    cluster.nodes[0].process().signal("TERM");
    assert!(cluster.nodes[0].process().wait(Duration::from_secs(10)).success());
    let (code, text) = run(&["ctl", "--http", &url, "status"]);
    assert_eq!(code, 1);
    assert!(text.contains(&url), "{text}");
}

#[test]
fn a_second_node_of_one_name_is_refused_and_the_first_lives() {
    let cluster = Cluster::start(2, true, &[]);
    let first = &cluster.nodes[0];
    let (listen, http) = (free_udp().to_string(), free_tcp().to_string());
    let tls = first.argument_after("--dev-tls");
    for seed in [&cluster.nodes[0], &cluster.nodes[1]].map(|node| node.argument_after("--listen")) {
        let (code, text) = run(&node(&listen, &http, &["--memory", "--dev-tls", &tls, "--seed", &seed]));
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("n1"), "{text}");
        first.client.get("/readyz").expect(200);
    }
}
