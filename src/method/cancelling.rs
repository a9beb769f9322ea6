//! Combinations whose terms are far larger than their sum.

use super::Solution;
use crate::kernel::add_compensated;

/// The ratio `Σ |c| / |Σ c|` above which coefficients cancel. A sum of the inputs is then off by
/// that many roundings of f64, and a base's coefficient, `1 - Σ c`, loses as many digits.
const CANCELLING: f64 = 16.0;

impl Solution {
    /// Rewrites the combination as one of differences from input `pivot` if the coefficients
    /// cancel. `sum` is their exact sum, which large coefficients cannot give after rounding.
    ///
    /// Differences of near inputs are small, so they may have large weights. Without cancelling,
    /// the inputs are combined directly, in one sweep that needs no tiles.
    pub(super) fn without_cancelling(mut self, pivot: usize, sum: f64) -> Self {
        let size: f64 = self.coefficients.iter().map(|c| c.abs()).sum();
        if size > CANCELLING * sum.abs() {
            self.coefficients[pivot] = sum;
            self.divisor = 1.0;
            self.center = Some(pivot);
        }
        self
    }
}

/// Finds the first coefficient of the largest magnitude.
pub(super) fn largest(coefficients: &[f64]) -> usize {
    let larger = |largest: usize, i: usize| {
        if coefficients[i].abs() > coefficients[largest].abs() {
            i
        } else {
            largest
        }
    };
    (0..coefficients.len()).fold(0, larger)
}

/// Sums a few numbers that may cancel, and rounds once.
pub(super) fn sum(numbers: &[f64]) -> f64 {
    let (mut total, mut lost) = (0.0_f64, 0.0);
    for &number in numbers {
        add_compensated(&mut total, &mut lost, number);
    }
    total + lost
}

#[cfg(test)]
mod tests {
    use super::super::{Flags, Gram};
    use super::*;

    fn solution(coefficients: &[f64]) -> Solution {
        Solution::exact(
            "test",
            &Gram::new(0),
            None,
            coefficients.to_vec(),
            Flags::default(),
        )
        .expect("finite")
    }

    #[test]
    fn coefficients_that_cancel_are_of_differences_and_others_stay() {
        let kept = solution(&[-2.0, 1.0, 2.0]).without_cancelling(0, 1.0);
        assert_eq!(
            (kept.coefficients.as_slice(), kept.center),
            ([-2.0, 1.0, 2.0].as_slice(), None)
        );
        let cancelled = solution(&[-1e8, 1e8]).without_cancelling(0, 1.0);
        assert_eq!(
            (cancelled.coefficients.as_slice(), cancelled.center),
            ([1.0, 1e8].as_slice(), Some(0))
        );
        let nothing = solution(&[0.1, -0.1]).without_cancelling(largest(&[0.1, -0.1]), 0.0);
        assert_eq!(
            (nothing.coefficients.as_slice(), nothing.center),
            ([0.0, -0.1].as_slice(), Some(0))
        );
    }

    #[test]
    fn sums_of_few_numbers_are_rounded_once() {
        assert_eq!(sum(&[1e16, 1.0, -1e16]), 1.0);
        assert_eq!(largest(&[1.0, -3.0, 3.0]), 1);
    }
}
