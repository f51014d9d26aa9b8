//! A node whose disk fails under it.

use std::process::Stdio;
use std::time::Duration;

use crate::support::{Process, free_tcp, free_udp};

const PATIENCE: Duration = Duration::from_secs(60);

/// The system's limit of a file's length is a disk that fails: it is not a full one, which a node waits for.
#[test]
fn a_node_whose_log_cannot_be_written_stops_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let errors = directory.path().join("errors");
    let data = directory.path().join("data");
    let (listen, http) = (free_udp().to_string(), free_tcp().to_string());
    let mut command = std::process::Command::new("sh");
    // Above the limit of 4 MiB a write is an error; the signal that comes with it is ignored. The log prepares its next
    // segments, 64 MiB each, with the writes that a node makes as it starts and while it runs.
    command.args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_dist-agent"), "node"]);
    command.args(["--name", "n1", "--listen", &listen, "--http", &http, "--data-dir", data.to_str().unwrap()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&errors).unwrap());
    let code = Process::spawn(&mut command).wait(PATIENCE).code();
    let told = std::fs::read_to_string(&errors).unwrap();
    assert_eq!(code, Some(1), "{told}");
    let last = told.lines().rfind(|line| line.starts_with("dist-agent: ")).unwrap_or_default();
    assert!(last.contains("log") && last.contains("cannot"), "{told}");
    assert!(!told.contains("panicked"), "{told}");
}
