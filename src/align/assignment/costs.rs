//! Sources of the entries of a cost matrix.

use std::ops::Range;

use crate::error::{Error, Kind, Result};

use super::scan;

/// A square matrix that is computed a few rows at a time.
pub trait CostTiles {
    /// Returns the number of rows, which is also that of columns.
    fn size(&self) -> usize;

    /// Writes the entries of `rows`, row after row, to `out`, which has exactly that length.
    ///
    /// Within one pass the ranges ascend, but a pass may skip rows. An entry must have the same
    /// bits in every call, regardless of the range.
    ///
    /// # Errors
    ///
    /// Fails if the rows cannot be computed; the solver passes the error on.
    fn rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;
}

/// A square matrix in memory, row after row.
#[derive(Debug, Clone, Copy)]
pub struct Costs<'a> {
    size: usize,
    entries: &'a [f32],
}

impl<'a> Costs<'a> {
    /// Makes the matrix of `size` rows and columns with these entries.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] unless there are `size`² of them, or when the size is beyond 32 bits.
    pub fn new(size: usize, entries: &'a [f32]) -> Result<Self> {
        check_size(size)?;
        if size.checked_mul(size) != Some(entries.len()) {
            let cause = format!("wanted {size} x {size} entries, got {}", entries.len());
            return Err(Error::new(
                Kind::Mismatch,
                "cannot assign",
                "cost matrix",
                cause,
            ));
        }
        Ok(Self { size, entries })
    }

    /// Returns the number of rows, which is also that of columns.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the entries of one row.
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.entries[row * self.size..][..self.size]
    }

    /// Refuses NaN and infinity.
    pub(super) fn check(&self) -> Result<()> {
        (0..self.size).try_for_each(|row| check_row(row, self.row(row)))
    }
}

impl CostTiles for Costs<'_> {
    fn size(&self) -> usize {
        self.size
    }

    fn rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.entries[rows.start * self.size..rows.end * self.size]);
        Ok(())
    }
}

/// Refuses sizes whose indices do not fit 32 bits.
pub(super) fn check_size(size: usize) -> Result<()> {
    if u32::try_from(size).is_ok_and(|size| size < u32::MAX) {
        return Ok(());
    }
    let cause = format!("wanted fewer than {} rows, got {size}", u32::MAX);
    Err(Error::new(
        Kind::Mismatch,
        "cannot assign",
        "cost matrix",
        cause,
    ))
}

/// Refuses a row with NaN or infinity.
pub(super) fn check_row(row: usize, entries: &[f32]) -> Result<()> {
    match scan::first_nonfinite(entries) {
        None => Ok(()),
        Some(column) => {
            let subject = format!("cost matrix, row {row}, column {column}");
            let cause = format!("the entry is {}", entries[column]);
            Err(
                Error::new(Kind::NonFinite, "cannot assign", subject, cause).with_hint(
                    "look for NaN or infinity in the tensors that the costs are computed from",
                ),
            )
        }
    }
}
