//! The model card of a plan.

use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::plan::Plan;
use crate::recipe::{Input, ModelRef, Parameters, Setting, Snapshot, expand_home};

use super::card::{Card, CardModel, license_of};
use super::{CARD, text_beside, yaml};

/// Makes the card of `plan`.
///
/// # Errors
///
/// When the card of an input cannot be read.
pub fn of(plan: &Plan) -> Result<Card> {
    let document = &plan.job.document;
    let method = document.method.info();
    let inputs = (0..document.slice_count()).flat_map(|slice| document.inputs(slice));

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
        models: inputs.map(|input| card_model(plan, &input)).collect(),
        base: document.base_model.as_ref().map(|base| name_of(plan, base)),
        parameters,
        license: common_license(plan)?,
        loader: library_of(plan)?,
        recipe: recipe_of(plan)?,
    })
}

fn card_model(plan: &Plan, input: &Input<'_>) -> CardModel {
    let said = [settings(input), aligned(plan, input.model)];
    let said: Vec<String> = said.into_iter().filter(|words| !words.is_empty()).collect();
    let commit = snapshot_of(plan, input.model).map(|snapshot| snapshot.commit);
    CardModel {
        name: name_of(plan, input.model),
        commit,
        settings: said.join(", "),
    }
}

/// Returns the input path of a model.
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

/// Finds the hub snapshot of a model, if its folder names one.
///
/// A config's `_name_or_path` proves nothing: fine-tunes carry their base's.
fn snapshot_of(plan: &Plan, model: &ModelRef) -> Option<Snapshot> {
    let input = input_of(plan, model)?;
    let position = plan.job.inputs.iter().position(|path| path == input);
    // A repository's folder in the hub's cache resolves to one of its snapshots.
    let folder = || Snapshot::of(plan.inputs.get(position?)?.folder()?);
    Snapshot::of(input)
        .or_else(folder)
        .or_else(|| Snapshot::of(&input.canonicalize().ok()?))
}

/// Returns the hub id of a model, or the name of its folder.
fn name_of(plan: &Plan, model: &ModelRef) -> String {
    if let Some(snapshot) = snapshot_of(plan, model) {
        return snapshot.id;
    }
    let found = input_of(plan, model);
    let local = expand_home(&model.path);
    if model.is_hub_id() && found != Some(&local) {
        return model.path.clone();
    }
    // `..` and `/` have no name; the folder that they resolve to has one.
    last_part(&local)
        .or_else(|| last_part(&found?.canonicalize().ok()?))
        .unwrap_or_else(|| "model".to_owned())
}

/// Returns the last name in a path.
fn last_part(path: &Path) -> Option<String> {
    let name = path.file_name()?;
    Some(name.to_string_lossy().into_owned())
}

/// Returns the recipe as given if it has no paths of this machine; otherwise the parsed recipe with
/// the card's names.
fn recipe_of(plan: &Plan) -> Result<String> {
    let document = &plan.job.document;
    let mut value = super::document_value(document)?;

    let names: Vec<_> = document
        .models()
        .into_iter()
        .map(|model| (model.path.clone(), pinned_name_of(plan, model)))
        .collect();
    let hidden = hide_places(&mut value, &names);
    match &plan.job.recipe_text {
        Some(text) if !hidden => Ok(text.clone()),
        _ => Ok(yaml::document(&value)),
    }
}

/// Returns the name of a model in the card's recipe: a path into the hub's cache becomes id and
/// commit.
fn pinned_name_of(plan: &Plan, model: &ModelRef) -> String {
    match snapshot_of(plan, model) {
        Some(snapshot) if snapshot.id != model.path => {
            format!("{}@{}", snapshot.id, snapshot.commit)
        }
        _ => name_of(plan, model),
    }
}

/// Replaces model paths by their names, and other absolute paths by their last part; returns true
/// if there were any.
fn hide_places(value: &mut Value, names: &[(String, String)]) -> bool {
    match value {
        Value::String(text) => {
            let known = names
                .iter()
                .find(|(path, _)| path == text)
                .map(|(_, name)| name.clone());
            let is_place = text.starts_with(['/', '~']) && !text.contains('\n');
            let last = || last_part(Path::new(text)).filter(|_| is_place);
            match known.or_else(last) {
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

/// Returns the hub's name of the library that loads a model like the donor.
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

/// Describes how a model was aligned before the merge; empty if it was not.
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

/// Returns the licence if the cards of all models state the same one.
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
