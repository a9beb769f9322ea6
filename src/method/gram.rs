//! The inner products of N tensors.

use serde::{Deserialize, Serialize};

use super::number;
use crate::error::{Error, Kind, Result};
use crate::kernel::{add_compensated, pair_count, pair_index, two_sum};

/// Inner products of N tensors in f64, symmetric, kept as the upper triangle in rows: `(0,0) (0,1)
/// … (1,1) (1,2) …`.
///
/// Chunk sums are folded in with [`Gram::add`] strictly in the order of the calls. The fold is
/// compensated, so its error does not grow with the number of chunks: a whole model is as exact as
/// one chunk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gram {
    n: usize,
    #[serde(with = "number::list")]
    sums: Vec<f64>,
    #[serde(with = "number::list")]
    carries: Vec<f64>,
}

impl Gram {
    /// Makes the matrix of N tensors without elements: all zero.
    pub fn new(n: usize) -> Self {
        Self {
            n,
            sums: vec![0.0; pair_count(n)],
            carries: vec![0.0; pair_count(n)],
        }
    }

    /// Makes the matrix with these sums.
    ///
    /// # Panics
    ///
    /// When the number of sums is not [`pair_count`]`(n)`.
    pub fn from_sums(n: usize, sums: Vec<f64>) -> Self {
        assert_eq!(
            sums.len(),
            pair_count(n),
            "a Gram matrix of {n} inputs has n(n+1)/2 sums"
        );
        Self {
            n,
            carries: vec![0.0; sums.len()],
            sums,
        }
    }

    /// Returns the number of inputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Returns the inner product of inputs `i` and `j`.
    pub fn get(&self, i: usize, j: usize) -> f64 {
        let at = pair_index(self.n, i.min(j), i.max(j));
        self.sums[at] + self.carries[at]
    }

    /// Returns the norm of input `i`, or of its difference to the centre.
    pub fn norm(&self, i: usize) -> f64 {
        self.get(i, i).sqrt()
    }

    /// Returns the inner products as sums, in the order of [`Gram::from_sums`].
    pub fn sums(&self) -> Vec<f64> {
        self.sums
            .iter()
            .zip(&self.carries)
            .map(|(sum, carry)| sum + carry)
            .collect()
    }

    /// Returns an inner product as two numbers: its f64 value, and the rest that f64 loses.
    pub(super) fn wide(&self, i: usize, j: usize) -> [f64; 2] {
        let at = pair_index(self.n, i.min(j), i.max(j));
        two_sum(self.sums[at], self.carries[at])
    }

    /// Adds the sums of the next chunk. For sums with twice the digits, call it once for each half.
    ///
    /// # Panics
    ///
    /// When the number of sums is not [`pair_count`]`(n)`.
    pub fn add(&mut self, sums: &[f64]) {
        assert_eq!(
            sums.len(),
            self.sums.len(),
            "chunk sums are of as many inputs as the matrix"
        );
        for ((sum, carry), &next) in self.sums.iter_mut().zip(&mut self.carries).zip(sums) {
            add_compensated(sum, carry, next);
        }
    }

    /// Computes the inner products of the raw inputs from `self`, which is centred on input `b`.
    pub(super) fn uncentered(&self, b: usize) -> Self {
        let delta = |i: usize, j: usize| {
            if i == b || j == b {
                0.0
            } else {
                self.get(i, j)
            }
        };
        let with_base = |i: usize| if i == b { 0.0 } else { self.get(b, i) };
        let mut sums = Vec::with_capacity(self.sums.len());
        for i in 0..self.n {
            sums.extend(
                (i..self.n).map(|j| self.get(b, b) + (with_base(i) + with_base(j)) + delta(i, j)),
            );
        }
        Self::from_sums(self.n, sums)
    }

    /// Checks that the matrix is of `inputs` inputs and that every entry is finite.
    pub(super) fn check(&self, method: &'static str, inputs: usize) -> Result<()> {
        let what = || format!("cannot solve {method}");
        if self.n != inputs {
            let cause = format!(
                "the method was made for {inputs} inputs, the matrix is of {}",
                self.n
            );
            return Err(Error::new(Kind::Recipe, what(), "Gram matrix", cause));
        }
        for i in 0..self.n {
            for j in i..self.n {
                let sum = self.get(i, j);
                if !sum.is_finite() {
                    let cause = format!("is {sum}: the sum of products overflows f64");
                    let subject = format!("inner product of inputs {i} and {j}");
                    return Err(Error::new(Kind::NonFinite, what(), subject, cause));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_triangle_is_read_in_rows_from_both_sides() {
        let gram = Gram::from_sums(3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let rows: Vec<f64> = (0..9).map(|k| gram.get(k / 3, k % 3)).collect();
        assert_eq!(rows, [1.0, 2.0, 3.0, 2.0, 4.0, 5.0, 3.0, 5.0, 6.0]);
        assert_eq!(gram.norm(1), 2.0);
        assert_eq!(gram.sums(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn a_million_chunks_lose_nothing_that_one_sum_would_keep() {
        let mut gram = Gram::new(1);
        gram.add(&[1.0]);
        for _ in 0..1_000_000 {
            gram.add(&[1e-16]);
        }
        let wanted = 1.0 + 1e-10;
        assert!(
            (gram.get(0, 0) - wanted).abs() <= f64::EPSILON,
            "wanted {wanted}, got {}",
            gram.get(0, 0)
        );
    }

    #[test]
    fn one_chunk_gives_its_own_sums_bit_for_bit() {
        let mut gram = Gram::new(2);
        gram.add(&[0.1, -0.2, 0.3]);
        assert_eq!(gram.sums(), [0.1, -0.2, 0.3]);
    }

    #[test]
    fn an_overflowed_sum_is_an_error_that_names_the_pair() {
        let mut gram = Gram::from_sums(2, vec![1.0, f64::MAX, 1.0]);
        gram.add(&[0.0, f64::MAX, 0.0]);
        let error = gram.check("karcher", 2).expect_err("infinite entry");
        assert_eq!(error.kind(), Kind::NonFinite);
        assert!(error.to_string().contains("inputs 0 and 1"), "{error}");
    }

    #[test]
    fn another_number_of_inputs_is_an_error_with_both_numbers() {
        let error = Gram::new(3).check("linear", 2).expect_err("three inputs");
        assert!(
            error.to_string().contains("2 inputs") && error.to_string().contains("of 3"),
            "{error}"
        );
    }

    #[test]
    fn uncentring_gives_back_the_inner_products_of_the_inputs() {
        // b = (1, 2), x_0 = b + (1, 0), x_2 = b + (0, -1), centred on input 1
        let centered = Gram::from_sums(3, vec![1.0, 1.0, 0.0, 5.0, -2.0, 1.0]);
        assert_eq!(
            centered.uncentered(1).sums(),
            [8.0, 6.0, 4.0, 5.0, 3.0, 2.0]
        );
    }
}
