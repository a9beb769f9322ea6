//! Models, slices and modules.

use std::path::Path;

use super::super::document::{LayerRange, ModelEntry, Module, Slice, SliceSource, Sources};
use super::super::keys::Place;
use super::super::methods::MethodInfo;
use super::super::model_ref::{ModelRef, check_name};
use super::super::node::{Node, Value};
use super::super::origin::Origin;
use super::super::setting::Parameters;
use super::fields::{Field, Fields};
use super::parameters::{self, Level};
use crate::error::Result;

/// The model that `node` names, as text or as a mapping.
pub(super) fn model_ref(origin: Origin<'_>, node: &Node) -> Result<ModelRef> {
    match &node.value {
        Value::Text(text) => ModelRef::parse(text, Path::exists).map_err(|sentence| origin.error(node.at, sentence)),
        Value::Map(_) => long_model_ref(origin, node),
        _ => Err(origin.error(node.at, format!("a model must be named by text, found {}", node.kind()))),
    }
}

/// `{model: {path, revision}}` or `{model: path}`: a path is taken as it is.
fn long_model_ref(origin: Origin<'_>, node: &Node) -> Result<ModelRef> {
    let fields = Fields::of(origin, node, Place::Reference)?;
    for (key, cause) in [
        ("lora", "asks for a LoRA adapter, which thalweg cannot fold in yet"),
        ("override_architecture", "is not supported: thalweg takes tensor names from the files"),
    ] {
        if let Some(field) = fields.get(key) {
            return Err(field.error(cause));
        }
    }
    let model = fields.need("model")?;
    let (path, revision) = match &model.node.value {
        Value::Map(_) => {
            let inner = Fields::of(origin, model.node, Place::ReferencePath)?;
            (inner.need("path")?, inner.get("revision").map(|field| field.text()).transpose()?)
        }
        _ => (model, None),
    };
    let text = path.text()?;
    for name in [Some(text), revision].into_iter().flatten() {
        check_name(name).map_err(|sentence| origin.error(node.at, sentence))?;
    }
    Ok(ModelRef { path: text.to_owned(), revision: revision.map(str::to_owned) })
}

/// What a document merges: exactly one of `models`, `slices` and `modules`.
pub(super) fn sources(fields: &Fields<'_>, method: &MethodInfo) -> Result<(Sources, Option<Module>)> {
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
        return Err(modules.origin.error_with(modules.key_at, format!("`modules` {cause}"), help));
    };
    let inner = Fields::of(modules.origin, node, Place::Module)?;
    let parameters = parameters::read(&inner, method, Level::Merge)?;
    Ok((one_of(&inner, method)?, Some(Module { name: name.text.clone(), parameters })))
}

fn one_of(fields: &Fields<'_>, method: &MethodInfo) -> Result<Sources> {
    match (fields.get("models"), fields.get("slices")) {
        (Some(models), None) => each(models, |node| entry(models.origin, node, method)).map(Sources::Models),
        (None, Some(slices)) => each(slices, |node| slice(slices.origin, node, method)).map(Sources::Slices),
        (Some(_), Some(slices)) => Err(slices.error("cannot stand beside `models`")),
        (None, None) => Err(fields.error("nothing to merge: needs one of `models`, `slices`")),
    }
}

fn each<T>(field: Field<'_>, read: impl Fn(&Node) -> Result<T>) -> Result<Vec<T>> {
    match field.list()? {
        [] => Err(field.error("is an empty list")),
        items => items.iter().map(read).collect(),
    }
}

/// An entry of `models`: a mapping, or for short just the model's name.
fn entry(origin: Origin<'_>, node: &Node, method: &MethodInfo) -> Result<ModelEntry> {
    if let Value::Text(_) = &node.value {
        return Ok(ModelEntry { model: model_ref(origin, node)?, parameters: Parameters::new() });
    }
    let fields = Fields::of(origin, node, Place::Model)?;
    Ok(ModelEntry {
        model: model_ref(origin, fields.need("model")?.node)?,
        parameters: parameters::read(&fields, method, Level::Model)?,
    })
}

fn slice(origin: Origin<'_>, node: &Node, method: &MethodInfo) -> Result<Slice> {
    let fields = Fields::of(origin, node, Place::Slice)?;
    let listed = fields.need("sources")?;
    let sources = each(listed, |node| source(origin, node, method))?;
    let counts: Vec<u32> = sources.iter().filter_map(|source| source.layer_range).map(LayerRange::count).collect();
    if let Some(pair) = counts.windows(2).find(|pair| pair[0] != pair[1]) {
        return Err(listed.error(format!("must all take as many layers: one takes {}, another {}", pair[0], pair[1])));
    }
    if let Some(weight) = fields.get("residual_weight")
        && !matches!(weight.node.value, Value::Integer(_) | Value::Float(_))
    {
        return Err(weight.error(format!("must be a number, found {}", weight.node.kind())));
    }
    Ok(Slice {
        sources,
        base_model: fields.get("base_model").map(|field| model_ref(origin, field.node)).transpose()?,
        parameters: parameters::read(&fields, method, Level::Merge)?,
    })
}

fn source(origin: Origin<'_>, node: &Node, method: &MethodInfo) -> Result<SliceSource> {
    let fields = Fields::of(origin, node, Place::Source)?;
    Ok(SliceSource {
        model: model_ref(origin, fields.need("model")?.node)?,
        layer_range: fields.get("layer_range").map(layer_range).transpose()?,
        parameters: parameters::read(&fields, method, Level::Model)?,
    })
}

fn layer_range(field: Field<'_>) -> Result<LayerRange> {
    let [first, end] = field.list()? else {
        return Err(field.error("must be two layer numbers, the first one and the one after the last"));
    };
    let number = |node| Field { node, ..field }.whole(0, 1_000_000).and_then(|n| narrow(&field, n));
    let (start, end) = (number(first)?, number(end)?);
    if start >= end {
        return Err(field.error(format!("[{start}, {end}] holds no layer; the end itself is not taken")));
    }
    Ok(LayerRange { start, end })
}

pub(super) fn narrow<T: TryFrom<u64>>(field: &Field<'_>, number: u64) -> Result<T> {
    T::try_from(number).map_err(|_| field.error(format!("{number} is too large")))
}
