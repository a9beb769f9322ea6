//! A tensor of another shape, padded with zeros or another tensor's elements, or cropped.

use std::ops::Range;

use super::placement::{PIECE_BYTES, Piece, Placement};
use super::{Below, Reading, View, index, is_sparse};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::Elements;

/// The elements of the tensor below, each in its place. The other places are filled from a second
/// tensor of the wide shape, or with zeros.
#[derive(Debug, Clone)]
pub struct Placed {
    placement: Placement,
    from: Dtype,
    to: Dtype,
    is_filled: bool,
}

impl Placed {
    /// Makes a view that converts elements from type `from` to `to`, which must hold them exactly.
    /// If `is_filled`, a second source fills the other places.
    pub fn new(placement: Placement, from: Dtype, to: Dtype, is_filled: bool) -> Self {
        Self {
            placement,
            from,
            to,
            is_filled,
        }
    }

    /// Reads a piece and puts its elements into their places in `into`. `read` is a buffer for the
    /// span.
    fn bring(
        &self,
        below: Below<'_>,
        piece: &Piece<'_>,
        read: &mut Vec<u8>,
        into: &mut [u8],
    ) -> Result<()> {
        let (stored, unit, wide) = (piece.stored(), self.from.bytes(), self.to.bytes());
        // A single run of the right type is read into place directly.
        if let Some(place) = piece.alone().filter(|_| self.from == self.to) {
            return below
                .first()
                .read(stored, &mut into[place.start * wide..place.end * wide]);
        }
        read.resize(index(stored.end - stored.start) * unit, 0);
        below.first().read(stored, read)?;
        piece.runs(&mut |from, to| {
            let elements = Elements {
                dtype: self.from,
                bytes: &read[from.start * unit..from.end * unit],
            };
            below
                .kernels
                .convert(elements, self.to, &mut into[to.start * wide..to.end * wide]);
        });
        Ok(())
    }
}

impl View for Placed {
    fn sources(&self) -> usize {
        1 + usize::from(self.is_filled)
    }

    fn dtype(&self) -> Dtype {
        self.to
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn scratch_bytes(&self) -> u64 {
        PIECE_BYTES
    }

    /// Elements that are widened exist twice for a moment.
    fn scratch_unit(&self) -> u64 {
        if self.from == self.to {
            0
        } else {
            self.from.bytes() as u64
        }
    }

    fn count(&self, source: usize, range: Range<u64>) -> u64 {
        let len = range.end - range.start;
        if source == 0 {
            self.placement.count(range.start, len)
        } else {
            len
        }
    }

    fn span(&self, range: Range<u64>) -> Option<Range<u64>> {
        Some(self.placement.range(range.start, range.end - range.start))
    }

    fn lacks_some(&self) -> bool {
        self.placement.lacks_some()
    }

    fn open(&self) -> Box<dyn Reading> {
        Box::new(self.clone())
    }
}

impl Reading for Placed {
    fn read(&mut self, below: Below<'_>, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        if self.is_filled {
            below.tensors[1].read(range.clone(), into)?;
        } else if self.placement.lacks_some() {
            into.fill(0);
        }
        let mut read = Vec::new();
        let len = range.end - range.start;
        let mut bring = |piece: &Piece<'_>| self.bring(below, piece, &mut read, into);
        self.placement
            .pieces(range.start, len, self.from.bytes(), &mut bring)
    }

    fn prefetch(&self, below: Below<'_>, range: Range<u64>) {
        let span = self.placement.range(range.start, range.end - range.start);
        // A sparse span is not worth reading ahead.
        if !is_sparse(&span, &range) {
            below.first().prefetch(span);
        }
    }
}
