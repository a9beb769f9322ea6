//! Finds the files of a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::adapter::{self, is_adapter_file};
use super::component::is_pipeline;
use super::index::Index;
use super::nested;
use super::parts::Parts;
use super::rivals::{self, variant_of};
use super::side::{index_format, weight_format};
use crate::error::{Error, Kind, Result};

/// The files of a checkpoint, before any of them is opened.
#[derive(Debug)]
pub(super) struct Layout {
    /// The folder, unless a single weight file was named.
    pub folder: Option<PathBuf>,
    /// Path and name, sorted by name.
    pub files: Vec<(PathBuf, String)>,
    /// The index of the shards, if there is one.
    pub index: Option<Index>,
    /// The warning about other weights beside them.
    pub rivals: Option<String>,
}

const SAFETENSORS: &str = "safetensors";
const TORCH: &str = "PyTorch";
/// The formats that are read; a folder is read in the first one that it has.
pub(super) const FORMATS: [&str; 2] = [SAFETENSORS, TORCH];
/// The file names of a whole model in one file.
const SINGLE: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.zst",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.zst",
    "diffusion_pytorch_model.bin",
];
const PLAIN: &str = ".safetensors";
/// The beginnings of files that a training run leaves beside a model, in PyTorch's format.
const TRAINING_STATE: [&str; 9] = [
    "training_args",
    "trainer_state",
    "optimizer",
    "optim",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
    "zero_pp_rank",
];
/// The most missing shards that a message names.
const NAMED_IN_MESSAGES: usize = 8;

/// Tells if a file of this name holds the state of a training run.
pub(super) fn is_training_state(name: &str) -> bool {
    TRAINING_STATE.iter().any(|start| name.starts_with(start))
}

/// Finds the weight files behind `path`. Refuses one shard of several unless `shard_alone`. With
/// `pipeline`, a folder that is one has no files.
pub(super) fn locate(path: &Path, shard_alone: bool, pipeline: bool) -> Result<Layout> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => bad(path, "no such file or folder"),
        _ => Error::io("cannot open checkpoint", path, error),
    })?;
    if metadata.is_dir() {
        return nested::snapshot_of(path).map_or_else(
            || in_folder(path, pipeline),
            |snapshot| in_folder(&snapshot, pipeline),
        );
    }
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if let Some(format) = index_format(&name).filter(|format| FORMATS.contains(format)) {
        return indexed(parent_of(path), path, format);
    }
    if is_adapter_file(&name) {
        return Err(adapter::named(path, "is an adapter, not a model"));
    }
    if !shard_alone {
        let names = file_names(parent_of(path)).unwrap_or_default();
        if let Some(parts) = Parts::of_file(&name, &names) {
            return Err(parts.on(path));
        }
    }
    match weight_format(&name) {
        None | Some(SAFETENSORS | TORCH) => {}
        Some(format) => return Err(wrong_format(path, format)),
    }
    Ok(Layout {
        folder: None,
        files: vec![(path.to_owned(), name)],
        index: None,
        rivals: None,
    })
}

fn parent_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn in_folder(folder: &Path, pipeline: bool) -> Result<Layout> {
    let names = file_names(folder)?;
    for format in FORMATS {
        if let Some(layout) = in_format(folder, &names, format)? {
            let taken: Vec<String> = layout.files.iter().map(|(_, name)| name.clone()).collect();
            let rivals =
                rivals::warning(&names, &taken, layout.index.as_ref().and_then(Index::name));
            return Ok(Layout { rivals, ..layout });
        }
    }
    if pipeline && is_pipeline(folder)? {
        return Ok(Layout {
            folder: Some(folder.to_owned()),
            files: Vec::new(),
            index: None,
            rivals: None,
        });
    }
    Err(nothing_in(folder, &names))
}

/// Finds the files of a folder in one format: first the whole model in one file, as in
/// transformers, unless it is a shard of an index; then the shards of the index; then all loose
/// files.
fn in_format(
    folder: &Path,
    names: &BTreeSet<String>,
    format: &'static str,
) -> Result<Option<Layout>> {
    let single = SINGLE
        .into_iter()
        .find(|name| weight_format(name) == Some(format) && names.contains(*name));
    if let Some(index) = choose_index(folder, names, format)? {
        let path = folder.join(index);
        let is_apart = |single| {
            !Index::read(&path, format).is_ok_and(|index| index.shards().contains(&single))
        };
        if !single.is_some_and(is_apart) {
            return indexed(folder, &path, format).map(Some);
        }
    }
    let chosen = match single {
        Some(single) => vec![single.to_owned()],
        None if format == TORCH => loose_torch(folder, names)?,
        None => loose(folder, names)?,
    };
    let files: Vec<_> = chosen
        .into_iter()
        .map(|name| (folder.join(&name), name))
        .collect();
    let layout = Layout {
        folder: Some(folder.to_owned()),
        files,
        index: None,
        rivals: None,
    };
    Ok(Some(layout).filter(|layout| !layout.files.is_empty()))
}

/// Lists the names of a folder's entries, without hidden ones.
pub(super) fn file_names(folder: &Path) -> Result<BTreeSet<String>> {
    let failed = |error| Error::io("cannot list", folder, error);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        // A shard's name is always UTF-8.
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.insert(name);
        }
    }
    Ok(names)
}

fn choose_index<'a>(
    folder: &Path,
    names: &'a BTreeSet<String>,
    format: &str,
) -> Result<Option<&'a str>> {
    const USUAL: [&str; 4] = [
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.bin.index.json",
    ];
    let is_index =
        |name: &&str| index_format(name) == Some(format) && !name.starts_with("adapter_");
    let indexes: Vec<_> = names.iter().map(String::as_str).filter(is_index).collect();
    if let Some(usual) = USUAL.into_iter().find(|usual| indexes.contains(usual)) {
        return Ok(Some(usual));
    }
    match indexes[..] {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        _ => Err(
            bad(folder, format!("several indexes: {}", indexes.join(", ")))
                .with_hint("name one of them as the model"),
        ),
    }
}

fn indexed(folder: &Path, path: &Path, format: &'static str) -> Result<Layout> {
    let index = Index::read(path, format)?;
    let names = file_names(folder)?;
    let shards = index.shards();
    let mut files = BTreeMap::new();
    let mut missing = Vec::new();
    for shard in &shards {
        let compressed = format!("{shard}.zst");
        if let Some(name) = [*shard, &compressed]
            .into_iter()
            .find(|name| names.contains(*name))
        {
            files.insert(name.to_owned(), folder.join(name));
        } else {
            missing.push(*shard);
        }
    }
    if !missing.is_empty() {
        let there = shards.len() - missing.len();
        let cause = format!(
            "{there} of {} shards are there, missing: {}",
            shards.len(),
            listed(&missing)
        );
        return Err(
            Error::new(Kind::Input, "index does not fit", path.display(), cause)
                .with_hint("finish the download, or remove the index if it belongs to other files"),
        );
    }
    let files = files.into_iter().map(|(name, path)| (path, name)).collect();
    Ok(Layout {
        folder: Some(folder.to_owned()),
        files,
        index: Some(index),
        rivals: None,
    })
}

/// Finds all shards of a folder without an index and without `model.safetensors`; empty when it has
/// no safetensors.
fn loose(folder: &Path, names: &BTreeSet<String>) -> Result<Vec<String>> {
    let is_shard = |name: &&String| {
        let plain = name.strip_suffix(".zst").unwrap_or(name);
        // A compressed shard beside its expanded copy is the same shard.
        plain.ends_with(PLAIN)
            && !is_adapter_file(name)
            && (plain == *name || !names.contains(plain))
    };
    let mut shards: Vec<_> = names.iter().filter(is_shard).cloned().collect();
    // The same weights in another precision.
    let all = shards.clone();
    shards.retain(|name| variant_of(name).is_none_or(|other| !all.contains(&other)));
    // Mistral's folders hold a second copy of the whole model under this name.
    if !shards.iter().all(|name| name.starts_with("consolidated")) {
        shards.retain(|name| !name.starts_with("consolidated"));
    }
    check_complete(folder, &shards)?;
    Ok(shards)
}

/// Finds the PyTorch shards, or the only PyTorch file, of a folder without an index and without
/// `pytorch_model.bin`.
fn loose_torch(folder: &Path, names: &BTreeSet<String>) -> Result<Vec<String>> {
    let is_model = |name: &&String| {
        let other = is_adapter_file(name) || is_training_state(name);
        weight_format(name) == Some(TORCH) && !other
    };
    let mut files: Vec<_> = names.iter().filter(is_model).cloned().collect();
    let all = files.clone();
    files.retain(|name| variant_of(name).is_none_or(|other| !all.contains(&other)));
    let shards: Vec<_> = files
        .iter()
        .filter(|name| numbered(name).is_some())
        .cloned()
        .collect();
    match (shards.as_slice(), files.as_slice()) {
        ([], [] | [_]) => Ok(files),
        ([], several) => {
            if let Some(parts) = Parts::of_folder(names) {
                return Err(parts.on(folder));
            }
            let several: Vec<_> = several.iter().map(String::as_str).collect();
            Err(bad(
                folder,
                format!("several PyTorch files: {}", listed(&several)),
            )
            .with_hint("name one of them as the model"))
        }
        _ => check_complete(folder, &shards).map(|()| shards),
    }
}

/// Splits `model-00002-of-00005.safetensors` into `model`, 2, 5 and `.safetensors`.
pub(super) fn numbered(name: &str) -> Option<(&str, u32, u32, &str)> {
    let name = name.strip_suffix(".zst").unwrap_or(name);
    let (stem, ending) = name.split_at(name.rfind('.')?);
    weight_format(ending)?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| {
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse().ok())
            .flatten()
    };
    Some((prefix, parse(number)?, parse(total)?, ending))
}

/// Checks that numbered shards are complete and of one set.
fn check_complete(folder: &Path, shards: &[String]) -> Result<()> {
    let mut sets: BTreeMap<(&str, &str), (u32, BTreeSet<u32>)> = BTreeMap::new();
    for (prefix, number, total, ending) in shards.iter().filter_map(|name| numbered(name)) {
        let (expected, there) = sets
            .entry((prefix, ending))
            .or_insert_with(|| (total, BTreeSet::new()));
        if *expected != total {
            let cause = format!(
                "shards of two sets: {prefix}-…-of-{expected:05} and {prefix}-…-of-{total:05}"
            );
            return Err(
                bad(folder, cause).with_hint("remove the files that an earlier save left behind")
            );
        }
        there.insert(number);
    }
    for ((prefix, ending), (total, there)) in sets {
        // Some savers count from zero.
        let first = u32::from(!there.contains(&0));
        let missing: Vec<_> = (first..total.saturating_add(first))
            .filter(|number| !there.contains(number))
            .take(NAMED_IN_MESSAGES + 1)
            .map(|number| format!("{prefix}-{number:05}-of-{total:05}{ending}"))
            .collect();
        if !missing.is_empty() {
            let missing: Vec<_> = missing.iter().map(String::as_str).collect();
            let cause = format!(
                "{} of {total} shards are there, missing: {}",
                there.len(),
                listed(&missing)
            );
            return Err(bad(folder, cause).with_hint("finish the download"));
        }
    }
    Ok(())
}

fn listed(names: &[&str]) -> String {
    let more = if names.len() > NAMED_IN_MESSAGES {
        ", …"
    } else {
        ""
    };
    format!(
        "{}{more}",
        names[..names.len().min(NAMED_IN_MESSAGES)].join(", ")
    )
}

/// Returns the error for a folder without weights in a format that is read.
fn nothing_in(folder: &Path, names: &BTreeSet<String>) -> Error {
    if let Some(name) = names
        .iter()
        .find(|name| is_adapter_file(name) && weight_format(name).is_some())
    {
        return adapter::named(folder, &format!("holds an adapter, not a model ({name})"));
    }
    if let Some(error) = Parts::of_folder(names)
        .map(|parts| parts.on(folder))
        .or_else(|| nested::refusal(folder, names))
    {
        return error;
    }
    let read = |format: &&str| !FORMATS.contains(format);
    match names
        .iter()
        .filter_map(|name| weight_format(name))
        .find(read)
    {
        Some(format) => wrong_format(folder, format),
        None if names.is_empty() => bad(folder, "the folder is empty"),
        None => bad(folder, "no safetensors file in the folder"),
    }
}

fn wrong_format(path: &Path, format: &str) -> Error {
    let cure = match format {
        "GGUF" => {
            "take the safetensors that it was made from, since GGUF files are mostly quantised; or convert it in \
             transformers, with `from_pretrained(FOLDER, gguf_file=NAME)` and `save_pretrained`"
        }
        "Keras" | "TensorFlow" => {
            "convert it to safetensors first: in transformers 4, `from_pretrained(FOLDER, from_tf=True)` and `save_pretrained`"
        }
        "Flax" => {
            "convert it to safetensors first: in transformers 4, `from_pretrained(FOLDER, from_flax=True)` and \
             `save_pretrained`"
        }
        "ONNX" | "TensorFlow Lite" | "TensorRT" | "Core ML" => {
            "take the model that it was exported from"
        }
        _ => "convert the model to safetensors first",
    };
    bad(
        path,
        format!("weights in {format} format, safetensors are needed"),
    )
    .with_hint(cure)
}

fn bad(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::Input, "cannot open checkpoint", path.display(), cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_names_are_taken_apart() {
        assert_eq!(
            numbered("model-00002-of-00005.safetensors"),
            Some(("model", 2, 5, ".safetensors"))
        );
        assert_eq!(
            numbered("a-b-2-of-3.safetensors.zst"),
            Some(("a-b", 2, 3, ".safetensors"))
        );
        assert_eq!(
            numbered("pytorch_model-1-of-2.bin"),
            Some(("pytorch_model", 1, 2, ".bin"))
        );
        for other in [
            "model.safetensors",
            "model-x-of-00005.safetensors",
            "model-00001-of-+5.safetensors",
            "1-of-2.bin",
            "a-1-of-2.txt",
        ] {
            assert_eq!(numbered(other), None, "{other}");
        }
    }
}
