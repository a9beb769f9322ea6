//! The normalised weighted mean of directions.

use super::directions::Directions;
use super::{Flags, Gram, Method, Solution, Statistics, weights};
use crate::error::Result;

/// The squared length at or below which a mean of directions, with weights that sum to 1, has no
/// direction.
const VANISHING: f64 = 1e-12;

/// `(Σ w_i |v_i|) m`, `m` the normalised `Σ w_i v_i / (|v_i| + eps)`, with `v_i = x_i`, or `x_i -
/// b` with a base, to which it is then added.
///
/// mergekit's method of this name takes one step from `m` along the projections of the inputs onto
/// the tangent space at `m`. That step is identically zero, because `m` is the direction of their
/// sum; this closed form is what it computes. The true spherical mean is [`super::Karcher`]. Where
/// `m` vanishes mergekit combines two inputs linearly and fails for more; here any number is
/// combined linearly, and flagged.
#[derive(Debug, Clone, PartialEq)]
pub struct Multislerp {
    weights: Vec<f64>,
    base: Option<usize>,
    eps: f64,
}

impl Multislerp {
    /// The default number that is added to norms.
    pub const EPS: f64 = 1e-8;

    /// Makes the mean with one weight per input, divided by their sum if `normalize_weights` (the
    /// default of a recipe). With a base, one of the inputs, its own weight is not used.
    ///
    /// # Errors
    ///
    /// When a weight is not finite, they sum to zero and must be normalised, `base` is not an
    /// input, or `eps` is negative or not finite.
    pub fn new(
        weights: &[f64],
        normalize_weights: bool,
        eps: f64,
        base: Option<usize>,
    ) -> Result<Self> {
        weights::finite(weights)?;
        weights::non_negative_parameter("eps", eps)?;
        let mut weights = weights.to_vec();
        if let Some(base) = base {
            weights::base_within(base, weights.len())?;
            weights[base] = 0.0;
        }
        if normalize_weights {
            weights = weights::sum_to_one(&weights)?;
        }
        Ok(Self { weights, base, eps })
    }

    /// Computes the coefficients of `v_i`; the base's is 0.
    fn combine(&self, gram: &Gram, flags: &mut Flags) -> Vec<f64> {
        let deltas = self.deltas(gram);
        let norms: Vec<f64> = (0..deltas.n()).map(|i| deltas.norm(i)).collect();
        let shrunk = |i: usize| {
            if norms[i] > 0.0 {
                self.weights[i] / (norms[i] + self.eps)
            } else {
                0.0
            }
        };
        let mean: Vec<f64> = (0..norms.len()).map(shrunk).collect();
        let parts: Vec<f64> = mean.iter().zip(&norms).map(|(c, norm)| c * norm).collect();
        let length = Directions::new(&deltas, None).norm(&parts);
        let largest = parts
            .iter()
            .fold(0.0, |largest: f64, part| largest.max(part.abs()));
        if length * length <= VANISHING * largest * largest {
            let any = largest > 0.0;
            flags.linear_instead |= any;
            flags.mean_vanishes |= any;
            return self.weights.clone();
        }
        let scale: f64 = self
            .weights
            .iter()
            .zip(&norms)
            .map(|(w, norm)| w * norm)
            .sum();
        mean.iter().map(|c| c * scale / length).collect()
    }

    /// Computes the matrix of `v_i`. A base gets a row of zeros, so that it takes no part.
    fn deltas(&self, gram: &Gram) -> Gram {
        let n = gram.n();
        let entry = |i: usize, j: usize| {
            if Some(i) == self.base || Some(j) == self.base {
                0.0
            } else {
                gram.get(i, j)
            }
        };
        let entry = &entry;
        Gram::from_sums(
            n,
            (0..n)
                .flat_map(|i| (i..n).map(move |j| entry(i, j)))
                .collect(),
        )
    }
}

impl Method for Multislerp {
    fn name(&self) -> &'static str {
        "multislerp"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Gram { center: self.base }
    }

    fn measured_from(&self) -> Option<usize> {
        self.base
    }

    fn shares(&self) -> Vec<Option<f64>> {
        weights::shares(&self.weights, self.base)
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        gram.check(self.name(), self.weights.len())?;
        let mut flags = Flags::default();
        let mut coefficients = self.combine(gram, &mut flags);
        if let Some(base) = self.base {
            coefficients[base] = 1.0 - coefficients.iter().sum::<f64>();
        }
        let solution = Solution::exact(self.name(), gram, self.base, coefficients, flags)?;
        Ok(match self.base {
            Some(base) => solution.without_cancelling(base, 1.0),
            None => solution,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, combine, gram, gram_centered};
    use super::super::{Karcher, Stop};
    use super::*;

    #[test]
    fn it_is_the_start_of_the_karcher_mean_when_eps_is_zero() {
        let inputs = [
            vec![1.0, 2.0, 0.5],
            vec![-0.5, 2.0, 1.0],
            vec![3.0, 0.0, 1.0],
        ];
        let weights = [0.2, 0.5, 0.3];
        let got = Multislerp::new(&weights, true, 0.0, None)
            .expect("valid")
            .solve(&gram(&inputs))
            .expect("finite");
        let start = Karcher::new(&weights, 0, 0.0)
            .expect("valid")
            .solve(&gram(&inputs))
            .expect("finite");
        assert_close(&got.coefficients, &start.coefficients, 1e-15);
        assert_eq!(got.facts.stop, Stop::Exact);
    }

    #[test]
    fn weights_that_are_not_normalised_scale_the_result() {
        let inputs = [vec![2.0, 0.0], vec![0.0, 2.0]];
        let method = Multislerp::new(&[1.0, 1.0], false, 0.0, None).expect("valid");
        let got = combine(
            &method.solve(&gram(&inputs)).expect("finite").coefficients,
            &inputs,
        );
        assert_close(&got, &[8f64.sqrt(), 8f64.sqrt()], 1e-14);
    }

    #[test]
    fn with_a_base_the_differences_are_averaged() {
        let inputs = [vec![5.0, 5.0], vec![6.0, 5.0], vec![5.0, 8.0]];
        let method = Multislerp::new(&[7.0, 1.0, 1.0], true, 0.0, Some(0)).expect("valid");
        let solution = method.solve(&gram_centered(&inputs, 0)).expect("finite");
        let along = 2.0 * 0.5f64.sqrt();
        assert_close(
            &combine(&solution.coefficients, &inputs),
            &[5.0 + along, 5.0 + along],
            1e-14,
        );
    }

    #[test]
    fn eps_draws_short_inputs_towards_nothing() {
        let inputs = [vec![1e-8, 0.0], vec![0.0, 1.0]];
        let method = Multislerp::new(&[1.0, 1.0], true, 1e-8, None).expect("valid");
        let got = combine(
            &method.solve(&gram(&inputs)).expect("finite").coefficients,
            &inputs,
        );
        assert!((got[0] / got[1] - 0.5).abs() < 1e-7, "{got:?}");
    }

    #[test]
    fn directions_that_cancel_are_combined_linearly_and_flagged() {
        let inputs = [vec![1.0, 0.0], vec![-2.0, 0.0]];
        let method = Multislerp::new(&[1.0, 1.0], true, 0.0, None).expect("valid");
        let solution = method.solve(&gram(&inputs)).expect("finite");
        assert_eq!(solution.coefficients, [0.5, 0.5]);
        assert!(solution.facts.flags.linear_instead && solution.facts.flags.mean_vanishes);
    }

    #[test]
    fn inputs_that_all_equal_the_base_give_the_base() {
        let inputs = [vec![5.0, 5.0], vec![5.0, 5.0], vec![5.0, 5.0]];
        let method = Multislerp::new(&[1.0, 1.0, 1.0], true, 1e-8, Some(0)).expect("valid");
        let solution = method.solve(&gram_centered(&inputs, 0)).expect("finite");
        assert_close(
            &combine(&solution.coefficients, &inputs),
            &[5.0, 5.0],
            1e-15,
        );
        assert!(!solution.facts.flags.linear_instead);
    }

    #[test]
    fn bad_parameters_are_refused() {
        assert!(Multislerp::new(&[1.0, -1.0], true, 1e-8, None).is_err());
        assert!(Multislerp::new(&[1.0, 0.0], true, 1e-8, Some(0)).is_err());
        assert!(Multislerp::new(&[1.0, 1.0], true, -1.0, None).is_err());
        assert!(Multislerp::new(&[1.0, 1.0], true, 1e-8, Some(2)).is_err());
    }
}
