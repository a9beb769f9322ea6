//! `thalweg reference`: the tables that recipes are checked against, printed.

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::error::Result;
use crate::recipe::{
    BaseRule, Domain, KEYS, KeyInfo, METHODS, MethodInfo, ParameterInfo, Place, Scope,
};

use super::args::ReferenceArgs;
use super::{print, trimmed};

/// Prints the methods with their parameters, and the keys of a recipe.
///
/// # Errors
///
/// Fails if standard output cannot be written to.
pub fn run(args: &ReferenceArgs) -> Result<()> {
    if args.json {
        let methods: Vec<Value> = METHODS.iter().map(method_json).collect();
        let keys: Vec<Value> = KEYS.iter().map(key_json).collect();
        return print(&format!(
            "{:#}",
            json!({ "methods": methods, "keys": keys })
        ));
    }
    let mut text = String::from("METHODS\n");
    for method in &METHODS {
        text.push_str(&format!(
            "\n{}: {}\n  {}; {}\n",
            method.name,
            method.meaning,
            models(method),
            base(method.base)
        ));
        let mut table = plain_table();
        for parameter in method.parameters {
            table.add_row([
                format!("  {}", parameter.name),
                domain(parameter.domain).to_owned(),
                default(parameter),
                format!("{}{}", parameter.meaning, scope(parameter.scope)),
            ]);
        }
        text.push_str(&format!("{}\n", trimmed(&table)));
    }
    text.push_str("\nKEYS OF A RECIPE (* mergekit does not have it)\n");
    let mut place = None;
    let mut table = plain_table();
    for key in KEYS {
        if place.replace(key.place) != Some(key.place) {
            table.add_row([place_name(key.place)]);
        }
        let mark = if key.mergekit { "" } else { "*" };
        let default = if key.default.is_empty() {
            "needed"
        } else {
            key.default
        };
        table.add_row([
            format!("  {}{mark}", key.key).as_str(),
            key.value,
            default,
            key.meaning,
        ]);
    }
    text.push_str(&trimmed(&table));
    print(&text)
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn models(method: &MethodInfo) -> String {
    match (method.fewest, method.most) {
        (fewest, most) if fewest == most => format!("{fewest} models"),
        (fewest, usize::MAX) => format!("{fewest} models or more"),
        (fewest, most) => format!("{fewest} to {most} models"),
    }
}

fn base(rule: BaseRule) -> &'static str {
    match rule {
        BaseRule::Counted => "base_model is one more model",
        BaseRule::Required => "base_model is needed, the others are measured from it",
        BaseRule::RequiredCounted => "base_model is needed and one of the models",
        BaseRule::Optional => "the others are measured from base_model if there is one",
    }
}

fn domain(domain: Domain) -> &'static str {
    match domain {
        Domain::Real => "number",
        Domain::NonNegative => "number >= 0",
        Domain::Positive => "number > 0",
        Domain::Fraction => "0 to 1",
        Domain::Count => "whole number",
        Domain::Switch => "true, false",
    }
}

fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::PerModel => " (for each model)",
        Scope::Whole => "",
    }
}

fn default(parameter: &ParameterInfo) -> String {
    match parameter.default {
        None => "needed".to_owned(),
        Some(value) if parameter.domain == Domain::Switch => (value != 0.0).to_string(),
        Some(value) if value != 0.0 && value.abs() < 1e-3 => format!("{value:e}"),
        Some(value) => value.to_string(),
    }
}

fn place_name(place: Place) -> &'static str {
    match place {
        Place::Document => "at the top",
        Place::Model => "in an entry of models",
        Place::Slice => "in an entry of slices",
        Place::Source => "in an entry of sources",
        Place::Module => "in a module of modules",
        Place::Reference => "in a model written as a mapping",
        Place::ReferencePath => "in its model",
        Place::Tokenizer => "in tokenizer",
        Place::Condition => "in a condition of a parameter",
        Place::Rename => "in a rule of rename",
        Place::Align => "in align",
    }
}

fn method_json(method: &MethodInfo) -> Value {
    let parameters = method.parameters.iter().map(|parameter| {
        json!({
            "name": parameter.name, "value": domain(parameter.domain), "default": parameter.default,
            "per_model": parameter.scope == Scope::PerModel, "meaning": parameter.meaning,
        })
    });
    json!({
        "name": method.name, "meaning": method.meaning, "fewest_models": method.fewest,
        "most_models": (method.most != usize::MAX).then_some(method.most), "base": base(method.base),
        "parameters": parameters.collect::<Vec<_>>(),
    })
}

fn key_json(key: &KeyInfo) -> Value {
    json!({
        "place": place_name(key.place), "key": key.key, "value": key.value, "default": key.default,
        "meaning": key.meaning, "mergekit": key.mergekit,
    })
}
