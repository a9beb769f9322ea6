//! The weighted mean or sum.

use super::{Flags, Gram, Method, Solution, Statistics, cancelling, weights};
use crate::error::Result;
use crate::kernel::MOST_DIVISOR;

/// `Σ w_i x_i`, divided by `Σ w_i` if `normalize` (*model soups*, Wortsman et al. 2022).
///
/// A mean with weights that are whole numbers, or equal, is a sum divided by a whole number as the
/// last step. A factor such as a third would be rounded, and would break ties between two numbers
/// of the output's type.
///
/// Weights may be negative. Where mergekit divides by a sum of zero and fills the model with NaN,
/// this refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    weights: Vec<f64>,
    /// The weights as shares of a whole number, if they are such shares.
    shares: Option<(Vec<f64>, f64)>,
}

impl Linear {
    /// Makes the mean (`normalize`, the default of a recipe) or sum with these weights.
    ///
    /// # Errors
    ///
    /// When a weight is not finite, or they sum to zero and must be normalised.
    pub fn new(weights: &[f64], normalize: bool) -> Result<Self> {
        weights::finite(weights)?;
        if !normalize {
            return Ok(Self {
                weights: weights.to_vec(),
                shares: None,
            });
        }
        Ok(Self {
            weights: weights::sum_to_one(weights)?,
            shares: shares(weights),
        })
    }
}

/// Returns `weights` as whole numbers, and their sum. `None` if they are not such numbers, or if
/// the sum is a power of two, which divides every weight exactly.
fn shares(weights: &[f64]) -> Option<(Vec<f64>, f64)> {
    let alike = weights.iter().all(|weight| *weight == weights[0]);
    let shares = if alike {
        vec![1.0; weights.len()]
    } else {
        weights.to_vec()
    };
    let sum: f64 = shares.iter().sum();
    let whole = |number: f64| number.fract() == 0.0 && number.abs() <= MOST_DIVISOR;
    let is_power = sum.to_bits().trailing_zeros() >= 52;
    (sum > 0.0 && !is_power && whole(sum) && shares.iter().copied().all(whole))
        .then_some((shares, sum))
}

impl Method for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn statistics(&self) -> Statistics {
        Statistics::None
    }

    fn shares(&self) -> Vec<Option<f64>> {
        weights::shares(&self.weights, None)
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        if gram.n() > 0 {
            gram.check(self.name(), self.weights.len())?;
        }
        let solution = Solution::exact(
            self.name(),
            gram,
            None,
            self.weights.clone(),
            Flags::default(),
        )?;
        Ok(match &self.shares {
            Some((shares, divisor)) => solution.in_shares(shares.clone(), *divisor),
            None => {
                let (pivot, sum) = (
                    cancelling::largest(&self.weights),
                    cancelling::sum(&self.weights),
                );
                solution.without_cancelling(pivot, sum)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::gram;
    use super::*;

    #[test]
    fn weights_are_normalised_unless_told_otherwise() {
        let coefficients = |normalize| {
            let linear = Linear::new(&[1.0, 3.0], normalize).expect("valid");
            linear
                .solve(&Gram::new(0))
                .expect("no statistics needed")
                .coefficients
        };
        assert_eq!(coefficients(true), [0.25, 0.75]);
        assert_eq!(coefficients(false), [1.0, 3.0]);
    }

    #[test]
    fn weights_that_have_no_exact_shares_of_one_are_shares_of_their_sum() {
        let solved = |weights: &[f64]| {
            let linear = Linear::new(weights, true).expect("valid");
            let solution = linear.solve(&Gram::new(0)).expect("no statistics needed");
            (solution.coefficients, solution.divisor)
        };
        assert_eq!(solved(&[0.7; 3]), (vec![1.0; 3], 3.0));
        assert_eq!(solved(&[1.0, 2.0, 4.0]), (vec![1.0, 2.0, 4.0], 7.0));
        assert_eq!(solved(&[5.0, -2.0]), (vec![5.0, -2.0], 3.0));
        assert_eq!(solved(&[2.0, 3.0, 3.0]), (vec![0.25, 0.375, 0.375], 1.0));
        assert_eq!(solved(&[0.1, 0.9]).1, 1.0);
        assert_eq!(solved(&[-1.0, -2.0]).1, 1.0);
        assert_eq!(solved(&[1e9, 2e9]).1, 1.0);
    }

    #[test]
    fn weights_that_sum_to_zero_are_refused_only_where_they_are_divided_by() {
        assert!(Linear::new(&[1.0, -1.0], true).is_err());
        assert!(Linear::new(&[1.0, -1.0], false).is_ok());
        assert!(Linear::new(&[f64::NAN], false).is_err());
    }

    #[test]
    fn facts_are_measured_when_a_matrix_is_there() {
        let linear = Linear::new(&[1.0, 1.0], true).expect("valid");
        let facts = linear
            .solve(&gram(&[vec![2.0, 0.0], vec![0.0, 2.0]]))
            .expect("finite")
            .facts;
        assert_eq!(facts.norms, [2.0, 2.0]);
        assert!((facts.merged_norm.expect("measured") - 2f64.sqrt()).abs() < 1e-15);
        let none = linear
            .solve(&Gram::new(0))
            .expect("no statistics needed")
            .facts;
        assert_eq!((none.norms.len(), none.merged_norm), (0, None));
        assert!(linear.solve(&Gram::new(3)).is_err());
    }
}
