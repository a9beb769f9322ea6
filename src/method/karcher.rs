//! The Karcher mean of directions, times the mean of norms.

use super::dependence::{may_be_null, without_null_part};
use super::directions::{Directions, Point};
use super::{Flags, Gram, Method, Solution, Statistics, Stop, angle, weights};
use crate::error::Result;

/// An input is opposite to the iterate when `1 + cos` is not above this. Cosines of rounded inner
/// products then no longer give the direction of the shortest arc.
const OPPOSITE: f64 = 1e-12;

/// The squared length at or below which rounded inner products give a weighted mean of unit vectors
/// no direction.
const VANISHING: f64 = 1e-12;

/// An angle is beyond a right angle when its cosine is below minus this, so that exact right angles
/// do not count.
const RIGHT_ANGLE: f64 = 1e-9;

/// The steps without a smaller residual after which the iteration ends, once the residual is below
/// [`FLOOR`].
const PATIENCE: u32 = 8;

/// The largest residual that can be a rounding floor. A larger one may grow for many steps on the
/// way around a saddle.
const FLOOR: f64 = 1e-6;

/// The least share of the tolerance that the tangent must reach where the bound on the curvature is
/// weak.
const STRICTEST: f64 = 0.01;

/// The weighted Karcher mean of the inputs' directions on the unit sphere, scaled to the weighted
/// mean of their norms.
///
/// With `u_i = x_i / |x_i|` it minimises `Σ a_i d(m, u_i)²`, `d` the angle (Karcher 1977; for the
/// sphere Buss and Fillmore 2001, *Spherical averages*). From the normalised weighted mean it
/// repeats `m <- exp_m(Σ a_i log_m(u_i))`. Every iterate is in the span of the inputs, `m = Σ c_j
/// u_j`, so with `G` the cosines a step is
///
/// - `θ_i = acos (Gc)_i`, `b_i = a_i θ_i / sin θ_i`
/// - tangent `t = b - (b·Gc) c`, `|t|² = t'Gt`
/// - `c <- cos|t| c + sin|t| / |t| t`, divided by `sqrt(c'Gc)`
///
/// and the coefficients are `s c_i / |x_i|` with `s = Σ a_i |x_i|`.
///
/// It stops when `m` is within `tol` radians of the mean. `β = b·Gc = Σ a_i θ_i cot θ_i` bounds the
/// Hessian of half the sum of squares from below, so that distance is at most `|t| / β`: with a
/// hundred orthogonal inputs β is 0.15, and a tangent below `tol` alone would leave seven times as
/// much. Where β is below 1/100, as with inputs beyond a right angle, the bound is useless, and
/// `|t| <= tol / 100` is required.
///
/// - An input of weight zero does not take part. A zero input has no direction: the others' weights
///   are renormalised for the direction, and `s` counts it with its weight and norm 0.
/// - Inputs with equal inner products get their weights without an iteration, as do inputs in one
///   direction.
/// - An input opposite to the iterate has no logarithm: it gives no tangent. A weighted mean that
///   vanishes is replaced by the direction of the largest weight (the first of equals). Both are
///   flagged.
///
/// For two inputs this is slerp at `t = a_1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Karcher {
    weights: Vec<f64>,
    max_iter: u32,
    tol: f64,
}

impl Karcher {
    /// The default limit of steps in a recipe.
    pub const MAX_ITER: u32 = 1000;

    /// The default tolerance in a recipe: the distance from the mean, in radians, that counts as
    /// converged.
    pub const TOL: f64 = 1e-12;

    /// Makes the mean with these weights; only their ratios matter. `max_iter` 0 gives the
    /// normalised weighted mean.
    ///
    /// # Errors
    ///
    /// When a weight is negative or not finite, all are zero, or `tol` is negative or not finite.
    pub fn new(weights: &[f64], max_iter: u32, tol: f64) -> Result<Self> {
        weights::non_negative_parameter("tol", tol)?;
        Ok(Self {
            weights: weights::convex(weights)?,
            max_iter,
            tol,
        })
    }

    /// Normalises the weights of the inputs that have a direction and a weight to sum 1; the others
    /// get 0.
    fn participants(&self, norms: &[f64]) -> Vec<f64> {
        let masked: Vec<f64> = self
            .weights
            .iter()
            .zip(norms)
            .map(|(a, norm)| if *norm > 0.0 { *a } else { 0.0 })
            .collect();
        let sum: f64 = masked.iter().sum();
        // All inputs take part: their weights sum to 1 up to rounding, and another division would
        // only add a rounding.
        if sum == 0.0 || masked == self.weights {
            masked
        } else {
            masked.iter().map(|a| a / sum).collect()
        }
    }

    /// True if all inputs that take part are nonzero and have bit-equal inner products.
    fn are_equal(&self, gram: &Gram) -> bool {
        let taking: Vec<usize> = (0..gram.n()).filter(|i| self.weights[*i] > 0.0).collect();
        let first = gram.get(taking[0], taking[0]);
        first > 0.0
            && taking
                .iter()
                .all(|i| taking.iter().all(|j| gram.get(*i, *j) == first))
    }
}

/// The end of an iteration.
struct Mean {
    parts: Vec<f64>,
    iterations: u32,
    residual: f64,
    stop: Stop,
    flags: Flags,
}

impl Karcher {
    /// Computes the starting point: the normalised weighted mean, or the direction of the largest
    /// weight.
    fn start(directions: &Directions, a: &[f64], flags: &mut Flags) -> Vec<f64> {
        let norm = directions.norm(a);
        if norm * norm > VANISHING {
            return Self::bounded(directions, a, a.iter().map(|a| a / norm).collect());
        }
        flags.mean_vanishes = true;
        let largest = a.iter().copied().fold(0.0, f64::max);
        let chosen = a.iter().position(|a| *a == largest);
        (0..a.len())
            .map(|i| if Some(i) == chosen { 1.0 } else { 0.0 })
            .collect()
    }

    /// Removes the null-space part of `c`, a unit vector, when it may be most of `c`.
    fn bounded(directions: &Directions, a: &[f64], c: Vec<f64>) -> Vec<f64> {
        if may_be_null(&c, 1.0) {
            without_null_part(directions, a, c)
        } else {
            c
        }
    }

    /// Computes the tangent from `c`, a unit vector, towards the mean in coefficients, its length,
    /// and the bound β.
    fn tangent(
        directions: &Directions,
        a: &[f64],
        c: &[f64],
        point: &Point,
    ) -> (Vec<f64>, f64, f64) {
        let pull = |(a, defect): (&f64, &f64)| {
            let opposite = *a == 0.0 || *defect >= 2.0 - OPPOSITE;
            if opposite {
                0.0
            } else {
                a * angle::theta_over_sin(*defect)
            }
        };
        let b: Vec<f64> = a.iter().zip(&point.defects).map(pull).collect();
        let along: f64 = b
            .iter()
            .zip(&point.defects)
            .map(|(b, defect)| b * (1.0 - defect))
            .sum();
        let mut t: Vec<f64> = b.iter().zip(c).map(|(b, c)| b - along * c).collect();
        // NOTE: for near-parallel inputs t'Gt is a difference of numbers near 1 and would stay at
        // 1e-16, a length of 1e-8, for ever. Directions::norm sums 1 - G instead there, so the
        // length falls to the tolerance.
        let mut length = directions.norm(&t);
        if may_be_null(&t, length) {
            t = without_null_part(directions, a, t);
            length = directions.norm(&t);
        }
        (t, length, along)
    }

    fn iterate(&self, directions: &Directions, a: &[f64]) -> Mean {
        let mut flags = Flags::default();
        let mut c = Self::start(directions, a, &mut flags);
        let mut best = (f64::INFINITY, 0, c.clone());
        let mut iterations = 0;
        let (residual, stop) = loop {
            let point = directions.point(&c);
            c.iter_mut().for_each(|c| *c /= point.norm);
            let (t, length, curvature) = Self::tangent(directions, a, &c, &point);
            if length < best.0 {
                best = (length, iterations, c.clone());
            }
            if length <= self.tol * curvature.clamp(STRICTEST, 1.0) {
                break (length, Stop::Converged);
            }
            if iterations == self.max_iter {
                break (length, Stop::MaxIterations);
            }
            if best.0 < FLOOR && iterations - best.1 >= PATIENCE {
                (iterations, c) = (best.1, best.2);
                break (best.0, Stop::Floor);
            }
            let (cos, sinc) = (angle::sin_cos(length).1, angle::sinc(length));
            // NOTE: a step multiplies the null-space part of dependent inputs by 1 - β. Beyond a
            // right angle, β < 0, that part would grow without moving the point, until its rounding
            // moves it.
            let next = c.iter().zip(&t).map(|(c, t)| cos * c + sinc * t).collect();
            c = Self::bounded(directions, a, next);
            iterations += 1;
        };
        let point = directions.point(&c);
        let taking = || {
            a.iter()
                .zip(&point.defects)
                .filter(|(a, _)| **a > 0.0)
                .map(|(_, defect)| *defect)
        };
        flags.opposite = taking().any(|defect| defect >= 2.0 - OPPOSITE);
        flags.beyond_right_angle = taking().any(|defect| defect > 1.0 + RIGHT_ANGLE);
        Mean {
            parts: c,
            iterations,
            residual,
            stop,
            flags,
        }
    }
}

impl Method for Karcher {
    fn name(&self) -> &'static str {
        "karcher"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Gram { center: None }
    }

    fn shares(&self) -> Vec<Option<f64>> {
        weights::shares(&self.weights, None)
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        gram.check(self.name(), self.weights.len())?;
        let exact =
            |coefficients, flags| Solution::exact(self.name(), gram, None, coefficients, flags);
        let norms: Vec<f64> = (0..gram.n()).map(|i| gram.norm(i)).collect();
        let a = self.participants(&norms);
        let taking = a.iter().filter(|a| **a > 0.0).count();
        if taking == 0 {
            // Any coefficients give zero. These keep the zeros' sign where all inputs agree on it.
            return exact(
                self.weights.clone(),
                Flags {
                    all_zero: true,
                    ..Flags::default()
                },
            );
        }
        if taking == 1 {
            // s / |x_i| = a_i |x_i| / |x_i|, without the rounding
            let only = self
                .weights
                .iter()
                .zip(&a)
                .map(|(weight, a)| if *a > 0.0 { *weight } else { 0.0 });
            return exact(only.collect(), Flags::default());
        }
        if self.are_equal(gram) {
            return exact(
                self.weights.clone(),
                Flags {
                    equal_inputs: true,
                    ..Flags::default()
                },
            );
        }
        let mean = self.iterate(&Directions::new(gram, None), &a);
        let s: f64 = self
            .weights
            .iter()
            .zip(&norms)
            .map(|(a, norm)| a * norm)
            .sum();
        let coefficient = |(c, norm): (&f64, &f64)| if *c == 0.0 { 0.0 } else { s * c / norm };
        let coefficients = mean.parts.iter().zip(&norms).map(coefficient).collect();
        Ok(exact(coefficients, mean.flags)?.iterated(mean.iterations, mean.residual, mean.stop))
    }
}

#[cfg(test)]
mod tests;
