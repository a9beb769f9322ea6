//! Keeps input files open: the most recently used, as many as the system allows. The others are
//! opened again when needed.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::Errno;

use crate::budget::most_open_files;

/// The open files of all inputs, in the order of opening.
static OPEN: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());
/// The counter of uses, which dates the last use of each file.
static USES: AtomicU64 = AtomicU64::new(0);

/// A file that is open, or closed until its next use.
#[derive(Debug, Default)]
pub(super) struct Opened(Arc<Slot>);

#[derive(Debug, Default)]
struct Slot {
    file: Mutex<Option<Arc<File>>>,
    used: AtomicU64,
}

impl Opened {
    /// Returns the file at `path`, and opens it if needed; `admit` may refuse a newly opened file.
    pub fn file(
        &self,
        path: &Path,
        admit: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<Arc<File>> {
        let mut held = lock(&self.0.file);
        self.0
            .used
            .store(USES.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        if let Some(file) = &*held {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(open(path)?);
        admit(&file)?;
        *held = Some(Arc::clone(&file));
        let mut open = lock(&OPEN);
        close_some(
            &mut open,
            usize::try_from(most_open_files()).unwrap_or(usize::MAX) - 1,
        );
        open.push(Arc::downgrade(&self.0));
        Ok(file)
    }

    /// Returns the file if it is open now.
    pub fn if_open(&self) -> Option<Arc<File>> {
        lock(&self.0.file).clone()
    }
}

/// Opens a file; if the process has too many open files, closes some inputs first.
fn open(path: &Path) -> io::Result<File> {
    let full = |error: &io::Error| {
        [Errno::MFILE, Errno::NFILE]
            .iter()
            .any(|errno| Errno::from_io_error(error) == Some(*errno))
    };
    loop {
        match super::open_regular(path) {
            Err(error) if full(&error) => {
                let mut open = lock(&OPEN);
                let count = open.len();
                close_some(&mut open, count / 2);
                if open.len() == count {
                    let cause = format!("{error}: raise the limit on open files (ulimit -n)");
                    return Err(io::Error::new(error.kind(), cause));
                }
            }
            opened => return opened,
        }
    }
}

/// Closes the least recently used files until at most `most` are open. A file that another thread
/// waits for stays open.
fn close_some(open: &mut Vec<Weak<Slot>>, most: usize) {
    open.retain(|slot| slot.strong_count() > 0);
    if open.len() <= most {
        return;
    }
    let mut slots: Vec<Arc<Slot>> = open.iter().filter_map(Weak::upgrade).collect();
    slots.sort_by_key(|slot| slot.used.load(Ordering::Relaxed));
    let mut surplus = slots.len().saturating_sub(most);
    slots.retain(|slot| match slot.file.try_lock() {
        Ok(mut file) if surplus > 0 => {
            *file = None;
            surplus -= 1;
            false
        }
        _ => true,
    });
    *open = slots.iter().map(Arc::downgrade).collect();
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each value is changed whole, so a panic elsewhere cannot leave it half done.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_were_used_last_stay_open_and_the_others_open_again() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let files: Vec<_> = (0..5)
            .map(|number| {
                let path = folder.path().join(number.to_string());
                std::fs::write(&path, [number]).expect("written");
                (Opened::default(), path)
            })
            .collect();
        for (opened, path) in &files {
            opened.file(path, |_| Ok(())).expect("it opens");
        }
        files[0]
            .0
            .file(&files[0].1, |_| Err(io::Error::other("it was closed")))
            .expect("it is open still");
        let mut own: Vec<_> = files
            .iter()
            .map(|(opened, _)| Arc::downgrade(&opened.0))
            .collect();
        close_some(&mut own, 2);
        let is_open: Vec<_> = files
            .iter()
            .map(|(opened, _)| opened.if_open().is_some())
            .collect();
        assert_eq!(is_open, [true, false, false, false, true]);
        let mut seen = false;
        let admit = |_: &File| {
            seen = true;
            Ok(())
        };
        files[2].0.file(&files[2].1, admit).expect("it opens again");
        assert!(seen);
    }
}
