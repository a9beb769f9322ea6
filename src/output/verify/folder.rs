//! A finished output by its own description: manifest, indexes, shard names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::index::FolderIndex;
use super::room::{self, Room};
use super::{damaged, named, shard_name};
use crate::error::{Error, Kind, Result};
use crate::output::folder::{MANIFEST, Places, is_weight_index};
use crate::output::manifest::Manifest;
use crate::output::storage::{DiskStorage, Storage, parent_of};

/// The files and records of an output.
pub(super) struct Folder {
    pub(super) dir: PathBuf,
    pub(super) manifest: Option<Manifest>,
    /// The output's own index first, then those of folders below it.
    pub(super) indexes: Vec<FolderIndex>,
    /// The shards, in the manifest's order if there is one.
    pub(super) shards: Vec<String>,
    pub(super) unnamed: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Folder {
    pub(super) fn read(dir: &Path, room: &Room) -> Result<Self> {
        if dir.is_file() {
            let cause = "it is a file, wanted a folder or a single file that ends in .safetensors";
            return Err(Error::new(
                Kind::Usage,
                "cannot verify",
                dir.display(),
                cause,
            ));
        }
        let entries = DiskStorage
            .list(dir)?
            .ok_or_else(|| damaged(dir, "there is no such folder"))?;
        let names: Vec<_> = entries
            .iter()
            .map(|entry| entry.name.to_string_lossy().into_owned())
            .collect();
        let notes = check_over(&Places::new(dir))?;
        let manifest = load_manifest(&Places::new(dir), room)?;
        let indexes = names
            .iter()
            .filter(|name| is_weight_index(name) && name.contains(".safetensors"));
        let index = match (indexes.collect::<Vec<_>>().as_slice(), &manifest) {
            (
                [],
                Some(Manifest {
                    index: Some(name), ..
                }),
            ) => {
                return Err(damaged(&dir.join(name), "the index is missing"));
            }
            ([name], Some(Manifest { index, .. })) if index.as_ref() != Some(*name) => {
                return Err(damaged(
                    &dir.join(name),
                    "the manifest knows of no such index",
                ));
            }
            ([], _) => None,
            ([name], _) => Some(FolderIndex::read(dir, name, room)?),
            (several, _) => {
                return Err(damaged(
                    dir,
                    format!("{} indexes, wanted at most one", several.len()),
                ));
            }
        };
        let mut indexes: Vec<_> = index.into_iter().collect();
        for name in manifest
            .iter()
            .flat_map(|manifest| &manifest.component_indexes)
        {
            if DiskStorage.len(&dir.join(name))?.is_none() {
                return Err(damaged(&dir.join(name), "the index is missing"));
            }
            indexes.push(FolderIndex::read(dir, name, room)?);
        }
        let present: BTreeSet<_> = names.iter().filter_map(|name| shard_name(name)).collect();
        let shards: Vec<String> = match (&manifest, indexes.first()) {
            (Some(manifest), _) => manifest
                .shards
                .iter()
                .map(|shard| shard.name.clone())
                .collect(),
            (None, Some(index)) => index
                .shards()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            (None, None) => present.iter().map(|name| (*name).to_owned()).collect(),
        };
        if manifest.is_none() && indexes.is_empty() && shards.len() != 1 {
            return Err(damaged(
                dir,
                format!(
                    "no index and {} safetensors files, wanted one",
                    shards.len()
                ),
            ));
        }
        if shards.iter().collect::<BTreeSet<_>>().len() != shards.len() {
            return Err(damaged(&dir.join(MANIFEST), "it names a shard twice"));
        }
        let plain: BTreeSet<_> = shards.iter().map(|name| named(name)).collect();
        let unnamed: Vec<_> = present
            .iter()
            .filter(|name| !plain.contains(**name))
            .map(|name| (*name).into())
            .collect();
        match unnamed.first() {
            Some(name) if manifest.is_some() => Err(damaged(
                &dir.join(name),
                "the manifest knows of no such shard",
            )),
            _ => Ok(Self {
                dir: dir.to_owned(),
                manifest,
                indexes,
                shards,
                unnamed,
                notes,
            }),
        }
    }

    /// Describes a single file. It has no index; only its manifest and work folder belong to it.
    pub(super) fn of_file(places: &Places, room: &Room) -> Result<Self> {
        let file = places.out();
        let mut notes = check_over(places)?;
        let manifest = match load_manifest(places, room)? {
            Some(manifest) => Some(manifest),
            None => of_folder(file, room, &mut notes)?,
        };
        let shards = match &manifest {
            Some(manifest) => manifest
                .shards
                .iter()
                .map(|shard| shard.name.clone())
                .collect::<Vec<_>>(),
            None => vec![
                file.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            ],
        };
        if shards.len() != 1 {
            return Err(damaged(
                &places.manifest(),
                format!("{} shards, wanted one", shards.len()),
            ));
        }
        Ok(Self {
            dir: file.to_owned(),
            manifest,
            indexes: vec![],
            shards,
            unnamed: vec![],
            notes,
        })
    }
}

/// Refuses an output whose run is unfinished. An output that a run is to replace is whole until its
/// last moments.
fn check_over(places: &Places) -> Result<Vec<String>> {
    if DiskStorage.list(&places.work())?.is_none() {
        return Ok(vec![]);
    }
    let is_replaced = DiskStorage.list(&places.aside_dir())?.is_some()
        && DiskStorage.len(&places.exchange())?.is_none();
    if is_replaced && DiskStorage.len(&places.manifest())?.is_some() {
        return Ok(vec![
            "a run that is to replace this has begun and is not finished".into(),
        ]);
    }
    Err(
        damaged(places.out(), "the run that writes it is not finished")
            .with_hint("run the same merge again: it goes on where it stopped"),
    )
}

/// Reads a folder's manifest, reduced to the shard `file`; `None` when there is no manifest or it
/// does not name the shard.
fn of_folder(file: &Path, room: &Room, notes: &mut Vec<String>) -> Result<Option<Manifest>> {
    let folder = parent_of(file);
    let Some(manifest) = load_manifest(&Places::new(folder), room)? else {
        return Ok(None);
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Some(shard) = manifest
        .shards
        .iter()
        .find(|shard| named(&shard.name) == named(&name))
        .cloned()
    else {
        return Ok(None);
    };
    notes.push(format!(
        "one shard of {}, by its manifest; the other files there were not looked at",
        folder.display()
    ));
    let tensors = manifest.tensors.of_shard(&shard.name);
    let run = Value::Null;
    Ok(Some(Manifest {
        index: None,
        shards: vec![shard],
        tensors,
        side_files: vec![],
        run,
        ..manifest
    }))
}

/// Reads a manifest, if there is one; refuses one that exceeds the memory.
fn load_manifest(places: &Places, room: &Room) -> Result<Option<Manifest>> {
    room.admit(&places.manifest(), &room::MANIFEST)?;
    Manifest::load(&DiskStorage, places)
}
