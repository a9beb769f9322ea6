//! The manifest: the description of a finished output, with the expected hash of each block.
//!
//! The same run makes the same bytes, so the manifest has no time, host or thread count.
//!
//! Every byte of the output's weights is hashed once, as part of its tensor:
//! [`ManifestTensor::blake3`] is what `b3sum` prints for those bytes. A shard's own plain hash
//! cannot be derived from these, since BLAKE3 depends on a chunk's place in the file; it would take
//! a second hash of every byte. A shard therefore has the hash of its parts' hashes,
//! [`ManifestShard::digest_of_hashes`], which is just as binding.
//!
//! Versions of the format: version 1 had neither this digest nor a checksum of the manifest itself;
//! it is still read.

use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checksum;
use super::folder::Places;
use super::listed::{Found, Listed, ManifestTensor, Note, Tensors};
use super::own_checksum::{Sealed, Sealing, Text};
use super::sides::ManifestSide;
use super::storage::{Storage, StorageFile};
use crate::error::{Error, Kind, Result};
use crate::journal::Value as BlockValue;
use crate::plan::layout::Layout;

/// The version of the manifest's format.
const FORMAT: u32 = 2;

/// The older version, without a checksum of itself. No single flipped bit turns the other version
/// into this.
const UNSEALED: u32 = 1;

/// The bytes that are read or written at a time.
const PIECE_BYTES: usize = 64 << 10;

/// The contents of `thalweg.json`; `T` is the type of its tensor list, which is read and written
/// one by one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest<T = Tensors> {
    /// The version of this format.
    pub format: u32,
    /// The run's identity: recipe, inputs, format.
    pub identity: Value,
    /// The index's file name; `None` when there is one shard.
    pub index: Option<String>,
    /// The indexes of components in folders of their own, below the output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub component_indexes: Vec<String>,
    /// The shards, in order.
    pub shards: Vec<ManifestShard>,
    /// The tensors, in the order they were planned.
    pub tensors: T,
    /// The files beside the weights, by name. Empty in an older manifest, which does not record
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub side_files: Vec<ManifestSide>,
    /// Further records of the run.
    pub run: Value,
}

/// One file of weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestShard {
    /// Its file name.
    pub name: String,
    /// Its size in bytes, uncompressed.
    pub size: u64,
    /// Its size on the disk in bytes, if it is compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed_size: Option<u64>,
    /// The BLAKE3 hash, in hexadecimal, of all bytes before its data.
    pub header_blake3: String,
    /// The BLAKE3 hash, in hexadecimal, of the header's hash (32 bytes) followed by the hash of
    /// each tensor in file order. This is not what `b3sum` prints for the file. `None` in an older
    /// manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_of_hashes: Option<String>,
}

impl Manifest {
    /// Describes a written output.
    pub(super) fn describe(
        identity: Value,
        found: &Found<'_>,
        packed: &[Option<u64>],
        run: Value,
    ) -> Self {
        let layout = found.layout;
        let tensors = found.tensors();
        let root = |tensor: &usize| tensors[*tensor].blake3.expect("it was just computed");
        let shards = layout.shards().iter().zip(packed).map(|(shard, packed)| {
            let header = *blake3::hash(&shard.header).as_bytes();
            let of_tensors = shard.tensors.iter().map(root);
            ManifestShard {
                name: shard.name.clone(),
                size: shard.len,
                compressed_size: *packed,
                header_blake3: hex(&header),
                digest_of_hashes: Some(hex(&checksum::digest_of_hashes(&header, of_tensors))),
            }
        });
        let shards = shards.collect();
        let (component_indexes, mut own): (Vec<_>, Vec<_>) = layout
            .index_names()
            .into_iter()
            .partition(|name| name.contains('/'));
        let index = own.pop();
        Self {
            format: FORMAT,
            identity,
            index,
            component_indexes,
            shards,
            tensors,
            side_files: vec![],
            run,
        }
    }

    /// Writes the manifest to a file, with the note about each tensor.
    pub(super) fn write(&self, note: &Note<'_>, file: &dyn StorageFile) -> Result<()> {
        let listed = Manifest {
            format: self.format,
            identity: self.identity.clone(),
            index: self.index.clone(),
            component_indexes: self.component_indexes.clone(),
            shards: self.shards.clone(),
            tensors: Listed {
                note,
                tensors: &self.tensors,
            },
            side_files: self.side_files.clone(),
            run: self.run.clone(),
        };
        let mut text = Text::new(file);
        let mut sealing = Sealing::new(&mut text);
        let mut pieces = BufWriter::with_capacity(PIECE_BYTES, &mut sealing);
        let written =
            serde_json::to_writer_pretty(&mut pieces, &listed).map_err(std::io::Error::from);
        let flushed = written.and_then(|()| pieces.flush());
        drop(pieces);
        let ended = flushed.and_then(|()| sealing.finish());
        text.ended(ended)
            .map_err(|error| Error::new(Kind::Io, "cannot write", "manifest", error))?
    }
}

impl<T> Manifest<T> {
    /// Lists the names of all indexes.
    pub(super) fn indexes(&self) -> impl Iterator<Item = &String> {
        self.component_indexes.iter().chain(&self.index)
    }
}

impl<T: DeserializeOwned> Manifest<T> {
    /// Reads a folder's manifest; `None` without one.
    ///
    /// # Errors
    ///
    /// [`Kind::Damaged`] when the file is not a manifest, is of another version, or fails its own
    /// checksum.
    pub(super) fn load(storage: &dyn Storage, places: &Places) -> Result<Option<Self>> {
        let path = places.manifest();
        if storage.len(&path)?.is_none() {
            return Ok(None);
        }
        let file = storage.open_read(&path)?;
        let mut text = Sealed::new(file.as_ref())?;
        let refuse = |cause: String| {
            Error::new(Kind::Damaged, "cannot read manifest", path.display(), cause)
        };
        let read = serde_json::from_reader(BufReader::with_capacity(PIECE_BYTES, &mut text));
        let manifest: Self = read.map_err(|error| refuse(error.to_string()))?;
        match manifest.format {
            UNSEALED => {}
            FORMAT => {
                if let Some(cause) = text.wrong() {
                    return Err(refuse(cause));
                }
            }
            other => {
                return Err(refuse(format!(
                    "format version {other}, this program knows {UNSEALED} and {FORMAT}"
                )));
            }
        }
        let mut names = manifest
            .shards
            .iter()
            .map(|shard| &shard.name)
            .chain(manifest.indexes());
        if let Some(name) = names.find(|name| !is_below(name)) {
            return Err(refuse(format!("{name:?} is not a plain file name")));
        }
        if let Some(side) = manifest.side_files.iter().find(|side| !side.is_plain()) {
            return Err(refuse(format!("{:?} leads out of the folder", side.name)));
        }
        drop(names);
        Ok(Some(manifest))
    }
}

impl Manifest {
    /// Reads the manifest of a folder, and lists the files it names that are missing or of another
    /// size: none when the output is finished. `None` when the manifest is missing or damaged.
    pub(super) fn load_with_faults(
        storage: &dyn Storage,
        places: &Places,
    ) -> Result<Option<(Self, Vec<String>)>> {
        let manifest = match Self::load(storage, places) {
            Err(error) if error.kind() == Kind::Damaged => return Ok(None),
            loaded => loaded?,
        };
        let Some(manifest) = manifest else {
            return Ok(None);
        };
        let mut faults = vec![];
        for shard in &manifest.shards {
            let wanted = shard.stored_bytes();
            match storage.len(&places.finished(&shard.name))? {
                None => faults.push(format!("{} is missing", shard.name)),
                Some(found) if found != wanted => {
                    faults.push(format!("{} has {found} bytes of {wanted}", shard.name))
                }
                Some(_) => {}
            }
        }
        for index in manifest.indexes() {
            if storage.len(&places.finished(index))?.is_none() {
                faults.push(format!("{index} is missing"));
            }
        }
        Ok(Some((manifest, faults)))
    }

    /// Tells if this describes an output of that layout.
    pub(super) fn matches(&self, layout: &Layout) -> bool {
        let shards_match = self.shards.len() == layout.shards().len()
            && layout
                .shards()
                .iter()
                .zip(&self.shards)
                .all(|(shard, stored)| {
                    let header = blake3::hash(&shard.header).to_hex();
                    shard.name == stored.name
                        && shard.len == stored.size
                        && header.as_str() == stored.header_blake3
                });
        shards_match
            && self.tensors.len() == layout.tensors().len()
            && layout
                .tensors()
                .iter()
                .zip(self.tensors.iter())
                .all(|(slot, stored)| {
                    (&slot.name, slot.offset, slot.len)
                        == (&stored.name, stored.offset, stored.length)
                })
    }
}

impl ManifestShard {
    /// Tells if its digest fits these hashes of the header and of the tensors, in file order; true
    /// when it has no digest.
    pub(super) fn binds(&self, header: &BlockValue, tensors: &[&ManifestTensor]) -> bool {
        let Some(digest) = &self.digest_of_hashes else {
            return true;
        };
        let roots: Option<Vec<_>> = tensors.iter().map(|tensor| tensor.blake3).collect();
        roots.is_some_and(|roots| {
            *digest == hex(&checksum::digest_of_hashes(header, roots.into_iter()))
        })
    }

    /// Returns the size of its file, in bytes.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.compressed_size.unwrap_or(self.size)
    }
}

/// Reads the manifest of the finished output `dir`, a folder or a single file; `None` without one.
///
/// # Errors
///
/// [`Kind::Damaged`] when the file is not a manifest, is of another version, or fails its own
/// checksum.
pub fn read_manifest<T: DeserializeOwned>(
    storage: &dyn Storage,
    dir: &Path,
) -> Result<Option<Manifest<T>>> {
    Manifest::load(storage, &Places::new(dir))
}

/// Hashes a whole file.
pub(super) fn hash_of(storage: &dyn Storage, path: &Path) -> Result<blake3::Hash> {
    let file = storage.open_read(path)?;
    let mut hasher = blake3::Hasher::new();
    let copied = std::io::copy(&mut Sealed::new(file.as_ref())?, &mut hasher);
    copied.map_err(|error| Error::io("cannot read", path, error))?;
    Ok(hasher.finalize())
}

/// Tells if a name is that of a file in the output's folder or below it, without hidden parts.
pub(super) fn is_below(name: &str) -> bool {
    let plain =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0']);
    name.split('/').all(plain)
}

/// Reads a small file whole.
pub(super) fn read_capped(
    storage: &dyn Storage,
    path: &std::path::Path,
    most: u64,
) -> Result<Vec<u8>> {
    let file = storage.open_read(path)?;
    let len = file.len()?;
    let size = usize::try_from(len)
        .ok()
        .filter(|_| len <= most)
        .ok_or_else(|| {
            Error::new(
                Kind::Damaged,
                "cannot read",
                path.display(),
                format!("{len} bytes, at most {most}"),
            )
        })?;
    let mut bytes = vec![0; size];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

pub(super) fn hex(value: &BlockValue) -> String {
    blake3::Hash::from_bytes(*value).to_hex().to_string()
}
