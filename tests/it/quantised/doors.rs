//! The same judgement at every door, and what becomes of the config.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::{Tensor, model};
use crate::support::program::run;

const FP8: &[Tensor<'static>] = &[
    ("l.weight", "F8_E4M3", &[16, 16]),
    ("l.weight_scale", "F32", &[16, 1]),
];
const INT8: &[Tensor<'static>] = &[
    ("l.weight", "I8", &[16, 16]),
    ("l.weight_scale", "F32", &[16, 1]),
];

/// Folders `a` and `b` of such a model.
fn two(tensors: &[Tensor<'_>], config: &Value) -> TempDir {
    let root = tempdir().expect("temporary folder");
    for name in ["a", "b"] {
        model(&root.path().join(name), tensors, config);
    }
    root
}

fn config_of(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("config.json")).expect("a config");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn every_door_refuses_quantised_weights() {
    let root = two(FP8, &json!({ "model_type": "llama" }));
    fs::write(
        root.path().join("recipe.yml"),
        "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n",
    )
    .expect("written");
    let doors: [&[&str]; 10] = [
        &["merge", "a", "b", "--out", "out"],
        &["merge", "recipe.yml", "--out", "out"],
        &["plan", "a", "b", "--out", "out"],
        &["merge", "a", "b", "--out", "out", "--align", "weights"],
        &["verify", "out", "--against", "a", "b"],
        &["apply", "a", "--fold", "--out", "out"],
        &["align", "a", "b", "--out", "perms.safetensors"],
        &["align", "a", "b", "a", "--out", "maps"],
        &["interpolate", "a", "b", "--out", "curve"],
        &["symmetries", "a"],
    ];
    for door in doors {
        let policy = if door.contains(&"recipe.yml") {
            "`quantised: raw`"
        } else {
            "`--quantised raw`"
        };
        let words = [
            "a",
            "quantised",
            "FP8 with scales",
            "`l.weight`",
            "dequantise",
            policy,
        ];
        run(root.path(), door).fails(2, &words);
    }
    assert!(!root.path().join("out").exists());
}

#[test]
fn raw_codes_are_merged_as_they_are_stored_and_verified_against_their_inputs() {
    let root = two(FP8, &json!({ "model_type": "llama" }));
    let merge = [
        "merge",
        "a",
        "b",
        "--out",
        "out",
        "--quantised",
        "raw",
        "--memory",
        "128MiB",
        "--json",
        "--quiet",
    ];
    let report = run(root.path(), merge).ok().json();
    assert!(
        report["warnings"]
            .to_string()
            .contains("numbers that they are stored as"),
        "{report}"
    );
    run(root.path(), ["verify", "out", "--against", "a", "b"]).fails(2, &["quantised"]);
    run(
        root.path(),
        ["verify", "out", "--against", "a", "b", "--quantised", "raw"],
    )
    .ok();
    let recipe = "merge_method: karcher\nquantised: raw\nmodels: [{model: a}, {model: b}]\n";
    fs::write(root.path().join("recipe.yml"), recipe).expect("written");
    run(
        root.path(),
        [
            "merge",
            "recipe.yml",
            "--out",
            "by-recipe",
            "--memory",
            "128MiB",
        ],
    )
    .ok();
    let [flags, recipe] = ["out", "by-recipe"]
        .map(|out| fs::read(root.path().join(out).join("model.safetensors")).expect("written"));
    assert_eq!(flags, recipe);
    run(
        root.path(),
        ["merge", "recipe.yml", "--out", "x", "--quantised", "raw"],
    )
    .fails(2, &["--quantised"]);
    run(
        root.path(),
        ["plan", "a", "b", "--out", "x", "--quantised", "decoded"],
    )
    .fails(2, &["quantised", "raw"]);
}

#[test]
fn a_config_calls_raw_codes_quantised_as_long_as_they_are_stored_so() {
    let config =
        json!({ "model_type": "llama", "quantization_config": { "quant_method": "fbgemm_fp8" } });
    let memory = ["--memory", "128MiB", "--quiet"];
    for (tensors, more, stays) in [
        (FP8, &[][..], true),
        (INT8, &["--dtype", "bfloat16"], true),
        (FP8, &["--dtype", "bfloat16"], false),
    ] {
        let root = two(tensors, &config);
        let merge = [
            &["merge", "a", "b", "--out", "out", "--quantised", "raw"],
            more,
            &memory,
        ]
        .concat();
        run(root.path(), merge).ok();
        let written = config_of(&root.path().join("out"));
        assert_eq!(
            written.get("quantization_config").is_some(),
            stays,
            "{more:?}: {written}"
        );
    }
}

#[test]
fn a_config_that_is_out_of_date_is_a_warning_and_does_not_reach_the_output() {
    let config = json!({
        "model_type": "llama", "quantization_config": { "quant_method": "fp8" },
        "text_config": { "quantization_config": { "quant_method": "fp8" } },
    });
    let root = two(&[("l.weight", "BF16", &[16, 16])], &config);
    for name in ["a", "b"] {
        let stated = json!({ "quantization": { "quant_algo": "FP8" } });
        fs::write(
            root.path().join(name).join("hf_quant_config.json"),
            stated.to_string(),
        )
        .expect("written");
    }
    let plan = run(
        root.path(),
        [
            "plan", "a", "b", "--out", "out", "--memory", "128MiB", "--json",
        ],
    )
    .ok()
    .json();
    assert!(
        plan["warnings"].to_string().contains("out of date"),
        "{plan}"
    );
    run(
        root.path(),
        [
            "merge", "a", "b", "--out", "out", "--memory", "128MiB", "--quiet",
        ],
    )
    .ok();
    let written = config_of(&root.path().join("out"));
    assert!(!written.to_string().contains("quant"), "{written}");
    assert!(!root.path().join("out/hf_quant_config.json").exists());
}

#[test]
fn what_a_model_rounds_in_use_is_merged_and_its_config_stays() {
    let quantised = json!({ "quant_method": "bitnet", "quantization_mode": "online" });
    let config = json!({ "model_type": "bitnet", "torch_dtype": "bfloat16", "quantization_config": quantised });
    let root = two(&[("l.weight", "BF16", &[16, 16])], &config);
    run(
        root.path(),
        [
            "merge", "a", "b", "--out", "out", "--memory", "128MiB", "--quiet",
        ],
    )
    .ok();
    assert_eq!(
        config_of(&root.path().join("out"))["quantization_config"],
        quantised
    );
}
