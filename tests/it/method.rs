//! The solvers against the reference, on vectors.

use proptest::prelude::*;
use thalweg::method::{
    GeometricMedian, Gram, Karcher, Linear, Method, ModelStock, Multislerp, Nuslerp, Passthrough,
    Slerp, Solution, Statistics, Stop, TaskArithmetic,
};

use crate::support::reference::{Random, Rule, combine, distance, dot, karcher_gradient, norm};

fn views(inputs: &[Vec<f64>]) -> Vec<&[f64]> {
    inputs.iter().map(Vec::as_slice).collect()
}

/// The Gram matrix that `statistics` asks for, summed in chunks as the engine does.
fn measure(statistics: Statistics, inputs: &[Vec<f64>]) -> Gram {
    let center = match statistics {
        Statistics::None => return Gram::new(0),
        Statistics::Gram { center } => center,
        Statistics::Wide | Statistics::Elements => None,
    };
    let shifted = |i: usize, k: usize| match center {
        Some(b) if b != i => inputs[i][k] - inputs[b][k],
        _ => inputs[i][k],
    };
    let mut gram = Gram::new(inputs.len());
    let length = inputs[0].len();
    for from in (0..length).step_by(1000) {
        let to = length.min(from + 1000);
        let chunk: Vec<Vec<f64>> = (0..inputs.len())
            .map(|i| (from..to).map(|k| shifted(i, k)).collect())
            .collect();
        let sums = (0..chunk.len()).flat_map(|i| (i..chunk.len()).map(move |j| (i, j)));
        let pairs: Vec<(usize, usize)> = sums.collect();
        gram.add(
            &pairs
                .iter()
                .map(|(i, j)| dot(&chunk[*i], &chunk[*j]))
                .collect::<Vec<_>>(),
        );
        if statistics == Statistics::Wide {
            gram.add(
                &pairs
                    .iter()
                    .map(|(i, j)| lost(&chunk[*i], &chunk[*j]))
                    .collect::<Vec<_>>(),
            );
        }
    }
    gram
}

/// What the inner product has lost to rounding.
fn lost(a: &[f64], b: &[f64]) -> f64 {
    let products = a
        .iter()
        .zip(b)
        .flat_map(|(a, b)| [a * b, a.mul_add(*b, -(a * b))]);
    let terms: Vec<f64> = products.chain([-dot(a, b)]).collect();
    dot(&terms, &vec![1.0; terms.len()])
}

fn solve(method: &dyn Method, inputs: &[Vec<f64>]) -> Solution {
    method
        .solve(&measure(method.statistics(), inputs))
        .expect("finite inputs")
}

fn merge(method: &dyn Method, inputs: &[Vec<f64>]) -> Vec<f64> {
    combine(&solve(method, inputs).coefficients, &views(inputs))
}

fn karcher(weights: &[f64]) -> Karcher {
    Karcher::new(weights, Karcher::MAX_ITER, Karcher::TOL).expect("valid weights")
}

/// Relative distance of a solver's result from the reference's.
fn error(method: &dyn Method, rule: &Rule, inputs: &[Vec<f64>]) -> f64 {
    let wanted = rule.apply(&views(inputs));
    distance(&merge(method, inputs), &wanted) / norm(&wanted)
}

fn karcher_error(weights: &[f64], inputs: &[Vec<f64>]) -> f64 {
    error(
        &karcher(weights),
        &Rule::Karcher {
            weights: weights.to_vec(),
            max_iter: 2000,
        },
        inputs,
    )
}

fn weights(random: &mut Random, count: usize) -> Vec<f64> {
    (0..count).map(|_| 0.1 + random.uniform()).collect()
}

#[test]
fn independent_inputs_have_the_mean_of_the_direct_iteration() {
    let mut random = Random::new(42);
    for count in [2, 3, 5, 20] {
        let inputs: Vec<Vec<f64>> = (0..count).map(|_| random.gaussian(4096)).collect();
        let error = karcher_error(&weights(&mut random, count), &inputs);
        assert!(error < 1e-12, "{count} inputs: {error:e}");
    }
}

#[test]
fn a_hundred_inputs_have_the_mean_of_the_direct_iteration() {
    let mut random = Random::new(43);
    let inputs: Vec<Vec<f64>> = (0..100).map(|_| random.gaussian(512)).collect();
    let error = karcher_error(&vec![1.0; 100], &inputs);
    assert!(error < 1e-12, "{error:e}");
}

#[test]
fn fine_tunes_have_the_mean_of_the_direct_iteration() {
    let mut random = Random::new(44);
    for cosine in [0.5, 0.9, 0.99, 0.9998, 0.99999, 0.999_999_99] {
        let base = random.gaussian(4096);
        let inputs = random.fine_tunes(&base, 4, cosine);
        let weights = weights(&mut random, 4);
        let error = karcher_error(&weights, &inputs);
        // Asked for: 1e-11 where nearly parallel. What is reached is the rounding of the inputs.
        assert!(error < 1e-12, "cosine {cosine}: {error:e}");
        let facts = solve(&karcher(&weights), &inputs).facts;
        assert_eq!(facts.stop, Stop::Converged, "cosine {cosine}: {facts:?}");
    }
}

#[test]
fn small_dimensions_with_dependent_inputs_have_the_same_mean() {
    let mut random = Random::new(45);
    for dimension in 1..4 {
        for _ in 0..20 {
            // All within a cap, where the mean is unique.
            let centre: Vec<f64> = random.gaussian(dimension);
            let near = |random: &mut Random| -> Vec<f64> {
                let noise = random.gaussian(dimension);
                let size = 0.5 * norm(&centre) / norm(&noise);
                centre
                    .iter()
                    .zip(&noise)
                    .map(|(c, noise)| c + size * noise)
                    .collect()
            };
            let inputs: Vec<Vec<f64>> = (0..6).map(|_| near(&mut random)).collect();
            let error = karcher_error(&weights(&mut random, 6), &inputs);
            assert!(error < 1e-12, "dimension {dimension}: {error:e}");
        }
    }
}

#[test]
fn every_other_method_agrees_with_its_formula() {
    let mut random = Random::new(46);
    let base = random.gaussian(3000);
    for cosine in [0.2, 0.9, 0.9999] {
        let inputs = random.fine_tunes(&base, 4, cosine);
        let w = weights(&mut random, 4);
        let three = &inputs[..3];
        let two = &inputs[..2];
        let (all, some) = (w.clone(), w[..3].to_vec());
        let linear = |normalize| Linear::new(&w, normalize).expect("valid");
        let task = |normalize| TaskArithmetic::new(2, &w, normalize, 0.7).expect("valid");
        let multislerp = |base| Multislerp::new(&w, true, 1e-8, base).expect("valid");
        let check = |method: &dyn Method, rule: Rule, inputs: &[Vec<f64>]| {
            let error = error(method, &rule, inputs);
            assert!(
                error < 1e-12,
                "{} at cosine {cosine}: {error:e}",
                method.name()
            );
        };
        for normalize in [true, false] {
            check(
                &linear(normalize),
                Rule::Linear {
                    weights: all.clone(),
                    normalize,
                },
                &inputs,
            );
            let rule = Rule::TaskArithmetic {
                base: 2,
                weights: all.clone(),
                normalize,
                lambda: 0.7,
            };
            check(&task(normalize), rule, &inputs);
        }
        check(
            &Passthrough::new(0.3).expect("valid"),
            Rule::Passthrough { scale: 0.3 },
            &inputs[..1],
        );
        for base in [0, 1] {
            check(
                &Slerp::new(base, 0.3).expect("valid"),
                Rule::Slerp { base, t: 0.3 },
                two,
            );
        }
        let nuslerp = |weights: &[f64], base| Nuslerp::new(weights, base).expect("valid");
        check(
            &nuslerp(&w[..2], None),
            Rule::Nuslerp {
                weights: w[..2].to_vec(),
                base: None,
            },
            two,
        );
        check(
            &nuslerp(&some, Some(1)),
            Rule::Nuslerp {
                weights: some.clone(),
                base: Some(1),
            },
            three,
        );
        for base in [None, Some(3)] {
            let rule = Rule::Multislerp {
                weights: all.clone(),
                normalize: true,
                eps: 1e-8,
                base,
            };
            check(&multislerp(base), rule, &inputs);
        }
        check(
            &ModelStock::new(0, 4).expect("valid"),
            Rule::ModelStock { base: 0 },
            &inputs,
        );
        let median = GeometricMedian::new(&w, GeometricMedian::MAX_ITER, GeometricMedian::TOL)
            .expect("valid");
        // Its tolerance is on the gradient, which leaves a distance of a few times as many mean
        // distances.
        let error = error(&median, &Rule::GeometricMedian { weights: all }, &inputs);
        assert!(error < 1e-11, "cosine {cosine}: {error:e}");
        assert_ne!(solve(&median, &inputs).facts.stop, Stop::MaxIterations);
    }
}

#[test]
fn facts_are_those_of_the_vectors() {
    let mut random = Random::new(47);
    let base = random.gaussian(2000);
    let inputs = random.fine_tunes(&base, 3, 0.8);
    let methods: [&dyn Method; 3] = [
        &karcher(&[0.2, 0.3, 0.5]),
        &ModelStock::new(1, 3).expect("valid"),
        &GeometricMedian::new(&[1.0; 3], 1000, 1e-12).expect("valid"),
    ];
    for method in methods {
        let facts = solve(method, &inputs).facts;
        let merged = merge(method, &inputs);
        assert!(
            (facts.merged_norm.expect("measured") / norm(&merged) - 1.0).abs() < 1e-13,
            "{}",
            method.name()
        );
        for (i, input) in inputs.iter().enumerate() {
            let angle = (dot(input, &merged) / norm(input) / norm(&merged)).acos();
            assert!((facts.norms[i] / norm(input) - 1.0).abs() < 1e-13);
            // acos loses digits at small angles: these are about half a radian.
            assert!(
                (facts.angles[i].expect("nonzero") - angle).abs() < 1e-13,
                "{}",
                method.name()
            );
        }
        assert!(facts.flags.is_empty());
    }
}

#[test]
fn odd_inputs_have_the_mean_of_the_reference() {
    let x = vec![1.0, 2.0, -3.0];
    let (minus, zero, aside) = (vec![-1.0, -2.0, 3.0], vec![0.0; 3], vec![3.0, 0.0, 1.0]);
    let cases: [(&[f64], Vec<Vec<f64>>); 8] = [
        (&[1.0, 1.0], vec![x.clone(), x.clone()]),
        (&[1.0, 1.0], vec![x.clone(), zero.clone()]),
        (
            &[1.0, 2.0, 1.0],
            vec![x.clone(), zero.clone(), aside.clone()],
        ),
        (&[1.0, 1.0], vec![zero.clone(), zero]),
        (&[1.0, 1.0], vec![x.clone(), minus.clone()]),
        (&[2.0, 3.0], vec![x.clone(), minus.clone()]),
        (&[1.0, 0.0, 2.0], vec![x.clone(), minus, aside.clone()]),
        (&[1.0, 1.0], vec![x, aside]),
    ];
    for (weights, inputs) in cases {
        let wanted = Rule::Karcher {
            weights: weights.to_vec(),
            max_iter: 1000,
        }
        .apply(&views(&inputs));
        let got = merge(&karcher(weights), &inputs);
        assert!(
            distance(&got, &wanted) < 1e-13,
            "{weights:?} {inputs:?}: wanted {wanted:?}, got {got:?}"
        );
    }
}

#[test]
fn a_limited_number_of_steps_is_the_same_step_for_step() {
    let mut random = Random::new(48);
    let inputs: Vec<Vec<f64>> = (0..5).map(|_| random.gaussian(300)).collect();
    let weights = weights(&mut random, 5);
    for max_iter in [0, 1, 2, 5] {
        let method = Karcher::new(&weights, max_iter, 0.0).expect("valid");
        let error = error(
            &method,
            &Rule::Karcher {
                weights: weights.clone(),
                max_iter,
            },
            &inputs,
        );
        assert!(error < 1e-13, "{max_iter} steps: {error:e}");
        assert_eq!(solve(&method, &inputs).facts.iterations, max_iter);
    }
}

/// Up to six vectors of one dimension within a right angle of each other on average, and their
/// weights.
fn inputs() -> impl Strategy<Value = (Vec<f64>, Vec<Vec<f64>>)> {
    (2usize..7, 1usize..40, 0u64..u64::MAX, 0.0f64..1.5).prop_map(
        |(count, dimension, seed, spread)| {
            let mut random = Random::new(seed);
            let base = random.gaussian(dimension);
            let vector = |random: &mut Random| -> Vec<f64> {
                let (size, noise) = (1.0 + 9.0 * random.uniform(), random.gaussian(dimension));
                let share = spread * norm(&base) / norm(&noise).max(1e-300) / 2.0;
                base.iter()
                    .zip(&noise)
                    .map(|(b, noise)| size * (b + share * noise))
                    .collect()
            };
            let vectors = (0..count).map(|_| vector(&mut random)).collect();
            (weights(&mut random, count), vectors)
        },
    )
}

/// Vectors of few dimensions at any angle, some zero, repeated or turned round, and weights of
/// which some are zero.
fn wild_inputs() -> impl Strategy<Value = (Vec<f64>, Vec<Vec<f64>>)> {
    (1usize..9, 1usize..5, 0u64..u64::MAX).prop_map(|(count, dimension, seed)| {
        let mut random = Random::new(seed);
        let mut vectors: Vec<Vec<f64>> = Vec::new();
        for _ in 0..count {
            let odd = vectors.last().cloned().filter(|_| random.uniform() < 0.4);
            vectors.push(match (odd, random.uniform()) {
                (Some(last), u) if u < 0.3 => last,
                (Some(last), u) if u < 0.6 => last.iter().map(|x| -2.0 * x).collect(),
                (Some(last), u) if u < 0.8 => last
                    .iter()
                    .map(|x| x * (1.0 + 1e-9 * random.uniform()))
                    .collect(),
                (Some(last), _) => vec![0.0; last.len()],
                (None, _) => random.gaussian(dimension),
            });
        }
        let mut w = weights(&mut random, count);
        w[1..]
            .iter_mut()
            .filter(|_| random.uniform() < 0.1)
            .for_each(|w| *w = 0.0);
        (w, vectors)
    })
}

proptest! {
    #[test]
    fn any_inputs_give_a_mean_of_the_right_norm_or_a_flag((w, x) in wild_inputs()) {
        let total: f64 = w.iter().sum();
        let s: f64 = w.iter().zip(&x).map(|(w, x)| w / total * norm(x)).sum();
        let solution = solve(&karcher(&w), &x);
        let merged = combine(&solution.coefficients, &views(&x));
        let none = x.iter().zip(&w).all(|(x, w)| *w == 0.0 || norm(x) == 0.0);
        let wanted = if none { 0.0 } else { s };
        // Where large parts cancel, as between nearly opposite inputs, squares of norms keep that
        // much less.
        let parts: f64 = solution.coefficients.iter().zip(&x).map(|(c, x)| c.abs() * norm(x)).sum();
        let lost = 1e-14 * (parts / s.max(1e-300)).powi(2);
        prop_assert!((norm(&merged) - wanted).abs() <= (1e-12 + lost) * wanted, "{:?}: {:?}", norm(&merged), solution);
        let facts = solution.facts;
        prop_assert!(facts.stop != Stop::MaxIterations || facts.flags.beyond_right_angle, "{:?}", facts);
        if !none && facts.stop != Stop::MaxIterations {
            let gradient = karcher_gradient(&views(&x), &w, &merged);
            // Rounded cosines know the way to a nearly opposite input only so well.
            let widest = facts.angles.iter().flatten().fold(0.0f64, |widest, angle| widest.max(*angle));
            let vague = 1e-13 / (std::f64::consts::PI - widest).max(1e-9).powi(2);
            prop_assert!(gradient < 1e-8 + 10.0 * lost + vague, "gradient {gradient:e}: {:?}", facts);
        }
    }

    #[test]
    fn the_norm_of_the_mean_is_the_mean_of_the_norms((w, x) in inputs()) {
        let total: f64 = w.iter().sum();
        let wanted: f64 = w.iter().zip(&x).map(|(w, x)| w / total * norm(x)).sum();
        let solution = solve(&karcher(&w), &x);
        let merged = combine(&solution.coefficients, &views(&x));
        prop_assert!((norm(&merged) / wanted - 1.0).abs() < 1e-12);
        prop_assert!((solution.facts.merged_norm.expect("measured") / wanted - 1.0).abs() < 1e-12);
        prop_assert_ne!(solution.facts.stop, Stop::MaxIterations);
    }

    #[test]
    fn another_order_of_the_inputs_gives_the_same_mean((w, x) in inputs(), by in 1usize..6) {
        let by = by % x.len();
        let (mut turned_w, mut turned_x) = (w.clone(), x.clone());
        turned_w.rotate_left(by);
        turned_x.rotate_left(by);
        let (first, second) = (merge(&karcher(&w), &x), merge(&karcher(&turned_w), &turned_x));
        prop_assert!(distance(&first, &second) < 1e-11 * norm(&first));
    }

    #[test]
    fn scaling_all_inputs_by_a_power_of_two_keeps_the_coefficients_to_the_bit((w, x) in inputs(), power in -40i32..40) {
        let scaled: Vec<Vec<f64>> = x.iter().map(|x| x.iter().map(|x| x * 2f64.powi(power)).collect()).collect();
        prop_assert_eq!(solve(&karcher(&w), &x).coefficients, solve(&karcher(&w), &scaled).coefficients);
    }

    #[test]
    fn scaling_one_input_changes_the_norm_of_the_mean_but_not_its_direction((w, x) in inputs(), by in 0.1f64..10.0) {
        let mut scaled = x.clone();
        scaled[0].iter_mut().for_each(|x| *x *= by);
        let (first, second) = (merge(&karcher(&w), &x), merge(&karcher(&w), &scaled));
        let unit = |x: &[f64]| -> Vec<f64> { x.iter().map(|e| e / norm(x)).collect() };
        prop_assert!(distance(&unit(&first), &unit(&second)) < 1e-11);
    }

    #[test]
    fn scaling_the_weights_changes_nothing((w, x) in inputs(), power in -60i32..60) {
        let scaled: Vec<f64> = w.iter().map(|w| w * 2f64.powi(power)).collect();
        prop_assert_eq!(solve(&karcher(&w), &x), solve(&karcher(&scaled), &x));
    }

    #[test]
    fn the_mean_agrees_with_the_reference((w, x) in inputs()) {
        let error = karcher_error(&w, &x);
        prop_assert!(error < 1e-11, "{:e}", error);
    }

    #[test]
    fn no_point_nearby_has_a_smaller_sum_of_distances_than_the_median((w, x) in inputs(), seed in 0u64..1000) {
        let cost = |y: &[f64]| -> f64 { w.iter().zip(&x).map(|(w, x)| w * distance(x, y)).sum() };
        let median = merge(&GeometricMedian::new(&w, 10_000, 1e-12).expect("valid"), &x);
        let step = Random::new(seed).gaussian(median.len());
        for size in [1e-3, 1e-1] {
            let moved: Vec<f64> = median.iter().zip(&step).map(|(m, s)| m + size * s).collect();
            prop_assert!(cost(&median) <= cost(&moved) * (1.0 + 1e-12));
        }
    }
}
