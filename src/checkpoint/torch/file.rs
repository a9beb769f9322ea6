//! Positioned reads of one open file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// A reader with its own position in a shared file, so that readers do not disturb each other.
#[derive(Debug)]
pub(super) struct At<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl<'a> At<'a> {
    /// Creates a reader of the bytes from `start` up to the file's present end.
    pub(super) fn new(file: &'a File, start: u64) -> io::Result<Self> {
        Ok(Self {
            file,
            position: start,
            end: file.metadata()?.len(),
        })
    }
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for At<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(delta) => self.end.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        // File offsets are signed for the operating system.
        self.position = position
            .filter(|position| i64::try_from(*position).is_ok())
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "seek to a position no file has",
                )
            })?;
        Ok(self.position)
    }
}
