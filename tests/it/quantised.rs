//! Weights that are codes, and adapters: refused by name at every door, taken raw where that is
//! asked for.

mod adapters;
mod doors;
mod layouts;

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// A tensor of a fixture: its name, its dtype as files call it, its shape.
type Tensor<'a> = (&'a str, &'a str, &'a [u64]);

fn bits(dtype: &str) -> u64 {
    match dtype {
        "F32" | "I32" | "U32" => 32,
        "BF16" | "F16" | "I16" | "U16" => 16,
        "I64" => 64,
        _ => 8,
    }
}

/// Writes a file of these tensors; every byte of them is 0x38, which is a moderate number in every
/// floating type.
fn file(path: &Path, tensors: &[Tensor<'_>], metadata: &Value) {
    let mut header = Map::new();
    if !metadata.is_null() {
        header.insert("__metadata__".to_owned(), metadata.clone());
    }
    let mut at = 0;
    for (name, dtype, shape) in tensors {
        let end = at + shape.iter().product::<u64>() * bits(dtype) / 8;
        header.insert(
            (*name).to_owned(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }),
        );
        at = end;
    }
    let text = Value::from(header).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len() + usize::try_from(at).expect("small"), 0x38);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, bytes).expect("written");
}

/// A model folder of these tensors and this config.
fn model(folder: &Path, tensors: &[Tensor<'_>], config: &Value) {
    file(&folder.join("model.safetensors"), tensors, &Value::Null);
    if !config.is_null() {
        fs::write(folder.join("config.json"), config.to_string()).expect("written");
    }
}
