//! Models that mean something else by the same names and shapes: their tokens have other numbers,
//! or their configs cut tensors in another way.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use thalweg::dtype::Dtype;

use crate::align::planted::{llama, planted};
use crate::support::program::run;
use crate::support::striped::{spec, write};

/// Models `a` and `b` with rows for four tokens, or as many as are wanted.
fn models(rows: [u64; 2]) -> TempDir {
    let root = tempdir().expect("temporary folder");
    for ((name, rows), seed) in ["a", "b"].into_iter().zip(rows).zip(1..) {
        let tensors = vec![
            spec("model.embed_tokens.weight", Dtype::BF16, &[rows, 8]),
            spec("model.layers.0.mlp.up_proj.weight", Dtype::BF16, &[8, 8]),
            spec("lm_head.weight", Dtype::BF16, &[rows, 8]),
        ];
        write(&root.path().join(name), &[tensors], seed);
    }
    root
}

/// A tokenizer whose tokens are these, the last one added.
fn tokenizer(root: &Path, name: &str, tokens: &[&str]) {
    let (added, tokens) = tokens.split_last().expect("one at least");
    let vocab: Value = tokens
        .iter()
        .enumerate()
        .map(|(number, token)| ((*token).to_owned(), json!(number)))
        .collect();
    let added = json!([{ "id": tokens.len(), "content": added, "special": true }]);
    let text =
        json!({ "added_tokens": added, "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
    fs::write(root.join(name), text.to_string()).expect("written");
}

fn config(root: &Path, name: &str, more: Value) {
    let mut config = json!({
        "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_theta": 10000.0, "vocab_size": 4,
    });
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    fs::write(root.join(name).join("config.json"), config.to_string()).expect("written");
}

#[test]
fn tokens_of_other_numbers_are_refused_at_every_door_unless_that_is_said() {
    let root = models([4, 4]);
    let dir = root.path();
    tokenizer(dir, "a/tokenizer.json", &["x", "y", "z", "<s>"]);
    tokenizer(dir, "b/tokenizer.json", &["x", "z", "y", "<t>"]);
    let recipe = |more: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: a}}, {{model: b}}]\nweights: [1, 1]\n{more}"
        )
    };
    fs::write(dir.join("plain.yml"), recipe("")).expect("written");
    fs::write(dir.join("any.yml"), recipe("any_vocabulary: true\n")).expect("written");
    let words = [
        "cannot merge",
        "token 1 is \"y\" in a/tokenizer.json, \"z\" in b/tokenizer.json, and 2 more differ",
    ];
    run(dir, ["merge", "a", "b", "--out", "out"])
        .fails(2, &words)
        .fails(2, &["`--any-vocabulary`"]);
    run(dir, ["plan", "a", "b", "--out", "out"]).fails(2, &words);
    run(dir, ["merge", "plain.yml", "--out", "out"])
        .fails(2, &words)
        .fails(2, &["`any_vocabulary: true`"]);
    assert!(!dir.join("out").exists(), "nothing was written");
    run(dir, ["plan", "a", "b", "--any-vocabulary", "--out", "out"]).ok();
    run(
        dir,
        [
            "merge",
            "a",
            "b",
            "--any-vocabulary",
            "--method",
            "linear",
            "--out",
            "out",
        ],
    )
    .ok();
    run(dir, ["merge", "any.yml", "--out", "by-recipe"]).ok();
    run(
        dir,
        ["merge", "plain.yml", "--any-vocabulary", "--out", "by-flag"],
    )
    .ok();
    for other in ["by-recipe", "by-flag"] {
        let bytes =
            |folder: &str| fs::read(dir.join(folder).join("model.safetensors")).expect("merged");
        assert!(bytes("out") == bytes(other), "{other}");
    }
    let against = ["verify", "out", "--against", "a", "b", "--method", "linear"];
    run(dir, against).fails(2, &words);
    run(dir, against.iter().chain(&["--any-vocabulary"])).ok();
}

#[test]
fn added_tokens_that_differ_are_found_where_the_vocabulary_is_the_same() {
    let root = models([4, 4]);
    let dir = root.path();
    for (name, added) in [("a", "<s>"), ("b", "<t>")] {
        fs::write(
            dir.join(name).join("vocab.json"),
            r#"{"x": 0, "y": 1, "z": 2}"#,
        )
        .expect("written");
        let added = json!({ "added_tokens_decoder": { "3": { "content": added } }, "model_max_length": 1e30 });
        fs::write(
            dir.join(name).join("tokenizer_config.json"),
            added.to_string(),
        )
        .expect("written");
    }
    run(dir, ["merge", "a", "b", "--out", "out"])
        .fails(2, &["token 3 is \"<s>\" in a/vocab.json, \"<t>\" in b/"]);
}

#[test]
fn tokens_matter_only_where_rows_that_belong_to_them_are_merged() {
    let root = models([4, 6]);
    let dir = root.path();
    tokenizer(dir, "a/tokenizer.json", &["x", "y", "z", "<s>"]);
    // More tokens at the end are rows more, which --mismatch is for.
    tokenizer(dir, "b/tokenizer.json", &["x", "y", "z", "<s>", "u", "<t>"]);
    run(dir, ["merge", "a", "b", "--out", "out"]).fails(2, &["inputs differ in their shapes"]);
    run(
        dir,
        ["merge", "a", "b", "--mismatch", "pad", "--out", "padded"],
    )
    .ok();
    tokenizer(dir, "b/tokenizer.json", &["x", "z", "y", "<s>", "u", "<t>"]);
    run(
        dir,
        ["merge", "a", "b", "--mismatch", "pad", "--out", "out"],
    )
    .fails(2, &["token 1 is"]);
    // Rows of the base alone are not merged with others.
    run(
        dir,
        [
            "merge",
            "a",
            "b",
            "--mismatch",
            "skip",
            "--base",
            "1",
            "--out",
            "skipped",
        ],
    )
    .ok();
    // Who has no tokenizer cannot be asked.
    fs::remove_file(dir.join("b/tokenizer.json")).expect("there");
    let said = run(
        dir,
        ["merge", "a", "b", "--mismatch", "pad", "--out", "unknown"],
    )
    .ok()
    .stdout;
    assert!(said.contains("warning: b has no tokenizer files"), "{said}");
    run(dir, ["merge", "a/model.safetensors", "a", "--out", "same"]).ok();
}

#[test]
fn heads_cut_in_another_way_are_refused_and_other_functions_are_said() {
    let root = models([4, 4]);
    let dir = root.path();
    config(dir, "a", json!({}));
    config(
        dir,
        "b",
        json!({ "num_attention_heads": 8, "rope_theta": 500_000, "sliding_window": 4096 }),
    );
    let words = [
        "cannot merge: b/config.json",
        "`num_attention_heads` is 4 in a and 8 in b",
        "--any-config",
    ];
    run(dir, ["merge", "a", "b", "--out", "out"]).fails(2, &words);
    run(dir, ["plan", "a", "b", "--out", "out"]).fails(2, &words);
    assert!(!dir.join("out").exists(), "nothing was written");
    fs::write(
        dir.join("any.yml"),
        "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nany_config: true\n",
    )
    .expect("written");
    for args in [
        &["merge", "a", "b", "--any-config", "--out", "out"][..],
        &["merge", "any.yml", "--out", "by-recipe"],
    ] {
        let said = run(dir, args).ok().stdout;
        for key in ["num_attention_heads", "rope_theta", "sliding_window"] {
            let warned = |line: &str| {
                line.starts_with("warning: ") && line.contains(key) && line.contains("config of a")
            };
            assert!(said.lines().any(warned), "{key}: {said}");
        }
    }
    config(
        dir,
        "b",
        json!({ "rope_theta": 500_000, "max_position_embeddings": 9 }),
    );
    let planned = run(dir, ["plan", "a", "b", "--out", "other"]).ok().stdout;
    assert!(
        planned.contains("`rope_theta` is 10000.0 in a and 500000 in b"),
        "{planned}"
    );
    assert!(!planned.contains("max_position"), "{planned}");
    // Layers of another model get the config too.
    config(dir, "b", json!({ "model_type": "gemma" }));
    fs::write(
        dir.join("stack.yml"),
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n\
         - sources: [{model: b, layer_range: [0, 1]}]\n",
    )
    .expect("written");
    run(dir, ["merge", "stack.yml", "--out", "stack"])
        .fails(2, &["`model_type` is \"llama\" in a and \"gemma\" in b"]);
}

#[test]
fn alignments_and_interpolations_judge_as_merges_do() {
    let stored = planted(&llama(), false);
    let dir = stored.dir.path();
    let change = |key: &str, value: Value| {
        let path = dir.join("planted/config.json");
        let mut config: Value =
            serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        config[key] = value;
        fs::write(path, config.to_string()).expect("written");
    };
    let own = fs::read_to_string(dir.join("model/config.json")).expect("read");
    let mut own: Value = serde_json::from_str(&own).expect("JSON");
    own["rope_interleaved"] = false.into();
    fs::write(dir.join("model/config.json"), own.to_string()).expect("written");
    change("rope_interleaved", true.into());
    let align = ["align", "model", "planted"];
    let interpolate = [
        "interpolate",
        "model",
        "planted",
        "--points",
        "2",
        "--out",
        "way",
    ];
    let merge = [
        "merge", "model", "planted", "--align", "weights", "--out", "out",
    ];
    for args in [&align[..], &interpolate, &merge] {
        run(dir, args).fails(
            2,
            &[
                "`rope_interleaved` is false in model and true in planted",
                "--any-config",
            ],
        );
        run(dir, args.iter().chain(&["--any-config"])).ok();
    }
    fs::remove_dir_all(dir.join("way")).expect("there");
    change("rope_interleaved", false.into());
    fs::write(dir.join("model/vocab.json"), r#"{"a": 0, "b": 1}"#).expect("written");
    fs::write(dir.join("planted/vocab.json"), r#"{"a": 1, "b": 0}"#).expect("written");
    let merge = [
        "merge", "model", "planted", "--align", "weights", "--out", "tokens",
    ];
    for args in [&align[..], &interpolate, &merge] {
        run(dir, args).fails(
            2,
            &["token 0 is \"a\" in model/vocab.json", "--any-vocabulary"],
        );
        run(dir, args.iter().chain(&["--any-vocabulary"])).ok();
    }
}
