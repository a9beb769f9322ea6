//! The files around the weights: configuration and a byte-level tokenizer, so that transformers
//! loads the folder.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::Outcome;
use crate::options::Precision;
use crate::shape::Shape;

const BEGIN: &str = "<s>";
const END: &str = "</s>";

/// Writes everything but weights and index.
pub fn write(folder: &Path, shape: &Shape, dtype: Precision) -> Outcome<()> {
    for (name, content) in [
        ("config.json", config(shape, dtype)),
        (
            "generation_config.json",
            json!({ "bos_token_id": 0, "do_sample": false, "eos_token_id": 1 }),
        ),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", tokenizer_config()),
        (
            "special_tokens_map.json",
            json!({ "bos_token": BEGIN, "eos_token": END }),
        ),
    ] {
        let path = folder.join(name);
        fs::write(&path, format!("{content:#}\n"))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

fn config(shape: &Shape, dtype: Precision) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": shape.head_dim(),
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 8192,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": null,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": dtype.config_name(),
        "use_cache": true,
        "vocab_size": shape.vocab,
    })
}

fn tokenizer_config() -> Value {
    json!({
        "add_bos_token": false,
        "bos_token": BEGIN,
        "clean_up_tokenization_spaces": false,
        "eos_token": END,
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
}

/// Two special tokens and the 256 bytes, no merges: any text can be encoded, one token a byte.
fn tokenizer() -> Value {
    let special = |id: u64, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    };
    let names = [BEGIN.to_owned(), END.to_owned()]
        .into_iter()
        .chain(byte_names());
    let vocab: Map<String, Value> = names
        .zip(0_u64..)
        .map(|(name, id)| (name, Value::from(id)))
        .collect();
    let byte_level = |prefix: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(0, BEGIN), special(1, END)],
        "normalizer": null,
        "pre_tokenizer": byte_level(false),
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []
        },
    })
}

/// The printable stand-in of each byte in byte-level vocabularies: printable Latin-1 characters
/// stand for themselves, all others follow from U+0100 on.
fn byte_names() -> impl Iterator<Item = String> {
    let mut next = 0x100_u32;
    (0..=255_u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
        _ => {
            let name = char::from_u32(next).expect("U+0100 to U+0143 are characters");
            next += 1;
            name.to_string()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_byte_has_a_name_of_its_own() {
        let names: Vec<_> = byte_names().collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 256);
        // The usual landmarks: space is Ġ, newline is Ċ, letters are themselves.
        assert_eq!(
            (names[32].as_str(), names[10].as_str(), names[65].as_str()),
            ("Ġ", "Ċ", "A")
        );
    }

    #[test]
    fn the_vocabulary_has_the_258_tokens_that_the_shape_checks_for() {
        assert_eq!(
            tokenizer()["model"]["vocab"]
                .as_object()
                .expect("a map")
                .len(),
            258
        );
    }
}
