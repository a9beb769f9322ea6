//! The mean of fine-tunes, drawn towards their base by the angle between them.

use super::{Flags, Gram, Method, Solution, Statistics, weights};
use crate::error::Result;

/// The denominator `1 + (N-1) c` at or below which the interpolation has no value.
const VANISHING: f64 = 1e-6;

/// `t mean(x_i) + (1-t) b` over the N inputs that are not the base, with `t = N c / (1 + (N-1) c)`
/// and `c` the mean cosine of the pairs of differences `d_i = x_i - b` (*Model Stock*, Jang et al.
/// 2024, eq. 7).
///
/// mergekit's `filter_wise` takes the Gram matrix by rows and needs nothing here. mergekit divides
/// by `max(|d_i| |d_j|, 1e-6)`, which reads small differences, such as those of norm layers, as
/// orthogonal; here a cosine is a cosine, and 0 only when a difference is zero. Where `1 + (N-1) c`
/// vanishes the base is kept, and flagged.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelStock {
    base: usize,
    inputs: usize,
}

impl ModelStock {
    /// Makes the mean of `inputs` inputs, one of which is the base.
    ///
    /// # Errors
    ///
    /// When there are fewer than two inputs beside the base, or `base` is not an input.
    pub fn new(base: usize, inputs: usize) -> Result<Self> {
        weights::base_within(base, inputs)?;
        if inputs < 3 {
            let cause = format!(
                "model_stock takes at least 2 beside the base, got {}",
                inputs - 1
            );
            return Err(weights::refuse("inputs".into(), cause));
        }
        Ok(Self { base, inputs })
    }

    /// Computes the mean cosine of the pairs of differences.
    fn mean_cosine(&self, gram: &Gram) -> f64 {
        let others: Vec<usize> = (0..self.inputs).filter(|i| *i != self.base).collect();
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (k, &i) in others.iter().enumerate() {
            for &j in &others[k + 1..] {
                let (first, second) = (gram.norm(i), gram.norm(j));
                if first > 0.0 && second > 0.0 {
                    sum += (gram.get(i, j) / first / second).clamp(-1.0, 1.0);
                }
                pairs += 1.0;
            }
        }
        sum / pairs
    }
}

impl Method for ModelStock {
    fn name(&self) -> &'static str {
        "model_stock"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Gram {
            center: Some(self.base),
        }
    }

    fn measured_from(&self) -> Option<usize> {
        Some(self.base)
    }

    fn shares(&self) -> Vec<Option<f64>> {
        weights::shares(&vec![1.0; self.inputs], Some(self.base))
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        gram.check(self.name(), self.inputs)?;
        let cosine = self.mean_cosine(gram);
        let others = (1..self.inputs).fold(0.0, |count, _| count + 1.0);
        let denominator = 1.0 + (others - 1.0) * cosine;
        let base_kept = denominator <= VANISHING;
        let t = if base_kept {
            0.0
        } else {
            others * cosine / denominator
        };
        let mut coefficients = vec![t / others; self.inputs];
        coefficients[self.base] = 1.0 - t;
        let flags = Flags {
            base_kept,
            ..Flags::default()
        };
        let solution = Solution::exact(self.name(), gram, Some(self.base), coefficients, flags)?;
        Ok(solution.without_cancelling(self.base, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, gram_centered};
    use super::*;

    fn solve(base: usize, inputs: &[Vec<f64>]) -> Solution {
        ModelStock::new(base, inputs.len())
            .expect("valid")
            .solve(&gram_centered(inputs, base))
            .expect("finite")
    }

    #[test]
    fn the_angle_between_the_differences_sets_the_way_to_the_mean() {
        // cos 60° = 1/2 and N = 2: t = 1 / 1.5
        let inputs = [
            vec![1.0, 1.0],
            vec![2.0, 1.0],
            vec![1.5, 1.0 + 0.75f64.sqrt()],
        ];
        assert_close(&solve(0, &inputs).coefficients, &[1.0 / 3.0; 3], 1e-15);
        let turned = [inputs[1].clone(), inputs[0].clone(), inputs[2].clone()];
        assert_close(&solve(1, &turned).coefficients, &[1.0 / 3.0; 3], 1e-15);
    }

    #[test]
    fn parallel_differences_give_the_mean_and_orthogonal_ones_the_base() {
        assert_close(
            &solve(0, &[vec![1.0, 1.0], vec![2.0, 1.0], vec![3.0, 1.0]]).coefficients,
            &[0.0, 0.5, 0.5],
            1e-15,
        );
        assert_eq!(
            solve(0, &[vec![1.0, 1.0], vec![2.0, 1.0], vec![1.0, 3.0]]).coefficients,
            [1.0, 0.0, 0.0]
        );
    }

    #[test]
    fn small_differences_have_the_same_cosine_as_large_ones() {
        let near = [vec![1.0, 0.0], vec![1.0, 1e-7], vec![1.0, 2e-7]];
        assert_close(&solve(0, &near).coefficients, &[0.0, 0.5, 0.5], 1e-15);
    }

    #[test]
    fn opposite_differences_keep_the_base_and_flag_it() {
        let solution = solve(2, &[vec![2.0], vec![0.0], vec![1.0]]);
        assert_eq!(solution.coefficients, [0.0, 0.0, 1.0]);
        assert!(solution.facts.flags.base_kept);
    }

    #[test]
    fn inputs_that_equal_the_base_give_exactly_the_base() {
        let solution = solve(0, &[vec![0.1, 0.7], vec![0.1, 0.7], vec![0.1, 0.7]]);
        assert_eq!(solution.coefficients, [1.0, 0.0, 0.0]);
        assert!(!solution.facts.flags.base_kept);
    }

    #[test]
    fn too_few_inputs_and_a_base_that_is_none_are_refused() {
        assert!(ModelStock::new(0, 2).is_err());
        assert!(ModelStock::new(3, 3).is_err());
    }
}
