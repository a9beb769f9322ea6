//! Layers and biases that only some models have.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::{assert_mean, config, merge, model, written};

/// A model of so many layers, whose names begin with `stem`; attention modules have a bias where
/// `biases` names them.
fn deep(stem: &str, layers: usize, biases: &[&str]) -> Vec<(String, &'static [usize])> {
    let mut tensors: Vec<(String, &'static [usize])> =
        vec![("model.embed_tokens.weight".to_owned(), &[6, 4])];
    for layer in 0..layers {
        for module in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            tensors.push((format!("{stem}{layer}.self_attn.{module}.weight"), &[4, 4]));
        }
        tensors.extend(biases.iter().map(|module| {
            let bias: (String, &'static [usize]) =
                (format!("{stem}{layer}.self_attn.{module}.bias"), &[4]);
            bias
        }));
    }
    tensors
}

fn put(
    root: &std::path::Path,
    name: &str,
    tensors: &[(String, &'static [usize])],
    config: &Value,
) -> crate::support::reference::Model {
    let tensors: Vec<(&str, &[usize])> = tensors
        .iter()
        .map(|(name, shape)| (name.as_str(), *shape))
        .collect();
    model(root, name, &tensors, config)
}

fn llama(layers: usize) -> Value {
    json!({ "model_type": "llama", "num_hidden_layers": layers, "layer_types": vec![format!("kind {layers}"); layers] })
}

const ALL: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj"];

#[test]
fn layers_that_only_one_model_has_are_counted_in_the_config_and_named() {
    let root = tempdir().expect("temporary folder");
    let a = put(root.path(), "a", &deep("model.layers.", 2, &[]), &llama(2));
    let b = put(root.path(), "b", &deep("model.layers.", 4, &[]), &llama(4));
    let report = merge(root.path(), "a b --missing common --json")
        .ok()
        .json();
    let out = written(root.path());
    assert_eq!(out.len(), b.len());
    let name = |layer: usize| format!("model.layers.{layer}.self_attn.k_proj.weight");
    assert_mean(&out[&name(1)], &[&a[&name(1)], &b[&name(1)]]);
    assert_mean(&out[&name(3)], &[&b[&name(3)]]);
    let says = config(root.path());
    assert_eq!(says["num_hidden_layers"], 4);
    assert_eq!(
        says["layer_types"],
        json!(["kind 2", "kind 2", "kind 4", "kind 4"])
    );
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("merged over fewer models, because a lacks model.layers.2"),
        "{warnings}"
    );
    assert!(warnings.contains("and 5 more tensors"), "{warnings}");
    assert_eq!(report["partial"].as_array().map(Vec::len), Some(8));
    assert_eq!(report["partial"][0]["lacking"], json!([0]));
    // The base that has them needs no other config; taken from the base, there is nothing to add.
    merge(root.path(), "a b --missing common --base 2 --overwrite").ok();
    assert_eq!(config(root.path())["num_hidden_layers"], 4);
    merge(root.path(), "a b --missing base --base 1 --overwrite").ok();
    assert_eq!(
        (
            written(root.path()).len(),
            &config(root.path())["num_hidden_layers"]
        ),
        (a.len(), &json!(2))
    );
}

#[test]
fn layers_are_counted_where_the_part_of_the_model_is_described() {
    let t5 = |layers: usize| json!({ "model_type": "t5", "num_layers": 2, "num_decoder_layers": layers });
    let vision = |layers: usize| {
        json!({
            "model_type": "llava", "text_config": { "model_type": "llama", "num_hidden_layers": 2 },
            "vision_config": { "num_hidden_layers": layers },
        })
    };
    type Case<'a> = (&'a str, &'a str, &'a dyn Fn(usize) -> Value, &'a [&'a str]);
    let cases: [Case<'_>; 2] = [
        (
            "encoder.block.",
            "decoder.block.",
            &t5,
            &["num_decoder_layers"],
        ),
        (
            "language_model.layers.",
            "vision_tower.layers.",
            &vision,
            &["vision_config", "num_hidden_layers"],
        ),
    ];
    for (same, longer, config_of, keys) in cases {
        let root = tempdir().expect("temporary folder");
        for (name, layers) in [("a", 2), ("b", 3)] {
            let mut tensors = deep(same, 2, &[]);
            tensors.extend(deep(longer, layers, &[]).split_off(1));
            put(root.path(), name, &tensors, &config_of(layers));
        }
        merge(root.path(), "a b --missing common").ok();
        let mut wanted = config_of(2);
        wanted["torch_dtype"] = "float32".into();
        *keys.iter().fold(&mut wanted, |part, key| &mut part[key]) = 3.into();
        assert_eq!(config(root.path()), wanted, "{longer}");
    }
}

#[test]
fn layers_that_no_config_can_count_are_refused() {
    let with = |tensors: Vec<(String, &'static [usize])>, name: &str| {
        let mut tensors = tensors;
        tensors.push((name.to_owned(), &[4]));
        tensors
    };
    let gap = with(deep("model.layers.", 2, &[]), "model.layers.4.norm.weight");
    let odd = with(
        deep("model.layers.", 2, &[]),
        "model.layers.2.eh_proj.weight",
    );
    let whole = deep("model.layers.", 3, &[]);
    for (b, a_says, b_says, words) in [
        (&gap, llama(2), llama(5), "no model has `model.layers.2`"),
        (
            &odd,
            llama(2),
            llama(2),
            "has other tensors than the base's layers",
        ),
        (
            &whole,
            llama(2),
            llama(2),
            "which of them count cannot be told",
        ),
        (
            &whole,
            json!({ "model_type": "llama" }),
            llama(3),
            "does not say how many layers",
        ),
    ] {
        let root = tempdir().expect("temporary folder");
        put(root.path(), "a", &deep("model.layers.", 2, &[]), &a_says);
        put(root.path(), "b", b, &b_says);
        merge(root.path(), "a b --missing common").fails(2, &[words, "a/config.json", "--base N"]);
        // `plan` judges as `merge` does.
        crate::support::program::run(
            root.path(),
            ["plan", "a", "b", "--missing", "common", "--out", "out"],
        )
        .fails(2, &[words]);
        assert!(!root.path().join("out").exists());
    }
}

#[test]
fn biases_that_only_one_model_has_are_switched_on_where_the_family_has_a_switch() {
    for (config_of, path) in [
        (
            json!({ "model_type": "llama", "attention_bias": false }),
            None,
        ),
        (
            json!({ "model_type": "llava", "text_config": { "model_type": "qwen3" } }),
            Some("text_config"),
        ),
    ] {
        let root = tempdir().expect("temporary folder");
        put(root.path(), "a", &deep("model.layers.", 2, &[]), &config_of);
        let b = put(root.path(), "b", &deep("model.layers.", 2, ALL), &config_of);
        merge(root.path(), "a b --missing common").ok();
        assert_eq!(written(root.path()).len(), b.len());
        let says = config(root.path());
        assert_eq!(path.map_or(&says, |key| &says[key])["attention_bias"], true);
    }
}

#[test]
fn biases_that_no_switch_stands_for_are_refused_by_name() {
    for (config, biases) in [
        (json!({ "model_type": "mistral" }), ALL),
        (json!({ "model_type": "llama" }), &ALL[..3]),
        (json!({}), ALL),
    ] {
        let root = tempdir().expect("temporary folder");
        put(root.path(), "a", &deep("model.layers.", 2, &[]), &config);
        put(root.path(), "b", &deep("model.layers.", 2, biases), &config);
        let words = ["the base has no model.layers.0.self_attn.", "a/config.json"];
        merge(root.path(), "a b --missing common").fails(2, &words);
        merge(root.path(), "a b --missing common --base 2").ok();
    }
}
