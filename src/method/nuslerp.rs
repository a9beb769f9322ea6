//! Slerp by weights, of two inputs or of their differences from a base.

use super::slerp::{Arc, interpolate};
use super::{Flags, Gram, Method, Solution, Statistics, weights};
use crate::error::Result;

/// The value of `1 + cos` at or below which inputs are opposite.
const OPPOSITE: f64 = 1e-12;

/// Slerp at `t = w_2 / (w_1 + w_2)` of two inputs `x_1`, `x_2`, or with a base of `x_1 - b`, `x_2 -
/// b`, added to `b`.
///
/// Weights that sum to less than 1e-6 mean `t` 0.5, as in mergekit. Its `nuslerp_flatten` and
/// `nuslerp_row_wise` choose the elements that the Gram matrix covers and need nothing here.
/// Opposite inputs are combined linearly and flagged. mergekit does so below a sine of 1e-8 and
/// divides by rounding noise just above it; here the limit is where rounded inner products still
/// determine the arc.
#[derive(Debug, Clone, PartialEq)]
pub struct Nuslerp {
    ends: [usize; 2],
    base: Option<usize>,
    t: f64,
}

impl Nuslerp {
    /// Interpolates between two inputs or, with a base, between the two others: then there are
    /// three weights, and the base's is not used.
    ///
    /// # Errors
    ///
    /// When there are not two inputs beside the base, `base` is not an input, or a weight is not
    /// finite.
    pub fn new(weights: &[f64], base: Option<usize>) -> Result<Self> {
        weights::finite(weights)?;
        if let Some(base) = base {
            weights::base_within(base, weights.len())?;
        }
        let others: Vec<usize> = (0..weights.len()).filter(|i| Some(*i) != base).collect();
        let &[first, second] = others.as_slice() else {
            let cause = format!("nuslerp takes 2 beside the base, got {}", others.len());
            return Err(weights::refuse("inputs".into(), cause));
        };
        let sum = weights[first] + weights[second];
        let t = if sum.abs() < 1e-6 {
            0.5
        } else {
            weights[second] / sum
        };
        weights::finite_parameter("sum of weights", sum)?;
        Ok(Self {
            ends: [first, second],
            base,
            t,
        })
    }

    fn inputs(&self) -> usize {
        2 + usize::from(self.base.is_some())
    }
}

impl Method for Nuslerp {
    fn name(&self) -> &'static str {
        "nuslerp"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Gram { center: self.base }
    }

    fn measured_from(&self) -> Option<usize> {
        self.base
    }

    fn shares(&self) -> Vec<Option<f64>> {
        let mut shares = vec![0.0; self.inputs()];
        shares[self.ends[0]] = 1.0 - self.t;
        shares[self.ends[1]] = self.t;
        weights::shares(&shares, self.base)
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        gram.check(self.name(), self.inputs())?;
        let [first, second] = self.ends;
        let pair = vec![
            gram.get(first, first),
            gram.get(first, second),
            gram.get(second, second),
        ];
        let mut flags = Flags::default();
        let Arc { from, to, sum } = interpolate(
            &Gram::from_sums(2, pair),
            self.t,
            1.0 - OPPOSITE,
            &mut flags,
        );
        let mut coefficients = vec![0.0; self.inputs()];
        coefficients[first] = from;
        coefficients[second] = to;
        if let Some(base) = self.base {
            coefficients[base] = 1.0 - from - to;
        }
        let solution = Solution::exact(self.name(), gram, self.base, coefficients, flags)?;
        Ok(match self.base {
            Some(base) => solution.without_cancelling(base, 1.0),
            None => solution.without_cancelling(first, sum),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, combine, gram, gram_centered};
    use super::*;

    #[test]
    fn weights_set_the_place_on_the_arc() {
        let inputs = [vec![1.0, 0.0], vec![0.0, 1.0]];
        let solution = Nuslerp::new(&[1.0, 2.0], None)
            .expect("valid")
            .solve(&gram(&inputs))
            .expect("finite");
        let angle = std::f64::consts::FRAC_PI_3;
        assert_close(&solution.coefficients, &[angle.cos(), angle.sin()], 1e-15);
        assert_eq!(Nuslerp::new(&[1.0, -1.0], None).expect("valid").t, 0.5);
    }

    #[test]
    fn with_a_base_the_differences_are_interpolated() {
        let inputs = [vec![6.0, 5.0], vec![5.0, 5.0], vec![5.0, 7.0]];
        let method = Nuslerp::new(&[1.0, 9.0, 1.0], Some(1)).expect("valid");
        assert_eq!(method.statistics(), Statistics::Gram { center: Some(1) });
        let solution = method.solve(&gram_centered(&inputs, 1)).expect("finite");
        let half = 0.5f64.sqrt();
        assert_close(
            &combine(&solution.coefficients, &inputs),
            &[5.0 + half, 5.0 + 2.0 * half],
            1e-14,
        );
    }

    #[test]
    fn an_input_equal_to_the_base_makes_it_linear() {
        let inputs = [vec![5.0, 5.0], vec![5.0, 5.0], vec![5.0, 7.0]];
        let method = Nuslerp::new(&[0.0, 1.0, 3.0], Some(0)).expect("valid");
        let solution = method.solve(&gram_centered(&inputs, 0)).expect("finite");
        assert_close(&solution.coefficients, &[0.0, 0.25, 0.75], 0.0);
        assert!(solution.facts.flags.linear_instead && !solution.facts.flags.zero_inputs);
    }

    #[test]
    fn another_number_of_inputs_is_refused() {
        assert!(Nuslerp::new(&[1.0, 1.0, 1.0], None).is_err());
        assert!(Nuslerp::new(&[1.0, 1.0], Some(0)).is_err());
        assert!(Nuslerp::new(&[1.0, 1.0, 1.0], Some(3)).is_err());
        assert!(Nuslerp::new(&[1.0, f64::NAN], None).is_err());
    }
}
