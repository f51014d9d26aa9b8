//! The command line, as people and CI call it.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    process::{Command, Output},
};

fn xtask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).output().unwrap()
}

fn error_of(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn wrong_use_exits_with_2_and_says_what_to_do() {
    let cases: [(&[&str], &str); 9] = [
        (&[], "Usage"),
        (&["clusters"], "cluster"),
        (&["cluster", "--nodez", "3"], "--nodes"),
        (&["cluster", "--nodes", "0"], "1..=99"),
        (&["cluster", "--plant-loss"], "--demo"),
        (&["cluster", "--demo", "--nodes", "2"], "--nodes 3"),
        (&["cluster", "--script", "/does/not/exist"], "cannot read the script"),
        (&["chaos", "--nodes", "3"], "4..=99"),
        (&["bench", "dist-agent", "--json", "f"], "not yet"),
    ];
    for (arguments, expected) in cases {
        let output = xtask(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(error_of(&output).contains(expected), "{arguments:?}: {}", error_of(&output));
    }
}

#[test]
fn a_script_with_a_mistake_is_told_by_line_before_anything_is_built() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    fs::write(&script, "# a comment\nfill 10\nfill\n").unwrap();
    let output = xtask(&["cluster", "--script", script.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let error = error_of(&output);
    assert!(error.contains("script:3: ") && error.contains("fill N"), "{error}");
}

#[test]
fn a_port_in_use_is_told_before_anything_is_built() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = xtask(&["cluster", "--nodes", "1", "--base-port", "0", "--http-port", &port]);
    assert_eq!(output.status.code(), Some(1));
    let error = error_of(&output);
    assert!(error.contains(&port) && error.contains("--http-port 0"), "{error}");
}
