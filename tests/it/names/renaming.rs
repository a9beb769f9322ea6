//! Tensors that are called otherwise in one model.

use std::fs;

use serde_json::Value;
use tempfile::tempdir;

use super::{assert_mean, merge, model, written};
use crate::support::program::run;

type Tensors = Vec<(String, &'static [usize])>;

/// A small model whose names begin with `prefix`.
fn named(prefix: &str) -> Tensors {
    let rests = [
        "embed.weight",
        "layers.0.q.weight",
        "layers.0.up.weight",
        "layers.1.q.weight",
        "layers.1.up.weight",
        "norm.weight",
    ];
    let shape: &[usize] = &[4, 3];
    rests
        .iter()
        .map(|rest| (format!("{prefix}{rest}"), shape))
        .collect()
}

fn put(root: &std::path::Path, name: &str, tensors: &Tensors) -> crate::support::reference::Model {
    let tensors: Vec<(&str, &[usize])> = tensors
        .iter()
        .map(|(name, shape)| (name.as_str(), *shape))
        .collect();
    model(root, name, &tensors, &Value::Null)
}

#[test]
fn names_that_differ_by_a_prefix_are_said_to_with_the_rule_that_renames_them() {
    for (ours, theirs, renamed, rule) in [
        ("model.", "_orig_mod.model.", "b", r"2:^_orig_mod\.="),
        ("module.model.", "model.", "a", r"1:^module\.="),
        ("model.", "", "b", r"2:^=model."),
        (
            "model.language_model.",
            "model.",
            "b",
            r"2:^model\.=model.language_model.",
        ),
        (
            "language_model.model.",
            "model.language_model.",
            "b",
            r"2:^model\.language_model\.=language_model.model.",
        ),
        (
            "transformer.",
            "base_model.model.transformer.",
            "b",
            r"2:^base_model\.model\.=",
        ),
    ] {
        let root = tempdir().expect("temporary folder");
        let (a, b) = (
            put(root.path(), "a", &named(ours)),
            put(root.path(), "b", &named(theirs)),
        );
        for policy in ["", "--missing common", "--missing base --base 1"] {
            let ended = merge(root.path(), &format!("a b {policy}"));
            let ended = ended.fails(
                2,
                &[
                    &format!("{renamed}: its names are those of"),
                    rule,
                    "or in a recipe",
                ],
            );
            assert!(
                !ended.stderr.contains("missing: common"),
                "{}",
                ended.stderr
            );
        }
        // The rule that is offered does it.
        let ended = run(
            root.path(),
            [
                "merge", "a", "b", "--method", "linear", "--out", "out", "--rename", rule,
            ],
        )
        .ok();
        drop(ended);
        let out = written(root.path());
        assert_eq!(out.len(), a.len());
        let prefix = if renamed == "a" { theirs } else { ours };
        let name = |prefix: &str| format!("{prefix}layers.1.q.weight");
        assert_mean(&out[&name(prefix)], &[&a[&name(ours)], &b[&name(theirs)]]);
        run(
            root.path(),
            [
                "verify",
                "out",
                "--against",
                "a",
                "b",
                "--method",
                "linear",
                "--rename",
                rule,
            ],
        )
        .ok();
        let other = ["verify", "out", "--against", "a", "a", "--method", "linear"];
        assert_ne!(run(root.path(), other).code, Some(0));
    }
}

#[test]
fn a_text_model_goes_into_a_vision_language_model() {
    let root = tempdir().expect("temporary folder");
    let mut tensors = named("model.language_model.");
    tensors.push(("model.vision_tower.layers.0.q.weight".to_owned(), &[4, 3]));
    let vision = put(root.path(), "vl", &tensors);
    let text = put(root.path(), "text", &named("model."));
    merge(root.path(), "vl text").fails(
        2,
        &[
            r"2:^model\.=model.language_model.",
            "1 tensor is in one of the two only",
        ],
    );
    let recipe = "merge_method: linear\nbase_model: vl\nmissing: base\nmodels:\n- {model: vl, parameters: {weight: 1}}\n\
                  - model: text\n  parameters: {weight: 1}\n  rename: [{from: '^model\\.(.*)$', to: 'model.language_model.$1'}]\n";
    fs::write(root.path().join("r.yml"), recipe).expect("written");
    run(root.path(), ["merge", "r.yml", "--out", "out"]).ok();
    let out = written(root.path());
    assert_eq!(out.len(), vision.len());
    let name = "layers.0.up.weight";
    assert_mean(
        &out[&format!("model.language_model.{name}")],
        &[
            &vision[&format!("model.language_model.{name}")],
            &text[&format!("model.{name}")],
        ],
    );
    run(root.path(), ["verify", "out", "--against", "r.yml"]).ok();
    // At the top, for one model or as a mapping for all.
    for rules in [
        "rename: [{model: text, from: '^model\\.', to: model.language_model.}]",
        "rename: {'^model\\.(embed|layers|norm)': model.language_model.$1}",
    ] {
        let recipe = format!(
            "merge_method: karcher\nbase_model: vl\nmissing: base\nmodels: [vl, text]\n{rules}\n"
        );
        fs::write(root.path().join("top.yml"), recipe).expect("written");
        run(
            root.path(),
            ["merge", "top.yml", "--out", "out", "--overwrite"],
        )
        .ok();
        assert_eq!(written(root.path()).len(), vision.len());
    }
}

#[test]
fn two_models_that_share_next_to_nothing_are_not_put_side_by_side() {
    let root = tempdir().expect("temporary folder");
    put(root.path(), "a", &named("model."));
    let other = (0..20)
        .map(|index| (format!("features.conv{index}.kernel"), &[4, 3][..]))
        .collect();
    put(root.path(), "b", &other);
    for policy in ["--missing common", "--missing base --base 1"] {
        merge(root.path(), &format!("a b {policy}"))
            .fails(2, &["of its 20 tensors 0 are in a", "side by side"]);
    }
}

#[test]
fn a_run_under_other_rules_is_another_run() {
    let root = tempdir().expect("temporary folder");
    put(root.path(), "a", &named("model."));
    put(root.path(), "b", &named("model."));
    let merge = |rule: &str| {
        run(
            root.path(),
            [
                "merge", "a", "b", "--method", "linear", "--out", "out", "--rename", rule,
            ],
        )
    };
    merge(r"^model\.=m.").ok();
    let again = merge(r"^model\.=m.").ok();
    assert!(again.stdout.contains("complete already"), "{again:?}");
    assert_ne!(merge(r"^model=m").code, Some(0));
}

#[test]
fn rules_that_cannot_be_meant_are_refused_by_name() {
    let root = tempdir().expect("temporary folder");
    put(root.path(), "a", &named("model."));
    put(root.path(), "b", &named("model."));
    let merge = |rule: &str| {
        run(
            root.path(),
            ["merge", "a", "b", "--out", "out", "--rename", rule],
        )
    };
    merge(r"\d=9").fails(2, &["would both be called", "layers.9.q.weight"]);
    merge("nowhere=x").fails(
        2,
        &["`nowhere` -> `x` matches no tensor", "model.embed.weight"],
    );
    merge("2:nowhere=x").fails(2, &["b: the rule `nowhere`"]);
    merge(".*=").fails(2, &["leaves nothing of"]);
    merge("(=x").fails(2, &["--rename", "not a regular expression"]);
    merge("(a)=$1_x").fails(2, &["--rename", "${1}_x"]);
    merge("model").fails(2, &["--rename", "REGEX=TEMPLATE"]);
    merge("3:a=b").fails(2, &["--rename", "from 1 to 2"]);
    for (rules, words) in [
        ("rename: [{from: '(', to: x}]", "`from` cannot be used"),
        ("rename: [{from: a}]", "needs the key `to`"),
        ("rename: []", "is an empty list"),
        (
            "rename: [{model: c, from: a, to: b}]",
            "a rule for `c`, which is not among the models",
        ),
        ("rename: 5", "must be a list"),
    ] {
        fs::write(
            root.path().join("r.yml"),
            format!("merge_method: karcher\nmodels: [a, b]\n{rules}\n"),
        )
        .expect("written");
        run(root.path(), ["merge", "r.yml", "--out", "out"]).fails(2, &[words, "r.yml:3"]);
    }
    fs::write(
        root.path().join("r.yml"),
        "merge_method: karcher\nmodels: [a, b]\n",
    )
    .expect("written");
    run(
        root.path(),
        ["merge", "r.yml", "--out", "out", "--rename", "a=b"],
    )
    .fails(2, &["--rename: the recipe says this"]);
}

#[test]
fn filters_layers_and_stacks_see_the_new_names() {
    let root = tempdir().expect("temporary folder");
    let a = put(root.path(), "a", &named("model."));
    let b = put(root.path(), "b", &named("module.model."));
    let recipe = "merge_method: linear\nslices:\n- sources:\n  - {model: a, layer_range: [0, 1], parameters: {weight: [{filter: model.layers.0.q, value: 0}, {value: 1}]}}\n  \
                  - {model: b, layer_range: [1, 2], parameters: {weight: 1}, rename: [{from: '^module\\.', to: ''}]}\n";
    fs::write(root.path().join("r.yml"), recipe).expect("written");
    run(root.path(), ["merge", "r.yml", "--out", "out"]).ok();
    let out = written(root.path());
    assert_mean(
        &out["model.layers.0.q.weight"],
        &[&b["module.model.layers.1.q.weight"]],
    );
    assert_mean(
        &out["model.layers.0.up.weight"],
        &[
            &a["model.layers.0.up.weight"],
            &b["module.model.layers.1.up.weight"],
        ],
    );
}
