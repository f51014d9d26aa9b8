//! A disk on which nothing can be changed, whatever the code above does.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Disk, DiskFile, DiskLock};

/// Reads of another disk; every change is an error.
pub(crate) struct ReadOnly(pub(crate) Arc<dyn Disk>);

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the disk is only read here"))
}

impl Disk for ReadOnly {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(ReadOnlyFile(self.0.open_to_read(path)?)))
    }

    fn create(&self, _path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        refused()
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }

    fn lock(&self, _path: &Path) -> io::Result<DiskLock> {
        refused()
    }

    fn lock_to_read(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        self.0.lock_to_read(path)
    }

    fn available_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.0.available_bytes(dir)
    }
}

struct ReadOnlyFile(Arc<dyn DiskFile>);

impl DiskFile for ReadOnlyFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        refused()
    }

    fn sync(&self) -> io::Result<()> {
        refused()
    }
}
