//! Inputs of sizes drawn over many powers of ten, near each other or not, against the reference.

use std::path::PathBuf;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{Place, Run, only, recipe, vector};
use crate::support::reference::files::read_model;
use crate::support::reference::{Model, Random, Rule, distance, norm};

/// Elements of a vector.
const LEN: usize = 24;

/// Vectors that share a part, each with a part of its own, each of another size.
fn inputs(random: &mut Random, count: usize, reach: f64) -> Vec<Vec<f64>> {
    let shared = random.gaussian(LEN);
    let own = 10f64.powf(-8.0 * random.uniform());
    let mut one = || -> Vec<f64> {
        let size = if random.uniform() < 0.5 {
            1.0
        } else {
            10f64.powf(reach * (2.0 * random.uniform() - 1.0))
        };
        let noise = random.gaussian(LEN);
        shared
            .iter()
            .zip(noise)
            .map(|(x, noise)| size * (x + own * noise))
            .collect()
    };
    (0..count).map(|_| one()).collect()
}

/// The methods over `count` inputs, the first of which is the base of those that have one.
fn rules(random: &mut Random, count: usize) -> Vec<(&'static str, Value, Rule)> {
    let weights: Vec<f64> = (0..count).map(|_| 0.1 + random.uniform()).collect();
    let lambda = 10f64.powf(6.0 * random.uniform());
    let mut rules = vec![
        (
            "karcher",
            json!({}),
            Rule::Karcher {
                weights: weights.clone(),
                max_iter: 200,
            },
        ),
        (
            "linear",
            json!({}),
            Rule::Linear {
                weights: weights.clone(),
                normalize: true,
            },
        ),
        (
            "multislerp",
            json!({}),
            Rule::Multislerp {
                weights: weights.clone(),
                normalize: true,
                eps: 1e-8,
                base: None,
            },
        ),
        (
            "geometric_median",
            json!({}),
            Rule::GeometricMedian {
                weights: weights.clone(),
            },
        ),
        (
            "task_arithmetic",
            json!({ "lambda": lambda }),
            Rule::TaskArithmetic {
                base: 0,
                weights: weights.clone(),
                normalize: false,
                lambda,
            },
        ),
        (
            "multislerp",
            json!({}),
            Rule::Multislerp {
                weights: weights.clone(),
                normalize: true,
                eps: 1e-8,
                base: Some(0),
            },
        ),
        ("model_stock", json!({}), Rule::ModelStock { base: 0 }),
    ];
    if count == 3 {
        rules.push((
            "nuslerp",
            json!({}),
            Rule::Nuslerp {
                weights,
                base: Some(0),
            },
        ));
    }
    rules
}

fn based(rule: &Rule) -> bool {
    matches!(
        rule,
        Rule::TaskArithmetic { .. }
            | Rule::ModelStock { .. }
            | Rule::Multislerp { base: Some(_), .. }
            | Rule::Nuslerp { base: Some(_), .. }
    )
}

fn weights_of(rule: &Rule) -> Option<&[f64]> {
    match rule {
        Rule::Karcher { weights, .. }
        | Rule::Linear { weights, .. }
        | Rule::Multislerp { weights, .. }
        | Rule::GeometricMedian { weights }
        | Rule::Nuslerp { weights, .. }
        | Rule::TaskArithmetic { weights, .. } => Some(weights),
        _ => None,
    }
}

/// Merges and compares: in F64 to what a median's steps leave of it, otherwise to half a step of
/// the type.
fn check(
    paths: &[PathBuf],
    views: &[&[f64]],
    place: &Place,
    method: &str,
    parameters: &Value,
    rule: &Rule,
) {
    let mut run = Run::new(recipe(method, paths, weights_of(rule)));
    if based(rule) {
        run = run.with("base_model", paths[0].to_str().expect("text"));
    }
    if parameters
        .as_object()
        .is_some_and(|parameters| !parameters.is_empty())
    {
        run = run.with("parameters", parameters.clone());
    }
    let out = tempfile::tempdir_in(place.path("")).expect("a folder");
    let report = run
        .with("dtype", "float64")
        .merge_to(&out.path().join("out"))
        .expect("a merge that succeeds");
    let wanted = rule.apply(views);
    if !report.warnings.is_empty() || wanted.iter().any(|value| !value.is_finite()) {
        return;
    }
    let got = read_model(&out.path().join("out"))["w"].values.clone();
    // The factor of model_stock is a mean of cosines of either sign, of which rounding is left
    // where they cancel.
    let largest = views.iter().map(|view| norm(view)).fold(0.0, f64::max);
    let rounding = if matches!(rule, Rule::ModelStock { .. }) {
        1e-13 * largest
    } else {
        0.0
    };
    let error = distance(&got, &wanted);
    assert!(
        error <= 1e-8 * norm(&wanted) + rounding,
        "{rule:?} of {views:?}: {error:e}"
    );
}

fn of_many_sizes(dtype: Dtype, reach: f64, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut random = Random::new(seed);
        let count = if random.uniform() < 0.7 { 3 } else { 5 };
        let values = inputs(&mut random, count, reach);
        let models: Vec<Model> = values
            .iter()
            .map(|values| only(vector(dtype, values)))
            .collect();
        let views: Vec<&[f64]> = models
            .iter()
            .map(|model| model["w"].values.as_slice())
            .collect();
        let place = Place::new();
        let paths = place.models(&models);
        for (method, parameters, rule) in rules(&mut random, count) {
            check(&paths, &views, &place, method, &parameters, &rule);
        }
    }
}

#[test]
fn f64_of_sizes_over_many_powers_of_ten_is_what_the_formula_says() {
    of_many_sizes(Dtype::F64, 6.0, 2000..2040);
}

#[test]
fn f32_of_sizes_over_many_powers_of_ten_is_what_the_formula_says() {
    of_many_sizes(Dtype::F32, 5.0, 2100..2140);
}
