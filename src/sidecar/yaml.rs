//! Plain data as readable YAML: block style, one key per line.
//!
//! Text that is not a plain word is written as JSON, which YAML reads as the same text.

use serde_json::Value;

/// Writes `value` as a YAML document that ends in a line break.
pub fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Writes a text or number on one line.
pub fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        // YAML 1.1 readers read 1e-05 as text: a number with an exponent needs a point.
        Value::Number(number) => match number.to_string().split_once(['e', 'E']) {
            Some((digits, power)) if !digits.contains('.') => format!("{digits}.0e{power}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (number, (key, value)) in fields.iter().enumerate() {
                // The first key of a list entry follows the dash.
                let before = if number == 0 && text.ends_with("- ") {
                    ""
                } else {
                    &indent
                };
                text.push_str(&format!("{before}{}:", scalar(&Value::from(key.as_str()))));
                nested(value, depth + 1, text);
            }
        }
        Value::Array(entries) if !is_flat(value) => {
            for entry in entries {
                text.push_str(&format!("{indent}- "));
                if is_flat(entry) {
                    text.push_str(&format!("{}\n", flat(entry)));
                } else {
                    block(entry, depth + 1, text);
                }
            }
        }
        other => text.push_str(&format!("{indent}{}\n", flat(other))),
    }
}

fn nested(value: &Value, depth: usize, text: &mut String) {
    if is_flat(value) {
        text.push_str(&format!(" {}\n", flat(value)));
    } else {
        text.push('\n');
        block(value, depth, text);
    }
}

/// True if a value fits on the line of its key: scalars, lists of numbers, empty values.
fn is_flat(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(entries) => entries.iter().all(Value::is_number),
        _ => true,
    }
}

fn flat(value: &Value) -> String {
    match value {
        Value::Array(entries) => format!(
            "[{}]",
            entries.iter().map(scalar).collect::<Vec<_>>().join(", ")
        ),
        other => scalar(other),
    }
}

/// True if text needs no quotes: a word that no reader takes for a number, a date, a boolean or
/// null.
fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.');
    let reserved = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !reserved.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn a_document_is_written_key_by_key() {
        let value = json!({
            "merge_method": "karcher",
            "models": [
                { "model": "./a", "parameters": { "weight": 0.5 } },
                { "model": "org/b", "parameters": { "weight": [0.1, 1e-7] } },
            ],
            "parameters": { "tol": 1e-12, "filters": [{ "filter": "on", "value": true }] },
        });
        let text = "merge_method: karcher\nmodels:\n  - model: \"./a\"\n    parameters:\n      weight: 0.5\n  \
                    - model: org/b\n    parameters:\n      weight: [0.1, 1.0e-7]\nparameters:\n  tol: 1.0e-12\n  \
                    filters:\n    - filter: \"on\"\n      value: true\n";
        assert_eq!(document(&value), text);
    }

    #[test]
    fn what_is_written_is_read_as_the_same_recipe() {
        let value = json!({
            "merge_method": "linear", "dtype": "bfloat16", "base_model": "y",
            "models": [
                { "model": "name: with \"quotes\"\u{e9}", "parameters": { "weight": [1, 0.25, -3e-9] } },
                { "model": "123", "parameters": { "weight": [{ "filter": "mlp", "value": 1e300 }, { "value": 2 }] } },
                { "model": "y", "parameters": { "weight": 1 } },
            ],
            "parameters": { "normalize": false },
        });
        let written = Recipe::parse(&document(&value), "yaml").expect("a recipe");
        assert_eq!(
            written.documents,
            Recipe::parse(&value.to_string(), "json")
                .expect("a recipe")
                .documents
        );
    }
}
