//! The differences between two configs, among the keys in the [table](super::table).

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::json;

use super::table::{Effect, HEAD_NAMES, HEAD_SIZE_NAMES, KEY_HEAD_NAMES, ROWS};

/// The keys of the language model's config in a model with other parts.
const TEXT_CONFIGS: [&str; 4] = [
    "text_config",
    "llm_config",
    "language_config",
    "thinker_config",
];
/// Model types with different names whose tensors have the same meaning.
const SAME_KINDS: [&[&str]; 3] = [
    &["llama", "mistral"],
    &["bert", "retribert"],
    &["roberta", "xlm-roberta", "camembert"],
];
/// The values of a switch that is off.
const OFF: [Value; 2] = [Value::Null, Value::Bool(false)];

/// The most characters of a value in a message.
const SHOWN: usize = 80;

/// A key that differs between two configs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    /// The key, after those of its enclosing objects.
    pub key: String,
    /// Its value in the first config, in words if there is none.
    pub ours: String,
    /// Its value in the second config, likewise.
    pub theirs: String,
    /// The effect of the key.
    pub effect: Effect,
    /// The reason why the key matters.
    pub why: &'static str,
}

impl Difference {
    /// Says which value each of two models has, and why that matters.
    pub fn between(&self, one: &Path, other: &Path) -> String {
        format!(
            "`{}` is {} in {} and {} in {}: {}",
            self.key,
            self.ours,
            one.display(),
            self.theirs,
            other.display(),
            self.why
        )
    }
}

/// Lists the differences between `ours` and `theirs`.
pub(super) fn differences(ours: &Value, theirs: &Value) -> Vec<Difference> {
    let (Some(ours), Some(theirs)) = (ours.as_object(), theirs.as_object()) else {
        return vec![];
    };
    let mut found = Vec::new();
    match (text_of(ours), text_of(theirs)) {
        // A language model and a model with other parts share only the language model.
        (Some((_, inner)), None) if !is_of_parts(theirs) => {
            compare("", &over(ours, inner), theirs, &mut found)
        }
        (None, Some((_, inner))) if !is_of_parts(ours) => {
            compare("", ours, &over(theirs, inner), &mut found)
        }
        _ => compare("", ours, theirs, &mut found),
    }
    found
}

fn text_of(config: &Map<String, Value>) -> Option<(&'static str, &Map<String, Value>)> {
    TEXT_CONFIGS
        .into_iter()
        .find_map(|key| Some((key, config.get(key)?.as_object()?)))
}

/// True if a config contains configs of parts.
fn is_of_parts(config: &Map<String, Value>) -> bool {
    config.iter().any(|(key, value)| is_part(key, value))
}

fn is_part(key: &str, value: &Value) -> bool {
    let is_other = key.starts_with("quantization") || key.starts_with("generation");
    value.is_object()
        && !is_other
        && (key.ends_with("_config") || matches!(key, "encoder" | "decoder"))
}

/// Merges `inner` over the keys around it that are not parts.
fn over(outer: &Map<String, Value>, inner: &Map<String, Value>) -> Map<String, Value> {
    let parts = outer.iter().filter(|(key, value)| !is_part(key, value));
    parts
        .chain(inner)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Compares two objects and the objects that both contain; `path` precedes their keys.
fn compare(
    path: &str,
    ours: &Map<String, Value>,
    theirs: &Map<String, Value>,
    found: &mut Vec<Difference>,
) {
    kinds(path, ours, theirs, found);
    for row in ROWS {
        let (own, other) = (Stated::of(ours, row.names), Stated::of(theirs, row.names));
        // A value that only one config states may be the other's default.
        let effect = if own.sure && other.sure {
            row.effect
        } else {
            Effect::Function
        };
        if !own.is(&other) {
            found.push(Difference {
                key: format!("{path}{}", own.name.or(other.name).unwrap_or(row.names[0])),
                ours: own.shown(),
                theirs: other.shown(),
                effect,
                why: row.why,
            });
        }
    }
    for (key, value) in ours.iter().filter(|(key, value)| is_part(key, value)) {
        if let (Some(ours), Some(theirs)) = (
            value.as_object(),
            theirs.get(key).and_then(Value::as_object),
        ) {
            compare(&format!("{path}{key}."), ours, theirs, found);
        }
    }
}

/// Compares the model types. A type whose name extends the other's is one of its parts, or the same
/// model with parts.
fn kinds(
    path: &str,
    ours: &Map<String, Value>,
    theirs: &Map<String, Value>,
    found: &mut Vec<Difference>,
) {
    let (Some(own), Some(other)) = (kind_of(ours), kind_of(theirs)) else {
        return;
    };
    let same = |kinds: &&[&str]| kinds.contains(&&*own) && kinds.contains(&&*other);
    if own == other || SAME_KINDS.iter().any(same) {
        return;
    }
    let related = extends(&own, &other) || extends(&other, &own);
    found.push(Difference {
        key: format!("{path}model_type"),
        ours: json::shown(&own.into()),
        theirs: json::shown(&other.into()),
        effect: if related {
            Effect::Function
        } else {
            Effect::Meaning
        },
        why: "another kind of model may mean something else by tensors of the same names",
    });
}

fn kind_of(config: &Map<String, Value>) -> Option<String> {
    let kind = config.get("model_type").and_then(Value::as_str);
    kind.map(str::to_owned)
}

/// True if the name of a kind is the name of another one and something more.
fn extends(long: &str, short: &str) -> bool {
    let rest = long.strip_prefix(short);
    rest.is_some_and(|rest| rest.starts_with('_'))
}

/// The value of a config under one of several names, or its default.
struct Stated {
    name: Option<&'static str>,
    value: Value,
    /// True if the config states the value.
    sure: bool,
}

impl Stated {
    fn of(config: &Map<String, Value>, names: &[&'static str]) -> Self {
        let given = names
            .iter()
            .find(|name| config.get(**name).is_some_and(|value| !value.is_null()));
        match given {
            Some(name) => Self {
                name: Some(name),
                value: plain(&config[*name]),
                sure: true,
            },
            None => {
                let inside = in_rope_parameters(config, names[0]);
                let sure = !inside.is_null();
                Self {
                    name: None,
                    value: if sure {
                        inside
                    } else {
                        understood(config, names)
                    },
                    sure,
                }
            }
        }
    }

    fn is(&self, other: &Self) -> bool {
        let off = |value: &Value| OFF.contains(value);
        match (self.value.as_f64(), other.value.as_f64()) {
            (Some(own), Some(other)) => own == other,
            _ => self.value == other.value || (off(&self.value) && off(&other.value)),
        }
    }

    fn shown(&self) -> String {
        if self.value.is_null() {
            return "not stated".to_owned();
        }
        let text = json::shown(&self.value);
        match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// Normalises a value, so that different spellings of one setting are equal.
fn plain(value: &Value) -> Value {
    let Some(fields) = value.as_object() else {
        return value.clone();
    };
    let mut fields = fields.clone();
    // Configs often give the type of scaling under both names.
    if let Some(kind) = fields.remove("type") {
        fields.entry("rope_type").or_insert(kind);
    }
    fields.remove("rope_theta");
    fields.remove("partial_rotary_factor");
    match fields.get("rope_type").and_then(Value::as_str) {
        Some("default") if fields.len() == 1 => Value::Null,
        // Layers of several kinds have separate settings, key by key.
        _ => fields
            .into_iter()
            .map(|(key, value)| (key, plain_inside(&value)))
            .collect::<Map<_, _>>()
            .into(),
    }
}

fn plain_inside(value: &Value) -> Value {
    if value.is_object() {
        plain(value)
    } else {
        value.clone()
    }
}

/// Reads a setting of positions from `rope_parameters`, where newer configs keep them.
fn in_rope_parameters(config: &Map<String, Value>, name: &str) -> Value {
    let Some(rope) = config.get("rope_parameters") else {
        return Value::Null;
    };
    match name {
        "rope_theta" | "partial_rotary_factor" => rope.get(name).cloned().unwrap_or_default(),
        "rope_scaling" => plain(rope),
        _ => Value::Null,
    }
}

/// Returns the default of most families for a missing key.
fn understood(config: &Map<String, Value>, names: &[&'static str]) -> Value {
    let number = |names: &[&str]| names.iter().find_map(|name| config.get(*name)?.as_u64());
    let heads = || number(HEAD_NAMES).filter(|heads| *heads > 0);
    let found = match names[0] {
        // One key-value head for each query head.
        name if name == KEY_HEAD_NAMES[0] && config.get("multi_query").is_none() => heads(),
        name if name == HEAD_SIZE_NAMES[0] => {
            number(&["hidden_size", "n_embd", "d_model"]).and_then(|size| Some(size / heads()?))
        }
        _ => None,
    };
    found.map_or(Value::Null, |number| json!(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ours: Value, theirs: Value) -> Vec<(String, Effect)> {
        differences(&ours, &theirs)
            .into_iter()
            .map(|difference| (difference.key, difference.effect))
            .collect()
    }

    fn llama() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
            "rope_theta": 10000.0, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut config = llama();
        config[key] = value;
        config
    }

    #[test]
    fn keys_that_cut_or_scale_tensors_change_their_meaning_and_others_what_is_computed() {
        for (key, value, effect) in [
            ("num_attention_heads", json!(4), Effect::Meaning),
            ("num_key_value_heads", json!(4), Effect::Meaning),
            ("head_dim", json!(16), Effect::Function),
            ("model_type", json!("gemma"), Effect::Meaning),
            ("rope_theta", json!(500_000), Effect::Function),
            (
                "rope_scaling",
                json!({ "rope_type": "llama3", "factor": 8.0 }),
                Effect::Function,
            ),
            ("hidden_act", json!("gelu"), Effect::Function),
            ("sliding_window", json!(4096), Effect::Function),
            ("rms_norm_eps", json!(1e-6), Effect::Function),
        ] {
            let differing = found(llama(), with(key, value.clone()));
            assert!(
                differing.contains(&(key.to_owned(), effect)),
                "{key}: {differing:?}"
            );
            let text = |config: Value| json!({ "model_type": "x", "text_config": config });
            let differing = found(text(llama()), text(with(key, value)));
            assert!(
                differing.contains(&(format!("text_config.{key}"), effect)),
                "{key}: {differing:?}"
            );
        }
        for key in [
            "partial_rotary_factor",
            "logit_scale",
            "rope_interleave",
            "num_experts",
            "cardinality",
        ] {
            assert_eq!(
                found(with(key, json!(2)), with(key, json!(4))),
                [(key.to_owned(), Effect::Meaning)]
            );
            // A value that only one config states may be the other's default.
            assert_eq!(
                found(llama(), with(key, json!(4))),
                [(key.to_owned(), Effect::Function)]
            );
        }
    }

    #[test]
    fn what_says_the_same_in_other_words_does_not_differ() {
        for (key, value) in [
            ("head_dim", json!(8)),
            ("rope_scaling", Value::Null),
            ("rope_scaling", json!({ "rope_type": "default" })),
            ("sliding_window", Value::Null),
            ("use_sliding_window", json!(false)),
            ("rope_theta", json!(10_000)),
            ("model_type", json!("mistral")),
            ("max_position_embeddings", json!(131_072)),
            ("vocab_size", json!(7)),
            ("torch_dtype", json!("float16")),
            (
                "rope_parameters",
                json!({ "rope_type": "default", "rope_theta": 10000.0 }),
            ),
        ] {
            assert_eq!(
                found(llama(), with(key, value.clone())),
                [],
                "{key} {value}"
            );
        }
        let mut new = llama();
        let fields = new.as_object_mut().expect("an object");
        fields.remove("rope_theta");
        fields.insert(
            "rope_parameters".into(),
            json!({ "rope_type": "default", "rope_theta": 10000.0 }),
        );
        assert_eq!(found(llama(), new.clone()), []);
        new["rope_parameters"] =
            json!({ "rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0 });
        assert_eq!(
            found(
                new.clone(),
                with("rope_scaling", json!({ "type": "linear", "factor": 4.0 }))
            ),
            []
        );
        assert_eq!(
            found(llama(), new),
            [("rope_scaling".to_owned(), Effect::Function)]
        );
        assert_eq!(
            found(json!({}), llama())
                .iter()
                .filter(|(_, effect)| *effect == Effect::Meaning)
                .count(),
            0
        );
    }

    #[test]
    fn a_language_model_is_compared_with_that_part_of_a_bigger_one() {
        let mut inner = llama();
        inner["model_type"] = json!("llama_text");
        let bigger = json!({
            "model_type": "seer", "text_config": inner,
            "vision_config": { "num_attention_heads": 16, "hidden_size": 32 },
        });
        assert_eq!(
            found(llama(), bigger.clone()),
            [("model_type".to_owned(), Effect::Function)]
        );
        let other = with("num_attention_heads", json!(4));
        assert!(
            found(bigger, other).contains(&("num_attention_heads".to_owned(), Effect::Meaning))
        );
        let flat = |kind: &str| json!({ "model_type": kind, "num_attention_heads": 8, "vision_config": {} });
        assert_eq!(
            found(flat("qwen2_vl"), flat("qwen2")),
            [("model_type".to_owned(), Effect::Function)]
        );
    }
}
