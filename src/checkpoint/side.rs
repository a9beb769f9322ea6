//! The files beside the weights: finds those that belong to a model, and recognises weights in any
//! format.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::index::read_capped;
use super::leftover::{is_leftover, is_leftover_folder};
use crate::error::{Error, Kind, Result};
use crate::json;

const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// The manifest that a merge leaves in its output. It is never copied as a side file: the copy
/// would describe other files.
pub const MANIFEST_NAME: &str = "thalweg.json";
/// Endings of files that hold weights or a training run's state, with the format's name.
const WEIGHT_ENDINGS: [(&str, &str); 28] = [
    (".safetensors", "safetensors"),
    (".safetensors.zst", "safetensors"),
    (".bin", "PyTorch"),
    (".pt", "PyTorch"),
    (".pth", "PyTorch"),
    (".ckpt", "PyTorch"),
    (".pkl", "pickle"),
    (".pickle", "pickle"),
    (".joblib", "pickle"),
    (".gguf", "GGUF"),
    (".ggml", "GGML"),
    (".h5", "Keras"),
    (".hdf5", "Keras"),
    (".keras", "Keras"),
    (".msgpack", "Flax"),
    (".onnx", "ONNX"),
    (".onnx_data", "ONNX"),
    (".onnx.data", "ONNX"),
    (".ot", "rust_bert"),
    (".npz", "NumPy"),
    (".npy", "NumPy"),
    (".tflite", "TensorFlow Lite"),
    (".pb", "TensorFlow"),
    (".pdparams", "Paddle"),
    (".mlmodel", "Core ML"),
    (".engine", "TensorRT"),
    (".llamafile", "llamafile"),
    (".nemo", "NeMo"),
];

/// Returns the format of the weights in a file of this name, if it holds any.
pub(super) fn weight_format(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    WEIGHT_ENDINGS
        .iter()
        .find(|(ending, _)| name.ends_with(ending))
        .map(|(_, format)| *format)
}

/// Returns the format of the shards of an index of this name, such as
/// `pytorch_model.bin.index.json`; `None` for other names.
pub(super) fn index_format(name: &str) -> Option<&'static str> {
    let (weights, rest) = name.split_once(".index.")?;
    weight_format(weights).filter(|_| rest.ends_with("json"))
}

/// Reads `config.json` in `folder`; `None` when there is none.
pub(super) fn config(folder: &Path) -> Result<Option<serde_json::Value>> {
    let path = folder.join("config.json");
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) => return Err(Error::io("cannot read config", &path, error)),
    }
    let text = read_capped(&path, MAX_CONFIG_BYTES, "cannot read config")?;
    let refused = |cause: &dyn std::fmt::Display| {
        Error::new(Kind::Input, "cannot read config", path.display(), cause)
    };
    let text = std::str::from_utf8(&text).map_err(|error| refused(&error))?;
    json::parse(text).map(Some).map_err(|error| refused(&error))
}

/// The files in a model's folder beside its weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// The files that belong to the model, relative to the folder, sorted.
    pub files: Vec<PathBuf>,
    /// The files that do not: weights in any format, their indexes, leftovers of training and other
    /// programs, anything deeper than one folder. Relative to the folder and sorted, folders with a
    /// slash at the end, without hidden files and thalweg's own manifest.
    pub left: Vec<String>,
}

/// Lists the files in `folder` beside weights; see [`Beside`]. Sub-folders with weights are left,
/// except `components`, whose other files belong to the model.
///
/// # Errors
///
/// A folder that cannot be listed, a dangling link, or a link to a file of another name outside the
/// folder.
pub fn look(folder: &Path, components: &[&str]) -> Result<Beside> {
    let root = folder
        .canonicalize()
        .map_err(|error| Error::io("cannot list", folder, error))?;
    let top = Listing::of(folder)?;
    let mut beside = Beside {
        files: top.files.iter().map(PathBuf::from).collect(),
        left: top.left,
    };
    for name in top.folders {
        let inner = if is_leftover_folder(&name) {
            Listing::default()
        } else {
            Listing::of(&folder.join(&name))?
        };
        let is_component = components.contains(&name.as_str());
        if (inner.has_weights && !is_component) || is_leftover_folder(&name) {
            beside.left.push(format!("{name}/"));
            continue;
        }
        beside
            .files
            .extend(inner.files.iter().map(|file| Path::new(&name).join(file)));
        let deeper = inner.folders.iter().map(|deeper| format!("{deeper}/"));
        beside.left.extend(
            inner
                .left
                .iter()
                .cloned()
                .chain(deeper)
                .map(|left| format!("{name}/{left}")),
        );
    }
    beside.files.sort();
    beside.left.sort();
    for path in &beside.files {
        check_link(&root, &folder.join(path))?;
    }
    Ok(beside)
}

/// Lists only the files of [`look`] that belong to the model.
///
/// # Errors
///
/// As [`look`].
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    look(folder, &[]).map(|beside| beside.files)
}

/// One folder's entries, by kind.
#[derive(Default)]
struct Listing {
    files: Vec<String>,
    folders: Vec<String>,
    left: Vec<String>,
    has_weights: bool,
}

impl Listing {
    fn of(folder: &Path) -> Result<Self> {
        let failed = |error| Error::io("cannot list", folder, error);
        let mut listing = Self::default();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file_type = entry.file_type().map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') || name.ends_with(MANIFEST_NAME) {
                continue;
            }
            // NOTE: a link to a folder is not followed, so the walk cannot run in circles.
            if file_type.is_dir() {
                listing.folders.push(name);
            } else if weight_format(&name).is_some() {
                listing.has_weights = true;
                listing.left.push(name);
            } else if !is_side_file(&name) {
                listing.left.push(name);
            } else if file_type.is_file() || leads_to_file(&entry.path())? {
                listing.files.push(name);
            }
        }
        Ok(listing)
    }
}

fn is_side_file(name: &str) -> bool {
    !name.ends_with(MANIFEST_NAME) && index_format(name).is_none() && !is_leftover(name)
}

/// Tells if a path that is not a plain file leads to one; false for a link to a folder. Refuses
/// pipes, sockets and devices unopened.
fn leads_to_file(path: &Path) -> Result<bool> {
    let metadata =
        std::fs::metadata(path).map_err(|error| Error::io("cannot follow link", path, error))?;
    if metadata.is_file() || metadata.is_dir() {
        return Ok(metadata.is_file());
    }
    let cause = "it is a pipe, a socket or a device, wanted a file";
    Err(
        Error::new(Kind::Input, "cannot take along", path.display(), cause)
            .with_hint("move it out of the model's folder"),
    )
}

/// Refuses a link that could copy another file under a harmless name: the output may be published.
///
/// Accepts targets inside the folder, the blobs of a hub cache (`snapshots/<revision>/` beside
/// `blobs/`), and a file of the same name elsewhere.
fn check_link(root: &Path, path: &Path) -> Result<()> {
    let target = path
        .canonicalize()
        .map_err(|error| Error::io("cannot follow link", path, error))?;
    let blobs = root
        .parent()
        .and_then(Path::parent)
        .map(|cache| cache.join("blobs"));
    let inside = target.starts_with(root) || blobs.is_some_and(|blobs| target.starts_with(blobs));
    if inside || target.file_name() == path.file_name() {
        return Ok(());
    }
    let cause = format!(
        "links to {}, outside of the folder and under another name",
        target.display()
    );
    Err(
        Error::new(Kind::Input, "cannot take along", path.display(), cause).with_hint(format!(
            "put a copy there, or remove {}",
            path.file_name().unwrap_or(OsStr::new("it")).display()
        )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_their_indexes_are_told_from_side_files() {
        for weights in [
            "model.safetensors",
            "model.safetensors.zst",
            "A.BIN",
            "x.pth",
            "rust_model.ot",
            "m.onnx_data",
        ] {
            assert!(weight_format(weights).is_some(), "{weights}");
        }
        for index in [
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "model.safetensors.index.fp16.json",
        ] {
            assert!(index_format(index).is_some(), "{index}");
        }
        for side in [
            "tokenizer.model",
            "config.json",
            "index.json",
            "chat_template.jinja",
            "LICENSE",
            "modeling.py",
        ] {
            assert!(
                weight_format(side).is_none() && is_side_file(side),
                "{side}"
            );
        }
        assert!(!is_side_file("thalweg.json") && !is_side_file("x.lock"));
    }
}
