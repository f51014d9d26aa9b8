//! The seam to the file system: everything that this crate asks of a disk, the real one, and, for tests, one
//! that loses and damages what was not synced. All code that is for one operating system only stands here.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A file that is read and written at offsets, by any thread.
pub(crate) trait DiskFile: Send + Sync {
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`. After an error any part of them may be in the file.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns once the content, and the length if it grew, survive a loss of power.
    fn sync(&self) -> io::Result<()>;
}

/// Files and directories. Creating, renaming and removing survive a crash after [`Disk::sync_dir`].
pub(crate) trait Disk: Send + Sync {
    /// Makes `dir` and its parents where missing; what was made survives a crash.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Opens an existing file to read and write it.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes an empty file, in place of one of that name.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, in place of one of the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names of the files in `dir`, in order; no directories.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes the names in `dir` survive a crash.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock file `path`, made where missing; `WouldBlock` while another process holds it.
    fn lock(&self, path: &Path) -> io::Result<DiskLock>;
    /// Opens an existing file to read it alone.
    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }
    /// Takes the lock file `path` together with others who only read; none if it is not there, `WouldBlock` while a
    /// process has it for itself.
    fn lock_to_read(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        self.lock(path).map(Some)
    }
    /// How many bytes may still be written below `dir`.
    fn available_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// A lock that is held until this is dropped, or the process ends in whatever way.
pub(crate) struct DiskLock {
    _held: Box<dyn Send + Sync>,
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut at = Some(dir);
        while let Some(dir) = at.filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
            missing.push(dir);
            at = dir.parent();
        }
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            self.sync_dir(parent.unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Arc::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        system::sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        Ok(DiskLock { _held: Box::new(system::lock(path)?) })
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(File::open(path)?))
    }

    fn lock_to_read(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        match system::lock_to_read(path) {
            Ok(held) => Ok(Some(DiskLock { _held: Box::new(held) })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn available_bytes(&self, dir: &Path) -> io::Result<u64> {
        system::available_bytes(dir)
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        system::read_at(self, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        system::write_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

#[cfg(unix)]
mod system {
    use super::*;
    use rustix::fs::FlockOperation;
    use std::os::unix::fs::FileExt;

    pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    pub(super) fn lock(path: &Path) -> io::Result<File> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    }

    pub(super) fn lock_to_read(path: &Path) -> io::Result<File> {
        let file = File::open(path)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(file)
    }

    pub(super) fn available_bytes(dir: &Path) -> io::Result<u64> {
        let space = rustix::fs::statvfs(dir)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }
}

#[cfg(windows)]
mod system {
    use super::*;
    use std::os::windows::fs::{FileExt, OpenOptionsExt};

    /// `ERROR_SHARING_VIOLATION`: another process has the file open.
    const SHARING_VIOLATION: i32 = 32;
    /// `FILE_SHARE_READ`: others may read it, too.
    const SHARE_READ: u32 = 1;

    pub(super) fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match file.seek_read(buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    pub(super) fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match file.seek_write(bytes, offset)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => {
                    bytes = &bytes[count..];
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }

    /// NTFS journals names itself; a directory cannot be synced.
    pub(super) fn sync_dir(_dir: &Path) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn lock(path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).share_mode(0);
        options.open(path).map_err(locked)
    }

    pub(super) fn lock_to_read(path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).share_mode(SHARE_READ).open(path).map_err(locked)
    }

    fn locked(error: io::Error) -> io::Error {
        match error.raw_os_error() {
            Some(SHARING_VIOLATION) => io::ErrorKind::WouldBlock.into(),
            _ => error,
        }
    }

    /// Not known without unsafe code: a full disk shows itself when a segment is prepared.
    pub(super) fn available_bytes(_dir: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

pub(crate) mod guarded;
pub(crate) mod read_only;
#[cfg(test)]
pub(crate) mod faulty;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_what_was_written_at_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = RealDisk.create(&path).unwrap();
        file.write_at(b"world", 6).unwrap();
        file.write_at(b"hello ", 0).unwrap();
        file.sync().unwrap();
        RealDisk.sync_dir(dir.path()).unwrap();
        let file = RealDisk.open(&path).unwrap();
        let mut bytes = vec![0; 11];
        file.read_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes.as_slice(), file.len().unwrap()), (&b"hello world"[..], 11));
        assert_eq!(file.read_at(&mut bytes, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(RealDisk.list(dir.path()).unwrap(), ["file"]);
    }

    #[test]
    fn directories_are_made_with_all_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("one/two/three");
        RealDisk.create_dir_all(&deep).unwrap();
        RealDisk.create_dir_all(&deep).unwrap();
        assert!(deep.is_dir());
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        RealDisk.create_dir_all(&dir.path().join("file/below")).unwrap_err();
    }

    #[test]
    fn a_lock_is_held_once_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = RealDisk.lock(&path).unwrap();
        let refused = RealDisk.lock(&path).err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::WouldBlock));
        let refused = RealDisk.lock_to_read(&path).err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::WouldBlock));
        drop(held);
        let readers = [RealDisk.lock_to_read(&path).unwrap(), RealDisk.lock_to_read(&path).unwrap()];
        assert!(readers.iter().all(Option::is_some) && RealDisk.lock(&path).is_err());
        drop(readers);
        RealDisk.lock(&path).unwrap();
        assert!(RealDisk.lock_to_read(&dir.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn a_disk_tells_its_room() {
        assert!(RealDisk.available_bytes(&std::env::temp_dir()).unwrap() > 0);
    }
}
