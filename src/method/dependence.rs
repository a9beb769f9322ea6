//! Removes the null-space part of coefficients when directions are linearly dependent.

use super::directions::Directions;

/// The ridge ε per input on the cosine matrix's diagonal: above the rounding of its eigenvalues,
/// far below the eigenvalues of inputs that differ.
const RIDGE: f64 = 1e-13;

/// The sum of absolute coefficients above which a unit vector may have a null-space part; for N
/// orthogonal directions it is at most √N.
const LARGE: f64 = 64.0;

/// The share of the sum of absolute coefficients below which a length may be rounding: squares
/// cancel to 1e-16.
const CANCELLED: f64 = 1e-6;

/// The Cholesky factor of `G + ε`, the cosine matrix of the inputs that take part.
struct Factor {
    n: usize,
    ridge: f64,
    lower: Vec<f64>,
}

impl Factor {
    fn new(directions: &Directions, a: &[f64]) -> Self {
        let n = a.len();
        let ridge = a.iter().fold(0.0, |ridge, _| ridge + RIDGE);
        let entry = |i: usize, j: usize| match (i == j, a[i] > 0.0 && a[j] > 0.0) {
            (true, _) => 1.0 + ridge,
            (false, true) => directions.cosine(i, j),
            (false, false) => 0.0,
        };
        let mut lower = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let known: f64 = (0..j).map(|k| lower[i * n + k] * lower[j * n + k]).sum();
                let left = entry(i, j) - known;
                lower[i * n + j] = if i == j {
                    left.max(ridge / 2.0).sqrt()
                } else {
                    left / lower[j * n + j]
                };
            }
        }
        Self { n, ridge, lower }
    }

    /// Computes `ε (G + ε)⁻¹ c`: the part of `c` in directions whose eigenvalue is below ε.
    fn damped(&self, c: &[f64]) -> Vec<f64> {
        let at = |i: usize, j: usize| self.lower[i * self.n + j];
        let mut x: Vec<f64> = c.iter().map(|c| c * self.ridge).collect();
        for i in 0..self.n {
            let known: f64 = (0..i).map(|k| at(i, k) * x[k]).sum();
            x[i] = (x[i] - known) / at(i, i);
        }
        for i in (0..self.n).rev() {
            let known: f64 = (i + 1..self.n).map(|k| at(k, i) * x[k]).sum();
            x[i] = (x[i] - known) / at(i, i);
        }
        x
    }
}

/// True if `c`, the coefficients of a vector about `length` long (at most 4), may lie mostly in the
/// null space.
pub(super) fn may_be_null(c: &[f64], length: f64) -> bool {
    let size = c.iter().map(|c| c.abs()).sum::<f64>();
    size > LARGE || length < CANCELLED * size
}

/// Removes from `c` its part in the null space of the cosine matrix of the inputs with a weight
/// `a`.
///
/// The point `Σ c_i u_i` does not move, up to the rounding of the removed part. The part at an
/// eigenvalue λ shrinks by its share `(ε / (λ + ε))²`.
pub(super) fn without_null_part(directions: &Directions, a: &[f64], mut c: Vec<f64>) -> Vec<f64> {
    let factor = Factor::new(directions, a);
    // Rounding gives the null space eigenvalues up to a hundredth of ε; the second round removes
    // the rest of their part.
    for _ in 0..2 {
        let null = factor.damped(&factor.damped(&c));
        c.iter_mut()
            .zip(&null)
            .zip(a)
            .filter(|(_, a)| **a > 0.0)
            .for_each(|((c, null), _)| *c -= null);
    }
    c
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, combine, gram};
    use super::*;

    #[test]
    fn a_combination_that_is_zero_goes_and_the_point_stays() {
        // u_2 = (u_0 + u_1) / √2, and u_3 takes no part
        let half = 0.5f64.sqrt();
        let inputs = [
            vec![1.0, 0.0],
            vec![0.0, 1.0],
            vec![half, half],
            vec![1.0, 0.0],
        ];
        let directions = Directions::new(&gram(&inputs), None);
        let c = [1e4 * half + 0.3, 1e4 * half, -1e4, 0.0];
        let got = without_null_part(&directions, &[0.3, 0.3, 0.4, 0.0], c.to_vec());
        assert!(got.iter().all(|c| c.abs() < 1.0), "{got:?}");
        assert_eq!(got[3], 0.0);
        assert_close(&combine(&got, &inputs), &[0.3, 0.0], 1e-11);
    }

    #[test]
    fn coefficients_are_suspect_when_large_or_when_their_vector_vanishes() {
        assert!(!may_be_null(&[0.7, -0.7], 1.0));
        assert!(may_be_null(&[70.0, -70.0], 1.0));
        assert!(may_be_null(&[0.7, -0.7], 1e-8));
        assert!(!may_be_null(&[1e-9, -1e-9], 1e-9));
    }

    #[test]
    fn independent_directions_keep_their_coefficients_also_when_nearly_opposite() {
        let inputs = [vec![1.0, 1e-4], vec![-1.0, 1e-4]];
        let directions = Directions::new(&gram(&inputs), None);
        let got = without_null_part(&directions, &[0.5, 0.5], vec![5e3, 5e3]);
        assert_close(&got, &[5e3, 5e3], 1e-6);
    }
}
