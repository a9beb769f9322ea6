//! The key `align`.

use super::super::align::{Align, AlignFrom, COSTS, REFERENCES, RESIDUALS, WeightMatching};
use super::super::keys::Place;
use super::super::limits::SWEEPS;
use super::super::node::{Key, Node, Value};
use super::fields::{Field, Fields};
use super::models::narrow;
use crate::error::Result;

/// Reads `weights`, a file, a list of files, or all of it in a mapping.
pub(super) fn read(field: Field<'_>) -> Result<Align> {
    match &field.node.value {
        Value::Text(text) if text == "weights" => Ok(Align::weights()),
        Value::Text(_) | Value::List(_) => files(field).map(|from| Align {
            from,
            ..Align::weights()
        }),
        Value::Map(_) => mapping(field),
        _ => Err(field.error(format!(
            "must be weights, a file, a list of files or a mapping, found {}",
            field.found()
        ))),
    }
}

fn mapping(field: Field<'_>) -> Result<Align> {
    let fields = Fields::of(field.origin, field.node, Place::Align)?;
    let from = match (fields.get("method"), fields.get("files")) {
        (Some(method), None) => {
            method.choice(&[("weights", ())])?;
            AlignFrom::Weights(options(&fields)?)
        }
        (None, Some(given)) => {
            let known = [
                "cost",
                "residual",
                "signs",
                "seed",
                "max_sweeps",
                "reference",
            ];
            if let Some(odd) = known.iter().find_map(|key| fields.get(key)) {
                return Err(odd.error("goes with `method`: what `files` hold was found already"));
            }
            files(given)?
        }
        (Some(_), Some(given)) => return Err(given.error("cannot stand beside `method`")),
        (None, None) => return Err(field.error("needs one of `method`, `files`")),
    };
    let spec = fields
        .get("spec")
        .map(|field| field.text().map(str::to_owned))
        .transpose()?;
    let any_vocabulary = fields
        .get("any_vocabulary")
        .map(|field| field.switch())
        .transpose()?
        .unwrap_or(false);
    let together = fields
        .get("reference")
        .map(|field| field.choice(REFERENCES))
        .transpose()?
        .unwrap_or(false);
    Ok(Align {
        from,
        spec,
        any_vocabulary,
        together,
    })
}

fn options(fields: &Fields<'_>) -> Result<WeightMatching> {
    let mut options = WeightMatching::default();
    if let Some(field) = fields.get("cost") {
        options.cost = field.choice(COSTS)?;
    }
    if let Some(field) = fields.get("residual") {
        options.residual = field.choice(RESIDUALS)?;
    }
    if let Some(field) = fields.get("signs") {
        options.signs = field.switch()?;
    }
    if let Some(field) = fields.get("seed") {
        options.seed = field.whole(0, i64::MAX.unsigned_abs())?;
    }
    if let Some(field) = fields.get("max_sweeps") {
        options.sweeps = field
            .whole_in(SWEEPS)
            .and_then(|most| narrow(&field, most))?;
    }
    Ok(options)
}

/// Reads a file, a list of files, or a file for each of some models.
fn files(field: Field<'_>) -> Result<AlignFrom> {
    let path = |node: &Node| file_name(field, node);
    match &field.node.value {
        Value::Map(entries) if entries.is_empty() => Err(field.error("is an empty mapping")),
        Value::Map(entries) => {
            let entry = |(key, node): &(Key, Node)| Ok((key.text.clone(), path(node)?));
            entries
                .iter()
                .map(entry)
                .collect::<Result<_>>()
                .map(AlignFrom::FilesOf)
        }
        Value::List(items) if items.is_empty() => Err(field.error("is an empty list")),
        Value::List(items) => items
            .iter()
            .map(path)
            .collect::<Result<_>>()
            .map(AlignFrom::Files),
        _ => Ok(AlignFrom::Files(vec![path(field.node)?])),
    }
}

fn file_name(field: Field<'_>, node: &Node) -> Result<String> {
    let text = Field { node, ..field }.text()?;
    if text.trim().is_empty() {
        return Err(field.error("names a file by an empty text"));
    }
    Ok(text.to_owned())
}
