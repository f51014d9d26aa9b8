//! The files that have no clock, I/O, randomness or `async` outside their tests: by crate, below its `src`.

/// Add a file when it is made and means to be pure; take it off when it goes.
pub const PURE_FILES: &[(&str, &[&str])] = &[
    (
        "batched-comm",
        &[
            "message.rs",
            "line.rs",
            "connection.rs",
            "closing.rs",
            "calls.rs",
            "batcher.rs",
            "hello.rs",
            "frame.rs",
            "compression.rs",
            "stats.rs",
            "config.rs",
            "error.rs",
            "name.rs",
        ],
    ),
    (
        "rafted-value",
        &[
            "gathering.rs",
            "openraft_types.rs",
            "change.rs",
            "verdict.rs",
            "starts.rs",
            "recovery.rs",
            "value.rs",
            "config.rs",
            "error.rs",
            "wal/record.rs",
            "wal/index.rs",
        ],
    ),
    ("raft-fleet", &["cluster.rs", "adjustment.rs", "placement.rs", "config.rs", "error.rs"]),
    (
        "raft-kv",
        &[
            "keyspaces.rs",
            "workflow.rs",
            "shard.rs",
            "shard/phase.rs",
            "shard/keys.rs",
            "shard/clients.rs",
            "shard/message.rs",
            "shard/archive.rs",
            "policy.rs",
            "keyed_value.rs",
            "hash.rs",
            "error.rs",
        ],
    ),
    ("quota", &["bucket.rs", "ledger.rs", "error.rs", "reservation.rs"]),
    (
        "dist-agent",
        &["agent_state.rs", "quota_group.rs", "behaviour.rs", "on_tick.rs", "id.rs", "config.rs", "error.rs"],
    ),
    (
        "xtask",
        &[
            "cluster/command.rs",
            "cluster/record.rs",
            "cluster/table.rs",
            "cluster/view.rs",
            "tidy/modules.rs",
            "tidy/rules.rs",
            "tidy/source.rs",
        ],
    ),
];
