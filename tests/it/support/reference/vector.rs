//! Sums over whole vectors, compensated.

/// The sum of `terms` (Neumaier 1974).
pub fn sum(terms: impl Iterator<Item = f64>) -> f64 {
    let (mut total, mut lost) = (0.0f64, 0.0f64);
    for term in terms {
        let next = total + term;
        lost += if total.abs() >= term.abs() {
            (total - next) + term
        } else {
            (term - next) + total
        };
        total = next;
    }
    total + lost
}

/// The inner product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    sum(a.iter().zip(b).map(|(a, b)| a * b))
}

/// The norm.
pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// The norm of the difference.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

/// `Σ c_i x_i`.
pub fn combine(coefficients: &[f64], inputs: &[&[f64]]) -> Vec<f64> {
    assert_eq!(coefficients.len(), inputs.len());
    (0..inputs[0].len())
        .map(|k| sum(coefficients.iter().zip(inputs).map(|(c, x)| c * x[k])))
        .collect()
}

/// `a x`.
pub fn scaled(a: f64, x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| a * x).collect()
}

#[test]
fn sums_keep_what_plain_addition_loses() {
    assert_eq!(sum([1e16, 1.0, -1e16].into_iter()), 1.0);
    assert_eq!(dot(&[1e8, 1.0, -1e8], &[1e8, 1.0, 1e8]), 1.0);
    assert_eq!(norm(&[3.0, 4.0]), 5.0);
    assert_eq!(distance(&[4.0, 4.0], &[1.0, 0.0]), 5.0);
    assert_eq!(
        combine(&[2.0, -1.0], &[&[1.0, 2.0], &[0.5, 4.0]]),
        [1.5, 0.0]
    );
}
