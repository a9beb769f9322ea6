//! Lets NaN and infinity through where the sums would lose them: in an input that takes part but
//! whose coefficient came out as zero, such as a tensor with no finite element, and in sums of
//! differences.
//!
//! This is done on the processor for every bench, after the bench's sums, so that all give the same
//! bits.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::kernel::{Elements, Kernels};
use crate::method::{Method, Solution};

use super::bench::sliced;
use super::stretch::cut;
use super::tile::{TILE, Tile, round};

/// The factors of each input's NaN and infinity; `None` for an input that takes no part.
pub(super) struct Factors {
    factors: Vec<Option<f64>>,
    /// True for each input whose elements the sums lose.
    lost: Vec<bool>,
}

impl Factors {
    /// Returns the factors for `coefficients`, which are those of sums of inputs, or with a
    /// `center` those of sums of differences from it; an input whose coefficient is zero has its
    /// weight from the recipe. `None` when the sums lose no input.
    pub(super) fn new(
        method: &dyn Method,
        coefficients: &[f64],
        center: Option<usize>,
    ) -> Option<Self> {
        let own = |input: usize| match center {
            Some(center) if center == input => {
                let others = coefficients
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != center);
                coefficients[center] - others.map(|(_, coefficient)| coefficient).sum::<f64>()
            }
            _ => coefficients[input],
        };
        let factor = |(input, share): (usize, Option<f64>)| match own(input) {
            0.0 => share,
            coefficient => Some(coefficient),
        };
        let factors: Vec<Option<f64>> = method
            .shares()
            .into_iter()
            .enumerate()
            .map(factor)
            .collect();
        let lost = factors.iter().zip(coefficients);
        let lost: Vec<bool> = lost
            .map(|(factor, own)| factor.is_some() && (*own == 0.0 || center.is_some()))
            .collect();
        lost.contains(&true).then_some(Self { factors, lost })
    }

    /// Sums the non-finite values of element `at` of a tile over the inputs; `None` if the sums
    /// hold them already.
    pub(super) fn sum(&self, tile: &Tile, at: usize) -> Option<f64> {
        let odd = || (0..self.factors.len()).filter(|input| !tile.get(*input, at).is_finite());
        if !odd().any(|input| self.lost[input]) {
            return None;
        }
        let terms = odd()
            .filter_map(|input| self.factors[input].map(|factor| factor * tile.get(input, at)));
        terms
            .reduce(|sum, term| sum + term)
            .map(|sum| if sum.is_nan() { f64::NAN } else { sum })
    }
}

/// Puts the NaN and infinity that the sums have lost into the `output`, of type `out`, of a chunk
/// that was combined by `solution`.
pub(super) fn let_through(
    kernels: Kernels,
    inputs: &[Elements<'_>],
    method: &dyn Method,
    solution: &Solution,
    out: Dtype,
    output: &mut [u8],
) {
    let Some(factors) = Factors::new(method, &solution.coefficients, solution.center) else {
        return;
    };
    let mut lost = inputs.iter().zip(&factors.lost).filter(|(_, lost)| **lost);
    if !lost.any(|(input, _)| kernels.first_nonfinite(*input).is_some()) {
        return;
    }
    let mut tile = Tile::new(inputs.len());
    let all: Range<usize> = 0..output.len() / out.bytes();
    for range in cut(&all, TILE) {
        tile.load(kernels, sliced(inputs, &range).into_iter());
        for at in 0..range.len() {
            if let Some(sum) = factors.sum(&tile, at) {
                let unit = out.bytes();
                round(
                    kernels,
                    &[sum],
                    out,
                    &mut output[(range.start + at) * unit..][..unit],
                );
            }
        }
    }
}
