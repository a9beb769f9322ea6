//! The documents of a recipe as stages: each but the last is merged into a folder of its own beside
//! the output.

use std::path::{Path, PathBuf};

use crate::checkpoint::MANIFEST_NAME;
use crate::error::{Error, Kind, Result};
use crate::output::check_folder;
use crate::recipe::{Document, Recipe};

/// A stage and the folder that it is written to.
pub struct Stage<'a> {
    /// The document to merge.
    pub document: &'a Document,
    /// The path of the result.
    pub out: PathBuf,
}

/// The stages of `recipe`, in order; the last one is written to `out`, the others to
/// `out-stages/NAME` beside it.
///
/// # Errors
///
/// [`Kind::Recipe`] when a stage's name is not a plain file name, [`Kind::Occupied`] when its
/// folder is a link or not a folder.
pub fn stages<'a>(recipe: &'a Recipe, out: &Path) -> Result<Vec<Stage<'a>>> {
    let last = recipe.documents.len() - 1;
    let documents = recipe.documents.iter().enumerate();
    documents
        .map(|(index, document)| {
            let out = match index == last {
                true => out.to_owned(),
                false => folder_of_stage(document, out)?,
            };
            Ok(Stage { document, out })
        })
        .collect()
}

/// Returns the folder of a stage before the last, which may not be there yet.
fn folder_of_stage(document: &Document, out: &Path) -> Result<PathBuf> {
    let name = document.name.as_deref().unwrap_or_default();
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        let cause = "the name of a stage is that of a folder, so it must be a plain file name";
        return Err(Error::new(Kind::Recipe, "cannot use stage", name, cause));
    }
    let folder = folder_of(out);
    let stage = folder.join(name);
    check_folder(&folder)?;
    check_folder(&stage)?;
    Ok(stage)
}

/// The folder of the stages that lead to `out`.
fn folder_of(out: &Path) -> PathBuf {
    let one_file = out
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.split_once(".safetensors"));
    let name = one_file.map_or_else(|| out.file_name(), |(stem, _)| Some(stem.as_ref()));
    let mut name = name.unwrap_or_else(|| "merged".as_ref()).to_owned();
    name.push("-stages");
    out.with_file_name(name)
}

/// The folder of the stage called `name`.
pub fn folder_named(stages: &[Stage<'_>], name: &str) -> Option<PathBuf> {
    stages
        .iter()
        .find(|stage| stage.document.name.as_deref() == Some(name))
        .map(|stage| stage.out.clone())
}

/// Returns the folder of an earlier stage that `stage` builds on and that does not exist yet.
pub fn unfinished(stages: &[Stage<'_>], stage: &Stage<'_>) -> Option<PathBuf> {
    let needed = stage
        .document
        .models()
        .into_iter()
        .filter_map(|model| folder_named(stages, &model.path));
    needed
        .into_iter()
        .find(|folder| !folder.join(MANIFEST_NAME).exists())
}
