//! Sub-folders with weights of their own: components of a diffusers pipeline, modules of
//! sentence-transformers.

use std::path::Path;

use serde_json::Value;

use super::index::read_capped;
use super::leftover::is_leftover_folder;
use super::side::weight_format;
use super::{Checkpoint, Name, OpenOptions, folder, side};
use crate::error::{Error, Kind, Result};

/// The files that list the sub-folders of a model.
const LISTS: [&str; 2] = ["model_index.json", "modules.json"];
/// The longest such file that is read, in bytes.
const LIST_BYTES: u64 = 1 << 20;

impl Checkpoint {
    /// Lists the sub-folders that hold weights in a readable format, sorted by name; empty for a
    /// single weight file.
    ///
    /// Leaves out hidden folders, links to folders, leftovers of a training run or another program,
    /// folders of adapters, and names with characters other than ASCII letters, digits, `-`, `_`
    /// and `.`.
    ///
    /// # Errors
    ///
    /// Fails when the folder or one of its sub-folders cannot be listed.
    pub fn component_folders(&self) -> Result<Vec<String>> {
        self.folder().map_or_else(|| Ok(Vec::new()), folders_in)
    }

    /// Tells if a file of this folder lists the sub-folder `name` as a part of the model.
    ///
    /// # Errors
    ///
    /// Fails when such a file exists and cannot be read.
    pub fn declares_component(&self, name: &str) -> Result<bool> {
        self.folder()
            .map_or(Ok(false), |folder| declares(folder, name))
    }

    /// Opens the sub-folder `name` as a checkpoint of its own.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open_with`], and when this checkpoint is not a folder.
    pub fn open_component(&self, name: &str, options: &OpenOptions) -> Result<Self> {
        let folder = self.folder().ok_or_else(|| {
            let cause = format!("a single file has no folder {name}");
            Error::new(
                Kind::Input,
                "cannot open checkpoint",
                self.root().display(),
                cause,
            )
        })?;
        Self::open_with(&folder.join(name), options)
    }

    /// Adds the files and tensors of a component, and prefixes the names of both with the folder
    /// and a slash.
    ///
    /// # Errors
    ///
    /// [`Kind::Input`] when a tensor of this checkpoint has the name of one of the component's.
    pub fn attach(&mut self, name: &str, component: Self) -> Result<()> {
        let before = format!("{name}/");
        if let Some(tensor) = self
            .tensors
            .keys()
            .find(|tensor| tensor.starts_with(&before))
        {
            let cause = format!(
                "tensor {} is called like those of the folder {name}",
                super::shown(tensor)
            );
            return Err(Error::new(
                Kind::Input,
                "cannot open checkpoint",
                self.root.display(),
                cause,
            ));
        }
        let first = self.files.len();
        self.files
            .extend(component.files.into_iter().map(|mut file| {
                file.name.insert_str(0, &before);
                file
            }));
        let tensors = component.tensors.into_iter().map(|(tensor, mut entry)| {
            entry.file += first;
            (Name::from(format!("{before}{tensor}")), entry)
        });
        self.tensors.extend(tensors);
        self.left_out.extend(
            component
                .left_out
                .into_iter()
                .map(|(tensor, why)| (format!("{before}{tensor}"), why)),
        );
        self.warnings.extend(
            component
                .warnings
                .into_iter()
                .map(|warning| format!("{before}: {warning}")),
        );
        Ok(())
    }

    /// Reads the `config.json` of the component in the sub-folder `name`, if there is one.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::config`].
    pub fn component_config(&self, name: &str) -> Result<Option<Value>> {
        self.folder()
            .map_or(Ok(None), |folder| side::config(&folder.join(name)))
    }
}

/// Tells if a folder without weights of its own is a pipeline: a model of components that a file
/// lists.
pub(super) fn is_pipeline(folder: &Path) -> Result<bool> {
    for name in folders_in(folder)? {
        if declares(folder, &name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn folders_in(folder: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io("cannot list", folder, error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let plain = name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if is_dir
            && plain
            && !name.starts_with('.')
            && !is_leftover_folder(&name)
            && holds_weights(&folder.join(&name))?
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn holds_weights(folder: &Path) -> Result<bool> {
    let names = folder::file_names(folder)?;
    let is_read =
        |name: &String| weight_format(name).is_some_and(|format| folder::FORMATS.contains(&format));
    let is_adapter = names.iter().any(|name| name.starts_with("adapter_"));
    Ok(!is_adapter && names.iter().any(is_read))
}

fn declares(folder: &Path, name: &str) -> Result<bool> {
    for list in LISTS {
        let path = folder.join(list);
        if !path.is_file() {
            continue;
        }
        let text = read_capped(&path, LIST_BYTES, "cannot read list of components")?;
        let listed: Value = serde_json::from_slice(&text).map_err(|error| {
            Error::new(
                Kind::Input,
                "cannot read list of components",
                path.display(),
                error,
            )
        })?;
        let found = match &listed {
            // Pipelines: the folder of each component, with the library and class that load it, or
            // two nulls.
            Value::Object(fields) => fields
                .get(name)
                .is_some_and(|value| value.get(0).is_some_and(Value::is_string)),
            // sentence-transformers: modules in order, each with its folder, the first one's often
            // empty.
            Value::Array(modules) => modules.iter().any(|module| module["path"] == name),
            _ => false,
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
