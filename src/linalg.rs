//! Products of matrices in f32, added up in an order that depends on the sizes of the factors
//! alone.
//!
//! The product is computed on a fixed grid: [`ROWS`] × [`COLUMNS`] entries of the result at a time,
//! [`DEPTH`] terms of their sums at a time. So an entry has the same bits for every number of
//! threads, and for every cut of the left factor into runs of rows that begin at multiples of
//! [`ROWS`]. A [`Sum`] adds the same products on a [`Backend`]; one that is not the processor adds
//! in an order of its own.

mod columns;
mod sum;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

pub use columns::Columns;
pub use sum::{Adder, Backend, Sum};

/// Rows of the result that are computed together.
pub const ROWS: usize = 256;
/// Columns of the result that are computed together.
pub const COLUMNS: usize = 1024;
/// Terms of a sum that are added up before they are added to the result.
pub const DEPTH: usize = 256;

/// A matrix of f32 in memory, its rows or its columns contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    elements: &'a [f32],
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// Makes the matrix with these row-major elements.
    ///
    /// # Panics
    ///
    /// Panics unless there are `rows` · `columns` elements.
    pub fn new(elements: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(
            elements.len(),
            rows * columns,
            "a matrix of {rows} x {columns}"
        );
        Self {
            elements,
            rows,
            columns,
            transposed: false,
        }
    }

    /// Returns the transposed matrix.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            transposed: !self.transposed,
            ..self
        }
    }

    /// Counts the rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Counts the columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the elements in their order in memory: row by row, or column by column if
    /// [`Matrix::is_transposed`].
    pub fn elements(&self) -> &'a [f32] {
        self.elements
    }

    /// True if the elements of a column are contiguous, not those of a row.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    fn as_ref(&self) -> MatRef<'a, f32> {
        if self.transposed {
            MatRef::from_column_major_slice(self.elements, self.rows, self.columns)
        } else {
            MatRef::from_row_major_slice(self.elements, self.rows, self.columns)
        }
    }
}

/// Adds `left` · `right` to the row-major `result`, on the threads of the current pool.
///
/// # Panics
///
/// Panics if the sizes do not match.
pub fn add_product(left: Matrix<'_>, right: Matrix<'_>, result: &mut [f32]) {
    add_scaled_product(1.0, left, right, result);
}

/// Adds `scale` · `left` · `right` to the row-major `result`, on the threads of the current pool.
///
/// # Panics
///
/// Panics if the sizes do not match.
pub fn add_scaled_product(scale: f32, left: Matrix<'_>, right: Matrix<'_>, result: &mut [f32]) {
    assert_eq!(left.columns, right.rows, "the inner sizes of a product");
    assert_eq!(
        result.len(),
        left.rows * right.columns,
        "the result of a product"
    );
    if result.is_empty() {
        return;
    }
    let depths = left.columns;
    let (left, right) = (left.as_ref(), right.as_ref());
    let mut rest = MatMut::from_row_major_slice_mut(result, left.nrows(), right.ncols());
    let mut blocks = Vec::new();
    for row in (0..left.nrows()).step_by(ROWS) {
        let (mut panel, below) = rest.split_at_row_mut(ROWS.min(left.nrows() - row));
        rest = below;
        for column in (0..right.ncols()).step_by(COLUMNS) {
            let (block, beside) = panel.split_at_col_mut(COLUMNS.min(right.ncols() - column));
            panel = beside;
            blocks.push((row, column, block));
        }
    }
    blocks.into_par_iter().for_each(|(row, column, mut block)| {
        let (rows, columns) = (block.nrows(), block.ncols());
        for depth in (0..depths).step_by(DEPTH) {
            let terms = DEPTH.min(depths - depth);
            let (left, right) = (
                left.submatrix(row, depth, rows, terms),
                right.submatrix(depth, column, terms, columns),
            );
            matmul(block.as_mut(), Accum::Add, left, right, scale, Par::Seq);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).expect("sixteen bits")) / 65536.0 - 0.5
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn products_are_right_in_every_layout_and_cut() {
        let (rows, depth, columns) = (517, 301, 1100);
        let (left, right) = (noise(rows * depth, 1), noise(depth * columns, 2));
        let mut whole = vec![1.0; rows * columns];
        add_product(
            Matrix::new(&left, rows, depth),
            Matrix::new(&right, depth, columns),
            &mut whole,
        );
        for (row, column) in [(0, 0), (516, 1099), (255, 1024), (256, 1023)] {
            let term = |at: usize| {
                f64::from(left[row * depth + at]) * f64::from(right[at * columns + column])
            };
            let exact = 1.0 + (0..depth).map(term).sum::<f64>();
            assert!((f64::from(whole[row * columns + column]) - exact).abs() < 1e-4);
        }
        let turned: Vec<f32> = (0..columns * depth)
            .map(|at| right[(at % depth) * columns + at / depth])
            .collect();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .build()
            .expect("a pool");
        let mut cut = vec![1.0; rows * columns];
        pool.install(|| {
            for first in [0, 256, 512] {
                let end = rows.min(first + 256);
                let panel = Matrix::new(&left[first * depth..end * depth], end - first, depth);
                let out = &mut cut[first * columns..end * columns];
                add_product(
                    panel,
                    Matrix::new(&turned, columns, depth).transposed(),
                    out,
                );
            }
        });
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
        assert!(whole.iter().zip(&cut).all(close));
        let mut again = vec![1.0; rows * columns];
        add_product(
            Matrix::new(&left, rows, depth),
            Matrix::new(&turned, columns, depth).transposed(),
            &mut again,
        );
        assert!(
            again
                .iter()
                .zip(&cut)
                .all(|(a, b)| a.to_bits() == b.to_bits())
        );
    }
}
