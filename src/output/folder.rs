//! The contents of an output folder: the names of our own files, and the signs of another program's
//! checkpoint.

use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::own::check_side;
use super::resume::begun_identity;
use super::storage::{Storage, parent_of};
use crate::error::Result;

/// The paths of an output's files: in a folder of its own, or, for an output of one file, beside
/// that file.
#[derive(Debug, Clone)]
pub(super) struct Places {
    out: PathBuf,
    is_file: bool,
    /// True if finished files are put aside in the work folder, to replace the present output
    /// later.
    is_staged: bool,
}

/// The name of the manifest.
pub(super) const MANIFEST: &str = crate::checkpoint::MANIFEST_NAME;

/// The folder of transforms in an output folder.
const ALIGNMENT: &str = "alignment";

/// The name of the work folder.
pub(super) const WORK: &str = ".thalweg";

impl Places {
    pub(super) fn new(out: &Path) -> Self {
        Self {
            out: out.to_owned(),
            is_file: names_one_file(out) && !out.is_dir(),
            is_staged: false,
        }
    }

    /// Returns the same output with its finished files in the work folder, until they replace the
    /// present ones.
    pub(super) fn staged(&self) -> Self {
        Self {
            is_staged: true,
            ..self.clone()
        }
    }

    /// Returns the same output with its finished files in their last places.
    pub(super) fn unstaged(&self) -> Self {
        Self {
            is_staged: false,
            ..self.clone()
        }
    }

    /// Tells if finished files are put aside.
    pub(super) fn is_staged(&self) -> bool {
        self.is_staged
    }

    /// Returns the output itself, a folder or a file.
    pub(super) fn out(&self) -> &Path {
        &self.out
    }

    /// Tells if the output is a single file.
    pub(super) fn is_file(&self) -> bool {
        self.is_file
    }

    /// Returns the folder for finished files.
    pub(super) fn folder(&self) -> PathBuf {
        match (self.is_staged, self.is_file) {
            (true, _) => self.aside_dir(),
            (false, true) => parent_of(&self.out).to_owned(),
            (false, false) => self.out.clone(),
        }
    }

    /// Returns the folder of a new output's finished files, before they replace an old one.
    pub(super) fn aside_dir(&self) -> PathBuf {
        self.work().join("new")
    }

    /// Returns the path of the marker that a new output is whole and its files move to their
    /// places.
    pub(super) fn exchange(&self) -> PathBuf {
        self.work().join("exchange")
    }

    /// Returns the folder of the transforms found for this output.
    pub(super) fn alignment(&self) -> PathBuf {
        match self.out.file_name().filter(|_| self.is_file) {
            None => self.folder().join(ALIGNMENT),
            Some(name) => {
                let mut name = name.to_owned();
                name.push(format!(".{ALIGNMENT}"));
                self.folder().join(name)
            }
        }
    }

    /// Returns the final path of a shard or index. The only shard of a single file has that file's
    /// name, whatever the layout calls it.
    pub(super) fn finished(&self, name: &str) -> PathBuf {
        match self.out.file_name().filter(|_| self.is_file) {
            Some(file) if self.is_staged => self.folder().join(file),
            Some(_) => self.out.clone(),
            None => self.folder().join(name),
        }
    }

    /// Returns the final path of a side file.
    pub(super) fn side(&self, name: &Path) -> PathBuf {
        self.folder().join(name)
    }

    pub(super) fn manifest(&self) -> PathBuf {
        match self.out.file_name().filter(|_| self.is_file) {
            Some(file) if self.is_staged => {
                let mut name = file.to_owned();
                name.push(format!(".{MANIFEST}"));
                self.folder().join(name)
            }
            Some(_) => self.beside("", &format!(".{MANIFEST}")),
            None => self.folder().join(MANIFEST),
        }
    }

    pub(super) fn work(&self) -> PathBuf {
        if self.is_file {
            self.beside(".", WORK)
        } else {
            self.out.join(WORK)
        }
    }

    fn beside(&self, before: &str, after: &str) -> PathBuf {
        let mut name = std::ffi::OsString::from(before);
        name.push(self.out.file_name().unwrap_or_default());
        name.push(after);
        self.out.with_file_name(name)
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.work().join("lock")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.work().join("journal")
    }

    /// Returns the path of an unfinished shard, not compressed.
    pub(super) fn part(&self, shard: &str) -> PathBuf {
        self.in_work(shard.strip_suffix(".zst").unwrap_or(shard))
    }

    /// Returns the path of a shard that is being compressed.
    pub(super) fn packed(&self, shard: &str) -> PathBuf {
        self.in_work(shard)
    }

    /// Returns the path of a part. The work folder has no folders for shards, so a plus, which no
    /// shard's name contains, replaces the slash.
    fn in_work(&self, shard: &str) -> PathBuf {
        self.work()
            .join(format!("{}.part", shard.replace('/', "+")))
    }

    /// Returns the folder for inputs that must be expanded before they can be read.
    pub(super) fn scratch(&self) -> PathBuf {
        self.work().join("scratch")
    }

    /// Tells if a path in the work folder is a file that a run creates there.
    pub(super) fn is_work_file(&self, path: &Path) -> bool {
        let is_part = || path.extension().is_some_and(|end| end == "part");
        [self.lock(), self.journal(), self.aside(), self.exchange()]
            .iter()
            .any(|own| own == path)
            || is_part()
    }

    /// Tells if a path in the work folder is a folder that a run creates there.
    pub(super) fn is_work_folder(&self, path: &Path) -> bool {
        path == self.scratch() || path == self.aside_dir()
    }

    /// Returns the path of a small file before its rename.
    pub(super) fn aside(&self) -> PathBuf {
        self.work().join("aside.tmp")
    }
}

/// Tells if an output of this name is one file of weights, not a folder.
pub fn names_one_file(out: &Path) -> bool {
    // A name with a slash at its end is a folder's.
    !out.as_os_str().as_encoded_bytes().ends_with(b"/")
        && out.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            [".safetensors", ".safetensors.zst"]
                .iter()
                .any(|end| name.strip_suffix(end).is_some_and(|stem| !stem.is_empty()))
        })
}

/// The state of an output folder.
pub(super) enum Standing {
    /// It holds nothing that matters.
    Free,
    /// It holds a run that can be resumed.
    Begun,
    /// It holds a run that can be resumed and is to replace the present output.
    Replacing {
        /// True if the new output is whole and its files are moving to their places.
        is_exchanging: bool,
        /// The present output.
        under: Box<Standing>,
    },
    /// A checkpoint that this program finished.
    Finished(Box<Manifest>),
    /// A checkpoint that this program finished, with files missing or cut.
    Broken(Box<Manifest>, Vec<String>),
    /// The name of a file of another checkpoint.
    Occupied(String),
}

/// Looks at an output folder and changes nothing.
pub(super) fn survey(storage: &dyn Storage, places: &Places) -> Result<Standing> {
    let is_begun = storage.len(&places.journal())?.is_some();
    if is_begun && let Some(entries) = storage.list(&places.aside_dir())? {
        let under = survey_finished(storage, places)?;
        let is_exchanging = storage.len(&places.exchange())?.is_some();
        // The leftover of a run that was interrupted while it removed its work folder.
        let is_over = matches!(&under, Standing::Finished(manifest)
            if entries.is_empty() && begun_identity(storage, places)?.as_ref() == Some(&manifest.identity));
        return Ok(if is_over {
            under
        } else {
            Standing::Replacing {
                is_exchanging,
                under: Box::new(under),
            }
        });
    }
    match survey_finished(storage, places)? {
        finished @ Standing::Finished(_) => Ok(finished),
        _ if is_begun => Ok(Standing::Begun),
        standing => Ok(standing),
    }
}

/// Looks at an output folder without regard to its work folder.
fn survey_finished(storage: &dyn Storage, places: &Places) -> Result<Standing> {
    let Some(entries) = storage.list(&places.folder())? else {
        return Ok(Standing::Free);
    };
    match Manifest::load_with_faults(storage, places)? {
        Some((manifest, faults)) if faults.is_empty() => {
            return Ok(Standing::Finished(Box::new(manifest)));
        }
        Some((manifest, faults)) => return Ok(Standing::Broken(Box::new(manifest), faults)),
        None => {}
    }
    if places.is_file() {
        let name = || {
            places
                .out()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        return Ok(storage
            .len(places.out())?
            .map_or(Standing::Free, |_| Standing::Occupied(name())));
    }
    let names = entries
        .iter()
        .filter(|entry| !entry.is_dir)
        .map(|entry| entry.name.to_string_lossy());
    let found = names.into_iter().find(|name| belongs_to_a_checkpoint(name));
    Ok(found.map_or(Standing::Free, |name| Standing::Occupied(name.into_owned())))
}

/// Removes the finished files of a discarded run: the index first, durably, so that no reader sees
/// a mixture. Side files stay; new ones replace them.
pub(super) fn sweep(storage: &dyn Storage, places: &Places) -> Result<()> {
    if places.is_file() {
        for path in [places.out().to_owned(), places.manifest()] {
            if storage.len(&path)?.is_some() {
                storage.remove(&path)?;
            }
            storage.sync_dir(&places.folder())?;
        }
        return Ok(());
    }
    sweep_components(storage, places)?;
    let entries = storage.list(places.out())?.unwrap_or_default();
    let matching = |wanted: fn(&str) -> bool| {
        let chosen = entries
            .iter()
            .filter(move |entry| !entry.is_dir && wanted(&entry.name.to_string_lossy()));
        chosen.map(|entry| places.out().join(&entry.name))
    };
    for wanted in [is_weight_index as fn(&str) -> bool, is_weights, |name| {
        name == MANIFEST
    }] {
        for path in matching(wanted) {
            storage.remove(&path)?;
        }
        storage.sync_dir(places.out())?;
    }
    Ok(())
}

/// Removes the weights and indexes in folders below the output that its manifest names.
fn sweep_components(storage: &dyn Storage, places: &Places) -> Result<()> {
    let Ok(Some(manifest)): Result<Option<Manifest>> = Manifest::load(storage, places) else {
        return Ok(());
    };
    let names = manifest
        .indexes()
        .chain(manifest.shards.iter().map(|shard| &shard.name));
    for name in names.filter(|name| name.contains('/')) {
        check_side(places, Path::new(name))?;
        let path = places.finished(name);
        if storage.len(&path)?.is_some() {
            storage.remove(&path)?;
            storage.sync_dir(parent_of(&path))?;
        }
    }
    Ok(())
}

/// The contents of the work folder that stay when it is emptied, beside the lock, which is held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// The journal, and the transforms found for a new output.
    Journal,
    /// The transforms only.
    Transforms,
    /// Nothing.
    Nothing,
}

/// Empties the work folder, the journal last.
pub(super) fn empty_work(storage: &dyn Storage, places: &Places, kept: Kept) -> Result<()> {
    // IMPORTANT: without the marker nobody takes the rest of a new output for a whole one.
    if storage.len(&places.exchange())?.is_some() {
        storage.remove(&places.exchange())?;
        storage.sync_dir(&places.work())?;
    }
    for entry in storage.list(&places.work())?.unwrap_or_default() {
        let path = places.work().join(&entry.name);
        if !entry.is_dir && path != places.lock() && path != places.journal() {
            storage.remove(&path)?;
        }
    }
    remove_below(storage, &places.scratch(), &|_| true)?;
    let transforms = places.staged().alignment();
    remove_below(storage, &places.aside_dir(), &|path| {
        kept == Kept::Nothing || !path.starts_with(&transforms)
    })?;
    if kept != Kept::Journal && storage.len(&places.journal())?.is_some() {
        storage.remove(&places.journal())?;
    }
    storage.sync_dir(&places.work())
}

/// Removes the chosen files below a folder, and every folder that becomes empty.
pub(super) fn remove_below(
    storage: &dyn Storage,
    folder: &Path,
    chosen: &dyn Fn(&Path) -> bool,
) -> Result<()> {
    let Some(entries) = storage.list(folder)? else {
        return Ok(());
    };
    for entry in entries {
        let path = folder.join(entry.name);
        if entry.is_dir {
            remove_below(storage, &path, chosen)?;
        } else if chosen(&path) {
            storage.remove(&path)?;
        }
    }
    storage.remove_dir_if_empty(folder)
}

/// Removes the work folder, the lock file last, while the lock is held.
pub(super) fn remove_work(storage: &dyn Storage, places: &Places) -> Result<()> {
    empty_work(storage, places, Kept::Nothing)?;
    storage.remove(&places.lock())?;
    storage.remove_dir_if_empty(&places.work())?;
    storage.sync_dir(&places.unstaged().folder())
}

/// The extensions of weight files.
const WEIGHT_EXTENSIONS: [&str; 10] = [
    ".safetensors",
    ".safetensors.zst",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
];

/// The names of weights that loaders look for by themselves, as (beginning, end).
const LOADED_NAMES: [(&str, &str); 7] = [
    ("", ".safetensors"),
    ("", ".safetensors.zst"),
    ("pytorch_model", ".bin"),
    ("model", ".bin"),
    ("consolidated", ".pth"),
    ("tf_model", ".h5"),
    ("flax_model", ".msgpack"),
];

/// Side files that only a model has, and the model card, which a person wrote.
const MODEL_FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "model_index.json",
    "modules.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    MANIFEST,
];

fn belongs_to_a_checkpoint(name: &str) -> bool {
    MODEL_FILES.contains(&name)
        || is_weight_index(name)
        || WEIGHT_EXTENSIONS
            .iter()
            .any(|extension| name.ends_with(extension))
}

/// Tells if a file of this name is the index of a sharded checkpoint.
pub(super) fn is_weight_index(name: &str) -> bool {
    name.strip_suffix(".index.json")
        .is_some_and(|stem| WEIGHT_EXTENSIONS.iter().any(|end| stem.ends_with(end)))
}

/// Tells if a loader would take a file of this name for weights.
pub(super) fn is_weights(name: &str) -> bool {
    LOADED_NAMES
        .iter()
        .any(|(begin, end)| name.starts_with(begin) && name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_known_by_their_file_names() {
        for name in [
            "model.safetensors",
            "model-00001-of-00002.safetensors.zst",
            "pytorch_model-00001-of-00002.bin",
        ] {
            assert!(is_weights(name) && belongs_to_a_checkpoint(name), "{name}");
        }
        for name in [
            "training_args.bin",
            "model.gguf",
            "config.json",
            "README.md",
            "thalweg.json",
        ] {
            assert!(!is_weights(name) && belongs_to_a_checkpoint(name), "{name}");
        }
        for name in [
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
        ] {
            assert!(
                is_weight_index(name) && !is_weights(name) && belongs_to_a_checkpoint(name),
                "{name}"
            );
        }
        for name in ["notes.txt", ".gitattributes", "index.json", "merge.yml"] {
            assert!(
                !is_weights(name) && !is_weight_index(name) && !belongs_to_a_checkpoint(name),
                "{name}"
            );
        }
    }
}
