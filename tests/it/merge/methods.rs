//! Every method through a recipe, against its formula.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{Kinship, Place, Run, random_models, recipe};
use crate::support::reference::{Granularity, Model, Random, Rule, distance, merge, norm};

const SHAPES: [&[usize]; 4] = [&[300], &[12, 30], &[4, 5, 20], &[33_000]];

/// Four related models on disk.
struct Four {
    place: Place,
    models: Vec<Model>,
    paths: Vec<std::path::PathBuf>,
}

impl Four {
    fn new() -> Self {
        let place = Place::new();
        let models = random_models(
            &mut Random::new(200),
            &[Dtype::F32; 4],
            &SHAPES,
            Kinship::Cosine(0.9),
        );
        let paths = place.models(&models);
        Self {
            place,
            models,
            paths,
        }
    }

    /// The recipe of `method` over the models of these indexes.
    fn recipe(
        &self,
        method: &str,
        of: &[usize],
        weights: Option<&[f64]>,
        parameters: &Value,
    ) -> Run {
        let paths: Vec<_> = of.iter().map(|i| self.paths[*i].clone()).collect();
        let mut recipe = recipe(method, &paths, weights);
        if parameters
            .as_object()
            .is_some_and(|parameters| !parameters.is_empty())
        {
            recipe["parameters"] = parameters.clone();
        }
        Run::new(recipe)
    }

    fn based(&self, run: Run, base: usize) -> Run {
        run.with("base_model", self.paths[base].to_str().expect("text"))
    }

    /// Asserts that `run` gives what `rule` says of the models of these indexes, tensor by tensor
    /// and over the model.
    fn check(&self, run: &Run, of: &[usize], rule: &Rule) {
        for (name, by) in [
            ("tensor", Granularity::Tensor),
            ("row", Granularity::Row),
            ("model", Granularity::Model),
        ] {
            self.check_by(&run.clone().with("granularity", name), of, rule, by);
        }
    }

    fn check_by(&self, run: &Run, of: &[usize], rule: &Rule, by: Granularity) {
        let models: Vec<Model> = of.iter().map(|i| self.models[*i].clone()).collect();
        let got = self.place.merged(run);
        for (name, wanted) in merge(&models, rule, by) {
            let error = distance(&got[&name].values, &wanted) / norm(&wanted);
            // Half a step of f32 is 6e-8 of each element.
            assert!(error < 1e-6, "{rule:?} by {by:?}, {name}: {error:e}");
            assert!(norm(&wanted) > 0.0, "nothing was compared");
        }
    }
}

#[test]
fn linear_is_the_weighted_mean_or_sum() {
    let four = Four::new();
    let weights = [1.0, 2.0, -0.5, 0.25];
    for normalize in [true, false] {
        let run = four.recipe(
            "linear",
            &[0, 1, 2, 3],
            Some(&weights),
            &json!({ "normalize": normalize }),
        );
        four.check(
            &run,
            &[0, 1, 2, 3],
            &Rule::Linear {
                weights: weights.to_vec(),
                normalize,
            },
        );
    }
}

#[test]
fn passthrough_is_one_model_scaled() {
    let four = Four::new();
    let run = four.recipe("passthrough", &[2], None, &json!({ "scale": -1.5 }));
    four.check(&run, &[2], &Rule::Passthrough { scale: -1.5 });
    let run = four.recipe("passthrough", &[2], None, &json!({}));
    super::assert_same(&four.place.merged(&run), &four.models[2], "passthrough");
}

#[test]
fn task_arithmetic_adds_differences_to_the_base() {
    let four = Four::new();
    let weights = [9.0, 0.6, -0.2, 0.8];
    for (base, normalize) in [(0, false), (0, true), (2, false)] {
        let parameters = json!({ "normalize": normalize, "lambda": 1.3 });
        let run = four.recipe(
            "task_arithmetic",
            &[0, 1, 2, 3],
            Some(&weights),
            &parameters,
        );
        let rule = Rule::TaskArithmetic {
            base,
            weights: weights.to_vec(),
            normalize,
            lambda: 1.3,
        };
        four.check(&four.based(run, base), &[0, 1, 2, 3], &rule);
    }
}

#[test]
fn slerp_goes_from_the_base_to_the_other_model() {
    let four = Four::new();
    for (base, t) in [(0, 0.3), (1, 0.3), (0, 0.0), (0, 1.0), (0, 0.5)] {
        let run = four.recipe("slerp", &[0, 1], None, &json!({ "t": t }));
        four.check(&four.based(run, base), &[0, 1], &Rule::Slerp { base, t });
    }
}

#[test]
fn nuslerp_goes_between_models_or_their_differences_from_a_base() {
    let four = Four::new();
    let weights = [0.4, 1.2, 7.0];
    let run = four.recipe("nuslerp", &[0, 1], Some(&weights[..2]), &json!({}));
    four.check(
        &run,
        &[0, 1],
        &Rule::Nuslerp {
            weights: weights[..2].to_vec(),
            base: None,
        },
    );
    // A base that the models do not list comes last.
    let rule = Rule::Nuslerp {
        weights: weights.to_vec(),
        base: Some(2),
    };
    four.check(&four.based(run, 2), &[0, 1, 2], &rule);
}

/// The models with every tensor reshaped to vectors along its last axis, so that rows of the
/// reference are those.
fn by_last_axis(models: &[Model]) -> Vec<Model> {
    let reshaped = |model: &Model| {
        let mut model = model.clone();
        for tensor in model.values_mut().filter(|tensor| tensor.shape.len() > 2) {
            let last = *tensor.shape.last().expect("several axes");
            tensor.shape = vec![tensor.values.len() / last, last];
        }
        model
    };
    models.iter().map(reshaped).collect()
}

#[test]
fn vectors_along_the_last_axis_have_their_own_factors_where_that_is_asked_for() {
    let mut four = Four::new();
    let nuslerp = four.recipe(
        "nuslerp",
        &[0, 1],
        Some(&[1.0, 2.0]),
        &json!({ "nuslerp_flatten": false }),
    );
    let stock = four.based(
        four.recipe(
            "model_stock",
            &[0, 1, 2, 3],
            None,
            &json!({ "filter_wise": true }),
        ),
        0,
    );
    four.models = by_last_axis(&four.models);
    four.check_by(
        &nuslerp,
        &[0, 1],
        &Rule::Nuslerp {
            weights: vec![1.0, 2.0],
            base: None,
        },
        Granularity::Row,
    );
    four.check_by(
        &stock,
        &[0, 1, 2, 3],
        &Rule::ModelStock { base: 0 },
        Granularity::Row,
    );
}

#[test]
fn multislerp_is_the_normalised_mean_direction() {
    let four = Four::new();
    let weights = [0.4, 1.2, 0.9, 0.1];
    for normalize in [true, false] {
        let parameters = json!({ "normalize_weights": normalize });
        let run = four.recipe("multislerp", &[0, 1, 2, 3], Some(&weights), &parameters);
        for base in [None, Some(3)] {
            let run = base.map_or(run.clone(), |base| four.based(run.clone(), base));
            let rule = Rule::Multislerp {
                weights: weights.to_vec(),
                normalize,
                eps: 1e-8,
                base,
            };
            four.check(&run, &[0, 1, 2, 3], &rule);
        }
    }
}

#[test]
fn karcher_and_frechet_are_the_mean_on_the_sphere() {
    let four = Four::new();
    let weights = vec![0.4, 1.2, 0.9, 0.1];
    let rule = Rule::Karcher {
        weights: weights.clone(),
        max_iter: 40,
    };
    four.check(
        &four.recipe("karcher", &[0, 1, 2, 3], Some(&weights), &json!({})),
        &[0, 1, 2, 3],
        &rule,
    );
    let frechet = four.recipe("frechet", &[0, 1, 2, 3], Some(&weights), &json!({}));
    four.check_by(&frechet, &[0, 1, 2, 3], &rule, Granularity::Model);
    // A base of these is one more model, last if it was not listed.
    let based = four.based(four.recipe("karcher", &[1, 2], None, &json!({})), 0);
    let rule = Rule::Karcher {
        weights: vec![1.0; 3],
        max_iter: 40,
    };
    four.check(&based, &[1, 2, 0], &rule);
    // Fewer steps are fewer steps.
    let short = four.recipe(
        "karcher",
        &[0, 1, 2, 3],
        Some(&weights),
        &json!({ "max_iter": 1 }),
    );
    four.check(
        &short,
        &[0, 1, 2, 3],
        &Rule::Karcher {
            weights,
            max_iter: 1,
        },
    );
}

#[test]
fn model_stock_is_drawn_towards_the_base() {
    let four = Four::new();
    for base in [0, 3] {
        let run = four.based(
            four.recipe("model_stock", &[0, 1, 2, 3], None, &json!({})),
            base,
        );
        four.check(&run, &[0, 1, 2, 3], &Rule::ModelStock { base });
    }
}

#[test]
fn geometric_median_has_the_least_sum_of_distances() {
    let four = Four::new();
    let weights = vec![0.4, 0.5, 0.6, 0.45];
    let run = four.recipe(
        "geometric_median",
        &[0, 1, 2, 3],
        Some(&weights),
        &json!({}),
    );
    four.check(&run, &[0, 1, 2, 3], &Rule::GeometricMedian { weights });
}

#[test]
fn parameters_hold_for_the_tensors_that_a_filter_names() {
    let four = Four::new();
    let by_name =
        |values: [f64; 2]| json!([{ "filter": "12", "value": values[0] }, { "value": values[1] }]);
    let mut run = four.recipe("linear", &[0, 1], Some(&[1.0, 1.0]), &json!({}));
    run.recipe["models"][1]["parameters"]["weight"] = by_name([3.0, 0.5]);
    let got = four.place.merged(&run);
    for (name, tensor) in &got {
        let weights = if name.contains("12") {
            vec![1.0, 3.0]
        } else {
            vec![1.0, 0.5]
        };
        let inputs = [
            four.models[0][name].values.as_slice(),
            four.models[1][name].values.as_slice(),
        ];
        let wanted = Rule::Linear {
            weights,
            normalize: true,
        }
        .apply(&inputs);
        assert!(
            distance(&tensor.values, &wanted) < 1e-6 * norm(&wanted),
            "{name}"
        );
    }
}

#[test]
fn slices_stack_layers_of_several_models() {
    let place = Place::new();
    let mut random = Random::new(201);
    let shapes: [&[usize]; 1] = [&[40]];
    let names = [
        "model.embed_tokens.weight",
        "model.layers.0.w",
        "model.layers.1.w",
        "lm_head.weight",
    ];
    let models: Vec<Model> = (0..2)
        .map(|_| {
            let tensor = |name: &str| {
                let one = random_models(&mut random, &[Dtype::F32], &shapes, Kinship::Independent)
                    .remove(0);
                (
                    name.to_owned(),
                    one.into_values().next().expect("one tensor"),
                )
            };
            names.map(tensor).into_iter().collect()
        })
        .collect();
    let paths = place.models(&models);
    let slice = |model: usize, from: u32, to: u32| json!({ "sources": [{ "model": paths[model], "layer_range": [from, to] }] });
    let recipe = json!({ "merge_method": "passthrough", "slices": [slice(0, 0, 2), slice(1, 0, 1), slice(1, 1, 2)] });
    let got = place.merged(&Run::new(recipe));
    let wanted: Model = [
        (names[0], &models[0], names[0]),
        ("model.layers.0.w", &models[0], names[1]),
        ("model.layers.1.w", &models[0], names[2]),
        ("model.layers.2.w", &models[1], names[1]),
        ("model.layers.3.w", &models[1], names[2]),
        (names[3], &models[1], names[3]),
    ]
    .into_iter()
    .map(|(name, model, from)| (name.to_owned(), model[from].clone()))
    .collect();
    super::assert_same(&got, &wanted, "slices");
}
