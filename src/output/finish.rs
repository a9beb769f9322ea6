//! Ends a run: writes side files, manifest and index, and removes the work folder.

use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::commit::{pack_shard, sync_both};
use super::exchange::exchange;
use super::folder::{MANIFEST, Places, is_weight_index, is_weights, remove_work};
use super::identity::{normalised, sealed};
use super::listed::Found;
use super::manifest::Manifest;
use super::own::check_side;
use super::own_checksum::Text;
use super::sides::ManifestSide;
use super::storage::{Storage, StorageFile, parent_of};
use super::write::Output;
use crate::error::{Error, Kind, Result};

/// A file beside the weights, such as a config or a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    name: PathBuf,
    contents: Contents,
}

/// The contents of a side file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A copy of the file at this path.
    CopyOf(PathBuf),
}

impl SideFile {
    /// Creates a side file of that name, relative to the output folder.
    ///
    /// # Errors
    ///
    /// [`Kind::Input`] when the name leads out of the folder, is hidden, or is reserved for weights
    /// or the manifest.
    pub fn new(name: impl Into<PathBuf>, contents: Contents) -> Result<Self> {
        let name = name.into();
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(part) if !part.as_encoded_bytes().starts_with(b"."));
        let text = name.to_string_lossy();
        let is_taken = text == MANIFEST || is_weights(&text) || is_weight_index(&text);
        if is_taken || name.file_name().is_none() || !name.components().all(is_plain) {
            return Err(Error::new(
                Kind::Input,
                "cannot write side file",
                text,
                "not a name that a side file can have",
            ));
        }
        Ok(Self { name, contents })
    }

    /// Returns its name, relative to the output folder.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Returns its contents.
    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }
}

impl Output {
    /// Ends an output with every tensor whole: after this the folder is a checkpoint.
    ///
    /// Commits the rest, writes the side files, the manifest (with `run` in it) and the index, each
    /// of them whole or not at all, and removes the work folder.
    ///
    /// # Errors
    ///
    /// Fails when bytes of a tensor are missing, or when a file cannot be written; the run can then
    /// be resumed.
    pub fn finish(mut self, side_files: &[SideFile], run: &Value) -> Result<Manifest> {
        self.open_only_shards()?;
        self.commit()?;
        self.finish_committed(side_files, run)
            .map_err(Error::resumable)
    }

    fn put(&self, path: &Path, contents: &Contents) -> Result<()> {
        put(self.storage.as_ref(), &self.places, path, contents)
    }

    fn finish_committed(self, side_files: &[SideFile], run: &Value) -> Result<Manifest> {
        self.check_whole()?;
        let mut sides = Vec::with_capacity(side_files.len());
        for file in side_files {
            let path = self.places.side(&file.name);
            self.put(&path, &file.contents)?;
            sides.push(ManifestSide::of(&file.name, &path)?);
        }
        let packed = self.packed_sizes()?;
        let manifest = self.put_manifest(&packed, sides, normalised(run)?)?;
        let storage = self.storage.as_ref();
        // IMPORTANT: everything else is durable before the names appear that make the folders
        // checkpoints; the output's own name comes last.
        for part in 0..self.layout.parts().len() {
            self.put_index(part)?;
            let shards = self.layout.shards().iter().enumerate();
            if let Some((shard, _)) = shards
                .into_iter()
                .find(|(_, shard)| shard.part == part && shard.is_only)
            {
                self.name_only_shard(shard, packed[shard].is_some())?;
            }
        }
        if self.places.is_staged() {
            exchange(storage, &self.places)?
        } else {
            remove_work(storage, &self.places)?
        }
        Ok(manifest)
    }

    /// Gives the only shard of a part its final name, if it does not have it yet.
    fn name_only_shard(&self, shard: usize, is_packed: bool) -> Result<()> {
        if self.is_sealed(shard) {
            return Ok(());
        }
        let (storage, places) = (self.storage.as_ref(), &self.places);
        let name = &self.layout.shards()[shard].name;
        let whole = if is_packed {
            places.packed(name)
        } else {
            places.part(name)
        };
        let to = places.finished(name);
        storage.create_dir_all(parent_of(&to))?;
        storage.rename(&whole, &to)?;
        sync_both(storage, parent_of(&to), &places.work())
    }

    /// Returns the size on the disk of each compressed shard, in bytes. Compresses the only shard
    /// of a part.
    fn packed_sizes(&self) -> Result<Vec<Option<u64>>> {
        let (storage, places) = (self.storage.as_ref(), &self.places);
        let size = |shard: usize| match self.layout.zstd() {
            None => Ok(None),
            Some(_) if self.is_sealed(shard) => {
                storage.len(&places.finished(&self.layout.shards()[shard].name))
            }
            Some(level) => {
                pack_shard(storage, places, &self.layout, shard, level, &self.packers).map(Some)
            }
        };
        (0..self.layout.shards().len()).map(size).collect()
    }

    /// Writes the manifest tensor by tensor, each with its note from the journal.
    fn put_manifest(
        &self,
        packed: &[Option<u64>],
        sides: Vec<ManifestSide>,
        run: Value,
    ) -> Result<Manifest> {
        let values = |tensor: usize| self.tensors[tensor].hasher.values();
        let note = |tensor: usize| self.note(tensor);
        let found = Found {
            layout: &self.layout,
            values: &values,
        };
        let manifest = Manifest::describe(sealed(&self.identity), &found, packed, run);
        let manifest = Manifest {
            side_files: sides,
            ..manifest
        };
        put_made(
            self.storage.as_ref(),
            &self.places,
            &self.places.manifest(),
            &mut |file| manifest.write(&note, file),
        )?;
        Ok(manifest)
    }

    /// Writes the index of a part, if it needs one.
    fn put_index(&self, part: usize) -> Result<()> {
        let Some(name) = self.layout.index_name(part) else {
            return Ok(());
        };
        let path = self.places.finished(&name);
        put_made(self.storage.as_ref(), &self.places, &path, &mut |file| {
            let mut text = Text::new(file);
            let written = self
                .layout
                .write_index(part, &mut text)
                .and_then(|()| text.flush());
            text.ended(written)
                .map_err(|error| Error::io("cannot write", &path, error))?
        })
    }

    fn check_whole(&self) -> Result<()> {
        for (slot, state) in self.layout.tensors().iter().zip(&self.tensors) {
            if !state.hasher.is_whole() {
                let cause = format!(
                    "{} bytes of it were written, wanted {}",
                    state.hasher.hashed(),
                    slot.len
                );
                return Err(Error::new(
                    Kind::Io,
                    "cannot finish tensor",
                    &slot.name,
                    cause,
                ));
            }
        }
        Ok(())
    }
}

/// Puts a file under its name, whole and durable or not at all.
pub(super) fn put(
    storage: &dyn Storage,
    places: &Places,
    path: &Path,
    contents: &Contents,
) -> Result<()> {
    match contents {
        Contents::Bytes(bytes) => {
            put_made(storage, places, path, &mut |file| file.write_at(bytes, 0))
        }
        Contents::CopyOf(source) => put_from(storage, places, path, &mut |aside| {
            storage.copy(source, aside)
        }),
    }
}

/// As [`put`], with contents that `write` writes.
pub(super) fn put_made(
    storage: &dyn Storage,
    places: &Places,
    path: &Path,
    write: &mut dyn FnMut(&dyn StorageFile) -> Result<()>,
) -> Result<()> {
    put_from(storage, places, path, &mut |aside| {
        let file = storage.create(aside)?;
        write(file.as_ref())?;
        Ok(file)
    })
}

fn put_from(
    storage: &dyn Storage,
    places: &Places,
    path: &Path,
    make: &mut dyn FnMut(&Path) -> Result<Arc<dyn StorageFile>>,
) -> Result<()> {
    let aside = places.aside();
    if storage.len(&aside)?.is_some() {
        storage.remove(&aside)?;
    }
    check_side(places, path.strip_prefix(places.folder()).unwrap_or(path))?;
    let folder = parent_of(path);
    storage.create_dir_all(folder)?;
    make(&aside)?.sync_data()?;
    storage.rename(&aside, path)?;
    sync_both(storage, folder, &places.work())
}
