//! The matrix Z_A Z_B^T, computed a run of rows at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::moments::{BLOCK, Moments};
use crate::align::assignment::CostTiles;
use crate::align::matching::Watch;
use crate::data::narrow;
use crate::error::Result;
use crate::linalg::{self, Backend, Matrix};

/// Rows are computed in runs that begin at multiples of this, so that their bits do not depend on
/// the caller.
pub const ROWS: usize = linalg::ROWS;
/// The most bytes that the sparse solver keeps of a row.
const CANDIDATES_BYTES: usize = 1 << 10;

/// Returns the memory for `rows` rows at a time of a matrix of `units`, in bytes: their sums,
/// products and entries, and the blocks that are multiplied.
pub fn bytes(units: usize, rows: usize) -> u64 {
    let block = usize::try_from(BLOCK).expect("a small number");
    let sums = rows * units * (size_of::<f64>() + 2 * size_of::<f32>());
    let blocks = block * (2 * units + rows) * size_of::<f32>();
    (sums + blocks + CANDIDATES_BYTES * units) as u64
}

/// The matrix, divided by both norms so that its entries are shares of a cosine; with free signs,
/// the absolute values.
pub struct ActivationProducts<'a> {
    pub first: Moments<'a>,
    pub second: Moments<'a>,
    pub units: usize,
    /// True if units may be flipped.
    pub signs: bool,
    pub backend: &'a Backend,
    pub watch: &'a dyn Watch,
}

impl ActivationProducts<'_> {
    /// Returns the value of a product of two units: with free signs its size alone counts.
    pub fn value(&self, product: f64) -> f64 {
        if self.signs { product.abs() } else { product }
    }

    /// Returns one over the product of both norms; zero where one of them is zero.
    fn scale(&self) -> f64 {
        let norms = self.norms();
        if norms > 0.0 { norms.recip() } else { 0.0 }
    }

    /// Returns the product of both norms.
    pub fn norms(&self) -> f64 {
        (self.first.square * self.second.square).sqrt()
    }

    /// Returns each row's entry in its column, with its sign and not divided by the norms; products
    /// and sums are in f64.
    pub fn picked(&self, columns: &[u32]) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; self.units];
        for block in self.first.blocks() {
            self.watch.go_on()?;
            let (first, second) = (self.first.block(block)?, self.second.block(block)?);
            for (first, second) in first.chunks(self.units).zip(second.chunks(self.units)) {
                for ((sum, value), column) in sums.iter_mut().zip(first).zip(columns) {
                    *sum += f64::from(*value) * f64::from(second[*column as usize]);
                }
            }
        }
        Ok(sums)
    }
}

impl CostTiles for ActivationProducts<'_> {
    fn size(&self) -> usize {
        self.units
    }

    fn rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let units = self.units;
        let start = rows.start / ROWS * ROWS;
        let end = rows.end.next_multiple_of(ROWS).min(units);
        let count = end - start;
        let mut sums = vec![0.0_f64; count * units];
        let mut product = vec![0.0_f32; count * units];
        for block in self.first.blocks() {
            self.watch.go_on()?;
            let (first, second) = (self.first.block(block)?, self.second.block(block)?);
            let samples = first.len() / units;
            let tile = first.chunks(units).flat_map(|row| &row[start..end]);
            let tile: Vec<f32> = tile.copied().collect();
            let left = Matrix::new(&tile, samples, count).transposed();
            let mut sum = self.backend.begin(count, &mut product)?;
            sum.add(1.0, left, Matrix::new(&second, samples, units))?;
            sum.finish()?;
            let sums = sums.par_iter_mut().zip(&product);
            sums.for_each(|(sum, product)| *sum += f64::from(*product));
            self.watch.advanced(2 * (samples * count * units) as u64);
        }
        let scale = self.scale();
        for (out, sum) in out.iter_mut().zip(&sums[(rows.start - start) * units..]) {
            *out = narrow(self.value(*sum) * scale);
        }
        Ok(())
    }
}
