//! The node: its parts, started in order and stopped in reverse, and the program around it.
//!
//! ```text
//!   HTTP port --> fleet --> keyspaces --> (part of the cluster) --> agents --> serving
//!   signal: not ready --> HTTP finishes what is open --> agents --> keyspaces --> fleet
//! ```

pub mod modules;
mod program;
mod running;
mod http;
mod serving;
mod dashboard;
mod overview;
mod ctl;
mod cluster_recovery;
mod wal;
mod table;
mod settings;
mod codec;
mod blob;
mod json;

use std::process::ExitCode;
use std::sync::Arc;

use crate::registry::{RegisterError, Registry};

use self::codec::Codecs;
pub use self::codec::HttpAgent;
pub use self::json::Json;

/// The program around a node of one's own agents.
///
/// ```no_run
/// use dist_agent::{Node, modules::Counter};
///
/// fn main() -> std::process::ExitCode {
///     Node::builder().agent::<Counter>().main()
/// }
/// ```
#[derive(Debug)]
pub struct Node {}

/// Collects the modules of a node.
#[derive(Default)]
pub struct NodeBuilder {
    registry: Registry,
    codecs: Codecs,
    /// The first module that could not be registered.
    refused: Option<RegisterError>,
}

impl Node {
    /// A node without modules.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }
}

impl NodeBuilder {
    /// Adds a module. Every node of a cluster needs the same.
    #[must_use]
    pub fn agent<A: HttpAgent>(mut self) -> Self {
        match self.registry.register::<A>() {
            Ok(()) => self.codecs.insert::<A>(),
            Err(error) => {
                self.refused.get_or_insert(error);
            }
        }
        self
    }

    /// Adds the modules that the project's own binary carries: counter, register, log, lease, timer.
    #[must_use]
    pub fn built_in_modules(self) -> Self {
        self.agent::<modules::Counter>()
            .agent::<modules::Register>()
            .agent::<modules::Log>()
            .agent::<modules::Lease>()
            .agent::<modules::Timer>()
    }

    /// Is the program: reads its command line, does what it says, and answers how it ended. 0: well; 1: it failed;
    /// 2: the command line is wrong.
    pub fn main(self) -> ExitCode {
        program::main(self)
    }

    fn parts(self) -> Result<(Arc<Registry>, Codecs), RegisterError> {
        match self.refused {
            Some(error) => Err(error),
            None => Ok((Arc::new(self.registry), self.codecs)),
        }
    }
}

impl std::fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBuilder").field("modules", &self.registry).finish()
    }
}
