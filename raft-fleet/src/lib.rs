//! Many Raft groups, placed on a changing set of nodes.

mod adjustment;
mod bootstrap;
mod cluster;
mod placement;
