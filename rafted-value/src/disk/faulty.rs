//! A disk in memory that does what disks may: loses or tears what was not synced when it crashes, fills up,
//! fails at a chosen operation, and flips bits.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::ThreadId;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Disk, DiskFile, DiskLock};

/// Torn writes keep or lose pieces of this size.
const SECTOR_BYTES: usize = 512;

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Power is lost before it: it and all later operations fail, until [`FaultyDisk::restart`].
    Crash,
    /// It alone fails: a write after half of its bytes, a sync after nothing.
    Fail,
}

/// A change of a file that was not synced.
#[derive(Debug, Clone)]
struct Change {
    offset: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Default, Clone)]
struct Node {
    content: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Writes and syncs so far.
    operations: u64,
    fault: Option<(u64, Fault)>,
    crashed: bool,
    syncs: u64,
    capacity: Option<u64>,
    full: bool,
    /// Syncs of the log do nothing, and say that they did.
    lies: bool,
    /// Threads that have read a file since [`FaultyDisk::readers`] was asked last.
    readers: Vec<ThreadId>,
}

/// Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultyDisk {
    inner: Arc<Mutex<Inner>>,
    during_sync: Hook,
}

/// What runs while a file is synced.
#[derive(Clone, Default)]
struct Hook(Arc<Mutex<Option<Callback>>>);

type Callback = Arc<dyn Fn() + Send + Sync>;

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

impl FaultyDisk {
    /// Fails at the operation of this number, counted from 0 over writes, syncs and changes of names.
    pub(crate) fn fail_at(&self, operation: u64, fault: Fault) {
        self.inner().fault = Some((operation, fault));
    }

    /// Runs `hook` during each sync of a file, in which its caller has to wait.
    pub(crate) fn during_sync(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.during_sync.0.lock().unwrap() = Some(Arc::new(hook));
    }

    pub(crate) fn operations(&self) -> u64 {
        self.inner().operations
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.inner().syncs
    }

    /// The threads that have read a file, once for each read since this was asked last.
    pub(crate) fn readers(&self) -> Vec<ThreadId> {
        std::mem::take(&mut self.inner().readers)
    }

    /// Whether the chosen operation was reached and power is lost.
    pub(crate) fn crashed(&self) -> bool {
        self.inner().crashed
    }

    /// Whether the chosen operation has failed.
    pub(crate) fn has_failed(&self) -> bool {
        let inner = self.inner();
        inner.fault.is_some_and(|(at, _)| at < inner.operations)
    }

    /// From now on syncs of the log do nothing, and say that they did.
    pub(crate) fn lie(&self) {
        self.inner().lies = true;
    }

    /// Bytes that all files together may have.
    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.inner().capacity = bytes;
    }

    /// Whether a write was refused for want of room.
    pub(crate) fn is_full(&self) -> bool {
        self.inner().full
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.inner().used_bytes()
    }

    pub(crate) fn flip_bit(&self, path: &Path, offset: u64) {
        self.change(path, |content| content[offset as usize] ^= 1);
    }

    pub(crate) fn content(&self, path: &Path) -> Vec<u8> {
        let inner = self.inner();
        inner.nodes[inner.names[path]].content.clone()
    }

    /// Changes a file behind everybody's back, durably.
    pub(crate) fn change(&self, path: &Path, change: impl Fn(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let at = inner.names[path];
        change(&mut inner.nodes[at].content);
        inner.nodes[at].durable = inner.nodes[at].content.clone();
    }

    /// The disk after a loss of power: of what was not synced, every sector and name may be there or not.
    pub(crate) fn restart(&self, seed: u64) -> FaultyDisk {
        let mut random = StdRng::seed_from_u64(seed);
        // Some crashes lose all, some nothing, most a part.
        let kept = [0.0, 0.5, 0.9, 1.0][random.random_range(0..4)];
        self.restart_keeping(kept, kept, seed)
    }

    /// The disk after a loss of power that keeps this share of the sectors, and this share of the changes of names, of
    /// those that were not synced.
    pub(crate) fn restart_keeping(&self, sectors: f64, kept_names: f64, seed: u64) -> FaultyDisk {
        let mut random = StdRng::seed_from_u64(seed);
        let inner = self.inner();
        let mut nodes = inner.nodes.clone();
        for node in &mut nodes {
            let mut content = std::mem::take(&mut node.durable);
            for change in std::mem::take(&mut node.unsynced) {
                tear(&mut content, change, sectors, &mut random);
            }
            node.durable = content.clone();
            node.content = content;
        }
        let mut names = inner.durable_names.clone();
        for (name, node) in &inner.names {
            if random.random_bool(kept_names) {
                names.insert(name.clone(), *node);
            }
        }
        names.retain(|name, _| inner.names.contains_key(name) || !random.random_bool(kept_names));
        let (capacity, lies) = (inner.capacity, inner.lies);
        let restarted = Inner { nodes, durable_names: names.clone(), names, capacity, lies, ..Inner::default() };
        FaultyDisk { inner: Arc::new(Mutex::new(restarted)), during_sync: Hook::default() }
    }

    /// The disk after a kill of the process: nothing is lost, and nothing more is synced.
    pub(crate) fn reopen(&self) -> FaultyDisk {
        let inner = self.inner();
        let reopened = Inner {
            nodes: inner.nodes.clone(),
            names: inner.names.clone(),
            durable_names: inner.durable_names.clone(),
            capacity: inner.capacity,
            lies: inner.lies,
            ..Inner::default()
        };
        FaultyDisk { inner: Arc::new(Mutex::new(reopened)), during_sync: Hook::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

fn tear(content: &mut Vec<u8>, change: Change, kept: f64, random: &mut StdRng) {
    let Change { offset, bytes } = change;
    let mut at = 0;
    while at < bytes.len() {
        let length = (SECTOR_BYTES - (offset + at) % SECTOR_BYTES).min(bytes.len() - at);
        if random.random_bool(kept) {
            put(content, offset + at, &bytes[at..at + length]);
        }
        at += length;
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

fn lost() -> io::Error {
    io::Error::other("power is lost")
}

impl Inner {
    fn used_bytes(&self) -> u64 {
        self.names.values().map(|&node| self.nodes[node].content.len() as u64).sum()
    }

    /// Counts an operation; whether it is to fail.
    fn operation(&mut self) -> io::Result<bool> {
        if self.crashed {
            return Err(lost());
        }
        let operation = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, Fault::Crash)) if at == operation => {
                self.crashed = true;
                Err(lost())
            }
            Some((at, Fault::Fail)) => Ok(at == operation),
            _ => Ok(false),
        }
    }

    fn write(&mut self, node: usize, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.crashed {
            return Err(lost());
        }
        let crashes = self.fault == Some((self.operations, Fault::Crash));
        let fails = self.operation();
        if let Ok(true) = fails {
            self.apply(node, Change { offset: offset as usize, bytes: bytes[..bytes.len() / 2].to_vec() });
            return Err(io::Error::other("the write failed"));
        }
        let grows = (offset + bytes.len() as u64).saturating_sub(self.nodes[node].content.len() as u64);
        if fails.is_ok() && self.capacity.is_some_and(|capacity| grows > 0 && self.used_bytes() + grows > capacity) {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        if crashes || fails.is_ok() {
            // A write on its way at the crash may have arrived in parts.
            self.apply(node, Change { offset: offset as usize, bytes: bytes.to_vec() });
        }
        fails.map(|_| ())
    }

    fn apply(&mut self, node: usize, change: Change) {
        let node = &mut self.nodes[node];
        put(&mut node.content, change.offset, &change.bytes);
        node.unsynced.push(change);
    }

    fn is_log(&self, node: usize) -> bool {
        let is_in_log = |path: &Path| path.parent().is_some_and(|dir| dir.ends_with("wal"));
        self.names.iter().any(|(path, &at)| at == node && is_in_log(path))
    }

    fn failing_operation(&mut self) -> io::Result<()> {
        if self.operation()? { Err(io::Error::other("the disk failed")) } else { Ok(()) }
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    node: usize,
}

impl DiskFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.inner().nodes[self.node].content.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.readers.push(std::thread::current().id());
        if inner.crashed {
            return Err(lost());
        }
        let content = inner.nodes[self.node].content.get(offset as usize..).unwrap_or_default();
        let found = content.get(..buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.inner().write(self.node, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let hook = self.disk.during_sync.0.lock().unwrap().clone();
        hook.iter().for_each(|hook| hook());
        let mut inner = self.disk.inner();
        if inner.operation()? {
            // The kernel reports a failed sync once, and drops the pages: what was not synced is gone.
            let node = &mut inner.nodes[self.node];
            node.unsynced.clear();
            return Err(io::Error::other("the sync failed"));
        }
        if inner.lies && inner.is_log(self.node) {
            return Ok(());
        }
        inner.syncs += 1;
        let node = &mut inner.nodes[self.node];
        for Change { offset, bytes } in std::mem::take(&mut node.unsynced) {
            put(&mut node.durable, offset, &bytes);
        }
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let node = *self.inner().names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), node }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner();
        inner.failing_operation()?;
        let node = inner.nodes.len();
        inner.nodes.push(Node::default());
        inner.names.insert(path.to_owned(), node);
        Ok(Arc::new(FaultyFile { disk: self.clone(), node }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.failing_operation()?;
        let node = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), node);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.failing_operation()?;
        inner.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner();
        let names = inner.names.keys().filter(|name| name.parent() == Some(dir));
        Ok(names.filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.failing_operation()?;
        let names = inner.names.clone();
        inner.durable_names.retain(|name, _| name.parent() != Some(dir));
        inner.durable_names.extend(names.into_iter().filter(|(name, _)| name.parent() == Some(dir)));
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<DiskLock> {
        Ok(DiskLock { _held: Box::new(()) })
    }

    fn available_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let inner = self.inner();
        Ok(inner.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(inner.used_bytes())))
    }
}
