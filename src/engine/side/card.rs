//! The model card of a plan.

use crate::error::Result;
use crate::output::card::{Card, CardModel, license_of};
use crate::plan::Plan;
use crate::recipe::{Input, ModelRef, Parameters, Setting, expand_home};

use super::{CARD, text_beside};

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
        CardModel { name: name_of(plan, input.model), settings: said.join(", ") }
    };
    let value = |setting: &Setting| serde_json::to_value(setting).unwrap_or_default();
    let mut parameters: Vec<_> =
        document.parameters.iter().map(|(name, setting)| (name.clone(), value(setting))).collect();
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
    })
}

/// The hub id of a model, or the name of its folder.
fn name_of(plan: &Plan, model: &ModelRef) -> String {
    let position = plan.job.document.models().iter().position(|known| *known == model);
    let found = position.map(|position| &plan.job.inputs[position]);
    let local = expand_home(&model.path);
    if model.is_hub_id() && found != Some(&local) {
        return model.path.clone();
    }
    // `..` and `/` have no name of their own; the folder that they lead to has.
    let name = local.file_name().map(|name| name.to_string_lossy().into_owned());
    let resolved = || found?.canonicalize().ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
    name.or_else(resolved).unwrap_or_else(|| "model".to_owned())
}

fn settings(input: &Input<'_>) -> String {
    let layers = input.layers.map(|range| format!("layers {} to {}", range.start, range.end.saturating_sub(1)));
    let given = input.parameters.into_iter().flat_map(Parameters::iter);
    let given = given.map(|(name, setting)| format!("{name} {}", serde_json::to_value(setting).unwrap_or_default()));
    layers.into_iter().chain(given).collect::<Vec<_>>().join(", ")
}

/// How a model was aligned before it was merged; empty for one that was not.
fn aligned(plan: &Plan, model: &ModelRef) -> String {
    let input = plan.job.document.models().iter().position(|known| *known == model);
    let file = plan.job.alignment_files.iter().find(|file| Some(file.input) == input);
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
