//! `config.json`: carried as it is, but for what must say what was written: dtype, vocabulary,
//! layers, an untied head.

use serde_json::{Map, Value};

use crate::checkpoint::quantised::CONFIG_KEYS;
use crate::dtype::Dtype;
use crate::plan::TEXT_CONFIGS;
use crate::plan::agree::Edit;

/// The keys under which `config.json` states the dtype: transformers' name of today and the one
/// before it.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// The keys under which the number of layers is stated.
const LAYER_KEYS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];

/// The key that says whether the head is the embeddings.
const TIED_KEY: &str = "tie_word_embeddings";

/// What is true of the weights that were written.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// The dtype of most of them.
    pub dtype: Option<Dtype>,
    /// Rows of the embeddings, where they are not the donor's.
    pub vocab_rows: Option<u64>,
    /// The layers, where they are not the donor's.
    pub layers: Option<Restacked>,
    /// The head is a tensor of its own, whatever the donor's is.
    pub untied: bool,
    /// The weights are stored as numbers: whatever says that they are quantised is left out.
    pub plain: bool,
    /// The head is not written, though a model stored it: it is the embeddings.
    pub tied: bool,
    /// Single statements about tensors that the donor does not have.
    pub edits: Vec<Edit>,
}

/// Layers that were stacked anew.
#[derive(Debug, Clone, Default)]
pub struct Restacked {
    /// How many layers the donor has.
    pub before: usize,
    /// For each layer that was written, the model that decides what it is, and its number there.
    pub origins: Vec<(usize, usize)>,
    /// The configs of the models; a list of the donor's serves where another has none.
    pub configs: Vec<Option<Value>>,
}

/// The config as it must be for `truth`, or `None` when it says so already and need not be touched.
///
/// Statements of the dtype change in all sub-configs; a config that states none gets `torch_dtype`,
/// which old and new readers understand. Vocabulary and layers change at the top and in the config
/// of the language model: the count of layers moves with the layers, and lists with one value a
/// layer are put together from the lists of the models that the layers come from.
pub fn restated(config: &Value, truth: &Truth) -> Option<Value> {
    let mut changed = config.clone();
    if let Some(name) = truth.dtype.map(stated).and_then(Dtype::torch_name)
        && !restate_dtype(&mut changed, name)
        && !is_of_diffusers(config)
    {
        changed
            .as_object_mut()?
            .insert("torch_dtype".to_owned(), Value::from(name));
    }
    if let Some(rows) = truth.vocab_rows {
        in_text_configs(changed.as_object_mut()?, &mut |fields| {
            if let Some(size) = fields.get_mut("vocab_size") {
                *size = rows.into();
            }
        });
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
        in_text_configs(fields, &mut |fields| {
            if let Some(tied) = fields.get_mut(TIED_KEY) {
                *tied = Value::from(false);
            }
        });
    }
    for Edit { path, key, value } in &truth.edits {
        let part = path
            .iter()
            .try_fold(&mut changed, |part, key| part.get_mut(key));
        part?.as_object_mut()?.insert(key.clone(), value.clone());
    }
    if truth.tied && !states_ties(&changed) {
        // What readers assume where nothing is said depends on their version.
        changed
            .as_object_mut()?
            .insert(TIED_KEY.to_owned(), Value::from(true));
    }
    (changed != *config).then_some(changed)
}

/// The dtype that a config states for weights of `dtype`: the one that torch is to compute in.
/// Bfloat16 holds what types of 8 bits hold, and is none that torch refuses.
pub fn stated(dtype: Dtype) -> Dtype {
    if dtype.is_torch_default() {
        dtype
    } else {
        Dtype::BF16
    }
}

/// Takes out what says that weights are quantised, at the top and in all sub-configs.
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

/// Whether a config, or that of its language model, says that the head is tied.
fn states_ties(config: &Value) -> bool {
    let texts = TEXT_CONFIGS.iter().filter_map(|key| config.get(key));
    std::iter::once(config)
        .chain(texts)
        .any(|part| part.get(TIED_KEY) == Some(&Value::Bool(true)))
}

/// The config with every statement of the dtype made true; `None` when there is none that has to
/// change.
pub fn with_dtype(config: &Value, dtype: Dtype) -> Option<Value> {
    let mut changed = config.clone();
    restate_dtype(&mut changed, stated(dtype).torch_name()?);
    (changed != *config).then_some(changed)
}

/// Configs of diffusers have no dtype, and its loaders warn of keys that they do not know.
fn is_of_diffusers(config: &Value) -> bool {
    config.get("_diffusers_version").is_some()
}

/// Sets every statement of the dtype; returns whether there was one.
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
        let theirs = || {
            configs
                .iter()
                .map(|config| config.and_then(|config| config.get(key)))
                .collect::<Vec<_>>()
        };
        if LAYER_KEYS.contains(&key.as_str()) {
            // Some configs do not count every layer that is stored; the difference stays.
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
            let theirs = theirs();
            let of = |&(model, layer): &(usize, usize)| {
                let own = theirs
                    .get(model)
                    .and_then(|list| list.and_then(Value::as_array));
                own.and_then(|list| list.get(layer))
                    .or_else(|| list.get(layer))
                    .or(list.last())
                    .cloned()
            };
            *list = layers.origins.iter().filter_map(of).collect();
        } else if TEXT_CONFIGS.contains(&key.as_str())
            && let Some(inner) = value.as_object_mut()
        {
            restack(inner, layers, &theirs());
        }
    }
}

/// Whether a list has one value a layer. In a model of two layers, so do other lists, which names
/// tell apart.
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
