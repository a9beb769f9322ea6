//! Small Gram matrices from vectors, for the tests of the solvers.

use super::Gram;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Computes the Gram matrix of `inputs`.
pub(super) fn gram(inputs: &[Vec<f64>]) -> Gram {
    let n = inputs.len();
    let sums = (0..n).flat_map(|i| (i..n).map(move |j| dot(&inputs[i], &inputs[j])));
    Gram::from_sums(n, sums.collect())
}

/// Computes the Gram matrix of `inputs` centred on input `b`.
pub(super) fn gram_centered(inputs: &[Vec<f64>], b: usize) -> Gram {
    let centered: Vec<Vec<f64>> = inputs
        .iter()
        .enumerate()
        .map(|(i, input)| {
            if i == b {
                input.clone()
            } else {
                input
                    .iter()
                    .zip(&inputs[b])
                    .map(|(x, base)| x - base)
                    .collect()
            }
        })
        .collect();
    gram(&centered)
}

/// Computes `Σ c_i x_i`.
pub(super) fn combine(coefficients: &[f64], inputs: &[Vec<f64>]) -> Vec<f64> {
    assert_eq!(coefficients.len(), inputs.len());
    (0..inputs[0].len())
        .map(|k| {
            coefficients
                .iter()
                .zip(inputs)
                .map(|(c, input)| c * input[k])
                .sum()
        })
        .collect()
}

/// Fails unless every element is within `tolerance` of `wanted`.
pub(super) fn assert_close(got: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(got.len(), wanted.len());
    for (k, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert!(
            (got - wanted).abs() <= tolerance,
            "element {k}: wanted {wanted}, got {got}"
        );
    }
}
