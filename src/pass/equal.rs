//! Finds an input that is copied, bit for bit, instead of a sum that may round differently.

use crate::kernel::Elements;
use crate::method::Solution;

/// Tells if the weights sum to one within the rounding of each.
pub(super) fn sums_to_one(weights: impl Iterator<Item = f64> + Clone) -> bool {
    let sum: f64 = weights.clone().sum();
    #[expect(clippy::cast_precision_loss, reason = "a hundred inputs at most")]
    let roundings = weights.count() as f64;
    (sum - 1.0).abs() <= roundings * f64::EPSILON
}

/// Finds the input that is converted instead of a weighted sum of all `inputs`: the only one with a
/// weight, if that weight is one, or the first of several equal ones. Weights that sum to one need
/// not give back an F64 value exactly; a copy does.
pub(super) fn first_equal_input(solution: &Solution, inputs: &[Elements<'_>]) -> Option<usize> {
    if let Some(center) = solution.center {
        return equal_center(solution, center, inputs);
    }
    let mut terms = solution
        .coefficients
        .iter()
        .enumerate()
        .filter(|(_, weight)| **weight != 0.0);
    let weights = terms.clone().map(|(_, weight)| *weight / solution.divisor);
    let (first, _) = terms.next()?;
    (sums_to_one(weights) && terms.all(|(other, _)| are_equal(&inputs[other], &inputs[first])))
        .then_some(first)
}

/// Returns the centre of a sum of differences, if its weight is one and the weighted inputs equal
/// it.
fn equal_center(solution: &Solution, center: usize, inputs: &[Elements<'_>]) -> Option<usize> {
    let mut weighted = solution
        .coefficients
        .iter()
        .enumerate()
        .filter(|(_, weight)| **weight != 0.0);
    let equal = weighted.all(|(other, _)| are_equal(&inputs[other], &inputs[center]));
    (equal && sums_to_one(std::iter::once(solution.coefficients[center]))).then_some(center)
}

fn are_equal(one: &Elements<'_>, other: &Elements<'_>) -> bool {
    one.dtype == other.dtype && one.bytes == other.bytes
}
