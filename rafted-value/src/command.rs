//! What one command carries, in the log and on the way to the leader.
//!
//! ```text
//!  0        1      2        4         8       16        32       40          48          56         60       64
//!  | format | kind | to  0 | schema  | stamp | session | serial | low water | not after | key hash | 0 .. 0 | payload
//! ```
//!
//! Little-endian. `to` says for whom it is: 0 for the value, 1 for the group, whose settings it replaces. `stamp` is the
//! log time, written by the leader that proposes; zero on the way to it.

use bytes::{Bytes, BytesMut};

use crate::codec::{Malformed, Reader};
use crate::value::LogTime;

/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 64;

const FORMAT: u8 = 1;
const KIND_ONCE: u8 = 1;
const KIND_PLAIN: u8 = 2;
const TO_VALUE: u8 = 0;
const TO_GROUP: u8 = 1;
const TO_AT: usize = 2;
const SCHEMA_AT: std::ops::Range<usize> = 4..8;
const STAMP_AT: std::ops::Range<usize> = 8..16;

/// 128 random bits for one client process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u128);

/// What makes a command run once: however often and wherever it arrives, it has the same session and serial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandId {
    /// The client process.
    pub session: SessionId,
    /// Unique in the session, over all groups.
    pub serial: u64,
    /// No serial at or below this is ever sent again.
    pub low_water: u64,
    /// When the state may forget the command, and from when on it refuses it.
    pub not_after: LogTime,
}

/// For whom a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recipient {
    /// The user's value.
    Value,
    /// The group itself: the payload is its settings.
    Group,
}

/// A command on its way or in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// `None` for commands whose repetition does no harm, such as ticks.
    pub(crate) id: Option<CommandId>,
    pub(crate) to: Recipient,
    /// The version of the value, or of the settings, that encoded the payload.
    pub(crate) schema: u32,
    /// The leader's stamp.
    pub(crate) stamp: LogTime,
    /// The hash of the key that the command is about, zero where there is none.
    pub(crate) key_hash: u32,
    /// The encoded command of the user, or settings.
    pub(crate) payload: Bytes,
}

impl Command {
    pub(crate) fn encode(&self) -> BytesMut {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + self.payload.len());
        let kind = if self.id.is_some() { KIND_ONCE } else { KIND_PLAIN };
        let id = self.id.unwrap_or(CommandId {
            session: SessionId(0),
            serial: 0,
            low_water: 0,
            not_after: LogTime::from_millis(0),
        });
        let to = match self.to {
            Recipient::Value => TO_VALUE,
            Recipient::Group => TO_GROUP,
        };
        bytes.extend_from_slice(&[FORMAT, kind, to, 0]);
        bytes.extend_from_slice(&self.schema.to_le_bytes());
        bytes.extend_from_slice(&self.stamp.as_millis().to_le_bytes());
        bytes.extend_from_slice(&id.session.0.to_le_bytes());
        bytes.extend_from_slice(&id.serial.to_le_bytes());
        bytes.extend_from_slice(&id.low_water.to_le_bytes());
        bytes.extend_from_slice(&id.not_after.as_millis().to_le_bytes());
        bytes.extend_from_slice(&self.key_hash.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Reads the header; the payload shares the buffer.
    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "command");
        let (format, kind) = (reader.u8()?, reader.u8()?);
        let to = match reader.u8()? {
            TO_VALUE => Recipient::Value,
            TO_GROUP => Recipient::Group,
            _ => return Err(reader.malformed()),
        };
        if format != FORMAT || reader.u8()? != 0 {
            return Err(reader.malformed());
        }
        let schema = reader.u32()?;
        let stamp = LogTime::from_millis(reader.u64()?);
        let id = CommandId {
            session: SessionId(reader.u128()?),
            serial: reader.u64()?,
            low_water: reader.u64()?,
            not_after: LogTime::from_millis(reader.u64()?),
        };
        let key_hash = reader.u32()?;
        reader.u32()?;
        let id = match kind {
            KIND_ONCE => Some(id),
            KIND_PLAIN => None,
            _ => return Err(reader.malformed()),
        };
        Ok(Self { id, to, schema, stamp, key_hash, payload: reader.rest() })
    }
}

/// Writes the leader's stamp into an encoded command.
pub(crate) fn stamp(encoded: &mut BytesMut, now: LogTime) {
    if let Some(field) = encoded.get_mut(STAMP_AT) {
        field.copy_from_slice(&now.as_millis().to_le_bytes());
    }
}

/// The value's version that encoded a command's payload; `None` if it is not for the value.
pub(crate) fn schema(encoded: &[u8]) -> Option<u32> {
    let schema = encoded.get(SCHEMA_AT).and_then(|field| field.try_into().ok()).map(u32::from_le_bytes);
    schema.filter(|_| encoded.get(TO_AT) == Some(&TO_VALUE))
}

/// Whether an encoded command may be sent more than once.
pub(crate) fn has_id(encoded: &[u8]) -> bool {
    encoded.get(1) == Some(&KIND_ONCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Command {
        Command {
            id: Some(CommandId {
                session: SessionId(0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10),
                serial: 17,
                low_water: 16,
                not_after: LogTime::from_millis(1_000),
            }),
            to: Recipient::Value,
            schema: 2,
            stamp: LogTime::from_millis(0),
            key_hash: 0xDEAD_BEEF,
            payload: Bytes::from_static(b"pay"),
        }
    }

    #[test]
    fn the_bytes_are_these() {
        let mut bytes = example().encode();
        stamp(&mut bytes, LogTime::from_millis(0x1122));
        let mut golden = vec![1, 1, 0, 0, 2, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0];
        golden.extend((1..=16).rev());
        golden.extend([17, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0xE8, 3, 0, 0, 0, 0, 0, 0]);
        golden.extend([0xEF, 0xBE, 0xAD, 0xDE, 0, 0, 0, 0]);
        golden.extend(b"pay");
        assert_eq!(&bytes[..], &golden[..]);
        assert_eq!(bytes.len(), HEADER_BYTES + 3);
        assert_eq!(schema(&bytes), Some(2));
        let settings = Command { to: Recipient::Group, ..example() }.encode();
        golden[2] = 1;
        golden[8..10].fill(0);
        assert_eq!(&settings[..], &golden[..]);
        assert_eq!(schema(&settings), None);
    }

    #[test]
    fn what_was_written_is_read() {
        let command = example();
        assert_eq!(Command::decode(command.encode().freeze()).unwrap(), command);
        let settings = Command { to: Recipient::Group, ..command.clone() };
        assert_eq!(Command::decode(settings.encode().freeze()).unwrap(), settings);
        let plain = Command { id: None, ..command };
        assert_eq!(Command::decode(plain.encode().freeze()).unwrap(), plain);
    }

    #[test]
    fn unknown_formats_and_short_bytes_are_errors() {
        let bytes = example().encode().freeze();
        for length in 0..HEADER_BYTES {
            assert!(Command::decode(bytes.slice(..length)).is_err());
        }
        for at in 0..3 {
            let mut wrong = bytes.to_vec();
            wrong[at] = 9;
            assert!(Command::decode(wrong.into()).is_err(), "byte {at}");
        }
    }
}
