//! Replaces an old output by a new one.
//!
//! Before the exchange the new output is whole and durable in `.thalweg/new`, and the old one is
//! untouched. The file `.thalweg/exchange` marks the point of no return. From then on, after every
//! loss of power, the same steps lead to the same end, since each depends only on the files still
//! in `new` and on the manifests.
//!
//! 1. Remove the old index, durably: no reader takes the folder for a checkpoint.
//! 2. Remove the old weights, and the other files that only the old manifest names.
//! 3. Move in the new files, then the new manifest.
//! 4. Move in the new index, or the only shard: the folder is a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::commit::sync_both;
use super::folder::{Places, is_weight_index, is_weights, remove_work};
use super::manifest::Manifest;
use super::own::check_side;
use super::storage::{Storage, parent_of};
use crate::error::{Error, Kind, Result};

/// Records that the new output is whole, and puts it in its place.
///
/// # Errors
///
/// Fails when a file operation fails; the next run goes on from there.
pub(super) fn exchange(storage: &dyn Storage, places: &Places) -> Result<()> {
    if storage.len(&places.exchange())?.is_none() {
        storage.create(&places.exchange())?.sync_data()?;
        storage.sync_dir(&places.work())?;
    }
    go_on(storage, places).map(drop)
}

/// Completes an exchange that was begun; returns the manifest of the new output.
///
/// # Errors
///
/// As [`exchange`].
pub(super) fn go_on(storage: &dyn Storage, places: &Places) -> Result<Manifest> {
    let last = places.unstaged();
    let exchange = Exchange::new(storage, &last)?;
    exchange.remove_old()?;
    exchange.bring_new()?;
    remove_work(storage, &last)?;
    Ok(exchange.new)
}

/// An exchange of two outputs, as found in the folder; computed anew on every start.
struct Exchange<'a> {
    storage: &'a dyn Storage,
    places: &'a Places,
    staged: Places,
    /// The manifest of the new output, in its old or new place.
    new: Manifest,
    /// The manifest of the old output, while it exists.
    old: Option<Manifest>,
    /// The names of new files that are not in their places yet.
    waiting: BTreeSet<PathBuf>,
    /// The names of all new files.
    all: BTreeSet<PathBuf>,
}

impl<'a> Exchange<'a> {
    fn new(storage: &'a dyn Storage, places: &'a Places) -> Result<Self> {
        let staged = places.staged();
        let mut waiting = BTreeSet::new();
        list_below(storage, &staged.folder(), Path::new(""), &mut waiting)?;
        let load = |places: &Places| match Manifest::load(storage, places) {
            Err(error) if error.kind() == Kind::Damaged => Ok(None),
            loaded => loaded,
        };
        let there = load(places)?;
        let (new, old) = match load(&staged)? {
            // After a loss of power during its move, the manifest may be in both places.
            Some(new) => (Some(new.clone()), there.filter(|old| *old != new)),
            None => (there, None),
        };
        let cause = "the manifest of the new output is neither there nor in its work folder";
        let new = new.ok_or_else(|| {
            Error::new(
                Kind::Resume,
                "cannot resume",
                places.work().display(),
                cause,
            )
            .with_hint("run with --restart --overwrite to begin anew")
        })?;
        let mut all = files_of(&new, places);
        // Transforms of another run that was to replace this output are not moved.
        let transforms = name_in(&places.alignment()).unwrap_or_default();
        if !all.iter().any(|name| name.starts_with(&transforms)) {
            waiting.retain(|name| !name.starts_with(&transforms));
        }
        all.extend(waiting.iter().cloned());
        Ok(Self {
            storage,
            places,
            staged,
            new,
            old,
            waiting,
            all,
        })
    }

    /// Tells if the file at `name` is the old output's: the new output has no such file, or it
    /// still waits.
    fn is_old(&self, name: &Path) -> bool {
        !self.all.contains(name) || self.waiting.contains(name)
    }

    /// Removes the old index, then the old weights, then the other files that only the old output
    /// has.
    fn remove_old(&self) -> Result<()> {
        let (storage, places) = (self.storage, self.places);
        let folder = places.folder();
        let there: Vec<PathBuf> = match places.out().file_name().filter(|_| places.is_file()) {
            Some(name) => vec![PathBuf::from(name)],
            None => {
                let entries = storage.list(&folder)?.unwrap_or_default();
                entries
                    .into_iter()
                    .filter(|entry| !entry.is_dir)
                    .map(|entry| PathBuf::from(entry.name))
                    .collect()
            }
        };
        // A component is loaded from its own folder, so its index is removed first as well.
        let below = self
            .old
            .iter()
            .flat_map(|old| files_of(old, places))
            .filter(|name| name.components().count() > 1);
        let there: Vec<PathBuf> = there.into_iter().chain(below).collect();
        for chosen in [is_weight_index as fn(&str) -> bool, is_weights] {
            let is_chosen = |name: &Path| {
                name.file_name()
                    .is_some_and(|name| chosen(&name.to_string_lossy()))
            };
            let chosen = there
                .iter()
                .filter(|name| is_chosen(name) && self.is_old(name));
            for name in chosen {
                check_side(places, name)?;
                let path = folder.join(name);
                if storage.len(&path)?.is_some() {
                    storage.remove(&path)?;
                    storage.sync_dir(parent_of(&path))?;
                }
            }
            storage.sync_dir(&folder)?;
        }
        let Some(old) = &self.old else { return Ok(()) };
        self.remove_files(&files_of(old, places))?;
        self.remove_transforms(old)
    }

    /// Removes the files among `names` that the new output does not have, and folders that become
    /// empty.
    fn remove_files(&self, names: &BTreeSet<PathBuf>) -> Result<()> {
        let (storage, folder) = (self.storage, self.places.folder());
        let manifest = name_in(&self.places.manifest());
        for name in names
            .iter()
            .filter(|name| !self.all.contains(*name) && Some(*name) != manifest.as_ref())
        {
            check_side(self.places, name)?;
            let path = folder.join(name);
            if storage.len(&path)?.is_some() {
                storage.remove(&path)?;
                storage.sync_dir(parent_of(&path))?;
            }
            for parent in name
                .ancestors()
                .skip(1)
                .filter(|parent| !parent.as_os_str().is_empty())
            {
                if storage.list(&folder.join(parent))?.is_some() {
                    storage.remove_dir_if_empty(&folder.join(parent))?;
                }
            }
            storage.sync_dir(&folder)?;
        }
        Ok(())
    }

    /// If the old output kept transforms, removes also the numbered ones that no manifest names:
    /// that of the model that stayed in place.
    fn remove_transforms(&self, old: &Manifest) -> Result<()> {
        let transforms = self.places.alignment();
        let Some(folder) = name_in(&transforms) else {
            return Ok(());
        };
        if !files_of(old, self.places)
            .iter()
            .any(|name| name.starts_with(&folder))
        {
            return Ok(());
        }
        let entries = self.storage.list(&transforms)?.unwrap_or_default();
        let numbered = entries
            .into_iter()
            .filter(|entry| !entry.is_dir)
            .map(|entry| PathBuf::from(entry.name));
        let is_number = |name: &PathBuf| {
            let stem = name
                .to_str()
                .and_then(|name| name.strip_suffix(".safetensors"));
            stem.is_some_and(|stem| {
                !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_digit())
            })
        };
        self.remove_files(
            &numbered
                .filter(is_number)
                .map(|name| folder.join(name))
                .collect(),
        )
    }

    /// Moves the waiting files to their places; last the file that makes the output a checkpoint.
    fn bring_new(&self) -> Result<()> {
        let last = match &self.new.index {
            Some(index) => Some(PathBuf::from(index)),
            None => self
                .new
                .shards
                .first()
                .and_then(|shard| name_of(self.places, &shard.name)),
        };
        let manifest = name_in(&self.places.manifest());
        let comes = |name: &PathBuf| {
            let is = |wanted: &Option<PathBuf>| Some(name) == wanted.as_ref();
            let is_index = self
                .new
                .component_indexes
                .iter()
                .any(|index| Path::new(index) == name);
            3 * u8::from(is(&last)) + 2 * u8::from(is_index) + u8::from(is(&manifest))
        };
        let mut steps: BTreeMap<u8, Vec<&PathBuf>> = BTreeMap::new();
        self.waiting
            .iter()
            .for_each(|name| steps.entry(comes(name)).or_default().push(name));
        for names in steps.into_values() {
            self.bring(&names)?;
        }
        Ok(())
    }

    fn bring(&self, names: &[&PathBuf]) -> Result<()> {
        let (storage, from, to) = (self.storage, self.staged.folder(), self.places.folder());
        let mut folders = BTreeSet::new();
        for name in names {
            check_side(self.places, name)?;
            storage.create_dir_all(parent_of(&to.join(name)))?;
            storage.rename(&from.join(name), &to.join(name))?;
            folders.insert(name.parent().unwrap_or(Path::new("")));
        }
        folders
            .into_iter()
            .try_for_each(|folder| sync_both(storage, &to.join(folder), &from.join(folder)))
    }
}

/// Lists the files of an output below its folder, without those that belong to others.
fn files_of(manifest: &Manifest, places: &Places) -> BTreeSet<PathBuf> {
    let shards = manifest
        .shards
        .iter()
        .filter_map(|shard| name_of(places, &shard.name));
    let sides = manifest
        .side_files
        .iter()
        .map(|side| PathBuf::from(&side.name));
    let listed = manifest.run.get("alignment").and_then(Value::as_array);
    let transforms = listed
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["file"].as_str());
    // A file named without a folder belongs to the user, wherever it is.
    let transforms = transforms
        .filter(|name| name.contains('/'))
        .map(PathBuf::from);
    let transforms = transforms.filter(|name| {
        name.components()
            .all(|part| matches!(part, std::path::Component::Normal(_)))
    });
    let index = manifest.indexes().map(PathBuf::from);
    shards
        .chain(sides)
        .chain(transforms)
        .chain(index)
        .chain(name_in(&places.manifest()))
        .collect()
}

/// Returns the name of a shard in the output's folder; a single file keeps its own, whatever the
/// manifest calls it.
fn name_of(places: &Places, shard: &str) -> Option<PathBuf> {
    if places.is_file() {
        name_in(&places.finished(shard))
    } else {
        Some(PathBuf::from(shard))
    }
}

/// Returns the name of a file or folder in the output's own folder.
fn name_in(path: &Path) -> Option<PathBuf> {
    path.file_name().map(PathBuf::from)
}

/// Lists the files below a folder, by their names from there; skips work folders of unfinished
/// transforms.
fn list_below(
    storage: &dyn Storage,
    folder: &Path,
    name: &Path,
    found: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    for entry in storage.list(&folder.join(name))?.unwrap_or_default() {
        let below = name.join(&entry.name);
        if !entry.is_dir {
            found.insert(below);
        } else if !entry.name.to_string_lossy().starts_with('.') {
            list_below(storage, folder, &below, found)?;
        }
    }
    Ok(())
}
