//! Products of matrices in f64, the terms of every sum added one by one in their order.
//!
//! Nothing is fused and no sum is split, so an entry of the result has the same bits on every
//! instruction set, for every cut of the factors into blocks, and for every number of threads that
//! work on different rows.

use std::ops::Range;

use super::lanes::{LANES, Lanes};
use super::level::{Level, Task};
use super::simd::Simd;

/// Rows of the result whose sums are in registers together.
const ROWS: usize = 8;
/// Terms of a sum that are added before the next columns: the packed columns of this many terms fit
/// the first-level cache.
const DEPTH: usize = 256;

/// A matrix of f64 in memory, row by row, the rows `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct Wide<'a> {
    elements: &'a [f64],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a> Wide<'a> {
    /// The matrix whose row `i` begins at `elements[i * stride]`.
    ///
    /// # Panics
    ///
    /// Panics if there are too few elements, or rows overlap.
    pub fn new(elements: &'a [f64], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(
            stride >= columns,
            "rows of {columns} elements do not fit {stride}"
        );
        let needed = rows
            .checked_sub(1)
            .map_or(0, |before| before * stride + columns);
        assert!(
            elements.len() >= needed,
            "a matrix of {rows} x {columns} needs {needed} elements"
        );
        Self {
            elements,
            rows,
            columns,
            stride,
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The rows of `range` alone.
    ///
    /// # Panics
    ///
    /// Panics if the range ends beyond the last row.
    #[must_use]
    pub fn subrows(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let start = (range.start * self.stride).min(self.elements.len());
        Self {
            elements: &self.elements[start..],
            rows: range.len(),
            ..*self
        }
    }

    fn row(&self, row: usize) -> &'a [f64] {
        &self.elements[row * self.stride..][..self.columns]
    }
}

/// The right factor of a product.
#[derive(Debug, Clone, Copy)]
pub enum Right<'a> {
    /// This matrix.
    Plain(Wide<'a>),
    /// The matrix whose rows are this one's columns.
    Transposed(Wide<'a>),
}

impl Right<'_> {
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Plain(matrix) => (matrix.rows, matrix.columns),
            Self::Transposed(matrix) => (matrix.columns, matrix.rows),
        }
    }

    /// Copies `columns` columns from `first` on of the rows `depth..depth + panel.len()`; the
    /// others become zero.
    fn pack(&self, depth: usize, first: usize, columns: usize, panel: &mut [Lanes]) {
        match self {
            Self::Plain(matrix) => {
                for (at, lanes) in panel.iter_mut().enumerate() {
                    *lanes = Lanes::ZERO;
                    lanes.0[..columns]
                        .copy_from_slice(&matrix.row(depth + at)[first..first + columns]);
                }
            }
            Self::Transposed(matrix) => {
                panel.fill(Lanes::ZERO);
                for column in 0..columns {
                    let terms = &matrix.row(first + column)[depth..depth + panel.len()];
                    panel
                        .iter_mut()
                        .zip(terms)
                        .for_each(|(lanes, term)| lanes.0[column] = *term);
                }
            }
        }
    }
}

pub(super) fn add_product(level: Level, left: Wide<'_>, right: Right<'_>, result: &mut [f64]) {
    let (depth, columns) = right.size();
    assert_eq!(left.columns, depth, "the inner sizes of a product");
    assert_eq!(result.len(), left.rows * columns, "the result of a product");
    if columns == 0 || left.rows == 0 {
        return;
    }
    let mut panel = vec![Lanes::ZERO; DEPTH.min(depth)];
    for from in (0..depth).step_by(DEPTH) {
        let panel = &mut panel[..DEPTH.min(depth - from)];
        for first in (0..columns).step_by(LANES) {
            let width = LANES.min(columns - first);
            right.pack(from, first, width, panel);
            level.run(Panel {
                left,
                from,
                panel,
                result,
                columns,
                first,
                width,
            });
        }
    }
}

/// One panel of columns, for all rows.
struct Panel<'a> {
    left: Wide<'a>,
    from: usize,
    panel: &'a [Lanes],
    result: &'a mut [f64],
    columns: usize,
    first: usize,
    width: usize,
}

impl Task for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let terms = self.from..self.from + self.panel.len();
        let mut row = 0;
        while row < self.left.rows {
            let count = ROWS.min(self.left.rows - row);
            // Rows beyond the last repeat it; their results are not stored.
            let rows: [&[f64]; ROWS] =
                std::array::from_fn(|at| &self.left.row(row + at.min(count - 1))[terms.clone()]);
            let mut sums = [Lanes::ZERO; ROWS];
            for (at, sums) in sums.iter_mut().enumerate().take(count) {
                let place = (row + at) * self.columns + self.first;
                sums.0[..self.width].copy_from_slice(&self.result[place..place + self.width]);
            }
            add_panel::<S>(rows, self.panel, &mut sums);
            for (at, sums) in sums.iter().enumerate().take(count) {
                let place = (row + at) * self.columns + self.first;
                self.result[place..place + self.width].copy_from_slice(&sums.0[..self.width]);
            }
            row += count;
        }
    }
}

#[inline(always)]
fn add_panel<S: Simd>(rows: [&[f64]; ROWS], panel: &[Lanes], sums: &mut [Lanes; ROWS]) {
    let rows = rows.map(|row| &row[..panel.len()]);
    for group in 0..LANES / S::WIDTH {
        let mut registers = [S::splat(0.0); ROWS];
        for (register, sums) in registers.iter_mut().zip(&*sums) {
            *register = S::load(sums, group);
        }
        for (k, lanes) in panel.iter().enumerate() {
            let column = S::load(lanes, group);
            for (register, row) in registers.iter_mut().zip(&rows) {
                *register = S::add(*register, S::mul(S::splat(row[k]), column));
            }
        }
        for (register, sums) in registers.iter().zip(sums.iter_mut()) {
            S::store(*register, sums, group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;

    fn noise(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(state >> 32).expect("half of it")) / f64::from(u32::MAX) - 0.5
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    /// Three loops, each sum in its order.
    fn plain(left: &[f64], right: &[f64], sizes: [usize; 3]) -> Vec<f64> {
        let [rows, depth, columns] = sizes;
        let mut result = vec![0.25; rows * columns];
        for (at, sum) in result.iter_mut().enumerate() {
            for k in 0..depth {
                *sum += left[at / columns * depth + k] * right[k * columns + at % columns];
            }
        }
        result
    }

    #[test]
    fn every_level_layout_and_cut_gives_the_bits_of_plain_loops() {
        for sizes in [
            [1, 1, 1],
            [7, 3, 15],
            [8, 256, 16],
            [9, 257, 17],
            [31, 515, 49],
            [3, 0, 4],
        ] {
            let [rows, depth, columns] = sizes;
            let (left, right) = (noise(rows * depth, 1), noise(depth * columns, 2));
            let wanted = plain(&left, &right, sizes);
            let turned: Vec<f64> = (0..columns * depth)
                .map(|at| right[at % depth * columns + at / depth])
                .collect();
            for kernels in Kernels::available() {
                for right in [
                    Right::Plain(Wide::new(&right, depth, columns, columns)),
                    Right::Transposed(Wide::new(&turned, columns, depth, depth)),
                ] {
                    let mut got = vec![0.25; rows * columns];
                    for first in (0..rows).step_by(5) {
                        let count = 5.min(rows - first);
                        let part = Wide::new(&left[first * depth..], count, depth, depth);
                        kernels.add_product(
                            part,
                            right,
                            &mut got[first * columns..(first + count) * columns],
                        );
                    }
                    let same = got
                        .iter()
                        .zip(&wanted)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{sizes:?} at {}", kernels.name());
                }
            }
        }
    }
}
