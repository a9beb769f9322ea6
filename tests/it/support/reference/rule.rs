//! The methods, each as its formula stands, on whole vectors.

use super::vector::{combine, distance, dot, norm, scaled, sum};

/// A merge method and its parameters. Weights are one per input, a base's included, whose weight is
/// not used.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// Karcher mean of directions times the mean norm.
    Karcher { weights: Vec<f64>, max_iter: u32 },
    /// Weighted mean or sum.
    Linear { weights: Vec<f64>, normalize: bool },
    /// A single input, scaled.
    Passthrough { scale: f64 },
    /// Base plus weighted differences.
    TaskArithmetic {
        base: usize,
        weights: Vec<f64>,
        normalize: bool,
        lambda: f64,
    },
    /// Spherical interpolation from the base to the other input.
    Slerp { base: usize, t: f64 },
    /// Spherical interpolation by weights, of inputs or of differences.
    Nuslerp {
        weights: Vec<f64>,
        base: Option<usize>,
    },
    /// Mean direction times the mean norm, of inputs or of differences.
    Multislerp {
        weights: Vec<f64>,
        normalize: bool,
        eps: f64,
        base: Option<usize>,
    },
    /// Mean drawn towards the base.
    ModelStock { base: usize },
    /// The point with the smallest weighted sum of distances.
    GeometricMedian { weights: Vec<f64> },
}

impl Rule {
    /// The merge of the inputs.
    pub fn apply(&self, inputs: &[&[f64]]) -> Vec<f64> {
        match self {
            Self::Karcher { weights, max_iter } => karcher(inputs, &normalized(weights), *max_iter),
            Self::Linear {
                weights,
                normalize: true,
            } => combine(&normalized(weights), inputs),
            Self::Linear {
                weights,
                normalize: false,
            } => combine(weights, inputs),
            Self::Passthrough { scale } => scaled(*scale, inputs[0]),
            Self::TaskArithmetic {
                base,
                weights,
                normalize,
                lambda,
            } => {
                let (deltas, weights) = without(inputs, weights, *base);
                let total = sum(weights.iter().copied());
                let divisor = if *normalize && total.abs() >= 1e-8 {
                    total
                } else {
                    1.0
                };
                plus(
                    inputs[*base],
                    &scaled(lambda / divisor, &combine(&weights, &views(&deltas))),
                )
            }
            Self::Slerp { base, t } => slerp(inputs[*base], inputs[1 - *base], *t),
            Self::Nuslerp { weights, base } => {
                on_differences(inputs, weights, *base, |vectors, weights| {
                    slerp(
                        vectors[0],
                        vectors[1],
                        weights[1] / (weights[0] + weights[1]),
                    )
                })
            }
            Self::Multislerp {
                weights,
                normalize,
                eps,
                base,
            } => on_differences(inputs, weights, *base, |vectors, weights| {
                let weights = if *normalize {
                    normalized(weights)
                } else {
                    weights.to_vec()
                };
                multislerp(vectors, &weights, *eps)
            }),
            Self::ModelStock { base } => model_stock(inputs, *base),
            Self::GeometricMedian { weights } => geometric_median(inputs, &normalized(weights)),
        }
    }
}

fn normalized(weights: &[f64]) -> Vec<f64> {
    scaled(1.0 / sum(weights.iter().copied()), weights)
}

fn views(vectors: &[Vec<f64>]) -> Vec<&[f64]> {
    vectors.iter().map(Vec::as_slice).collect()
}

fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    combine(&[1.0, 1.0], &[a, b])
}

/// Differences of the other inputs from the base, and their weights.
fn without(inputs: &[&[f64]], weights: &[f64], base: usize) -> (Vec<Vec<f64>>, Vec<f64>) {
    let others = (0..inputs.len()).filter(|i| *i != base);
    others
        .map(|i| {
            (
                combine(&[1.0, -1.0], &[inputs[i], inputs[base]]),
                weights[i],
            )
        })
        .unzip()
}

fn on_differences(
    inputs: &[&[f64]],
    weights: &[f64],
    base: Option<usize>,
    formula: impl Fn(&[&[f64]], &[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let Some(base) = base else {
        return formula(inputs, weights);
    };
    let (deltas, weights) = without(inputs, weights, base);
    plus(inputs[base], &formula(&views(&deltas), &weights))
}

/// The angle between unit vectors (Kahan): good for small and for large ones.
fn angle(a: &[f64], b: &[f64]) -> f64 {
    2.0 * distance(a, b).atan2(norm(&plus(a, b)))
}

/// The tangent at `x` that leads to `u`, both unit vectors; none when they are opposite.
fn logarithm(x: &[f64], u: &[f64]) -> Vec<f64> {
    // 1 + cos <= 1e-12
    if norm(&plus(x, u)).powi(2) / 2.0 <= 1e-12 {
        return vec![0.0; x.len()];
    }
    let theta = angle(x, u);
    // u - cos x = (u - x) + (1 - cos) x
    let aside = combine(&[1.0, -1.0, distance(x, u).powi(2) / 2.0], &[u, x, x]);
    scaled(
        if theta == 0.0 {
            1.0
        } else {
            theta / theta.sin()
        },
        &aside,
    )
}

fn karcher(inputs: &[&[f64]], a: &[f64], max_iter: u32) -> Vec<f64> {
    let scale = sum(inputs.iter().zip(a).map(|(x, a)| a * norm(x)));
    let taking: Vec<usize> = (0..inputs.len())
        .filter(|i| a[*i] > 0.0 && norm(inputs[*i]) > 0.0)
        .collect();
    if taking.is_empty() {
        return vec![0.0; inputs[0].len()];
    }
    let units: Vec<Vec<f64>> = taking
        .iter()
        .map(|i| scaled(1.0 / norm(inputs[*i]), inputs[*i]))
        .collect();
    let a = normalized(&taking.iter().map(|i| a[*i]).collect::<Vec<_>>());
    let mean = combine(&a, &views(&units));
    let mut x = if norm(&mean) > 1e-6 {
        scaled(1.0 / norm(&mean), &mean)
    } else {
        let largest = a.iter().copied().fold(0.0, f64::max);
        units[a.iter().position(|a| *a == largest).expect("the largest")].clone()
    };
    for _ in 0..max_iter {
        let tangents: Vec<Vec<f64>> = units.iter().map(|u| logarithm(&x, u)).collect();
        let step = combine(&a, &views(&tangents));
        let length = norm(&step);
        if length < 1e-16 {
            break;
        }
        x = combine(&[length.cos(), length.sin() / length], &[&x, &step]);
        x = scaled(1.0 / norm(&x), &x);
    }
    scaled(scale, &x)
}

/// How far `y` is from being a Karcher mean of the inputs' directions: the length of the gradient
/// at its direction.
pub fn karcher_gradient(inputs: &[&[f64]], weights: &[f64], y: &[f64]) -> f64 {
    let x = scaled(1.0 / norm(y), y);
    let taking: Vec<usize> = (0..inputs.len())
        .filter(|i| weights[*i] > 0.0 && norm(inputs[*i]) > 0.0)
        .collect();
    let a = normalized(&taking.iter().map(|i| weights[*i]).collect::<Vec<_>>());
    let tangents: Vec<Vec<f64>> = taking
        .iter()
        .map(|i| logarithm(&x, &scaled(1.0 / norm(inputs[*i]), inputs[*i])))
        .collect();
    norm(&combine(&a, &views(&tangents)))
}

fn slerp(a: &[f64], b: &[f64], t: f64) -> Vec<f64> {
    if norm(a) == 0.0 || norm(b) == 0.0 {
        return combine(&[1.0 - t, t], &[a, b]);
    }
    let theta = angle(&scaled(1.0 / norm(a), a), &scaled(1.0 / norm(b), b));
    if theta == 0.0 {
        return combine(&[1.0 - t, t], &[a, b]);
    }
    let part = |p: f64| (p * theta).sin() / theta.sin();
    combine(&[part(1.0 - t), part(t)], &[a, b])
}

fn multislerp(vectors: &[&[f64]], weights: &[f64], eps: f64) -> Vec<f64> {
    let units: Vec<Vec<f64>> = vectors
        .iter()
        .map(|v| scaled(1.0 / (norm(v) + eps), v))
        .collect();
    let mean = combine(weights, &views(&units));
    let scale = sum(vectors.iter().zip(weights).map(|(v, w)| w * norm(v)));
    scaled(scale / norm(&mean), &mean)
}

fn model_stock(inputs: &[&[f64]], base: usize) -> Vec<f64> {
    let (deltas, _) = without(inputs, &vec![1.0; inputs.len()], base);
    let mut cosines = Vec::new();
    for i in 0..deltas.len() {
        for j in 0..i {
            cosines.push(dot(&deltas[i], &deltas[j]) / norm(&deltas[i]) / norm(&deltas[j]));
        }
    }
    let pairs = cosines.iter().fold(0.0, |count, _| count + 1.0);
    let n = deltas.iter().fold(0.0, |count, _| count + 1.0);
    let cosine = sum(cosines.into_iter()) / pairs;
    let t = n * cosine / (1.0 + (n - 1.0) * cosine);
    let mean = scaled(1.0 / n, &combine(&vec![1.0; deltas.len()], &views(&deltas)));
    plus(inputs[base], &scaled(t, &mean))
}

fn geometric_median(inputs: &[&[f64]], a: &[f64]) -> Vec<f64> {
    let cost = |y: &[f64]| sum(inputs.iter().zip(a).map(|(x, a)| a * distance(x, y)));
    let mut y = combine(a, inputs);
    for _ in 0..10_000 {
        let shares: Vec<f64> = inputs
            .iter()
            .zip(a)
            .map(|(x, a)| a / distance(x, &y).max(1e-300))
            .collect();
        let next = combine(&normalized(&shares), inputs);
        let moved = distance(&next, &y);
        y = next;
        if moved <= 1e-16 * norm(&y) {
            break;
        }
    }
    let better = inputs.iter().filter(|x| cost(x) < cost(&y));
    better
        .min_by(|a, b| cost(a).total_cmp(&cost(b)))
        .map_or(y.clone(), |x| x.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(rule: &Rule, inputs: &[&[f64]], wanted: &[f64]) {
        let got = rule.apply(inputs);
        assert!(
            distance(&got, wanted) < 1e-13,
            "{rule:?}: wanted {wanted:?}, got {got:?}"
        );
    }

    #[test]
    fn the_mean_on_a_circle_is_the_mean_angle() {
        let at = |angle: f64| [angle.cos(), angle.sin()];
        let inputs = [at(0.1), at(0.7), at(1.9)];
        let inputs: Vec<&[f64]> = inputs.iter().map(|x| x.as_slice()).collect();
        let weights = vec![1.0, 2.0, 1.0];
        close(
            &Rule::Karcher {
                weights,
                max_iter: 1000,
            },
            &inputs,
            &at(0.25 * (0.1 + 1.4 + 1.9)),
        );
        close(&Rule::Slerp { base: 1, t: 0.25 }, &inputs[..2], &at(0.55));
        close(
            &Rule::Nuslerp {
                weights: vec![1.0, 3.0],
                base: None,
            },
            &inputs[1..],
            &at(1.6),
        );
    }

    #[test]
    fn every_method_gives_what_was_worked_out_by_hand() {
        let inputs: [&[f64]; 3] = [&[1.0, 1.0], &[3.0, 1.0], &[1.0, 3.0]];
        let weights = vec![9.0, 1.0, 1.0];
        let half = 0.5f64.sqrt();
        close(
            &Rule::Linear {
                weights: vec![1.0, 1.0, 2.0],
                normalize: true,
            },
            &inputs,
            &[1.5, 2.0],
        );
        close(
            &Rule::Linear {
                weights: vec![1.0, 1.0, 2.0],
                normalize: false,
            },
            &inputs,
            &[6.0, 8.0],
        );
        close(
            &Rule::Passthrough { scale: -2.0 },
            &inputs[1..2],
            &[-6.0, -2.0],
        );
        let task = |normalize| Rule::TaskArithmetic {
            base: 0,
            weights: weights.clone(),
            normalize,
            lambda: 0.5,
        };
        close(&task(false), &inputs, &[2.0, 2.0]);
        close(&task(true), &inputs, &[1.5, 1.5]);
        close(
            &Rule::Nuslerp {
                weights: weights.clone(),
                base: Some(0),
            },
            &inputs,
            &[1.0 + 2.0 * half; 2],
        );
        let multislerp = Rule::Multislerp {
            weights,
            normalize: true,
            eps: 0.0,
            base: Some(0),
        };
        close(&multislerp, &inputs, &[1.0 + 2.0 * half; 2]);
        // Orthogonal differences keep the base; parallel ones give the mean.
        close(&Rule::ModelStock { base: 0 }, &inputs, &[1.0, 1.0]);
        close(
            &Rule::ModelStock { base: 1 },
            &[&[1.0], &[0.0], &[3.0]],
            &[2.0],
        );
        close(
            &Rule::GeometricMedian {
                weights: vec![1.0; 3],
            },
            &[&[0.0], &[9.0], &[1.0]],
            &[1.0],
        );
    }

    #[test]
    fn odd_inputs_have_defined_means() {
        let karcher = |weights: &[f64], inputs: &[&[f64]], wanted: &[f64]| {
            close(
                &Rule::Karcher {
                    weights: weights.to_vec(),
                    max_iter: 100,
                },
                inputs,
                wanted,
            );
        };
        karcher(&[1.0, 1.0], &[&[0.0, 0.0], &[0.0, 0.0]], &[0.0, 0.0]);
        karcher(&[1.0, 1.0], &[&[0.0, 0.0], &[0.0, 4.0]], &[0.0, 2.0]);
        karcher(&[1.0, 1.0], &[&[0.0, 4.0], &[0.0, -2.0]], &[0.0, 3.0]);
        karcher(&[1.0, 3.0], &[&[0.0, 4.0], &[0.0, -2.0]], &[0.0, -2.5]);
        karcher(&[1.0, 0.0], &[&[0.1, 4.0], &[7.0, -2.0]], &[0.1, 4.0]);
        close(&Rule::Slerp { base: 0, t: 0.25 }, &[&[0.0], &[4.0]], &[1.0]);
        close(&Rule::Slerp { base: 0, t: 0.25 }, &[&[2.0], &[4.0]], &[2.5]);
    }
}
