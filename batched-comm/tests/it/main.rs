//! What endpoints do to each other, over real sockets on loopback.

mod support;

mod bulk;
mod lifecycle;
mod messages;
mod refusals;
