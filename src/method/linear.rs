//! The weighted mean or sum.

use super::{Flags, Gram, Method, Solution, Statistics, weights};
use crate::error::Result;

/// `Σ w_i x_i`, divided by `Σ w_i` if `normalize` (*model soups*, Wortsman et al. 2022).
///
/// Weights may be negative. Where mergekit divides by a sum of zero and fills the model with NaN, this refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    weights: Vec<f64>,
}

impl Linear {
    /// The mean (`normalize`, the default of a recipe) or sum with these weights.
    ///
    /// # Errors
    ///
    /// When a weight is not finite, or they sum to zero and must be normalised.
    pub fn new(weights: &[f64], normalize: bool) -> Result<Self> {
        weights::finite(weights)?;
        Ok(Self { weights: if normalize { weights::sum_to_one(weights)? } else { weights.to_vec() } })
    }
}

impl Method for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn statistics(&self) -> Statistics {
        Statistics::None
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        if gram.n() > 0 {
            gram.check(self.name(), self.weights.len())?;
        }
        Solution::exact(self.name(), gram, None, self.weights.clone(), Flags::default())
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
            linear.solve(&Gram::new(0)).expect("no statistics needed").coefficients
        };
        assert_eq!(coefficients(true), [0.25, 0.75]);
        assert_eq!(coefficients(false), [1.0, 3.0]);
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
        let facts = linear.solve(&gram(&[vec![2.0, 0.0], vec![0.0, 2.0]])).expect("finite").facts;
        assert_eq!(facts.norms, [2.0, 2.0]);
        assert!((facts.merged_norm.expect("measured") - 2f64.sqrt()).abs() < 1e-15);
        let none = linear.solve(&Gram::new(0)).expect("no statistics needed").facts;
        assert_eq!((none.norms.len(), none.merged_norm), (0, None));
        assert!(linear.solve(&Gram::new(3)).is_err());
    }
}
