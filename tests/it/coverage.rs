//! Every input tensor is merged, carried, or named with the reason; one mean over the model takes
//! all of them alike.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tempfile::TempDir;
use thalweg::Kind;
use thalweg::plan::Plan;

use crate::support::reference::{Model, Random, Tensor, files};
use crate::support::whole::{PLENTY, carry_out, plan, recipe};

fn model(seed: u64, names: &[&str]) -> Model {
    let mut random = Random::new(seed);
    let mut one = || Tensor::rounded(Dtype::F32, &[3, 4], &random.gaussian(12));
    names
        .iter()
        .map(|name| ((*name).to_owned(), one()))
        .collect()
}

fn write(folder: &TempDir, models: &[Model]) -> Vec<PathBuf> {
    let path = |index: usize| folder.path().join(format!("model{index}"));
    models
        .iter()
        .enumerate()
        .for_each(|(index, model)| files::write_model(&path(index), model, 1));
    (0..models.len()).map(path).collect()
}

/// `line`, and the first model as the base.
fn from_first(line: &str, paths: &[&Path]) -> String {
    format!("base_model: {}\n{line}", paths[0].display())
}

fn dropped(plan: &Plan) -> Vec<(usize, &str, &str)> {
    plan.dropped
        .iter()
        .map(|dropped| {
            (
                dropped.input,
                dropped.name.as_str(),
                dropped.reason.as_str(),
            )
        })
        .collect()
}

/// Requires that each input tensor is either a source or dropped, and not both.
fn assert_all_told(plan: &Plan) {
    let sources = plan.tensors.iter().flat_map(|tensor| &tensor.sources);
    let mut told: Vec<(usize, String)> = sources
        .map(|source| (source.input, source.name.to_string()))
        .collect();
    told.sort();
    told.dedup();
    told.extend(
        plan.dropped
            .iter()
            .map(|dropped| (dropped.input, dropped.name.to_string())),
    );
    told.sort();
    let names = |(index, input): (usize, &thalweg::checkpoint::Checkpoint)| {
        input
            .tensors()
            .keys()
            .map(|name| (index, name.to_string()))
            .collect::<Vec<_>>()
    };
    let mut all: Vec<(usize, String)> = plan.inputs.iter().enumerate().flat_map(names).collect();
    all.sort();
    assert_eq!(told, all);
}

#[test]
fn tensors_that_the_base_or_another_model_lacks_are_named() {
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(
        &folder,
        &[
            model(1, &["a", "b"]),
            model(2, &["a", "b", "c"]),
            model(3, &["a", "c"]),
        ],
    );
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let planned = plan(
        &recipe("karcher", &paths, &from_first("missing: base", &paths)),
        &PLENTY,
    )
    .expect("a plan");
    let lacking = "a model lacks it, so it is the base's";
    assert_eq!(
        dropped(&planned),
        [
            (1, "b", lacking),
            (1, "c", "the base lacks it"),
            (2, "c", "the base lacks it")
        ]
    );
    assert_all_told(&planned);
    let report = carry_out(planned, &folder.path().join("out")).expect("they can be merged");
    let said = |model: &str, part: &str| {
        report
            .warnings
            .iter()
            .any(|line| line.contains(model) && line.contains(part))
    };
    assert!(
        said("model1", "the base lacks it: c") && said("model2", "the base lacks it: c"),
        "{:?}",
        report.warnings
    );
    assert!(
        said("model1", "it is the base's: b"),
        "{:?}",
        report.warnings
    );
    let common = plan(&recipe("karcher", &paths, "missing: common"), &PLENTY).expect("a plan");
    assert!(common.dropped.is_empty());
    assert_all_told(&common);
}

#[test]
fn layers_that_no_slice_takes_and_models_that_only_lend_are_summed_up() {
    let layer = |index: usize| format!("model.layers.{index}.w");
    let mut names: Vec<String> = (0..9).map(layer).collect();
    names.extend([
        "lm_head.weight".to_owned(),
        "model.embed_tokens.weight".to_owned(),
    ]);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(
        &folder,
        &[model(1, &names), model(2, &names), model(3, &names)],
    );
    let source = |index: usize, range: &str| {
        format!(
            "  - sources: [{{model: {}, layer_range: {range}}}]\n",
            paths[index].display()
        )
    };
    let text = format!(
        "merge_method: passthrough\nbase_model: {}\nslices:\n{}{}",
        paths[2].display(),
        source(0, "[0, 4]"),
        source(1, "[3, 9]")
    );
    let planned = plan(&text, &PLENTY).expect("a plan");
    assert_all_told(&planned);
    let of = |input: usize| {
        dropped(&planned)
            .into_iter()
            .filter(|dropped| dropped.0 == input)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(0).len(), 6);
    assert!(of(0).iter().all(|dropped| dropped.2 == "no slice takes it"));
    let layers: Vec<&str> = of(1).iter().map(|dropped| dropped.1).collect();
    assert_eq!(layers.len(), 4);
    assert!(layers.contains(&"model.layers.2.w") && layers.contains(&"model.embed_tokens.weight"));
    assert_eq!(of(2).len(), 11);
    assert!(
        of(2)
            .iter()
            .all(|dropped| dropped.2 == "the model only lends what is not weights")
    );
    assert_eq!(planned.warnings.len(), 3);
    assert!(
        planned.warnings[2].contains("model2")
            && planned.warnings[2].contains("and 8 more tensors")
    );
}

#[test]
fn one_mean_over_the_model_takes_all_tensors_alike() {
    let folder = TempDir::new().expect("a temporary folder");
    let models = [
        model(1, &["a", "b", "c"]),
        model(2, &["a", "b"]),
        model(3, &["a", "b", "c"]),
    ];
    let paths = write(&folder, &models);
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let refused = |text: &str, part: &str| {
        let error = plan(text, &PLENTY).err().expect("tensors differ");
        assert_eq!(error.kind(), Kind::Recipe, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().is_some());
    };
    refused(
        &recipe("frechet", &paths, "missing: common"),
        "c: it is in other models than a",
    );
    refused(
        &recipe("frechet", &paths[..1], "missing: common").replace(
            "models:\n",
            &format!(
                "models:\n  - model: {}\n    parameters: {{weight: [{{filter: a, value: 2}}, {{value: 1}}]}}\n",
                paths[2].display()
            ),
        ),
        "parameters differ",
    );
    refused(
        &recipe(
            "frechet",
            &[paths[0], paths[2]],
            &from_first("nan: base", &paths),
        ),
        "nan: base",
    );
    let planned = plan(
        &recipe("frechet", &paths, &from_first("missing: base", &paths)),
        &PLENTY,
    )
    .expect("the odd one is copied");
    carry_out(planned, &folder.path().join("out")).expect("the others are merged");
    let out = files::read_model(&folder.path().join("out/model.safetensors"));
    assert_eq!(out["c"], models[0]["c"]);
    assert_ne!(out["a"], models[0]["a"]);
}
