//! The model card of a plan.

use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::plan::Plan;
use crate::recipe::{Input, ModelRef, Parameters, Setting, Snapshot, expand_home};

use super::card::{Card, CardModel, license_of};
use super::{CARD, text_beside, yaml};

/// What the card of `plan` says.
///
/// # Errors
///
/// When the card of an input cannot be read.
pub fn of(plan: &Plan) -> Result<Card> {
    let document = &plan.job.document;
    let method = document.method.info();
    let inputs = (0..document.slice_count()).flat_map(|slice| document.inputs(slice));
    let model = |input: Input<'_>| {
        let said = [settings(&input), aligned(plan, input.model)];
        let said: Vec<String> = said.into_iter().filter(|words| !words.is_empty()).collect();
        let commit = snapshot_of(plan, input.model).map(|snapshot| snapshot.commit);
        CardModel {
            name: name_of(plan, input.model),
            commit,
            settings: said.join(", "),
        }
    };
    let value = |setting: &Setting| serde_json::to_value(setting).unwrap_or_default();
    let mut parameters: Vec<_> = document
        .parameters
        .iter()
        .map(|(name, setting)| (name.clone(), value(setting)))
        .collect();
    if plan.is_over_model() || document.own.granularity.is_some() {
        parameters.push(("granularity".into(), document.granularity().name().into()));
    }
    Ok(Card {
        method: method.name.to_owned(),
        meaning: method.meaning.to_owned(),
        models: inputs.map(model).collect(),
        base: document.base_model.as_ref().map(|base| name_of(plan, base)),
        parameters,
        license: common_license(plan)?,
        loader: library_of(plan)?,
        recipe: recipe_of(plan)?,
    })
}

/// The input that a model is.
fn input_of<'a>(plan: &'a Plan, model: &ModelRef) -> Option<&'a Path> {
    let position = plan
        .job
        .document
        .models()
        .iter()
        .position(|known| *known == model)?;
    plan.job
        .inputs
        .get(position)
        .map(std::path::PathBuf::as_path)
}

/// Where on the hub a model comes from, when the folder it was read from says so.
///
/// What a config calls `_name_or_path` is no proof: fine-tunes carry their base's.
fn snapshot_of(plan: &Plan, model: &ModelRef) -> Option<Snapshot> {
    let input = input_of(plan, model)?;
    let position = plan.job.inputs.iter().position(|path| path == input);
    // The folder of a repository in the hub's cache stands for one of its snapshots.
    let folder = || Snapshot::of(plan.inputs.get(position?)?.folder()?);
    Snapshot::of(input)
        .or_else(folder)
        .or_else(|| Snapshot::of(&input.canonicalize().ok()?))
}

/// The hub id of a model, or the name of its folder.
fn name_of(plan: &Plan, model: &ModelRef) -> String {
    if let Some(snapshot) = snapshot_of(plan, model) {
        return snapshot.id;
    }
    let found = input_of(plan, model);
    let local = expand_home(&model.path);
    if model.is_hub_id() && found != Some(&local) {
        return model.path.clone();
    }
    // `..` and `/` have no name of their own; the folder that they lead to has.
    let name = local
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let resolved = || {
        found?
            .canonicalize()
            .ok()?
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    name.or_else(resolved).unwrap_or_else(|| "model".to_owned())
}

/// The recipe as it was given, when it names no place of this machine; else as it was understood,
/// with the names that the card has.
fn recipe_of(plan: &Plan) -> Result<String> {
    let document = &plan.job.document;
    let mut value = super::document_value(document)?;
    let shown = |model: &ModelRef| match snapshot_of(plan, model) {
        Some(snapshot) if snapshot.id != model.path => {
            format!("{}@{}", snapshot.id, snapshot.commit)
        }
        _ => name_of(plan, model),
    };
    let names: Vec<_> = document
        .models()
        .into_iter()
        .map(|model| (model.path.clone(), shown(model)))
        .collect();
    let hidden = hide_places(&mut value, &names);
    match &plan.job.recipe_text {
        Some(text) if !hidden => Ok(text.clone()),
        _ => Ok(yaml::document(&value)),
    }
}

/// Replaces paths of models by their names, other absolute paths by their last part; whether there
/// was any.
fn hide_places(value: &mut Value, names: &[(String, String)]) -> bool {
    match value {
        Value::String(text) => {
            let known = names
                .iter()
                .find(|(path, _)| path == text)
                .map(|(_, name)| name.clone());
            let last = || {
                Some(
                    Path::new(&*text)
                        .file_name()?
                        .to_string_lossy()
                        .into_owned(),
                )
            };
            let is_place = text.starts_with(['/', '~']) && !text.contains('\n');
            match known.or_else(|| last().filter(|_| is_place)) {
                Some(name) if name != *text => {
                    *text = name;
                    true
                }
                _ => false,
            }
        }
        Value::Array(values) => values
            .iter_mut()
            .fold(false, |hidden, value| hide_places(value, names) | hidden),
        Value::Object(fields) => fields
            .values_mut()
            .fold(false, |hidden, value| hide_places(value, names) | hidden),
        _ => false,
    }
}

/// What loads a model like the donor, as the hub calls it.
fn library_of(plan: &Plan) -> Result<&'static str> {
    for (file, library) in [
        ("model_index.json", "diffusers"),
        ("modules.json", "sentence-transformers"),
    ] {
        if text_beside(plan, plan.job.donor, file)?.is_some() {
            return Ok(library);
        }
    }
    let config = plan.inputs[plan.job.donor].config()?.unwrap_or_default();
    Ok(if config.get("_diffusers_version").is_some() {
        "diffusers"
    } else {
        "transformers"
    })
}

fn settings(input: &Input<'_>) -> String {
    let layers = input
        .layers
        .map(|range| format!("layers {} to {}", range.start, range.end.saturating_sub(1)));
    let given = input.parameters.into_iter().flat_map(Parameters::iter);
    let given = given.map(|(name, setting)| {
        format!(
            "{name} {}",
            serde_json::to_value(setting).unwrap_or_default()
        )
    });
    layers
        .into_iter()
        .chain(given)
        .collect::<Vec<_>>()
        .join(", ")
}

/// How a model was aligned before it was merged; empty for one that was not.
fn aligned(plan: &Plan, model: &ModelRef) -> String {
    let input = plan
        .job
        .document
        .models()
        .iter()
        .position(|known| *known == model);
    let file = plan
        .job
        .alignment_files
        .iter()
        .find(|file| Some(file.input) == input);
    match file {
        Some(file) if file.moves => format!("aligned by {}", file.file),
        Some(file) => format!("aligned by {}: nothing moves", file.file),
        None => String::new(),
    }
}

/// The licence, when the card of every model states the same one.
fn common_license(plan: &Plan) -> Result<Option<String>> {
    let mut common = None;
    for input in 0..plan.inputs.len() {
        let license = text_beside(plan, input, CARD)?.and_then(|card| license_of(&card));
        match (license, &common) {
            (None, _) => return Ok(None),
            (Some(license), Some(known)) if license != *known => return Ok(None),
            (license, _) => common = license,
        }
    }
    Ok(common)
}
