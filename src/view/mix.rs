//! Tensors that are scaled along the residual axis by a norm's weight and mapped by an orthogonal
//! matrix.
//!
//! With the stream on the last axis (tensors that read from it, and embeddings) a row becomes `Q ·
//! (scale ∘ row)`, row by row. With the stream on the first axis (tensors that write to it) a row
//! becomes a sum over all rows, so a batch of new rows reads the whole tensor. Every element is one
//! sum in a fixed order, so its bits do not depend on the range that is read.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::moves::Moves;
use super::{Below, index};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::{Elements, Kernels, Right, Wide};
use crate::symmetry::OrthogonalMap;

/// The size of the rows that are read together, as f64, in bytes.
const ROW_BYTES: u64 = 4 << 20;
/// The size of the new rows that one pass over the tensor sums, as f64, in bytes.
const SUM_BYTES: u64 = 32 << 20;

/// The axis of the residual stream in a tensor that is flattened to a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// Each row is a place of the stream.
    First,
    /// Each column is.
    Last,
}

/// The computation of a tensor's new elements.
#[derive(Debug, Clone)]
pub(super) enum Making {
    /// Every element is this number.
    Constant(f64),
    /// Elements are scaled and mapped along the stream.
    Mixed {
        /// The axis of the stream.
        axis: Axis,
        /// The factors along the stream.
        scale: Option<Arc<Vec<f64>>>,
        /// The map of the stream.
        map: Option<OrthogonalMap>,
    },
}

/// The size of a tensor as a matrix: its rows, and the elements of each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub rows: u64,
    pub row: u64,
}

/// Makes elements of a tensor, in batches of rows.
pub(super) struct Mix {
    making: Making,
    size: Size,
    /// The rows whose elements are in `made`.
    batch: Range<u64>,
    made: Vec<f64>,
    wide: Vec<f64>,
    bytes: Vec<u8>,
}

impl Making {
    /// Counts the new rows that are made together.
    fn rows_made(&self, size: Size) -> u64 {
        let bytes = if self.sums_rows() {
            SUM_BYTES
        } else {
            ROW_BYTES
        };
        (bytes / (8 * size.row).max(1)).clamp(1, size.rows.max(1))
    }

    /// True if a new row is a sum over all rows.
    fn sums_rows(&self) -> bool {
        matches!(
            self,
            Self::Mixed {
                axis: Axis::First,
                map: Some(_),
                ..
            }
        )
    }

    /// Returns the memory for making a tensor of this size from elements of `unit` bytes, in bytes.
    pub fn bytes(&self, size: Size, unit: u64) -> u64 {
        if matches!(self, Self::Constant(_)) {
            return 0;
        }
        let read = (ROW_BYTES / (8 * size.row).max(1)).clamp(1, size.rows.max(1));
        self.rows_made(size) * size.row * 8 + read * size.row * (8 + unit)
    }
}

impl Mix {
    pub fn new(making: Making, size: Size) -> Self {
        Self {
            making,
            size,
            batch: 0..0,
            made: Vec::new(),
            wide: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Fills `into` with the elements of `range`, as f64.
    ///
    /// # Errors
    ///
    /// When the original cannot be read.
    pub fn read(
        &mut self,
        moves: &mut Moves,
        from: Below<'_>,
        range: Range<u64>,
        into: &mut [u8],
    ) -> Result<()> {
        if let Making::Constant(number) = self.making {
            into.as_chunks_mut().0.fill(number.to_le_bytes());
            return Ok(());
        }
        let mut rest = into;
        let mut at = range.start;
        while at < range.end {
            let row = at / self.size.row;
            if !self.batch.contains(&row) {
                self.make(moves, from, row)?;
            }
            let end = range.end.min(self.batch.end * self.size.row);
            let first = index(at - self.batch.start * self.size.row);
            let (piece, after) = rest.split_at_mut(index(end - at) * 8);
            piece.copy_from_slice(bytemuck::cast_slice(
                &self.made[first..first + index(end - at)],
            ));
            (rest, at) = (after, end);
        }
        Ok(())
    }

    /// Makes a batch of rows from `first` on.
    fn make(&mut self, moves: &mut Moves, from: Below<'_>, first: u64) -> Result<()> {
        let last = self.size.rows.min(first + self.making.rows_made(self.size));
        // An empty range marks the batch as missing if making it fails.
        self.batch = 0..0;
        self.made.clear();
        self.made.resize(index((last - first) * self.size.row), 0.0);
        let Making::Mixed { axis, scale, map } = self.making.clone() else {
            return Ok(());
        };
        match (axis, map) {
            (Axis::First, Some(map)) => self.sum_rows(moves, from, scale, &map, first..last)?,
            (_, map) => {
                self.load(moves, from, axis, scale.as_deref(), first..last)?;
                match map {
                    Some(map) => {
                        let (count, width) = (index(last - first), index(self.size.row));
                        let right =
                            Right::Transposed(Wide::new(map.elements(), width, width, width));
                        multiply(
                            from,
                            Wide::new(&self.wide, count, width, width),
                            right,
                            &mut self.made,
                        );
                    }
                    None => std::mem::swap(&mut self.made, &mut self.wide),
                }
            }
        }
        self.batch = first..last;
        Ok(())
    }

    /// Sums the new rows `made`, each over all rows.
    fn sum_rows(
        &mut self,
        moves: &mut Moves,
        from: Below<'_>,
        scale: Option<Arc<Vec<f64>>>,
        map: &OrthogonalMap,
        made: Range<u64>,
    ) -> Result<()> {
        let (size, width) = (map.size(), index(self.size.row));
        let together = (ROW_BYTES / (8 * self.size.row).max(1)).max(1);
        let mut row = 0;
        while row < self.size.rows {
            let end = self.size.rows.min(row + together);
            self.load(moves, from, Axis::First, scale.as_deref(), row..end)?;
            let terms = index(end - row);
            let left = &map.elements()[index(made.start) * size + index(row)..];
            let left = Wide::new(left, index(made.end - made.start), terms, size);
            let right = Right::Plain(Wide::new(&self.wide, terms, width, width));
            multiply(from, left, right, &mut self.made);
            row = end;
        }
        Ok(())
    }

    /// Puts rows of the original, moved and scaled, into `wide`.
    fn load(
        &mut self,
        moves: &mut Moves,
        from: Below<'_>,
        axis: Axis,
        scale: Option<&Vec<f64>>,
        rows: Range<u64>,
    ) -> Result<()> {
        let (count, width) = (
            index((rows.end - rows.start) * self.size.row),
            index(self.size.row),
        );
        let dtype = moves.dtype();
        self.bytes.resize(count * dtype.bytes(), 0);
        moves.read(
            from,
            rows.start * self.size.row..rows.end * self.size.row,
            &mut self.bytes,
        )?;
        self.wide.resize(count, 0.0);
        let elements = Elements {
            dtype,
            bytes: &self.bytes,
        };
        from.kernels.convert(
            elements,
            Dtype::F64,
            bytemuck::cast_slice_mut(&mut self.wide),
        );
        let Some(scale) = scale else { return Ok(()) };
        for (row, at) in self.wide.chunks_exact_mut(width).zip(index(rows.start)..) {
            match axis {
                Axis::First => row.iter_mut().for_each(|element| *element *= scale[at]),
                Axis::Last => row
                    .iter_mut()
                    .zip(scale)
                    .for_each(|(element, scale)| *element *= scale),
            }
        }
        Ok(())
    }
}

/// A product that is computed in parts of rows.
#[derive(Clone, Copy)]
struct Product<'a> {
    kernels: Kernels,
    left: Wide<'a>,
    right: Right<'a>,
    /// The rows of a part.
    part: usize,
    /// The columns of the result.
    width: usize,
}

impl Product<'_> {
    /// Adds all parts to `result`, on the pool of this thread.
    fn add(self, result: &mut [f64]) {
        let parts = result.par_chunks_mut(self.part * self.width).enumerate();
        parts.for_each(|(at, rows)| self.add_part(at, rows));
    }

    /// Adds part `at` to its rows of the result.
    fn add_part(self, at: usize, rows: &mut [f64]) {
        let first = at * self.part;
        let left = self.left.subrows(first..first + rows.len() / self.width);
        self.kernels.add_product(left, self.right, rows);
    }
}

/// Adds the product to `result`, on the given pool or on this thread's own.
fn multiply(from: Below<'_>, left: Wide<'_>, right: Right<'_>, result: &mut [f64]) {
    let Some(width) = result
        .len()
        .checked_div(left.rows())
        .filter(|width| *width > 0)
    else {
        return;
    };
    let threads = match from.pool {
        Some(pool) => pool.current_num_threads(),
        None if rayon::current_thread_index().is_some() => rayon::current_num_threads(),
        None => 1,
    };
    let part = left.rows().div_ceil(threads);
    let product = Product {
        kernels: from.kernels,
        left,
        right,
        part,
        width,
    };
    match from.pool {
        _ if threads < 2 => product.add_part(0, result),
        Some(pool) => pool.install(|| product.add(result)),
        None => product.add(result),
    }
}
