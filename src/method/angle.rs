//! Trigonometry of angles that are given by `1 - cos θ`.
//!
//! The platform's `sin`, `acos` and the like may differ in the last bit between C libraries and
//! between CPUs with and without fused multiply-add, and one bit in a coefficient can change the
//! rounding of an output element. These functions use only operations that IEEE 754 fixes to the
//! bit. They take the *defect* `δ = 1 - cos θ` because `cos θ` itself has no digits left for small
//! angles.

use std::f64::consts::FRAC_PI_2;

/// Computes `Σ_k 4^k (k!)² / (2k+1)! y^k`, which is `θ / sin θ` at `y = sin²(θ/2)` (Abramowitz &
/// Stegun 4.4.43 and 15.1.6).
///
/// All terms are positive, so nothing cancels. Halving the angle first makes the series short.
fn series(mut y: f64) -> f64 {
    let mut factor = 1.0;
    while y > 0.0625 {
        let cos_half = (1.0 - y).sqrt();
        factor /= cos_half;
        y /= 2.0 * (1.0 + cos_half);
    }
    let (mut sum, mut term, mut k) = (1.0, 1.0, 0.0);
    while term > f64::EPSILON * 0.125 {
        term *= y * (2.0 * k + 2.0) / (2.0 * k + 3.0);
        sum += term;
        k += 1.0;
    }
    factor * sum
}

/// Computes `θ / sin θ` of the angle with `δ = 1 - cos θ`; infinite at `δ = 2`.
pub(super) fn theta_over_sin(defect: f64) -> f64 {
    series(defect / 2.0)
}

/// Computes the angle in `[0, π]` with `δ = 1 - cos θ`.
pub(super) fn theta(defect: f64) -> f64 {
    let y = (defect / 2.0).min(1.0);
    // θ = 2 (θ/2), and sin(θ/2) = √y, sin²(θ/4) = y / (2 (1 + cos(θ/2)))
    2.0 * y.sqrt() * series(y / (2.0 * (1.0 + (1.0 - y).sqrt())))
}

/// Computes sine and cosine of `x`.
///
/// Exact to a few units in the last place of 1 for the angles of a merge, `|x| ≤ π`.
pub(super) fn sin_cos(x: f64) -> (f64, f64) {
    if x.abs() > FRAC_PI_2 {
        let (sin, cos) = sin_cos(x / 2.0);
        return (2.0 * sin * cos, 1.0 - 2.0 * sin * sin);
    }
    let square = x * x;
    let (mut sin, mut cos) = (1.0, 1.0);
    for k in (1..=13).rev() {
        let even = 2.0 * f64::from(k);
        sin = 1.0 - square / (even * (even + 1.0)) * sin;
        cos = 1.0 - square / (even * (even - 1.0)) * cos;
    }
    (x * sin, cos)
}

/// Computes `sin x / x`, 1 at 0.
pub(super) fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { sin_cos(x).0 / x }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep() -> impl Iterator<Item = f64> {
        let small = (1..60).map(|k| 0.5f64.powi(k));
        small.chain((1..628).map(|k| f64::from(k) * 0.005))
    }

    #[test]
    fn sine_and_cosine_agree_with_the_platform() {
        for x in sweep().flat_map(|x| [x, -x]) {
            let (sin, cos) = sin_cos(x);
            // Two halvings at most, each doubling an error of one unit in the last place of 1.
            assert!(
                (sin - x.sin()).abs() <= 1e-15,
                "sin {x}: wanted {}, got {sin}",
                x.sin()
            );
            assert!(
                (cos - x.cos()).abs() <= 1e-15,
                "cos {x}: wanted {}, got {cos}",
                x.cos()
            );
            assert!((sinc(x) - x.sin() / x).abs() <= 1e-15, "sinc {x}");
        }
        assert_eq!(sinc(0.0), 1.0);
    }

    #[test]
    fn an_angle_comes_back_from_its_defect_also_when_it_is_tiny() {
        for x in sweep() {
            let defect = 2.0 * (x / 2.0).sin().powi(2);
            // Near π the defect keeps only half of the angle's digits.
            let tolerance = 4e-16 * x / (x / 2.0).cos().max(1e-8);
            assert!(
                (theta(defect) - x).abs() <= tolerance + 1e-15 * x,
                "wanted {x}, got {}",
                theta(defect)
            );
        }
        assert_eq!(theta(0.0), 0.0);
        assert!((theta(2.0) - std::f64::consts::PI).abs() <= 1e-15);
    }

    #[test]
    fn theta_over_sin_keeps_its_digits_from_zero_to_nearly_pi() {
        for x in sweep().filter(|x| *x < 3.0) {
            let defect = 2.0 * (x / 2.0).sin().powi(2);
            let wanted = x / x.sin();
            let tolerance = 1e-15 / (x / 2.0).cos().powi(2);
            assert!(
                (theta_over_sin(defect) / wanted - 1.0).abs() <= tolerance,
                "at {x}"
            );
        }
        assert_eq!(theta_over_sin(0.0), 1.0);
    }

    #[test]
    fn a_defect_of_two_ends_in_infinity_not_in_a_loop() {
        assert_eq!(theta_over_sin(2.0), f64::INFINITY);
    }
}
