//! The file `node` of a data directory: who the node is.
//!
//! ```text
//! "rfnode" 0 format | node id u64 | boot u64 | name | cluster? (id u128, generation u64) | extra
//!                   | founders: count u32, (group, replica u64) .. | removed: count u32, replica u64 ..
//!                   | starts: count u32, (boot u64, number u64) .. | seen: count u32, (node id u64, boot u64, number u64) ..
//!                   | rolled back u8 | CRC32C u32
//! ```
//!
//! It is replaced as a whole: written under another name, synced, renamed, the directory synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use crate::codec::{Malformed, Reader, Writer};
use crate::disk::Disk;
use crate::error::StoreError;
use crate::rpc::ClusterTag;
use crate::starts::{Start, Starts};

const FILE: &str = "node";
const MAGIC: [u8; 8] = *b"rfnode\0\x03";
/// Where the format stands in it; every format ends with the same checksum.
const FORMAT_AT: usize = 7;
/// Far above what a name and a node's addresses take.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeFile {
    pub(crate) node_id: u64,
    pub(crate) boot: u64,
    pub(crate) name: String,
    pub(crate) cluster: Option<ClusterTag>,
    pub(crate) extra: Vec<u8>,
    /// Which replica alone may found a lone group, as this node has promised it.
    pub(crate) founders: BTreeMap<String, u64>,
    /// Replicas here that their lone groups have removed, until they are deleted.
    pub(crate) removed: BTreeSet<u64>,
    /// The starts of this directory.
    pub(crate) starts: Starts,
    /// The latest start of each other node that its replicas of lone groups have told.
    pub(crate) seen: BTreeMap<u64, Start>,
    /// Members of a lone group know more of this directory than is in it.
    pub(crate) rolled_back: bool,
}

impl NodeFile {
    /// A node that has never been.
    pub(crate) fn mint(name: &str) -> Self {
        let node_id = crate::runtime::random::<u64>().max(1);
        Self {
            node_id,
            boot: 0,
            name: name.to_owned(),
            cluster: None,
            extra: Vec::new(),
            founders: BTreeMap::new(),
            removed: BTreeSet::new(),
            starts: Starts::default(),
            seen: BTreeMap::new(),
            rolled_back: false,
        }
    }

    /// A node that keeps nothing: its memory is another one at every start.
    pub(crate) fn of_memory(name: &str) -> Self {
        let mut node = Self { boot: crate::runtime::random::<u64>() >> 1, ..Self::mint(name) };
        node.start();
        node
    }

    /// One more start.
    pub(crate) fn start(&mut self) {
        self.boot += 1;
        self.starts.add(Start { boot: self.boot, number: crate::runtime::random() });
    }

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.raw(&MAGIC);
        writer.u64(self.node_id);
        writer.u64(self.boot);
        writer.str(&self.name);
        writer.option(self.cluster, |writer, cluster| {
            writer.u128(cluster.id);
            writer.u64(cluster.generation);
        });
        writer.slice(&self.extra);
        writer.length(self.founders.len());
        for (group, founder) in &self.founders {
            writer.str(group);
            writer.u64(*founder);
        }
        writer.length(self.removed.len());
        self.removed.iter().for_each(|&replica| writer.u64(replica));
        writer.length(self.starts.iter().len());
        self.starts.iter().for_each(|start| write_start(&mut writer, start));
        writer.length(self.seen.len());
        for (node, start) in &self.seen {
            writer.u64(*node);
            write_start(&mut writer, *start);
        }
        writer.u8(u8::from(self.rolled_back));
        let mut bytes = writer.into_bytes().to_vec();
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        let damaged = |offset, reason: &str| DecodeError::Damaged { offset, reason: reason.to_owned() };
        let Some(body_bytes) = bytes.len().checked_sub(4).filter(|&length| length >= MAGIC.len()) else {
            return Err(damaged(bytes.len() as u64, "it is cut short"));
        };
        if bytes[..FORMAT_AT] != MAGIC[..FORMAT_AT] {
            return Err(damaged(0, "it is no node file"));
        }
        let (body, checksum) = bytes.split_at(body_bytes);
        if crc32c::crc32c(body).to_le_bytes() != checksum {
            return Err(damaged(body_bytes as u64, "its checksum does not match"));
        }
        if bytes[FORMAT_AT] != MAGIC[FORMAT_AT] {
            return Err(DecodeError::OtherFormat { found: bytes[FORMAT_AT] });
        }
        let mut reader = Reader::new(bytes::Bytes::copy_from_slice(&body[MAGIC.len()..]), "node file");
        Self::read(&mut reader).map_err(|error| damaged(MAGIC.len() as u64, &error.to_string()))
    }

    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let mut node = Self {
            node_id: reader.u64()?,
            boot: reader.u64()?,
            name: reader.string()?,
            cluster: reader.option(|reader| Ok(ClusterTag { id: reader.u128()?, generation: reader.u64()? }))?,
            extra: reader.slice()?.to_vec(),
            founders: BTreeMap::new(),
            removed: BTreeSet::new(),
            starts: Starts::default(),
            seen: BTreeMap::new(),
            rolled_back: false,
        };
        for _ in 0..reader.count(12)? {
            node.founders.insert(reader.string()?, reader.u64()?);
        }
        for _ in 0..reader.count(8)? {
            node.removed.insert(reader.u64()?);
        }
        for _ in 0..reader.count(16)? {
            node.starts.add(read_start(reader)?);
        }
        for _ in 0..reader.count(24)? {
            node.seen.insert(reader.u64()?, read_start(reader)?);
        }
        node.rolled_back = reader.u8()? != 0;
        Ok(node)
    }
}

fn write_start(writer: &mut Writer, start: Start) {
    writer.u64(start.boot);
    writer.u64(start.number);
}

fn read_start(reader: &mut Reader) -> Result<Start, Malformed> {
    Ok(Start { boot: reader.u64()?, number: reader.u64()? })
}

/// Why bytes are no node file of this program's.
#[derive(Debug)]
enum DecodeError {
    Damaged { offset: u64, reason: String },
    OtherFormat { found: u8 },
}

impl DecodeError {
    fn of(self, path: &Path) -> StoreError {
        let file = path.to_owned();
        match self {
            Self::Damaged { offset, reason } => StoreError::Damaged { file, offset, reason },
            Self::OtherFormat { found } => StoreError::OtherFormat { file, found, known: MAGIC[FORMAT_AT] },
        }
    }
}

/// Reads the file, mints it where there is none, raises the boot number, and syncs.
pub(crate) fn open(disk: &dyn Disk, dir: &Path, name: &str) -> Result<NodeFile, StoreError> {
    let path = dir.join(FILE);
    let mut node = match read(disk, &path) {
        Ok(Some(bytes)) => NodeFile::decode(bytes).map_err(|error| error.of(&path))?,
        Ok(None) => {
            let wal = dir.join("wal");
            let segments = disk.list(&wal).map_err(|error| StoreError::Io { path: wal, error })?;
            if !segments.is_empty() {
                let reason = "it is missing, but the directory has a log".to_owned();
                return Err(StoreError::Damaged { file: path, offset: 0, reason });
            }
            NodeFile::mint(name)
        }
        Err(error) => return Err(StoreError::Io { path, error }),
    };
    if node.name != name {
        return Err(StoreError::WrongName { path: dir.to_owned(), found: node.name, given: name.to_owned() });
    }
    if node.rolled_back {
        return Err(StoreError::RolledBack { path: dir.to_owned() });
    }
    node.start();
    write(disk, dir, &node)?;
    Ok(node)
}

/// Reads the file without raising the boot number; none if there is none.
pub(crate) fn inspect(disk: &dyn Disk, dir: &Path) -> Result<Option<NodeFile>, StoreError> {
    let path = dir.join(FILE);
    match read(disk, &path) {
        Ok(Some(bytes)) => NodeFile::decode(bytes).map(Some).map_err(|error| error.of(&path)),
        Ok(None) => Ok(None),
        Err(error) => Err(StoreError::Io { path, error }),
    }
}

/// Replaces the file; durable on return.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, node: &NodeFile) -> Result<(), StoreError> {
    let (path, unfinished) = (dir.join(FILE), dir.join("node.tmp"));
    let replace = || {
        let file = disk.create(&unfinished)?;
        file.write_at(&node.encode(), 0)?;
        file.sync()?;
        disk.rename(&unfinished, &path)?;
        disk.sync_dir(dir)
    };
    replace().map_err(|error| StoreError::Io { path: path.clone(), error })
}

fn read(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.len()?;
    if length > MAX_BYTES {
        return Err(io::Error::other(format!("{length} bytes, at most {MAX_BYTES} are a node file")));
    }
    // At most MAX_BYTES, so that the cast loses nothing.
    let mut bytes = vec![0; length as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("wal")).unwrap();
        dir
    }

    #[test]
    fn each_opening_raises_the_boot_number_and_keeps_the_rest() {
        let dir = dir();
        let first = open(&RealDisk, dir.path(), "n1").unwrap();
        let second = open(&RealDisk, dir.path(), "n1").unwrap();
        assert_eq!((first.boot, second.boot), (1, 2));
        assert_eq!(first.node_id, second.node_id);
        assert_eq!(second.starts.latest().boot, 2);
        assert!(!second.starts.lack(first.starts.latest()), "it remembers its starts");
    }

    #[test]
    fn everything_is_read_as_it_was_written() {
        let mut node = NodeFile::mint("n1");
        node.start();
        node.cluster = Some(ClusterTag { id: 3, generation: 4 });
        node.extra = vec![1, 2];
        node.founders.insert("jobs".into(), 5);
        node.removed.insert(6);
        node.seen.insert(7, Start { boot: 8, number: 9 });
        node.rolled_back = true;
        assert_eq!(NodeFile::decode(node.encode()).unwrap(), node);
    }

    #[test]
    fn a_directory_that_was_rolled_back_is_not_opened() {
        let dir = dir();
        let node = NodeFile { rolled_back: true, ..NodeFile::mint("n1") };
        write(&RealDisk, dir.path(), &node).unwrap();
        let error = open(&RealDisk, dir.path(), "n1").unwrap_err();
        assert!(matches!(&error, StoreError::RolledBack { .. }) && error.to_string().contains("wipe it"), "{error}");
    }

    #[test]
    fn the_bytes_are_these() {
        let mut starts = Starts::default();
        starts.add(Start { boot: 3, number: 4 });
        let node = NodeFile {
            node_id: 0x0102,
            boot: 3,
            name: "n1".into(),
            cluster: Some(ClusterTag { id: 0x0405, generation: 6 }),
            extra: b"extra".to_vec(),
            founders: [("g".into(), 7)].into(),
            removed: [8, 9].into(),
            starts,
            seen: [(10, Start { boot: 11, number: 12 })].into(),
            rolled_back: true,
        };
        let bytes = node.encode();
        let hex: Vec<String> =
            bytes.chunks(16).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        expect_test::expect![[r#"
            72666e6f646500030201000000000000
            0300000000000000020000006e310105
            04000000000000000000000000000006
            00000000000000050000006578747261
            01000000010000006707000000000000
            00020000000800000000000000090000
            00000000000100000003000000000000
            000400000000000000010000000a0000
            00000000000b000000000000000c0000
            00000000000189a75594
        "#]]
        .assert_eq(&(hex.join("\n") + "\n"));
        assert_eq!(NodeFile::decode(bytes).unwrap(), node);
        let bare = NodeFile { cluster: None, ..node };
        assert_eq!(NodeFile::decode(bare.encode()).unwrap(), bare);
    }

    #[test]
    fn another_nodes_directory_is_refused() {
        let dir = dir();
        open(&RealDisk, dir.path(), "n1").unwrap();
        let error = open(&RealDisk, dir.path(), "n2").unwrap_err();
        assert!(matches!(error, StoreError::WrongName { found, given, .. } if found == "n1" && given == "n2"));
    }

    #[test]
    fn every_damaged_byte_and_every_cut_is_noticed() {
        let dir = dir();
        open(&RealDisk, dir.path(), "n1").unwrap();
        let path = dir.path().join("node");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            assert!(matches!(open(&RealDisk, dir.path(), "n1"), Err(StoreError::Damaged { .. })), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(matches!(open(&RealDisk, dir.path(), "n1"), Err(StoreError::Damaged { .. })), "cut at {at}");
        }
    }

    #[test]
    fn a_newer_format_says_so() {
        let dir = dir();
        let mut bytes = NodeFile::mint("n1").encode();
        bytes[FORMAT_AT] = 9;
        let body_bytes = bytes.len() - 4;
        let checksum = crc32c::crc32c(&bytes[..body_bytes]).to_le_bytes();
        bytes[body_bytes..].copy_from_slice(&checksum);
        std::fs::write(dir.path().join("node"), bytes).unwrap();
        let error = open(&RealDisk, dir.path(), "n1").unwrap_err().to_string();
        assert!(error.contains("format 9") && error.contains("nothing is damaged"), "{error}");
    }

    #[test]
    fn a_log_without_a_node_file_is_no_new_node() {
        let dir = dir();
        std::fs::write(dir.path().join("wal").join("segment"), b"x").unwrap();
        assert!(matches!(open(&RealDisk, dir.path(), "n1"), Err(StoreError::Damaged { .. })));
    }
}
