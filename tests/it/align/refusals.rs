//! Pairs and files that cannot be used, and what is said about it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use thalweg::symmetry::TransformFile;

use super::Stored;
use super::planted::{llama, noised, planted};
use crate::support::forward::{Family, Gpt2, Llama};
use crate::support::program::run;
use crate::support::reference::files::{read_model, write_model};
use crate::support::reference::{Model, Tensor};

fn config(to: &Path, from: &Path) {
    fs::copy(from.join("config.json"), to.join("config.json")).expect("copied");
}

/// The model with one tensor changed, or left out, under another name.
fn changed(stored: &Stored, name: &str, tensor: &str, to: impl Fn(&Tensor) -> Option<Tensor>) {
    let from = stored.dir.path().join("model");
    let mut model: Model = read_model(&from);
    let old = model
        .remove(tensor)
        .unwrap_or_else(|| panic!("no {tensor} in {:?}", model.keys()));
    model.extend(to(&old).map(|new| (tensor.to_owned(), new)));
    let folder = stored.dir.path().join(name);
    write_model(&folder, &model, 1);
    config(&folder, &from);
}

fn pairs() -> Stored {
    let stored = planted(&llama(), false);
    let dir = stored.dir.path();
    noised(&stored, "tuned", 1e-3);
    let up = "model.layers.0.mlp.up_proj.weight";
    changed(&stored, "less", up, |_| None);
    changed(&stored, "bytes", up, |old| {
        let count = old.shape.iter().product();
        Some(Tensor::from_bytes(Dtype::U8, &old.shape, vec![1; count]))
    });
    changed(&stored, "nan", up, |old| {
        let mut values = old.values.clone();
        values[5] = f64::NAN;
        Some(Tensor::rounded(Dtype::F64, &old.shape, &values))
    });
    changed(&stored, "words", "lm_head.weight", |old| {
        let shape = vec![old.shape[0] - 1, old.shape[1]];
        Some(Tensor::rounded(
            Dtype::F64,
            &shape,
            &old.values[..shape[0] * shape[1]],
        ))
    });
    Gpt2.random(1).write(&dir.join("gpt2"));
    Llama {
        model_type: "qwen3",
        ..Llama::default()
    }
    .random(2)
    .write(&dir.join("kin"));
    noised(&stored, "tongue", 0.0);
    fs::write(dir.join("tongue/vocab.json"), r#"{"a": 1, "b": 0}"#).expect("written");
    noised(&stored, "heads", 0.0);
    let text = fs::read_to_string(dir.join("heads/config.json")).expect("a config");
    let mut sizes: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    sizes["num_key_value_heads"] = 1.into();
    fs::write(dir.join("heads/config.json"), sizes.to_string()).expect("written");
    fs::write(dir.join("text.safetensors"), "this is no transform\n").expect("written");
    fs::create_dir(dir.join("folder.safetensors")).expect("made");
    for (of, out) in [
        ("planted", "perms.safetensors"),
        ("planted", "again.safetensors"),
        ("tuned", "tuned.safetensors"),
    ] {
        run(dir, ["align", "model", of, "--out", out, "--quiet"]).ok();
    }
    let mut file =
        TransformFile::read(&dir.join("perms.safetensors"), &stored.symmetries).expect("read");
    file.model = "0".repeat(64);
    file.write(&dir.join("stranger.safetensors"), &stored.symmetries)
        .expect("written");
    let recipe = |align: &str| {
        format!("merge_method: karcher\nmodels: [model, planted]\nalign: {{files: {align}}}\n")
    };
    fs::write(
        dir.join("wrong.yml"),
        recipe("{planted: tuned.safetensors}"),
    )
    .expect("written");
    stored
}

const CASES: &[&str] = &[
    "align",
    "align model",
    "align model planted tuned --reference nowhere",
    "align model nowhere",
    "align model model",
    "align model model/../model --out x.safetensors",
    "align model less",
    "align less model",
    "align model words",
    "align model bytes",
    "align model nan",
    "align model gpt2",
    "align model kin",
    "align model heads",
    "align model tongue",
    "align model planted --spec nowhere.yml",
    "align model planted --spec gpt2",
    "align model planted --cost free",
    "align model planted --residual sideways",
    "align model planted --max-sweeps 0",
    "align model planted --seed -1",
    "align model planted --threads 0",
    "align model planted --memory 12MiB --threads 2",
    "align model planted --restart",
    "align model planted --overwrite",
    "align model planted --out perms.bin",
    "align model planted --out folder.safetensors",
    "align model planted --out planted/x.safetensors",
    "align model planted --out tuned.safetensors",
    "merge model planted --spec llama --out out",
    "merge model planted --align nowhere.safetensors --out out",
    "merge model planted --align text.safetensors --out out",
    "merge model planted --align stranger.safetensors --out out",
    "merge model tuned --align perms.safetensors --out out",
    "merge model planted --align perms.safetensors,again.safetensors --out out",
    "merge model planted --align weights,perms.safetensors --out out",
    "merge model planted --align perms.safetensors --spec gpt2 --out out",
    "merge model --align weights --out out",
    "merge model gpt2 --align weights --out out",
    "merge model tongue --align weights --out out",
    "merge model planted --align weights --out model",
    "merge model planted --align weights --out tuned",
    "merge wrong.yml --align weights --out out",
    "merge wrong.yml --out out",
    "plan model planted --align stranger.safetensors --out out",
    "verify tuned --against model planted --align weights",
];

#[test]
fn pairs_and_files_that_do_not_fit_are_refused_in_these_words() {
    let stored = pairs();
    let dir = stored.dir.path();
    let before = crate::support::slow::relative_hashes(dir);
    let mut said = String::new();
    for case in CASES {
        let ended = run(dir, case.split_whitespace());
        let code = ended.code.expect("no signal");
        writeln!(said, "$ thalweg {case}\n{}[{code}]\n", ended.stderr).expect("memory");
        assert!(code == 1 || code == 2, "{case}: {ended:?}");
        assert_eq!(ended.stdout, "", "{case}");
        assert!(!ended.stderr.contains("panicked"), "{case}: {ended:?}");
    }
    assert_eq!(
        crate::support::slow::relative_hashes(dir),
        before,
        "something was written"
    );
    insta::assert_snapshot!("unfit_pairs", said);
}

#[test]
fn other_tokens_are_taken_when_that_is_said() {
    let stored = planted(&llama(), false);
    let dir = stored.dir.path();
    fs::write(dir.join("planted/vocab.json"), r#"{"a": 1, "b": 0}"#).expect("written");
    run(dir, ["align", "model", "planted"]).fails(
        2,
        &["token 0 is \"a\" in model/vocab.json", "--any-vocabulary"],
    );
    run(
        dir,
        ["align", "model", "planted", "--any-vocabulary", "--quiet"],
    )
    .ok();
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_the_least_that_works() {
    let stored = planted(&llama(), false);
    let dir = stored.dir.path();
    let ended = run(
        dir,
        ["align", "model", "planted", "-j", "1", "--memory", "8MiB"],
    )
    .fails(2, &["memory is too small"]);
    let hint = ended.stderr.lines().nth(1).expect("a hint");
    let least = hint
        .split_whitespace()
        .find(|word| word.ends_with("MiB"))
        .expect("a size");
    run(
        dir,
        [
            "align", "model", "planted", "-j", "1", "--memory", least, "--quiet",
        ],
    )
    .ok();
}
