//! One tensor under several names.

use serde_json::{Value, json};
use tempfile::tempdir;

use super::{assert_mean, config, merge, model, written};
use crate::support::program::run;

const EMBEDDINGS: (&str, &[usize]) = ("model.embed_tokens.weight", &[6, 4]);
const HEAD: (&str, &[usize]) = ("lm_head.weight", &[6, 4]);
const LAYER: (&str, &[usize]) = ("model.layers.0.mlp.up_proj.weight", &[5, 4]);

fn llama(tied: bool) -> Value {
    json!({ "model_type": "llama", "torch_dtype": "float32", "tie_word_embeddings": tied })
}

#[test]
fn a_head_that_one_model_ties_and_another_has_is_written_untied() {
    for (policy, base_ties) in [
        ("", true),
        ("", false),
        ("--missing common", true),
        ("--missing base --base 1", true),
    ] {
        let root = tempdir().expect("temporary folder");
        let mut tied = model(root.path(), "tied", &[EMBEDDINGS, LAYER], &llama(true));
        let own = model(
            root.path(),
            "own",
            &[EMBEDDINGS, LAYER, HEAD],
            &llama(false),
        );
        let models = if base_ties { "tied own" } else { "own tied" };
        let ended = merge(root.path(), &format!("{models} {policy}")).ok();
        let out = written(root.path());
        assert_eq!(out.len(), 3, "{policy}");
        let embeddings = tied.remove(EMBEDDINGS.0).expect("written above");
        assert_mean(&out[EMBEDDINGS.0], &[&embeddings, &own[EMBEDDINGS.0]]);
        assert_mean(&out[HEAD.0], &[&embeddings, &own[HEAD.0]]);
        assert_eq!(config(root.path())["tie_word_embeddings"], false);
        assert!(
            ended.stderr.contains("tie_word_embeddings: false")
                || ended.stdout.contains("tie_word_embeddings: false"),
            "{ended:?}"
        );
        // What decides is part of what a run is, and compared when it is checked.
        run(
            root.path(),
            ["verify", "out", "--against", "--method", "linear"]
                .into_iter()
                .chain(models.split(' '))
                .chain(policy.split_whitespace()),
        )
        .ok();
    }
}

#[test]
fn a_head_that_all_models_tie_is_not_written_wherever_it_is_stored() {
    let root = tempdir().expect("temporary folder");
    let both = model(
        root.path(),
        "both",
        &[EMBEDDINGS, LAYER, HEAD],
        &llama(true),
    );
    let one = model(root.path(), "one", &[EMBEDDINGS, LAYER], &llama(true));
    let ended = merge(root.path(), "both one --json").ok();
    let out = written(root.path());
    assert_eq!(out.len(), 2);
    assert_mean(
        &out[EMBEDDINGS.0],
        &[&both[EMBEDDINGS.0], &one[EMBEDDINGS.0]],
    );
    assert_eq!(config(root.path())["tie_word_embeddings"], true);
    let said = ended.json();
    let notes = said["notes"].to_string();
    assert!(
        notes.contains("ties it to model.embed_tokens.weight") && notes.contains("lm_head.weight"),
        "{notes}"
    );
    // Nothing is lost by it, so there is nothing to warn of.
    assert_eq!(said["warnings"].as_array().map_or(0, Vec::len), 0, "{said}");
}

#[test]
fn what_a_family_means_by_saying_nothing_is_known() {
    // Gemma and GPT-2 tie unless told otherwise, Llama does not; where nobody says, a head that is
    // stored is one.
    for (config, kept) in [
        (json!({ "model_type": "gemma2" }), false),
        (json!({ "model_type": "llama" }), true),
        (
            json!({ "model_type": "gemma3", "text_config": { "model_type": "gemma3_text" } }),
            false,
        ),
        (
            json!({ "model_type": "llava", "text_config": { "model_type": "llama", "tie_word_embeddings": true } }),
            false,
        ),
        (json!({ "model_type": "somebody's own" }), true),
        (Value::Null, true),
    ] {
        let root = tempdir().expect("temporary folder");
        model(root.path(), "a", &[EMBEDDINGS, HEAD], &config);
        model(root.path(), "b", &[EMBEDDINGS, HEAD], &config);
        merge(root.path(), "a b").ok();
        assert_eq!(written(root.path()).contains_key(HEAD.0), kept, "{config}");
    }
}

#[test]
fn without_configs_a_missing_head_is_the_embeddings() {
    let root = tempdir().expect("temporary folder");
    let a = model(root.path(), "a", &[EMBEDDINGS, HEAD], &Value::Null);
    let b = model(root.path(), "b", &[EMBEDDINGS], &Value::Null);
    merge(root.path(), "a b").ok();
    assert_mean(
        &written(root.path())[HEAD.0],
        &[&a[HEAD.0], &b[EMBEDDINGS.0]],
    );
}

#[test]
fn a_config_that_says_untied_makes_a_missing_head_an_error() {
    let root = tempdir().expect("temporary folder");
    model(root.path(), "a", &[EMBEDDINGS, HEAD], &llama(false));
    model(root.path(), "b", &[EMBEDDINGS], &llama(false));
    merge(root.path(), "a b").fails(2, &["b: `lm_head.weight` is not there"]);
    // A classifier has no head, however its config ties one.
    let classifier =
        json!({ "model_type": "gemma", "architectures": ["GemmaForSequenceClassification"] });
    model(root.path(), "c", &[EMBEDDINGS], &classifier);
    merge(root.path(), "a c").fails(2, &["c: ", "`lm_head.weight` is not there"]);
}

/// A family: its config tied, embeddings, head, and tensors that stand beside the head.
type Family = (Value, &'static str, &'static str, &'static [&'static str]);

#[test]
fn every_family_finds_its_head_and_its_embeddings() {
    let families: [Family; 17] = [
        (
            json!({ "model_type": "gpt2" }),
            "transformer.wte.weight",
            "lm_head.weight",
            &[],
        ),
        (
            json!({ "model_type": "bloom" }),
            "transformer.word_embeddings.weight",
            "lm_head.weight",
            &[],
        ),
        (
            json!({ "model_type": "gpt_neox", "tie_word_embeddings": true }),
            "gpt_neox.embed_in.weight",
            "embed_out.weight",
            &[],
        ),
        (
            json!({ "model_type": "opt" }),
            "model.decoder.embed_tokens.weight",
            "lm_head.weight",
            &[],
        ),
        (
            json!({ "model_type": "mamba" }),
            "backbone.embeddings.weight",
            "lm_head.weight",
            &[],
        ),
        (
            json!({ "model_type": "whisper" }),
            "model.decoder.embed_tokens.weight",
            "proj_out.weight",
            &[],
        ),
        (
            json!({ "model_type": "bert" }),
            "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.weight",
            &["cls.predictions.bias"],
        ),
        (
            json!({ "model_type": "roberta" }),
            "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.weight",
            &["lm_head.bias"],
        ),
        (
            json!({ "model_type": "albert" }),
            "albert.embeddings.word_embeddings.weight",
            "predictions.decoder.weight",
            &["predictions.bias"],
        ),
        (
            json!({ "model_type": "distilbert" }),
            "distilbert.embeddings.word_embeddings.weight",
            "vocab_projector.weight",
            &["vocab_projector.bias"],
        ),
        (
            json!({ "model_type": "electra" }),
            "electra.embeddings.word_embeddings.weight",
            "generator_lm_head.weight",
            &["generator_lm_head.bias"],
        ),
        (
            json!({ "model_type": "xlnet" }),
            "transformer.word_embedding.weight",
            "lm_loss.weight",
            &["lm_loss.bias"],
        ),
        (
            json!({ "model_type": "ctrl" }),
            "transformer.w.weight",
            "lm_head.weight",
            &["lm_head.bias"],
        ),
        (
            json!({ "model_type": "modernbert" }),
            "model.embeddings.tok_embeddings.weight",
            "decoder.weight",
            &["head.dense.weight"],
        ),
        (
            json!({ "model_type": "bart" }),
            "model.shared.weight",
            "lm_head.weight",
            &["model.decoder.embed_tokens.weight"],
        ),
        (
            json!({ "model_type": "gemma3" }),
            "model.language_model.embed_tokens.weight",
            "lm_head.weight",
            &["model.vision_tower.embed_tokens.weight"],
        ),
        (
            json!({ "model_type": "llava", "text_config": { "tie_word_embeddings": true } }),
            "language_model.model.embed_tokens.weight",
            "language_model.lm_head.weight",
            &[],
        ),
    ];
    for (tied, embeddings, head, beside) in families {
        let root = tempdir().expect("temporary folder");
        let shape: &[usize] = &[6, 4];
        let mut tensors = vec![(embeddings, shape)];
        tensors.extend(beside.iter().map(|name| (*name, shape)));
        let a = model(root.path(), "a", &tensors, &tied);
        tensors.push((head, shape));
        let mut untied = tied.clone();
        untied["tie_word_embeddings"] = false.into();
        if let Some(text) = untied.get_mut("text_config") {
            text["tie_word_embeddings"] = false.into();
        }
        let b = model(root.path(), "b", &tensors, &untied);
        merge(root.path(), "a b").ok();
        assert_mean(&written(root.path())[head], &[&a[embeddings], &b[head]]);
        let says = config(root.path());
        assert_eq!(says["tie_word_embeddings"], false, "{head}");
        assert!(says["text_config"]["tie_word_embeddings"] != true, "{head}");
    }
}

#[test]
fn shared_embeddings_of_encoder_and_decoder_are_one_whatever_they_are_called() {
    let root = tempdir().expect("temporary folder");
    let shape: &[usize] = &[6, 4];
    let t5 = json!({ "model_type": "t5" });
    let names = [
        "shared.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    ];
    let a = model(root.path(), "a", &[(names[0], shape)], &t5);
    let b = model(root.path(), "b", &[(names[1], shape)], &t5);
    let c = model(
        root.path(),
        "c",
        &[(names[0], shape), (names[1], shape), (names[2], shape)],
        &t5,
    );
    merge(root.path(), "a b c").ok();
    let out = written(root.path());
    assert_eq!(out.keys().collect::<Vec<_>>(), [names[0]]);
    assert_mean(&out[names[0]], &[&a[names[0]], &b[names[1]], &c[names[0]]]);
    // The first model's name is the one that is written.
    merge(root.path(), "b a --overwrite").ok();
    assert_eq!(written(root.path()).keys().collect::<Vec<_>>(), [names[1]]);
}

#[test]
fn a_bias_of_two_names_is_written_under_both_when_a_model_has_both() {
    let root = tempdir().expect("temporary folder");
    let bert = json!({ "model_type": "bert" });
    let (outer, inner) = ("cls.predictions.bias", "cls.predictions.decoder.bias");
    let a = model(root.path(), "a", &[(outer, &[6])], &bert);
    let b = model(root.path(), "b", &[(outer, &[6]), (inner, &[6])], &bert);
    merge(root.path(), "a b").ok();
    assert_mean(&written(root.path())[inner], &[&a[outer], &b[inner]]);
}

#[test]
fn a_family_that_scales_what_a_tied_head_reads_is_refused_where_only_some_tie() {
    let root = tempdir().expect("temporary folder");
    let shape: &[usize] = &[6, 4];
    model(
        root.path(),
        "a",
        &[("shared.weight", shape)],
        &json!({ "model_type": "t5" }),
    );
    let own = json!({ "model_type": "t5", "tie_word_embeddings": false });
    model(
        root.path(),
        "b",
        &[("shared.weight", shape), ("lm_head.weight", shape)],
        &own,
    );
    merge(root.path(), "a b").fails(2, &["scales what a tied head reads", "lm_head.weight"]);
}

#[test]
fn a_stack_ends_in_the_head_of_its_last_model_even_where_that_is_its_embeddings() {
    let root = tempdir().expect("temporary folder");
    let second: (&str, &[usize]) = ("model.layers.1.mlp.up_proj.weight", &[5, 4]);
    model(
        root.path(),
        "own",
        &[EMBEDDINGS, LAYER, second, HEAD],
        &llama(false),
    );
    let tied = model(
        root.path(),
        "tied",
        &[EMBEDDINGS, LAYER, second],
        &llama(true),
    );
    let recipe = "merge_method: passthrough\nslices:\n- sources: [{model: own, layer_range: [0, 2]}]\n\
                  - sources: [{model: tied, layer_range: [0, 2]}]\n";
    std::fs::write(root.path().join("stack.yml"), recipe).expect("written");
    run(root.path(), ["merge", "stack.yml", "--out", "out"]).ok();
    assert_mean(&written(root.path())[HEAD.0], &[&tied[EMBEDDINGS.0]]);
    assert_eq!(config(root.path())["tie_word_embeddings"], false);
}
