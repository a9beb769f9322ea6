//! Plain files through positioned reads into owned buffers.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::recycled::Recycler;
use super::source::{Buffer, Input, Source, Window, within};
use crate::error::{Error, Result};

/// An input file that is read with `pread`.
pub(super) struct PositionedSource {
    input: Input,
    recycler: Arc<Recycler>,
}

impl PositionedSource {
    /// Reads `input` into buffers of `recycler`.
    pub fn new(input: Input, recycler: Arc<Recycler>) -> Self {
        Self { input, recycler }
    }
}

impl Source for PositionedSource {
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
        read(&self.input, &range, Some(&self.recycler))
    }

    fn read_into(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        self.input.read_into(range, into)
    }

    fn overhead_bytes(&self) -> u64 {
        size_of::<Self>() as u64
    }
}

/// The bytes of `range`, which lies in the file, in an owned buffer; one of `recycler` where that
/// is worth it.
pub(super) fn read(
    input: &Input,
    range: &Range<u64>,
    recycler: Option<&Arc<Recycler>>,
) -> Result<Window> {
    input.unchanged()?;
    let mut buffer = match recycler {
        Some(recycler) => Buffer::recycled(range, &input.path, recycler)?,
        None => Buffer::zeroed(range, &input.path)?,
    };
    if let Err(error) = input.read_exact_at(&mut buffer, range.start) {
        input.unchanged()?;
        return Err(Error::io("cannot read", &input.path, error));
    }
    input.unchanged()?;
    Ok(buffer.into())
}
