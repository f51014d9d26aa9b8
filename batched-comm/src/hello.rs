//! The hello and its answer: the first bytes in each direction of a connection. **A format: golden
//! bytes below.**
//!
//! ```text
//! magic 4 | version u16 | bytes u16 | code u8 | flags u8 | name_bytes u16 | text_bytes u16 | 0 u16,
//! cluster u128 | generation u64 | instance u64, name, text, zeros to 16
//! ```
//!
//! In a hello, the code says what the connection is for; in an answer, it is zero or the number of a
//! [`Refusal`], which the text explains. The first eight bytes are the same in all versions, so that a
//! node can tell another version what it is, and be told.
//!
//! Flags: 1, the cluster is one; 2 and 4, batches compressed with LZ4 and with zstd are understood. A batch
//! is compressed only for whoever has said so.

use thiserror::Error;

use crate::compression::Compressions;
use crate::error::Refusal;
use crate::name::{ClusterId, NodeName};

/// The version of everything on the wire.
pub(crate) const VERSION: u16 = 1;

/// A hello or an answer is at most this long.
pub(crate) const MAX_HELLO_BYTES: usize = 1024;

/// The bytes that say how many there are.
pub(crate) const PREFIX_BYTES: usize = 8;

const FIXED_BYTES: usize = 48;
const MAX_TEXT_BYTES: usize = 512;
const HELLO_MAGIC: [u8; 4] = *b"BChi";
const ANSWER_MAGIC: [u8; 4] = *b"BCre";
// The flags. Whoever reads ignores those that it does not know.
const HAS_CLUSTER: u8 = 1;
const UNPACKS_LZ4: u8 = 2;
const UNPACKS_ZSTD: u8 = 4;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Purpose {
    /// Messages.
    Lane = 1,
    /// Bulk transfers.
    Bulk = 2,
    /// To learn who is there.
    Probe = 3,
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Introduction {
    pub name: NodeName,
    pub cluster: Option<ClusterId>,
    pub instance: u64,
    /// What batches may be compressed with that are sent there.
    pub compressions: Compressions,
}

/// Bytes that are no hello, or not of this version.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum HelloError {
    #[error("protocol version {given}, spoken is {VERSION}")]
    Version { given: u16 },
    #[error("{0}")]
    Malformed(&'static str),
}

/// The hello of `own`.
pub(crate) fn encode_hello(own: &Introduction, purpose: Purpose) -> Vec<u8> {
    encode(HELLO_MAGIC, purpose as u8, own, "")
}

/// The answer of `own` to a hello.
pub(crate) fn encode_answer(own: &Introduction, answer: Result<(), &Refusal>) -> Vec<u8> {
    match answer {
        Ok(()) => encode(ANSWER_MAGIC, 0, own, ""),
        Err(refusal) => encode(ANSWER_MAGIC, refusal_code(refusal), own, &refusal.to_string()),
    }
}

/// The whole length of a hello or an answer, by its first bytes.
pub(crate) fn length(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, HelloError> {
    let magic = [prefix[0], prefix[1], prefix[2], prefix[3]];
    if magic != HELLO_MAGIC && magic != ANSWER_MAGIC {
        return Err(HelloError::Malformed("it begins with something else"));
    }
    let bytes = usize::from(u16::from_le_bytes([prefix[6], prefix[7]]));
    if !(PREFIX_BYTES..=MAX_HELLO_BYTES).contains(&bytes) {
        return Err(HelloError::Malformed("its length is out of range"));
    }
    Ok(bytes)
}

/// Who greets, and for what.
pub(crate) fn decode_hello(bytes: &[u8]) -> Result<(Introduction, Purpose), HelloError> {
    let (code, introduction, _) = decode(HELLO_MAGIC, bytes)?;
    let purpose = match code {
        1 => Purpose::Lane,
        2 => Purpose::Bulk,
        3 => Purpose::Probe,
        _ => return Err(HelloError::Malformed("its purpose is not known")),
    };
    Ok((introduction, purpose))
}

/// Who answers, and what, to the hello of `own`.
pub(crate) fn decode_answer(
    bytes: &[u8],
    own: &Introduction,
) -> Result<(Introduction, Result<(), Refusal>), HelloError> {
    let (code, introduction, text) = decode(ANSWER_MAGIC, bytes)?;
    let answer = match (code, own.cluster, introduction.cluster) {
        (0, _, _) => Ok(()),
        (2, Some(given), Some(own)) => Err(Refusal::OtherCluster { given, own }),
        (4, _, _) => Err(Refusal::OwnName { name: own.name.clone() }),
        (5, _, _) => Err(Refusal::Duplicate),
        (6, _, _) => Err(Refusal::Busy),
        (7, _, _) => Err(Refusal::ShuttingDown),
        (code, _, _) => Err(Refusal::Other { code, reason: text }),
    };
    Ok((introduction, answer))
}

fn refusal_code(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::OtherVersion { .. } => 1,
        Refusal::OtherCluster { .. } => 2,
        Refusal::WrongName { .. } => 3,
        Refusal::OwnName { .. } => 4,
        Refusal::Duplicate => 5,
        Refusal::Busy => 6,
        Refusal::ShuttingDown => 7,
        Refusal::Malformed(_) => 8,
        Refusal::Other { code, .. } => *code,
    }
}

fn encode(magic: [u8; 4], code: u8, own: &Introduction, text: &str) -> Vec<u8> {
    let name = own.name.as_str();
    let cut = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    let text = &text[..cut.unwrap_or(0)];
    let cluster = own.cluster.unwrap_or(ClusterId { id: 0, generation: 0 });
    let bytes = (FIXED_BYTES + name.len() + text.len()).next_multiple_of(16);
    let mut out = Vec::with_capacity(bytes);
    out.extend_from_slice(&magic);
    out.extend_from_slice(&VERSION.to_le_bytes());
    // At most 48 + 128 + 512, rounded up.
    out.extend_from_slice(&(bytes as u16).to_le_bytes());
    out.push(code);
    let flags = [
        (own.cluster.is_some(), HAS_CLUSTER),
        (own.compressions.lz4, UNPACKS_LZ4),
        (own.compressions.zstd, UNPACKS_ZSTD),
    ];
    out.push(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum());
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&cluster.id.to_le_bytes());
    out.extend_from_slice(&cluster.generation.to_le_bytes());
    out.extend_from_slice(&own.instance.to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(text.as_bytes());
    out.resize(bytes, 0);
    out
}

fn decode(magic: [u8; 4], bytes: &[u8]) -> Result<(u8, Introduction, String), HelloError> {
    let short = HelloError::Malformed("it is too short");
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else { return Err(short) };
    if prefix[..4] != magic {
        return Err(HelloError::Malformed("it begins with something else"));
    }
    let version = u16::from_le_bytes([prefix[4], prefix[5]]);
    if version != VERSION {
        return Err(HelloError::Version { given: version });
    }
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else { return Err(short) };
    let number = |at: usize| usize::from(u16::from_le_bytes([fixed[at], fixed[at + 1]]));
    let name_end = FIXED_BYTES + number(10);
    let text_end = name_end + number(12);
    let text_at = |from, to| bytes.get(from..to).and_then(|text| std::str::from_utf8(text).ok());
    let name = text_at(FIXED_BYTES, name_end)
        .and_then(|name| name.parse().ok())
        .ok_or(HelloError::Malformed("its name is no node's name"))?;
    let text = text_at(name_end, text_end).ok_or(HelloError::Malformed("its text is no text"))?;
    let mut id = [0; 16];
    id.copy_from_slice(&fixed[16..32]);
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&fixed[at..at + 8]);
        u64::from_le_bytes(number)
    };
    let cluster = ClusterId { id: u128::from_le_bytes(id), generation: number(32) };
    let has = |flag: u8| fixed[9] & flag != 0;
    let cluster = has(HAS_CLUSTER).then_some(cluster);
    let compressions = Compressions { lz4: has(UNPACKS_LZ4), zstd: has(UNPACKS_ZSTD) };
    Ok((fixed[8], Introduction { name, cluster, instance: number(40), compressions }, text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(cluster: Option<u128>) -> Introduction {
        let cluster = cluster.map(|id| ClusterId { id, generation: 3 });
        Introduction { name: "n1".parse().unwrap(), cluster, instance: 0x1122, compressions: Compressions::default() }
    }

    #[test]
    fn golden_flags() {
        let mut table = String::new();
        for (cluster, lz4, zstd) in
            [(None, false, false), (Some(1), false, false), (None, true, false), (Some(1), true, true)]
        {
            let who = Introduction { compressions: Compressions { lz4, zstd }, ..own(cluster) };
            let mut bytes = encode_hello(&who, Purpose::Lane);
            table += &format!("{cluster:?} lz4 {lz4} zstd {zstd}: {}\n", bytes[9]);
            // A flag of a later version says nothing here.
            bytes[9] |= 0xf8;
            assert_eq!(decode_hello(&bytes), Ok((who.clone(), Purpose::Lane)));
            let answer = encode_answer(&who, Ok(()));
            assert_eq!((answer[9], decode_answer(&answer, &own(None))), (bytes[9] & 7, Ok((who, Ok(())))));
        }
        expect_test::expect![[r#"
            None lz4 false zstd false: 0
            Some(1) lz4 false zstd false: 1
            None lz4 true zstd false: 2
            Some(1) lz4 true zstd true: 7
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn golden_bytes() {
        let bytes = encode_hello(&own(Some(0xab)), Purpose::Lane);
        let lines: Vec<_> =
            bytes.chunks(16).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>()).collect();
        expect_test::expect![[r#"
            42436869010040000101020000000000
            ab000000000000000000000000000000
            03000000000000002211000000000000
            6e310000000000000000000000000000"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn what_is_said_is_heard() {
        for cluster in [None, Some(7)] {
            let bytes = encode_hello(&own(cluster), Purpose::Probe);
            assert_eq!(length(bytes.first_chunk().unwrap()), Ok(bytes.len()));
            assert_eq!(decode_hello(&bytes), Ok((own(cluster), Purpose::Probe)));
        }
        let answers = [
            Ok(()),
            Err(Refusal::Duplicate),
            Err(Refusal::OtherCluster { given: own(Some(1)).cluster.unwrap(), own: own(Some(7)).cluster.unwrap() }),
        ];
        for answer in answers {
            let bytes = encode_answer(&own(Some(7)), answer.as_ref().copied());
            let (who, heard) = decode_answer(&bytes, &own(Some(1))).unwrap();
            assert_eq!((who, heard), (own(Some(7)), answer));
        }
        let long = Refusal::Malformed("ä".repeat(1000));
        let bytes = encode_answer(&own(None), Err(&long));
        assert!(bytes.len() <= MAX_HELLO_BYTES);
        assert!(decode_answer(&bytes, &own(None)).unwrap().1.is_err());
    }

    #[test]
    fn garbage_is_refused_and_never_panics() {
        let good = encode_hello(&own(Some(7)), Purpose::Lane);
        for offset in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[offset] = value;
                let _ = length(bytes.first_chunk().unwrap());
                let _ = decode_hello(&bytes);
                let _ = decode_hello(&bytes[..offset]);
            }
        }
        let mut later = good.clone();
        later[4] = 9;
        assert_eq!(decode_hello(&later), Err(HelloError::Version { given: 9 }));
        let mut long = good.clone();
        long[7] = 0xff;
        assert!(length(long.first_chunk().unwrap()).is_err());
    }
}
