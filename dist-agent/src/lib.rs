#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// `messages!` names this crate by its name, also in here.
extern crate self as dist_agent;

#[macro_use]
mod macros;

mod grants;
mod agent_state;
mod registry;
mod quota_group;
mod behaviour;
mod on_tick;
mod config;
mod error;
mod id;

pub use crate::behaviour::{Agent, Moment, Outcome};
pub use crate::config::{AgentsConfig, ConfigError, DEFAULT_TIMEOUT};
pub use crate::error::{AgentError, IdempotencyKey, IdempotencyKeyError, MAX_CLIENT_BYTES};
pub use crate::id::{AgentId, IdError, MAX_KEY_BYTES, MAX_NAME_BYTES, check_name};
pub use crate::on_tick::OnTick;
pub use crate::registry::{RegisterError, Registry};
pub use rafted_value::{LogTime, UpgradeError, Wire};

#[doc(hidden)]
pub use rafted_value;
#[cfg(feature = "node")]
#[doc(hidden)]
pub use serde;
