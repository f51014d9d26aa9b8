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
mod draining;
mod registration;
mod hibernation;
mod recovering;
mod survey;
mod lookout;
mod following;
mod joining;
mod node;
mod router;
mod routes;
mod carrier;
mod peers;
mod waking;
mod leaderless;
mod leaders;
mod replicas;
mod gate;
mod offline;
mod memory;
mod seeds;
mod telling;
mod discovery;
mod view;
mod message;
mod adjustment;
mod recovery;
mod bootstrap;
mod cluster;
mod report;
mod written;
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
pub use crate::error::{FleetError, GroupError, NodeError, NodeFailure, PlanUnreadable, RecoverError};
pub use crate::event::FleetEvent;
pub use crate::fleet::{Fleet, MAX_GROUP_NAME_BYTES};
pub use crate::group::{Group, GroupCommand, GroupQuery, LedReplica};
pub use crate::info::{DrainProgress, GroupInfo, GroupState, LedGroup, NodeInfo, NodeState};
pub use crate::offline::{
    ClusterRecovered, ClusterRecoveryPlan, ClusterReport, OfflineError, cluster_report, plan_cluster_recovery,
    recover_cluster,
};
pub use crate::recovery::{
    Absence, FencedReplica, GroupRecovery, HopelessGroup, LeaderlessGroup, MAX_PLANNED_GROUPS, RecoveryOutcome,
    RecoveryPlan,
};

pub use {batched_comm, rafted_value};
