//! Many Raft groups, placed on a changing set of nodes.

mod adjustment;
mod cluster;
mod placement;
