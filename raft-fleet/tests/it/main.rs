//! Several nodes in one process, over QUIC on loopback.

mod harness;

mod bad_input;
mod bootstrap;
mod failures;
mod groups;
