//! Maps every part of the recipe that flags stand for to the text that was typed, so that messages
//! name the flag.

use serde_json::{Map, Value};

use super::args::JobArgs;
use super::job::DEFAULT_METHOD;
use crate::door::flag_of;
use crate::recipe::Typed;

/// Returns the recipe as text in which every line knows its flag.
pub fn lines(recipe: &Map<String, Value>, args: &JobArgs) -> Typed {
    let mut typed = Typed::default();
    typed.line("{", "the command line");
    for (index, (key, value)) in recipe.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let opening = format!("{comma}{}: ", Value::from(key.as_str()));
        match (key.as_str(), value) {
            ("models", Value::Array(models)) => {
                typed.line(format!("{opening}["), "the models");
                for (index, model) in models.iter().enumerate() {
                    self::model(&mut typed, index, model, args);
                }
                typed.line("]", "the models");
            }
            ("parameters", Value::Object(parameters)) => {
                mapping(&mut typed, &opening, parameters, parameter_typed)
            }
            ("align", Value::Object(align)) => mapping(&mut typed, &opening, align, align_typed),
            _ => typed.line(format!("{opening}{value}"), as_typed(key, value, args)),
        }
    }
    typed.line("}", "the command line");
    typed
}

/// Writes a model, with its weight on a line of its own, since it was typed elsewhere.
fn model(typed: &mut Typed, index: usize, model: &Value, args: &JobArgs) {
    let comma = if index == 0 { "" } else { ", " };
    let path = &model["model"];
    typed.line(
        format!("{comma}{{\"model\": {path}"),
        path.as_str().unwrap_or_default(),
    );
    if let Some(parameters) = model.get("parameters") {
        typed.line(
            format!(", \"parameters\": {parameters}"),
            weights_typed(args, parameters),
        );
    }
    typed.line("}", path.as_str().unwrap_or_default());
}

/// Returns the weights as they were typed, or a note that they are the default.
fn weights_typed(args: &JobArgs, parameters: &Value) -> String {
    match (&args.weights, &args.script.alphas) {
        (Some(weights), _) => format!("--weights {}", joined(weights, ",")),
        (None, Some(alphas)) => format!("--alphas {}", joined(alphas, " ")),
        (None, None) => format!("the default {parameters}"),
    }
}

/// Numbers as they are typed in one argument or several.
pub fn joined(numbers: &[f64], by: &str) -> String {
    numbers
        .iter()
        .map(f64::to_string)
        .collect::<Vec<_>>()
        .join(by)
}

/// Writes a mapping, one entry a line.
fn mapping(
    typed: &mut Typed,
    opening: &str,
    entries: &Map<String, Value>,
    say: fn(&str, &Value) -> String,
) {
    typed.line(
        format!("{opening}{{"),
        entries
            .iter()
            .map(|(key, value)| say(key, value))
            .collect::<Vec<_>>()
            .join(" "),
    );
    for (index, (key, value)) in entries.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        typed.line(
            format!("{comma}{}: {value}", Value::from(key.as_str())),
            say(key, value),
        );
    }
    typed.line("}", "the command line");
}

fn parameter_typed(name: &str, value: &Value) -> String {
    let value = value
        .as_f64()
        .map_or_else(|| plain(value), |number| number.to_string());
    match flag_of(name) {
        Some(flag) => format!("{flag} {value}"),
        None => format!("--parameter {name}={value}"),
    }
}

fn align_typed(key: &str, value: &Value) -> String {
    match (key, value) {
        ("method" | "files", _) => format!("--align {}", plain(value)),
        _ => format!("{} {}", flag_of(key).unwrap_or("--align"), plain(value)),
    }
}

fn as_typed(key: &str, value: &Value, args: &JobArgs) -> String {
    let value = match key {
        "merge_method" if args.method.is_none() => {
            return format!("--method {DEFAULT_METHOD} (the default)");
        }
        "base_model" => args.base.clone().unwrap_or_default(),
        _ => plain(value),
    };
    match flag_of(key) {
        Some(flag) => format!("{flag} {value}"),
        None => format!("--{} {value}", key.replace('_', "-")),
    }
}

/// A value without the quotes of JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
