//! Integration tests: groups over several nodes in one process.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod cluster;
mod containment;
mod exactly_once;
mod failures;
mod group;
mod hooks;
mod hub;
mod identity;
mod logs;
mod members;
mod membership;
mod metrics;
mod queue;
mod quic;
mod recorder;
mod recovery;
mod rolled_back;
mod settings;
mod sharing;
mod site;
mod sleeping;
mod snapshots;
mod stale;
mod staleness;
mod telling;
mod versions;
