//! Parameters that have no value or make no mean for some tensor, and a base without others.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use thalweg::error::{Error, Kind};
use thalweg::plan::memory::Wish;
use thalweg::plan::{Job, Plan};
use thalweg::recipe::Recipe;

use super::{Kinship, Place, Run, assert_same, random_models, recipe};
use crate::support::program;
use crate::support::reference::{Model, Random};

/// Two models of three layers.
fn layered(place: &Place) -> [String; 2] {
    let names = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.w",
        "model.layers.1.mlp.w",
        "model.layers.2.attn.w",
    ];
    let mut random = Random::new(920);
    let mut model = || -> Model {
        let one = |name: &&str| {
            let tensor =
                random_models(&mut random, &[Dtype::F32], &[&[6]], Kinship::Independent).remove(0);
            (
                (*name).to_owned(),
                tensor.into_values().next().expect("one tensor"),
            )
        };
        names.iter().map(one).collect()
    };
    let models = [model(), model()];
    let paths = place.models(&models);
    [0, 1].map(|at| paths[at].to_str().expect("text").to_owned())
}

/// The error with which the plan of a recipe in `merge.yml` ends.
fn refused(text: &str) -> Error {
    let recipe = Recipe::parse(text, "merge.yml").expect("a recipe");
    let document = recipe.documents[0].clone();
    let inputs = document
        .models()
        .into_iter()
        .map(|model| Path::new(&*model.path).to_owned())
        .collect();
    let job = Job::new(document, inputs).expect("a job");
    let wish = Wish {
        memory: 1 << 30,
        threads: 2,
        block_bytes: None,
    };
    match Plan::new(&job, &wish) {
        Err(error) => error,
        Ok(_) => panic!("planned: {text}"),
    }
}

#[test]
fn weights_that_make_no_mean_in_a_layer_name_file_line_layer_and_tensor() {
    let place = Place::new();
    let [a, b] = layered(&place);
    for method in ["linear", "karcher", "geometric_median", "multislerp"] {
        let text = format!(
            "merge_method: {method}\nmodels:\n- model: {a}\n  parameters:\n    weight: [1, 0]\n- model: {b}\n  parameters:\n    weight: [1, 0]\n"
        );
        let error = refused(&text);
        let words = error.to_string();
        assert_eq!(
            (error.kind(), error.exit_code()),
            (Kind::Recipe, 2),
            "{method}: {words}"
        );
        for wanted in [
            "merge.yml:5:5",
            "`weight`",
            "`model.layers.2.attn.w` (layer 2)",
            &a,
            &b,
        ] {
            assert!(
                words.contains(wanted),
                "{method}: wanted {wanted} in {words}"
            );
        }
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("weight: [1, 0]")),
            "{method}: {:?}",
            error.hint()
        );
    }
    // Where mergekit has a meaning for such a sum it holds.
    let task = format!(
        "merge_method: task_arithmetic\nbase_model: {a}\nparameters: {{normalize: true}}\nmodels:\n- model: {a}\n- model: {b}\n  parameters:\n    weight: [1, 0]\n"
    );
    Recipe::parse(&task, "merge.yml").expect("a recipe");
}

#[test]
fn a_parameter_of_which_no_filter_fits_names_file_line_layer_and_tensor() {
    let place = Place::new();
    let [a, b] = layered(&place);
    let text = format!(
        "merge_method: slerp\nbase_model: {a}\nmodels:\n- model: {a}\n- model: {b}\nparameters:\n  t:\n  - filter: mlp\n    value: 0.5\n  - filter: embed\n    value: 0\n"
    );
    let error = refused(&text);
    let words = error.to_string();
    assert_eq!(error.exit_code(), 2, "{words}");
    for wanted in [
        "merge.yml:7:3",
        "`t`",
        "`model.layers.2.attn.w` (layer 2)",
        "no condition fits",
    ] {
        assert!(words.contains(wanted), "wanted {wanted} in {words}");
    }
    // By `plan` as by `merge`, before anything is written.
    let dir = place.path("");
    fs::write(dir.join("merge.yml"), &text).expect("written");
    for command in [
        vec!["plan", "merge.yml", "--out", "out"],
        vec!["merge", "merge.yml", "--out", "out"],
    ] {
        program::run(&dir, &command).fails(2, &["merge.yml:7:3", "model.layers.2.attn.w"]);
    }
    assert!(!dir.join("out").exists());
}

#[test]
fn factors_beyond_f64_are_refused_where_they_are_given() {
    let place = Place::new();
    let [a, b] = layered(&place);
    let text = format!(
        "merge_method: task_arithmetic\nbase_model: {a}\nmodels:\n- model: {b}\n  parameters: {{weight: 1e300}}\nparameters: {{lambda: 1e300}}\n"
    );
    let error = refused(&text);
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(
        error.to_string().contains("merge.yml:5:16") && error.to_string().contains("embed_tokens"),
        "{error}"
    );
}

#[test]
fn a_base_alone_stays_as_it_is() {
    let place = Place::new();
    let models = random_models(
        &mut Random::new(921),
        &[Dtype::BF16],
        &[&[40], &[6, 7]],
        Kinship::Independent,
    );
    let paths = place.models(&models);
    for method in [
        "task_arithmetic",
        "model_stock",
        "multislerp",
        "nuslerp",
        "slerp",
    ] {
        let weights = (!["model_stock", "slerp"].contains(&method)).then_some([0.7].as_slice());
        let mut run = Run::new(recipe(method, &paths, weights))
            .with("base_model", paths[0].to_str().expect("text"));
        if method == "slerp" {
            run.recipe["parameters"]["t"] = 0.5.into();
        }
        for granularity in ["tensor", "row", "model"] {
            assert_same(
                &place.merged(&run.clone().with("granularity", granularity)),
                &models[0],
                method,
            );
        }
    }
}
