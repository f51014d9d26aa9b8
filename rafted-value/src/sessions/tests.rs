//! The rules of the header, and a model that is checked against them.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

fn id(serial: u64, low_water: u64, not_after: u64) -> CommandId {
    CommandId { session: SessionId(9), serial, low_water, not_after: at(not_after) }
}

fn at(millis: u64) -> LogTime {
    LogTime::from_millis(millis)
}

fn run(sessions: &mut Sessions, id: CommandId, now: u64) -> Verdict {
    sessions.expire(at(now));
    let verdict = sessions.judge(&id, at(now));
    if verdict == Verdict::Run {
        sessions.record(&id, 0, Bytes::from(format!("reply {}", id.serial)));
    }
    verdict
}

fn record_count(sessions: &Sessions) -> usize {
    sessions.records.len()
}

/// What a snapshot says of them: all but when a session is looked at again.
impl PartialEq for Sessions {
    fn eq(&self, other: &Self) -> bool {
        (&self.sessions, &self.records, self.reply_bytes, self.version_in_use, self.expiry.len())
            == (&other.sessions, &other.records, other.reply_bytes, other.version_in_use, other.expiry.len())
    }
}

/// As a snapshot brings them to another replica.
fn through_a_snapshot(sessions: &Sessions) -> Sessions {
    let mut again = Sessions::default();
    sessions.write_pieces(|piece| again.read_piece(piece).map_err(io::Error::other)).unwrap();
    Sessions { version_in_use: sessions.version_in_use, ..again }
}

#[test]
fn the_bytes_of_a_snapshots_piece_are_these() {
    let mut sessions = Sessions::default();
    run(&mut sessions, CommandId { session: SessionId(0x0102), ..id(3, 2, 0x0405) }, 1);
    sessions.record(&CommandId { session: SessionId(0x0607), ..id(8, 0, 9) }, 0x0A0B, Bytes::from_static(b"xy"));
    let mut bytes = Vec::new();
    let put = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    sessions.write_pieces(put).unwrap();
    let hex: Vec<String> = bytes.chunks(16).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    expect_test::expect![[r#"
        02010000000000000000000000000000
        02000000000000000504000000000000
        01000000030000000000000005040000
        00000000000000000107000000726570
        6c792033070600000000000000000000
        00000000000000000000000009000000
        00000000010000000800000000000000
        09000000000000000b0a000001020000
        007879
    "#]]
    .assert_eq(&(hex.join("\n") + "\n"));
    let mut again = Sessions::default();
    again.read_piece(&bytes).unwrap();
    assert_eq!(again, sessions);
}

#[test]
fn a_repeated_serial_gets_the_first_reply_however_many_came_between() {
    let mut sessions = Sessions::default();
    for serial in 1..=500 {
        assert_eq!(run(&mut sessions, id(serial, 0, 100), 1), Verdict::Run);
    }
    for serial in 1..=500 {
        let reply = Bytes::from(format!("reply {serial}"));
        assert_eq!(run(&mut sessions, id(serial, 0, 100), 2), Verdict::Ran(Some(reply)));
    }
}

#[test]
fn nothing_at_or_below_the_low_water_mark_runs() {
    let mut sessions = Sessions::default();
    run(&mut sessions, id(1, 0, 100), 1);
    run(&mut sessions, id(5, 4, 100), 1);
    for serial in 1..=4 {
        assert_eq!(run(&mut sessions, id(serial, 0, 100), 1), Verdict::Expired, "serial {serial}");
    }
    assert_eq!(record_count(&sessions), 1, "closed records are forgotten");
}

#[test]
fn a_command_past_its_time_is_refused_and_its_record_forgotten() {
    let mut sessions = Sessions::default();
    assert_eq!(run(&mut sessions, id(1, 0, 100), 101), Verdict::Expired);
    assert_eq!(run(&mut sessions, id(2, 0, 100), 100), Verdict::Run);
    sessions.expire(at(101));
    assert_eq!(sessions, Sessions::default());
    assert_eq!(run(&mut sessions, id(2, 0, 100), 101), Verdict::Expired, "never run a second time");
}

#[test]
fn the_low_water_mark_outlives_its_records() {
    let mut sessions = Sessions::default();
    run(&mut sessions, id(1, 0, 500), 1);
    run(&mut sessions, id(2, 1, 100), 1);
    assert_eq!(run(&mut sessions, id(1, 0, 500), 102), Verdict::Expired, "it ran before");
}

#[test]
fn a_clock_that_is_far_ahead_is_told_so_and_leaves_nothing_behind() {
    let ahead = u64::try_from(MAX_AHEAD.as_millis()).unwrap();
    let mut sessions = Sessions::default();
    assert_eq!(run(&mut sessions, id(1, 0, 1_000 + ahead + 1), 1_000), Verdict::TooFarAhead);
    assert_eq!(sessions, Sessions::default());
    assert_eq!(run(&mut sessions, id(1, 0, 1_000 + ahead), 1_000), Verdict::Run);
    let before_the_first_stamp = run(&mut Sessions::default(), id(1, 0, u64::MAX), 0);
    assert_eq!(before_the_first_stamp, Verdict::Run, "the group knows no time yet");
}

#[test]
fn replies_and_records_are_kept_up_to_their_bounds() {
    let mut sessions = Sessions::default();
    let half = Bytes::from(vec![0; MAX_KEPT_REPLY_BYTES / 2]);
    for serial in 1..=3 {
        sessions.record(&id(serial, 0, 100), 0, half.clone());
    }
    let kept = |sessions: &mut Sessions, serial| sessions.judge(&id(serial, 0, 100), at(1));
    assert_eq!(kept(&mut sessions, 2), Verdict::Ran(Some(half)));
    assert_eq!(kept(&mut sessions, 3), Verdict::Ran(None), "it ran, and that is known");
    assert_eq!(kept(&mut through_a_snapshot(&sessions), 3), Verdict::Ran(None));
    sessions.expire(at(101));
    assert_eq!(sessions, Sessions::default(), "its room is given back");
    let session = |n| CommandId { session: SessionId(n), ..id(1, 0, 100) };
    for n in 0..MAX_REMEMBERED as u128 / 2 {
        sessions.record(&session(n), 0, Bytes::new());
    }
    assert_eq!(sessions.judge(&session(u128::MAX), at(1)), Verdict::Crowded);
    assert_eq!(sessions.judge(&session(0), at(1)), Verdict::Ran(Some(Bytes::new())), "it ran before");
}

#[test]
fn a_snapshot_keeps_everything() {
    let mut sessions = Sessions::default();
    for serial in 3..40 {
        run(&mut sessions, id(serial, serial / 2, 100 + serial), 1);
    }
    sessions.use_version(7);
    assert_eq!(through_a_snapshot(&sessions), sessions);
}

/// Many clients, copies that come late and out of order, snapshots in between: nothing runs twice.
#[test]
fn whatever_comes_again_whenever_it_runs_at_most_once() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut sessions = Sessions::default();
        let mut runs: BTreeMap<(SessionId, u64), u32> = BTreeMap::new();
        let mut sent: Vec<CommandId> = Vec::new();
        let mut now = 1_000;
        for _ in 0..400 {
            now += [0, 0, 1, 7, 60][random.random_range(0..5)];
            let again = random.random_range(0..3) > 0 && !sent.is_empty();
            let command = if again {
                sent[random.random_range(0..sent.len())]
            } else {
                let session = SessionId(random.random_range(0..4));
                let of_session = sent.iter().filter(|sent| sent.session == session);
                let (serial, low_water) =
                    of_session.fold((0, 0), |(serial, low), sent| (serial.max(sent.serial), low.max(sent.low_water)));
                // Any mark that a client may say: below the new serial, and never lower than before.
                let low_water = random.random_range(low_water..=serial);
                // Clocks that are ahead or behind, differently for each command.
                let not_after = at(now + random.random_range(0..300)).as_millis().saturating_sub(100);
                CommandId { session, serial: serial + 1, low_water, not_after: at(not_after) }
            };
            sent.push(command);
            sessions.expire(at(now));
            if sessions.judge(&command, at(now)) == Verdict::Run {
                sessions.record(&command, 0, Bytes::new());
                let times = runs.entry((command.session, command.serial)).or_default();
                *times += 1;
                assert_eq!(*times, 1, "seed {seed}: {command:?} at {now}");
            }
            if random.random_range(0..40) == 0 {
                let again = through_a_snapshot(&sessions);
                assert_eq!(again, sessions, "seed {seed}");
                sessions = again;
            }
        }
    }
}
