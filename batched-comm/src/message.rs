//! What a message is: a value that rkyv archives, with a number on the wire.
//!
//! Users derive rkyv's traits and give the number; [`Wire`] comes by itself.

use std::fmt;
use std::ops::Deref;

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::ser::Serializer;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::ser::sharing::Share;
use rkyv::util::{AlignedVec, with_arena};
use rkyv::{Archive, Deserialize, Serialize};

use crate::error::{DecodeError, EncodeError};

/// A value that can be sent: everything that derives rkyv's `Archive`, `Serialize` and `Deserialize`.
///
/// Implemented for all such types; nobody implements it by hand.
pub trait Wire:
    Sized
    + Send
    + Sync
    + 'static
    + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>
    + Archive<Archived: for<'a> CheckBytes<HighValidator<'a, Error>> + Deserialize<Self, HighDeserializer<Error>>>
{
}

impl<T> Wire for T where
    T: Sized
        + Send
        + Sync
        + 'static
        + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>
        + Archive<Archived: for<'a> CheckBytes<HighValidator<'a, Error>> + Deserialize<T, HighDeserializer<Error>>>
{
}

/// A value with a number by which the receiver knows it.
pub trait Message: Wire {
    /// The message's number on the wire: never used again for another type.
    const TYPE: u32;
}

/// A message that is answered.
pub trait Request: Message {
    /// The answer.
    type Reply: Wire;
}

/// Bodies up to this long are kept without memory of their own: an allocation, freed by another thread than its
/// own, costs more than all else that is done to a small message.
const SMALL_BYTES: usize = 111;

/// A received message: bytes that begin at a multiple of 16, so that rkyv reads them in place.
#[derive(Clone)]
pub struct Body(Storage);

#[derive(Clone)]
enum Storage {
    Small(Small),
    Large(AlignedVec),
}

#[derive(Clone)]
#[repr(C, align(16))]
struct Small {
    bytes: [u8; SMALL_BYTES],
    length: u8,
}

impl Body {
    /// A copy of `bytes`.
    pub fn copy_from(bytes: &[u8]) -> Body {
        if bytes.len() > SMALL_BYTES {
            let mut body = AlignedVec::with_capacity(bytes.len());
            body.extend_from_slice(bytes);
            return Body(Storage::Large(body));
        }
        // At most 111.
        let mut small = Small { bytes: [0; SMALL_BYTES], length: bytes.len() as u8 };
        small.bytes[..bytes.len()].copy_from_slice(bytes);
        Body(Storage::Small(small))
    }

    /// The bytes with their alignment.
    pub fn into_aligned(self) -> AlignedVec {
        match self.0 {
            Storage::Large(bytes) => bytes,
            Storage::Small(_) => {
                let mut bytes = AlignedVec::with_capacity(self.len());
                bytes.extend_from_slice(&self);
                bytes
            }
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Body::copy_from(&[])
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Small(small) => &small.bytes[..usize::from(small.length)],
            Storage::Large(bytes) => bytes,
        }
    }
}

impl From<AlignedVec> for Body {
    fn from(bytes: AlignedVec) -> Body {
        Body(Storage::Large(bytes))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.len())
    }
}

/// The value as bytes.
///
/// # Errors
/// When rkyv cannot archive it.
pub fn encode<T: Wire>(value: &T) -> Result<Body, EncodeError> {
    let mut buffer = AlignedVec::new();
    encode_into(value, &mut buffer)?;
    Ok(buffer.into())
}

/// The value in `bytes`, which are checked first. They must begin at a multiple of 16, as those of a
/// [`Body`] do.
///
/// # Errors
/// When the bytes are no `T`.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, DecodeError> {
    rkyv::from_bytes::<T, Error>(bytes)
        .map_err(|error| DecodeError::Invalid { what: std::any::type_name::<T>(), reason: error.to_string() })
}

/// Appends the value to `buffer`, whose length is a multiple of 16. After an error or a panic of the
/// value's own code, `buffer` is what it was.
pub(crate) fn encode_into<T: Wire>(value: &T, buffer: &mut AlignedVec) -> Result<(), EncodeError> {
    with_arena(|arena| {
        let start = buffer.len();
        let serializer = Serializer::new(std::mem::take(buffer), arena.acquire(), Share::new());
        let mut lent = Lent { serializer: Some(serializer), buffer, start, complete: false };
        let Some(serializer) = lent.serializer.as_mut() else { return Ok(()) };
        rkyv::api::serialize_using::<_, Error>(value, serializer)
            .map_err(|error: Error| EncodeError { reason: error.to_string() })?;
        lent.complete = true;
        Ok(())
    })
}

/// rkyv's serializer owns what it writes to; this gives the buffer back, whatever happens.
struct Lent<'a, A> {
    serializer: Option<Serializer<AlignedVec, A, Share>>,
    buffer: &'a mut AlignedVec,
    start: usize,
    complete: bool,
}

impl<A> Drop for Lent<'_, A> {
    fn drop(&mut self) {
        if let Some(serializer) = self.serializer.take() {
            *self.buffer = serializer.into_writer();
        }
        if !self.complete {
            self.buffer.resize(self.start, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Archive, Serialize, Deserialize)]
    struct Pair {
        name: String,
        number: u64,
    }

    #[test]
    fn a_value_survives_the_wire() {
        let pair = Pair { name: "a name longer than what is stored inline".into(), number: 7 };
        let body = encode(&pair).unwrap();
        assert_eq!(body.as_ptr() as usize % 16, 0);
        assert_eq!(decode::<Pair>(&body).unwrap(), pair);
        assert!(decode::<Pair>(&body[..8]).is_err());
        assert!(decode::<String>(&Body::copy_from(&[0x81; 24])).is_err());
    }

    #[test]
    fn golden_bytes() {
        let body = encode(&Pair { name: "n1".into(), number: 258 }).unwrap();
        let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "6e31ffffffffffff0201000000000000");
    }

    #[test]
    fn bodies_of_all_lengths_keep_their_bytes_and_alignment() {
        for length in [0, 1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 1000] {
            let bytes: Vec<_> = (0..length).map(|index| index as u8).collect();
            let bodies = vec![Body::copy_from(&bytes); 3];
            for body in bodies {
                assert_eq!(&body[..], bytes);
                assert_eq!(body.as_ptr() as usize % 16, 0, "{length}");
                assert_eq!(&body.into_aligned()[..], bytes);
            }
        }
    }

    #[test]
    fn a_value_is_appended_behind_others() {
        let mut buffer = AlignedVec::new();
        buffer.extend_from_slice(&[1; 32]);
        let pair = Pair { name: "x".repeat(100), number: 1 };
        encode_into(&pair, &mut buffer).unwrap();
        assert_eq!(buffer[..32], [1; 32]);
        assert_eq!(decode::<Pair>(&Body::copy_from(&buffer[32..])).unwrap(), pair);
    }
}
