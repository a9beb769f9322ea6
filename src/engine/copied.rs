//! Which input is copied, bit for bit, instead of a sum that need not give it back.

use crate::kernel::Elements;
use crate::method::Solution;

/// Whether the weights sum to one but for the rounding of each.
pub fn sums_to_one(weights: impl Iterator<Item = f64> + Clone) -> bool {
    let sum: f64 = weights.clone().sum();
    #[expect(clippy::cast_precision_loss, reason = "a hundred inputs at most")]
    let roundings = weights.count() as f64;
    (sum - 1.0).abs() <= roundings * f64::EPSILON
}

/// The input that is converted instead of a weighted sum of them all: the only one with a weight, when that is one, or the
/// first of several equal ones. Weights that sum to one need not give back an F64 value exactly; a copy does.
pub fn only(solution: &Solution, inputs: &[Elements<'_>]) -> Option<usize> {
    if let Some(center) = solution.center {
        return only_of_differences(solution, center, inputs);
    }
    let mut terms = solution.coefficients.iter().enumerate().filter(|(_, weight)| **weight != 0.0);
    let weights = terms.clone().map(|(_, weight)| *weight / solution.divisor);
    let (first, _) = terms.next()?;
    let equal = |other: usize| inputs[other].dtype == inputs[first].dtype && inputs[other].bytes == inputs[first].bytes;
    (sums_to_one(weights) && terms.all(|(other, _)| equal(other))).then_some(first)
}

/// As [`only`], of differences from input `center`: itself where it counts once and those that are weighted equal it.
fn only_of_differences(solution: &Solution, center: usize, inputs: &[Elements<'_>]) -> Option<usize> {
    let same =
        |other: usize| inputs[other].dtype == inputs[center].dtype && inputs[other].bytes == inputs[center].bytes;
    let weights = solution.coefficients.iter().enumerate();
    let equal = weights.filter(|(_, weight)| **weight != 0.0).all(|(other, _)| same(other));
    (equal && sums_to_one(std::iter::once(solution.coefficients[center]))).then_some(center)
}
