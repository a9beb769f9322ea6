//! Both factors of a product on their way to a device.

use std::ops::Range;

use rayon::prelude::*;

use super::cut::{ALIGNMENT, ProductPart, UNIT};
use super::gather::Moved;
use super::lanes::Lane;
use super::multiplication::Factor;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::linalg::{Columns, Matrix};

/// Elements that one thread copies at a time.
pub(super) const PIECE: usize = 1 << 14;

/// The factors of a product.
pub(super) struct Factors<'a> {
    pub left: Matrix<'a>,
    pub right: Matrix<'a>,
    /// The new order of the columns of the right factor, if that is row-major.
    pub columns: Option<&'a Columns>,
}

impl Factors<'_> {
    /// Copies the factors of some terms of a part into an idle lane, from `begin` on, reorders
    /// columns on the host, and queues the copy to the device.
    pub fn bring(
        &self,
        lane: &mut Lane,
        begin: usize,
        part: &ProductPart,
        terms: &Range<usize>,
    ) -> Result<[Factor; 2]> {
        let mut end = begin;
        let brought = self.pieces(part, terms).map(|piece| {
            let at = end.next_multiple_of(ALIGNMENT);
            end = at + piece.len() * UNIT;
            piece.copy_to(bytemuck::cast_slice_mut(lane.host(at..end)));
            Factor {
                at: lane.memory.at(at),
                transposed: piece.matrix.is_transposed(),
            }
        });
        lane.copy_in(begin..end)?;
        Ok(brought)
    }

    /// The same from the lane's begin on, for a part with all columns, which the device reorders.
    pub fn bring_apart(
        &self,
        lane: &mut Lane,
        part: &ProductPart,
        terms: &Range<usize>,
    ) -> Result<[Factor; 2]> {
        let Some(columns) = self.columns else {
            return self.bring(lane, 0, part, terms);
        };
        let [left, right] = self.pieces(part, terms).map(|piece| Piece {
            places: None,
            ..piece
        });
        let moved = Moved::new(
            (left.len() * UNIT).next_multiple_of(ALIGNMENT),
            right.len() * UNIT,
            columns.len(),
        );
        left.copy_to(bytemuck::cast_slice_mut(lane.host(0..left.len() * UNIT)));
        right.copy_to(bytemuck::cast_slice_mut(lane.host(moved.from.clone())));
        moved.put_places(lane, columns);
        lane.copy_in(0..moved.places.end)?;
        moved.launch(lane, Dtype::F32, columns.len())?;
        let left = Factor {
            at: lane.memory.at(0),
            transposed: left.matrix.is_transposed(),
        };
        let right = Factor {
            at: lane.memory.at(moved.into.start),
            transposed: false,
        };
        Ok([left, right])
    }

    /// Returns the pieces of both factors for some terms of a part of the result.
    fn pieces(&self, part: &ProductPart, terms: &Range<usize>) -> [Piece<'_>; 2] {
        let (rows, columns) = (part.rows.clone(), part.columns.clone());
        [
            Piece {
                matrix: self.left,
                rows,
                columns: terms.clone(),
                places: None,
            },
            Piece {
                matrix: self.right,
                rows: terms.clone(),
                columns,
                places: self.columns,
            },
        ]
    }
}

/// A part of a matrix.
struct Piece<'a> {
    matrix: Matrix<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    places: Option<&'a Columns>,
}

impl Piece<'_> {
    fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Copies the elements, in the order in which the matrix has them.
    fn copy_to(&self, into: &mut [f32]) {
        let Self {
            matrix,
            rows,
            columns,
            places,
        } = self;
        let (lines, along, pitch) = match matrix.is_transposed() {
            true => (columns, rows, matrix.rows()),
            false => (rows, columns, matrix.columns()),
        };
        let width = along.len().max(1);
        let pieces = into
            .par_chunks_exact_mut(width)
            .with_min_len(PIECE.div_ceil(width));
        pieces.zip(lines.clone()).for_each(|(into, line)| {
            let line = &matrix.elements()[line * pitch..][..pitch];
            match places {
                Some(places) => places.gather(line, along.clone(), into),
                None => into.copy_from_slice(&line[along.clone()]),
            }
        });
    }
}
