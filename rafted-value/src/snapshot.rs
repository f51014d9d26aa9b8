//! Snapshots of a replica: one checksummed file each, or, when small, a record of the log.
//!
//! ```text
//! "rvsnap" 0 format | version u32 | log time u64 | meta | sessions | value .. | CRC32C u32
//! ```
//!
//! A file becomes the snapshot in this order, and a crash between any two leaves the old one in place:
//! written under a name of its own, synced, renamed, the directory synced, then the pointer record in the log,
//! synced; only then the old file goes.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::any_value::{AnyValue, ValueFactory};
use crate::codec::{Reader, Writer};
use crate::disk::{Disk, DiskFile};
use crate::openraft_types::SnapshotMeta;
use crate::rpc::{read_snapshot_meta, write_snapshot_meta};
use crate::session::Sessions;
use crate::threads::Threads;
use crate::transport::Body;
use crate::value::LogTime;
use crate::wal::{Position, SnapshotPointer, Wal};

const MAGIC: [u8; 8] = *b"rvsnap\0\x01";
const CHECKSUM_BYTES: usize = 4;
/// Smaller snapshots live in the log: a file of their own would cost three syncs.
const MAX_INLINE_BYTES: usize = 64 << 10;
/// Sent and read in pieces of this size.
const CHUNK_BYTES: usize = 256 << 10;
/// What a sender may make this node write before the checksum is judged.
const MAX_SNAPSHOT_BYTES: u64 = 64 << 30;
/// How often a full disk is asked again.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// The ending of files that are not yet snapshots.
const UNFINISHED: &str = ".tmp";

/// What a snapshot says.
#[derive(Debug)]
pub(crate) struct SnapshotContent {
    pub(crate) meta: SnapshotMeta,
    pub(crate) log_time: LogTime,
    pub(crate) sessions: Sessions,
    /// The value's version.
    pub(crate) version: u32,
    /// The encoded value.
    pub(crate) value: Bytes,
}

impl SnapshotContent {
    pub(crate) fn encode(&self) -> Bytes {
        let mut writer = Writer::default();
        writer.raw(&MAGIC);
        writer.u32(self.version);
        writer.u64(self.log_time.as_millis());
        write_snapshot_meta(&mut writer, &self.meta);
        self.sessions.write(&mut writer);
        let head = writer.into_bytes();
        let mut bytes = BytesMut::with_capacity(head.len() + self.value.len() + CHECKSUM_BYTES);
        bytes.put_slice(&head);
        bytes.put_slice(&self.value);
        let checksum = crc32c::crc32c(&bytes);
        bytes.put_u32_le(checksum);
        bytes.freeze()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, String> {
        let body_bytes = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or("it is cut short")?;
        let (body, checksum) = (bytes.slice(..body_bytes), &bytes[body_bytes..]);
        if crc32c::crc32c(&body).to_le_bytes() != checksum {
            return Err("its checksum does not match".into());
        }
        if body.get(..6) == MAGIC.get(..6) && body.get(..8) != Some(&MAGIC) {
            return Err("it has a newer format than this program knows; upgrade the program".into());
        }
        let body = body.strip_prefix(&MAGIC).map(|rest| body.slice_ref(rest)).ok_or("it is no snapshot")?;
        let mut reader = Reader::new(body, "snapshot");
        let mut read = || {
            let version = reader.u32()?;
            let log_time = LogTime::from_millis(reader.u64()?);
            let meta = read_snapshot_meta(&mut reader)?;
            Ok((version, log_time, meta, Sessions::read(&mut reader)?))
        };
        let (version, log_time, meta, sessions) = read().map_err(|error: crate::codec::Malformed| error.to_string())?;
        Ok(Self { meta, log_time, sessions, version, value: reader.rest() })
    }
}

/// A snapshot's bytes, wherever they are.
#[derive(Clone)]
enum Source {
    Inline(Bytes),
    File(Arc<SnapshotFile>),
}

/// A snapshot that openraft hands on: to be sent, or to be installed.
pub(crate) struct SnapshotBody {
    source: Source,
    /// What a received one says, once it was judged.
    prepared: Option<Prepared>,
}

/// A received snapshot that this program can read, before openraft has accepted it.
pub(crate) struct Prepared {
    pub(crate) content: SnapshotContent,
    pub(crate) value: Box<dyn AnyValue>,
}

/// A file that goes with its last handle, unless the log points to it.
struct SnapshotFile {
    disk: Arc<dyn Disk>,
    threads: Threads,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    length: u64,
    kept: AtomicBool,
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Acquire)
            && let Err(error) = self.disk.remove(&self.path)
        {
            // The next start sweeps it.
            tracing::debug!(file = %self.path.display(), %error, "an unused snapshot file was not removed");
        }
    }
}

impl Source {
    fn length(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::File(file) => file.length,
        }
    }

    fn read(&self) -> io::Result<Bytes> {
        match self {
            Self::Inline(bytes) => Ok(bytes.clone()),
            Self::File(file) => {
                let length = usize::try_from(file.length).map_err(io::Error::other)?;
                let mut bytes = vec![0; length];
                file.file.read_at(&mut bytes, 0)?;
                Ok(bytes.into())
            }
        }
    }
}

impl SnapshotBody {
    fn new(source: Source) -> Self {
        Self { source, prepared: None }
    }

    /// Its bytes in chunks, to be sent.
    pub(crate) fn into_chunks(self) -> Box<dyn Body> {
        Box::new(Chunks { source: self.source, offset: 0 })
    }
}

struct Chunks {
    source: Source,
    offset: u64,
}

impl Body for Chunks {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Option<Bytes>>> + Send + '_>> {
        let offset = self.offset;
        let size = (self.source.length() - offset).min(CHUNK_BYTES as u64);
        self.offset += size;
        let source = self.source.clone();
        Box::pin(async move {
            // At most CHUNK_BYTES, so that the casts below lose nothing.
            match source {
                _ if size == 0 => Ok(None),
                Source::Inline(bytes) => Ok(Some(bytes.slice(offset as usize..(offset + size) as usize))),
                Source::File(file) => {
                    let threads = file.threads.clone();
                    blocking(&threads, move || {
                        let mut chunk = vec![0; size as usize];
                        file.file.read_at(&mut chunk, offset)?;
                        Ok(Some(Bytes::from(chunk)))
                    })
                    .await
                }
            }
        })
    }
}

/// The snapshots of one replica.
#[derive(Clone)]
pub(crate) struct SnapshotStore {
    replica: u64,
    wal: Wal,
    /// Where files live; `None` in memory, where every snapshot is inline.
    files: Option<(Arc<dyn Disk>, PathBuf)>,
    threads: Threads,
}

impl SnapshotStore {
    pub(crate) fn new(replica: u64, wal: Wal, files: Option<(Arc<dyn Disk>, PathBuf)>, threads: Threads) -> Self {
        Self { replica, wal, files, threads }
    }

    /// Whether the disk has no room for another snapshot.
    pub(crate) fn is_full(&self) -> bool {
        self.wal.is_full()
    }

    fn pointer(&self) -> Option<SnapshotPointer> {
        self.wal.state(self.replica).and_then(|state| state.snapshot)
    }

    /// The newest snapshot's content, checked. Reads and decodes all of it: not on a thread of the network.
    pub(crate) fn load(&self) -> io::Result<Option<SnapshotContent>> {
        let Some((_, body)) = self.current()? else { return Ok(None) };
        let name = match &body.source {
            Source::Inline(_) => "the snapshot in the log".to_owned(),
            Source::File(file) => file.path.display().to_string(),
        };
        let bytes = body.source.read()?;
        let content = SnapshotContent::decode(&bytes).map_err(|reason| damaged(&format!("{name}: {reason}")))?;
        Ok(Some(content))
    }

    /// The newest snapshot, to be sent.
    pub(crate) fn current(&self) -> io::Result<Option<(SnapshotMeta, SnapshotBody)>> {
        loop {
            let Some(pointer) = self.pointer() else { return Ok(None) };
            match self.open(&pointer) {
                // A newer one took its place, and its file, after the pointer was read.
                Err(_) if self.pointer().is_some_and(|now| now.file != pointer.file) => {}
                opened => return opened.map(Some),
            }
        }
    }

    fn open(&self, pointer: &SnapshotPointer) -> io::Result<(SnapshotMeta, SnapshotBody)> {
        let mut reader = Reader::new(pointer.meta.clone(), "snapshot pointer");
        let meta = read_snapshot_meta(&mut reader).map_err(io::Error::other)?;
        if pointer.file.is_empty() {
            return Ok((meta, SnapshotBody::new(Source::Inline(pointer.inline.clone()))));
        }
        let Some((disk, dir)) = &self.files else {
            return Err(damaged("a log in memory points to a snapshot file"));
        };
        let path = dir.join(&pointer.file);
        let file = disk.open(&path).map_err(|error| damaged(&format!("{}: {error}", path.display())))?;
        let length = file.len()?;
        let kept = AtomicBool::new(true);
        let threads = self.threads.clone();
        let file = SnapshotFile { disk: disk.clone(), threads, file, path, length, kept };
        Ok((meta, SnapshotBody::new(Source::File(Arc::new(file)))))
    }

    /// Makes encoded content this replica's snapshot; durable on return. Waits while the disk is full: openraft
    /// takes no error for an answer, and starts no second build meanwhile.
    pub(crate) async fn save(&self, meta: &SnapshotMeta, encoded: Bytes) -> io::Result<SnapshotBody> {
        let source = match &self.files {
            Some((disk, dir)) if encoded.len() > MAX_INLINE_BYTES => loop {
                let (disk, dir, name, encoded) = (disk.clone(), dir.clone(), self.new_name(), encoded.clone());
                let threads = self.threads.clone();
                let write = move || write_file(disk, threads, &dir, &name, &encoded);
                match blocking(&self.threads, write).await {
                    Ok(file) => break Source::File(Arc::new(file)),
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        tracing::error!(%error, "a snapshot waits for room on the disk");
                        tokio::time::sleep(FULL_RETRY).await;
                    }
                    Err(error) => return Err(error),
                }
            },
            _ => Source::Inline(encoded),
        };
        self.point_to(meta, &source).await?;
        Ok(SnapshotBody::new(source))
    }

    /// Stores a body that is being received, and judges it: whole, what its sender says it is, and readable by
    /// this program. What is given up leaves no file behind.
    pub(crate) async fn receive(
        &self,
        chunks: Box<dyn Body>,
        announced: &SnapshotMeta,
        factory: &ValueFactory,
    ) -> io::Result<SnapshotBody> {
        let source = self.store(chunks).await?;
        let prepared = judge(&self.threads, source.clone(), Some(announced.clone()), factory.clone()).await?;
        Ok(SnapshotBody { prepared: Some(prepared), source })
    }

    async fn store(&self, mut chunks: Box<dyn Body>) -> io::Result<Source> {
        let mut received = BytesMut::new();
        let mut file: Option<SnapshotFile> = None;
        let mut length = 0_u64;
        while let Some(chunk) = chunks.next().await? {
            let offset = length;
            length += chunk.len() as u64;
            if length > MAX_SNAPSHOT_BYTES {
                return Err(io::Error::other(format!("a snapshot is over {MAX_SNAPSHOT_BYTES} bytes")));
            }
            if self.files.is_none() || (file.is_none() && length <= MAX_INLINE_BYTES as u64) {
                received.extend_from_slice(&chunk);
                continue;
            }
            let open = match file.take() {
                Some(open) => open,
                None => self.unfinished(received.split().freeze()).await?,
            };
            file = Some(
                blocking(&self.threads, move || {
                    open.file.write_at(&chunk, offset)?;
                    Ok(open)
                })
                .await?,
            );
        }
        match file {
            None => Ok(Source::Inline(received.freeze())),
            Some(unfinished) => {
                let finish = move || finish_file(unfinished, length);
                blocking(&self.threads, finish).await.map(Arc::new).map(Source::File)
            }
        }
    }

    /// A file for a body of which the beginning is here.
    async fn unfinished(&self, beginning: Bytes) -> io::Result<SnapshotFile> {
        let Some((disk, dir)) = self.files.clone() else { return Err(io::Error::other("no files in memory")) };
        let path = dir.join(format!("{}{UNFINISHED}", self.new_name()));
        let threads = self.threads.clone();
        blocking(&self.threads, move || {
            let file = disk.create(&path)?;
            let open = SnapshotFile { disk, threads, file, path, length: 0, kept: AtomicBool::new(false) };
            open.file.write_at(&beginning, 0)?;
            Ok(open)
        })
        .await
    }

    /// Makes an accepted body this replica's snapshot, and gives out what it says.
    pub(crate) async fn install(&self, body: SnapshotBody, factory: &ValueFactory) -> io::Result<Prepared> {
        let prepared = match body.prepared {
            Some(prepared) => prepared,
            None => judge(&self.threads, body.source.clone(), None, factory.clone()).await?,
        };
        self.point_to(&prepared.content.meta, &body.source).await?;
        Ok(prepared)
    }

    fn new_name(&self) -> String {
        format!("{:016x}-{:016x}.snap", self.replica, crate::runtime::random::<u64>())
    }

    /// Points the log to it, unless the log points to a newer one already.
    async fn point_to(&self, meta: &SnapshotMeta, source: &Source) -> io::Result<()> {
        let old = self.pointer().map(|pointer| pointer.file).filter(|name| !name.is_empty());
        let mut writer = Writer::default();
        write_snapshot_meta(&mut writer, meta);
        let (file, inline) = match source {
            Source::Inline(bytes) => (String::new(), bytes.clone()),
            Source::File(file) => {
                // From here on the log may point to it, also when this future is dropped.
                file.kept.store(true, Ordering::Release);
                (file_name(&file.path), Bytes::new())
            }
        };
        let pointer = SnapshotPointer {
            position: meta.last_log_id.map(|id| Position { term: **id.committed_leader_id(), index: id.index }),
            meta: writer.into_bytes(),
            file: file.clone(),
            inline,
        };
        let (done, synced) = tokio::sync::oneshot::channel();
        let told = Box::new(move |result| drop(done.send(result)));
        self.wal.save_snapshot(self.replica, pointer, told);
        let saved = synced.await.map_err(|_| io::Error::other("the log has stopped"))?;
        if let (Err(_), Source::File(file)) = (&saved, source) {
            file.kept.store(false, Ordering::Release);
        }
        match saved {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            saved => saved?,
        }
        if let (Some((disk, dir)), Some(old)) = (&self.files, old)
            && old != file
        {
            let (disk, path) = (disk.clone(), dir.join(&old));
            // What stays behind after a failure here is swept at the next start.
            if let Err(error) = blocking(&self.threads, move || disk.remove(&path)).await {
                tracing::warn!(file = old, %error, "an old snapshot was not removed");
            }
        }
        Ok(())
    }
}

/// Reads a snapshot: whole, the announced one, and readable by this program.
async fn judge(
    threads: &Threads,
    source: Source,
    announced: Option<SnapshotMeta>,
    factory: ValueFactory,
) -> io::Result<Prepared> {
    blocking(threads, move || {
        let received = |reason: String| damaged(&format!("received: {reason}"));
        let content = SnapshotContent::decode(&source.read()?).map_err(received)?;
        if announced.is_some_and(|announced| announced != content.meta) {
            return Err(received("it is another snapshot than announced".into()));
        }
        let value = factory.restore(content.version, &content.value).map_err(|error| received(error.to_string()))?;
        Ok(Prepared { content: SnapshotContent { value: Bytes::new(), ..content }, value })
    })
    .await
}

/// Work with files or large values: not on a thread of the network.
async fn blocking<T: Send + 'static>(
    threads: &Threads,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    threads.run(work).await?
}

/// Removes files to which no replica's log points: what crashes left behind.
pub(crate) fn sweep(disk: &dyn Disk, dir: &Path, in_use: impl Fn(&str) -> bool) -> io::Result<()> {
    for name in disk.list(dir)? {
        if !in_use(&name) {
            disk.remove(&dir.join(&name))?;
        }
    }
    Ok(())
}

fn write_file(disk: Arc<dyn Disk>, threads: Threads, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<SnapshotFile> {
    let path = dir.join(format!("{name}{UNFINISHED}"));
    let file = disk.create(&path)?;
    let unfinished = SnapshotFile { disk, threads, file, path, length: 0, kept: AtomicBool::new(false) };
    unfinished.file.write_at(bytes, 0)?;
    finish_file(unfinished, bytes.len() as u64)
}

/// Syncs a file and gives it its name.
fn finish_file(unfinished: SnapshotFile, length: u64) -> io::Result<SnapshotFile> {
    unfinished.file.sync()?;
    let path = unfinished.path.with_extension("");
    unfinished.disk.rename(&unfinished.path, &path)?;
    // Renamed: there is nothing left to remove under the old name.
    unfinished.kept.store(true, Ordering::Release);
    let (disk, threads, file) = (unfinished.disk.clone(), unfinished.threads.clone(), unfinished.file.clone());
    let finished = SnapshotFile { disk, threads, file, path, length, kept: AtomicBool::new(false) };
    if let Some(dir) = finished.path.parent() {
        finished.disk.sync_dir(dir)?;
    }
    Ok(finished)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
