#![doc = include_str!("../README.md")]

mod builder;
mod fleet;
mod group;
mod lifecycle;
mod reconciler;
mod founding;
mod monitor;
mod service;
mod cleanup;
mod registration;
mod hibernation;
mod following;
mod joining;
mod node;
mod router;
mod routes;
mod carrier;
mod peers;
mod waking;
mod leaders;
mod replicas;
mod gate;
mod memory;
mod seeds;
mod telling;
mod discovery;
mod view;
mod message;
mod adjustment;
mod bootstrap;
mod cluster;
mod placement;
mod info;
mod event;
mod config;
mod error;

pub use crate::builder::FleetBuilder;
pub use crate::config::{ConfigError, FleetConfig};
pub use crate::discovery::{
    Discovery, DiscoveryError, DnsError, Finding, Found, MAX_SEEDS, Seed, SeedError, SeedFile, SeedList,
};
pub use crate::error::{FleetError, GroupError, NodeError, NodeFailure};
pub use crate::event::FleetEvent;
pub use crate::fleet::{Fleet, MAX_GROUP_NAME_BYTES};
pub use crate::group::{Group, GroupCommand, GroupQuery, LedReplica};
pub use crate::info::{GroupInfo, GroupState, LedGroup, NodeInfo, NodeState};

pub use {batched_comm, rafted_value};
