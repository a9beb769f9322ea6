//! Values so small that their squares vanish in f64: their tensor must not be taken for one of zeros.
//!
//! Only F64 has such values. A square that is lost altogether is marked in the sum itself, by the smallest number there is,
//! which any sum of ordinary numbers swallows; what is left of it when everything is summed is refused, as overflow is.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::{Elements, Kernels};
use crate::method::{Gram, Statistics};
use crate::plan::tensor::TensorPlan;

use super::work::Part;

/// A sum of squares below this has lost digits: 2^36 of the smallest normal numbers, each off by half of the smallest
/// number, come to less than a rounding of it.
const LEAST: f64 = f64::from_bits((1023 - 980) << 52);

/// The smallest number.
pub const MARK: f64 = f64::from_bits(1);

/// Elements that are looked at at a time.
const TILE: usize = 512;
/// Bytes of an f64.
const WIDE: usize = 8;

/// Marks the squares in the `sums` of a chunk that are zero although the input, or its difference from the centre, is not.
pub fn mark(kernels: Kernels, part: &Part<'_>, statistics: Statistics, chunk: &Range<usize>, sums: &mut [f64]) {
    let inputs = part.elements(chunk);
    if inputs.iter().all(|input| input.dtype != Dtype::F64) {
        return;
    }
    let center = center_of(statistics);
    let mut at = 0;
    for (i, input) in inputs.iter().enumerate() {
        if sums[at] == 0.0 && differs(kernels, *input, center.filter(|b| *b != i).map(|b| inputs[b])) {
            sums[at] = MARK;
        }
        at += inputs.len() - i;
    }
}

fn center_of(statistics: Statistics) -> Option<usize> {
    match statistics {
        Statistics::Gram { center } => center,
        Statistics::None | Statistics::Wide => None,
    }
}

/// Whether an input differs from another one, or from zero, in a finite element.
fn differs(kernels: Kernels, input: Elements<'_>, from: Option<Elements<'_>>) -> bool {
    let mut wide = [[[0; WIDE]; TILE]; 2];
    for start in (0..input.len()).step_by(TILE) {
        let range = start..input.len().min(start + TILE);
        let [own, other] = &mut wide;
        kernels.convert(input.slice(range.clone()), Dtype::F64, own[..range.len()].as_flattened_mut());
        if let Some(from) = from {
            kernels.convert(from.slice(range.clone()), Dtype::F64, other[..range.len()].as_flattened_mut());
        }
        let value = |bytes: &[u8; WIDE]| Some(f64::from_le_bytes(*bytes)).filter(|value| value.is_finite());
        let pairs = own.iter().zip(&*other).take(range.len());
        if pairs
            .map(|(own, other)| (value(own), value(other)))
            .any(|(own, other)| own.unwrap_or(0.0) != other.unwrap_or(0.0))
        {
            return true;
        }
    }
    false
}

/// Refuses a sum of squares that has lost digits.
///
/// # Errors
///
/// [`Kind::NonFinite`] with the tensor and the input.
pub fn refuse(tensor: &TensorPlan, statistics: Statistics, gram: &Gram) -> Result<()> {
    let center = center_of(statistics);
    let lost = |i: &usize| Some(*i) != center && gram.get(*i, *i) > 0.0 && gram.get(*i, *i) < LEAST;
    let Some(input) = (0..gram.n()).find(lost) else { return Ok(()) };
    let of = if center.is_some() { "its differences from the base" } else { "its values" };
    let cause = format!("the squares of {of} underflow f64 in input {input}, counted from 0");
    Err(Error::new(Kind::NonFinite, "cannot measure", tensor.name.escape_debug(), cause).with_hint(
        "an F64 tensor of values below 1e-147 has no norm that f64 can hold; methods that need none, such as linear, \
         merge it",
    ))
}
