//! The manifest: what a finished output is and what each block of it must hash to.
//!
//! The same run makes the same bytes: no time, no host, no thread count goes in here.
//!
//! Every byte of the output's weights is hashed once, as part of its tensor: [`ManifestTensor::blake3`] is what `b3sum`
//! prints of those bytes. A shard's own plain hash cannot be had from that, since the place of a chunk in the file is
//! part of BLAKE3, so it would take a second hash of everything. A shard therefore has the hash of its parts' hashes,
//! [`ManifestShard::digest_of_hashes`], which is just as binding.
//!
//! Versions of the format: 1 had neither that nor a checksum of the manifest itself, and is still read.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checksum;
use super::folder::Places;
use super::own_checksum::{with_own_checksum, wrong_own_checksum};
use super::sides::ManifestSide;
use super::storage::Storage;
use crate::error::{Error, Kind, Result};
use crate::journal::Value as BlockValue;
use crate::plan::layout::Layout;

/// The version of the manifest's format.
const FORMAT: u32 = 2;

/// The older version, without a checksum of itself. No single flipped bit makes this of the other.
const UNSEALED: u32 = 1;

/// The largest manifest that is read.
const MANIFEST_BYTES: u64 = 256 << 20;

/// What `thalweg.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format.
    pub format: u32,
    /// What the run was asked to do.
    pub identity: Value,
    /// The index's file name; none where there is one shard.
    pub index: Option<String>,
    /// The indexes of components in folders of their own, below the output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub component_indexes: Vec<String>,
    /// The shards, in order.
    pub shards: Vec<ManifestShard>,
    /// The tensors, in the order they were planned.
    pub tensors: Vec<ManifestTensor>,
    /// The files beside the weights, by name. Empty in an older manifest, which did not record them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub side_files: Vec<ManifestSide>,
    /// What else the run wants remembered.
    pub run: Value,
}

/// One file of weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestShard {
    /// Its file name.
    pub name: String,
    /// Its size in bytes, uncompressed.
    pub size: u64,
    /// Its size on the disk where it is compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed_size: Option<u64>,
    /// The BLAKE3 hash, in hexadecimal, of all bytes before its data.
    pub header_blake3: String,
    /// The BLAKE3 hash, in hexadecimal, of the 32 bytes of its header's hash followed by those of each of its tensors'
    /// in file order. This is not what `b3sum` prints of the file. None in an older manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_of_hashes: Option<String>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManifestTensor {
    /// Its name.
    pub name: String,
    /// The file name of the shard that holds it.
    pub shard: String,
    /// Absolute byte offset in that file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// The BLAKE3 hash of its bytes, in hexadecimal.
    pub blake3: String,
    /// The values of its check blocks, in hexadecimal, where it has more than one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<String>,
    /// What the run found about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Value>,
}

impl Manifest {
    /// Describes an output that is written.
    pub(super) fn describe<'a>(
        layout: &Layout,
        identity: Value,
        found: impl Iterator<Item = (&'a [BlockValue], Option<&'a Value>)>,
        packed: &[Option<u64>],
        run: Value,
    ) -> Self {
        let mut roots = vec![];
        let tensors = layout.tensors().iter().zip(found).map(|(slot, (values, note))| {
            let root = checksum::root(slot.len, values);
            roots.push(root);
            ManifestTensor {
                name: slot.name.clone(),
                shard: layout.shards()[slot.shard].name.clone(),
                offset: slot.offset,
                length: slot.len,
                blake3: hex(&root),
                blocks: if values.len() > 1 { values.iter().map(hex).collect() } else { vec![] },
                note: note.cloned(),
            }
        });
        let tensors = tensors.collect();
        let shards = layout.shards().iter().zip(packed).map(|(shard, packed)| {
            let header = *blake3::hash(&shard.header).as_bytes();
            let of_tensors = shard.tensors.iter().map(|tensor| roots[*tensor]);
            ManifestShard {
                name: shard.name.clone(),
                size: shard.len,
                compressed_size: *packed,
                header_blake3: hex(&header),
                digest_of_hashes: Some(hex(&checksum::digest_of_hashes(&header, of_tensors))),
            }
        });
        let names = layout.indexes().into_iter().map(|(name, _)| name);
        let (component_indexes, mut own): (Vec<_>, Vec<_>) = names.partition(|name| name.contains('/'));
        let index = own.pop();
        Self {
            format: FORMAT,
            identity,
            index,
            component_indexes,
            shards: shards.collect(),
            tensors,
            side_files: vec![],
            run,
        }
    }

    /// The file's contents.
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_string_pretty(self);
        let json = json.map_err(|error| Error::new(Kind::Io, "cannot write", "manifest", error))?;
        Ok(with_own_checksum(&json))
    }

    /// Reads a folder's manifest; none when there is none.
    ///
    /// # Errors
    ///
    /// [`Kind::Damaged`] when it is no manifest, of another version, or not what its own checksum says.
    pub(super) fn load(storage: &dyn Storage, places: &Places) -> Result<Option<Self>> {
        let path = places.manifest();
        if storage.len(&path)?.is_none() {
            return Ok(None);
        }
        let bytes = read_capped(storage, &path, MANIFEST_BYTES)?;
        let refuse = |cause: String| Error::new(Kind::Damaged, "cannot read manifest", path.display(), cause);
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        match manifest.format {
            UNSEALED => {}
            FORMAT => {
                if let Some(cause) = wrong_own_checksum(&bytes) {
                    return Err(refuse(cause));
                }
            }
            other => return Err(refuse(format!("format version {other}, this program knows {UNSEALED} and {FORMAT}"))),
        }
        let mut names = manifest.shards.iter().map(|shard| &shard.name).chain(manifest.indexes());
        if let Some(name) = names.find(|name| !is_below(name)) {
            return Err(refuse(format!("{name:?} is not a plain file name")));
        }
        if let Some(side) = manifest.side_files.iter().find(|side| !side.is_plain()) {
            return Err(refuse(format!("{:?} leads out of the folder", side.name)));
        }
        drop(names);
        Ok(Some(manifest))
    }

    /// Reads the manifest of a folder, and says what is missing of what it names or has another size: nothing when the
    /// output is finished. None without a manifest, or with one that is damaged.
    pub(super) fn load_with_faults(storage: &dyn Storage, places: &Places) -> Result<Option<(Self, Vec<String>)>> {
        let manifest = match Self::load(storage, places) {
            Err(error) if error.kind() == Kind::Damaged => return Ok(None),
            loaded => loaded?,
        };
        let Some(manifest) = manifest else { return Ok(None) };
        let mut faults = vec![];
        for shard in &manifest.shards {
            let wanted = shard.stored_bytes();
            match storage.len(&places.finished(&shard.name))? {
                None => faults.push(format!("{} is missing", shard.name)),
                Some(found) if found != wanted => faults.push(format!("{} has {found} bytes of {wanted}", shard.name)),
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

    /// The names of all indexes.
    pub(super) fn indexes(&self) -> impl Iterator<Item = &String> {
        self.component_indexes.iter().chain(&self.index)
    }

    /// Whether this describes an output of that layout.
    pub(super) fn matches(&self, layout: &Layout) -> bool {
        let shards_match = self.shards.len() == layout.shards().len()
            && layout.shards().iter().zip(&self.shards).all(|(shard, stored)| {
                let header = blake3::hash(&shard.header).to_hex();
                shard.name == stored.name && shard.len == stored.size && header.as_str() == stored.header_blake3
            });
        shards_match
            && self.tensors.len() == layout.tensors().len()
            && layout.tensors().iter().zip(&self.tensors).all(|(slot, stored)| {
                (&slot.name, slot.offset, slot.len) == (&stored.name, stored.offset, stored.length)
            })
    }
}

impl ManifestShard {
    /// Whether its digest is that of a header and of tensors, in file order, with these hashes; so it is where there is
    /// none.
    pub(super) fn binds(&self, header: &BlockValue, tensors: &[&ManifestTensor]) -> bool {
        let Some(digest) = &self.digest_of_hashes else { return true };
        let roots: Option<Vec<_>> = tensors.iter().map(|tensor| tensor.root()).collect();
        roots.is_some_and(|roots| *digest == hex(&checksum::digest_of_hashes(header, roots.into_iter())))
    }

    /// The size of its file.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.compressed_size.unwrap_or(self.size)
    }
}

impl ManifestTensor {
    /// The hash of its bytes; none when the text does not give one.
    pub(super) fn root(&self) -> Option<BlockValue> {
        unhex(&self.blake3)
    }

    /// The values of the tensor's check blocks, one for each; none when the text does not give them.
    pub(super) fn values(&self) -> Option<Vec<BlockValue>> {
        let blocks = checksum::block_count(self.length);
        let values: Vec<BlockValue> = match blocks {
            0 => vec![],
            1 => vec![unhex(&self.blake3)?],
            _ => self.blocks.iter().map(|text| unhex(text)).collect::<Option<_>>()?,
        };
        let fits = u64::try_from(values.len()) == Ok(blocks) && (blocks > 1 || self.blocks.is_empty());
        (fits && self.root()? == checksum::root(self.length, &values)).then_some(values)
    }
}

/// Whether a name is that of a file in the output's folder or in one below it, none of them hidden.
pub(super) fn is_below(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0']);
    name.split('/').all(plain)
}

/// Reads a small file whole.
pub(super) fn read_capped(storage: &dyn Storage, path: &std::path::Path, most: u64) -> Result<Vec<u8>> {
    let file = storage.open_read(path)?;
    let len = file.len()?;
    let size = usize::try_from(len).ok().filter(|_| len <= most).ok_or_else(|| {
        Error::new(Kind::Damaged, "cannot read", path.display(), format!("{len} bytes, at most {most}"))
    })?;
    let mut bytes = vec![0; size];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn hex(value: &BlockValue) -> String {
    blake3::Hash::from_bytes(*value).to_hex().to_string()
}

fn unhex(text: &str) -> Option<BlockValue> {
    blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes())
}
