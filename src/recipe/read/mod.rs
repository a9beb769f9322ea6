//! Reads documents from the YAML tree: every key known, every value checked, every error with its
//! line.

// Recipes are texts of others.
#![deny(clippy::indexing_slicing, clippy::string_slice)]

mod align;
mod check;
mod fields;
mod models;
mod parameters;
mod rename;

use super::choices::{RescaleBy, SignRule, TieRule};
use super::document::{CHAT_TEMPLATES, ChatTemplate, Document, Module, Sources, Tokenizer};
use super::foreign::PROGRAMS;
use super::keys::{Place, nearest};
use super::limits::{SEEDS, THREADS, ZSTD_LEVELS};
use super::methods::{METHODS, MethodInfo, MethodName};
use super::model_ref::ModelRef;
use super::node::{Node, Value};
use super::origin::Origin;
use super::own::{Granularity, Mismatch, Missing, NanPolicy, OwnKeys, Quantised};
use super::places::Places;
use super::setting::Parameters;
use crate::dtype::Dtype;
use crate::error::Result;
use fields::{Field, Fields};
use models::{model_ref, narrow};
use parameters::Level;

/// Reads the document in `node` and checks it whole; `None` when there was a fault, all of which
/// are kept in `origin`.
pub(super) fn document(origin: Origin<'_>, node: &Node, last: bool) -> Option<Document> {
    let before = origin.notes.fault_count();
    origin.keep(other_program(origin, node))?;
    let fields = origin.keep(Fields::of(origin, node, Place::Document))?;
    let method = origin.keep(fields.need("merge_method").and_then(method));
    let info = method.map(MethodName::info);
    let sources = origin.keep(models::sources(&fields, info));
    let parameters = origin.keep(parameters::read(&fields, info, Level::Merge));
    let optional = optional(origin, &fields, last);
    let (sources, module) = sources?;
    let mut document = optional.document(method?, sources, module, parameters?);
    document.places = Places::of(origin, node);
    let info = document.method.info();
    if let Some(field) = fields
        .get("weights")
        .filter(|_| origin.notes.fault_count() == before)
    {
        origin.keep(spread_weights(field, info, &mut document));
    }
    if origin.notes.fault_count() == before {
        origin.keep(rename::gather(&fields, &mut document));
    }
    // The recipe as a whole is checked only when its parts are right.
    if origin.notes.fault_count() == before {
        check::check(&fields, &document);
    }
    (origin.notes.fault_count() == before).then_some(document)
}

/// Reads the keys that a merge may do without; faults are kept in `origin`.
fn optional(origin: Origin<'_>, fields: &Fields<'_>, last: bool) -> Optional {
    let read_name = if last { free_name } else { stage_name };
    Optional {
        name: fields
            .get("name")
            .and_then(|field| origin.keep(read_name(field))),
        base_model: fields
            .get("base_model")
            .and_then(|field| origin.keep(model_ref(origin, field.node))),
        dtype: fields
            .get("dtype")
            .and_then(|field| origin.keep(dtype(field))),
        out_dtype: fields
            .get("out_dtype")
            .and_then(|field| origin.keep(dtype(field))),
        tokenizer: origin.keep(tokenizer(fields)).flatten(),
        chat_template: fields
            .get("chat_template")
            .and_then(|field| origin.keep(chat_template(field))),
        pad_to_multiple_of: origin.keep(padding(fields)).flatten(),
        own: own(fields),
    }
}

/// The optional parts of a document, besides its method and its models.
struct Optional {
    name: Option<String>,
    base_model: Option<ModelRef>,
    dtype: Option<Dtype>,
    out_dtype: Option<Dtype>,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    pad_to_multiple_of: Option<u64>,
    own: OwnKeys,
}

impl Optional {
    fn document(
        self,
        method: MethodName,
        sources: Sources,
        module: Option<Module>,
        parameters: Parameters,
    ) -> Document {
        let Self {
            name,
            base_model,
            dtype,
            out_dtype,
            tokenizer,
            chat_template,
            pad_to_multiple_of,
            own,
        } = self;
        Document {
            name,
            method,
            sources,
            module,
            base_model,
            parameters,
            dtype,
            out_dtype,
            tokenizer,
            chat_template,
            pad_to_multiple_of,
            own,
            places: Places::default(),
        }
    }
}

/// Refuses a recipe for another program of mergekit's, which does not merge tensors.
fn other_program(origin: Origin<'_>, node: &Node) -> Result<()> {
    let Value::Map(entries) = &node.value else {
        return Ok(());
    };
    let keys = || entries.iter().map(|(key, _)| key);
    let at = |wanted: &str| keys().find(|key| key.text == wanted).map(|key| key.at);
    if keys().any(|key| matches!(&*key.text, "models" | "slices" | "modules")) {
        return Ok(());
    }
    match PROGRAMS
        .iter()
        .find_map(|program| Some((program, at(program.key)?)))
    {
        Some((program, at)) => Err(origin.error_with(at, program.is, program.instead)),
        None => Ok(()),
    }
}

fn method(field: Field<'_>) -> Result<MethodName> {
    let name = field.text()?;
    if let Some(method) = MethodName::parse(name) {
        return Ok(method);
    }
    let known = || METHODS.iter().map(|info| info.name);
    let help = format!("methods are {}", known().collect::<Vec<_>>().join(", "));
    let cause = match nearest(name, known()) {
        Some(near) => format!("unknown merge method `{name}`, did you mean `{near}`?"),
        None => format!("unknown merge method `{name}`"),
    };
    Err(field.origin.error_with(field.node.at, cause, &help))
}

/// Reads a name that can be a folder beside others, or one in another as `org/name` is.
fn stage_name(field: Field<'_>) -> Result<String> {
    let name = field.text()?;
    match name.len() <= 200 && name.split('/').count() <= 2 && name.split('/').all(is_folder_name) {
        true => Ok(name.to_owned()),
        false => Err(field.error(format!(
            "must be a plain folder name or org/name, found {}",
            field.found()
        ))),
    }
}

fn is_folder_name(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && !part.contains(|c: char| c.is_control() || "\\:*?\"<>|@+~".contains(c))
}

/// Reads the name of the last merge, which names no folder: any text, as in mergekit.
fn free_name(field: Field<'_>) -> Result<String> {
    field.text().map(str::to_owned)
}

fn dtype(field: Field<'_>) -> Result<Dtype> {
    let name = field.text()?;
    Dtype::parse(name).ok_or_else(|| {
        let names: Vec<_> = Dtype::MERGEABLE
            .iter()
            .filter_map(|dtype| dtype.torch_name())
            .collect();
        field.error(format!(
            "must be one of {}, found {}",
            names.join(", "),
            field.found()
        ))
    })
}

/// Reads the tokenizer's donor, under either of its keys.
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
        return Err(
            tokens.error("is not supported yet: embeddings are merged row by row as they are")
        );
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
    let near = nearest(text, CHAT_TEMPLATES)
        .map(|near| format!(", did you mean `{near}`?"))
        .unwrap_or_default();
    let presets = CHAT_TEMPLATES.join(", ");
    Err(field.error(format!(
        "must be auto, one of {presets}, or a Jinja template, found {}{near}",
        field.found()
    )))
}

/// Reads `pad_to_multiple_of`, at the top or in `tokenizer`.
fn padding(fields: &Fields<'_>) -> Result<Option<u64>> {
    let read = |field: Field<'_>| field.whole(1, 1 << 20);
    let top = fields.get("pad_to_multiple_of").map(read).transpose()?;
    let Some(tokenizer) = fields.get("tokenizer") else {
        return Ok(top);
    };
    let Some(inner) =
        Fields::of(tokenizer.origin, tokenizer.node, Place::Tokenizer)?.get("pad_to_multiple_of")
    else {
        return Ok(top);
    };
    match (top, read(inner)?) {
        (Some(outer), value) if outer != value => {
            Err(inner.error(format!("is {value} in `tokenizer` and {outer} at the top")))
        }
        (_, value) => Ok(Some(value)),
    }
}

fn own(fields: &Fields<'_>) -> OwnKeys {
    OwnKeys {
        granularity: fields.read("granularity", |field| field.choice(Granularity::CHOICES)),
        mismatch: fields.read("mismatch", |field| field.choice(Mismatch::CHOICES)),
        missing: fields.read("missing", |field| field.choice(Missing::CHOICES)),
        nan: fields.read("nan", |field| field.choice(NanPolicy::CHOICES)),
        out_shard_size: fields.read("out_shard_size", |field| field.bytes()),
        memory: fields.read("memory", |field| field.bytes()),
        threads: fields.read("threads", |field| {
            field.whole_in(THREADS).and_then(|n| narrow(&field, n))
        }),
        zstd: fields.read("zstd", |field| {
            field.whole_in(ZSTD_LEVELS).and_then(|n| narrow(&field, n))
        }),
        quantised: fields.read("quantised", |field| field.choice(Quantised::CHOICES)),
        state_dict_key: fields.read("state_dict_key", |field| field.text().map(str::to_owned)),
        device: fields.read("device", |field| field.device()),
        any_vocabulary: fields.read("any_vocabulary", |field| field.switch()),
        any_config: fields.read("any_config", |field| field.switch()),
        align: fields.read("align", align::read),
        rename: Vec::new(),
        ..choices(fields)
    }
}

/// Reads the choices for methods that select elements.
fn choices(fields: &Fields<'_>) -> OwnKeys {
    OwnKeys {
        seed: fields.read("seed", |field| field.whole_in(SEEDS)),
        ties: fields.read("ties", |field| field.choice(TieRule::CHOICES)),
        sign_tie: fields.read("sign_tie", |field| field.choice(SignRule::CHOICES)),
        rescale_by: fields.read("rescale_by", |field| field.choice(RescaleBy::CHOICES)),
        ..OwnKeys::default()
    }
}

/// Sets each model's parameter `weight` to its number in `weights`.
fn spread_weights(field: Field<'_>, info: &MethodInfo, document: &mut Document) -> Result<()> {
    let Sources::Models(models) = &mut document.sources else {
        return Err(field.error("goes with `models`; in slices, give each source its weight"));
    };
    let weights = parameters::read_weights(field, info, models.len())?;
    for (entry, weight) in models.iter_mut().zip(weights) {
        if entry
            .parameters
            .insert("weight".to_owned(), weight)
            .is_some()
        {
            return Err(field.error(format!(
                "and a `weight` of its own are given for {}",
                entry.model
            )));
        }
    }
    Ok(())
}
