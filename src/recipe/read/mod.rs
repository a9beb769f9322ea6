//! From the YAML tree to documents: every key known, every value checked, every error with its line.

mod align;
mod check;
mod fields;
mod models;
mod parameters;
mod rename;

use super::document::{CHAT_TEMPLATES, ChatTemplate, Document, Sources, Tokenizer};
use super::keys::{Place, nearest};
use super::limits::{THREADS, ZSTD_LEVELS};
use super::methods::{METHODS, MethodName, missing_ability};
use super::node::{Node, Value};
use super::origin::Origin;
use super::own::{Granularity, Mismatch, Missing, NanPolicy, OwnKeys, Quantised};
use crate::dtype::Dtype;
use crate::error::Result;
use fields::{Field, Fields};
use models::{model_ref, narrow};
use parameters::Level;

/// The document that `node` holds, checked whole.
pub(super) fn document(origin: Origin<'_>, node: &Node) -> Result<Document> {
    let fields = Fields::of(origin, node, Place::Document)?;
    let method = method(fields.need("merge_method")?)?;
    let info = method.info();
    let (sources, module) = models::sources(&fields, info)?;
    let mut document = Document {
        name: fields.get("name").map(stage_name).transpose()?,
        method,
        sources,
        module,
        base_model: fields.get("base_model").map(|field| model_ref(origin, field.node)).transpose()?,
        parameters: parameters::read(&fields, info, Level::Merge)?,
        dtype: fields.get("dtype").map(dtype).transpose()?,
        out_dtype: fields.get("out_dtype").map(dtype).transpose()?,
        tokenizer: tokenizer(&fields)?,
        chat_template: fields.get("chat_template").map(chat_template).transpose()?,
        pad_to_multiple_of: padding(&fields)?,
        own: own(&fields)?,
    };
    if let Some(field) = fields.get("weights") {
        spread_weights(field, &mut document)?;
    }
    rename::gather(&fields, &mut document)?;
    check::check(&fields, &document)?;
    Ok(document)
}

fn method(field: Field<'_>) -> Result<MethodName> {
    let name = field.text()?;
    if let Some(method) = MethodName::parse(name) {
        return Ok(method);
    }
    let known = || METHODS.iter().map(|info| info.name);
    let help = format!("methods are {}", known().collect::<Vec<_>>().join(", "));
    let cause = match (missing_ability(name), nearest(name, known())) {
        (Some(ability), _) => format!("`{name}` needs {ability}, which thalweg does not do yet"),
        (None, Some(near)) => format!("unknown merge method `{name}`, did you mean `{near}`?"),
        (None, None) => format!("unknown merge method `{name}`"),
    };
    Err(field.origin.error_with(field.node.at, cause, &help))
}

/// A name that can be a folder beside others.
fn stage_name(field: Field<'_>) -> Result<String> {
    let name = field.text()?;
    let plain = !name.is_empty()
        && !name.starts_with('.')
        && name.len() <= 200
        && !name.contains(|c: char| c.is_control() || "/\\:*?\"<>|@+~".contains(c));
    match plain {
        true => Ok(name.to_owned()),
        false => Err(field.error(format!("must be a plain folder name, found {}", field.found()))),
    }
}

fn dtype(field: Field<'_>) -> Result<Dtype> {
    let name = field.text()?;
    Dtype::parse(name).ok_or_else(|| {
        let names: Vec<_> = Dtype::MERGEABLE.iter().filter_map(|dtype| dtype.torch_name()).collect();
        field.error(format!("must be one of {}, found {}", names.join(", "), field.found()))
    })
}

/// The tokenizer's donor, under either of its keys.
fn tokenizer(fields: &Fields<'_>) -> Result<Option<Tokenizer>> {
    let (short, long) = (fields.get("tokenizer_source"), fields.get("tokenizer"));
    let Some(long) = long else {
        return short.map(donor).transpose();
    };
    if let Some(short) = short {
        return Err(short.error("cannot stand beside `tokenizer`"));
    }
    let inner = Fields::of(long.origin, long.node, Place::Tokenizer)?;
    if let Some(tokens) = inner.get("tokens") {
        return Err(tokens.error("is not supported yet: embeddings are merged row by row as they are"));
    }
    match inner.get("source") {
        Some(source) => donor(source).map(Some),
        None => Err(long.error(
            "without a `source` means `union` to mergekit, which thalweg does not do yet; name base or a model",
        )),
    }
}

fn donor(field: Field<'_>) -> Result<Tokenizer> {
    match &field.node.value {
        Value::Text(text) if text == "base" => Ok(Tokenizer::Base),
        Value::Text(text) if text == "union" => Err(field
            .error("`union` needs embeddings aligned by token, which thalweg does not do yet; name base or a model")),
        _ => model_ref(field.origin, field.node).map(Tokenizer::Model),
    }
}

fn chat_template(field: Field<'_>) -> Result<ChatTemplate> {
    let text = field.text()?;
    if text == "auto" {
        return Ok(ChatTemplate::Auto);
    }
    if let Some(name) = CHAT_TEMPLATES.into_iter().find(|name| *name == text) {
        return Ok(ChatTemplate::Preset(name));
    }
    if text.contains("{{") || text.contains("{%") {
        return Ok(ChatTemplate::Jinja(text.to_owned()));
    }
    let near = nearest(text, CHAT_TEMPLATES).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
    let presets = CHAT_TEMPLATES.join(", ");
    Err(field.error(format!("must be auto, one of {presets}, or a Jinja template, found {}{near}", field.found())))
}

/// `pad_to_multiple_of`, at the top or in `tokenizer`.
fn padding(fields: &Fields<'_>) -> Result<Option<u64>> {
    let read = |field: Field<'_>| field.whole(1, 1 << 20);
    let top = fields.get("pad_to_multiple_of").map(read).transpose()?;
    let Some(tokenizer) = fields.get("tokenizer") else {
        return Ok(top);
    };
    let Some(inner) = Fields::of(tokenizer.origin, tokenizer.node, Place::Tokenizer)?.get("pad_to_multiple_of") else {
        return Ok(top);
    };
    match (top, read(inner)?) {
        (Some(outer), value) if outer != value => {
            Err(inner.error(format!("is {value} in `tokenizer` and {outer} at the top")))
        }
        (_, value) => Ok(Some(value)),
    }
}

fn own(fields: &Fields<'_>) -> Result<OwnKeys> {
    let get = |key| fields.get(key);
    let threads = get("threads").map(|field| field.whole_in(THREADS).and_then(|n| narrow(&field, n))).transpose()?;
    let zstd = get("zstd").map(|field| field.whole_in(ZSTD_LEVELS).and_then(|n| narrow(&field, n))).transpose()?;
    Ok(OwnKeys {
        granularity: get("granularity").map(|field| field.choice(Granularity::CHOICES)).transpose()?,
        mismatch: get("mismatch").map(|field| field.choice(Mismatch::CHOICES)).transpose()?,
        missing: get("missing").map(|field| field.choice(Missing::CHOICES)).transpose()?,
        nan: get("nan").map(|field| field.choice(NanPolicy::CHOICES)).transpose()?,
        out_shard_size: get("out_shard_size").map(|field| field.bytes()).transpose()?,
        memory: get("memory").map(|field| field.bytes()).transpose()?,
        threads,
        zstd,
        quantised: get("quantised").map(|field| field.choice(Quantised::CHOICES)).transpose()?,
        state_dict_key: get("state_dict_key").map(|field| field.text().map(str::to_owned)).transpose()?,
        device: get("device").map(|field| field.device()).transpose()?,
        align: get("align").map(align::read).transpose()?,
        rename: Vec::new(),
    })
}

/// Gives each model its number of `weights` as its parameter `weight`.
fn spread_weights(field: Field<'_>, document: &mut Document) -> Result<()> {
    let Sources::Models(models) = &mut document.sources else {
        return Err(field.error("goes with `models`; in slices, give each source its weight"));
    };
    let weights = parameters::read_weights(field, document.method.info(), models.len())?;
    for (entry, weight) in models.iter_mut().zip(weights) {
        if entry.parameters.insert("weight".to_owned(), weight).is_some() {
            return Err(field.error(format!("and a `weight` of its own are given for {}", entry.model)));
        }
    }
    Ok(())
}
