//! Plain files through memory maps, one for each window.
//!
//! A map of the whole file would have to be told which pages to drop behind every window, has the
//! neighbours mapped that the kernel adds around a fault, and keeps its page tables, two bytes for
//! a thousand read, until it is closed. The map of a window is exactly the window, and its end
//! gives everything back.

use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Advice, Mmap, MmapOptions};

use super::bus::{self, Watch};
use super::positioned;
use super::source::{Input, Source, Window, within};
use crate::error::{Error, Kind, Result};

/// An input file that is mapped piece by piece.
pub(super) struct MapSource {
    input: Arc<Input>,
}

/// One mapped window and what tells whether it is still worth something.
pub(super) struct Mapped {
    /// Gone before the map is, so it stands first.
    watch: Option<Watch>,
    map: Mmap,
    input: Arc<Input>,
}

impl Mapped {
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// # Errors
    ///
    /// The file was changed since its header was read, or pages of the window could not be had.
    pub fn intact(&self) -> Result<()> {
        self.input.unchanged()?;
        if self.watch.as_ref().is_some_and(Watch::is_lost) {
            let cause = "the disk did not give all of it, or the file was cut meanwhile";
            return Err(Error::new(
                Kind::Io,
                "cannot read",
                self.input.path.display(),
                cause,
            ));
        }
        Ok(())
    }
}

impl MapSource {
    pub fn new(input: Input) -> Self {
        Self {
            input: Arc::new(input),
        }
    }

    fn map(&self, range: &Range<u64>) -> io::Result<Mmap> {
        let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let file = self.input.file()?;
        // SAFETY: the map is read-only. A file that changes under it can show other bytes or raise
        // SIGBUS past a new end, never an invalid value, for every byte is a valid u8; length and
        // time are checked at every load, and `guard_maps` is there for the rest.
        let map = unsafe { MmapOptions::new().offset(range.start).len(len).map(&*file) }?;
        // Without it a fault reads around its page, half of that behind; a refusal costs speed
        // only.
        let _ = map.advise(Advice::Sequential);
        populate(&map)?;
        Ok(map)
    }
}

impl Source for MapSource {
    fn path(&self) -> &Path {
        &self.input.path
    }

    fn len(&self) -> u64 {
        self.input.identity.len
    }

    fn prefetch(&self, range: Range<u64>) {
        self.input.prefetch(&range);
    }

    fn load(&self, range: Range<u64>) -> Result<Window> {
        within(&range, self.len(), &self.input.path)?;
        self.input.unchanged()?;
        if range.is_empty() {
            return Ok(Window::empty());
        }
        let map = match self.map(&range) {
            Ok(map) => map,
            Err(error) => {
                // A cut file is the usual reason, and the better message.
                self.input.unchanged()?;
                return Err(Error::io("cannot read", &self.input.path, error));
            }
        };
        self.input.unchanged()?;
        let watch = if bus::is_guarded() {
            Watch::over(&map)
        } else {
            None
        };
        if watch.is_none() && bus::is_guarded() {
            drop(map);
            return positioned::read(&self.input, &range, None);
        }
        Ok(Mapped {
            watch,
            map,
            input: Arc::clone(&self.input),
        }
        .into())
    }

    fn read_into(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        self.input.read_into(range, into)
    }

    fn overhead_bytes(&self) -> u64 {
        size_of::<Self>() as u64
    }
}

/// Brings all pages of `map` into memory and into the page table; an error stands for what would be
/// a bus error.
fn populate(map: &Mmap) -> io::Result<()> {
    match map.advise(Advice::PopulateRead) {
        // The kernel is older than 5.14.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            touch(map);
            Ok(())
        }
        done => done,
    }
}

/// Reads one byte of every page, so that the faults happen here.
fn touch(bytes: &[u8]) {
    for byte in bytes.iter().step_by(4096).chain(bytes.last()) {
        black_box(*byte);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_was_cut_is_an_error_and_not_a_bus_error() {
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        file.write_all(&[7; 50_000]).expect("write");
        let source = MapSource::new(Input::open(file.path()).expect("open"));
        assert_eq!(source.map(&(1..50_000)).expect("whole")[..], [7; 49_999]);
        file.as_file().set_len(10_000).expect("cut");
        assert!(source.map(&(0..50_000)).is_err());
        assert!(source.map(&(20_000..30_000)).is_err());
        assert_eq!(
            source.map(&(9_000..10_000)).expect("still there")[..],
            [7; 1000]
        );
    }
}
