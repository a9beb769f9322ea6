//! Odd inputs and weights, each with its defined result.

use safetensors::Dtype;
use serde_json::json;
use thalweg::error::Kind;
use thalweg::kernel::CHUNK;
use thalweg::report::Report;

use super::{
    Kinship, Place, Run, assert_rounded, assert_same, only, random_models, recipe, vector,
};
use crate::support::reference::files::read_model;
use crate::support::reference::{Granularity, Model, Random, Rule, Tensor, merge};

/// The result and the report of a merge.
fn reported(place: &Place, run: &Run) -> (Model, Report) {
    let out = place.path("reported");
    let report = run.merge_to(&out).expect("a merge that succeeds");
    let model = read_model(&out);
    std::fs::remove_dir_all(out).expect("an output");
    (model, report)
}

/// Asserts that exactly the warnings with these words were given.
fn assert_warned(report: &Report, wanted: &[&str]) {
    assert_eq!(
        report.warnings.len(),
        wanted.len(),
        "wanted {wanted:?}, got {:?}",
        report.warnings
    );
    for words in wanted {
        assert!(
            report.warnings.iter().any(|line| line.contains(words)),
            "{words}: {:?}",
            report.warnings
        );
    }
}

/// Merges vectors of F32 that hold these values, and compares with the reference.
fn of_vectors(inputs: &[&[f64]], weights: &[f64], warnings: &[&str]) {
    let place = Place::new();
    let models: Vec<Model> = inputs
        .iter()
        .map(|values| only(vector(Dtype::F32, values)))
        .collect();
    let run = Run::weighted(&place.models(&models), weights);
    let rule = Rule::Karcher {
        weights: weights.to_vec(),
        max_iter: 200,
    };
    for granularity in ["tensor", "row", "model"] {
        let (got, report) = reported(&place, &run.clone().with("granularity", granularity));
        assert_rounded(
            &got,
            &merge(&models, &rule, Granularity::Tensor),
            &format!("{inputs:?} by {granularity}"),
        );
        assert_warned(&report, warnings);
    }
}

const ZERO: &str = "an input is zero";
const ALL_ZERO: &str = "all inputs with a weight are zero";
const OPPOSITE: &str = "opposite";
const VANISHES: &str = "cancel";
const BEYOND: &str = "more than a right angle";

#[test]
fn a_zero_tensor_counts_for_the_norm_only() {
    of_vectors(
        &[&[3.0, 4.0, 0.0], &[0.0; 3], &[0.0, 5.0, 1.0]],
        &[0.5, 0.25, 0.25],
        &[ZERO],
    );
    of_vectors(&[&[3.0, 4.0], &[0.0; 2]], &[0.25, 0.75], &[ZERO]);
}

#[test]
fn zeros_give_zeros() {
    of_vectors(
        &[&[0.0; 5], &[0.0; 5], &[0.0; 5]],
        &[1.0; 3],
        &[ZERO, ALL_ZERO],
    );
}

#[test]
fn a_model_without_weight_that_is_not_zero_does_not_keep_zeros_from_being_zero() {
    of_vectors(
        &[&[0.0; 5], &[1.0; 5], &[0.0; 5]],
        &[1.0, 0.0, 1.0],
        &[ZERO, ALL_ZERO],
    );
}

#[test]
fn opposite_inputs_have_the_direction_of_the_heavier_one() {
    // By the table: weights, then whose direction it is.
    of_vectors(
        &[&[1.0, -2.0], &[-1.0, 2.0]],
        &[0.5, 0.5],
        &[OPPOSITE, VANISHES, BEYOND],
    );
    of_vectors(
        &[&[1.0, -2.0], &[-3.0, 6.0]],
        &[0.25, 0.75],
        &[OPPOSITE, BEYOND],
    );
}

#[test]
fn inputs_beyond_a_right_angle_are_flagged() {
    let at = |degrees: f64| [degrees.to_radians().cos(), degrees.to_radians().sin(), 0.0];
    let three = [at(0.0), at(100.0), at(200.0)];
    of_vectors(&[&three[0], &three[1], &three[2]], &[1.0; 3], &[BEYOND]);
    of_vectors(&[&at(0.0), &at(80.0), &at(160.0)], &[1.0; 3], &[]);
}

#[test]
fn scalars_of_one_sign_have_their_mean_and_of_two_signs_that_of_the_heavier_side() {
    of_vectors(&[&[2.0], &[4.0]], &[0.5, 0.5], &[]);
    of_vectors(&[&[-2.0], &[-4.0], &[3.0]], &[1.0; 3], &[OPPOSITE, BEYOND]);
}

#[test]
fn equal_models_are_copied_bit_for_bit_whatever_the_dtype_and_the_weights() {
    let shapes: [&[usize]; 5] = [&[], &[0], &[33], &[50, 20], &[2 * CHUNK + 1]];
    for dtype in [
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F8_E4M3,
        Dtype::F8_E5M2,
    ] {
        let place = Place::new();
        let mut model = random_models(
            &mut Random::new(500),
            &[dtype],
            &shapes,
            Kinship::Independent,
        )
        .remove(0);
        model.insert("zeros".into(), Tensor::rounded(dtype, &[2], &[0.0, 0.0]));
        model.insert(
            "tiny".into(),
            Tensor::rounded(dtype, &[2], &[2f64.powi(-16), -(2f64.powi(-9))]),
        );
        let paths = place.models(&[model.clone(), model.clone(), model.clone()]);
        for granularity in ["tensor", "row", "model"] {
            let run = Run::weighted(&paths, &[0.3, 0.3, 0.4]).with("granularity", granularity);
            for run in [run.clone(), run.small_blocks()] {
                let about = format!("{dtype:?} by {granularity}");
                assert_same(&place.merged(&run), &model, &about);
                assert_same(
                    &place.merged(&run.with("merge_method", "linear")),
                    &model,
                    &format!("linear, {about}"),
                );
            }
        }
    }
}

#[test]
fn one_model_is_copied_bit_for_bit_and_rounded_once_to_another_dtype() {
    let place = Place::new();
    let shapes: [&[usize]; 3] = [&[], &[7, 9], &[CHUNK + 1]];
    let model = random_models(
        &mut Random::new(501),
        &[Dtype::F32],
        &shapes,
        Kinship::Independent,
    )
    .remove(0);
    let path = place.model("one", &model);
    for method in ["karcher", "frechet", "geometric_median"] {
        let run = Run::new(recipe(method, std::slice::from_ref(&path), Some(&[0.7])));
        assert_same(&place.merged(&run), &model, method);
        let halves = place.merged(&run.with("dtype", "bfloat16"));
        for (name, tensor) in &model {
            assert_eq!(
                halves[name],
                Tensor::rounded(Dtype::BF16, &tensor.shape, &tensor.values),
                "{method}, {name}"
            );
        }
    }
}

#[test]
fn a_model_given_twice_counts_twice() {
    let place = Place::new();
    let models = random_models(
        &mut Random::new(502),
        &[Dtype::F32; 2],
        &[&[600]],
        Kinship::Cosine(0.5),
    );
    let paths = place.models(&models);
    let twice = place.merged(&Run::karcher(&[
        paths[0].clone(),
        paths[1].clone(),
        paths[0].clone(),
    ]));
    let rule = Rule::Karcher {
        weights: vec![2.0, 1.0],
        max_iter: 100,
    };
    assert_rounded(&twice, &merge(&models, &rule, Granularity::Tensor), "twice");
}

#[test]
fn only_the_ratios_of_weights_matter() {
    let place = Place::new();
    let models = random_models(
        &mut Random::new(503),
        &[Dtype::F32; 3],
        &[&[600], &[20, 30]],
        Kinship::Cosine(0.5),
    );
    let paths = place.models(&models);
    let first = place.merged(&Run::weighted(&paths, &[0.5, 0.25, 0.25]));
    for weights in [
        [2.0, 1.0, 1.0],
        [1e-300, 5e-301, 5e-301],
        [64.0, 32.0, 32.0],
    ] {
        assert_same(
            &place.merged(&Run::weighted(&paths, &weights)),
            &first,
            &format!("{weights:?}"),
        );
    }
    let odd = Run::weighted(&paths, &[3.0, 1.5, 0.7]);
    let rule = Rule::Karcher {
        weights: vec![3.0, 1.5, 0.7],
        max_iter: 100,
    };
    assert_rounded(
        &place.merged(&odd),
        &merge(&models, &rule, Granularity::Tensor),
        "odd weights",
    );
}

#[test]
fn a_model_of_weight_zero_takes_no_part() {
    let place = Place::new();
    let models = random_models(
        &mut Random::new(504),
        &[Dtype::F32; 3],
        &[&[600], &[20, 30]],
        Kinship::Independent,
    );
    let paths = place.models(&models);
    let two = [paths[0].clone(), paths[2].clone()];
    for granularity in ["tensor", "row", "model"] {
        let with = Run::weighted(&paths, &[0.6, 0.0, 0.4]).with("granularity", granularity);
        let without = Run::weighted(&two, &[0.6, 0.4]).with("granularity", granularity);
        assert_same(&place.merged(&with), &place.merged(&without), granularity);
    }
    let alone = place.merged(&Run::weighted(&paths, &[0.0, 2.0, 0.0]));
    assert_same(&alone, &models[1], "the only weight");
}

#[test]
fn weights_that_make_no_mean_are_refused_before_anything_is_read() {
    let place = Place::new();
    let models = random_models(
        &mut Random::new(505),
        &[Dtype::F32; 2],
        &[&[6]],
        Kinship::Independent,
    );
    let paths = place.models(&models);
    for weights in [json!([0.5, -0.5]), json!([0.0, 0.0]), json!([1.0, "x"])] {
        for method in ["karcher", "geometric_median"] {
            let mut run = Run::new(recipe(method, &paths, Some(&[1.0, 1.0])));
            for i in 0..2 {
                run.recipe["models"][i]["parameters"]["weight"] = weights[i].clone();
            }
            let error = place.refused(&run);
            assert_eq!(
                (error.kind(), error.exit_code()),
                (Kind::Recipe, 2),
                "{method} {weights}: {error}"
            );
        }
    }
}

#[test]
fn values_too_large_for_the_output_are_reported() {
    let place = Place::new();
    let models =
        [[1e5, 1.0, -1e5], [1e5, 3.0, -3e5]].map(|values| only(vector(Dtype::F32, &values)));
    let run = Run::weighted(&place.models(&models), &[1.0, 1.0]);
    let (got, report) = reported(&place, &run.clone().with("dtype", "float16"));
    assert_eq!(
        (got["w"].values[0], got["w"].values[2]),
        (f64::INFINITY, f64::NEG_INFINITY)
    );
    assert!(got["w"].values[1].is_finite());
    assert_warned(&report, &["became infinite"]);
    assert_warned(&reported(&place, &run.with("dtype", "bfloat16")).1, &[]);
}

#[test]
fn an_iteration_that_ends_early_is_flagged() {
    let place = Place::new();
    let models = random_models(
        &mut Random::new(506),
        &[Dtype::F32; 3],
        &[&[600]],
        Kinship::Independent,
    );
    let run = Run::weighted(&place.models(&models), &[0.5, 0.3, 0.2]);
    let (_, report) = reported(
        &place,
        &run.clone().with("parameters", json!({ "max_iter": 2 })),
    );
    assert_warned(&report, &["ended at its limit"]);
    assert_eq!(
        (report.solved.exhausted, report.solved.most_iterations),
        (1, 2)
    );
    let (_, report) = reported(&place, &run);
    assert_warned(&report, &[]);
    assert_eq!((report.solved.exhausted, report.solved.converged), (0, 1));
}
