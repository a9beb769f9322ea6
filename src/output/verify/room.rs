//! The memory limit of a check: the size of a file is checked before it is read into memory.

use std::cell::Cell;
use std::path::Path;

use crate::budget::format_bytes;
use crate::error::{Error, Kind, Result};
use crate::output::storage::{DiskStorage, Storage};

/// The memory of the program itself, with the buffers for reading and hashing, in bytes.
const PROGRAM_BYTES: u64 = 16 << 20;

/// The most bytes of memory per bytes of text, as a fraction: the shortest entries take the most.
pub(super) struct Ratio(u64, u64);

/// The ratio for a manifest.
pub(super) const MANIFEST: Ratio = Ratio(2, 3);
/// The ratio for an index.
pub(super) const INDEX: Ratio = Ratio(2, 1);

/// The memory that a check may take, and the part of it in use, in bytes.
pub(super) struct Room {
    limit: u64,
    held: Cell<u64>,
}

impl Room {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            held: Cell::new(PROGRAM_BYTES),
        }
    }

    /// Reserves memory for the contents of the file at `path`, for good. A missing file needs none.
    pub(super) fn admit(&self, path: &Path, ratio: &Ratio) -> Result<()> {
        let bytes = DiskStorage.len(path)?.unwrap_or(0).saturating_mul(ratio.0) / ratio.1;
        self.check(path, bytes)?;
        self.held.set(self.held.get().saturating_add(bytes));
        Ok(())
    }

    /// Refuses to take `bytes` for a while because of the file at `path`, when there is no room for
    /// them.
    pub(super) fn check(&self, path: &Path, bytes: u64) -> Result<()> {
        let needed = self.held.get().saturating_add(bytes);
        if needed <= self.limit {
            return Ok(());
        }
        let cause = format!(
            "checking {} needs at least {}",
            path.display(),
            format_bytes(needed)
        );
        Err(Error::new(
            Kind::Budget,
            "memory is too small",
            format_bytes(self.limit),
            cause,
        )
        .with_hint(format!(
            "give --memory {}MiB or more",
            needed.div_ceil(1 << 20)
        )))
    }
}
