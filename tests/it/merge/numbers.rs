//! Numbers that are huge beside each other, tiny, or nearly alike, against the reference.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};
use thalweg::kernel::CHUNK;

use super::{Kinship, Place, Run, assert_same, files_of, only, random_models, recipe, vector};
use crate::support::reference::files::read_model;
use crate::support::reference::{Model, Random, Rule, Tensor, distance, norm, round_to};

/// With a base.
fn based(run: Run, base: &Path) -> Run {
    run.with("base_model", base.to_str().expect("text"))
}

/// Asserts that vectors of `dtype` are merged to what `rule` says of them as they are stored, each
/// element rounded once.
fn assert_vectors(
    place: &Place,
    run: &Run,
    dtype: Dtype,
    values: &[Vec<f64>],
    rule: &Rule,
    about: &str,
) {
    let stored: Vec<Tensor> = values.iter().map(|values| vector(dtype, values)).collect();
    let views: Vec<&[f64]> = stored
        .iter()
        .map(|tensor| tensor.values.as_slice())
        .collect();
    let wanted = rule.apply(&views);
    let largest = norm(&wanted);
    let got = place.merged(run)["w"].values.clone();
    for (k, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        let rounded = Tensor::from_bytes(
            dtype,
            &[1],
            round_to(dtype, *wanted).to_le_bytes()[..bytes(dtype)].to_vec(),
        );
        let close = match dtype {
            Dtype::F64 => (got - wanted).abs() <= 1e-14 * largest,
            _ => *got == rounded.values[0],
        };
        assert!(
            close,
            "{about}, element {k}: wanted {wanted:e}, got {got:e}"
        );
    }
}

fn bytes(dtype: Dtype) -> usize {
    crate::support::reference::Format::of(dtype)
        .expect("a floating point type")
        .bytes()
}

#[test]
fn a_model_far_smaller_than_its_base_leaves_a_manifest_that_can_be_read() {
    for (base, others) in [
        (
            vec![1.053_115_754_486_758_2],
            vec![vec![1.776e-13], vec![1.776e-13]],
        ),
        (vec![1e8, 1.0], vec![vec![1.0, 0.5], vec![0.25, 1.0]]),
    ] {
        for method in ["model_stock", "multislerp", "nuslerp", "geometric_median"] {
            let place = Place::new();
            let models: Vec<Model> = std::iter::once(&base)
                .chain(&others)
                .map(|values| only(vector(Dtype::F32, values)))
                .collect();
            let paths = place.models(&models);
            let weights = (method != "model_stock").then_some([1.0; 3]);
            let run = Run::new(recipe(
                method,
                &paths,
                weights.as_ref().map(<[f64; 3]>::as_slice),
            ));
            let run = if method == "geometric_median" {
                run
            } else {
                based(run, &paths[0])
            };
            let out = place.path("out");
            let report = run.merge_to(&out).expect("a merge that succeeds");
            assert!(
                report
                    .warnings
                    .iter()
                    .all(|warning| !warning.contains("zero")),
                "{method}: {:?}",
                report.warnings
            );
            let text = fs::read_to_string(out.join("thalweg.json")).expect("a manifest");
            let manifest: Value = serde_json::from_str(&text).expect("JSON");
            let facts = &manifest["tensors"][0]["note"]["facts"];
            assert!(
                facts["norms"]
                    .as_array()
                    .expect("norms")
                    .iter()
                    .all(Value::is_f64),
                "{method}: {facts}"
            );
            assert_eq!(
                run.merge_to(&out).expect("opened again").status,
                "complete already",
                "{method}"
            );
        }
    }
}

#[test]
fn differences_from_a_base_keep_their_digits_under_large_factors() {
    let base = vec![0.7, -0.3, 0.11, 0.013];
    let near = |by: f64| -> Vec<f64> {
        base.iter()
            .zip([1.0, 2.0, -1.0, 0.5])
            .map(|(b, d)| b + by * d)
            .collect()
    };
    for (dtype, step) in [
        (Dtype::F64, 1e-8),
        (Dtype::F64, 1e-12),
        (Dtype::F32, 1e-6),
        (Dtype::BF16, 0.01),
    ] {
        let values = vec![base.clone(), near(step), vec![0.2, 0.9, -0.4, 0.3]];
        let place = Place::new();
        let models: Vec<Model> = values
            .iter()
            .map(|values| only(vector(dtype, values)))
            .collect();
        let paths = place.models(&models);
        let weights = [0.0, 0.6, 0.4];
        let about = |method: &str| format!("{method} of {dtype:?}, {step}");
        let run = based(
            Run::new(recipe("multislerp", &paths, Some(&weights))),
            &paths[0],
        );
        let rule = Rule::Multislerp {
            weights: weights.to_vec(),
            normalize: true,
            eps: 1e-8,
            base: Some(0),
        };
        assert_vectors(&place, &run, dtype, &values, &rule, &about("multislerp"));
        for lambda in [20.0, 1e3, 1e6, 1e9] {
            let two = [weights[0], 1.0];
            let run = based(
                Run::new(recipe("task_arithmetic", &paths[..2], Some(&two))),
                &paths[0],
            );
            let run = run.with("parameters", json!({ "lambda": lambda }));
            let rule = Rule::TaskArithmetic {
                base: 0,
                weights: two.to_vec(),
                normalize: false,
                lambda,
            };
            assert_vectors(
                &place,
                &run,
                dtype,
                &values[..2],
                &rule,
                &about(&format!("task arithmetic by {lambda}")),
            );
        }
    }
}

#[test]
fn sums_of_inputs_whose_weights_cancel_are_rounded_once() {
    let place = Place::new();
    let mut random = Random::new(910);
    let first = random.gaussian(1000);
    let second: Vec<f64> = first
        .iter()
        .zip(random.gaussian(1000))
        .map(|(x, noise)| x + 1e-4 * noise)
        .collect();
    let values = [first, second];
    let models: Vec<Model> = values
        .iter()
        .map(|values| only(vector(Dtype::F32, values)))
        .collect();
    let paths = place.models(&models);
    for weights in [[0.1, -0.1], [1e5 + 0.25, -1e5], [-1e8 + 1.0, 1e8]] {
        let run = Run::new(recipe("linear", &paths, Some(&weights)))
            .with("parameters", json!({ "normalize": false }));
        let got = place.merged(&run)["w"].clone();
        let sum = weights[0] + weights[1];
        for (k, got) in got.values.iter().enumerate() {
            let [a, b] = [models[0]["w"].values[k], models[1]["w"].values[k]];
            let wanted = sum * a + weights[1] * (b - a);
            assert!(
                (got - wanted).abs() <= wanted.abs() * 2f64.powi(-24),
                "{weights:?} {k}: wanted {wanted}, got {got}"
            );
        }
    }
}

#[test]
fn what_only_the_base_has_is_noted_alike_in_blocks_of_any_size() {
    let place = Place::new();
    let shapes: [&[usize]; 2] = [&[3 * CHUNK], &[2 * CHUNK + 5]];
    let mut models = random_models(
        &mut Random::new(911),
        &[Dtype::F32; 3],
        &shapes,
        Kinship::Cosine(0.8),
    );
    // Between two that are merged over the model, and before them.
    for name in ["a", "t[70000]"] {
        let alone = random_models(
            &mut Random::new(912),
            &[Dtype::F32],
            &[&[4 * CHUNK]],
            Kinship::Independent,
        )
        .remove(0);
        models[0].insert(
            name.to_owned(),
            alone.into_values().next().expect("one tensor"),
        );
    }
    let paths = place.models(&models);
    for granularity in ["tensor", "row", "model"] {
        // Over the model nothing is replaced tensor by tensor, but what only the base has is looked
        // through all the same.
        if granularity == "model" {
            for model in &mut models {
                model.retain(|name, _| name == "a");
                model.insert(
                    "ids".to_owned(),
                    Tensor::from_bytes(Dtype::I64, &[2], vec![7; 16]),
                );
            }
            place.models(&models);
        }
        for (missing, nan) in [("base", "base"), ("base", "error"), ("common", "base")] {
            let run = based(Run::karcher(&paths), &paths[0]).with("granularity", granularity);
            let run = run.with("missing", missing).with("nan", nan);
            let out = |name: &str| place.path(&format!("{name}-{granularity}-{missing}-{nan}"));
            run.merge_to(&out("large")).expect("a merge that succeeds");
            run.clone()
                .small_blocks()
                .merge_to(&out("small"))
                .expect("a merge that succeeds");
            let less = Run {
                memory: super::same_bytes::least_memory(&run),
                ..run.clone().small_blocks()
            };
            less.merge_to(&out("least")).expect("a merge that succeeds");
            let about = format!("{granularity}, {missing}, {nan}");
            assert_same(
                &read_model(&out("small")),
                &read_model(&out("large")),
                &about,
            );
            for other in ["small", "least"] {
                assert_eq!(
                    files_of(&out(other)),
                    files_of(&out("large")),
                    "{about}, {other}"
                );
            }
        }
    }
}

#[test]
fn negative_zeros_that_all_inputs_have_stay_negative() {
    let zeros = vec![-0.0; CHUNK + 3];
    for dtype in [Dtype::F32, Dtype::F64, Dtype::BF16, Dtype::F8_E4M3] {
        let place = Place::new();
        let model = only(vector(dtype, &zeros));
        let paths = place.models(&[model.clone(), model.clone(), model.clone()]);
        for (method, base) in [
            ("karcher", false),
            ("linear", false),
            ("geometric_median", false),
            ("multislerp", false),
            ("multislerp", true),
            ("nuslerp", true),
            ("model_stock", true),
            ("task_arithmetic", true),
        ] {
            let weights = (method != "model_stock").then_some([3.0, 1.0, 70.0]);
            let run = Run::new(recipe(
                method,
                &paths,
                weights.as_ref().map(<[f64; 3]>::as_slice),
            ));
            let run = if base { based(run, &paths[0]) } else { run };
            for granularity in ["tensor", "row", "model"] {
                let got = place.merged(&run.clone().with("granularity", granularity));
                assert_same(
                    &got,
                    &model,
                    &format!("{method} of {dtype:?} by {granularity}"),
                );
            }
        }
    }
    assert!(distance(&zeros, &[0.0; CHUNK + 3]) == 0.0);
}

#[test]
fn what_a_type_without_infinity_cannot_hold_is_refused_unless_nan_is_let_through() {
    let place = Place::new();
    // The differences are nearly opposite to each other, and model_stock goes far beyond the base.
    let values: [&[f64]; 3] = [
        &[400.0, 1.0, 0.0],
        &[400.0, 120.0, 2.0],
        &[400.0, -110.0, 2.0],
    ];
    let models: Vec<Model> = values
        .iter()
        .map(|values| only(vector(Dtype::F8_E4M3, values)))
        .collect();
    let paths = place.models(&models);
    let stock = based(Run::new(recipe("model_stock", &paths, None)), &paths[0]);
    let sum = Run::new(recipe("linear", &paths, Some(&[1.0; 3])))
        .with("parameters", json!({ "normalize": false }));
    let scaled = based(
        Run::new(recipe("task_arithmetic", &paths, Some(&[0.0, 9.0, 0.0]))),
        &paths[0],
    );
    for (run, index) in [(sum, 0), (scaled, 1), (stock, 2)] {
        let error = place.refused(&run);
        assert_eq!(error.exit_code(), 1, "{error}");
        let words = error.to_string();
        if index < 2 {
            assert!(words.contains(&format!("flat index {index}")), "{words}");
        }
        assert!(
            words.contains(": w: ") && words.contains("F8_E4M3"),
            "{words}"
        );
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("nan: propagate")),
            "{error}"
        );
        let got = place.merged(&run.clone().with("nan", "propagate"));
        assert!(got["w"].values.iter().any(|value| value.is_nan()));
        let wider = place.merged(&run.with("dtype", "float8_e5m2"));
        assert!(wider["w"].values.iter().all(|value| !value.is_nan()));
    }
}

#[test]
fn a_median_does_not_depend_on_the_order_of_inputs_of_which_one_is_far_larger() {
    for far in [1.0, 1e3, 1e6, 1e8, 1e10] {
        for (dtype, near) in [(Dtype::F32, 1.0), (Dtype::F64, 1.0), (Dtype::F64, 1e-6)] {
            let mut random = Random::new(913);
            let shared = random.gaussian(40);
            let mut values: Vec<Vec<f64>> = (0..3)
                .map(|_| {
                    shared
                        .iter()
                        .zip(random.gaussian(40))
                        .map(|(x, noise)| x + near * noise)
                        .collect()
                })
                .collect();
            values.push(random.gaussian(40).into_iter().map(|x| far * x).collect());
            let about = format!("{far:e} of {dtype:?}, {near:e} near");
            let stored: Vec<Model> = values
                .iter()
                .map(|values| only(vector(dtype, values)))
                .collect();
            let views: Vec<&[f64]> = stored
                .iter()
                .map(|model| model["w"].values.as_slice())
                .collect();
            let wanted = Rule::GeometricMedian {
                weights: vec![1.0; 4],
            }
            .apply(&views);
            for turn in 0..4 {
                let place = Place::new();
                let mut models = stored.clone();
                models.rotate_left(turn);
                let run = Run::new(recipe("geometric_median", &place.models(&models), None))
                    .with("dtype", "float64");
                let out = place.path("out");
                let report = run.merge_to(&out).expect("a merge that succeeds");
                assert!(report.warnings.is_empty(), "{about}: {:?}", report.warnings);
                let got = read_model(&out)["w"].values.clone();
                // The reference ends where its steps do.
                let error = distance(&got, &wanted) / distance(&wanted, views[0]);
                assert!(error < 1e-9, "{about}, turned by {turn}: {error:e}");
            }
        }
    }
}

#[test]
fn a_median_of_many_halves_converges() {
    let mut random = Random::new(914);
    for kinship in [
        Kinship::Independent,
        Kinship::Cosine(0.9),
        Kinship::Cosine(0.9998),
    ] {
        let place = Place::new();
        let models = random_models(&mut random, &[Dtype::F16; 3], &[&[262_147]], kinship);
        let run = Run::new(recipe(
            "geometric_median",
            &place.models(&models),
            Some(&[1.0, 1.2, 0.9]),
        ));
        let out = place.path("out");
        let report = run
            .clone()
            .with("dtype", "float64")
            .merge_to(&out)
            .expect("a merge that succeeds");
        assert_eq!(
            (
                report.solved.converged,
                report.solved.floor,
                report.solved.exhausted
            ),
            (1, 0, 0),
            "{kinship:?}"
        );
        let y = read_model(&out)
            .remove("t[262147]")
            .expect("the tensor")
            .values;
        // The gradient at what was written, in f64 on whole vectors.
        let mut gradient = vec![0.0; y.len()];
        for (model, weight) in models.iter().zip([1.0, 1.2, 0.9]) {
            let x = &model["t[262147]"].values;
            let share = weight / distance(x, &y);
            gradient
                .iter_mut()
                .zip(x)
                .zip(&y)
                .for_each(|((gradient, x), y)| *gradient += share * (y - x));
        }
        assert!(
            norm(&gradient) < 1e-10,
            "{kinship:?}: {:e}",
            norm(&gradient)
        );
    }
}

#[test]
fn values_whose_squares_vanish_are_refused_and_not_taken_for_zeros() {
    let place = Place::new();
    let tiny = vector(Dtype::F64, &[3e-163, 4e-163]);
    let other = vector(Dtype::F64, &[4e-163, -3e-163]);
    let paths = place.models(&[only(tiny.clone()), only(other), only(tiny)]);
    for method in ["karcher", "multislerp", "geometric_median", "model_stock"] {
        let weights = (method != "model_stock").then_some([1.0; 3]);
        let run = Run::new(recipe(
            method,
            &paths,
            weights.as_ref().map(<[f64; 3]>::as_slice),
        ));
        let run = if method == "model_stock" {
            based(run, &paths[0])
        } else {
            run
        };
        for granularity in ["tensor", "row", "model"] {
            let error = place.refused(&run.clone().with("granularity", granularity));
            assert!(error.to_string().contains("underflow"), "{method}: {error}");
            assert!(
                error.hint().is_some_and(|hint| hint.contains("linear")),
                "{method}"
            );
        }
    }
    let got = place.merged(&Run::new(recipe("linear", &paths, Some(&[1.0, 0.0, 1.0]))));
    assert_eq!(got["w"].values, [3e-163, 4e-163]);
    // Beside others they count for as little as they are, in whatever chunk.
    let mut values = vec![0.5; 2 * CHUNK];
    values[CHUNK..].fill(1e-200);
    let turned: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(k, x)| if k % 2 == 0 { *x } else { -x })
        .collect();
    let paths = place.models(&[
        only(vector(Dtype::F64, &values)),
        only(vector(Dtype::F64, &turned)),
    ]);
    let got = place.merged(&Run::karcher(&paths));
    let half = got["w"].values[0] / values[0];
    assert!((got["w"].values[CHUNK] / 1e-200 / half - 1.0).abs() < 1e-14);
}
