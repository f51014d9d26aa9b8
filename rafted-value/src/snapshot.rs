//! Snapshots of a replica: one checksummed file each, or, when small, a record of the log.
//!
//! ```text
//! value --pieces--> frames (format.rs) --> a file of its own, or the log (file.rs) --> pointer in the log
//! ```
//!
//! A file becomes the snapshot in this order, and a crash between any two leaves the old one in place: written under a
//! name of its own, synced, renamed, the directory synced, then the pointer record in the log, synced; only then the old
//! file goes, and not before its last reader.
//!
//! Neither writing nor reading holds more of a snapshot in memory than one piece of the value and one buffer, as far as
//! there are files.

mod verify;
mod format;
mod traffic;
mod parts;
mod file;
mod rate;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rkyv::util::AlignedVec;

pub(crate) use self::verify::verify;

use self::file::{Files, Pace, SnapshotFile, Source, Spool};
use self::format::{FrameReader, FrameWriter, Head, Kind};
use self::parts::Receiving;
pub(crate) use self::parts::Refusal;
pub use self::traffic::SnapshotLimits;
pub(crate) use self::traffic::Traffic;
use crate::any_value::{AnyValue, ValueFactory};
use crate::clock::SystemClock;
use crate::codec::{Reader, Writer};
use crate::config::GroupConfig;
use crate::disk::Disk;
use crate::openraft_types::SnapshotMeta;
use crate::pieces::{PieceError, PieceSink, PieceSource};
use crate::rpc::{SnapshotForm, SnapshotId, read_snapshot_meta, write_snapshot_meta};
use crate::runtime;
use crate::sessions::Sessions;
use crate::threads::Threads;
use crate::transport::Body;
use crate::value::{LogTime, UpgradeError};
use crate::wal::{Position, SnapshotPointer, Wal};

/// Sent in chunks of this size.
const CHUNK_BYTES: usize = 256 << 10;
/// What a sender may make this node write before the checksums are judged.
const MAX_SNAPSHOT_BYTES: u64 = 64 << 30;
/// A transfer of which nothing comes for so long has broken off.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a full disk is asked again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// A replica's state at one entry.
pub(crate) struct Content {
    pub(crate) meta: SnapshotMeta,
    pub(crate) log_time: LogTime,
    pub(crate) sessions: Sessions,
    /// The settings that the group has agreed on, if it has.
    pub(crate) config: Option<GroupConfig>,
    pub(crate) value: Box<dyn AnyValue>,
}

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// It is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// Another version of the program wrote it.
    #[error("{0}")]
    Unreadable(UpgradeError),
    /// A program of another format wrote it.
    #[error("{0}")]
    OtherFormat(String),
    /// The file cannot be read.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Damaged(error.to_string()),
            io::ErrorKind::Unsupported => Self::OtherFormat(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        }
    }
}

/// Why a body was not received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// It cannot begin at its offset now.
    #[error("it cannot begin there now: {0:?}")]
    Refused(Refusal),
    /// Another version of the program wrote it: sent again, it is no better.
    #[error("received: {0}")]
    Unreadable(String),
    /// It broke off, or is not what was announced.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

impl From<ReadError> for ReceiveError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unreadable(_) | ReadError::OtherFormat(_) => Self::Unreadable(error.to_string()),
            error => Self::Failed(damaged(&format!("received: {error}"))),
        }
    }
}

impl From<Refusal> for ReceiveError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Content {
    /// Writes it piece by piece. User code runs here, for as long as the value is large.
    fn write(&self, id: u64, spool: Spool) -> io::Result<Spool> {
        let mut frames = FrameWriter::begin(spool, id)?;
        let (version, version_in_use) = (self.value.version(), self.sessions.version_in_use());
        let (log_time, meta, config) = (self.log_time, self.meta.clone(), self.config.clone());
        let head = Head { version, log_time, version_in_use, config, meta };
        frames.piece(Kind::Head, &head.encode())?;
        self.sessions.write_pieces(|piece| frames.piece(Kind::Sessions, piece))?;
        let mut sink = ValueSink { frames, failed: None };
        let written = self.value.write_pieces(&mut sink);
        match (sink.failed, written) {
            // Whatever the user's code made of it.
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(io::Error::other(error)),
            (None, Ok(())) => sink.frames.end(),
        }
    }

    /// Reads all of it, and judges every byte.
    fn read(source: &Source, factory: &ValueFactory) -> Result<Self, ReadError> {
        let mut frames = FrameReader::begin(source.reader())?;
        let malformed = |error: crate::codec::Malformed| ReadError::Damaged(error.to_string());
        let mut buffer = AlignedVec::new();
        frames.piece(Kind::Head, &mut buffer)?;
        let Head { version, log_time, version_in_use, config, meta } = Head::decode(&buffer).map_err(malformed)?;
        let mut sessions = Sessions::default();
        if let Some(version) = version_in_use {
            sessions.use_version(version);
        }
        while frames.peek()? == Kind::Sessions {
            buffer.clear();
            frames.piece(Kind::Sessions, &mut buffer)?;
            sessions.read_piece(&buffer).map_err(malformed)?;
        }
        drop(buffer);
        let mut source = ValueSource { frames, failed: None };
        let value = factory.restore(version, &mut source);
        if let Some(error) = source.failed {
            return Err(error.into());
        }
        let value = value.map_err(ReadError::Unreadable)?;
        source.frames.end()?;
        Ok(Self { meta, log_time, sessions, config, value })
    }
}

/// The value's pieces on their way into frames.
struct ValueSink {
    frames: FrameWriter<Spool>,
    failed: Option<io::Error>,
}

impl PieceSink for ValueSink {
    fn put(&mut self, piece: &[u8]) -> Result<(), PieceError> {
        let written = match &self.failed {
            None => self.frames.piece(Kind::Value, piece),
            Some(_) => return Err(PieceError::Failed("an earlier piece was not written".into())),
        };
        written.map_err(|error| {
            let message = format!("a piece was not written: {error}");
            self.failed = Some(error);
            PieceError::Failed(message)
        })
    }
}

/// The value's pieces on their way out of frames.
struct ValueSource {
    frames: FrameReader<file::SourceReader>,
    failed: Option<io::Error>,
}

impl PieceSource for ValueSource {
    fn take(&mut self, buffer: &mut AlignedVec) -> Result<bool, PieceError> {
        let mut taken = || {
            let found = self.frames.peek()? == Kind::Value;
            if found {
                self.frames.piece(Kind::Value, buffer)?;
            }
            Ok(found)
        };
        taken().map_err(|error: io::Error| {
            let message = format!("a piece was not read: {error}");
            self.failed.get_or_insert(error);
            PieceError::Failed(message)
        })
    }
}

/// A snapshot that openraft hands on: to be sent, or to be installed.
pub(crate) struct SnapshotBody {
    threads: Threads,
    source: Source,
    /// What a received one says, once it was judged.
    content: Option<Content>,
}

impl SnapshotBody {
    pub(crate) fn length(&self) -> u64 {
        self.source.length()
    }

    /// Its bytes from `offset` on in chunks, to be sent.
    pub(crate) fn chunks(&self, offset: u64) -> Box<dyn Body> {
        Box::new(Chunks { threads: self.threads.clone(), source: self.source.clone(), offset })
    }

    /// What distinguishes it from others of the same state, and what a program must know to read it.
    pub(crate) async fn identity(&self) -> io::Result<(SnapshotId, SnapshotForm)> {
        let source = self.source.clone();
        let read = move || {
            let (id, head) = format::beginning(source.reader())?;
            let form = SnapshotForm { format: format::format(), version: head.version };
            Ok((SnapshotId { id, length: source.length() }, form))
        };
        self.threads.run(read).await?
    }
}

impl Drop for SnapshotBody {
    fn drop(&mut self) {
        if let Some(content) = self.content.take() {
            // A value that was received and not accepted: not on a thread of the network.
            drop(self.threads.spawn(move || drop(content)));
        }
    }
}

struct Chunks {
    threads: Threads,
    source: Source,
    offset: u64,
}

impl Body for Chunks {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Option<Bytes>>> + Send + '_>> {
        Box::pin(async move {
            let left = self.source.length().saturating_sub(self.offset);
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            if size == 0 {
                return Ok(None);
            }
            let (source, offset) = (self.source.clone(), self.offset);
            let chunk = match &source {
                Source::Inline(_) => source.read(offset, size)?,
                Source::File(_) => self.threads.run(move || source.read(offset, size)).await??,
            };
            self.offset += size as u64;
            Ok(Some(chunk))
        })
    }
}

/// The snapshots of one replica.
#[derive(Clone)]
pub(crate) struct SnapshotStore {
    replica: u64,
    wal: Wal,
    /// Where files live; `None` in memory, where every snapshot is inline.
    files: Option<Files>,
    threads: Threads,
    traffic: Arc<Traffic>,
    /// The file to which the log points, once somebody asked for it: it goes after its last reader.
    current: Arc<Mutex<Option<Arc<SnapshotFile>>>>,
}

impl SnapshotStore {
    /// Files live in the folder of `files`; without one, every snapshot lives in the log.
    pub(crate) fn new(replica: u64, wal: Wal, files: Option<(Arc<dyn Disk>, PathBuf)>, threads: Threads) -> Self {
        let files = files.map(|(disk, dir)| Files { disk, dir });
        let traffic = Traffic::new(Arc::new(SystemClock::default()));
        Self { replica, wal, files, threads, traffic, current: Arc::default() }
    }

    /// Shares a node's limits with its other replicas.
    pub(crate) fn sharing(self, traffic: Arc<Traffic>) -> Self {
        Self { traffic, ..self }
    }

    /// Whether the disk has no room for another snapshot.
    pub(crate) fn is_full(&self) -> bool {
        self.wal.is_full()
    }

    fn pointer(&self) -> Option<SnapshotPointer> {
        self.wal.state(self.replica).and_then(|state| state.snapshot)
    }

    /// The newest snapshot's content, checked, and its length. Reads and decodes all of it: not on a thread of the network.
    pub(crate) fn load(&self, factory: &ValueFactory) -> Result<Option<(Content, u64)>, ReadError> {
        let Some((_, source)) = self.newest()? else { return Ok(None) };
        let name = match &source {
            Source::Inline(_) => "the snapshot in the log".to_owned(),
            Source::File(file) => file.path().display().to_string(),
        };
        let read = Content::read(&source, factory).map(|content| Some((content, source.length())));
        read.map_err(|error| match error {
            ReadError::Damaged(reason) => ReadError::Damaged(format!("{name}: {reason}")),
            ReadError::Io(error) => ReadError::Io(io::Error::new(error.kind(), format!("{name}: {error}"))),
            ReadError::OtherFormat(reason) => ReadError::OtherFormat(format!("{name}: {reason}")),
            unreadable @ ReadError::Unreadable(_) => unreadable,
        })
    }

    /// The newest snapshot, to be sent.
    pub(crate) fn current(&self) -> io::Result<Option<(SnapshotMeta, SnapshotBody)>> {
        let body = |source| SnapshotBody { threads: self.threads.clone(), source, content: None };
        // openraft's core ends on it: the node is to say why, and not to go on with a replica that does nothing.
        let newest =
            self.newest().inspect_err(|error| self.wal.fail(&format!("a snapshot cannot be read: {error}")))?;
        Ok(newest.map(|(meta, source)| (meta, body(source))))
    }

    fn newest(&self) -> io::Result<Option<(SnapshotMeta, Source)>> {
        loop {
            let Some(pointer) = self.pointer() else { return Ok(None) };
            match self.open(&pointer) {
                // A newer one took its place, and its file, after the pointer was read.
                Err(_) if self.pointer().is_some_and(|now| now.file != pointer.file) => {}
                opened => return opened.map(Some),
            }
        }
    }

    fn open(&self, pointer: &SnapshotPointer) -> io::Result<(SnapshotMeta, Source)> {
        let mut reader = Reader::new(pointer.meta.clone(), "snapshot pointer");
        let meta = read_snapshot_meta(&mut reader).map_err(io::Error::other)?;
        if pointer.file.is_empty() {
            return Ok((meta, Source::Inline(pointer.inline.clone())));
        }
        let Some(files) = &self.files else {
            return Err(damaged("a log in memory points to a snapshot file"));
        };
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = current.as_ref().filter(|file| file.name() == pointer.file) {
            return Ok((meta, Source::File(file.clone())));
        }
        let file = SnapshotFile::open(files, &self.threads, &pointer.file)
            .map_err(|error| damaged(&format!("{}: {error}", files.dir.join(&pointer.file).display())))?;
        let file = Arc::new(file);
        // A slow reader of an older pointer must not put an older file here: it opened its own.
        if current.is_none() {
            *current = Some(file.clone());
        }
        Ok((meta, Source::File(file)))
    }

    /// Makes a state this replica's snapshot; durable on return. Only in a turn: see [`Traffic::build_turn`]. Waits while
    /// the disk is full: openraft takes no error for an answer, and starts no second build meanwhile.
    pub(crate) async fn save(&self, content: Content) -> io::Result<SnapshotBody> {
        let meta = content.meta.clone();
        let content = Arc::new(content);
        let traffic = self.traffic.clone();
        let pace: Pace = Arc::new(move |bytes| traffic.after_writing(bytes));
        let written = loop {
            let id = runtime::random();
            let (content, spool) = (content.clone(), self.spool(id).paced(pace.clone()));
            match self.threads.run(move || content.write(id, spool)?.finish()).await? {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    tracing::error!(%error, "a snapshot waits for room on the disk");
                    tokio::time::sleep(FULL_RETRY).await;
                }
                written => break written,
            }
        };
        // The copy of a large value goes where it does not hold up anybody, and before the turn is over.
        if let Err(error) = self.threads.run(move || drop(content)).await {
            tracing::debug!(%error, "the copy of a value was not dropped in order");
        }
        let source = written?;
        self.point_to(&meta, &source).await?;
        Ok(SnapshotBody { threads: self.threads.clone(), source, content: None })
    }

    /// What stands for a snapshot that could not be taken.
    pub(crate) fn nothing(&self) -> SnapshotBody {
        SnapshotBody { threads: self.threads.clone(), source: Source::Inline(bytes::Bytes::new()), content: None }
    }

    /// Why this program cannot read a snapshot of this form; none if it may.
    pub(crate) fn cannot_read(form: SnapshotForm, factory: &ValueFactory) -> Option<String> {
        let (known, own) = (format::format(), factory.version());
        if form.format != known {
            return Some(format!("it has format {}, this program knows {known}", form.format));
        }
        let newer = UpgradeError::UnknownVersion { found: form.version, known: own };
        (form.version > own).then(|| newer.to_string())
    }

    /// How much of a snapshot is here from a transfer that broke off; `None` while no transfer may begin.
    pub(crate) fn offset(&self, id: SnapshotId) -> Option<u64> {
        self.traffic.parts.offset(self.replica, id)
    }

    /// Stores a body that is being received from `offset` on, and judges the whole: what its sender says it is, and
    /// readable by this program. What has come of a body that breaks off is kept for a while; what is given up leaves
    /// no file behind.
    pub(crate) async fn receive(
        &self,
        id: SnapshotId,
        offset: u64,
        chunks: Box<dyn Body>,
        announced: &SnapshotMeta,
        factory: &ValueFactory,
    ) -> Result<SnapshotBody, ReceiveError> {
        if id.length > MAX_SNAPSHOT_BYTES {
            let message = format!("a snapshot of {} bytes: at most {MAX_SNAPSHOT_BYTES}", id.length);
            return Err(io::Error::other(message).into());
        }
        let receiving = self.traffic.parts.begin(self.replica, id, offset, || self.spool(runtime::random()))?;
        let mut receiving = self.store(receiving, id.length, chunks).await?;
        let spool = receiving.take().ok_or_else(|| io::Error::other("nothing was received"))?;
        let source = self.threads.run(move || spool.finish()).await??;
        let content = self.judge(source.clone(), Some(announced.clone()), factory.clone()).await?;
        Ok(SnapshotBody { threads: self.threads.clone(), source, content: Some(content) })
    }

    /// Adds what comes. Wherever it ends, also with this future, what has come is kept.
    async fn store(&self, mut receiving: Receiving, length: u64, mut chunks: Box<dyn Body>) -> io::Result<Receiving> {
        loop {
            let next = tokio::time::timeout(CHUNK_TIMEOUT, chunks.next()).await;
            let next = next.map_err(|_| io::Error::other(format!("nothing came for {CHUNK_TIMEOUT:?}")))?;
            let Some(chunk) = next? else { break };
            receiving = self.threads.run(move || receiving.write(&chunk, length).map(|()| receiving)).await??;
        }
        if receiving.length() == length { Ok(receiving) } else { Err(io::Error::other("it ended early")) }
    }

    /// Makes an accepted body this replica's snapshot, and gives out what it says.
    pub(crate) async fn install(&self, mut body: SnapshotBody, factory: &ValueFactory) -> io::Result<Content> {
        let content = match body.content.take() {
            Some(content) => content,
            None => self.judge(body.source.clone(), None, factory.clone()).await.map_err(io::Error::other)?,
        };
        self.point_to(&content.meta, &body.source).await?;
        Ok(content)
    }

    /// Reads a snapshot: whole, the announced one, and readable by this program.
    async fn judge(
        &self,
        source: Source,
        announced: Option<SnapshotMeta>,
        factory: ValueFactory,
    ) -> Result<Content, ReceiveError> {
        let judge = move || {
            let content = Content::read(&source, &factory)?;
            if announced.is_some_and(|announced| announced != content.meta) {
                return Err(ReadError::Damaged("it is another snapshot than announced".into()));
            }
            Ok(content)
        };
        Ok(self.threads.run(judge).await??)
    }

    /// `number` is drawn at random for each file.
    fn spool(&self, number: u64) -> Spool {
        let name = format!("{:016x}-{number:016x}.snap", self.replica);
        Spool::new(self.threads.clone(), self.files.clone(), name)
    }

    /// Points the log to it, unless the log points to a newer one already.
    async fn point_to(&self, meta: &SnapshotMeta, source: &Source) -> io::Result<()> {
        let mut writer = Writer::default();
        write_snapshot_meta(&mut writer, meta);
        let (file, inline) = match source {
            Source::Inline(bytes) => (None, bytes.clone()),
            Source::File(file) => {
                // From here on the log may point to it, also when this future is dropped.
                file.keep(true);
                (Some(file), Bytes::new())
            }
        };
        let pointer = SnapshotPointer {
            position: meta.last_log_id.map(|id| Position { term: **id.committed_leader_id(), index: id.index }),
            meta: writer.into_bytes(),
            file: file.map(|file| file.name()).unwrap_or_default(),
            inline,
        };
        let (done, synced) = tokio::sync::oneshot::channel();
        let old = self.old_file(&pointer.file);
        let told = Box::new(move |result| drop(done.send(result)));
        self.wal.save_snapshot(self.replica, pointer, told);
        let saved = synced.await.map_err(|_| io::Error::other("the log has stopped"))?;
        match saved {
            Ok(()) => {
                self.replace(file, old);
                Ok(())
            }
            Err(error) => {
                if let Some(file) = file {
                    file.keep(false);
                }
                if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Returns when all that the log was given of this replica is durable.
    pub(crate) async fn settle(&self) -> io::Result<()> {
        let (done, settled) = tokio::sync::oneshot::channel();
        self.wal.settle(self.replica, Box::new(move |result| drop(done.send(result))));
        settled.await.unwrap_or_else(|_| Err(io::Error::other("the log has stopped")))
    }

    /// The file to which the log points before it points to another.
    fn old_file(&self, new: &str) -> Option<Arc<SnapshotFile>> {
        let pointer = self.pointer().filter(|pointer| !pointer.file.is_empty() && pointer.file != new)?;
        match self.open(&pointer) {
            Ok((_, Source::File(file))) => Some(file),
            _ => None,
        }
    }

    /// The log points to `new`: the old file goes with its last reader.
    fn replace(&self, new: Option<&Arc<SnapshotFile>>, old: Option<Arc<SnapshotFile>>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let is_newest = self.pointer().is_some_and(|now| now.file == new.map(|file| file.name()).unwrap_or_default());
        if let Some(old) = old {
            old.keep(false);
        }
        if is_newest {
            *current = new.cloned();
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

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests;
