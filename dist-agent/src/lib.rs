//! dist-agent
