//! Parameters that differ between layers and tensors, slices, and places of models.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{Choice, FAMILY, Trial, dense, fine_tunes};
use crate::merge::{Place, Run, assert_same};
use crate::support::reference::selecting::{Keys, Method, Part, merge_elements};
use crate::support::reference::{Model, Random};

/// Three models of three layers, an embedding and a norm, the base first.
fn layered(random: &mut Random, dtype: Dtype) -> Vec<Model> {
    let mut models = vec![Model::new(); 3];
    let mut add = |name: String| {
        let own = fine_tunes(random, &[dtype; 3], &[&[30, 20]]);
        for (model, own) in models.iter_mut().zip(own) {
            let tensor = own.into_values().next().expect("one tensor");
            assert!(model.insert(name.clone(), tensor).is_none());
        }
    };
    for layer in 0..3 {
        add(format!("model.layers.{layer}.mlp.w"));
        add(format!("model.layers.{layer}.attn.w"));
    }
    add("model.embed_tokens.weight".to_owned());
    add("model.norm.weight".to_owned());
    models
}

/// Where a tensor lies between the first and the last of three layers.
fn depth(name: &str) -> f64 {
    (1..3)
        .find(|layer| name.contains(&format!("layers.{layer}.")))
        .map_or(0.0, |layer| f64::from(layer) / 2.0)
}

#[test]
fn gradients_and_filters_give_each_tensor_its_parameters() {
    let mut random = Random::new(750);
    for name in FAMILY {
        for dtype in [Dtype::F32, Dtype::BF16] {
            let models = layered(&mut random, dtype);
            let of = |tensor: &str| {
                let one = Part {
                    weight: if tensor.contains("mlp") { 0.5 } else { 1.0 },
                    density: 0.2 + 0.6 * depth(tensor),
                    epsilon: 0.1,
                    gamma: 0.05,
                };
                let two = Part {
                    weight: 1.0 - 0.5 * depth(tensor),
                    density: if tensor.contains("norm") { 1.0 } else { 0.3 },
                    ..one
                };
                Choice::of(name, &[one, two])
                    .with("lambda", if tensor.contains("attn") { 0.5 } else { 2.0 })
            };
            let trial = Trial::new(models, of("model.norm.weight"));
            let place = Place::in_memory();
            let mut run = trial.run(&place);
            let by = |filter: &str, value: f64, other: f64| json!([{"filter": filter, "value": value}, {"value": other}]);
            let [one, two] = [0, 1].map(|model: usize| {
                let mut own = run.recipe["models"][model]["parameters"].clone();
                if model == 0 {
                    own["weight"] = by("mlp", 0.5, 1.0);
                    own["density"] = json!([0.2, 0.5, 0.8]);
                } else {
                    own["weight"] = json!([1.0, 0.5]);
                    own["density"] = by("norm", 1.0, 0.3);
                }
                own
            });
            run.recipe["models"][0]["parameters"] = one;
            run.recipe["models"][1]["parameters"] = two;
            run.recipe["parameters"]["lambda"] = by("attn", 0.5, 2.0);
            let wanted = trial.wanted_by(&|tensor| of(tensor).method());
            trial.compare_with(&place.merged(&run), &wanted);
        }
    }
}

#[test]
fn other_methods_have_their_parameters_by_tensor_too() {
    let mut random = Random::new(751);
    let models = layered(&mut random, Dtype::F32);
    let choice = |name: &'static str, parameter: &'static str, value: f64| {
        Choice::of(name, &dense(1.0, 2)).with(parameter, value)
    };
    for (name, parameter) in [
        ("sce", "select_topk"),
        ("ram", "epsilon"),
        ("ramplus_tl", "alpha"),
    ] {
        let trial = Trial::new(models.clone(), choice(name, parameter, 0.0));
        let place = Place::in_memory();
        let mut run = trial.run(&place);
        run.recipe["parameters"][parameter] = json!([0.125, 0.625]);
        let of = |tensor: &str| -> Method {
            choice(name, parameter, 0.125 + 0.5 * depth(tensor)).method()
        };
        trial.compare_with(&place.merged(&run), &trial.wanted_by(&of));
    }
    let two: Vec<Model> = models[..2].to_vec();
    let near = |t: f64| Choice::of("nearswap", &dense(1.0, 1)).with("t", t);
    let trial = Trial::new(two, near(0.0));
    let place = Place::in_memory();
    let mut run = trial.run(&place);
    run.recipe["parameters"]["t"] = json!([0.0, 0.01]);
    let of = |tensor: &str| near(0.01 * depth(tensor)).method();
    trial.compare_with(&place.merged(&run), &trial.wanted_by(&of));
}

/// The layers 2 and 0 of each model, under the names that they have in the output.
fn stacked(models: &[Model]) -> Vec<Model> {
    let renamed = |name: &String| {
        let [to, from] = [("layers.0.", "layers.2."), ("layers.1.", "layers.0.")]
            .into_iter()
            .find(|(to, _)| name.contains(to))
            .map_or(["", ""], |(to, from)| [to, from]);
        name.replace(to, from)
    };
    let names: Vec<String> = models[0]
        .keys()
        .filter(|name| !name.contains("layers.2."))
        .cloned()
        .collect();
    let stack = |model: &Model| {
        names
            .iter()
            .map(|name| (name.clone(), model[&renamed(name)].clone()))
            .collect()
    };
    models.iter().map(stack).collect()
}

#[test]
fn slices_are_merged_as_if_models_had_been_stacked_before() {
    let mut random = Random::new(752);
    for name in FAMILY {
        let models = layered(&mut random, Dtype::BF16);
        let choice = Choice::of(name, &dense(0.5, 2));
        let trial = Trial {
            base: Some(0),
            ..Trial::new(models.clone(), choice.clone())
        };
        let place = Place::in_memory();
        let mut recipe: Value = trial.run(&place).recipe;
        let slice = |range: [u32; 2]| {
            let sources: Vec<Value> = recipe["models"]
                .as_array()
                .expect("models")
                .iter()
                .map(|model| {
                    let mut source = model.clone();
                    source["layer_range"] = json!(range);
                    source
                })
                .collect();
            json!({ "sources": sources })
        };
        let slices = json!([slice([2, 3]), slice([0, 1])]);
        recipe["slices"] = slices;
        recipe.as_object_mut().expect("a mapping").remove("models");
        let got = place.merged(&Run::new(recipe));
        let whole = Trial {
            models: stacked(&models),
            ..trial
        };
        assert_eq!(got.len(), 6, "{name}");
        whole.compare(&got);
    }
}

#[test]
fn a_base_that_is_listed_counts_as_a_place() {
    let mut random = Random::new(753);
    let models = fine_tunes(&mut random, &[Dtype::BF16; 3], &[&[60, 60]]);
    for name in ["ties", "dare_linear", "della"] {
        let outputs: Vec<Model> = [None, Some(0), Some(1), Some(2)]
            .into_iter()
            .map(|base| {
                let trial = Trial {
                    base,
                    ..Trial::new(models.clone(), Choice::of(name, &dense(0.3, 2)))
                };
                let place = Place::in_memory();
                let got = place.merged(&trial.run(&place));
                trial.compare(&got);
                got
            })
            .collect();
        assert_same(&outputs[0], &outputs[3], name);
        assert_ne!(outputs[0], outputs[1], "{name}");
        assert_ne!(outputs[1], outputs[2], "{name}");
    }
}

#[test]
fn one_model_of_full_weight_and_density_is_copied() {
    let mut random = Random::new(754);
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let models = fine_tunes(&mut random, &[dtype; 2], &[&[60, 60], &[9]]);
        for name in FAMILY {
            let trial = Trial::new(models.clone(), Choice::of(name, &dense(1.0, 1)));
            let place = Place::in_memory();
            assert_same(&place.merged(&trial.run(&place)), &models[1], name);
        }
    }
}

#[test]
fn a_base_alone_stays_as_it_is() {
    let mut random = Random::new(755);
    let models = fine_tunes(&mut random, &[Dtype::BF16], &[&[60, 60], &[9]]);
    for name in FAMILY {
        let mut trial = Trial::new(models.clone(), Choice::of(name, &[]));
        trial.base = Some(0);
        let place = Place::in_memory();
        assert_same(&place.merged(&trial.run(&place)), &models[0], name);
    }
}

#[test]
fn seeds_and_names_decide_the_draws_and_nothing_else_does() {
    let mut random = Random::new(756);
    let models = fine_tunes(&mut random, &[Dtype::BF16; 3], &[&[60, 60]]);
    for name in ["ties", "dare_ties", "della"] {
        let of = |seed: u64| {
            let keys = Keys {
                seed,
                ..Keys::USUAL
            };
            let trial = Trial::new(models.clone(), Choice::of(name, &dense(0.4, 2))).by(keys);
            let place = Place::in_memory();
            place.merged(&trial.run(&place))
        };
        assert_ne!(of(0), of(1), "{name}");
        assert_same(&of(5), &of(5), name);
    }
    // The definition itself tells the seeds apart in the same way.
    let of = |seed| {
        let method = Choice::of("dare_ties", &dense(0.4, 2)).method();
        merge_elements(
            &models,
            0,
            Keys {
                seed,
                ..Keys::USUAL
            },
            &|_| method.clone(),
        )
    };
    assert_ne!(of(0), of(1));
}
