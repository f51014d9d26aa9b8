//! What endpoints do to each other, over real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

mod bulk;
mod lifecycle;
mod messages;
mod refusals;
mod rotation;
mod sending;
mod watches;
