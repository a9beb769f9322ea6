//! Values so small that their squares vanish in f64: their tensor must not pass for a zero tensor.
//!
//! Only F64 has such values. A sum of squares that is lost altogether is marked by the smallest
//! number of f64, which any sum of ordinary numbers swallows; a final sum that still has lost
//! digits is refused, as overflow is.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::{Elements, Kernels, pair_index};
use crate::method::{Gram, Statistics};
use crate::plan::tensor::TensorPlan;

use super::stretch::cut;
use super::tile::{TILE, Tile};

/// A sum of squares below this may have lost digits. Above it, even 2^36 errors of half the
/// smallest number each are less than one rounding of the sum.
const LEAST: f64 = f64::from_bits((1023 - 980) << 52);

/// The smallest positive number, which marks a lost sum of squares.
pub(super) const MARK: f64 = f64::from_bits(1);

/// Marks the sums of squares in the `sums` of a chunk that are zero although the input, or its
/// difference from the centre, is not.
pub(super) fn mark(
    kernels: Kernels,
    inputs: &[Elements<'_>],
    chunk: &Range<usize>,
    statistics: Statistics,
    sums: &mut [f64],
) {
    if inputs.iter().all(|input| input.dtype != Dtype::F64) {
        return;
    }
    let center = center_of(statistics);
    for (i, input) in inputs.iter().enumerate() {
        let from = center
            .filter(|center| *center != i)
            .map(|center| inputs[center].slice(chunk.clone()));
        let square = &mut sums[pair_index(inputs.len(), i, i)];
        if *square == 0.0 && differs(kernels, input.slice(chunk.clone()), from) {
            *square = MARK;
        }
    }
}

fn center_of(statistics: Statistics) -> Option<usize> {
    match statistics {
        Statistics::Gram { center } => center,
        Statistics::None | Statistics::Wide | Statistics::Elements => None,
    }
}

/// Tells if an input differs from another one, or from zero, in a finite element.
fn differs(kernels: Kernels, input: Elements<'_>, from: Option<Elements<'_>>) -> bool {
    let mut tile = Tile::new(2);
    cut(&(0..input.len()), TILE).any(|range| {
        let pair = [Some(input), from]
            .into_iter()
            .flatten()
            .map(|elements| elements.slice(range.clone()));
        tile.load(kernels, pair);
        (0..range.len())
            .any(|at| finite_or_zero(tile.get(0, at)) != finite_or_zero(tile.get(1, at)))
    })
}

fn finite_or_zero(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

/// Refuses a sum of squares that has lost digits.
///
/// # Errors
///
/// [`Kind::NonFinite`] with the tensor and the input.
pub(super) fn refuse(tensor: &TensorPlan, statistics: Statistics, gram: &Gram) -> Result<()> {
    let center = center_of(statistics);
    let lost = |i: &usize| Some(*i) != center && gram.get(*i, *i) > 0.0 && gram.get(*i, *i) < LEAST;
    let Some(input) = (0..gram.n()).find(lost) else {
        return Ok(());
    };
    let of = if center.is_some() {
        "its differences from the base"
    } else {
        "its values"
    };
    let cause = format!("the squares of {of} underflow f64 in input {input}, counted from 0");
    Err(Error::new(Kind::NonFinite, "cannot measure", tensor.name.escape_debug(), cause).with_hint(
        "an F64 tensor of values below 1e-147 has no norm that f64 can hold; methods that need none, such as linear, \
         merge it",
    ))
}
