//! The files beside the weights: the donor's files with a config that matches the written weights,
//! the lender's tokenizer, the requested chat template, a model card, and the recipe.
//!
//! A file is copied byte for byte unless it has to change.

mod card;
mod chat;
mod config;
mod describe;
mod template;
mod truth;
pub mod yaml;

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::{Checkpoint, look_beside, open_regular};
use crate::error::{Error, Kind, Result};
use crate::json;
use crate::output::{Contents, SideFile};
use crate::plan::Plan;
use crate::recipe::Document;

use config::{restated, with_dtype};

const CONFIG: &str = "config.json";
const CARD: &str = "README.md";
const RECIPE: &str = "mergekit_config.yml";

/// The largest side file that is read, in bytes.
const READ_BYTES: u64 = 16 << 20;

/// Collects the files beside the weights of `plan`, sorted by name.
///
/// # Errors
///
/// When the folder of a lender, its config or a template cannot be read.
pub fn side_files(plan: &Plan) -> Result<Vec<SideFile>> {
    let mut files = lent(plan)?;
    chat::replace(plan, &mut files)?;
    let mut files = files
        .into_iter()
        .map(|(name, contents)| SideFile::new(name, contents))
        .collect::<Result<Vec<_>>>()?;
    if !plan.job.beside_a_file && !plan.job.rewritten {
        let own = [
            (CARD, describe::of(plan)?.text()),
            (RECIPE, recipe_text(plan)?),
        ];
        for (name, text) in own {
            files.retain(|file| file.name() != Path::new(name));
            files.push(SideFile::new(name, Contents::Bytes(text.into_bytes()))?);
        }
    }
    files.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(files)
}

type Files = Vec<(PathBuf, Contents)>;

/// Collects the files of the donor and the tokenizer files of their lender.
fn lent(plan: &Plan) -> Result<Files> {
    let (donor, lender) = (plan.job.donor, plan.job.tokenizer_donor());
    let mut files = Files::new();
    for (index, wants_tokenizer) in [(donor, donor == lender), (lender, true)] {
        let Some(folder) = folder_of(plan, index) else {
            continue;
        };
        let components = if index == donor {
            components_of(plan)
        } else {
            Vec::new()
        };
        for name in look_beside(folder, &components)?.files {
            let is_wanted = if is_tokenizer_file(&name) {
                wants_tokenizer
            } else {
                index == donor
            };
            if !is_wanted
                || (is_read_me(&name) && !plan.job.rewritten)
                || files.iter().any(|(known, _)| *known == name)
            {
                continue;
            }
            let contents = contents(plan, index, folder, &name)?;
            files.push((name, contents));
        }
    }
    Ok(files)
}

/// Lists the files beside the donor's weights that are not copied, because they do not match the
/// output: weights in other formats, remains of training. Paths are relative to its folder and
/// sorted; folders end in a slash.
///
/// # Errors
///
/// When the donor's folder cannot be listed.
pub fn left_beside(plan: &Plan) -> Result<Vec<String>> {
    let input = &plan.inputs[plan.job.donor];
    let Some(folder) = folder_of(plan, plan.job.donor) else {
        return Ok(Vec::new());
    };

    Ok(look_beside(folder, &components_of(plan))?
        .left
        .into_iter()
        .filter(|name| !is_weights_of(input, name))
        .collect())
}

/// True if a file holds weights that are read, compressed or not, or is an index of such.
fn is_weights_of(input: &Checkpoint, name: &str) -> bool {
    let is_index = name.ends_with(".safetensors.index.json") || name.ends_with(".bin.index.json");
    let plain = name.strip_suffix(".zst");
    is_index
        || input.files().iter().any(|file| {
            let read = file.name.strip_suffix(".zst").unwrap_or(&file.name);
            name == read || plain == Some(read)
        })
}

/// Returns the folder of an input's files. A single weight file lends the files around it only if
/// `beside_a_file` is set, for an output that is a single file too.
fn folder_of(plan: &Plan, input: usize) -> Option<&Path> {
    let input = &plan.inputs[input];
    input
        .folder()
        .or_else(|| plan.job.beside_a_file.then(|| parent_of(input)))
}

fn parent_of(input: &Checkpoint) -> &Path {
    input
        .root()
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn contents(plan: &Plan, index: usize, folder: &Path, name: &Path) -> Result<Contents> {
    let carried = Contents::CopyOf(folder.join(name));
    let mut merged = plan.components.iter().filter(|part| !part.carried);
    let component = merged.find(|part| name == Path::new(&part.folder).join(CONFIG));
    if let Some(component) = component {
        let Some(config) = plan.inputs[index].component_config(&component.folder)? else {
            return Ok(carried);
        };
        let restated = plan
            .dtype_of(component)
            .and_then(|dtype| with_dtype(&config, dtype));
        let name = name.to_string_lossy();
        return restated.map_or(Ok(carried), |changed| {
            Ok(Contents::Bytes(rewritten(plan, index, &name, &changed)?))
        });
    }
    if name != Path::new(CONFIG) {
        return Ok(carried);
    }
    let Some(config) = plan.inputs[index].config()? else {
        return Ok(carried);
    };
    match restated(&config, &truth::of(plan)?) {
        Some(changed) => Ok(Contents::Bytes(rewritten(plan, index, CONFIG, &changed)?)),
        None => Ok(carried),
    }
}

fn components_of(plan: &Plan) -> Vec<&str> {
    plan.components
        .iter()
        .map(|component| component.folder.as_str())
        .collect()
}

/// True for a readme, which describes another model.
fn is_read_me(name: &Path) -> bool {
    let name = name.to_string_lossy().to_ascii_lowercase();
    name.strip_prefix("readme")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_', '-']))
}

/// True if a file belongs to a tokenizer.
fn is_tokenizer_file(name: &Path) -> bool {
    const NAMES: [&str; 5] = [
        "special_tokens_map.json",
        "added_tokens.json",
        "merges.txt",
        "chat_template.json",
        "chat_template.jinja",
    ];
    let Some(name) = name.to_str().filter(|name| !name.contains('/')) else {
        return false;
    };
    NAMES.contains(&name)
        || ["tokenizer", "vocab.", "chat_template."]
            .iter()
            .any(|begin| name.starts_with(begin))
        || name.ends_with(".model")
}

/// Returns the recipe as given, or the parsed recipe where there was no text.
fn recipe_text(plan: &Plan) -> Result<String> {
    if let Some(text) = &plan.job.recipe_text {
        return Ok(text.clone());
    }
    Ok(yaml::document(&document_value(&plan.job.document)?))
}

fn document_value(document: &Document) -> Result<Value> {
    serde_json::to_value(document)
        .map_err(|error| Error::new(Kind::Recipe, "cannot write", RECIPE, error))
}

/// Rewrites a file beside an input to hold `changed`; unchanged parts keep their bytes.
fn rewritten(plan: &Plan, input: usize, name: &str, changed: &Value) -> Result<Vec<u8>> {
    let text = text_beside(plan, input, name)?;
    Ok(text
        .map_or_else(
            || json::pretty(changed),
            |text| json::edited(&text, changed),
        )
        .into_bytes())
}

/// Reads a small text file beside an input; `None` when it is missing, too long, or not UTF-8.
fn text_beside(plan: &Plan, input: usize, name: &str) -> Result<Option<String>> {
    let Some(folder) = folder_of(plan, input) else {
        return Ok(None);
    };
    let path = folder.join(name);
    let failed = |error| Error::io("cannot read", &path, error);
    let mut bytes = Vec::new();
    match open_regular(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened
            .map_err(failed)?
            .take(READ_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?,
    };
    Ok(String::from_utf8(bytes)
        .ok()
        .filter(|text| text.len() as u64 <= READ_BYTES))
}
