//! What endpoints do to each other, over real sockets on loopback and in a simulated network.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

mod batching;
mod bulk;
mod closing;
mod examples;
mod lifecycle;
mod limits;
mod liveness;
mod messages;
mod metrics;
mod order;
mod refusals;
mod rotation;
mod sending;
mod watches;
