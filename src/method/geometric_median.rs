//! The point with the smallest weighted sum of distances to the inputs.

use super::centered::Centered;
use super::{Flags, Gram, Method, Solution, Statistics, Stop, weights};
use crate::error::Result;

/// The steps without a smaller residual after which the iteration ends.
const PATIENCE: u32 = 8;

/// The largest residual that can be a rounding floor.
const FLOOR: f64 = 1e-6;

/// The share of a squared distance's terms below which an iterate is at that input.
const AT_INPUT: f64 = 1e-28;

/// The share by which the others' pull on an input must be below its own weight for the input to be
/// the median. Equality is left to the iteration, so that two inputs of equal weight give their
/// middle, not one of them.
const CLEARLY: f64 = 1e-12;

/// The geometric median: minimises `Σ a_i |y - x_i|`.
///
/// Weiszfeld's iteration `y <- Σ (a_i / |y - x_i|) x_i / Σ (a_i / |y - x_i|)` from the weighted
/// mean, in coefficients `y = Σ c_i x_i` with `Σ c_i = 1`, so that with the inner products `G`
/// about one of the inputs
///
/// - `|y - x_i|² = c'Gc - 2 (Gc)_i + G_ii`
/// - the gradient `Σ v_i x_i`, `Σ v_i = 0`, has the squared length `v'Gv`
///
/// An input is the median itself if the pull of the others on it, `|Σ a_i (x_i - x_k) / |x_i -
/// x_k||`, is less than its own weight. This is checked first, because the iteration approaches
/// such a point ever more slowly. An iterate that meets another input leaves it by the step of
/// Vardi and Zhang (2000). The residual is the gradient's length with weights that sum to 1; it has
/// no unit.
///
/// The matrix is measured with twice the digits, because the central input is known only
/// afterwards: an input among the others, since a far one would lose their distances to rounding.
/// So the order of the inputs does not matter.
#[derive(Debug, Clone, PartialEq)]
pub struct GeometricMedian {
    weights: Vec<f64>,
    max_iter: u32,
    tol: f64,
}

/// Computes the pull of the inputs that are not at input `k`: the length of `Σ a_i (x_i - x_k)
/// / |x_i - x_k|`.
fn pull(centered: &Centered, a: &[f64], k: usize) -> f64 {
    let mut v: Vec<f64> = (0..a.len())
        .map(|i| share(a[i], centered.square(i, k), 0.0))
        .collect();
    v[k] -= v.iter().sum::<f64>();
    centered.length(&v)
}

/// Computes `a / |distance|`; 0 for a squared distance of at most `none`.
fn share(a: f64, square: f64, none: f64) -> f64 {
    if square <= none {
        0.0
    } else {
        a / square.sqrt()
    }
}

impl GeometricMedian {
    /// The default limit of steps in a recipe.
    pub const MAX_ITER: u32 = 1000;

    /// The default tolerance in a recipe: the length of a gradient that counts as converged.
    pub const TOL: f64 = 1e-12;

    /// Makes the median with these weights; only their ratios matter. `max_iter` 0 gives the
    /// weighted mean unless an input is the median itself.
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

    /// Finds the input that is the median, if there is one: the first of those at the same place.
    fn at_input(&self, distances: &Centered) -> Option<usize> {
        let a = &self.weights;
        (0..a.len()).filter(|k| a[*k] > 0.0).find(|&k| {
            let own: f64 = (0..a.len())
                .filter(|i| distances.square(*i, k) == 0.0)
                .map(|i| a[i])
                .sum();
            pull(distances, a, k) < own * (1.0 - CLEARLY)
        })
    }

    /// Computes the gradient at `c` in coefficients, and Weiszfeld's total weight.
    fn gradient(&self, distances: &Centered, c: &[f64]) -> (Vec<f64>, f64) {
        let squares: Vec<(f64, f64)> = distances
            .to_point(c)
            .into_iter()
            .map(|(square, terms)| (square, terms * AT_INPUT))
            .collect();
        let shares: Vec<f64> = self
            .weights
            .iter()
            .zip(&squares)
            .map(|(a, (square, none))| share(*a, *square, *none))
            .collect();
        let total: f64 = shares.iter().sum();
        let mut gradient: Vec<f64> = shares
            .iter()
            .zip(c)
            .map(|(share, c)| total * c - share)
            .collect();
        let at = |(a, (square, none)): (&f64, &(f64, f64))| if square <= none { *a } else { 0.0 };
        let met: f64 = self.weights.iter().zip(&squares).map(at).sum();
        if met > 0.0 {
            // Vardi and Zhang: the input's own weight holds the iterate back, with less force than
            // the others pull.
            let pull = distances.length(&gradient);
            let free = if pull > met { 1.0 - met / pull } else { 0.0 };
            gradient.iter_mut().for_each(|g| *g *= free);
        }
        (gradient, total)
    }

    fn iterate(&self, distances: &Centered) -> (Vec<f64>, u32, f64, Stop) {
        let mut c = self.weights.clone();
        let mut best = (f64::INFINITY, 0, c.clone());
        let mut iterations = 0;
        loop {
            let (gradient, total) = self.gradient(distances, &c);
            let residual = distances.length(&gradient);
            if residual < best.0 {
                best = (residual, iterations, c.clone());
            }
            if residual <= self.tol {
                return (c, iterations, residual, Stop::Converged);
            }
            if iterations == self.max_iter {
                return (c, iterations, residual, Stop::MaxIterations);
            }
            if best.0 < FLOOR && iterations - best.1 >= PATIENCE {
                return (best.2, best.1, best.0, Stop::Floor);
            }
            c.iter_mut()
                .zip(&gradient)
                .for_each(|(c, g)| *c -= g / total);
            let sum: f64 = c.iter().sum();
            c.iter_mut().for_each(|c| *c /= sum);
            iterations += 1;
        }
    }
}

impl Method for GeometricMedian {
    fn name(&self) -> &'static str {
        "geometric_median"
    }

    fn statistics(&self) -> Statistics {
        Statistics::Wide
    }

    fn shares(&self) -> Vec<Option<f64>> {
        weights::shares(&self.weights, None)
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        gram.check(self.name(), self.weights.len())?;
        let exact =
            |coefficients, flags| Solution::exact(self.name(), gram, None, coefficients, flags);
        let distances = Centered::new(gram, &self.weights);
        if distances.largest() == 0.0 {
            return exact(
                self.weights.clone(),
                Flags {
                    equal_inputs: gram.n() > 1,
                    ..Flags::default()
                },
            );
        }
        if let Some(k) = self.at_input(&distances) {
            return exact(
                (0..gram.n()).map(|i| f64::from(u8::from(i == k))).collect(),
                Flags::default(),
            );
        }
        let (c, iterations, residual, stop) = self.iterate(&distances);
        Ok(exact(c, Flags::default())?.iterated(iterations, residual, stop))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, combine, gram};
    use super::*;

    fn solve(weights: &[f64], inputs: &[Vec<f64>]) -> (Vec<f64>, Solution) {
        let median = GeometricMedian::new(weights, GeometricMedian::MAX_ITER, GeometricMedian::TOL)
            .expect("valid");
        let solution = median.solve(&gram(inputs)).expect("finite");
        (combine(&solution.coefficients, inputs), solution)
    }

    #[test]
    fn a_triangle_gives_its_fermat_point() {
        // Equilateral: the centre. The sides of an isosceles one see the point under 120 degrees.
        let (centre, _) = solve(
            &[1.0; 3],
            &[vec![0.0, 0.0], vec![2.0, 0.0], vec![1.0, 3f64.sqrt()]],
        );
        assert_close(&centre, &[1.0, 1.0 / 3f64.sqrt()], 1e-14);
        let (point, solution) = solve(
            &[1.0; 3],
            &[vec![-1.0, 0.0], vec![1.0, 0.0], vec![0.0, 5.0]],
        );
        assert_close(&point, &[0.0, 1.0 / 3f64.sqrt()], 1e-11);
        assert_eq!(solution.facts.stop, Stop::Converged);
    }

    #[test]
    fn a_median_at_an_input_is_that_input_exactly() {
        let (_, wide) = solve(
            &[1.0; 3],
            &[vec![-5.0, 0.0], vec![5.0, 0.0], vec![0.0, 0.1]],
        );
        assert_eq!(
            (wide.coefficients, wide.facts.stop),
            (vec![0.0, 0.0, 1.0], Stop::Exact)
        );
        let (_, line) = solve(&[1.0; 3], &[vec![0.0], vec![10.0], vec![1.0]]);
        assert_eq!(line.coefficients, [0.0, 0.0, 1.0]);
        let (_, heavy) = solve(&[0.6, 0.4], &[vec![0.0], vec![10.0]]);
        assert_eq!(heavy.coefficients, [1.0, 0.0]);
        let twins = [
            vec![1.0, 0.0],
            vec![0.0, 3.0],
            vec![0.0, 3.0],
            vec![4.0, 4.0],
        ];
        assert_eq!(
            solve(&[1.0; 4], &twins).1.coefficients,
            [0.0, 1.0, 0.0, 0.0]
        );
    }

    #[test]
    fn two_equal_weights_give_the_middle() {
        let (middle, solution) = solve(&[1.0, 1.0], &[vec![0.0, 2.0], vec![4.0, 2.0]]);
        assert_close(&middle, &[2.0, 2.0], 1e-15);
        assert_eq!(solution.facts.iterations, 0);
    }

    #[test]
    fn a_start_that_meets_an_input_leaves_it_again() {
        // The weighted mean of these is input 2, which is not the median.
        let inputs = [
            vec![-3.0, 0.0],
            vec![1.5, 2.0],
            vec![0.0, 0.0],
            vec![1.5, -2.0],
        ];
        let weights = [1.0, 1.0, 0.01, 1.0];
        let (point, solution) = solve(&weights, &inputs);
        let cost = |y: &[f64]| -> f64 {
            let distance = |x: &Vec<f64>| (x[0] - y[0]).hypot(x[1] - y[1]);
            inputs
                .iter()
                .zip(weights)
                .map(|(x, a)| a * distance(x))
                .sum()
        };
        assert!((solution.coefficients.iter().sum::<f64>() - 1.0).abs() < 1e-14);
        assert!(solution.facts.stop != Stop::MaxIterations && solution.facts.iterations > 0);
        for (x, y) in [
            (1e-3, 0.0),
            (-1e-3, 0.0),
            (0.0, 1e-3),
            (0.0, -1e-3),
            (-1.0, 0.0),
        ] {
            assert!(
                cost(&point) <= cost(&[point[0] + x, point[1] + y]),
                "{point:?}"
            );
        }
    }

    #[test]
    fn equal_inputs_get_their_weights_and_a_flag() {
        let (_, solution) = solve(&[1.0, 3.0], &[vec![0.1, 0.7], vec![0.1, 0.7]]);
        assert_eq!(solution.coefficients, [0.25, 0.75]);
        assert!(solution.facts.flags.equal_inputs);
        let (_, single) = solve(&[2.0], &[vec![0.1, 0.7]]);
        assert_eq!(single.coefficients, [1.0]);
        assert!(!single.facts.flags.equal_inputs);
    }

    #[test]
    fn an_input_of_weight_zero_has_no_say() {
        let triangle = [
            vec![0.0, 0.0],
            vec![2.0, 0.0],
            vec![1.0, 3f64.sqrt()],
            vec![100.0, 0.0],
        ];
        let (point, _) = solve(&[1.0, 1.0, 1.0, 0.0], &triangle);
        assert_close(&point, &[1.0, 1.0 / 3f64.sqrt()], 1e-14);
        let first = [
            vec![100.0, 0.0],
            vec![0.0, 0.0],
            vec![2.0, 0.0],
            vec![1.0, 3f64.sqrt()],
        ];
        assert_close(
            &solve(&[0.0, 1.0, 1.0, 1.0], &first).0,
            &[1.0, 1.0 / 3f64.sqrt()],
            1e-13,
        );
    }

    #[test]
    fn no_steps_give_the_weighted_mean() {
        let inputs = [vec![-1.0, 0.0], vec![1.0, 0.0], vec![0.0, 5.0]];
        let median = GeometricMedian::new(&[1.0; 3], 0, 1e-12).expect("valid");
        let solution = median.solve(&gram(&inputs)).expect("finite");
        assert_close(&solution.coefficients, &[1.0 / 3.0; 3], 0.0);
        assert!(solution.facts.flags.not_converged);
    }

    #[test]
    fn bad_parameters_are_refused() {
        assert!(GeometricMedian::new(&[-1.0, 2.0], 10, 1e-12).is_err());
        assert!(GeometricMedian::new(&[1.0], 10, f64::NAN).is_err());
    }
}
