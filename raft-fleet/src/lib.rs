//! raft-fleet
