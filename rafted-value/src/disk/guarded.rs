//! A disk whose failures stop the node, whoever meets them: what a write or sync that failed has left on the disk is not
//! known, and openraft's core ends on any error of storage, which would leave a replica that does nothing for ever. A
//! full disk is no failure.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Disk, DiskFile, DiskLock};

/// Told the first words of every failure.
pub(crate) type OnFailure = Arc<dyn Fn(&str) + Send + Sync>;

/// A disk that tells of its failed writes and syncs.
pub(crate) struct GuardedDisk {
    disk: Arc<dyn Disk>,
    on_failure: OnFailure,
}

struct GuardedFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    on_failure: OnFailure,
}

impl GuardedDisk {
    pub(crate) fn new(disk: Arc<dyn Disk>, on_failure: OnFailure) -> Self {
        Self { disk, on_failure }
    }

    fn guarded(&self, file: Arc<dyn DiskFile>, path: &Path) -> Arc<dyn DiskFile> {
        Arc::new(GuardedFile { file, path: path.to_owned(), on_failure: self.on_failure.clone() })
    }
}

fn judge<T>(result: io::Result<T>, action: &str, path: &Path, on_failure: &OnFailure) -> io::Result<T> {
    if let Err(error) = &result
        && !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    {
        on_failure(&format!("cannot {action} {}: {error}", path.display()));
    }
    result
}

impl Disk for GuardedDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        judge(self.disk.create_dir_all(dir), "create", dir, &self.on_failure)
    }

    /// A file that is not there is for the caller to judge.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.guarded(self.disk.open(path)?, path))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = judge(self.disk.create(path), "create", path, &self.on_failure)?;
        Ok(self.guarded(file, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        judge(self.disk.rename(from, to), "rename", from, &self.on_failure)
    }

    /// A file that stays is swept at the next start.
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        judge(self.disk.sync_dir(dir), "sync", dir, &self.on_failure)
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        self.disk.lock(path)
    }

    fn available_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.available_bytes(dir)
    }
}

impl DiskFile for GuardedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        judge(self.file.write_at(bytes, offset), "write", &self.path, &self.on_failure)
    }

    fn sync(&self) -> io::Result<()> {
        judge(self.file.sync(), "sync", &self.path, &self.on_failure)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::disk::faulty::{Fault, FaultyDisk};

    #[test]
    fn every_failed_write_and_sync_is_told_and_a_full_disk_is_not() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let to = told.clone();
        let faulty = FaultyDisk::default();
        let disk =
            GuardedDisk::new(Arc::new(faulty.clone()), Arc::new(move |what| to.lock().unwrap().push(what.to_owned())));
        let path = Path::new("/snapshots/one");
        let file = disk.create(path).unwrap();
        let actions: [(&str, &dyn Fn() -> io::Result<()>); 4] = [
            ("write", &|| file.write_at(b"x", 0)),
            ("sync", &|| file.sync()),
            ("rename", &|| disk.rename(path, path)),
            ("create", &|| disk.create(path).map(drop)),
        ];
        for (name, act) in actions {
            act().unwrap();
            assert!(told.lock().unwrap().is_empty(), "{name} went well");
            faulty.fail_at(faulty.operations(), Fault::Fail);
            act().unwrap_err();
            let what = told.lock().unwrap().pop().unwrap();
            assert!(what.starts_with(&format!("cannot {name} /snapshots/one")), "{what}");
        }
        faulty.set_capacity(Some(0));
        assert_eq!(file.write_at(&[0; 100], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(told.lock().unwrap().is_empty());
    }
}
