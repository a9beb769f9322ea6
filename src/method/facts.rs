//! A solved merge: the coefficients, and the facts for a report.

use serde::{Deserialize, Serialize};

use super::directions::Directions;
use super::{Flags, Gram, number};
use crate::error::{Error, Kind, Result};

/// The reason why a solver stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The coefficients have a closed form.
    Exact,
    /// The tolerance was met.
    Converged,
    /// The residual stopped falling, at the limit of rounding. The best iterate was used.
    Floor,
    /// The limit of iterations was reached. The last iterate was used.
    MaxIterations,
}

/// The facts about one merge of N tensors.
///
/// Every number is finite, so the facts go through JSON and back without losing a bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The norms of the inputs; empty when no Gram matrix was measured. Where differences from a
    /// base were measured, the norm of an input far smaller than the base is exact only to a
    /// rounding of the base's.
    #[serde(with = "number::list")]
    pub norms: Vec<f64>,
    /// The norm of the result; `None` when no Gram matrix was measured.
    pub merged_norm: Option<f64>,
    /// The angle in radians between each input and the result; `None` where one of the two is zero,
    /// or so small beside the base that differences from the base do not give its direction.
    pub angles: Vec<Option<f64>>,
    /// The number of steps of an iterative solver.
    pub iterations: u32,
    /// The final residual of an iterative solver; 0 for a closed form.
    #[serde(with = "number")]
    pub residual: f64,
    /// The reason why the solver stopped.
    pub stop: Stop,
    /// The odd cases that were met.
    pub flags: Flags,
}

/// Coefficients of N inputs. The result is `Σ c_i x_i / d` over the raw inputs; with a centre `p`
/// it is `c_p x_p + Σ c_i (x_i - x_p)`, and `d` is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Solution {
    /// One coefficient per input.
    #[serde(with = "number::list")]
    pub coefficients: Vec<f64>,
    /// The divisor `d` of the sum: one, or a whole number of which a mean's weights are exact
    /// shares.
    #[serde(default = "one")]
    pub divisor: f64,
    /// The input `p` that is subtracted from the others before they are weighted, where their plain
    /// sum would cancel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub center: Option<usize>,
    /// The facts about the merge.
    pub facts: Facts,
}

fn one() -> f64 {
    1.0
}

impl Solution {
    /// Makes the solution with these closed-form coefficients, and measures its facts on `gram`,
    /// which may be centred.
    ///
    /// # Errors
    ///
    /// When a coefficient is not finite.
    pub(super) fn exact(
        method: &'static str,
        gram: &Gram,
        center: Option<usize>,
        coefficients: Vec<f64>,
        flags: Flags,
    ) -> Result<Self> {
        if let Some((i, c)) = coefficients
            .iter()
            .enumerate()
            .find(|(_, c)| !c.is_finite())
        {
            let subject = format!("coefficient of input {i}");
            let cause = format!("is {c}: the norms of the inputs are too far apart for f64");
            return Err(Error::new(
                Kind::NonFinite,
                format!("cannot solve {method}"),
                subject,
                cause,
            ));
        }
        let mut facts = Facts {
            norms: Vec::new(),
            merged_norm: None,
            angles: Vec::new(),
            iterations: 0,
            residual: 0.0,
            stop: Stop::Exact,
            flags,
        };
        if gram.n() > 0 {
            facts.measure(&Directions::new(gram, center), &coefficients);
        }
        Ok(Self {
            coefficients,
            divisor: 1.0,
            center: None,
            facts,
        })
    }

    /// Writes the coefficients as `shares` of `divisor`, which need no rounding.
    pub(super) fn in_shares(self, shares: Vec<f64>, divisor: f64) -> Self {
        Self {
            coefficients: shares,
            divisor,
            ..self
        }
    }

    /// Makes the solution that keeps input `base` of `inputs` unchanged, because another input is
    /// not finite.
    pub fn base_instead(inputs: usize, base: usize) -> Self {
        let mut coefficients = vec![0.0; inputs];
        coefficients[base] = 1.0;
        let facts = Facts {
            norms: Vec::new(),
            merged_norm: None,
            angles: Vec::new(),
            iterations: 0,
            residual: 0.0,
            stop: Stop::Exact,
            flags: Flags {
                nonfinite_base: true,
                ..Flags::default()
            },
        };
        Self {
            coefficients,
            divisor: 1.0,
            center: None,
            facts,
        }
    }

    /// Marks the solution as found by an iteration.
    pub(super) fn iterated(mut self, iterations: u32, residual: f64, stop: Stop) -> Self {
        self.facts.iterations = iterations;
        self.facts.residual = residual;
        self.facts.stop = stop;
        self.facts.flags.not_converged |= stop == Stop::MaxIterations;
        self
    }
}

impl Facts {
    /// Fills in norms and angles.
    fn measure(&mut self, directions: &Directions, coefficients: &[f64]) {
        self.norms = directions.norms().to_vec();
        let zeros = self.norms.iter().filter(|norm| **norm == 0.0).count();
        self.flags.zero_inputs |= zeros > 0;
        self.flags.all_zero |= zeros == self.norms.len();
        let parts: Vec<f64> = coefficients
            .iter()
            .zip(&self.norms)
            .map(|(c, norm)| c * norm)
            .collect();
        let point = directions.point(&parts);
        self.merged_norm = Some(point.norm).filter(|norm| norm.is_finite());
        self.angles = (0..self.norms.len())
            .map(|i| {
                (point.norm > 0.0 && self.norms[i] > 0.0 && directions.is_known(i))
                    .then(|| super::angle::theta(point.defects[i]))
            })
            .map(|angle| angle.filter(|angle| angle.is_finite()))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(gram: &Gram, center: Option<usize>, coefficients: &[f64]) -> Facts {
        Solution::exact(
            "test",
            gram,
            center,
            coefficients.to_vec(),
            Flags::default(),
        )
        .expect("finite")
        .facts
    }

    #[test]
    fn norms_and_angles_are_those_of_the_vectors() {
        // x_0 = (3, 0), x_1 = (0, 4), x_2 = 0; result (3, 4)
        let gram = Gram::from_sums(3, vec![9.0, 0.0, 0.0, 16.0, 0.0, 0.0]);
        let facts = facts(&gram, None, &[1.0, 1.0, 1.0]);
        assert_eq!(facts.norms, [3.0, 4.0, 0.0]);
        assert_eq!(facts.merged_norm, Some(5.0));
        let angle = |i: usize| facts.angles[i].expect("a nonzero input");
        assert!((angle(0) - (4.0f64 / 3.0).atan()).abs() < 1e-15);
        assert!((angle(1) - (3.0f64 / 4.0).atan()).abs() < 1e-15);
        assert_eq!(facts.angles[2], None);
        assert!(facts.flags.zero_inputs && !facts.flags.all_zero);
    }

    #[test]
    fn a_centred_matrix_shows_angles_that_the_raw_one_rounds_away() {
        // b = (1, 0), x_1 = b + (0, 1e-9): the raw cosine is 1 in f64
        let gram = Gram::from_sums(2, vec![1.0, 0.0, 1e-18]);
        let facts = facts(&gram, Some(0), &[1.0, 0.0]);
        let angle = facts.angles[1].expect("a nonzero input");
        assert!((angle / 1e-9 - 1.0).abs() < 1e-9, "got {angle}");
        assert_eq!(facts.angles[0], Some(0.0));
    }

    #[test]
    fn facts_go_through_json_and_back_bit_for_bit() {
        let gram = Gram::from_sums(2, vec![0.1, 0.07, 0.3]);
        let mut facts = facts(&gram, None, &[1.0 / 3.0, 2.0 / 3.0]);
        facts.residual = 4.9e-324;
        facts.angles.push(None);
        let text = serde_json::to_string(&facts).expect("serialises");
        assert_eq!(serde_json::from_str::<Facts>(&text).expect("parses"), facts);
    }

    #[test]
    fn a_coefficient_that_overflows_is_an_error() {
        let error = Solution::exact(
            "karcher",
            &Gram::new(0),
            None,
            vec![0.0, f64::INFINITY],
            Flags::default(),
        )
        .expect_err("infinite");
        assert!(error.to_string().contains("input 1"), "{error}");
    }
}
