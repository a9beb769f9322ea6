//! The file operations of the output, behind a trait, so that tests can inject faults and lose
//! power.
//!
//! Durability depends on the order of operations, and the callers decide it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate, statvfs};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::direct::DirectFile;
use super::place::nearest;
use crate::error::{Error, Kind, Result};

/// The bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// The hint for a full disk.
pub(super) const FREE_SOME_SPACE: &str = "free some space, then run the same command again";

/// The hint for a file that may not grow further.
pub(super) const RAISE_THE_LIMIT: &str = "the size of files is limited (ulimit -f, or by the file system): raise the \
                                          limit, or take a smaller --shard-size, then run the same command again";

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name, without the folder.
    pub name: OsString,
    /// True if it is a folder; a link to one does not count.
    pub is_dir: bool,
}

/// A file system to write to. Every failure names its path.
pub trait Storage: Send + Sync {
    /// Creates a folder and those above it, durably: no further sync is needed.
    fn create_dir_all(&self, dir: &Path) -> Result<()>;
    /// Creates a new file to write and read; refuses an existing one.
    fn create(&self, path: &Path) -> Result<Arc<dyn StorageFile>>;
    /// Opens an existing file to write and read.
    fn open(&self, path: &Path) -> Result<Arc<dyn StorageFile>>;
    /// Opens an existing file to read.
    fn open_read(&self, path: &Path) -> Result<Arc<dyn StorageFile>>;
    /// Opens an existing file that is written front to back in large pieces. Written bytes may stay
    /// in memory until the file is synced.
    fn open_stream(&self, path: &Path) -> Result<Arc<dyn StorageFile>> {
        self.open(path)
    }
    /// Renames a file and replaces one of the new name. Durable after a sync of both folders.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Removes a folder if it is empty.
    fn remove_dir_if_empty(&self, dir: &Path) -> Result<()>;
    /// Lists the entries of a folder, sorted by name; `None` when there is no such folder.
    fn list(&self, dir: &Path) -> Result<Option<Vec<Entry>>>;
    /// Returns the size of a file in bytes; `None` when there is no such file.
    fn len(&self, path: &Path) -> Result<Option<u64>>;
    /// Returns the bytes that a file takes on the disk, less than its size if it has holes; `None`
    /// when there is no such file.
    fn allocated(&self, path: &Path) -> Result<Option<u64>> {
        self.len(path)
    }
    /// Returns the bytes that may still be written below a folder; `None` when that is unknown.
    fn free_bytes(&self, _dir: &Path) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Copies a file, which may be outside this storage, to a new one. Does not sync it.
    fn copy(&self, from: &Path, to: &Path) -> Result<Arc<dyn StorageFile>> {
        let source = DiskFile::open(from, File::options().read(true), true, "cannot copy from")?;
        let copy = self.create(to)?;
        let len = source.len()?;
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(COPY_BYTES).min(COPY_BYTES)];
        let mut at = 0;
        while at < len {
            let piece = usize::try_from(len - at)
                .unwrap_or(COPY_BYTES)
                .min(COPY_BYTES);
            source.read_at(&mut buffer[..piece], at)?;
            copy.write_at(&buffer[..piece], at)?;
            at += u64::try_from(piece).expect("a length fits 64 bits");
        }
        Ok(copy)
    }
}

/// An open file, used from any thread.
#[expect(
    clippy::len_without_is_empty,
    reason = "a file's size is asked for, never whether it is empty"
)]
pub trait StorageFile: Send + Sync {
    /// Fills all of `buffer` from `offset` in the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Returns the present size in bytes.
    fn len(&self) -> Result<u64>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Makes the file `len` bytes long, and reserves them on the disk if the file system can.
    fn preallocate(&self, len: u64) -> Result<()>;
    /// Passes gathered bytes to the system and frees their memory, for a time without writes.
    fn settle(&self) -> Result<()> {
        Ok(())
    }
    /// Makes contents and size durable, and drops them from the system's cache.
    fn sync_data(&self) -> Result<()>;
}

/// The machine's own file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskStorage;

impl Storage for DiskStorage {
    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        let failed = |path: &Path, error| Error::io("cannot create folder", path, error);
        let mut missing = vec![];
        let mut at = dir;
        while !at.try_exists().map_err(|error| failed(at, error))? {
            missing.push(at);
            at = parent_of(at);
        }
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed(dir, error));
                }
                _ => self.sync_dir(parent_of(dir))?,
            }
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn StorageFile>> {
        let file = DiskFile::open(
            path,
            File::options().read(true).write(true).create_new(true),
            false,
            "cannot create",
        )?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(DiskFile::open(
            path,
            File::options().read(true).write(true),
            false,
            "cannot open",
        )?))
    }

    fn open_read(&self, path: &Path) -> Result<Arc<dyn StorageFile>> {
        let opened = DiskFile::open(path, File::options().read(true), true, "cannot open")?;
        // Files opened here are read front to back, so the system may read ahead while this program
        // hashes.
        _ = fadvise(&opened.file, 0, None, Advice::Sequential);
        Ok(Arc::new(opened))
    }

    fn open_stream(&self, path: &Path) -> Result<Arc<dyn StorageFile>> {
        let plain = DiskFile::open(
            path,
            File::options().read(true).write(true),
            false,
            "cannot open",
        )?;
        Ok(match DirectFile::new(plain, path) {
            Ok(direct) => Arc::new(direct),
            Err(plain) => Arc::new(plain),
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|error| Error::io("cannot rename to", to, error))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        // Some network file systems cannot sync a folder and say so with EINVAL; their renames are
        // durable at once.
        match File::open(dir).and_then(|dir| dir.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => {
                Err(Error::io("cannot sync folder", dir, error))
            }
            _ => Ok(()),
        }
    }

    fn remove(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(|error| Error::io("cannot remove", path, error))
    }

    fn remove_dir_if_empty(&self, dir: &Path) -> Result<()> {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(Error::io("cannot remove folder", dir, error))
            }
            _ => Ok(()),
        }
    }

    fn list(&self, dir: &Path) -> Result<Option<Vec<Entry>>> {
        let failed = |error| Error::io("cannot list folder", dir, error);
        let names = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            names => names.map_err(failed)?,
        };
        let mut entries = vec![];
        for name in names {
            let name = name.map_err(failed)?;
            let is_dir = name.file_type().map_err(failed)?.is_dir();
            entries.push(Entry {
                name: name.file_name(),
                is_dir,
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(entries))
    }

    fn len(&self, path: &Path) -> Result<Option<u64>> {
        Ok(metadata(path)?.map(|metadata| metadata.len()))
    }

    fn allocated(&self, path: &Path) -> Result<Option<u64>> {
        // The unit does not depend on the file system.
        Ok(metadata(path)?.map(|metadata| metadata.blocks().saturating_mul(512)))
    }

    fn free_bytes(&self, dir: &Path) -> Result<Option<u64>> {
        // The folder may not exist yet; it will be on the file system of the one above it.
        let dir = &nearest(dir)?;
        let space = statvfs(dir).map_err(|error| Error::io("cannot examine", dir, error.into()))?;
        // Only root may use the reserved blocks.
        let free = if geteuid().is_root() {
            space.f_bfree
        } else {
            space.f_bavail
        };
        // Some file systems in user space report no blocks at all.
        Ok((space.f_blocks > 0).then(|| free.saturating_mul(space.f_frsize)))
    }
}

fn metadata(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("cannot examine", path, error)),
        Ok(metadata) => Ok(Some(metadata)),
    }
}

/// Returns the folder that holds `path`.
pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

#[derive(Debug)]
pub(super) struct DiskFile {
    path: PathBuf,
    file: File,
}

impl DiskFile {
    /// Opens a regular file; through a link only with `follow`.
    fn open(
        path: &Path,
        options: &fs::OpenOptions,
        follow: bool,
        what: &'static str,
    ) -> Result<Self> {
        // Opening a named pipe would otherwise wait; for a regular file the flag makes no
        // difference.
        let flags = if follow {
            OFlags::NONBLOCK
        } else {
            OFlags::NONBLOCK | OFlags::NOFOLLOW
        };
        let flags = i32::try_from(flags.bits()).expect("flags of opening are few");
        let opened = options.clone().custom_flags(flags).open(path);
        let refuse = |cause: &str| Error::new(Kind::Io, what, path.display(), cause);
        let file = opened.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::LOOP) => refuse("it is a link, which is not followed"),
            Some(Errno::NXIO) => refuse("it is no regular file"),
            _ => Error::io(what, path, error),
        })?;
        let metadata = file
            .metadata()
            .map_err(|error| Error::io(what, path, error))?;
        if metadata.is_file() {
            return Ok(Self {
                path: path.to_owned(),
                file,
            });
        }
        Err(refuse("it is no regular file"))
    }

    pub(super) fn failed(&self, what: &'static str, error: impl Into<io::Error>) -> Error {
        let error = error.into();
        let hint = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(FREE_SOME_SPACE),
            io::ErrorKind::FileTooLarge => Some(RAISE_THE_LIMIT),
            _ => None,
        };
        let failure = Error::io(what, &self.path, error);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

impl StorageFile for DiskFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| self.failed("cannot read", error))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| self.failed("cannot write", error))
    }

    fn len(&self) -> Result<u64> {
        self.file
            .metadata()
            .map(|metadata| metadata.len())
            .map_err(|error| self.failed("cannot examine", error))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file
            .set_len(len)
            .map_err(|error| self.failed("cannot resize", error))
    }

    fn preallocate(&self, len: u64) -> Result<()> {
        const WHAT: &str = "cannot reserve disk space for";
        self.set_len(len)?;
        loop {
            match if len == 0 {
                Ok(())
            } else {
                fallocate(&self.file, FallocateFlags::empty(), 0, len)
            } {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                // This file system has no reservations; the earlier check for room must do.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
                Err(error) => return Err(self.failed(WHAT, error)),
            }
        }
    }

    fn sync_data(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|error| self.failed("cannot sync", error))?;
        // Durable bytes are not read again; the cache is better spent on inputs. Ignored advice
        // does no harm.
        _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_created_file_has_the_mode_that_the_umask_gives_and_is_not_created_twice() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("a/b/c");
        DiskStorage
            .create_dir_all(&folder.path().join("a/b"))
            .expect("created");
        DiskStorage.create(&path).expect("created");
        let plain = folder.path().join("plain");
        fs::write(&plain, b"").expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("exists").permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
        let error = DiskStorage.create(&path).err().expect("refused");
        assert!(error.subject().ends_with("a/b/c"));
    }

    #[test]
    fn a_preallocated_file_takes_its_blocks_at_once() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("part");
        let file = DiskStorage.create(&path).expect("created");
        file.preallocate(1 << 20).expect("reserved");
        let metadata = fs::metadata(&path).expect("exists");
        assert_eq!(metadata.len(), 1 << 20);
        assert!(metadata.blocks() * 512 >= 1 << 20);
        file.preallocate(10).expect("cut");
        assert_eq!(file.len().expect("open"), 10);
        file.preallocate(0).expect("emptied");
        assert_eq!(DiskStorage.len(&path).expect("there"), Some(0));
        assert!(file.preallocate(1 << 55).is_err(), "more than any disk");
    }

    #[test]
    fn a_hole_takes_no_space_and_what_is_free_is_known() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("part");
        DiskStorage
            .create(&path)
            .and_then(|file| file.set_len(1 << 30))
            .expect("made");
        assert!(DiskStorage.allocated(&path).expect("there").expect("there") < 1 << 20);
        assert_eq!(
            DiskStorage
                .allocated(&folder.path().join("nothing"))
                .expect("no failure"),
            None
        );
        let free = DiskStorage
            .free_bytes(folder.path())
            .expect("no failure")
            .expect("a real file system");
        assert!((1..1 << 55).contains(&free), "{free}");
        let to_be_made = DiskStorage
            .free_bytes(&folder.path().join("nothing/below"))
            .expect("no failure");
        assert!(
            to_be_made.is_some_and(|free| free > 0),
            "that of the nearest folder that is there"
        );
    }

    #[test]
    fn what_is_missing_has_no_length_and_no_names() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let nothing = folder.path().join("nothing");
        assert_eq!(DiskStorage.len(&nothing).expect("no failure"), None);
        assert_eq!(DiskStorage.list(&nothing).expect("no failure"), None);
        assert!(DiskStorage.sync_dir(&nothing).is_err());
        let copied = DiskStorage.copy(&nothing, &folder.path().join("copy"));
        assert!(copied.is_err());
        assert_eq!(
            DiskStorage.list(folder.path()).expect("no failure"),
            Some(vec![])
        );
    }
}
