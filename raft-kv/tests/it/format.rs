//! The archived forms, which snapshots and logs hold: their bytes do not change without a new version.

use std::fmt::Write as _;

use expect_test::expect;
use raft_kv::{
    Effect, HashRange, Keyspaces, KeyspacesCommand, Once, Policy, Precondition, Run, Shard, ShardCommand, ShardId, Step,
};
use rafted_value::{Context, LogTime, Value, decode, encode};

use crate::values::{List, ListCommand};

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for half in line.chunks(4) {
            for byte in half {
                write!(text, "{byte:02x}").unwrap();
            }
            text.push(' ');
        }
        text = format!("{}\n", text.trim_end());
    }
    text
}

fn run(serial: u64, command: ListCommand) -> ShardCommand<ListCommand> {
    let once = Some(Once { client: "client".into(), serial, fingerprint: 0x0102_0304_0506_0708 });
    let key = "a key of some length".into();
    ShardCommand::Run(Run { key, precondition: Precondition::VersionIs(9), once, command })
}

fn shard() -> Shard<List> {
    let mut shard = Shard::default();
    let id = ShardId { keyspace: 5, shard: 2 };
    shard.command(ShardCommand::Take(Step::Serve { id, range: HashRange::ALL }));
    let context = |index| Context::new(LogTime::from_millis(1_000 + index), index, None);
    for index in 0..3 {
        let command = ListCommand::Append(index as u32);
        let run = Run { key: format!("k{index}"), precondition: Precondition::None, once: None, command };
        shard.command_in(&context(index), ShardCommand::Run(run));
    }
    shard.command_in(&context(7), run(1, ListCommand::Look));
    shard
}

#[test]
fn a_command_has_these_bytes() {
    let command = run(77, ListCommand::Append(0xAABB_CCDD));
    let bytes = encode(&command).unwrap();
    expect![[r#"
        61206b65 79206f66 20736f6d 65206c65 6e677468 00000000 00000000 00000000
        94000000 e0ffffff 03000000 00000000 09000000 00000000 01000000 00000000
        636c6965 6e74ffff 4d000000 00000000 08070605 04030201 00000000 ddccbbaa
        00000000 00000000 00000000 00000000
    "#]]
    .assert_eq(&hex(&bytes));
    assert_eq!(decode::<ShardCommand<ListCommand>>(&bytes).unwrap(), command);
}

#[test]
fn a_shard_has_these_bytes() {
    assert_eq!(Shard::<List>::VERSION, 0x1_0001);
    let bytes = encode(&shard()).unwrap();
    expect![[r#"
        00000000 01000000 02000000 00000000 6b30ffff ffffffff e8ffffff 01000000
        00000000 00000000 00000000 00000000 00a00f00 00000000 06000000 00000000
        6b31ffff ffffffff bcffffff 01000000 00000000 00000000 00000000 00000000
        00a40f00 00000000 06000000 00000000 6b32ffff ffffffff 90ffffff 01000000
        00000000 00000000 00000000 00000000 00a80f00 00000000 06000000 00000000
        61206b65 79206f66 20736f6d 65206c65 6e677468 636c6965 6e740000 00000000
        01000000 00000000 ef030000 00000000 08070605 04030201 02000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 bcffffff 06000000
        ef030000 00000000 b8ffffff 01000000 94000000 90ffffff e0ffffff 01000000
        01000000 00000000 05000000 00000000 02000000 00000000 01000000 00000000
        ffffffff 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00a80f00 00000000 03000000 00000000 80feffff 03000000 78ffffff 01000000
    "#]]
    .assert_eq(&hex(&bytes));
}

#[test]
fn the_keyspaces_have_these_bytes() {
    assert_eq!(Keyspaces::VERSION, 1);
    let mut keyspaces = Keyspaces::default();
    let policy = Policy::new().with_shards(2..=2).unwrap();
    let create = KeyspacesCommand::Create { name: "one".into(), type_name: "list".into(), policy };
    keyspaces.command_in(&Context::new(LogTime::default(), 4, None), create);
    keyspaces.command(KeyspacesCommand::Done { keyspace: 4, effect: Effect::CreateGroup(0) });
    expect![[r#"
        00000000 00000000 00000000 00000000 01000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 ffffff7f 00000080 ffffffff
        00000000 00000000 00000000 00000000 00000000 00000000 02000000 00000000
        00000000 00000000 01000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 01000000 00000000 00000000 00000000
        04000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 6f6e65ff ffffffff 6c697374 ffffffff 02000000 02000000
        40420f00 00000000 00000010 00000000 10270000 00000000 9a999999 9999d93f
        60ea0000 00000000 03000000 00000000 f0feffff 02000000 00000000 00000000
        40ffffff 01000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
        00000000 00000000 01000000 00000000 01000000 00000000 04000000 00000000
        d8fdffff 01000000
    "#]]
    .assert_eq(&hex(&encode(&keyspaces).unwrap()));
}

#[test]
fn bytes_that_nobody_wrote_are_an_error() {
    let bytes = encode(&shard()).unwrap();
    for length in 0..bytes.len() {
        assert!(decode::<Shard<List>>(&bytes[..length]).is_err(), "cut at {length}");
    }
    // Some bytes are the user's, and any value of theirs will do: it must only not panic.
    for at in 0..bytes.len() {
        let mut wrong = bytes.to_vec();
        wrong[at] ^= 0xFF;
        let _ = decode::<Shard<List>>(&wrong);
    }
}
