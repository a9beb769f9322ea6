//! A base plus weighted differences from it.

use super::{Flags, Gram, Method, Solution, Statistics, weights};
use crate::error::Result;

/// `b + λ Σ w_i (x_i - b)`, divided by `Σ w_i` if `normalize` (*task vectors*, Ilharco et al.
/// 2023).
///
/// The base is one of the inputs, and its weight is not used: its difference is zero, and mergekit
/// does not count it in the sum either. As in mergekit, a sum of zero counts as 1.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskArithmetic {
    base: usize,
    coefficients: Vec<f64>,
}

impl TaskArithmetic {
    /// Makes the sum on input `base` with one weight per input, including the base. The defaults of
    /// a recipe are `normalize` false and `lambda` 1.
    ///
    /// # Errors
    ///
    /// When a weight or `lambda` is not finite, or `base` is not an input.
    pub fn new(base: usize, weights: &[f64], normalize: bool, lambda: f64) -> Result<Self> {
        weights::base_within(base, weights.len())?;
        weights::finite(weights)?;
        weights::finite_parameter("lambda", lambda)?;
        let mut coefficients = weights.to_vec();
        coefficients[base] = 0.0;
        let sum: f64 = coefficients.iter().sum();
        let divisor = if normalize && sum.abs() >= 1e-8 {
            sum
        } else {
            1.0
        };
        coefficients.iter_mut().for_each(|w| *w *= lambda / divisor);
        coefficients[base] = 1.0 - coefficients.iter().sum::<f64>();
        Ok(Self { base, coefficients })
    }
}

impl Method for TaskArithmetic {
    fn name(&self) -> &'static str {
        "task_arithmetic"
    }

    fn statistics(&self) -> Statistics {
        Statistics::None
    }

    fn measured_from(&self) -> Option<usize> {
        Some(self.base)
    }

    fn shares(&self) -> Vec<Option<f64>> {
        weights::shares(&self.coefficients, Some(self.base))
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        if gram.n() > 0 {
            gram.check(self.name(), self.coefficients.len())?;
        }
        let solution = Solution::exact(
            self.name(),
            gram,
            None,
            self.coefficients.clone(),
            Flags::default(),
        )?;
        Ok(solution.without_cancelling(self.base, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coefficients(base: usize, weights: &[f64], normalize: bool, lambda: f64) -> Vec<f64> {
        let method = TaskArithmetic::new(base, weights, normalize, lambda).expect("valid");
        method
            .solve(&Gram::new(0))
            .expect("no statistics needed")
            .coefficients
    }

    #[test]
    fn differences_are_added_to_the_base() {
        assert_eq!(
            coefficients(0, &[9.0, 0.5, 0.25], false, 1.0),
            [0.25, 0.5, 0.25]
        );
        assert_eq!(
            coefficients(1, &[1.0, 9.0, 1.0], false, 1.0),
            [1.0, -1.0, 1.0]
        );
        assert_eq!(
            coefficients(1, &[1.0, 9.0, 3.0], true, 2.0),
            [0.5, -1.0, 1.5]
        );
    }

    #[test]
    fn a_sum_of_zero_counts_as_one() {
        assert_eq!(
            coefficients(2, &[1.0, -1.0, 0.0], true, 0.5),
            [0.5, -0.5, 1.0]
        );
    }

    #[test]
    fn a_base_alone_stays_as_it_is() {
        assert_eq!(coefficients(0, &[1.0], true, 1.0), [1.0]);
    }

    #[test]
    fn bad_parameters_are_refused() {
        assert!(TaskArithmetic::new(2, &[1.0, 1.0], false, 1.0).is_err());
        assert!(TaskArithmetic::new(0, &[1.0, f64::NAN], false, 1.0).is_err());
        assert!(TaskArithmetic::new(0, &[1.0, 1.0], false, f64::INFINITY).is_err());
        let overflowing =
            TaskArithmetic::new(0, &[1.0, 1e300], false, 1e300).expect("finite parameters");
        assert!(overflowing.solve(&Gram::new(0)).is_err());
    }
}
