//! `config.json`: copied, except for the statements about the written weights: dtype, vocabulary,
//! layers, tied or untied head.

// The configs are files of others.
#![deny(clippy::indexing_slicing, clippy::string_slice)]

use serde_json::{Map, Value};

use crate::checkpoint::quantised::CONFIG_KEYS;
use crate::dtype::Dtype;
use crate::plan::TEXT_CONFIGS;
use crate::plan::agree::Edit;

/// The keys of the dtype in `config.json`: transformers' current name and the one before it.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// The keys of the number of layers.
const LAYER_KEYS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];

/// The key that is true if the head is tied to the embeddings.
const TIED_KEY: &str = "tie_word_embeddings";

/// The facts about the written weights.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// The dtype of most weights.
    pub dtype: Option<Dtype>,
    /// The rows of the embeddings, if they differ from the donor's.
    pub vocab_rows: Option<u64>,
    /// The layers, if they are not the donor's.
    pub layers: Option<Restacked>,
    /// True if the head is a separate tensor, whatever the donor's is.
    pub untied: bool,
    /// True if the weights are plain numbers: statements that they are quantised are removed.
    pub plain: bool,
    /// True if a model stored the head, but it is tied to the embeddings and not written.
    pub tied: bool,
    /// Changes to single keys, for tensors that the donor does not have.
    pub edits: Vec<Edit>,
}

/// Layers that were restacked.
#[derive(Debug, Clone, Default)]
pub struct Restacked {
    /// The number of layers of the donor.
    pub before: usize,
    /// The model that decides the kind of each written layer, and the layer's number in that model.
    pub origins: Vec<(usize, usize)>,
    /// The configs of the models. Where a model lacks a list, the donor's is used.
    pub configs: Vec<Option<Value>>,
}

/// Changes the config to match `truth`; `None` when it already matches.
///
/// The dtype changes in all sub-configs; a config without one gets `torch_dtype`, which old and new
/// readers understand. Vocabulary and layers change at the top and in the config of the language
/// model: the number of layers changes by as many as were added or removed, and lists with one
/// value per layer are assembled from the lists of the layers' models.
pub fn restated(config: &Value, truth: &Truth) -> Option<Value> {
    let mut changed = config.clone();
    if let Some(name) = truth.dtype.map(stated).and_then(Dtype::torch_name)
        && !restate_dtype(&mut changed, name)
        && !is_of_diffusers(config)
    {
        let fields = changed.as_object_mut()?;
        fields.insert("torch_dtype".to_owned(), Value::from(name));
    }
    if let Some(rows) = truth.vocab_rows {
        restate_texts(changed.as_object_mut()?, "vocab_size", &rows.into());
    }
    if let Some(layers) = &truth.layers {
        let configs: Vec<_> = layers.configs.iter().map(Option::as_ref).collect();
        restack(changed.as_object_mut()?, layers, &configs);
    }
    if truth.plain {
        drop_quantisation(changed.as_object_mut()?);
    }
    if truth.untied {
        let fields = changed.as_object_mut()?;
        // Some families tie their heads unless the config says that they do not.
        fields.insert(TIED_KEY.to_owned(), Value::from(false));
        restate_texts(fields, TIED_KEY, &Value::from(false));
    }
    for Edit { path, key, value } in &truth.edits {
        let part = path
            .iter()
            .try_fold(&mut changed, |part, key| part.get_mut(key));
        part?.as_object_mut()?.insert(key.clone(), value.clone());
    }
    if truth.tied && !states_ties(&changed) {
        // Without the key, the default depends on the reader's version.
        let fields = changed.as_object_mut()?;
        fields.insert(TIED_KEY.to_owned(), Value::from(true));
    }
    (changed != *config).then_some(changed)
}

/// Changes `key` wherever the config of a language model has it.
fn restate_texts(fields: &mut Map<String, Value>, key: &str, new: &Value) {
    in_text_configs(fields, &mut |fields| {
        if let Some(value) = fields.get_mut(key) {
            *value = new.clone();
        }
    });
}

/// Returns the dtype in a config for weights of `dtype`: the one in which torch should compute. For
/// dtypes that torch refuses it is bfloat16, which holds every 8-bit value.
pub fn stated(dtype: Dtype) -> Dtype {
    if dtype.is_torch_default() {
        dtype
    } else {
        Dtype::BF16
    }
}

/// Removes statements that weights are quantised, at the top and in all sub-configs.
fn drop_quantisation(fields: &mut Map<String, Value>) {
    for key in CONFIG_KEYS {
        if fields.get(key).is_some_and(Value::is_object) {
            fields.shift_remove(key);
        }
    }
    for (key, value) in fields.iter_mut() {
        if let Some(inner) = value.as_object_mut().filter(|_| key.ends_with("_config")) {
            drop_quantisation(inner);
        }
    }
}

/// True if a config, or that of its language model, states a tied head.
fn states_ties(config: &Value) -> bool {
    let texts = TEXT_CONFIGS.iter().filter_map(|key| config.get(key));
    std::iter::once(config)
        .chain(texts)
        .any(|part| part.get(TIED_KEY) == Some(&Value::Bool(true)))
}

/// Corrects every dtype in the config; `None` when none has to change.
pub fn with_dtype(config: &Value, dtype: Dtype) -> Option<Value> {
    let mut changed = config.clone();
    restate_dtype(&mut changed, stated(dtype).torch_name()?);
    (changed != *config).then_some(changed)
}

/// True for a config of diffusers: it has no dtype, and its loaders warn about unknown keys.
fn is_of_diffusers(config: &Value) -> bool {
    config.get("_diffusers_version").is_some()
}

/// Sets every dtype; returns true if there was one.
fn restate_dtype(config: &mut Value, name: &str) -> bool {
    let Some(fields) = config.as_object_mut() else {
        return false;
    };
    let mut stated = false;
    for (key, value) in fields {
        if DTYPE_KEYS.contains(&key.as_str()) && value.is_string() {
            *value = Value::from(name);
            stated = true;
        } else if key.ends_with("_config") && key != "quantization_config" {
            stated |= restate_dtype(value, name);
        }
    }
    stated
}

fn in_text_configs(
    fields: &mut Map<String, Value>,
    change: &mut dyn FnMut(&mut Map<String, Value>),
) {
    change(fields);
    for key in TEXT_CONFIGS {
        if let Some(inner) = fields.get_mut(key).and_then(Value::as_object_mut) {
            in_text_configs(inner, change);
        }
    }
}

fn restack(fields: &mut Map<String, Value>, layers: &Restacked, configs: &[Option<&Value>]) {
    for (key, value) in fields {
        // The same key in the configs of the models that layers are taken from.
        let theirs = configs
            .iter()
            .map(|config| config.and_then(|config| config.get(key)));
        if LAYER_KEYS.contains(&key.as_str()) {
            // Some configs do not count every stored layer; the difference is kept.
            let count = value
                .as_u64()
                .map(|stated| stated + layers.origins.len() as u64);
            if let Some(count) = count.and_then(|count| count.checked_sub(layers.before as u64)) {
                *value = count.into();
            }
        } else if let Some(list) = value
            .as_array_mut()
            .filter(|list| is_by_layer(key, list, layers.before))
        {
            let theirs: Vec<_> = theirs.collect();
            let origins = layers.origins.iter();
            *list = origins
                .filter_map(|(model, layer)| {
                    let own = theirs.get(*model).copied().flatten();
                    entry_of_layer(own, list, *layer).cloned()
                })
                .collect();
        } else if TEXT_CONFIGS.contains(&key.as_str())
            && let Some(inner) = value.as_object_mut()
        {
            restack(inner, layers, &theirs.collect::<Vec<_>>());
        }
    }
}

/// Returns the entry of a layer in its model's list, else in the donor's, else the donor's last one.
fn entry_of_layer<'a>(
    own: Option<&'a Value>,
    donor: &'a [Value],
    layer: usize,
) -> Option<&'a Value> {
    let own = own.and_then(Value::as_array);
    own.and_then(|list| list.get(layer))
        .or_else(|| donor.get(layer))
        .or(donor.last())
}

/// True if a list has one value per layer. In a model of two layers other lists have two values
/// too; they are excluded by name.
fn is_by_layer(key: &str, list: &[Value], layers: usize) -> bool {
    !list.is_empty() && list.len() == layers && key != "architectures" && !key.contains("token")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of_dtype(dtype: Dtype) -> Truth {
        Truth {
            dtype: Some(dtype),
            ..Truth::default()
        }
    }

    #[test]
    fn every_statement_of_the_dtype_is_kept_true_and_nothing_else_changes() {
        let config = json!({
            "model_type": "x", "torch_dtype": "float16",
            "text_config": { "dtype": "float16", "hidden_size": 8 },
            "quantization_config": { "dtype": "int8" },
        });
        let changed = restated(&config, &of_dtype(Dtype::BF16)).expect("the dtype differs");
        assert_eq!(changed["torch_dtype"], "bfloat16");
        assert_eq!(
            changed["text_config"],
            json!({ "dtype": "bfloat16", "hidden_size": 8 })
        );
        assert_eq!(changed["quantization_config"], json!({ "dtype": "int8" }));
    }

    #[test]
    fn of_types_that_torch_cannot_compute_in_the_config_states_one_that_holds_them() {
        for (dtype, wanted) in [
            (Dtype::F64, "float64"),
            (Dtype::F32, "float32"),
            (Dtype::F16, "float16"),
            (Dtype::BF16, "bfloat16"),
            (Dtype::F8E4M3, "bfloat16"),
            (Dtype::F8E5M2, "bfloat16"),
        ] {
            let changed =
                restated(&json!({ "dtype": "x" }), &of_dtype(dtype)).expect("the dtype differs");
            assert_eq!(changed, json!({ "dtype": wanted }));
        }
    }

    #[test]
    fn a_config_that_is_true_already_is_not_touched() {
        assert_eq!(
            restated(&json!({ "dtype": "bfloat16" }), &of_dtype(Dtype::BF16)),
            None
        );
        let truth = Truth {
            vocab_rows: Some(7),
            ..Truth::default()
        };
        assert_eq!(restated(&json!({ "vocab_size": 7 }), &truth), None);
    }

    #[test]
    fn a_config_that_states_no_dtype_gets_one() {
        let changed = restated(&json!({ "model_type": "x" }), &of_dtype(Dtype::F32))
            .expect("nothing was stated");
        assert_eq!(
            changed,
            json!({ "model_type": "x", "torch_dtype": "float32" })
        );
    }

    #[test]
    fn an_untied_head_is_said_to_be_one() {
        let truth = Truth {
            untied: true,
            ..Truth::default()
        };
        let config = json!({ "text_config": { "tie_word_embeddings": true } });
        let wanted = json!({ "text_config": { "tie_word_embeddings": false }, "tie_word_embeddings": false });
        assert_eq!(restated(&config, &truth), Some(wanted.clone()));
        assert_eq!(restated(&wanted, &truth), None);
    }

    #[test]
    fn what_calls_plain_weights_quantised_is_left_out_wherever_it_stands() {
        let config = json!({
            "model_type": "x", "torch_dtype": "float16", "quantization_config": { "quant_method": "fp8" },
            "text_config": { "hidden_size": 8, "quantization_config": { "bits": 4 } }, "quantization": "a word",
        });
        let wanted = json!({
            "model_type": "x", "torch_dtype": "float16", "text_config": { "hidden_size": 8 }, "quantization": "a word",
        });
        assert_eq!(
            restated(
                &config,
                &Truth {
                    plain: true,
                    ..of_dtype(Dtype::F16)
                }
            ),
            Some(wanted)
        );
        assert_eq!(restated(&config, &of_dtype(Dtype::F16)), None);
    }

    #[test]
    fn what_is_no_object_is_left_alone() {
        assert_eq!(restated(&json!([1, 2]), &of_dtype(Dtype::F32)), None);
    }

    #[test]
    fn the_vocabulary_changes_where_the_language_model_is_described() {
        let config = json!({
            "vocab_size": 10, "text_config": { "vocab_size": 10 }, "vision_config": { "vocab_size": 3 },
        });
        let truth = Truth {
            vocab_rows: Some(16),
            ..Truth::default()
        };
        let wanted = json!({
            "vocab_size": 16, "text_config": { "vocab_size": 16 }, "vision_config": { "vocab_size": 3 },
        });
        assert_eq!(restated(&config, &truth), Some(wanted));
    }

    #[test]
    fn layers_take_their_lists_along_from_the_models_they_come_from() {
        let config = |kind: &str| {
            json!({
                "num_hidden_layers": 3, "layer_types": ["first", kind, "last"], "eos_token_id": [1, 2, 3],
                "text_config": { "n_layer": 2, "windows": [kind, kind, "own"] },
                "vision_config": { "num_hidden_layers": 3 }, "rope_scaling": [1, 2],
            })
        };
        let layers = Restacked {
            before: 3,
            origins: vec![(0, 0), (0, 1), (1, 1), (1, 2), (2, 1)],
            configs: vec![Some(config("a")), Some(config("b")), None],
        };
        let changed = restated(
            &config("a"),
            &Truth {
                layers: Some(layers),
                ..Truth::default()
            },
        )
        .expect("changed");
        assert_eq!(changed["num_hidden_layers"], 5);
        assert_eq!(
            changed["layer_types"],
            json!(["first", "a", "b", "last", "a"])
        );
        // One layer more was stored than counted, and so it stays.
        assert_eq!(
            changed["text_config"],
            json!({ "n_layer": 4, "windows": ["a", "a", "b", "own", "a"] })
        );
        for key in ["eos_token_id", "vision_config", "rope_scaling"] {
            assert_eq!(changed[key], config("a")[key], "{key}");
        }
    }
}
