//! Little-endian fields, written and read in order. Reading checks every length against what is left, so
//! that no count in hostile bytes allocates more than the bytes themselves.

use bytes::{Buf, Bytes};

/// Bytes that end early, or a field that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, value: u128) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// A count or length. Nothing here comes near 4 GiB: messages and snapshots' headers are bounded far below.
    pub(crate) fn length(&mut self, value: usize) {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }

    pub(crate) fn slice(&mut self, value: &[u8]) {
        self.length(value.len());
        self.bytes.extend_from_slice(value);
    }

    pub(crate) fn str(&mut self, value: &str) {
        self.slice(value.as_bytes());
    }

    pub(crate) fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    pub(crate) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                write(self, value);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from(self.bytes)
    }
}

/// Takes fields from a buffer; slices share it.
#[derive(Debug)]
pub(crate) struct Reader {
    bytes: Bytes,
    what: &'static str,
}

impl Reader {
    /// `what` names the thing in errors.
    pub(crate) fn new(bytes: Bytes, what: &'static str) -> Self {
        Self { bytes, what }
    }

    fn need(&self, count: usize) -> Result<(), Malformed> {
        if self.bytes.len() < count { Err(self.malformed()) } else { Ok(()) }
    }

    pub(crate) fn malformed(&self) -> Malformed {
        Malformed(self.what)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.need(4)?;
        Ok(self.bytes.get_u32_le())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.need(8)?;
        Ok(self.bytes.get_u64_le())
    }

    pub(crate) fn u128(&mut self) -> Result<u128, Malformed> {
        self.need(16)?;
        Ok(self.bytes.get_u128_le())
    }

    pub(crate) fn slice(&mut self) -> Result<Bytes, Malformed> {
        let length = self.u32()? as usize;
        self.need(length)?;
        Ok(self.bytes.split_to(length))
    }

    pub(crate) fn string(&mut self) -> Result<String, Malformed> {
        let bytes = self.slice()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.malformed())
    }

    /// A count of items that take at least `least` bytes each.
    pub(crate) fn count(&mut self, least: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        self.need(count.saturating_mul(least.max(1)))?;
        Ok(count)
    }

    pub(crate) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(self.malformed()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn rest(self) -> Bytes {
        self.bytes
    }

    /// Everything must have been read: bytes behind the end are as wrong as missing ones.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }
}
