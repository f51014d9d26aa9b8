//! What can be sent and stored: one blanket trait over rkyv's bounds, and the two functions that use it.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error as RkyvError;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

/// A type that can be encoded into bytes and decoded from bytes that nobody vouches for.
///
/// It is implemented for everything that derives rkyv's three traits (see [`messages!`](crate::messages));
/// nobody implements it by hand. Use `u64`, not `usize`: rkyv archives `usize` as 32 bits.
pub trait Wire: Sized
    + Send
    + Sync
    + 'static
    + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, RkyvError>>
    + Archive<Archived: for<'a> CheckBytes<HighValidator<'a, RkyvError>> + Deserialize<Self, HighDeserializer<RkyvError>>>
{
}

impl<T> Wire for T where
    T: Sized
        + Send
        + Sync
        + 'static
        + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, RkyvError>>
        + Archive<
            Archived: for<'a> CheckBytes<HighValidator<'a, RkyvError>> + Deserialize<Self, HighDeserializer<RkyvError>>,
        >
{
}

/// Bytes that are not what the type expects, or a value that cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {type_name}: {reason}; sender and receiver must use the same version of the type")]
pub struct WireError {
    /// What was tried: "encode" or "decode".
    pub what: &'static str,
    /// The Rust type.
    pub type_name: &'static str,
    /// rkyv's words.
    pub reason: String,
}

/// Encodes `value`; the result is aligned to 16 bytes.
pub fn encode<T: Wire>(value: &T) -> Result<AlignedVec, WireError> {
    rkyv::to_bytes::<RkyvError>(value).map_err(|error| wire_error::<T>("encode", error))
}

/// Encodes `value` into a buffer that was used before.
pub(crate) fn encode_into<T: Wire>(value: &T, buffer: AlignedVec) -> Result<AlignedVec, WireError> {
    rkyv::api::high::to_bytes_in::<_, RkyvError>(value, buffer).map_err(|error| wire_error::<T>("encode", error))
}

/// Checks and decodes `bytes`. Bytes that are not aligned to 16 are copied first.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, WireError> {
    aligned(bytes, rkyv::from_bytes::<T, RkyvError>).map_err(|error| wire_error::<T>("decode", error))
}

/// Checks `bytes` as [`decode`] does, and makes nothing of them.
pub(crate) fn check<T: Wire>(bytes: &[u8]) -> Result<(), WireError> {
    let access = |bytes: &[u8]| rkyv::access::<T::Archived, RkyvError>(bytes).map(drop);
    aligned(bytes, access).map_err(|error| wire_error::<T>("decode", error))
}

fn aligned<T>(bytes: &[u8], read: impl FnOnce(&[u8]) -> T) -> T {
    if bytes.as_ptr().align_offset(ALIGNMENT) == 0 {
        return read(bytes);
    }
    let mut aligned = AlignedVec::<ALIGNMENT>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    read(&aligned)
}

/// Declares types that travel in commands, replies, queries, answers and values.
///
/// Adds the derives that [`Wire`] needs through this crate's own rkyv, so that a user's manifest names
/// no further crate, and `Debug`, `Clone`, `PartialEq`.
///
/// ```
/// rafted_value::messages! {
///     /// A counter's command.
///     pub enum Command { Add(i64), Reset }
/// }
/// let bytes = rafted_value::encode(&Command::Add(3)).unwrap();
/// assert_eq!(rafted_value::decode::<Command>(&bytes).unwrap(), Command::Add(3));
/// ```
#[macro_export]
macro_rules! messages {
    ($($item:item)*) => {
        $(
            #[derive(Debug, Clone, PartialEq, $crate::rkyv::Archive, $crate::rkyv::Serialize, $crate::rkyv::Deserialize)]
            #[rkyv(crate = $crate::rkyv)]
            $item
        )*
    };
}

const ALIGNMENT: usize = 16;

fn wire_error<T>(what: &'static str, error: RkyvError) -> WireError {
    WireError { what, type_name: std::any::type_name::<T>(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_at_any_alignment_decode() {
        let value = (7_u64, String::from("seven"));
        let bytes = encode(&value).unwrap();
        for shift in 0..17 {
            let mut shifted = vec![0_u8; shift];
            shifted.extend_from_slice(&bytes);
            assert_eq!(decode::<(u64, String)>(&shifted[shift..]).unwrap(), value, "shift {shift}");
            check::<(u64, String)>(&shifted[shift..]).unwrap();
        }
    }

    #[test]
    fn garbage_is_an_error_not_a_panic() {
        for length in 0..64 {
            let garbage = vec![0xA5_u8; length];
            let decoded = decode::<(u64, String)>(&garbage).map(drop);
            assert!(decoded.is_err(), "length {length}");
            assert_eq!(check::<(u64, String)>(&garbage), decoded, "length {length}");
        }
    }
}
