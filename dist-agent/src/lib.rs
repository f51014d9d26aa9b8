#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// `messages!` names this crate by its name, also in here.
extern crate self as dist_agent;

#[macro_use]
mod macros;

#[cfg(feature = "node")]
mod node;
mod agents;
mod ticker;
mod quota_reporter;
mod quotas;
mod quota_cache;
mod recent;
mod grants;
mod agent_state;
mod registry;
mod quota_group;
mod behaviour;
mod on_tick;
mod config;
mod error;
mod id;

pub use crate::agent_state::AGENTS_KEYSPACE;
pub use crate::agents::{AgentCommandRequest, AgentHandle, AgentPage, AgentQueryRequest, Agents};
pub use crate::behaviour::{Agent, Moment, Outcome};
pub use crate::config::{AgentsConfig, ConfigError, DEFAULT_TIMEOUT};
pub use crate::error::{AgentError, IdempotencyKey, IdempotencyKeyError, MAX_CLIENT_BYTES};
pub use crate::id::{AgentId, IdError, MAX_KEY_BYTES, MAX_NAME_BYTES, check_name};
#[cfg(feature = "node")]
pub use crate::node::{HttpAgent, Json, Node, NodeBuilder, modules};
pub use crate::on_tick::OnTick;
pub use crate::quotas::{Quota, Quotas};
pub use crate::registry::{RegisterError, Registry};
pub use rafted_value::{LogTime, UpgradeError, Wire};

#[doc(hidden)]
pub use rafted_value;
#[cfg(feature = "node")]
#[doc(hidden)]
pub use serde;

/// The repository's page: its example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct RepositoryReadme;
