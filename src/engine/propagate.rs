//! NaN and infinity that are let through, where the sums would lose them: in an input that takes part and whose
//! coefficient came out as zero, as of a tensor that holds nothing else, and where differences are summed.
//!
//! And the opposite: finite values of which the output's type makes NaN, which are refused unless NaN is let through.
//!
//! Both are done on the processor for every backend, after the backend's sums, so that all give the same bits.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::{Elements, Kernels};
use crate::method::{Method, Solution};
use crate::plan::tensor::Action;
use crate::recipe::NanPolicy;

use super::work::Part;

/// Elements that are looked at at a time.
const TILE: usize = 512;
/// Bytes of an f64.
const WIDE: usize = 8;

/// By what each input's NaN and infinity are multiplied; none for an input that takes no part.
pub struct Factors {
    factors: Vec<Option<f64>>,
    /// Those whose elements the sums do not hold.
    lost: Vec<bool>,
}

impl Factors {
    /// The factors of `coefficients`, which hold of sums of inputs, or with a `center` of sums of differences from it; an
    /// input whose coefficient is zero has its share of the recipe. None when the sums hold everything.
    pub fn new(method: &dyn Method, coefficients: &[f64], center: Option<usize>) -> Option<Self> {
        let own = |input: usize| match center {
            Some(center) if center == input => {
                let others = coefficients.iter().enumerate().filter(|(other, _)| *other != center);
                coefficients[center] - others.map(|(_, coefficient)| coefficient).sum::<f64>()
            }
            _ => coefficients[input],
        };
        let factor = |(input, share): (usize, Option<f64>)| match own(input) {
            0.0 => share,
            coefficient => Some(coefficient),
        };
        let factors: Vec<Option<f64>> = method.shares().into_iter().enumerate().map(factor).collect();
        let lost = factors.iter().zip(coefficients);
        let lost: Vec<bool> = lost.map(|(factor, own)| factor.is_some() && (*own == 0.0 || center.is_some())).collect();
        lost.contains(&true).then_some(Self { factors, lost })
    }

    /// The sum of what is not finite among the inputs' values of one element; none where the sums hold it.
    pub fn sum(&self, value: impl Fn(usize) -> f64) -> Option<f64> {
        let odd = || (0..self.factors.len()).filter(|input| !value(*input).is_finite());
        if !odd().any(|input| self.lost[input]) {
            return None;
        }
        let terms = odd().filter_map(|input| self.factors[input].map(|factor| factor * value(input)));
        terms.reduce(|sum, term| sum + term).map(|sum| if sum.is_nan() { f64::NAN } else { sum })
    }
}

/// Puts into the `output` of a chunk, combined by `solution`, what of NaN and infinity its sums have lost.
pub fn let_through(kernels: Kernels, part: &Part<'_>, solution: &Solution, chunk: &Range<usize>, output: &mut [u8]) {
    let Action::Merge(method) = &part.tensor().action else { return };
    if part.plan.job.nan != NanPolicy::Propagate {
        return;
    }
    let Some(factors) = Factors::new(&**method, &solution.coefficients, solution.center) else { return };
    let inputs = part.elements(chunk);
    let lost = |input: usize| factors.lost[input] && kernels.first_nonfinite(inputs[input]).is_some();
    if !(0..inputs.len()).any(lost) {
        return;
    }
    let dtype = part.tensor().dtype;
    let mut wide = vec![[0; WIDE]; inputs.len() * TILE];
    for start in (0..chunk.len()).step_by(TILE) {
        let range = start..chunk.len().min(start + TILE);
        for (input, wide) in inputs.iter().zip(wide.chunks_exact_mut(TILE)) {
            kernels.convert(input.slice(range.clone()), Dtype::F64, wide[..range.len()].as_flattened_mut());
        }
        for at in 0..range.len() {
            if let Some(sum) = factors.sum(|input| f64::from_le_bytes(wide[input * TILE + at])) {
                let (bytes, unit) = (sum.to_le_bytes(), dtype.bytes());
                let value = Elements { dtype: Dtype::F64, bytes: &bytes };
                kernels.convert(value, dtype, &mut output[(start + at) * unit..][..unit]);
            }
        }
    }
}

/// Refuses what overflowed in `range` of the block, whose `output` is of a type without infinity: it became NaN there,
/// which no later step of a user would trace back to here. Where a type has infinities they say what happened, and are
/// reported only.
///
/// # Errors
///
/// [`Kind::NonFinite`] with tensor and flat index, unless NaN is let through.
pub fn refuse_overflow(kernels: Kernels, part: &Part<'_>, range: &Range<usize>, output: &[u8]) -> Result<()> {
    let tensor = part.tensor();
    if tensor.dtype != Dtype::F8E4M3 || part.plan.job.nan == NanPolicy::Propagate {
        return Ok(());
    }
    // Everything that went in was finite, so that NaN can have come by rounding only.
    let Some(at) = kernels.first_nonfinite(Elements { dtype: tensor.dtype, bytes: output }) else { return Ok(()) };
    let position = part.block.start + (range.start + at) as u64;
    let cause =
        format!("the value at flat index {position} is beyond 448, the largest number of F8_E4M3, and would be NaN");
    Err(Error::new(Kind::NonFinite, "output is not finite", tensor.name.escape_debug(), cause)
        .with_hint("write a wider type, such as `dtype: bfloat16`, or say `nan: propagate` to have NaN written there"))
}
