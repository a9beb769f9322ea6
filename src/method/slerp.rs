//! Spherical interpolation of two inputs.

use super::directions::Directions;
use super::{Flags, Gram, Method, Solution, Statistics, angle, weights};
use crate::error::Result;

/// The negative cosine from which on mergekit interpolates linearly; so does [`Slerp`].
const OPPOSITE: f64 = 0.9995;

/// `[sin((1-t)θ) b + sin(tθ) x] / sin θ`, θ the angle between the base `b` and the other input `x`
/// (Shoemake 1985).
///
/// As in mergekit, the raw inputs are combined, not their directions, so the norm follows from the
/// formula. Two things differ. Nearly parallel inputs use the formula too (mergekit changes to a
/// linear combination at a cosine of 0.9995 because of its rounding, a jump of 1e-4). And only a
/// zero input has no direction, not one with a norm below 1e-8; the combination is then linear,
/// where mergekit scales by `sin(tπ/2)`. Nearly opposite inputs, where the formula diverges, are
/// combined linearly as in mergekit, and flagged.
#[derive(Debug, Clone, PartialEq)]
pub struct Slerp {
    base: usize,
    t: f64,
}

impl Slerp {
    /// Interpolates from input `base` of two, at `t` 0, to the other one, at `t` 1.
    ///
    /// # Errors
    ///
    /// When `base` is not 0 or 1, or `t` is not finite.
    pub fn new(base: usize, t: f64) -> Result<Self> {
        weights::base_within(base, 2)?;
        weights::finite_parameter("t", t)?;
        Ok(Self { base, t })
    }
}

impl Method for Slerp {
    fn name(&self) -> &'static str {
        "slerp"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Gram { center: None }
    }

    fn shares(&self) -> Vec<Option<f64>> {
        let mut shares = vec![self.t; 2];
        shares[self.base] = 1.0 - self.t;
        weights::shares(&shares, None)
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        gram.check(self.name(), 2)?;
        let mut flags = Flags {
            equal_inputs: are_equal(gram),
            ..Flags::default()
        };
        let Arc { from, to, sum } = interpolate(gram, self.t, OPPOSITE, &mut flags);
        let coefficients = if self.base == 0 {
            vec![from, to]
        } else {
            vec![to, from]
        };
        Ok(
            Solution::exact(self.name(), gram, None, coefficients, flags)?
                .without_cancelling(self.base, sum),
        )
    }
}

/// True if two nonzero inputs have bit-equal inner products.
fn are_equal(gram: &Gram) -> bool {
    gram.get(0, 0) > 0.0 && gram.get(0, 0) == gram.get(0, 1) && gram.get(0, 0) == gram.get(1, 1)
}

/// The coefficients of both ends of an arc, and their exact sum, which far beyond the ends cannot
/// be computed from them.
pub(super) struct Arc {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) sum: f64,
}

/// Computes the coefficients of slerp between the two inputs of `gram`. They are linear, and
/// flagged, without an arc: when one input is zero, or their cosine is not above `-opposite`.
pub(super) fn interpolate(gram: &Gram, t: f64, opposite: f64, flags: &mut Flags) -> Arc {
    let directions = Directions::new(gram, None);
    let defect = directions.defect(0, 1);
    let no_direction = directions.norms().contains(&0.0);
    flags.opposite |= !no_direction && defect >= 1.0 + opposite;
    if no_direction || flags.opposite {
        flags.linear_instead = true;
        return Arc {
            from: 1.0 - t,
            to: t,
            sum: 1.0,
        };
    }
    // sin(pθ) / sin θ = p sinc(pθ) · θ / sin θ, which has its limit p at θ = 0.
    let (theta, stretch) = (angle::theta(defect), angle::theta_over_sin(defect));
    let part = |p: f64| {
        if p == 1.0 {
            1.0
        } else {
            p * angle::sinc(p * theta) * stretch
        }
    };
    // sin((1-t)θ) + sin(tθ) = 2 sin(θ/2) cos((t-1/2)θ)
    let sum = angle::sin_cos((t - 0.5) * theta).1 / angle::sin_cos(0.5 * theta).1;
    Arc {
        from: part(1.0 - t),
        to: part(t),
        sum,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, combine, gram};
    use super::*;

    fn solve(base: usize, t: f64, inputs: &[Vec<f64>]) -> Solution {
        Slerp::new(base, t)
            .expect("valid")
            .solve(&gram(inputs))
            .expect("finite")
    }

    #[test]
    fn unit_vectors_move_along_their_arc() {
        let at = |angle: f64| vec![angle.cos(), angle.sin()];
        for t in [0.0, 0.3, 0.5, 1.0, 1.5, -0.5] {
            let inputs = [at(0.2), at(1.4)];
            let got = combine(&solve(0, t, &inputs).coefficients, &inputs);
            assert_close(&got, &at(0.2 + 1.2 * t), 1e-14);
            let back = combine(&solve(1, t, &inputs).coefficients, &inputs);
            assert_close(&back, &at(1.4 - 1.2 * t), 1e-14);
        }
    }

    #[test]
    fn the_ends_are_the_inputs_themselves() {
        let inputs = [vec![1.0, 5.0], vec![3.0, -1.0]];
        assert_eq!(solve(0, 0.0, &inputs).coefficients, [1.0, 0.0]);
        assert_eq!(solve(0, 1.0, &inputs).coefficients, [0.0, 1.0]);
        assert_eq!(solve(1, 0.0, &inputs).coefficients, [0.0, 1.0]);
    }

    #[test]
    fn parallel_inputs_are_interpolated_linearly_without_a_jump() {
        let parallel = solve(0, 0.25, &[vec![1.0, 1.0], vec![2.0, 2.0]]);
        assert_close(&parallel.coefficients, &[0.75, 0.25], 1e-15);
        let near = |angle: f64| {
            solve(0, 0.5, &[vec![1.0, 0.0], vec![angle.cos(), angle.sin()]]).coefficients[0]
        };
        // Half the angle's cosine below 1: continuous across the cosine 0.9995 (angle 0.0316).
        for angle in [0.0315f64, 0.0317] {
            assert!((near(angle) - 0.5 / (angle / 2.0).cos()).abs() < 1e-14);
        }
        let equal = solve(0, 0.25, &[vec![0.1, 0.7], vec![0.1, 0.7]]);
        assert!(equal.facts.flags.equal_inputs);
        assert_eq!(equal.coefficients, [0.75, 0.25]);
    }

    #[test]
    fn opposite_and_zero_inputs_are_interpolated_linearly_and_flagged() {
        let opposite = solve(0, 0.25, &[vec![1.0, 0.0], vec![-1.0, 0.01]]);
        assert_eq!(opposite.coefficients, [0.75, 0.25]);
        assert!(opposite.facts.flags.opposite && opposite.facts.flags.linear_instead);
        let zero = solve(0, 0.25, &[vec![0.0, 0.0], vec![1.0, 0.0]]);
        assert_eq!(zero.coefficients, [0.75, 0.25]);
        assert!(
            zero.facts.flags.zero_inputs
                && zero.facts.flags.linear_instead
                && !zero.facts.flags.opposite
        );
    }

    #[test]
    fn tensors_of_tiny_norm_have_a_direction() {
        let inputs = [vec![1e-12, 0.0], vec![0.0, 1e-12]];
        assert_close(
            &solve(0, 0.5, &inputs).coefficients,
            &[0.5f64.sqrt(); 2],
            1e-15,
        );
    }

    #[test]
    fn bad_parameters_are_refused() {
        assert!(Slerp::new(2, 0.5).is_err());
        assert!(Slerp::new(0, f64::NAN).is_err());
        assert!(
            Slerp::new(0, 0.5)
                .expect("valid")
                .solve(&Gram::new(3))
                .is_err()
        );
    }
}
