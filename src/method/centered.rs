//! Inner products of the inputs about one of them, from sums with twice the digits of f64.

use super::Gram;
use crate::kernel::two_sum;

/// The share of its terms below which a squared distance has cancelled and is computed by the exact
/// formula.
const CANCELLED: f64 = 1e-4;

/// Sums numbers that are each stored as two.
fn total(terms: &[[f64; 2]]) -> f64 {
    let (mut sum, mut lost) = (0.0, 0.0);
    for [high, low] in terms {
        let [next, rest] = two_sum(sum, *high);
        (sum, lost) = (next, lost + (rest + low));
    }
    sum + lost
}

fn negative([high, low]: [f64; 2]) -> [f64; 2] {
    [-high, -low]
}

/// Squared distances between the inputs, and the inner products `⟨x_i - x_p, x_j - x_p⟩` about an
/// input `p`.
///
/// About an input that lies among the others, near inputs have small products however far the rest
/// are, so results about them keep their digits.
pub(super) struct Centered {
    n: usize,
    squares: Vec<f64>,
    products: Vec<f64>,
}

impl Centered {
    /// Centres on the input with the least sum of distances to the others, weighted by `a`; the
    /// first of equals.
    pub(super) fn new(gram: &Gram, a: &[f64]) -> Self {
        let n = gram.n();
        let square = |i: usize, j: usize| {
            let crossed = negative(gram.wide(i, j));
            total(&[gram.wide(i, i), crossed, crossed, gram.wide(j, j)]).max(0.0)
        };
        let squares: Vec<f64> = (0..n * n)
            .map(|at| square((at / n).min(at % n), (at / n).max(at % n)))
            .collect();
        let far = |p: usize| -> f64 { (0..n).map(|i| a[i] * squares[p * n + i].sqrt()).sum() };
        let taking = (0..n).filter(|p| a[*p] > 0.0);
        let p = taking.fold(None, |best: Option<(usize, f64)>, p| match best {
            Some((_, least)) if least <= far(p) => best,
            _ => Some((p, far(p))),
        });
        let p = p.map_or(0, |(p, _)| p);
        let product = |i: usize, j: usize| {
            let (with_i, with_j) = (negative(gram.wide(i, p)), negative(gram.wide(j, p)));
            total(&[gram.wide(i, j), with_i, with_j, gram.wide(p, p)])
        };
        let products = (0..n * n)
            .map(|at| product((at / n).min(at % n), (at / n).max(at % n)))
            .collect();
        Self {
            n,
            squares,
            products,
        }
    }

    /// Returns the squared distance between two inputs.
    pub(super) fn square(&self, i: usize, j: usize) -> f64 {
        self.squares[i * self.n + j]
    }

    /// Returns the largest squared distance.
    pub(super) fn largest(&self) -> f64 {
        self.squares.iter().copied().fold(0.0, f64::max)
    }

    /// Computes `(Gv)_i` for every input.
    fn times(&self, v: &[f64]) -> Vec<f64> {
        self.products
            .chunks(self.n)
            .map(|row| row.iter().zip(v).map(|(g, v)| g * v).sum())
            .collect()
    }

    /// Computes the length of `Σ v_i x_i`, for `Σ v_i = 0`.
    pub(super) fn length(&self, v: &[f64]) -> f64 {
        let square: f64 = self.times(v).iter().zip(v).map(|(row, v)| row * v).sum();
        square.max(0.0).sqrt()
    }

    /// Computes the squared distances of the inputs to `Σ c_i x_i`, for `Σ c_i = 1`. Each comes
    /// with the size of its terms, squared: rounding may make a zero distance a small multiple of
    /// it.
    pub(super) fn to_point(&self, c: &[f64]) -> Vec<(f64, f64)> {
        let row = self.times(c);
        let own: f64 = row.iter().zip(c).map(|(row, c)| row * c).sum();
        let norms: Vec<f64> = (0..self.n)
            .map(|i| self.products[i * self.n + i].max(0.0).sqrt())
            .collect();
        let spread: f64 = c.iter().zip(&norms).map(|(c, norm)| (c * norm).abs()).sum();
        let square = |i: usize| {
            let quick = own - 2.0 * row[i] + norms[i] * norms[i];
            if quick > CANCELLED * (own + norms[i] * norms[i]) {
                return quick;
            }
            let mut away = c.to_vec();
            away[i] -= 1.0;
            self.length(&away).powi(2)
        };
        (0..self.n)
            .map(|i| (square(i), (spread + norms[i]).powi(2)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_near_together_far_out_keeps_its_digits() {
        // (1, 0), (1 + 2^-30, 0), (2^30, 1): sums of squares as two numbers each
        let small = 2f64.powi(-30);
        let far = 2f64.powi(30);
        let mut gram = Gram::new(3);
        gram.add(&[1.0, 1.0, far, 1.0, far, far * far]);
        gram.add(&[0.0, small, 0.0, 2.0 * small, 1.0, 1.0]);
        gram.add(&[0.0, 0.0, 0.0, small * small, 0.0, 0.0]);
        let centered = Centered::new(&gram, &[0.4, 0.4, 0.2]);
        assert_eq!(centered.square(0, 1), small * small);
        assert_eq!(centered.square(1, 1), 0.0);
        assert!((centered.length(&[1.0, -1.0, 0.0]) / small - 1.0).abs() < 1e-15);
        let [(at, _), (beside, _), _] = centered.to_point(&[1.0, 0.0, 0.0])[..] else {
            panic!("three")
        };
        assert_eq!((at, beside), (0.0, small * small));
    }
}
