//! Integration tests: groups over several nodes in one process.

mod cluster;
mod group;
mod hub;
mod quic;
