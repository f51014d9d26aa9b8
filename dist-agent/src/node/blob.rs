//! The values of keyspaces over HTTP: bytes as they are. Versions and conditions are the keyspace's own.

use raft_kv::{KeyedValue, Outcome};

rafted_value::messages! {
    /// Bytes.
    #[derive(Eq)]
    pub struct Blob {
        bytes: Vec<u8>,
    }

    /// A write. It answers whether there was a value before.
    #[derive(Eq)]
    pub enum BlobCommand {
        /// These bytes are the value from now on.
        Put(Vec<u8>),
        /// There is no value from now on.
        Delete,
    }
}

impl KeyedValue for Blob {
    const NAME: &'static str = "blob";
    type Command = BlobCommand;
    type Reply = bool;
    type Query = ();
    type Answer = Vec<u8>;

    fn command(current: Option<&Self>, _: &str, command: BlobCommand) -> Outcome<Self, bool> {
        let existed = current.is_some();
        match command {
            BlobCommand::Put(bytes) => Outcome::set(Self { bytes }, existed),
            BlobCommand::Delete => Outcome::remove(existed),
        }
    }

    fn query(&self, _: &str, (): ()) -> Vec<u8> {
        self.bytes.clone()
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A version as HTTP has it, with its quotes.
pub(crate) fn to_etag(version: u64) -> String {
    format!("\"{version:x}\"")
}

/// `None` where the text is no tag that [`to_etag`] makes: then no value has it.
pub(crate) fn from_etag(etag: &str) -> Option<u64> {
    let digits = etag.strip_prefix('"')?.strip_suffix('"')?;
    let version = u64::from_str_radix(digits, 16).ok()?;
    (to_etag(version) == etag).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_bytes_and_says_whether_there_were_any() {
        let put = |current: Option<&Blob>| Blob::command(current, "k", BlobCommand::Put(b"new".to_vec()));
        let blob = Blob { bytes: b"old".to_vec() };
        assert_eq!(put(None), Outcome::set(Blob { bytes: b"new".to_vec() }, false));
        assert_eq!(put(Some(&blob)), Outcome::set(Blob { bytes: b"new".to_vec() }, true));
        assert_eq!(Blob::command(Some(&blob), "k", BlobCommand::Delete), Outcome::remove(true));
        assert_eq!(Blob::command(None, "k", BlobCommand::Delete), Outcome::remove(false));
        assert_eq!(blob.query("k", ()), b"old");
    }

    #[test]
    fn tags_read_back_and_foreign_ones_are_none() {
        for version in [0, 0x1234, u64::MAX] {
            assert_eq!(from_etag(&to_etag(version)), Some(version));
        }
        for foreign in ["", "\"", "\"\"", "1", "\"x\"", "W/\"1\"", "\"1", "\"+1\"", "\"01\"", "\"1\" "] {
            assert_eq!(from_etag(foreign), None, "{foreign:?}");
        }
    }
}
