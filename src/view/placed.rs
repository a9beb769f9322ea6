//! A tensor of another shape in its place: padded with zeros or another tensor's elements, or
//! cropped.

use std::ops::Range;

use super::placement::{PIECE_BYTES, Piece, Placement};
use super::{Below, Reading, View, index, is_sparse};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::Elements;

/// The elements of the tensor below in their places. Where it has none, those of a second tensor of
/// the wide shape stand, or zeros.
#[derive(Debug, Clone)]
pub struct Placed {
    placement: Placement,
    from: Dtype,
    to: Dtype,
    is_filled: bool,
}

impl Placed {
    /// A tensor of elements `from`, given as `to`, which holds them exactly; with a second source
    /// when `is_filled`.
    pub fn new(placement: Placement, from: Dtype, to: Dtype, is_filled: bool) -> Self {
        Self {
            placement,
            from,
            to,
            is_filled,
        }
    }

    /// Puts the elements of a piece into their places in `into`; `read` is memory for those that it
    /// spans.
    fn bring(
        &self,
        below: Below<'_>,
        piece: &Piece<'_>,
        read: &mut Vec<u8>,
        into: &mut [u8],
    ) -> Result<()> {
        let (stored, unit, wide) = (piece.stored(), self.from.bytes(), self.to.bytes());
        // A single run of the right type needs no detour.
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

    /// What is widened is there twice for a moment.
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
        // What is mostly left out is not worth reading ahead.
        if !is_sparse(&span, &range) {
            below.first().prefetch(span);
        }
    }
}
