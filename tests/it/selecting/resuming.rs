//! Merges by these methods go on after a loss of power, stay within their memory and are compared
//! with their inputs.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::json;
use thalweg::checkpoint::Io;
use thalweg::engine::{Sample, recheck};

use super::{Choice, FAMILY, OTHERS, Trial, dense, fine_tunes};
use crate::crash_merge::{Case, SMALL_KEYS, loses_power, small_shards};
use crate::memory::{embedding, fits, models};
use crate::merge::{Place, Run, least_memory};
use crate::support::files::flip;
use crate::support::reference::selecting::Keys;
use crate::support::reference::{Granularity, Random};
use crate::support::striped::spec;

/// A merge of the model `b`, twice, with the base `a`.
fn case(method: &str, parameters: &str, keys: &str) -> Case {
    let recipe = |folder: &Path| {
        let [a, b] = ["a", "b"].map(|name| folder.join(name));
        format!(
            "merge_method: {method}\nbase_model: {}\nmodels:\n  - {{ model: {} }}\n\
             parameters: {{ {parameters} }}\n{SMALL_KEYS}{keys}",
            a.display(),
            b.display(),
        )
    };
    Case::by_recipe(&small_shards(), recipe)
}

#[test]
fn a_selection_survives_power_loss_at_every_operation() {
    let mut case = case("ties", "weight: 1, density: 0.4", "");
    // Tensors are read again for the refinement and for the output.
    case.window_bytes = Some(400_000);
    loses_power(&case, 1, false);
}

#[test]
fn bands_draws_and_norms_survive_power_loss_wherever_it_comes() {
    for (method, parameters, keys) in [
        (
            "breadcrumbs",
            "weight: 1, density: 0.4, gamma: 0.1",
            "granularity: row\n",
        ),
        ("dare_linear", "weight: 1, density: 0.4", ""),
        ("sce", "select_topk: 0.4", ""),
    ] {
        let mut case = case(method, parameters, keys);
        case.window_bytes = Some(400_000);
        case.io = Io::Positioned;
        loses_power(&case, 3, false);
    }
}

#[test]
fn a_selection_over_the_model_survives_power_loss_wherever_it_comes() {
    for (method, parameters) in [
        ("ties", "weight: 1, density: 0.4, rescale: true"),
        ("ramplus_tl", "epsilon: 0.05"),
    ] {
        let case = case(method, parameters, "granularity: model\n");
        loses_power(&case, 3, false);
    }
}

#[test]
fn another_seed_rule_or_density_is_another_merge() {
    let models = fine_tunes(&mut Random::new(781), &[Dtype::BF16; 3], &[&[20, 30]]);
    let place = Place::in_memory();
    let run = Trial::new(models, Choice::of("ties", &dense(0.4, 2))).run(&place);
    let out = place.path("out");
    run.merge_to(&out).expect("a merge that succeeds");
    for (key, value) in [
        ("seed", json!(1)),
        ("ties", json!("first")),
        ("sign_tie", json!("zero")),
        ("rescale_by", json!("density")),
        ("parameters", json!({ "lambda": 0.5 })),
    ] {
        let error = run.clone().with(key, value).merge_to(&out).expect_err(key);
        assert!(error.to_string().contains("another merge"), "{error}");
    }
    let again = run.merge_to(&out).expect("nothing is left to do");
    assert_eq!(again.status, "complete already");
}

#[test]
fn every_block_is_what_the_inputs_give_once_more() {
    let models = fine_tunes(
        &mut Random::new(780),
        &[Dtype::F32, Dtype::BF16, Dtype::F32],
        &[&[2, 33_000], &[50, 60], &[]],
    );
    let everything = Sample {
        blocks: 1_000_000,
        seed: 0,
    };
    for name in FAMILY.into_iter().chain(OTHERS) {
        let all = [Granularity::Tensor, Granularity::Row, Granularity::Model];
        let some = if ["ties", "dare_linear", "sce"].contains(&name) {
            &all[..]
        } else {
            &all[..1]
        };
        for &granularity in some {
            let keys = Keys {
                granularity,
                ..Keys::USUAL
            };
            let choice = Choice::of(name, &dense(0.4, 2));
            let choice = if name == "sce" {
                choice.with("select_topk", 0.4)
            } else {
                choice
            };
            let place = Place::in_memory();
            let run = Trial::new(models.clone(), choice).by(keys).run(&place);
            let out = place.path("out");
            run.merge_to(&out).expect("a merge that succeeds");
            let small = run.clone().small_blocks();
            let small = Run {
                memory: least_memory(&small),
                ..small
            };
            for run in [&run, &small] {
                let plan = run.plan().expect("enough memory");
                recheck(&plan, &out, everything, None, &mut |_, _| Ok(()))
                    .expect("the same once more");
            }
            let file = out.join("model.safetensors");
            let length = fs::metadata(&file).expect("an output").len();
            flip(&file, length - 100_000);
            let plan = run.plan().expect("enough memory");
            recheck(&plan, &out, everything, None, &mut |_, _| Ok(())).expect_err("a changed byte");
        }
    }
}

#[test]
fn a_hundred_models_fit_into_a_quarter_gibibyte() {
    let root = models(
        100,
        &[
            embedding(1),
            spec("up", thalweg::dtype::Dtype::F32, &[200, 700]),
        ],
    );
    for (method, more) in [
        ("ties", &["-p", "weight=0.01", "-p", "density=0.3"][..]),
        ("sce", &["-p", "select_topk=0.3"]),
    ] {
        fits(
            root.path(),
            100,
            256,
            &[&["--method", method, "--base", "1"], more].concat(),
        );
    }
}

#[test]
fn a_tensor_larger_than_the_budget_fits() {
    let root = models(3, &[embedding(100)]);
    for granularity in ["tensor", "model"] {
        let more = [
            "--method",
            "ties",
            "--base",
            "1",
            "-p",
            "weight=1",
            "-p",
            "density=0.3",
        ];
        fits(
            root.path(),
            3,
            128,
            &[&more[..], &["--granularity", granularity]].concat(),
        );
    }
}
