//! Reads the statements of configs and headers about quantisation.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::index::read_capped;
use super::super::{InputFile, side};

/// Keys of `config.json` that describe the quantisation of weights.
pub const CONFIG_KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];
/// Files that describe it, each with its writer, in case the file does not name a method.
const CONFIG_FILES: [(&str, &str); 6] = [
    ("hf_quant_config.json", "modelopt"),
    ("quantize_config.json", "gptq"),
    ("quant_config.json", "awq"),
    ("quantization_config.json", "unknown"),
    ("quanto_qmap.json", "quanto"),
    ("quantization_map.json", "quanto"),
];
/// Keys of a header's `__metadata__` that describe it, each with its writer.
const METADATA_KEYS: [(&str, &str); 2] = [
    ("_quantization_metadata", "comfy"),
    ("quantization_config", "nunchaku"),
];
/// The longest such file that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// The keys of the method's name, in the order of the search.
const METHOD_KEYS: [&str; 4] = ["quant_method", "quant_algo", "quant_type", "format"];

/// A statement that weights are quantised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The place of the statement.
    pub place: String,
    /// The method's name there.
    pub method: String,
    /// True if floats are stored, and quantised only when they are used.
    pub when_used: bool,
}

impl Claim {
    /// Finds the first statement about the model of these `files` with its config in `folder`.
    ///
    /// An unreadable config counts as no statement here; its readers report the error.
    pub fn find(folder: &Path, files: &[InputFile]) -> Option<Self> {
        let config = || side::config(folder).ok().flatten();
        config()
            .as_ref()
            .and_then(Value::as_object)
            .and_then(|fields| in_config(fields, "config.json"))
            .or_else(|| {
                CONFIG_FILES
                    .iter()
                    .find_map(|(name, writer)| in_file(&folder.join(name), name, writer))
            })
            .or_else(|| files.iter().find_map(in_header))
    }
}

fn in_config(fields: &Map<String, Value>, place: &str) -> Option<Claim> {
    let own = CONFIG_KEYS.iter().find_map(|key| {
        let stated = fields
            .get(*key)?
            .as_object()
            .filter(|stated| !stated.is_empty())?;
        let method = method_of(stated).or_else(|| unnamed(key, stated))?;
        Some(Claim {
            place: format!("{key} in {place}"),
            when_used: is_when_used(&method, stated),
            method,
        })
    });
    own.or_else(|| {
        let inner = fields
            .iter()
            .filter(|(key, _)| key.ends_with("_config") && !CONFIG_KEYS.contains(&key.as_str()));
        inner
            .into_iter()
            .find_map(|(key, value)| in_config(value.as_object()?, &format!("{key} in {place}")))
    })
}

/// Returns the method's name.
fn method_of(stated: &Map<String, Value>) -> Option<String> {
    let named = METHOD_KEYS
        .iter()
        .find_map(|key| stated.get(*key)?.as_str().filter(|name| !name.is_empty()));
    let switch = |key: &&&str| stated.get(**key) == Some(&Value::Bool(true));
    let switched = [
        "load_in_4bit",
        "load_in_8bit",
        "_load_in_4bit",
        "_load_in_8bit",
    ];
    let inner = || stated.get("quantization")?.as_object().and_then(method_of);
    named
        .map(str::to_owned)
        .or_else(|| {
            switched
                .iter()
                .find(switch)
                .map(|key| key.trim_start_matches('_').to_owned())
        })
        .or_else(inner)
}

/// Names the method of a statement without a name: MLX gives a number of bits. `None` if
/// TensorRT-LLM's algorithm is null: nothing is quantised.
fn unnamed(key: &str, stated: &Map<String, Value>) -> Option<String> {
    if stated.contains_key("quant_algo") {
        return None;
    }
    let counts_bits = stated.contains_key("bits") && stated.contains_key("group_size");
    match (key, counts_bits) {
        ("quantization", true) => Some("mlx".to_owned()),
        ("quantization", false) => None,
        _ => Some("unknown".to_owned()),
    }
}

/// Recognises BitNet's models for training: they hold ordinary floats, which are rounded at every
/// use.
fn is_when_used(method: &str, stated: &Map<String, Value>) -> bool {
    method == "bitnet" && stated.get("quantization_mode").and_then(Value::as_str) == Some("online")
}

/// Reads a statement from a file; `None` when the file is not one.
fn in_file(path: &Path, name: &str, writer: &str) -> Option<Claim> {
    if !path.is_file() {
        return None;
    }
    let text = read_capped(path, MAX_BYTES, "cannot read config").ok()?;
    let stated: Map<String, Value> = serde_json::from_slice(&text).ok()?;
    let method = method_of(&stated).unwrap_or_else(|| writer.to_owned());
    Some(Claim {
        place: name.to_owned(),
        method,
        when_used: false,
    })
}

fn in_header(file: &InputFile) -> Option<Claim> {
    let claim = |method: &str| {
        Some(Claim {
            place: format!("the header of {}", file.name),
            method: method.to_owned(),
            when_used: false,
        })
    };
    let stated = METADATA_KEYS
        .iter()
        .find(|(key, _)| file.metadata.contains_key(*key));
    if let Some((_, writer)) = stated {
        return claim(writer);
    }
    // torchao lists the tensors that it has split.
    file.metadata
        .contains_key("tensor_names")
        .then(|| claim("torchao"))
        .flatten()
}
