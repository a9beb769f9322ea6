//! Sources of bytes: the [`Source`] trait, the [`Window`] that it hands out, and what both promise
//! about memory.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroU64;
use std::ops::{Deref, DerefMut, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::MmapMut;
use rustix::fs::{Advice, fadvise};

use super::map::Mapped;
use super::opened::Opened;
use super::recycled::{Recycled, Recycler};
use crate::error::{Error, Kind, Result};

/// The way in which plain files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Io {
    /// Through a memory map: fastest, nothing is copied. A file that is cut while a window of it is
    /// in use raises a bus error, which ends the process unless [`guard_maps`](super::guard_maps)
    /// was called; see [`Window::intact`].
    #[default]
    Map,
    /// Through positioned reads into owned buffers: for network file systems and files that others
    /// may cut.
    Positioned,
}

/// Options of [`open_file`](super::Checkpoint::open_file).
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// The way in which plain bytes are read.
    pub io: Io,
    /// A folder in which a compressed file without a seek table may be expanded, and a PyTorch file
    /// converted; without it such files are refused when read.
    pub scratch: Option<PathBuf>,
}

/// One input file's bytes, uncompressed, by range.
///
/// Nothing here assumes a map: a source may as well fetch its ranges. All calls may come from
/// several threads.
pub trait Source: Send + Sync {
    /// The file, for messages.
    fn path(&self) -> &Path;

    /// Length of the uncompressed file in bytes.
    fn len(&self) -> u64;

    /// Returns true when there is nothing to read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Says that `range` will be loaded soon; may start reading, never waits for it, never fails.
    fn prefetch(&self, range: Range<u64>);

    /// The bytes of `range`, all of them in memory when this returns: the disk is waited for here,
    /// not by the reader of the window.
    ///
    /// # Errors
    ///
    /// A range outside the file, a file that was changed since it was opened, damaged compressed
    /// data, a failed read.
    fn load(&self, range: Range<u64>) -> Result<Window>;

    /// Fills `into` with the bytes of `range`, as many as it has: for pieces too small for a window
    /// of their own.
    ///
    /// # Errors
    ///
    /// As [`Source::load`].
    ///
    /// # Panics
    ///
    /// Panics when `into` is not as long as `range`.
    fn read_into(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        let window = self.load(range)?;
        into.copy_from_slice(&window);
        window.intact()
    }

    /// Memory that this source holds besides its windows, at its peak, in bytes.
    fn overhead_bytes(&self) -> u64;

    /// Nothing is read from it for a while: gives back what it holds besides its windows, where
    /// that is much.
    fn rest(&self) {}
}

/// Bytes of a [`Source`]; its memory is given back to the system when it is dropped.
pub struct Window(Bytes);

enum Bytes {
    Mapped(Mapped),
    Owned(Buffer),
}

impl Window {
    pub(super) fn empty() -> Self {
        Self(Bytes::Owned(Buffer::Heap(Vec::new())))
    }

    /// Checks that the file held these bytes all along. Call it after the bytes were used and
    /// before the result is.
    ///
    /// A map shows what happens to its file: other bytes, or zeros where it was cut. Owned bytes
    /// are always intact.
    ///
    /// # Errors
    ///
    /// The file was changed since it was opened, or some of it could not be read; what was computed
    /// of the window is worth nothing.
    pub fn intact(&self) -> Result<()> {
        match &self.0 {
            Bytes::Mapped(map) => map.intact(),
            Bytes::Owned(_) => Ok(()),
        }
    }

    /// An owned window of `len` bytes that `fill` has made, from zeros, for the file `path`.
    ///
    /// # Errors
    ///
    /// Fails when there is no memory for it.
    pub fn assembled(len: u64, path: &Path, fill: impl FnOnce(&mut [u8])) -> Result<Self> {
        Self::filled(len, path, |buffer| {
            fill(buffer);
            Ok(())
        })
    }

    /// A window of `len` bytes that `fill`, which is given zeros, has filled.
    ///
    /// # Errors
    ///
    /// Fails when there is no memory for it, and with those of `fill`.
    pub fn filled(
        len: u64,
        path: &Path,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let mut buffer = Buffer::zeroed(&(0..len), path)?;
        fill(&mut buffer)?;
        Ok(buffer.into())
    }
}

impl From<Mapped> for Window {
    fn from(map: Mapped) -> Self {
        Self(Bytes::Mapped(map))
    }
}

impl From<Buffer> for Window {
    fn from(buffer: Buffer) -> Self {
        Self(Bytes::Owned(buffer))
    }
}

impl Deref for Window {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map.bytes(),
            Bytes::Owned(buffer) => buffer,
        }
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.0, Bytes::Mapped(_)) {
            "mapped"
        } else {
            "owned"
        };
        write!(f, "Window({kind}, {} bytes)", self.len())
    }
}

/// An owned, zeroed buffer.
///
/// Big ones are anonymous maps of their own: an allocator may keep what it is given back, up to
/// tens of megabytes for each thread, which a byte budget cannot see.
pub(super) enum Buffer {
    Heap(Vec<u8>),
    Pages(MmapMut),
    Recycled(Recycled),
}

impl Buffer {
    const PAGES_FROM_BYTES: usize = 128 << 10;

    pub fn zeroed(range: &Range<u64>, path: &Path) -> Result<Self> {
        let refused = |cause: String| Error::new(Kind::Io, "cannot read", path.display(), cause);
        let len =
            usize::try_from(range.end - range.start).map_err(|error| refused(error.to_string()))?;
        if len < Self::PAGES_FROM_BYTES {
            return Ok(Self::Heap(vec![0; len]));
        }
        let pages = MmapMut::map_anon(len)
            .map_err(|error| refused(format!("no memory for {len} bytes: {error}")))?;
        Ok(Self::Pages(pages))
    }
}

impl Buffer {
    /// A buffer of any content, which is filled whole; a big one is taken from `recycler`.
    pub fn recycled(range: &Range<u64>, path: &Path, recycler: &Arc<Recycler>) -> Result<Self> {
        match usize::try_from(range.end - range.start) {
            Ok(len) if len >= Self::PAGES_FROM_BYTES => {
                Ok(Self::Recycled(recycler.take(len, path)?))
            }
            _ => Self::zeroed(range, path),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Pages(bytes) => bytes,
            Self::Recycled(bytes) => bytes,
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Pages(bytes) => bytes,
            Self::Recycled(bytes) => bytes,
        }
    }
}

/// An input and what it looked like when its header was read. It is open, or it was and will be
/// opened again.
#[derive(Debug)]
pub(super) struct Input {
    pub path: PathBuf,
    pub identity: Identity,
    /// Device and number: what tells that the path still leads to the same file.
    inode: (u64, u64),
    opened: Opened,
}

/// Length and modification time: what tells that a file is still the one whose header was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub len: u64,
    pub modified_ns: i128,
}

impl Input {
    /// Opens a regular file for reading; symbolic links are followed.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("cannot open", path, error);
        // NOTE: asked before opening, because opening a named pipe waits for a writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(Error::new(
                Kind::Input,
                "cannot open",
                path.display(),
                "not a regular file",
            ));
        }
        let opened = Opened::default();
        let metadata = opened
            .file(path, |_| Ok(()))
            .and_then(|file| file.metadata())
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            identity: Identity::of(&metadata),
            inode: inode(&metadata),
            opened,
        })
    }

    /// Opens a file that must still be the one that `identity` was taken of.
    pub fn reopen(path: &Path, identity: Identity) -> Result<Self> {
        let input = Self {
            identity,
            ..Self::open(path)?
        };
        input.unchanged()?;
        Ok(input)
    }

    /// The open file; where it had to be opened again, it is the one that it was.
    pub fn file(&self) -> io::Result<Arc<File>> {
        self.opened.file(&self.path, |file| {
            match self.difference(&file.metadata()?) {
                Some(difference) => Err(io::Error::other(difference)),
                None => Ok(()),
            }
        })
    }

    /// Reads what there is from `at` on, at most as much as fits.
    pub fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        self.file()?.read_at(into, at)
    }

    /// Fills `into` from `at` on.
    pub fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.file()?.read_exact_at(into, at)
    }

    /// Fills `into` with the bytes of `range` by a positioned read.
    pub fn read_into(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        within(&range, self.identity.len, &self.path)?;
        assert_eq!(
            range.end - range.start,
            into.len() as u64,
            "a buffer as long as the range"
        );
        if let Err(error) = self.read_exact_at(into, range.start) {
            // A cut file is the usual reason, and the better message.
            self.unchanged()?;
            return Err(Error::io("cannot read", &self.path, error));
        }
        self.unchanged()
    }

    /// Has the system start reading `range`; a refusal costs read-ahead only.
    pub fn prefetch(&self, range: &Range<u64>) {
        if let Some(len) = range.end.checked_sub(range.start).and_then(NonZeroU64::new)
            && let Ok(file) = self.file()
        {
            let _ = fadvise(&*file, range.start, Some(len), Advice::WillNeed);
        }
    }

    /// # Errors
    ///
    /// The file was changed since its header was read.
    pub fn unchanged(&self) -> Result<()> {
        let now = match self.opened.if_open() {
            Some(file) => file.metadata(),
            None => std::fs::metadata(&self.path),
        };
        let now = now.map_err(|error| Error::io("cannot read", &self.path, error))?;
        let Some(cause) = self.difference(&now) else {
            return Ok(());
        };
        Err(
            Error::new(Kind::Input, "cannot read", self.path.display(), cause).with_hint(
                "let nothing write to the input checkpoints during a merge, then start again",
            ),
        )
    }

    /// In which way the file is not the one whose header was read.
    fn difference(&self, now: &Metadata) -> Option<String> {
        let Identity { len, modified_ns } = Identity::of(now);
        if len != self.identity.len {
            return Some(format!(
                "changed while it was read: had {} bytes, has {len}",
                self.identity.len
            ));
        }
        if modified_ns != self.identity.modified_ns {
            return Some("changed while it was read: its modification time moved".to_owned());
        }
        (inode(now) != self.inode)
            .then(|| "changed while it was read: its name is another file's now".to_owned())
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        let modified_ns =
            i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self {
            len: metadata.len(),
            modified_ns,
        }
    }
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// # Errors
///
/// `range` is not inside a file of `len` bytes, or runs backwards.
pub(super) fn within(range: &Range<u64>, len: u64, path: &Path) -> Result<()> {
    if range.start <= range.end && range.end <= len {
        return Ok(());
    }
    let cause = format!(
        "bytes {}..{} wanted, file has {len}",
        range.start, range.end
    );
    Err(Error::new(
        Kind::Input,
        "cannot read",
        path.display(),
        cause,
    ))
}
