//! Several nodes in one process, over QUIC on loopback.

#![allow(clippy::unwrap_used)]

mod harness;

mod bad_input;
mod bootstrap;
mod draining;
mod failures;
mod groups;
mod offline;
mod recovery;
mod removal;
mod returning;
mod seeds;
mod hibernation;
