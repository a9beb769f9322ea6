//! Models, slices and modules.

use std::path::Path;

use super::super::document::{LayerRange, ModelEntry, Module, Slice, SliceSource, Sources};
use super::super::keys::Place;
use super::super::methods::MethodInfo;
use super::super::model_ref::{ModelRef, check_name, expand_home};
use super::super::node::{Node, Value};
use super::super::origin::Origin;
use super::super::setting::Parameters;
use super::fields::{Field, Fields};
use super::parameters::{self, Level};
use crate::error::Result;

/// Reads the model that `node` names, as text or as a mapping.
pub(super) fn model_ref(origin: Origin<'_>, node: &Node) -> Result<ModelRef> {
    match &node.value {
        Value::Text(text) => {
            ModelRef::parse(text, Path::exists).map_err(|sentence| origin.error(node.at, sentence))
        }
        Value::Map(_) => long_model_ref(origin, node),
        _ => Err(origin.error(
            node.at,
            format!("a model must be named by text, found {}", node.kind()),
        )),
    }
}

/// Reads `{model: {path, revision}}` or `{model: path}`, as mergekit writes references out, or
/// `{path, revision}` alone.
fn long_model_ref(origin: Origin<'_>, node: &Node) -> Result<ModelRef> {
    let is_path = matches!(&node.value, Value::Map(entries) if entries.iter().any(|(key, _)| key.text == "path"));
    if is_path {
        return path_and_revision(origin, node);
    }
    let fields = Fields::of(origin, node, Place::Reference)?;
    for (key, cause) in [
        (
            "lora",
            "asks for a LoRA adapter, which thalweg cannot fold in yet",
        ),
        (
            "override_architecture",
            "is not supported: thalweg takes tensor names from the files",
        ),
    ] {
        if let Some(field) = fields.get(key) {
            return Err(field.error(cause));
        }
    }
    let model = fields.need("model")?;
    if let Value::Map(_) = &model.node.value {
        return path_and_revision(origin, model.node);
    }
    let text = checked(origin, node, model.text()?)?;
    // mergekit takes a revision off here too; a path on this machine has none.
    let parts = text.split_once('@').filter(|_| !expand_home(text).exists());
    match parts.map(|(path, revision)| {
        (
            ModelRef {
                path: path.to_owned(),
                revision: None,
            },
            revision,
        )
    }) {
        Some((named, revision)) if named.is_hub_id() && !revision.is_empty() => Ok(ModelRef {
            revision: Some(revision.to_owned()),
            ..named
        }),
        _ => Ok(ModelRef {
            path: text.to_owned(),
            revision: None,
        }),
    }
}

/// Reads `{path, revision}`: the path is taken as it is.
fn path_and_revision(origin: Origin<'_>, node: &Node) -> Result<ModelRef> {
    let fields = Fields::of(origin, node, Place::ReferencePath)?;
    let path = checked(origin, node, fields.need("path")?.text()?)?;
    let revision = fields
        .get("revision")
        .map(|field| field.text())
        .transpose()?;
    let revision = revision
        .map(|text| checked(origin, node, text))
        .transpose()?;
    Ok(ModelRef {
        path: path.to_owned(),
        revision: revision.map(str::to_owned),
    })
}

fn checked<'a>(origin: Origin<'_>, node: &Node, name: &'a str) -> Result<&'a str> {
    check_name(name)
        .map(|()| name)
        .map_err(|sentence| origin.error(node.at, sentence))
}

/// Reads the sources of a document: exactly one of `models`, `slices` and `modules`.
pub(super) fn sources(
    fields: &Fields<'_>,
    method: Option<&MethodInfo>,
) -> Result<(Sources, Option<Module>)> {
    let Some(modules) = fields.get("modules") else {
        return one_of(fields, method).map(|sources| (sources, None));
    };
    for key in ["models", "slices"] {
        if let Some(field) = fields.get(key) {
            return Err(field.error("cannot stand beside `modules`"));
        }
    }
    let Value::Map(entries) = &modules.node.value else {
        return Err(modules.error(format!("must be a mapping, found {}", modules.node.kind())));
    };
    let [(name, node)] = entries.as_slice() else {
        let cause = format!("names {} modules, thalweg takes one", entries.len());
        let help = "tensors are matched by name whatever the architecture: list whole models under `models` instead";
        return Err(modules
            .origin
            .error_with(modules.key_at, format!("`modules` {cause}"), help));
    };
    let inner = Fields::of(modules.origin, node, Place::Module)?;
    let parameters = modules
        .origin
        .keep(parameters::read(&inner, method, Level::Merge))
        .unwrap_or_default();
    Ok((
        one_of(&inner, method)?,
        Some(Module {
            name: name.text.clone(),
            parameters,
        }),
    ))
}

fn one_of(fields: &Fields<'_>, method: Option<&MethodInfo>) -> Result<Sources> {
    match (fields.get("models"), fields.get("slices")) {
        (Some(models), None) => {
            each(models, |node| entry(models.origin, node, method)).map(Sources::Models)
        }
        (None, Some(slices)) => {
            each(slices, |node| slice(slices.origin, node, method)).map(Sources::Slices)
        }
        (Some(_), Some(slices)) => Err(slices.error("cannot stand beside `models`")),
        (None, None) => Err(fields.error("nothing to merge: needs one of `models`, `slices`")),
    }
}

fn each<T>(field: Field<'_>, read: impl Fn(&Node) -> Result<T>) -> Result<Vec<T>> {
    match field.list()? {
        [] => Err(field.error("is an empty list")),
        // All wrong ones are named; a document with a fault is not used.
        items => Ok(items
            .iter()
            .filter_map(|item| field.origin.keep(read(item)))
            .collect()),
    }
}

/// Reads an entry of `models`: a mapping, or for short just the model's name.
fn entry(origin: Origin<'_>, node: &Node, method: Option<&MethodInfo>) -> Result<ModelEntry> {
    if let Value::Text(_) = &node.value {
        return Ok(ModelEntry {
            model: model_ref(origin, node)?,
            parameters: Parameters::new(),
        });
    }
    let fields = Fields::of(origin, node, Place::Model)?;
    let model = fields
        .need("model")
        .and_then(|field| model_ref(origin, field.node));
    let parameters = origin
        .keep(parameters::read(&fields, method, Level::Model))
        .unwrap_or_default();
    Ok(ModelEntry {
        model: model?,
        parameters,
    })
}

fn slice(origin: Origin<'_>, node: &Node, method: Option<&MethodInfo>) -> Result<Slice> {
    let fields = Fields::of(origin, node, Place::Slice)?;
    let listed = fields.need("sources")?;
    let sources = each(listed, |node| source(origin, node, method))?;
    let counts: Vec<u32> = sources
        .iter()
        .filter_map(|source| source.layer_range)
        .map(LayerRange::count)
        .collect();
    let mut pairs = counts.iter().zip(counts.iter().skip(1));
    if let Some((one, other)) = pairs.find(|(one, other)| one != other) {
        return Err(listed.error(format!(
            "must all take as many layers: one takes {one}, another {other}"
        )));
    }
    if let Some(weight) = fields.get("residual_weight") {
        let sentence =
            "`residual_weight` in an entry of `slices` has no effect here, as in mergekit";
        origin.warn(weight.key_at, sentence);
    }
    let base_model = fields
        .get("base_model")
        .map(|field| model_ref(origin, field.node))
        .transpose();
    let parameters = origin
        .keep(parameters::read(&fields, method, Level::Merge))
        .unwrap_or_default();
    Ok(Slice {
        sources,
        base_model: base_model?,
        parameters,
    })
}

fn source(origin: Origin<'_>, node: &Node, method: Option<&MethodInfo>) -> Result<SliceSource> {
    let fields = Fields::of(origin, node, Place::Source)?;
    let model = fields
        .need("model")
        .and_then(|field| model_ref(origin, field.node));
    let layer_range = origin
        .keep(fields.get("layer_range").map(layer_range).transpose())
        .flatten();
    let parameters = origin
        .keep(parameters::read(&fields, method, Level::Model))
        .unwrap_or_default();
    Ok(SliceSource {
        model: model?,
        layer_range,
        parameters,
    })
}

fn layer_range(field: Field<'_>) -> Result<LayerRange> {
    let [first, end] = field.list()? else {
        return Err(
            field.error("must be two layer numbers, the first one and the one after the last")
        );
    };
    let number = |node| Field { node, ..field }.whole(0, 1_000_000);
    let (start, end) = (number(first)?, number(end)?);
    let (start, end) = (narrow(&field, start)?, narrow(&field, end)?);
    if start >= end {
        return Err(field.error(format!(
            "[{start}, {end}] holds no layer; the end itself is not taken"
        )));
    }
    Ok(LayerRange { start, end })
}

pub(super) fn narrow<T: TryFrom<u64>>(field: &Field<'_>, number: u64) -> Result<T> {
    T::try_from(number).map_err(|_| field.error(format!("{number} is too large")))
}
