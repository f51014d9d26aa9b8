//! A large value's way into a snapshot and out of it: in pieces, so that neither holds a second copy of the value.

use rkyv::util::AlignedVec;

use crate::wire::{Wire, WireError, decode, encode_into};

/// A buffer above this is given back after its piece: pieces are meant to be smaller.
const MAX_KEPT_BUFFER_BYTES: usize = 4 << 20;

/// A piece was not written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// It cannot be encoded, or its bytes are not what the type expects.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The value expects a piece, and there is none.
    #[error(
        "a piece is missing: the snapshot is of another version of the value, or it was not written by its `write_pieces`"
    )]
    Missing,
    /// The snapshot itself failed: its storage, its checksums, or code that panicked.
    #[error("{0}")]
    Failed(String),
}

/// Where pieces go.
pub(crate) trait PieceSink {
    fn put(&mut self, piece: &[u8]) -> Result<(), PieceError>;
}

/// Where pieces come from, in the order in which they were written.
pub(crate) trait PieceSource {
    /// Puts the next piece into an empty buffer; `false` behind the last.
    fn take(&mut self, buffer: &mut AlignedVec) -> Result<bool, PieceError>;
}

/// Takes the pieces of a value, see [`Value::write_pieces`](crate::Value::write_pieces).
///
/// Each piece is checksummed and written before the next is taken, so that the memory that a snapshot needs is that of
/// its largest piece. 64 to 256 KiB a piece is a good size: a smaller one costs more per byte, a larger one nothing
/// less.
pub struct PieceWriter<'a> {
    sink: &'a mut dyn PieceSink,
    buffer: AlignedVec,
}

impl<'a> PieceWriter<'a> {
    pub(crate) fn new(sink: &'a mut dyn PieceSink) -> Self {
        Self { sink, buffer: AlignedVec::new() }
    }

    /// Keeps the pieces in a list: for tests of a value.
    pub fn to_list(pieces: &'a mut Vec<Vec<u8>>) -> Self {
        Self::new(pieces)
    }

    /// Encodes and writes one piece.
    pub fn write<T: Wire>(&mut self, piece: &T) -> Result<(), PieceError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let buffer = encode_into(piece, buffer)?;
        self.sink.put(&buffer)?;
        if buffer.capacity() <= MAX_KEPT_BUFFER_BYTES {
            self.buffer = buffer;
        }
        Ok(())
    }

    /// Writes one piece that is bytes already.
    pub fn write_bytes(&mut self, piece: &[u8]) -> Result<(), PieceError> {
        self.sink.put(piece)
    }
}

/// Gives the pieces of a value back, see [`Value::read_pieces`](crate::Value::read_pieces).
pub struct PieceReader<'a> {
    source: &'a mut dyn PieceSource,
    buffer: AlignedVec,
}

impl<'a> PieceReader<'a> {
    pub(crate) fn new(source: &'a mut dyn PieceSource) -> Self {
        Self { source, buffer: AlignedVec::new() }
    }

    /// Reads pieces of a list: for tests of a value.
    pub fn of_list(pieces: &'a mut std::vec::IntoIter<Vec<u8>>) -> Self {
        Self::new(pieces)
    }

    /// Reads and decodes the next piece; `None` behind the last.
    pub fn read<T: Wire>(&mut self) -> Result<Option<T>, PieceError> {
        match self.read_bytes()? {
            Some(bytes) => Ok(Some(decode(bytes)?)),
            None => Ok(None),
        }
    }

    /// Reads the next piece as it is, aligned to 16 bytes; `None` behind the last.
    pub fn read_bytes(&mut self) -> Result<Option<&[u8]>, PieceError> {
        if self.buffer.capacity() > MAX_KEPT_BUFFER_BYTES {
            self.buffer = AlignedVec::new();
        }
        self.buffer.clear();
        let found = self.source.take(&mut self.buffer)?;
        Ok(found.then_some(&self.buffer[..]))
    }
}

impl PieceSink for Vec<Vec<u8>> {
    fn put(&mut self, piece: &[u8]) -> Result<(), PieceError> {
        self.push(piece.to_vec());
        Ok(())
    }
}

impl PieceSource for std::vec::IntoIter<Vec<u8>> {
    fn take(&mut self, buffer: &mut AlignedVec) -> Result<bool, PieceError> {
        let Some(piece) = self.next() else { return Ok(false) };
        buffer.extend_from_slice(&piece);
        Ok(true)
    }
}

impl std::fmt::Debug for PieceWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PieceWriter").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PieceReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PieceReader").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_in_order_whatever_their_size() {
        let mut list = Vec::new();
        let mut writer = PieceWriter::to_list(&mut list);
        let large = vec![7_u64; 1_000_000];
        writer.write(&String::from("first")).unwrap();
        writer.write(&large).unwrap();
        writer.write_bytes(b"").unwrap();
        writer.write_bytes(b"xyz").unwrap();
        let mut list = list.into_iter();
        let mut reader = PieceReader::of_list(&mut list);
        assert_eq!(reader.read::<String>().unwrap().unwrap(), "first");
        assert_eq!(reader.read::<Vec<u64>>().unwrap().unwrap(), large);
        assert_eq!(reader.read_bytes().unwrap(), Some(&b""[..]));
        assert!(matches!(reader.read::<u64>(), Err(PieceError::Wire(_))), "what is of another type is an error");
        assert_eq!(reader.read::<u64>().unwrap(), None);
    }
}
