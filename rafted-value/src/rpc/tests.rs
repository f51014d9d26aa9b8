//! Golden bytes, and every request and answer there and back.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::openraft_types::{Membership, StoredMembership, log_id, vote};

fn member() -> Member {
    let addresses = vec!["10.0.0.7:7000".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()];
    Member { name: "n1".into(), node: 4, zone: "z".into(), decided_at: 6, addresses }
}

fn meta() -> SnapshotMeta {
    let membership = Membership::new(vec![[1, 2].into()], BTreeMap::from([(1, member()), (2, member())])).unwrap();
    SnapshotMeta {
        last_log_id: Some(log_id(2, 9)),
        last_membership: StoredMembership::new(Some(log_id(1, 3)), membership),
    }
}

fn envelope() -> Envelope {
    Envelope {
        cluster: ClusterTag { id: 1, generation: 2 },
        incarnation: 3,
        from: ReplicaId::new(4),
        to: None,
        group: "g".into(),
    }
}

fn requests() -> Vec<RequestBody> {
    let vote = vote(7, 8, true);
    vec![
        RequestBody::Append(Append {
            vote,
            previous: None,
            commit: Some(log_id(1, 1)),
            entries: vec![(7, 2, Bytes::from_static(b"x")), (7, 3, Bytes::new())],
        }),
        RequestBody::Vote { vote, last: Some(log_id(6, 5)), transfer: true },
        RequestBody::PreVote { vote, last: None, transfer: false },
        RequestBody::TransferLeader { from: vote, to: 9, last: Some(log_id(6, 5)) },
        RequestBody::Snapshot { vote, meta: meta(), id: SnapshotId { id: 3, length: 4 }, offset: 2 },
        RequestBody::SnapshotOffer {
            vote,
            meta: meta(),
            id: SnapshotId { id: 3, length: 4 },
            form: SnapshotForm { format: 5, version: 6 },
        },
        RequestBody::Command(Bytes::from_static(b"command")),
        RequestBody::Query(Bytes::from_static(b"query")),
        RequestBody::QueryAny(Bytes::new()),
        RequestBody::QueryWithStaleness { max: std::time::Duration::from_millis(7), query: Bytes::from_static(b"q") },
        RequestBody::ReadIndex,
        RequestBody::Facts,
        RequestBody::Hello { founder: true },
        change(Change::Add { replica: ReplicaId::random(), member: member() }),
        change(Change::Describe { replica: ReplicaId::random(), member: member() }),
        change(Change::Remove { name: "n2".into() }),
        change(Change::ReplaceLeader { name: Some("n3".into()) }),
        change(Change::ReplaceLeader { name: None }),
        RequestBody::Seat { replica: 5 },
        RequestBody::Returned { node: 6, start: Start { boot: 7, number: 8 }, after: None, asker: member() },
        RequestBody::Returned {
            node: 6,
            start: Start { boot: 7, number: 8 },
            after: Some(Start { boot: 6, number: 9 }),
            asker: member(),
        },
        RequestBody::Introduce(member()),
    ]
}

fn change(change: Change) -> RequestBody {
    RequestBody::Change { change, within: Duration::from_millis(800) }
}

fn answers() -> Vec<Answer> {
    let id_of = |id| ReplicaId::new(id).unwrap();
    let (vote, id) = (vote(7, 8, false), Some(log_id(3, 4)));
    vec![
        Answer::AppendSuccess,
        Answer::AppendPartial(id),
        Answer::AppendConflict,
        Answer::AppendHigherVote(vote),
        Answer::Vote { vote, granted: true, last: id },
        Answer::TransferAccepted,
        Answer::TransferVoteChanged { expected: vote, actual: vote },
        Answer::TransferLogNotFlushed { expected: id, actual: None },
        Answer::Snapshot { vote },
        Answer::SnapshotAt { offset: 6 },
        Answer::SnapshotBusy,
        Answer::SnapshotUnreadable { reason: "r".into() },
        Answer::Reply(Bytes::from_static(b"reply")),
        Answer::Hello { replica: 1, node: 2, incarnation: 3, initialized: true },
        Answer::Done,
        Answer::WrongReplica,
        Answer::NotLeader { leader: Some((3, member())) },
        Answer::NotLeader { leader: None },
        Answer::NotHappened(NotHappened::NoLeader { group: "g".into(), waited: Duration::from_millis(5) }),
        Answer::NotHappened(NotHappened::TooLarge { bytes: 5, max_bytes: 4 }),
        Answer::NotHappened(NotHappened::Overloaded { group: "g".into(), queued: 3 }),
        Answer::NotHappened(NotHappened::Stopped { group: "g".into(), reason: "r".into() }),
        Answer::NotHappened(NotHappened::Malformed("m".into())),
        Answer::NotHappened(NotHappened::DiskFull { group: "g".into() }),
        Answer::Unknown(UnknownOutcome::Timeout(Duration::from_secs(1))),
        Answer::Facts { newest: 3, wall: crate::value::LogTime::from_millis(4) },
        Answer::ReadIndex { entries: 5 },
        Answer::NotHappened(NotHappened::TooFarAhead {
            group: "g".into(),
            log_time: crate::value::LogTime::from_millis(1),
            not_after: crate::value::LogTime::from_millis(2),
        }),
        Answer::NotHappened(NotHappened::VersionNotReadable {
            group: "g".into(),
            version: 2,
            readable: Some(1),
            lagging: vec!["n1".into(), "n2".into()],
        }),
        Answer::NotHappened(NotHappened::Stale {
            group: "g".into(),
            max: std::time::Duration::from_millis(1),
            waited: std::time::Duration::from_millis(2),
        }),
        Answer::Unknown(UnknownOutcome::Expired { log_time: None }),
        Answer::Unknown(UnknownOutcome::Expired { log_time: Some(crate::value::LogTime::from_millis(9)) }),
        Answer::Unknown(UnknownOutcome::ReplyGone),
        Answer::Unknown(UnknownOutcome::Interrupted("i".into())),
        Answer::Failed("f".into()),
        Answer::NotYet,
        Answer::Ended { incarnation: 4 },
        Answer::Seat { member: true },
        Answer::Seen(Seen { replica: id_of(1), start: None, members: crate::status::Members::default(), told: None }),
        Answer::Seen(Seen {
            replica: id_of(2),
            start: Some(Start { boot: 3, number: 4 }),
            members: crate::status::Members {
                replicas: BTreeMap::from([(id_of(3), member())]),
                voters: vec![[id_of(4), id_of(5)].into(), [id_of(6)].into()],
                position: Some(crate::status::LogPosition { term: 5, index: 6 }),
                committed: true,
            },
            told: Some(crate::verdict::ToldLeader { term: 5, entries: 7 }),
        }),
    ]
    .into_iter()
    .chain(refusals().into_iter().map(Answer::NotChanged))
    .collect()
}

fn refusals() -> Vec<MembershipError> {
    let name = || "n1".to_owned();
    vec![
        MembershipError::AlreadyJoined { name: name() },
        MembershipError::NotMember { name: name(), members: vec!["n2".into(), "n3".into()] },
        MembershipError::NotVoter { name: name() },
        MembershipError::ChangeInProgress,
        MembershipError::WouldBreakQuorum { answering: 1, needed: 2, voters: 3 },
        MembershipError::IsLeader { name: name() },
        MembershipError::Unresponsive { name: name(), silent_for: Some(Duration::from_secs(2)) },
        MembershipError::Unresponsive { name: name(), silent_for: None },
        MembershipError::Behind { name: name(), entries: 5_000 },
        MembershipError::Superseded,
        MembershipError::LedByAnother { name: name() },
        MembershipError::NotHappened(NotHappened::DiskFull { group: "g".into() }),
        MembershipError::Unknown(UnknownOutcome::Expired { log_time: None }),
    ]
}

#[test]
fn the_bytes_of_a_change_are_these() {
    let addresses = vec!["127.0.0.1:7001".parse().unwrap(), "[::1]:80".parse().unwrap()];
    let member = Member { name: "n4".into(), node: 5, zone: String::new(), decided_at: 6, addresses };
    let body = change(Change::Add { replica: ReplicaId::new(7).unwrap(), member });
    let bytes = Request { envelope: envelope(), body }.encode();
    let mut golden = vec![10, 0x20, 3, 0, 0, 0, 0, 0, 0, 1];
    golden.extend(7_u64.to_le_bytes());
    golden.extend([2, 0, 0, 0, b'n', b'4']);
    golden.extend(5_u64.to_le_bytes());
    golden.extend([0, 0, 0, 0]);
    golden.extend(6_u64.to_le_bytes());
    golden.extend([2, 0, 0, 0, 4, 1, 0, 0, 127, 0x59, 0x1B, 0, 0]);
    golden.extend([6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 80, 0, 0, 0]);
    assert_eq!(bytes[bytes.len() - golden.len()..], golden);
}

#[test]
fn the_bytes_of_a_request_are_these() {
    let body = RequestBody::Append(Append {
        vote: vote(7, 8, true),
        previous: None,
        commit: Some(log_id(1, 2)),
        entries: vec![(7, 3, Bytes::from_static(b"xy"))],
    });
    let bytes = Request { envelope: envelope(), body }.encode();
    let mut golden = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for field in [2_u64, 3, 4, 0] {
        golden.extend(field.to_le_bytes());
    }
    golden.extend([1, 0, 0, 0, b'g', 1]);
    golden.extend(7_u64.to_le_bytes());
    golden.extend(8_u64.to_le_bytes());
    golden.extend([1, 0, 1]);
    golden.extend(1_u64.to_le_bytes());
    golden.extend(2_u64.to_le_bytes());
    golden.extend([1, 0, 0, 0]);
    golden.extend(7_u64.to_le_bytes());
    golden.extend(3_u64.to_le_bytes());
    golden.extend([2, 0, 0, 0, b'x', b'y']);
    assert_eq!(bytes, golden);
    assert_eq!(peek(&bytes).unwrap(), envelope());
    assert!(is_to_anyone(&bytes));
    let exact = Envelope { to: ReplicaId::new(1 << 63), ..envelope() };
    assert!(!is_to_anyone(&Request { envelope: exact, body: RequestBody::Query(Bytes::new()) }.encode()));
}

#[test]
fn the_bytes_of_an_offered_snapshot_and_of_its_answers_are_these() {
    let id = SnapshotId { id: 3, length: 4 };
    let mut writer = Writer::default();
    let (vote, form) = (vote(7, 8, true), SnapshotForm { format: 5, version: 6 });
    RequestBody::SnapshotOffer { vote, meta: SnapshotMeta::default(), id, form }.write(&mut writer);
    let mut golden = vec![11];
    golden.extend(7_u64.to_le_bytes());
    golden.extend(8_u64.to_le_bytes());
    // The vote is committed; no last entry, no membership entry, and nobody in it.
    golden.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend(3_u64.to_le_bytes());
    golden.extend(4_u64.to_le_bytes());
    golden.extend([5, 6, 0, 0, 0]);
    assert_eq!(writer.into_bytes(), golden);
    assert_eq!(Answer::SnapshotAt { offset: 258 }.encode()[..], [1, 18, 2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Answer::SnapshotBusy.encode()[..], [1, 19]);
    let unreadable = Answer::SnapshotUnreadable { reason: "r".into() };
    assert_eq!(unreadable.encode()[..], [1, 35, 1, 0, 0, 0, b'r']);
}

#[test]
fn the_bytes_of_every_answer_are_these() {
    let hex = |bytes: Bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines: String = answers().into_iter().map(|answer| hex(answer.encode()) + "\n").collect();
    expect_test::expect![[r#"
        0101
        01020103000000000000000400000000000000
        0103
        01040700000000000000080000000000000000
        01050700000000000000080000000000000000010103000000000000000400000000000000
        0106
        010707000000000000000800000000000000000700000000000000080000000000000000
        0108010300000000000000040000000000000000
        01090700000000000000080000000000000000
        01120600000000000000
        0113
        01230100000072
        010a7265706c79
        010b01000000000000000200000000000000030000000000000001
        010c
        010d
        010e010300000000000000020000006e310400000000000000010000007a060000000000000002000000040700000a581b000006010000000000000000000000b80d0120bb010000
        010e00
        010f0101000000670500000000000000
        010f0205000000000000000400000000000000
        010f0301000000670300000000000000
        010f0401000000670100000072
        010f05010000006d
        010f060100000067
        011001e803000000000000
        0115030000000400000000000000
        01140500000000000000
        010f16010000006701000000000000000200000000000000
        010f15010000006702000000010100000002000000020000006e31020000006e32
        010f14010000006701000000000000000200000000000000
        01100200
        011002010900000000000000
        011004
        0110030100000069
        01110100000066
        011f
        01210400000000000000
        012001
        01220100000000000000000000000000000000000000
        0122020000000000000001030000000000000004000000000000000105000000000000000700000000000000010500000000000000060000000000000001020000000200000004000000000000000500000000000000010000000600000000000000010000000300000000000000020000006e310400000000000000010000007a060000000000000002000000040700000a581b000006010000000000000000000000b80d0120bb010000
        011e01020000006e31
        011e02020000006e3102000000020000006e32020000006e33
        011e03020000006e31
        011e04
        011e05010000000200000003000000
        011e06020000006e31
        011e07020000006e3101d007000000000000
        011e07020000006e3100
        011e0c020000006e318813000000000000
        011e08
        011e09020000006e31
        011e0a060100000067
        011e0b0200
    "#]].assert_eq(&lines);
}

#[test]
fn every_request_and_answer_comes_back_as_it_was() {
    for body in requests() {
        let request = Request { envelope: envelope(), body };
        assert_eq!(Request::decode(request.encode()).unwrap(), request);
    }
    for answer in answers() {
        assert_eq!(Answer::decode(answer.encode()).unwrap(), answer);
    }
}

#[test]
fn cut_and_changed_bytes_never_panic_and_cost_no_more_memory_than_they_are() {
    let encoded = requests().into_iter().map(|body| Request { envelope: envelope(), body }.encode());
    for bytes in encoded {
        for at in 0..bytes.len() {
            let _ = Request::decode(bytes.slice(..at));
            let mut changed = bytes.to_vec();
            changed[at] ^= 0xFF;
            let _ = Request::decode(changed.into());
        }
    }
    for bytes in answers().iter().map(Answer::encode) {
        for at in 0..bytes.len() {
            let _ = Answer::decode(bytes.slice(..at));
            let mut changed = bytes.to_vec();
            changed[at] ^= 0xFF;
            let _ = Answer::decode(changed.into());
        }
    }
}

#[test]
fn an_unknown_format_is_named() {
    let mut bytes = Request { envelope: envelope(), body: RequestBody::Hello { founder: false } }.encode().to_vec();
    bytes[0] = 2;
    assert!(Request::decode(bytes.into()).unwrap_err().to_string().contains("unknown format"));
}
