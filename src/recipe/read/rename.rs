//! The key `rename`, at the top and of single models.

use super::super::document::Document;
use super::super::keys::Place;
use super::super::model_ref::ModelRef;
use super::super::node::Value;
use super::super::rename::Rename;
use super::fields::{Field, Fields};
use super::models::model_ref;
use crate::error::Result;

/// Reads the rules of `field`, for `model` or for all: `{from, to}`, a list of such, or a mapping
/// of expressions to templates.
pub(super) fn read(field: Field<'_>, model: Option<&ModelRef>) -> Result<Vec<Rename>> {
    match &field.node.value {
        Value::List(items) if items.is_empty() => Err(field.error("is an empty list")),
        Value::List(items) => items
            .iter()
            .map(|node| rule(Field { node, ..field }, model))
            .collect(),
        Value::Map(entries) if entries.is_empty() => Err(field.error("is an empty mapping")),
        Value::Map(entries) if entries.iter().any(|(key, _)| key.text == "from") => {
            Ok(vec![rule(field, model)?])
        }
        Value::Map(entries) => entries
            .iter()
            .map(|(key, node)| {
                let to = Field { node, ..field }.text()?;
                made(field, Rename::new(model.cloned(), &key.text, to))
            })
            .collect(),
        _ => Err(field.error(format!(
            "must be a list of {{from, to}} or a mapping, found {}",
            field.found()
        ))),
    }
}

fn rule(field: Field<'_>, model: Option<&ModelRef>) -> Result<Rename> {
    let fields = Fields::of(field.origin, field.node, Place::Rename)?;
    let (from, to) = (fields.need("from")?, fields.need("to")?);
    let named = fields
        .get("model")
        .map(|field| model_ref(field.origin, field.node))
        .transpose()?;
    if let (Some(field), Some(model)) = (fields.get("model"), model) {
        return Err(field.error(format!(
            "stands at the top only: this rule is {model}'s already"
        )));
    }
    made(
        from,
        Rename::new(named.or(model.cloned()), from.text()?, to.text()?),
    )
}

fn made(field: Field<'_>, rule: std::result::Result<Rename, String>) -> Result<Rename> {
    rule.map_err(|sentence| field.error(format!("cannot be used: {sentence}")))
}

/// Gathers the rules that entries of `models` and `sources` have of their own, then those at the
/// top.
///
/// # Errors
///
/// Rules that cannot be used, and those for a model that `document` does not name.
pub(super) fn gather(fields: &Fields<'_>, document: &mut Document) -> Result<()> {
    let mut rules: Vec<Rename> = Vec::new();
    for entry in entries(fields)? {
        let Some(field) = entry.get("rename") else {
            continue;
        };
        let model = model_ref(field.origin, entry.need("model")?.node)?;
        for rule in read(field, Some(&model))? {
            // A model in several slices may repeat its rule in each of them.
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    if let Some(field) = fields.get("rename") {
        let general = read(field, None)?;
        let models = document.models();
        if let Some(model) = general
            .iter()
            .find_map(|rule| rule.model.as_ref().filter(|model| !models.contains(model)))
        {
            return Err(field.error(format!(
                "has a rule for `{model}`, which is not among the models"
            )));
        }
        rules.extend(general);
    }
    // Stable, so that rules of one scope stay in their order.
    rules.sort_by_key(|rule| rule.model.is_none());
    document.own.rename = rules;
    Ok(())
}

/// Returns the entries of `models`, or the sources of all slices, that are mappings.
fn entries<'a>(fields: &Fields<'a>) -> Result<Vec<Fields<'a>>> {
    let modules = fields.get("modules");
    let within = match modules.map(|field| (field.origin, &field.node.value)) {
        Some((origin, Value::Map(modules))) => match modules.as_slice() {
            [(_, module)] => Fields::of(origin, module, Place::Module)?,
            _ => *fields,
        },
        _ => *fields,
    };
    let mut found = mappings(within.get("models"), Place::Model)?;
    for slice in mappings(within.get("slices"), Place::Slice)? {
        found.extend(mappings(slice.get("sources"), Place::Source)?);
    }
    Ok(found)
}

fn mappings<'a>(list: Option<Field<'a>>, place: Place) -> Result<Vec<Fields<'a>>> {
    let Some(field) = list else {
        return Ok(Vec::new());
    };
    let maps = field
        .list()?
        .iter()
        .filter(|node| matches!(node.value, Value::Map(_)));
    maps.map(|node| Fields::of(field.origin, node, place))
        .collect()
}
