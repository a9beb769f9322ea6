//! The inputs as points of the unit sphere, given by their inner products only.

use super::Gram;

/// The share of its terms below which a difference of squares is only rounding.
const ROUNDING: f64 = 16.0 * f64::EPSILON;

/// The norms of N inputs, and cosine and defect `1 - cos` of every pair of their directions.
///
/// A zero input has no direction. Its rows are those of a vector at right angles to all others, and
/// are never used, because its coefficient in any point is zero.
#[derive(Debug)]
pub(super) struct Directions {
    norms: Vec<f64>,
    /// True for inputs whose norm and direction are lost in the rounding of a far larger centre.
    lost: Vec<bool>,
    cosines: Vec<f64>,
    defects: Vec<f64>,
}

/// A point `Σ y_i u_i` in the span of the directions.
pub(super) struct Point {
    /// The norm of the point.
    pub(super) norm: f64,
    /// The defect `1 - cos` of its angle to each direction.
    pub(super) defects: Vec<f64>,
}

/// One sum of products in both forms, with the magnitude that bounds its rounding error.
#[derive(Default)]
struct Row {
    cosine: f64,
    cosine_bound: f64,
    defect: f64,
    defect_bound: f64,
}

impl Directions {
    /// Computes the directions of the inputs of `gram`, which is centred on input `center` if there
    /// is one.
    pub(super) fn new(gram: &Gram, center: Option<usize>) -> Self {
        let n = gram.n();
        let raw = center.map_or_else(|| gram.clone(), |b| gram.uncentered(b));
        let (norms, lost): (Vec<f64>, Vec<bool>) =
            (0..n).map(|i| raw_norm(gram, &raw, center, i)).unzip();
        let (mut cosines, mut defects) = (vec![0.0; n * n], vec![1.0; n * n]);
        for i in 0..n {
            for j in i..n {
                if norms[i] == 0.0 || norms[j] == 0.0 {
                    continue;
                }
                let defect = match center {
                    _ if i == j => 0.0,
                    Some(b) => centered_defect(gram, b, &norms, i, j),
                    None => raw_defect(gram, &norms, i, j),
                };
                let cosine = if defect < 0.5 {
                    1.0 - defect
                } else {
                    raw.get(i, j) / norms[i] / norms[j]
                };
                for at in [i * n + j, j * n + i] {
                    defects[at] = defect;
                    cosines[at] = cosine.clamp(-1.0, 1.0);
                }
            }
        }
        Self {
            norms,
            lost,
            cosines,
            defects,
        }
    }

    /// True if the direction of input `i` is more than rounding.
    pub(super) fn is_known(&self, i: usize) -> bool {
        !self.lost[i]
    }

    /// Returns the norms of the raw inputs.
    pub(super) fn norms(&self) -> &[f64] {
        &self.norms
    }

    /// Returns `1 - cos` of the angle between inputs `i` and `j`.
    pub(super) fn defect(&self, i: usize, j: usize) -> f64 {
        self.defects[i * self.norms.len() + j]
    }

    /// Returns the cosine of the angle between inputs `i` and `j`.
    pub(super) fn cosine(&self, i: usize, j: usize) -> f64 {
        self.cosines[i * self.norms.len() + j]
    }

    /// Computes `Σ_j G_ij y_j` and `Σ_j E_ij y_j`, with the cosines G and the defects E.
    fn row(&self, i: usize, y: &[f64]) -> Row {
        let n = y.len();
        let (cosines, defects) = (
            &self.cosines[i * n..(i + 1) * n],
            &self.defects[i * n..(i + 1) * n],
        );
        let mut row = Row::default();
        for ((y, cosine), defect) in y.iter().zip(cosines).zip(defects) {
            if *y == 0.0 {
                continue;
            }
            row.cosine += cosine * y;
            row.cosine_bound += (cosine * y).abs();
            row.defect += defect * y;
            row.defect_bound += (defect * y).abs();
        }
        row
    }

    /// Computes the point `Σ y_i u_i`.
    ///
    /// With `σ = Σ y_i`, `E = 1 - G` and `q = y'Ey`, norm and defects have two forms each, equal in
    /// exact arithmetic:
    ///
    /// - `|x|² = y'Gy = σ² - q`
    /// - `1 - cos(x, u_i) = 1 - (Gy)_i / |x| = ((Ey)_i - q / (|x| + σ)) / |x|`
    ///
    /// For nearly parallel inputs, such as fine-tunes, the terms of the first form are near 1 and
    /// cancel, and those of the second are as small as the result. For inputs far apart it is the
    /// other way round. So both are summed, and the form with the smaller bound on its rounding
    /// error is used.
    pub(super) fn point(&self, y: &[f64]) -> Point {
        let largest = y.iter().fold(0.0, |largest: f64, y| largest.max(y.abs()));
        if largest == 0.0 || !largest.is_finite() {
            return Point {
                norm: largest,
                defects: vec![1.0; y.len()],
            };
        }
        let y: Vec<f64> = y.iter().map(|y| y / largest).collect();
        let rows: Vec<Row> = (0..y.len()).map(|i| self.row(i, &y)).collect();
        let sum: f64 = y.iter().sum();
        let mut total = Row::default();
        for (y, row) in y.iter().zip(&rows).filter(|(y, _)| **y != 0.0) {
            total.cosine += y * row.cosine;
            total.cosine_bound += y.abs() * row.cosine_bound;
            total.defect += y * row.defect;
            total.defect_bound += y.abs() * row.defect_bound;
        }
        let by_defects = sum * sum + total.defect_bound < total.cosine_bound;
        let square = if by_defects {
            sum * sum - total.defect
        } else {
            total.cosine
        };
        let norm = square.max(0.0).sqrt();
        if norm == 0.0 {
            return Point {
                norm,
                defects: vec![1.0; y.len()],
            };
        }
        let half = total.defect / (norm + sum);
        let defects = rows.iter().map(|row| {
            let by_defects = sum > 0.0 && row.defect_bound + half.abs() < norm + row.cosine_bound;
            let scaled = if by_defects {
                row.defect - half
            } else {
                norm - row.cosine
            };
            (scaled / norm).clamp(0.0, 2.0)
        });
        Point {
            norm: norm * largest,
            defects: defects.collect(),
        }
    }

    /// Computes the norm of `Σ y_i u_i`.
    pub(super) fn norm(&self, y: &[f64]) -> f64 {
        self.point(y).norm
    }
}

/// Computes the norm of input `i`, and true if it is lost. For an input `b + d` far smaller than
/// the centre `b`, rounding decides `|b|² + 2 b·d + |d|²`, and even its sign. A lost norm is set to
/// the rounding of the centre, so that it is not zero; a zero input is recognised by `d = -b`, to
/// the bit.
fn raw_norm(gram: &Gram, raw: &Gram, center: Option<usize>, i: usize) -> (f64, bool) {
    let square = raw.get(i, i);
    let Some(b) = center.filter(|b| *b != i) else {
        return (square.sqrt(), false);
    };
    let (base, delta) = (gram.get(b, b), gram.get(i, i));
    let rounding = (base + delta) * ROUNDING;
    if base == delta && gram.get(b, i) == -base {
        return (0.0, false);
    }
    if square > rounding {
        (square.min(f64::MAX).sqrt(), false)
    } else {
        (rounding.sqrt(), true)
    }
}

/// Computes `1 - cos` of a pair from a matrix that is not centred.
fn raw_defect(gram: &Gram, norms: &[f64], i: usize, j: usize) -> f64 {
    let (first, second, product) = (gram.get(i, i), gram.get(j, j), gram.get(i, j));
    // Square roots do not multiply back exactly; equal inputs must come out equal.
    if first == product && second == product {
        0.0
    } else {
        (1.0 - product / norms[i] / norms[j]).clamp(0.0, 2.0)
    }
}

/// Computes `1 - cos` of a pair from a matrix centred on `b`, without subtracting nearly equal
/// numbers: `2 |x_i| |x_j| (1 - cos) = |x_i - x_j|² - (|x_i| - |x_j|)²`.
fn centered_defect(gram: &Gram, b: usize, norms: &[f64], i: usize, j: usize) -> f64 {
    let delta = |i: usize, j: usize| {
        if i == b || j == b {
            0.0
        } else {
            gram.get(i, j)
        }
    };
    // |x_i|² - |x_b|²
    let growth = |i: usize| {
        if i == b {
            0.0
        } else {
            2.0 * gram.get(b, i) + gram.get(i, i)
        }
    };
    let apart = delta(i, i) - 2.0 * delta(i, j) + delta(j, j);
    let norms_apart = (growth(i) - growth(j)) / (norms[i] + norms[j]);
    ((apart - norms_apart * norms_apart) / norms[i] / norms[j] / 2.0).clamp(0.0, 2.0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gram, gram_centered};
    use super::*;

    #[test]
    fn both_kinds_of_matrix_give_the_same_directions() {
        let inputs = [
            vec![1.0, 2.0, -1.0],
            vec![0.5, 2.5, 0.25],
            vec![-3.0, 1.0, 1.0],
        ];
        let raw = Directions::new(&gram(&inputs), None);
        for b in 0..3 {
            let centered = Directions::new(&gram_centered(&inputs, b), Some(b));
            for i in 0..3 {
                assert!((raw.norms[i] - centered.norms[i]).abs() < 1e-14);
                for j in 0..3 {
                    assert!(
                        (raw.defect(i, j) - centered.defect(i, j)).abs() < 1e-15,
                        "b {b} pair {i} {j}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_point_between_nearly_parallel_inputs_keeps_the_digits_of_its_angles() {
        // Directions at angles 0 and 1e-7: the middle is 5e-8 from both.
        let defect = 2.0 * (0.5e-7f64).sin().powi(2);
        let directions = Directions {
            norms: vec![1.0; 2],
            lost: vec![false; 2],
            cosines: vec![1.0; 4],
            defects: vec![0.0, defect, defect, 0.0],
        };
        let point = directions.point(&[0.5, 0.5]);
        for defect in &point.defects {
            let angle = super::super::angle::theta(*defect);
            assert!(
                (angle / 5e-8 - 1.0).abs() < 1e-12,
                "wanted 5e-8, got {angle}"
            );
        }
    }

    #[test]
    fn a_point_far_from_every_input_is_measured_by_cosines() {
        let inputs: Vec<Vec<f64>> = (0..4)
            .map(|i| (0..4).map(|k| f64::from(u8::from(i == k))).collect())
            .collect();
        let point = Directions::new(&gram(&inputs), None).point(&[1.0, -1.0, 0.0, 0.0]);
        assert!((point.norm - 2f64.sqrt()).abs() < 1e-15);
        assert!((point.defects[0] - (1.0 - 0.5f64.sqrt())).abs() < 1e-15);
        assert!((point.defects[1] - (1.0 + 0.5f64.sqrt())).abs() < 1e-15);
        assert_eq!(point.defects[2], 1.0);
    }

    #[test]
    fn huge_and_tiny_parts_do_not_overflow() {
        let directions = Directions::new(&gram(&[vec![1.0, 0.0], vec![0.0, 1.0]]), None);
        assert!((directions.point(&[3e300, 4e300]).norm / 5e300 - 1.0).abs() < 1e-15);
        assert!((directions.point(&[3e-300, 4e-300]).norm / 5e-300 - 1.0).abs() < 1e-15);
        assert_eq!(directions.point(&[0.0, 0.0]).norm, 0.0);
    }
}
