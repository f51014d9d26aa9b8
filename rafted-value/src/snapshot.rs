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

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Reader, Writer};
use crate::disk::{Disk, DiskFile};
use crate::openraft_types::SnapshotMeta;
use crate::rpc::{read_snapshot_meta, write_snapshot_meta};
use crate::session::Sessions;
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
pub(crate) enum SnapshotBody {
    Inline(Bytes),
    File { file: Arc<dyn DiskFile>, path: PathBuf, length: u64 },
}

impl SnapshotBody {
    fn read(&self) -> io::Result<Bytes> {
        match self {
            Self::Inline(bytes) => Ok(bytes.clone()),
            Self::File { file, length, .. } => {
                let length = usize::try_from(*length).map_err(io::Error::other)?;
                let mut bytes = vec![0; length];
                file.read_at(&mut bytes, 0)?;
                Ok(bytes.into())
            }
        }
    }

    /// Its bytes in chunks, to be sent.
    pub(crate) fn into_chunks(self) -> Box<dyn Body> {
        Box::new(Chunks { body: self, offset: 0 })
    }
}

struct Chunks {
    body: SnapshotBody,
    offset: u64,
}

impl Body for Chunks {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Option<Bytes>>> + Send + '_>> {
        let offset = self.offset;
        let total = match &self.body {
            SnapshotBody::Inline(bytes) => bytes.len() as u64,
            SnapshotBody::File { length, .. } => *length,
        };
        let size = (total - offset).min(CHUNK_BYTES as u64);
        self.offset += size;
        let body = self.body.clone();
        Box::pin(async move {
            // At most CHUNK_BYTES, so that the casts below lose nothing.
            match body {
                _ if size == 0 => Ok(None),
                SnapshotBody::Inline(bytes) => Ok(Some(bytes.slice(offset as usize..(offset + size) as usize))),
                SnapshotBody::File { file, .. } => {
                    let read = move || {
                        let mut chunk = vec![0; size as usize];
                        file.read_at(&mut chunk, offset)?;
                        Ok(Some(Bytes::from(chunk)))
                    };
                    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
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
}

impl SnapshotStore {
    pub(crate) fn new(replica: u64, wal: Wal, files: Option<(Arc<dyn Disk>, PathBuf)>) -> Self {
        Self { replica, wal, files }
    }

    fn pointer(&self) -> Option<SnapshotPointer> {
        self.wal.state(self.replica).and_then(|state| state.snapshot)
    }

    /// The newest snapshot's content, checked.
    pub(crate) fn load(&self) -> io::Result<Option<SnapshotContent>> {
        let Some((_, body)) = self.current()? else {
            return Ok(None);
        };
        let name = match &body {
            SnapshotBody::Inline(_) => "the snapshot in the log".to_owned(),
            SnapshotBody::File { path, .. } => path.display().to_string(),
        };
        let content = SnapshotContent::decode(&body.read()?).map_err(|reason| damaged(&format!("{name}: {reason}")))?;
        Ok(Some(content))
    }

    /// The newest snapshot, to be sent.
    pub(crate) fn current(&self) -> io::Result<Option<(SnapshotMeta, SnapshotBody)>> {
        let Some(pointer) = self.pointer() else {
            return Ok(None);
        };
        let mut reader = Reader::new(pointer.meta, "snapshot pointer");
        let meta = read_snapshot_meta(&mut reader).map_err(io::Error::other)?;
        if pointer.file.is_empty() {
            return Ok(Some((meta, SnapshotBody::Inline(pointer.inline))));
        }
        let Some((disk, dir)) = &self.files else {
            return Err(damaged("a log in memory points to a snapshot file"));
        };
        let path = dir.join(&pointer.file);
        let file = disk.open(&path).map_err(|error| damaged(&format!("{}: {error}", path.display())))?;
        let length = file.len()?;
        Ok(Some((meta, SnapshotBody::File { file, path, length })))
    }

    /// Makes encoded content this replica's snapshot; durable on return.
    pub(crate) async fn save(&self, meta: &SnapshotMeta, encoded: Bytes) -> io::Result<SnapshotBody> {
        let body = match &self.files {
            Some((disk, dir)) if encoded.len() > MAX_INLINE_BYTES => {
                let (disk, dir, name) = (disk.clone(), dir.clone(), self.new_name());
                let write = move || write_file(&*disk, &dir, &name, &encoded);
                tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??
            }
            _ => SnapshotBody::Inline(encoded),
        };
        self.point_to(meta, body).await
    }

    /// Takes a received body in: judges it, and makes it this replica's snapshot.
    pub(crate) async fn install(&self, body: SnapshotBody) -> io::Result<SnapshotContent> {
        let to_read = body.clone();
        let bytes = tokio::task::spawn_blocking(move || to_read.read()).await.map_err(io::Error::other)??;
        let content = SnapshotContent::decode(&bytes).map_err(|reason| damaged(&format!("received: {reason}")))?;
        self.point_to(&content.meta, body).await?;
        Ok(content)
    }

    /// Stores a body that is being received. It becomes a snapshot only by [`SnapshotStore::install`].
    pub(crate) async fn receive(&self, mut chunks: Box<dyn Body>) -> io::Result<SnapshotBody> {
        let mut received = BytesMut::new();
        let mut file: Option<(Arc<dyn DiskFile>, PathBuf)> = None;
        let mut length = 0_u64;
        while let Some(chunk) = chunks.next().await? {
            let offset = length;
            length += chunk.len() as u64;
            if length > MAX_SNAPSHOT_BYTES {
                return Err(io::Error::other(format!("a snapshot is over {MAX_SNAPSHOT_BYTES} bytes")));
            }
            let Some((disk, dir)) = &self.files else {
                received.extend_from_slice(&chunk);
                continue;
            };
            if file.is_none() && length <= MAX_INLINE_BYTES as u64 {
                received.extend_from_slice(&chunk);
                continue;
            }
            let (handle, _) = match &file {
                Some(open) => open,
                None => {
                    let path = dir.join(format!("{}{UNFINISHED}", self.new_name()));
                    let handle = disk.create(&path)?;
                    handle.write_at(&received, 0)?;
                    received.clear();
                    file.insert((handle, path))
                }
            };
            let handle = handle.clone();
            let write = move || handle.write_at(&chunk, offset);
            tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
        }
        Ok(match file {
            None => SnapshotBody::Inline(received.freeze()),
            Some((file, path)) => SnapshotBody::File { file, path, length },
        })
    }

    /// Judges a received body: whole, and what its sender says it is.
    pub(crate) async fn check(&self, body: SnapshotBody, meta: &SnapshotMeta) -> io::Result<SnapshotBody> {
        let to_read = body.clone();
        let bytes = tokio::task::spawn_blocking(move || to_read.read()).await.map_err(io::Error::other)??;
        match SnapshotContent::decode(&bytes) {
            Ok(content) if content.meta == *meta => Ok(body),
            Ok(_) => Err(damaged("received: it is another snapshot than announced")),
            Err(reason) => Err(damaged(&format!("received: {reason}"))),
        }
    }

    fn new_name(&self) -> String {
        format!("{:016x}-{:016x}.snap", self.replica, rand::random::<u64>())
    }

    async fn point_to(&self, meta: &SnapshotMeta, body: SnapshotBody) -> io::Result<SnapshotBody> {
        let body = self.finish_file(body).await?;
        let old = self.pointer().map(|pointer| pointer.file).filter(|name| !name.is_empty());
        let mut writer = Writer::default();
        write_snapshot_meta(&mut writer, meta);
        let (file, inline) = match &body {
            SnapshotBody::Inline(bytes) => (String::new(), bytes.clone()),
            SnapshotBody::File { path, .. } => (file_name(path), Bytes::new()),
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
        synced.await.map_err(|_| io::Error::other("the log has stopped"))??;
        if let (Some((disk, dir)), Some(old)) = (&self.files, old)
            && old != file
        {
            // What stays behind after a failure here is swept at the next start.
            if let Err(error) = disk.remove(&dir.join(&old)) {
                tracing::warn!(file = old, %error, "an old snapshot was not removed");
            }
        }
        Ok(body)
    }

    /// Gives a received file its name.
    async fn finish_file(&self, body: SnapshotBody) -> io::Result<SnapshotBody> {
        match (body, &self.files) {
            (SnapshotBody::File { file, path, length }, Some((disk, dir))) if is_unfinished(&path) => {
                let (disk, dir) = (disk.clone(), dir.clone());
                let finish = move || {
                    file.sync()?;
                    let finished = path.with_extension("");
                    disk.rename(&path, &finished)?;
                    disk.sync_dir(&dir)?;
                    Ok(SnapshotBody::File { file, path: finished, length })
                };
                tokio::task::spawn_blocking(finish).await.map_err(io::Error::other)?
            }
            (body, _) => Ok(body),
        }
    }
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

fn write_file(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<SnapshotBody> {
    let unfinished = dir.join(format!("{name}{UNFINISHED}"));
    let path = dir.join(name);
    let file = disk.create(&unfinished)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    disk.rename(&unfinished, &path)?;
    disk.sync_dir(dir)?;
    Ok(SnapshotBody::File { file, path, length: bytes.len() as u64 })
}

fn is_unfinished(path: &Path) -> bool {
    file_name(path).ends_with(UNFINISHED)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
