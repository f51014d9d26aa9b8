//! Reads a snapshot without knowing its value's type: whether every byte is what was written.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rkyv::util::AlignedVec;

use super::format::{FrameReader, Head, Kind};
use crate::codec::Reader;
use crate::disk::{Disk, DiskFile};
use crate::rpc::read_snapshot_meta;
use crate::wal::SnapshotPointer;

/// What is read of a file at once.
const BUFFER_BYTES: u64 = 256 << 10;

/// What is wrong with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotFlaw {
    /// Its file; none if it is a record of the log.
    pub(crate) file: Option<PathBuf>,
    /// Where the part starts that is wrong.
    pub(crate) offset: u64,
    pub(crate) what: String,
}

/// Reads the snapshot that a log points to. The inner result judges it, the outer one says that it could not be read.
pub(crate) fn verify(disk: &dyn Disk, dir: &Path, pointer: &SnapshotPointer) -> io::Result<Result<u64, SnapshotFlaw>> {
    let file = (!pointer.file.is_empty()).then(|| dir.join(&pointer.file));
    let flaw = |offset: u64, what: String| SnapshotFlaw { file: file.clone(), offset, what };
    let (length, judged) = match &file {
        None => (pointer.inline.len() as u64, judge(&pointer.inline[..], &pointer.meta)),
        Some(path) => match disk.open(path) {
            Ok(file) => {
                let length = file.len()?;
                (length, judge(FileReader { file, offset: 0, length, buffer: Bytes::new() }, &pointer.meta))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Err(flaw(0, "the log points to this snapshot, and it is missing".into())));
            }
            Err(error) => return Err(error),
        },
    };
    match judged {
        Ok(()) => Ok(Ok(length)),
        Err((offset, error)) if error.kind() == io::ErrorKind::InvalidData => Ok(Err(flaw(offset, error.to_string()))),
        Err((_, error)) => Err(error),
    }
}

fn judge(input: impl Read, pointed_to: &Bytes) -> Result<(), (u64, io::Error)> {
    let mut frames = FrameReader::begin(input).map_err(|error| (0, error))?;
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut buffer = AlignedVec::new();
    loop {
        let kind = frames.peek().map_err(|error| (frames.frame_at(), error))?;
        if kind == Kind::End {
            break;
        }
        buffer.clear();
        frames.piece(kind, &mut buffer).map_err(|error| (frames.frame_at(), error))?;
        if kind == Kind::Head {
            let head = Head::decode(&buffer).map_err(|error| (frames.frame_at(), invalid(error.to_string())))?;
            let meta = read_snapshot_meta(&mut Reader::new(pointed_to.clone(), "snapshot pointer"));
            let meta = meta.map_err(|error| (frames.frame_at(), invalid(error.to_string())))?;
            if head.meta != meta {
                let what = "it is another snapshot than the one that the log points to".to_owned();
                return Err((frames.frame_at(), invalid(what)));
            }
        }
    }
    let end_at = frames.frame_at();
    frames.end().map_err(|error| (end_at, error))
}

/// Reads a file in order.
struct FileReader {
    file: Arc<dyn DiskFile>,
    offset: u64,
    length: u64,
    buffer: Bytes,
}

impl Read for FileReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            // At most BUFFER_BYTES, so that the cast loses nothing.
            let mut bytes = vec![0; (self.length - self.offset).min(BUFFER_BYTES) as usize];
            self.file.read_at(&mut bytes, self.offset)?;
            self.offset += bytes.len() as u64;
            self.buffer = bytes.into();
        }
        let taken = self.buffer.split_to(into.len().min(self.buffer.len()));
        into[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}
