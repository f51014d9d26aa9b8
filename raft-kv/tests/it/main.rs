//! What a user of the crate relies on.
#![allow(clippy::unwrap_used)]

mod format;
mod nodes;
mod shard_model;

mod harness;
mod values;
