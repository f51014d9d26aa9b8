//! The node as a program, over HTTP, and the agents as a library.
#![allow(clippy::unwrap_used)]

mod support;

mod agents_in_process;
mod bad_starts;
mod cluster_over_http;
mod errors_over_http;
mod joining;
#[cfg(unix)]
mod failing_disk;
mod recovery_over_http;
mod stopping;
mod wal_commands;
