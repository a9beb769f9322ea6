//! `config.json`: carried as it is, but for the dtype, which must say what was written.

use serde_json::Value;

use crate::dtype::Dtype;

/// The keys under which `config.json` states the dtype: transformers' name of today and the one before it.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// The config with every statement of the dtype set to `dtype`, in sub-configs (`text_config` and the like) too, or
/// `None` when it says so already and need not be touched.
///
/// A config that states no dtype gets `torch_dtype`, which old and new readers understand.
pub fn with_dtype(config: &Value, dtype: Dtype) -> Option<Value> {
    let name = dtype.torch_name()?;
    let mut changed = config.clone();
    if !restate(&mut changed, name) {
        let fields = changed.as_object_mut()?;
        fields.insert("torch_dtype".to_owned(), Value::from(name));
    }
    (changed != *config).then_some(changed)
}

/// Sets every statement of the dtype; returns whether there was one.
fn restate(config: &mut Value, name: &str) -> bool {
    let Some(fields) = config.as_object_mut() else {
        return false;
    };
    let mut stated = false;
    for (key, value) in fields {
        if DTYPE_KEYS.contains(&key.as_str()) && value.is_string() {
            *value = Value::from(name);
            stated = true;
        } else if key.ends_with("_config") && key != "quantization_config" {
            stated |= restate(value, name);
        }
    }
    stated
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_statement_of_the_dtype_is_kept_true_and_nothing_else_changes() {
        let config = json!({
            "model_type": "x", "torch_dtype": "float16",
            "text_config": { "dtype": "float16", "hidden_size": 8 },
            "quantization_config": { "dtype": "int8" },
        });
        let changed = with_dtype(&config, Dtype::BF16).expect("the dtype differs");
        assert_eq!(changed["torch_dtype"], "bfloat16");
        assert_eq!(changed["text_config"], json!({ "dtype": "bfloat16", "hidden_size": 8 }));
        assert_eq!(changed["quantization_config"], json!({ "dtype": "int8" }));
    }

    #[test]
    fn a_config_that_is_true_already_is_not_touched() {
        assert_eq!(with_dtype(&json!({ "dtype": "bfloat16" }), Dtype::BF16), None);
    }

    #[test]
    fn a_config_that_states_no_dtype_gets_one() {
        let changed = with_dtype(&json!({ "model_type": "x" }), Dtype::F32).expect("nothing was stated");
        assert_eq!(changed, json!({ "model_type": "x", "torch_dtype": "float32" }));
    }

    #[test]
    fn what_is_no_object_is_left_alone() {
        assert_eq!(with_dtype(&json!([1, 2]), Dtype::F32), None);
    }
}
