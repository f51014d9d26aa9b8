//! Where a snapshot's bytes are: in memory while they are few, else in a file.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::disk::{Disk, DiskFile};
use crate::threads::Threads;

/// Smaller snapshots live in the log: a file of their own would cost three syncs.
pub(super) const MAX_INLINE_BYTES: usize = 64 << 10;
/// What is gathered for one write, and read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// How much is written between two syncs. One sync of a large file would keep the log's syncs, which go to the same
/// disk, waiting for all of it.
const SYNC_BYTES: u64 = 4 << 20;
/// The ending of files that are not yet snapshots.
const UNFINISHED: &str = ".tmp";

/// A node's folder of snapshots.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
}

/// A snapshot's bytes, wherever they are.
#[derive(Clone)]
pub(super) enum Source {
    Inline(Bytes),
    File(Arc<SnapshotFile>),
}

/// A file that goes with its last handle, unless the log points to it.
pub(super) struct SnapshotFile {
    threads: Threads,
    disk: Arc<dyn Disk>,
    file: Option<Arc<dyn DiskFile>>,
    path: PathBuf,
    length: u64,
    kept: AtomicBool,
}

impl SnapshotFile {
    pub(super) fn open(files: &Files, threads: &Threads, name: &str) -> io::Result<Self> {
        let path = files.dir.join(name);
        let file = files.disk.open(&path)?;
        let length = file.len()?;
        let (threads, disk) = (threads.clone(), files.disk.clone());
        Ok(Self { threads, disk, file: Some(file), path, length, kept: AtomicBool::new(true) })
    }

    pub(super) fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file stays when its last handle goes. Keep it before the log may point to it.
    pub(super) fn keep(&self, kept: bool) {
        self.kept.store(kept, Ordering::Release);
    }

    fn file(&self) -> io::Result<&Arc<dyn DiskFile>> {
        self.file.as_ref().ok_or_else(|| io::Error::other("the file is closed"))
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        let (disk, path, file) = (self.disk.clone(), std::mem::take(&mut self.path), self.file.take());
        if self.kept.load(Ordering::Acquire) {
            return;
        }
        // A large file takes its time to go, and this may be a thread of the network.
        drop(self.threads.spawn(move || {
            drop(file);
            if let Err(error) = disk.remove(&path) {
                // The next start sweeps it.
                tracing::debug!(file = %path.display(), %error, "an unused snapshot file was not removed");
            }
        }));
    }
}

impl Source {
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::File(file) => file.length,
        }
    }

    /// Reads `length` bytes, which must be there.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        match self {
            Self::Inline(bytes) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let end = start.checked_add(length).filter(|&end| end <= bytes.len());
                end.map(|end| bytes.slice(start..end)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            Self::File(file) => {
                let mut bytes = vec![0; length];
                file.file()?.read_at(&mut bytes, offset)?;
                Ok(bytes.into())
            }
        }
    }

    /// Reads it from its beginning, with a buffer of its own.
    pub(super) fn reader(&self) -> SourceReader {
        SourceReader { source: self.clone(), offset: 0, buffer: Bytes::new() }
    }
}

/// Reads a snapshot in order.
pub(super) struct SourceReader {
    source: Source,
    offset: u64,
    buffer: Bytes,
}

impl Read for SourceReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            let left = self.source.length() - self.offset;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER_BYTES);
            self.buffer = self.source.read(self.offset, length)?;
            self.offset += length as u64;
        }
        let taken = self.buffer.split_to(into.len().min(self.buffer.len()));
        into[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// How long to wait after so many bytes were written.
pub(super) type Pace = Arc<dyn Fn(u64) -> Duration + Send + Sync>;

/// Bytes that are to become a snapshot, written in order. What is dropped unfinished leaves no file.
pub(super) struct Spool {
    threads: Threads,
    /// At whose rate a file is written; its thread sleeps.
    paced: Option<Pace>,
    /// Where a large one goes; `None` in memory, where all stay in memory.
    place: Option<(Files, String)>,
    file: Option<SnapshotFile>,
    buffer: Vec<u8>,
    /// Bytes in the file.
    written: u64,
    synced: u64,
}

impl Spool {
    /// `name` is the finished file's, and no other's.
    pub(super) fn new(threads: Threads, files: Option<Files>, name: String) -> Self {
        let place = files.map(|files| (files, name));
        Self { threads, paced: None, place, file: None, buffer: Vec::new(), written: 0, synced: 0 }
    }

    /// Writes at a rate.
    pub(super) fn paced(self, pace: Pace) -> Self {
        Self { paced: Some(pace), ..self }
    }

    pub(super) fn length(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Syncs it and gives it its name.
    pub(super) fn finish(mut self) -> io::Result<Source> {
        if self.file.is_some() {
            self.write_out()?;
        }
        let Some(mut unfinished) = self.file.take() else {
            return Ok(Source::Inline(std::mem::take(&mut self.buffer).into()));
        };
        let file = unfinished.file()?.clone();
        file.sync()?;
        let path = unfinished.path.with_extension("");
        unfinished.disk.rename(&unfinished.path, &path)?;
        // From here on it is removed under its new name.
        unfinished.path = path;
        unfinished.length = self.written;
        if let Some(dir) = unfinished.path.parent() {
            unfinished.disk.sync_dir(dir)?;
        }
        Ok(Source::File(Arc::new(unfinished)))
    }

    fn open_file(&self, files: &Files, name: &str) -> io::Result<SnapshotFile> {
        let path = files.dir.join(format!("{name}{UNFINISHED}"));
        let file = files.disk.create(&path)?;
        let (threads, disk) = (self.threads.clone(), files.disk.clone());
        Ok(SnapshotFile { threads, disk, file: Some(file), path, length: 0, kept: AtomicBool::new(false) })
    }

    fn write_out(&mut self) -> io::Result<()> {
        if self.file.is_none()
            && let Some((files, name)) = &self.place
        {
            self.file = Some(self.open_file(files, name)?);
        }
        let Some(file) = &self.file else { return Ok(()) };
        let file = file.file()?;
        file.write_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        let wait = self.paced.as_ref().map_or(Duration::ZERO, |pace| pace(self.buffer.len() as u64));
        self.buffer.clear();
        if self.written - self.synced >= SYNC_BYTES {
            file.sync()?;
            self.synced = self.written;
        }
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        Ok(())
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.place.is_none() {
            self.buffer.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let limit = if self.file.is_some() { BUFFER_BYTES } else { MAX_INLINE_BYTES };
        if self.buffer.len() + bytes.len() > limit && !self.buffer.is_empty() {
            self.write_out()?;
        }
        let taken =
            if self.file.is_some() { bytes.len().min(BUFFER_BYTES) } else { bytes.len().min(MAX_INLINE_BYTES + 1) };
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.file.is_none() && self.buffer.len() > MAX_INLINE_BYTES {
            self.write_out()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
