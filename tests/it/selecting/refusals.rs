//! Recipes that ask for nothing that could be done: each error names key and line.

use std::fmt::Write as _;
use std::path::Path;

use safetensors::Dtype;
use thalweg::Kind;
use thalweg::plan::{Job, Plan};
use thalweg::recipe::Recipe;

use super::fine_tunes;
use crate::merge::Place;
use crate::support::reference::{Model, Random};
use crate::support::whole::PLENTY;

const MODELS: &str = "base_model: org/base\nmodels:\n  - {model: org/a, parameters: {weight: 1}}\n  - {model: org/b, parameters: {weight: 1}}\n";

const ONE: &str = "base_model: org/base\nmodels: [{model: org/a}]\n";

const TWO: &str = "base_model: org/base\nmodels: [{model: org/a}, {model: org/b}]\n";

/// Names, and recipes that are refused.
fn bad() -> Vec<(&'static str, String)> {
    let family = |method: &str, more: &str| format!("merge_method: {method}\n{MODELS}{more}");
    let of_one = |method: &str, more: &str| format!("merge_method: {method}\n{ONE}{more}");
    let of_two = |method: &str, more: &str| format!("merge_method: {method}\n{TWO}{more}");
    let parameters = |own: &str| format!("parameters: {{{own}}}\n");
    vec![
        (
            "no-base",
            "merge_method: ties\nmodels: [{model: org/a, parameters: {weight: 1}}]\n".to_owned(),
        ),
        ("no-weight", of_two("dare_ties", "")),
        (
            "density-above-one",
            family("ties", &parameters("density: 1.5")),
        ),
        (
            "density-below-zero",
            family("dare_linear", &parameters("density: -0.1")),
        ),
        (
            "density-in-a-gradient",
            family("breadcrumbs", &parameters("density: [0.5, 1.1]")),
        ),
        (
            "gamma-above-one",
            family("breadcrumbs", &parameters("density: 0.5, gamma: 2")),
        ),
        (
            "unknown-parameter",
            family("ties", &parameters("densitty: 0.5")),
        ),
        (
            "share-above-one",
            of_two("sce", &parameters("select_topk: 1.5")),
        ),
        ("no-t", of_one("nearswap", "")),
        ("nearswap-of-two", of_two("nearswap", &parameters("t: 0.1"))),
        ("fusion-of-two", of_two("arcee_fusion", "")),
        (
            "ties-of-karcher",
            "merge_method: karcher\nmodels: [org/a, org/b]\nties: first\n".to_owned(),
        ),
        (
            "seed-of-linear",
            "merge_method: linear\nmodels: [{model: org/a, parameters: {weight: 1}}]\nseed: 3\n"
                .to_owned(),
        ),
        ("seed-below-zero", family("ties", "seed: -1\n")),
        ("seed-with-a-fraction", family("ties", "seed: 0.5\n")),
        ("ties-unknown", family("ties", "ties: last\n")),
        ("sign-tie-unknown", family("ties", "sign_tie: minus\n")),
        (
            "rescale-by-unknown",
            family("dare_linear", "rescale_by: l2\n"),
        ),
        (
            "sign-tie-of-dare-linear",
            family("dare_linear", "sign_tie: zero\n"),
        ),
        ("rescale-by-of-sce", of_two("sce", "rescale_by: density\n")),
        (
            "seed-of-nearswap",
            of_one("nearswap", &format!("{}seed: 1\n", parameters("t: 0.1"))),
        ),
        (
            "first-over-the-model",
            family("ties", "granularity: model\nties: first\n"),
        ),
        (
            "epsilon-below-zero",
            family("della", &parameters("density: 0.5, epsilon: -0.1")),
        ),
    ]
}

#[test]
fn recipes_that_cannot_be_are_refused_by_key_and_line() {
    let mut all = String::new();
    for (name, text) in bad() {
        let error = match Recipe::parse(&text, &format!("{name}.yml")) {
            Err(error) => error,
            Ok(_) => panic!("{name} is taken:\n{text}"),
        };
        assert_eq!(error.kind(), Kind::Recipe, "{name}");
        for error in [&error].into_iter().chain(error.others()) {
            assert!(
                error.subject().starts_with(&format!("{name}.yml:")),
                "{name}: {error}"
            );
            writeln!(all, "{error}\n{}\n", error.hint().unwrap_or(""))
                .expect("strings take everything");
        }
    }
    insta::assert_snapshot!("bad_selections", all);
}

#[test]
fn parameters_of_other_methods_are_read_past_with_a_warning() {
    for (method, models, parameter) in [
        ("ties", MODELS, "gamma"),
        ("dare_ties", MODELS, "epsilon"),
        ("sce", TWO, "density"),
        ("ram", TWO, "lambda"),
        ("arcee_fusion", ONE, "t"),
    ] {
        let text = format!("merge_method: {method}\n{models}parameters: {{{parameter}: 0.1}}\n");
        let recipe = Recipe::parse(&text, "r.yml").unwrap_or_else(|error| panic!("{error}"));
        let warnings = recipe.warnings_of(&recipe.documents[0]);
        let wanted = format!("`{parameter}` has no effect here");
        assert!(
            warnings.len() == 1
                && warnings[0].contains(&wanted)
                && warnings[0].starts_with("r.yml:"),
            "{method}: {warnings:?}"
        );
    }
    let text = format!("merge_method: sce\n{MODELS}");
    let recipe = Recipe::parse(&text, "r.yml").unwrap_or_else(|error| panic!("{error}"));
    let warnings = recipe.warnings_of(&recipe.documents[0]);
    assert!(
        warnings.len() == 2 && warnings.iter().all(|warning| warning.contains("`weight`")),
        "{warnings:?}"
    );
}

/// The words with which a merge of three layers and an embedding is refused before it begins.
fn planned(more: &str) -> String {
    let mut random = Random::new(795);
    let own = fine_tunes(&mut random, &[Dtype::F32; 3], &[&[6]]);
    let names = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.w",
        "model.layers.1.mlp.w",
        "model.layers.2.attn.w",
    ];
    let named = |model: &Model| -> Model {
        let tensor = &model["t[6]"];
        names
            .iter()
            .map(|name| ((*name).to_owned(), tensor.clone()))
            .collect()
    };
    let place = Place::in_memory();
    let paths = place.models(&own.iter().map(named).collect::<Vec<Model>>());
    let [base, a, b] = [0, 1, 2].map(|at: usize| paths[at].display().to_string());
    let text = format!(
        "base_model: {base}\nmodels:\n  - {{model: {a}, parameters: {{weight: 1}}}}\n  - {{model: {b}, parameters: {{weight: 1}}}}\n{more}"
    );
    let recipe = Recipe::parse(&text, "merge.yml").unwrap_or_else(|error| panic!("{error}"));
    let document = recipe.documents[0].clone();
    let inputs = document
        .models()
        .into_iter()
        .map(|model| Path::new(&*model.path).to_owned())
        .collect();
    let job = Job::new(document, inputs).expect("three models");
    match Plan::new(&job, &PLENTY) {
        Err(error) => {
            assert_eq!(error.kind(), Kind::Recipe, "{error}");
            error.to_string()
        }
        Ok(_) => panic!("planned: {more}"),
    }
}

#[test]
fn what_fits_no_tensor_or_no_common_threshold_is_refused_before_anything_is_read() {
    for (more, words) in [
        (
            "merge_method: della\nparameters: {density: 0.1}\n",
            ["merge.yml:5:15", "`epsilon`", "embed_tokens"],
        ),
        (
            "merge_method: della_linear\nparameters: {density: 0.9, epsilon: 0.2}\n",
            ["merge.yml:6:28", "`epsilon`", "embed_tokens"],
        ),
        (
            "merge_method: della\nparameters: {density: 0.75, epsilon: 0.25}\n",
            ["merge.yml:6:29", "`epsilon`", "embed_tokens"],
        ),
        (
            "merge_method: della\nparameters: {density: [0.5, 0.9], epsilon: 0.2}\n",
            [
                "merge.yml:6:35",
                "`epsilon`",
                "`model.layers.2.attn.w` (layer 2)",
            ],
        ),
        (
            "merge_method: della\nparameters:\n  epsilon: 0.2\n  density:\n    - {filter: mlp, value: 0.9}\n    - {value: 0.5}\n",
            [
                "merge.yml:7:3",
                "`epsilon`",
                "`model.layers.0.mlp.w` (layer 0)",
            ],
        ),
        (
            "merge_method: ties\ngranularity: model\nparameters: {density: [0.2, 0.8]}\n",
            ["layers.1.mlp.w", "differ", "embed_tokens"],
        ),
    ] {
        let said = planned(more);
        assert!(words.iter().all(|words| said.contains(words)), "{said}");
    }
}
