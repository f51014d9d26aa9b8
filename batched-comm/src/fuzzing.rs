//! What holds for any bytes that come: the properties that the fuzz targets in `fuzz/` check, and the
//! unit tests with their seeds. No part of the crate as it is used.

use crate::batcher::{Batcher, Gathered};
use crate::compression::{Compressions, Unpacker};
use crate::config::{Batching, MAX_BATCH_BYTES, MAX_MESSAGE_BYTES};
use crate::error::Refusal;
use crate::frame::{self, ALIGNMENT, BATCH_HEADER_BYTES, Frame, MAX_BATCH_FRAMES_BYTES};
use crate::hello::{self, Introduction, MAX_HELLO_BYTES, PREFIX_BYTES};
use crate::name::ClusterId;

/// Reads batches as a lane does.
///
/// # Panics
/// When a decoder breaks its promises: lengths in bounds, the same verdict on a part as on the whole, and
/// whatever was read can be written and read again.
pub fn frame_decoder(bytes: &[u8]) {
    let mut rest = bytes;
    let mut unpacker = Unpacker::default();
    let complete = loop {
        same_verdict_on_parts(rest);
        match frame::next_batch(rest) {
            Ok(Some(batch)) => {
                assert!(batch.total_bytes.is_multiple_of(ALIGNMENT), "what follows stays aligned");
                assert!((BATCH_HEADER_BYTES..=rest.len()).contains(&batch.total_bytes));
                assert!(batch.total_bytes <= BATCH_HEADER_BYTES + MAX_BATCH_FRAMES_BYTES);
                let Ok(frames) = batch.frames(&mut unpacker) else { break false };
                let read: Vec<_> = frames.collect();
                let raw_bytes = BATCH_HEADER_BYTES + batch.raw_bytes;
                assert!(raw_bytes <= BATCH_HEADER_BYTES + MAX_BATCH_FRAMES_BYTES);
                assert!(read.len() <= raw_bytes / ALIGNMENT, "work is bounded by the bytes of the frames");
                let ended = read.iter().position(Result::is_err);
                assert!(ended.is_none_or(|at| at + 1 == read.len()), "nothing comes after an error");
                let is_whole = ended.is_none();
                let frames: Vec<_> = read.into_iter().filter_map(Result::ok).collect();
                frames_hold(&frames);
                if !is_whole {
                    break false;
                }
                rest = &rest[batch.total_bytes..];
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    if complete {
        assert!(rest.len() < BATCH_HEADER_BYTES + MAX_BATCH_FRAMES_BYTES, "a whole batch is always taken");
    }
}

fn frames_hold(frames: &[Frame<'_>]) {
    for frame in frames {
        assert!(frame.body.len() <= MAX_MESSAGE_BYTES);
        if frame.head.kind == frame::Kind::Cluster
            && let Ok(cluster) = frame::cluster_in(frame.body)
        {
            assert_eq!(frame::cluster_body(cluster)[..], *frame.body);
        }
    }
    frames_are_written_as_they_were_read(frames);
}

/// With fewer bytes, a batch is not there yet, or it is wrong for the same reason.
fn same_verdict_on_parts(bytes: &[u8]) {
    let whole = frame::next_batch(bytes);
    for cut in [bytes.len() / 2, bytes.len().saturating_sub(1), BATCH_HEADER_BYTES] {
        let Some(part) = bytes.get(..cut) else { continue };
        match frame::next_batch(part) {
            Ok(None) => {}
            verdict => assert_eq!(verdict, whole, "{cut} of {} bytes", bytes.len()),
        }
    }
}

fn frames_are_written_as_they_were_read(frames: &[Frame<'_>]) {
    let limits = Batching::default().with_max_batch_bytes(MAX_BATCH_BYTES);
    let Ok(limits) = limits.and_then(|limits| limits.with_max_batch_messages(u16::MAX.into())) else { return };
    let mut batcher = Batcher::default();
    for frame in frames {
        let pushed = batcher.push(&frame.head, &limits, MAX_MESSAGE_BYTES, |buffer| {
            buffer.extend_from_slice(frame.body);
            Ok(())
        });
        assert!(pushed.is_ok(), "{:?} was read and is not written", frame.head);
    }
    let written = batcher.take(Gathered::default());
    let mut rest = &written.buffer[..];
    let mut left = frames;
    let mut unpacker = Unpacker::default();
    while !rest.is_empty() {
        let batch = match frame::next_batch(rest) {
            Ok(Some(batch)) => batch,
            other => panic!("what was written is not read: {other:?}"),
        };
        let again: Result<Vec<_>, _> = match batch.frames(&mut unpacker) {
            Ok(again) => again.collect(),
            Err(error) => panic!("what was written is not read: {error}"),
        };
        let (expected, later) = left.split_at(batch.messages as usize);
        assert_eq!(again.as_deref(), Ok(expected));
        left = later;
        rest = &rest[batch.total_bytes..];
    }
    assert!(left.is_empty());
}

/// Reads a hello and an answer as the two sides of a new connection do.
///
/// # Panics
/// When a decoder breaks its promises: lengths in bounds, and whatever was read can be written and read
/// again.
pub fn hello(bytes: &[u8]) {
    if let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>()
        && let Ok(length) = hello::length(prefix)
    {
        assert!((PREFIX_BYTES..=MAX_HELLO_BYTES).contains(&length));
    }
    if let Ok((who, purpose)) = hello::decode_hello(bytes) {
        let written = hello::encode_hello(&who, purpose);
        fits(&written);
        assert_eq!(hello::decode_hello(&written), Ok((who, purpose)));
    }
    let Ok(name) = "own".parse() else { return };
    let own = Introduction {
        name,
        cluster: Some(ClusterId { id: 1, generation: 2 }),
        instance: 3,
        compressions: Compressions::default(),
    };
    for own in [Introduction { cluster: None, ..own.clone() }, own] {
        let Ok((who, answer)) = hello::decode_answer(bytes, &own) else { continue };
        let written = hello::encode_answer(&who, answer.as_ref().copied());
        fits(&written);
        match (hello::decode_answer(&written, &own), &answer) {
            // Their text is the refusal's own words, and says once more what it is.
            (Ok((again, Err(Refusal::Other { code, .. }))), Err(Refusal::Other { code: first, .. })) => {
                assert_eq!((&again, code), (&who, *first));
            }
            (again, _) => assert_eq!(again, Ok((who, answer))),
        }
    }
}

/// What is written is no longer than the other side reads, and says how long it is.
fn fits(written: &[u8]) {
    let length = written.first_chunk::<PREFIX_BYTES>().map(hello::length);
    assert_eq!(length, Some(Ok(written.len())));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::compression::Packer;
    use crate::config::Compression;
    use crate::frame::{Head, Kind};
    use crate::hello::Purpose;

    const CALL: Head<'static> = Head { kind: Kind::Call, mailbox: "in", type_number: 7, call: 1 << 32 };
    const CASTS: Head<'static> = Head { kind: Kind::CastMany, mailbox: "in,echo", type_number: 7, call: 0 };
    const REPLY: Head<'static> = Head { kind: Kind::Reply, mailbox: "", type_number: 0, call: 1 << 32 };
    const REFUSED: Head<'static> = Head { kind: Kind::Refused, mailbox: "", type_number: 2, call: 1 << 32 };
    const CLUSTER: Head<'static> = Head { kind: Kind::Cluster, mailbox: "", type_number: 0, call: 0 };

    fn batches(frames: &[(Head<'_>, &[u8])], limits: &Batching) -> Vec<u8> {
        let mut batcher = Batcher::default();
        for (head, body) in frames {
            let body = |buffer: &mut rkyv::util::AlignedVec| {
                buffer.extend_from_slice(body);
                Ok(())
            };
            batcher.push(head, limits, MAX_MESSAGE_BYTES, body).unwrap();
        }
        batcher.take(Gathered::default()).buffer.to_vec()
    }

    /// What both sides of a lane say, one file each: the fuzzers begin with these.
    fn seeds() -> BTreeMap<PathBuf, Vec<u8>> {
        let cluster = ClusterId { id: 5, generation: 1 };
        let who = |cluster| Introduction {
            name: "n1".parse().unwrap(),
            cluster,
            instance: 9,
            compressions: Compressions::default(),
        };
        let one = Batching::default().with_max_batch_messages(1).unwrap();
        let all: [(Head<'_>, &[u8]); 5] = [
            (CALL, b"ask"),
            (CASTS, &[1; 40]),
            (REPLY, b"answer"),
            (REFUSED, b""),
            (CLUSTER, &frame::cluster_body(cluster)),
        ];
        let mut cut = batches(&all, &Batching::default());
        cut.truncate(40);
        let packed = |compression| {
            let bytes = batches(&[(CASTS, &[7; 600])], &Batching::default());
            let mut out = rkyv::util::AlignedVec::<ALIGNMENT>::new();
            let batch = frame::next_batch(&bytes).unwrap().unwrap();
            batch.pack(compression, &mut Packer::default(), &mut out);
            out.to_vec()
        };
        let frames = [
            ("lz4", packed(Compression::Lz4)),
            #[cfg(feature = "zstd")]
            ("zstd", packed(Compression::Zstd)),
            ("one_batch", batches(&all, &Batching::default())),
            ("a_batch_each", batches(&all, &one)),
            ("cut", cut),
            ("empty_batch", frame::batch_header(0, 0).to_vec()),
        ];
        let refused = Refusal::Malformed("no".into());
        let others = Refusal::OtherCluster { given: cluster, own: cluster };
        let hellos = [
            ("lane", hello::encode_hello(&who(None), Purpose::Lane)),
            ("bulk_of_cluster", hello::encode_hello(&who(Some(cluster)), Purpose::Bulk)),
            ("accepted", hello::encode_answer(&who(Some(cluster)), Ok(()))),
            ("refused", hello::encode_answer(&who(None), Err(&refused))),
            ("other_cluster", hello::encode_answer(&who(Some(cluster)), Err(&others))),
        ];
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        let frames = frames.map(|(name, bytes)| (dir.join("frame_decoder").join(name), bytes));
        let hellos = hellos.map(|(name, bytes)| (dir.join("hello").join(name), bytes));
        frames.into_iter().chain(hellos).collect()
    }

    /// With `UPDATE_EXPECT=1` in the environment, the files are written.
    #[test]
    fn the_fuzzers_seeds_are_what_is_said_today() {
        for (path, bytes) in seeds() {
            if std::env::var_os("UPDATE_EXPECT").is_some() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let found = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(found, bytes, "{}: run the test with UPDATE_EXPECT=1", path.display());
        }
    }

    #[test]
    fn the_properties_hold_for_every_seed_with_any_byte_changed() {
        for seed in seeds().into_values() {
            for at in 0..seed.len() {
                for value in [0, 1, 2, 6, 16, 0x7f, 0xff, seed[at] ^ 0x10] {
                    let mut bytes = seed.clone();
                    bytes[at] = value;
                    frame_decoder(&bytes);
                    hello(&bytes);
                }
                frame_decoder(&seed[..at]);
                hello(&seed[..at]);
            }
        }
    }
}
