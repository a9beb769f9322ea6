//! Reading a strided block of a tensor into a matrix in memory.

use rayon::prelude::*;

use super::terms::Extent;
use crate::align::{Numbers, Weights};
use crate::error::Result;
use crate::linalg::Matrix;

/// A block of cells and features as a matrix, in the file's order of the two.
#[derive(Debug, Default)]
pub(super) struct Panel {
    elements: Vec<f32>,
    rows: usize,
    features: usize,
    /// True if all rows of a feature are contiguous.
    features_first: bool,
}

/// The part of a tensor that fills a panel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    pub tensor: &'a str,
    pub start: u64,
    pub rows: &'a [Extent],
    pub features: &'a [Extent],
    /// True if all rows of a feature should be contiguous, as in the file.
    pub features_first: bool,
}

impl Block<'_> {
    /// Announces that the block will be read soon, if it is contiguous in the file. If it is a part
    /// of each of many rows, the kernel's readahead from earlier blocks serves it.
    ///
    /// # Errors
    ///
    /// Fails if there is no such tensor.
    pub fn prefetch(&self, weights: &dyn Weights) -> Result<()> {
        let mut extents: Vec<Extent> = self.rows.iter().chain(self.features).copied().collect();
        extents.sort_by_key(|extent| extent.stride);
        let count = extents.iter().try_fold(1, |count, extent| {
            (extent.size == 1 || extent.stride == count).then_some(count * extent.size as u64)
        });
        let Some(count) = count else { return Ok(()) };
        weights
            .tensor(self.tensor)?
            .prefetch(self.start..self.start + count);
        Ok(())
    }
}

/// An extent in the file and in the panel.
#[derive(Debug, Clone, Copy)]
struct PanelRun {
    size: usize,
    stride: u64,
    step: usize,
}

impl Panel {
    /// Fills the panel with the elements of `block`, on the threads of the current pool.
    ///
    /// # Errors
    ///
    /// Fails if the tensor cannot be read.
    pub fn fill(&mut self, weights: &dyn Weights, block: &Block<'_>) -> Result<()> {
        let Block { tensor, start, .. } = *block;
        let count = |extents: &[Extent]| extents.iter().map(|extent| extent.size).product();
        (self.rows, self.features) = (count(block.rows), count(block.features));
        self.features_first = block.features_first;
        self.elements.resize(self.rows * self.features, 0.0);
        if self.elements.is_empty() {
            return Ok(());
        }
        let runs = self.runs_of(block);
        let Some((outer, inner)) = runs.split_first() else {
            let mut numbers = weights.tensor(tensor)?;
            return numbers.read(start..start + 1, &mut self.elements);
        };
        if outer.step * outer.size != self.elements.len() {
            let mut numbers = weights.tensor(tensor)?;
            let out = &mut self.elements;
            return read(numbers.as_mut(), start, &runs, &mut Vec::new(), out);
        }
        self.read_in_parallel(weights, block, outer, inner)
    }

    /// Reads a block whose outermost run covers the panel piece by piece, so that threads share it.
    fn read_in_parallel(
        &mut self,
        weights: &dyn Weights,
        block: &Block<'_>,
        outer: &PanelRun,
        inner: &[PanelRun],
    ) -> Result<()> {
        let piece = outer.size.div_ceil(2 * rayon::current_num_threads()).max(1);
        let pieces = self.elements.par_chunks_mut(piece * outer.step);
        pieces.enumerate().try_for_each(|(at, out)| {
            let mut numbers = weights.tensor(block.tensor)?;
            let mine = PanelRun {
                size: out.len() / outer.step,
                ..*outer
            };
            let all: Vec<PanelRun> = std::iter::once(mine).chain(inner.iter().copied()).collect();
            let start = block.start + (at * piece) as u64 * outer.stride;
            read(numbers.as_mut(), start, &all, &mut Vec::new(), out)
        })
    }

    /// Returns the extents of a block in the file and here, those furthest apart in the file first.
    fn runs_of(&self, block: &Block<'_>) -> Vec<PanelRun> {
        let (row_step, feature_step) = if self.features_first {
            (1, self.rows)
        } else {
            (self.features, 1)
        };
        let mut all = runs(block.rows, row_step);
        all.extend(runs(block.features, feature_step));
        all.sort_by_key(|run| std::cmp::Reverse(run.stride));
        all
    }

    /// Views the elements as a matrix with a row for each cell.
    pub fn matrix(&self) -> Matrix<'_> {
        if self.features_first {
            Matrix::new(&self.elements, self.features, self.rows).transposed()
        } else {
            Matrix::new(&self.elements, self.rows, self.features)
        }
    }

    /// Adds to `sums` the product of each row with a row of `other`, a panel of the same block.
    /// `map` gives the row's partner within each run of as many rows as the map has.
    pub fn add_row_products(&self, other: &Self, map: &[usize], sums: &mut [f64]) {
        debug_assert!(
            self.features_first == other.features_first
                && self.elements.len() == other.elements.len()
        );
        let of = |row: usize| row / map.len() * map.len() + map[row % map.len()];
        let (rows, features) = (self.rows.max(1), self.features.max(1));
        if self.features_first {
            for (a, b) in self.elements.chunks(rows).zip(other.elements.chunks(rows)) {
                let terms = sums.iter_mut().zip(a).enumerate();
                terms.for_each(|(row, (sum, a))| *sum += f64::from(*a) * f64::from(b[of(row)]));
            }
        } else {
            sums.par_iter_mut()
                .zip(self.elements.par_chunks(features))
                .enumerate()
                .for_each(|(row, (sum, a))| {
                    let b = &other.elements[of(row) * features..][..features];
                    *sum += a
                        .iter()
                        .zip(b)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum::<f64>();
                });
        }
    }
}

/// Returns the extents of more than one coordinate, the last of them `step` apart in the panel.
fn runs(extents: &[Extent], step: usize) -> Vec<PanelRun> {
    let mut step = step;
    let mut runs = Vec::with_capacity(extents.len() + 2);
    for extent in extents.iter().rev() {
        if extent.size != 1 {
            runs.push(PanelRun {
                size: extent.size,
                stride: extent.stride,
                step,
            });
        }
        step *= extent.size;
    }
    runs
}

/// The contiguous pieces in which runs are read.
struct Pieces {
    /// The first of the runs that make up a piece.
    together: usize,
    /// The elements of a piece.
    count: usize,
    /// True if a piece is contiguous in the panel too.
    is_copied: bool,
}

impl Pieces {
    fn of(runs: &[PanelRun]) -> Self {
        // Runs from here on are contiguous in the file, and perhaps in the panel too.
        let (mut together, mut same) = (runs.len(), runs.len());
        let mut count = 1;
        while let Some(run) = together.checked_sub(1).map(|at| &runs[at])
            && run.stride == count as u64
        {
            if same == together && run.step == count {
                same -= 1;
            }
            together -= 1;
            count *= run.size;
        }
        if same > together && together == 0 && runs.len() > 1 {
            // The target is scattered: read one coordinate of the outermost run at a time, so that
            // the scratch stays small.
            together = 1;
            count /= runs[0].size;
        }
        Self {
            together,
            count,
            is_copied: same <= together,
        }
    }
}

/// Reads the elements of `runs`, outermost first, in one piece for each contiguous part of the
/// file.
fn read(
    numbers: &mut dyn Numbers,
    start: u64,
    runs: &[PanelRun],
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) -> Result<()> {
    let Pieces {
        together,
        count,
        is_copied,
    } = Pieces::of(runs);
    let (outer, inner) = runs.split_at(together);
    let mut at = vec![0; outer.len()];
    loop {
        let places = || outer.iter().zip(&at);
        let from: u64 = places().map(|(run, at)| run.stride * *at as u64).sum();
        let from = start + from;
        let to: usize = places().map(|(run, at)| run.step * at).sum();
        if is_copied {
            numbers.read(from..from + count as u64, &mut out[to..to + count])?;
        } else {
            scratch.resize(count, 0.0);
            numbers.read(from..from + count as u64, scratch)?;
            scatter(scratch, inner, &mut out[to..]);
        }
        // Counts up, the innermost place first.
        let mut axes = (0..outer.len()).rev();
        let Some(axis) = axes.find(|axis| at[*axis] + 1 < outer[*axis].size) else {
            return Ok(());
        };
        at[axis] += 1;
        at[axis + 1..].fill(0);
    }
}

fn scatter(from: &[f32], runs: &[PanelRun], out: &mut [f32]) {
    match runs {
        [] => {}
        [run] => out
            .iter_mut()
            .step_by(run.step)
            .zip(from)
            .for_each(|(out, from)| *out = *from),
        [run, inner @ ..] => {
            for (at, from) in from.chunks(from.len() / run.size).enumerate() {
                scatter(from, inner, &mut out[at * run.step..]);
            }
        }
    }
}
