//! Models whose tensors are called otherwise: `--rename` of `align`, `apply` and `interpolate`.

use std::fs;

use thalweg::symmetry::Transform;

use super::Stored;
use super::applying::{exact, same_bytes};
use super::planted::{llama, planted};
use crate::support::program::run;
use crate::support::reference::Model;
use crate::support::reference::files::{read_model, write_model};

/// A model, in `planted` the same with its units moved, and in `other` that with all names behind
/// `module.`, as training in parallel leaves them.
fn renamed() -> Stored {
    let stored = planted(&llama(), false);
    let dir = stored.dir.path();
    let model: Model = read_model(&dir.join("planted"))
        .into_iter()
        .map(|(name, tensor)| (format!("module.{name}"), tensor))
        .collect();
    write_model(&dir.join("other"), &model, 1);
    for name in ["config.json", "vocab.json"] {
        fs::copy(dir.join("planted").join(name), dir.join("other").join(name)).expect("copied");
    }
    stored
}

#[test]
fn a_model_whose_tensors_are_called_otherwise_is_aligned_applied_and_interpolated() {
    let stored = renamed();
    let dir = stored.dir.path();
    let align = ["align", "model", "other", "--out", "perms.safetensors"];
    run(dir, align).fails(2, &["other"]);
    let second = ["--rename", r"2:^module\.="];
    run(dir, align.iter().chain(&second)).ok();

    let merge = ["merge", "model", "other", "--align", "perms.safetensors"];
    run(dir, merge.iter().chain(&second).chain(&["--out", "merged"])).ok();
    same_bytes(&stored, "model", "merged");

    let apply = ["apply", "other", "perms.safetensors", "--out", "applied"];
    run(dir, apply).fails(2, &["`module.lm_head.weight`"]);
    run(dir, apply.iter().chain(&["--rename", r"^module\.="])).ok();
    same_bytes(&stored, "model", "applied");

    let between = [
        "interpolate",
        "model",
        "other",
        "--align",
        "perms.safetensors",
        "--points",
        "2",
        "--out",
        "curve",
    ];
    run(dir, between).fails(2, &["other"]);
    run(dir, between.iter().chain(&second)).ok();
    same_bytes(&stored, "model", "curve/lambda-1.0000");
}

#[test]
fn many_models_are_renamed_before_they_are_aligned_together() {
    let stored = renamed();
    let dir = stored.dir.path();
    let moved = exact(&stored.symmetries, Transform::random(&stored.symmetries, 4));
    stored.apply("model", moved, "third", &crate::support::whole::PLENTY);
    fs::copy(dir.join("model/vocab.json"), dir.join("third/vocab.json")).expect("copied");
    let align = ["align", "model", "other", "third", "--out", "maps"];
    run(dir, align.iter().chain(&["--rename", r"2:^module\.="])).ok();
    assert!(dir.join("maps/2.safetensors").exists());
}

#[test]
fn a_rule_for_a_model_that_there_is_not_or_that_does_nothing_is_refused() {
    let stored = renamed();
    let dir = stored.dir.path();
    let cases = [
        (
            "3:a=b",
            "wanted a model from 1 to 2 before the colon, got 3",
        ),
        (r"1:^module\.=", "matches no tensor"),
    ];
    for (rule, cause) in cases {
        run(dir, ["align", "model", "other", "--rename", rule]).fails(2, &[cause]);
        let between = ["interpolate", "model", "other", "--out", "curve"];
        run(dir, between.iter().chain(&["--rename", rule])).fails(2, &[cause]);
    }
    run(
        dir,
        [
            "apply",
            "other",
            "perms.safetensors",
            "--out",
            "applied",
            "--rename",
            "2:a=b",
        ],
    )
    .fails(2, &["wanted a model from 1 to 1 before the colon, got 2"]);
}
