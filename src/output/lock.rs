//! Keeps an output to one process, by an advisory lock that the system drops when its holder dies.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::folder::Places;
use super::storage::Storage;
use crate::error::{Error, Kind, Result};

/// The attempts to lock a file that keeps vanishing.
const ATTEMPTS: usize = 16;

/// The right to work on an output folder, until dropped.
///
/// A lock holds no data and needs no sync, so it is taken on the disk directly, not through
/// [`Storage`].
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Creates the work folder if needed and takes its lock, without waiting.
    pub(super) fn acquire(storage: &dyn Storage, places: &Places) -> Result<Self> {
        let path = places.lock();
        let failed = |error| Error::io("cannot lock", &path, error);
        for _ in 0..ATTEMPTS {
            storage.create_dir_all(&places.work())?;
            let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
            let mut options = File::options();
            let options = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(flags);
            let file = match options.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(failed)?,
            };
            if let Some(lock) = Self::claim(file, &path)? {
                return Ok(lock);
            }
        }
        Err(Error::new(
            Kind::Locked,
            "cannot lock",
            path.display(),
            "other processes begin and end here all the time",
        ))
    }

    /// Checks that no other process holds the lock; creates and changes nothing.
    ///
    /// # Errors
    ///
    /// [`Kind::Locked`] when another process holds it.
    pub(super) fn look(places: &Places) -> Result<()> {
        let path = places.lock();
        // If the file cannot be opened, its holder cannot be found here; taking the lock will tell.
        let Ok(mut file) = File::options().read(true).open(&path) else {
            return Ok(());
        };
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Err(held(&path, &mut file)),
            _ => Ok(()),
        }
    }

    /// Locks an opened file; `None` when it is no longer the lock file.
    fn claim(mut file: File, path: &Path) -> Result<Option<Self>> {
        let failed = |error| Error::io("cannot lock", path, error);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(path, &mut file)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // The former holder may have removed the file after we opened it and before we locked it.
        // Then nobody else would ever find the locked file.
        if !is_still_at(path, &file).map_err(failed)? {
            return Ok(None);
        }
        file.set_len(0)
            .and_then(|()| file.write_all_at(pid_line().as_bytes(), 0))
            .map_err(failed)?;
        Ok(Some(Self { _file: file }))
    }
}

fn pid_line() -> String {
    format!("{}\n", std::process::id())
}

fn held(path: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    // The pid is a courtesy: if it cannot be read, the message does without it.
    let read = file.take(32).read_to_string(&mut text);
    let pid = text.trim();
    let named = read.is_ok() && !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
    let holder = if named {
        format!("process {pid}")
    } else {
        "another process".to_owned()
    };
    Error::new(
        Kind::Locked,
        "cannot lock",
        path.display(),
        format!("{holder} works on this output"),
    )
    .with_hint("wait for it, or choose another output folder")
}

fn is_still_at(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        there => there.map(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::storage::DiskStorage;

    #[test]
    fn a_second_holder_is_refused_with_the_firsts_pid_until_the_first_is_gone() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let places = Places::new(&folder.path().join("out"));
        let first = Lock::acquire(&DiskStorage, &places).expect("free");
        let error = Lock::acquire(&DiskStorage, &places).err().expect("held");
        assert_eq!(error.kind(), Kind::Locked);
        assert!(
            error
                .to_string()
                .contains(&format!("process {} works", std::process::id())),
            "{error}"
        );
        drop(first);
        Lock::acquire(&DiskStorage, &places).expect("free again");
    }

    #[test]
    fn a_lock_file_left_by_a_dead_process_does_not_lock() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let places = Places::new(folder.path());
        std::fs::create_dir(places.work()).expect("created");
        std::fs::write(places.lock(), "999999\n").expect("written");
        Lock::acquire(&DiskStorage, &places).expect("nobody holds it");
        assert_eq!(
            std::fs::read_to_string(places.lock()).expect("there"),
            pid_line()
        );
    }

    #[test]
    fn a_file_that_its_holder_removed_before_it_was_locked_is_no_lock() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("lock");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .expect("opened")
        };
        let (before, other) = (open(), open());
        std::fs::remove_file(&path).expect("removed");
        assert!(
            Lock::claim(before, &path)
                .expect("nobody holds it")
                .is_none(),
            "nothing is there"
        );
        let successor = Lock::claim(open(), &path)
            .expect("free")
            .expect("the file there");
        assert!(
            Lock::claim(other, &path)
                .expect("nobody holds it")
                .is_none(),
            "another file is there"
        );
        drop(successor);
    }
}
