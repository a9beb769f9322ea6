//! Writes the requested chat template to the one place where loaders look first.

// The configs are files of others.
#![deny(clippy::indexing_slicing, clippy::string_slice)]

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::Result;
use crate::json;
use crate::output::Contents;
use crate::plan::Plan;
use crate::recipe::ChatTemplate;

use super::template::preset;
use super::{Files, rewritten, text_beside};

const JINJA: &str = "chat_template.jinja";
const JSON: &str = "chat_template.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const KEY: &str = "chat_template";

/// Adds the recipe's template to `files` and removes every other one. If the recipe asks for none,
/// or no model has one to choose, `files` does not change.
///
/// # Errors
///
/// When a template cannot be read.
pub fn replace(plan: &Plan, files: &mut Files) -> Result<()> {
    let wanted = match &plan.job.document.chat_template {
        None => None,
        Some(ChatTemplate::Jinja(text)) => Some(text.clone()),
        Some(ChatTemplate::Preset(name)) => preset(name).map(str::to_owned),
        Some(ChatTemplate::Auto) => most_common(plan)?,
    };
    let Some(text) = wanted else { return Ok(()) };
    files.retain(|(name, _)| name != Path::new(JINJA) && name != Path::new(JSON));
    for (name, contents) in files
        .iter_mut()
        .filter(|(name, _)| name == Path::new(TOKENIZER_CONFIG))
    {
        if let Some(without) = without_template(plan)? {
            let lender = plan.job.tokenizer_donor();
            *contents =
                Contents::Bytes(rewritten(plan, lender, &name.to_string_lossy(), &without)?);
        }
    }
    files.push((PathBuf::from(JINJA), Contents::Bytes(text.into_bytes())));
    Ok(())
}

/// Returns the tokenizer config without its template; `None` when it has no template.
fn without_template(plan: &Plan) -> Result<Option<Value>> {
    let mut config = json_beside(plan, plan.job.tokenizer_donor(), TOKENIZER_CONFIG)?;
    let taken = config
        .as_mut()
        .and_then(Value::as_object_mut)
        .and_then(|fields| fields.shift_remove(KEY));
    Ok(config.filter(|_| taken.is_some()))
}

/// Finds the template of most models. A tie goes to the model that lends the tokenizer, else to the
/// first.
fn most_common(plan: &Plan) -> Result<Option<String>> {
    let mut counted: Vec<(String, usize)> = Vec::new();
    let lender = plan.job.tokenizer_donor();
    for input in
        std::iter::once(lender).chain((0..plan.inputs.len()).filter(|&input| input != lender))
    {
        let Some(template) = template_of(plan, input)? else {
            continue;
        };
        match counted.iter_mut().find(|(known, _)| *known == template) {
            Some((_, count)) => *count += 1,
            None => counted.push((template, 1)),
        }
    }
    let most = counted.iter().map(|(_, count)| *count).max();
    Ok(counted
        .into_iter()
        .find(|(_, count)| Some(*count) == most)
        .map(|(template, _)| template))
}

/// Finds the template of an input, in the places and order of transformers.
fn template_of(plan: &Plan, input: usize) -> Result<Option<String>> {
    if let Some(text) = text_beside(plan, input, JINJA)? {
        return Ok(Some(text));
    }
    for name in [JSON, TOKENIZER_CONFIG] {
        match json_beside(plan, input, name)?
            .and_then(|mut config| config.get_mut(KEY).map(Value::take))
        {
            Some(Value::String(text)) => return Ok(Some(text)),
            // Several templates by name; loaders use `default` unless told otherwise.
            Some(Value::Array(named)) => {
                let is_default = |entry: &&Value| entry.get("name") == Some(&"default".into());
                let default = named.iter().find(is_default);
                return Ok(default
                    .and_then(|entry| entry.get("template")?.as_str())
                    .map(str::to_owned));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Reads a JSON file beside an input; `None` when it is missing or not JSON.
fn json_beside(plan: &Plan, input: usize, name: &str) -> Result<Option<Value>> {
    Ok(text_beside(plan, input, name)?.and_then(|text| json::parse(&text).ok()))
}
