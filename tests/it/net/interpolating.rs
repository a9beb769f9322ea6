//! Checkpoints on the way between two models, and what is refused.

use std::fs;

use crate::align::Stored;
use crate::support::forward::{Chain, Family, Llama};
use crate::support::program::run;
use crate::support::reference::files::read_model;

/// Two MLPs in `model` and `other`, and a transform of the second.
fn two() -> Stored {
    let chain = Chain {
        norms: false,
        flax: false,
    };
    let stored = Stored::new(&chain.random(1), None);
    chain.random(2).write(&stored.dir.path().join("other"));
    stored.write_random_transform("other");
    stored
}

#[test]
fn checkpoints_on_the_way_are_those_that_merge_writes_and_are_gone_on_with() {
    let stored = two();
    let dir = stored.dir.path();
    for (out, flags) in [
        ("linear", ["--method", "linear"].as_slice()),
        (
            "karcher",
            &["--method", "karcher", "--align", "perms.safetensors"],
        ),
    ] {
        let args = [
            "interpolate",
            "model",
            "other",
            "--points",
            "5",
            "--out",
            out,
            "--json",
        ];
        let json = run(dir, args.iter().chain(flags)).ok().json();
        assert_eq!(json["points"].as_array().map(Vec::len), Some(5));
        let weights = [
            "--weights",
            "0.75,0.25",
            "--out",
            "merged",
            "--quiet",
            "--overwrite",
        ];
        run(
            dir,
            ["merge", "model", "other"]
                .iter()
                .chain(&weights)
                .chain(flags),
        )
        .ok();
        let [merged, point] =
            ["merged", &format!("{out}/lambda-0.2500")].map(|name| read_model(&dir.join(name)));
        assert_eq!(merged, point);
        let end = read_model(&dir.join(out).join("lambda-0.0000"));
        assert_eq!(end, read_model(&dir.join("model")));
        // One point is missing: only that is made.
        fs::remove_dir_all(dir.join(out).join("lambda-0.5000")).expect("removed");
        let json = run(dir, args.iter().chain(flags)).ok().json();
        let status = |point: usize| json["points"][point]["report"]["status"].as_str();
        assert_eq!(
            (status(1), status(2)),
            (Some("complete already"), Some("merged"))
        );
    }
    let ends = ["linear/lambda-1.0000", "other"].map(|name| read_model(&dir.join(name)));
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn what_cannot_be_interpolated_is_refused_before_anything_is_written() {
    let stored = two();
    let dir = stored.dir.path();
    let refused = |more: &[&str], code: i32, words: &[&str]| {
        run(
            dir,
            ["interpolate", "model", "other", "--out", "curve"]
                .iter()
                .chain(more),
        )
        .fails(code, words);
        assert!(!dir.join("curve").exists(), "{more:?}");
    };
    refused(&["--points", "1"], 2, &["points: wanted 2 to 1001, got 1"]);
    refused(
        &["--data", "nowhere.safetensors"],
        2,
        &["nowhere.safetensors"],
    );
    refused(&["--data", "x", "--method", "karcher"], 2, &["--method"]);
    refused(
        &["--align", "nowhere.safetensors"],
        2,
        &["nowhere.safetensors"],
    );
    run(
        dir,
        [
            "interpolate",
            "other",
            "model",
            "--align",
            "perms.safetensors",
            "--out",
            "curve",
        ],
    )
    .fails(2, &["perms.safetensors: was made for another model than"]);
    run(dir, ["interpolate", "model", "model", "--out", "curve"]).fails(2, &["model"]);
    let llama = Llama {
        model_type: "llama",
        ..Llama::default()
    };
    for (name, seed) in [("llama-a", 1), ("llama-b", 2)] {
        llama.random(seed).write(&dir.join(name));
    }
    run(dir, ["interpolate", "model", "llama-a", "--out", "curve"]).fails(2, &["llama-a"]);
    let data = super::digits::digits("test").display().to_string();
    let args = [
        "interpolate",
        "llama-a",
        "llama-b",
        "--out",
        "curve",
        "--data",
        &data,
    ];
    run(dir, args).fails(2, &["spec `llama`: there are forward passes for mlp"]);
    refused(
        &["--data", &data],
        2,
        &["layers.0.weight: takes 6 numbers, a sample has 64"],
    );
    run(dir, ["align", "model", "other", "--straight-through"]).fails(2, &["--data"]);
    run(
        dir,
        [
            "align",
            "model",
            "other",
            "--straight-through",
            "--data",
            &data,
        ],
    )
    .fails(2, &["a sample has 64"]);
    run(
        dir,
        ["align", "model", "other", "--activations", "model", "other"],
    )
    .fails(1, &["hidden.0: there are no activations of the reference"]);
    run(dir, ["align", "model", "other", "--activations", "model"]).fails(2, &["--activations"]);
}
