#![doc = include_str!("../README.md")]

mod link;
mod mailbox;
mod outbox;
mod message;
mod connection;
mod calls;
mod batcher;
mod hello;
mod frame;
mod tls;
mod stats;
mod config;
mod error;
mod name;
