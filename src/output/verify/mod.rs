//! Reads a finished folder back: compares index with shards, headers with manifest, every block
//! with its checksum.

mod folder;
mod index;
mod room;
mod stored;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checksum::{block_range, hash_block};
use super::folder::{MANIFEST, Places};
use super::listed::ManifestTensor;
use super::packed::PackedShard;
use super::shard_header::Header;
use super::storage::{DiskStorage, Storage, StorageFile};
use super::{Progress, beside, sides};
use crate::error::{Error, Kind, Result};
use crate::journal::Value as BlockValue;
use folder::Folder;
use index::Listing;
use room::Room;
use stored::Stored;

/// The result of a successful check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The number of shards.
    pub shards: usize,
    /// The number of tensors in them.
    pub tensors: usize,
    /// Bytes of tensor data.
    pub data_bytes: u64,
    /// True if every byte was compared with a checksum. False for a folder without manifest: only
    /// its structure can be checked.
    pub has_checksums: bool,
    /// Weight files that neither index nor manifest names. Empty with a manifest: then such files
    /// are damage.
    pub unnamed: Vec<String>,
    /// The number of files beside the weights that were compared with their records.
    pub side_files: usize,
    /// Remarks for the user that are not damage: files for people that were edited since, a run
    /// that has begun to replace this output.
    pub notes: Vec<String>,
}

/// A shard's bytes in the safetensors format, from any source.
pub trait ShardBytes {
    /// Returns the size in bytes.
    fn size(&self) -> u64;
    /// Fills all of `buffer` from `offset` in the shard.
    ///
    /// # Errors
    ///
    /// Fails when the bytes cannot be read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
    /// Returns the memory that reading takes beside the buffer, in bytes.
    fn working_bytes(&self) -> u64 {
        0
    }
}

/// Opens the shard at a path; `None` when it is missing.
pub type OpenShard<'a> = dyn Fn(&Path) -> Result<Option<Box<dyn ShardBytes>>> + 'a;

/// An uncompressed shard.
pub(super) struct PlainShard {
    file: Arc<dyn StorageFile>,
    size: u64,
}

impl PlainShard {
    pub(super) fn new(file: Arc<dyn StorageFile>) -> Result<Self> {
        Ok(Self {
            size: file.len()?,
            file,
        })
    }
}

impl ShardBytes for PlainShard {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buffer, offset)
    }
}

/// Opens a shard, compressed or not; `None` when there is none of that name.
pub(super) fn open_stored(path: &Path) -> Result<Option<Box<dyn ShardBytes>>> {
    if DiskStorage.len(path)?.is_some() {
        open_shard(path)
    } else {
        Ok(None)
    }
}

/// As `open_stored`; if the shard is missing, opens one that was compressed since.
fn open_shard(path: &Path) -> Result<Option<Box<dyn ShardBytes>>> {
    let packed = |path: &Path| match PackedShard::open(path) {
        Err(error) if error.kind() == Kind::Input => Err(error.with_kind(Kind::Damaged)),
        opened => opened.map(|shard| Some(Box::new(shard) as Box<dyn ShardBytes>)),
    };
    if DiskStorage.len(path)?.is_some() {
        if path.extension().is_some_and(|end| end == "zst") {
            return packed(path);
        }
        return Ok(Some(Box::new(PlainShard::new(
            DiskStorage.open_read(path)?,
        )?)));
    }
    let mut compressed = path.as_os_str().to_owned();
    compressed.push(".zst");
    if DiskStorage.len(Path::new(&compressed))?.is_some() {
        packed(Path::new(&compressed))
    } else {
        Ok(None)
    }
}

/// Reads back a finished output, a folder or a single file, and compares it with its manifest.
///
/// # Errors
///
/// [`Kind::Damaged`] with shard, tensor and block when bytes were changed, [`Kind::Usage`] for a
/// file that is not named like weights.
///
/// # Examples
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = models()?;
/// # let text = recipe(folder.path());
/// # use thalweg::{Options, Plan, Recipe, Target, merge};
/// # let out = folder.path().join("merged");
/// # merge(Plan::of(&Recipe::parse(&text, "recipe.yml")?)?, Target::new(&out), Options::default())?;
/// let verified = thalweg::verify(&out, &mut |_checked, _total| Ok(()))?;
/// assert!(verified.has_checksums);
/// assert_eq!(verified.tensors, 2);
/// # Ok(())
/// # }
/// ```
pub fn verify(dir: &Path, progress: &mut Progress<'_>) -> Result<Verified> {
    verify_within(dir, u64::MAX, progress)
}

/// As [`verify()`], in at most `memory` bytes of resident memory.
///
/// # Errors
///
/// As [`verify()`], and [`Kind::Budget`] with the smallest sufficient memory when `memory` is too
/// small.
///
/// # Examples
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = models()?;
/// # let text = recipe(folder.path());
/// # use thalweg::{Options, Plan, Recipe, Target, merge};
/// # let out = folder.path().join("merged");
/// # merge(Plan::of(&Recipe::parse(&text, "recipe.yml")?)?, Target::new(&out), Options::default())?;
/// let refused = thalweg::verify_within(&out, 1 << 20, &mut |_, _| Ok(())).expect_err("too little");
/// assert_eq!(refused.kind(), thalweg::Kind::Budget);
/// thalweg::verify_within(&out, 64 << 20, &mut |_, _| Ok(()))?;
/// # Ok(())
/// # }
/// ```
pub fn verify_within(dir: &Path, memory: u64, progress: &mut Progress<'_>) -> Result<Verified> {
    let open = |path: &Path| open_shard(path);
    Check {
        places: Places::new(dir),
        open: &open,
        room: Room::new(memory),
    }
    .run(dir, progress)
}

/// As [`verify()`], with shards read by `open`.
///
/// # Errors
///
/// As [`verify()`], and the failures of `open`.
pub fn verify_with(
    dir: &Path,
    open: &OpenShard<'_>,
    progress: &mut Progress<'_>,
) -> Result<Verified> {
    Check {
        places: Places::new(dir),
        open,
        room: Room::new(u64::MAX),
    }
    .run(dir, progress)
}

/// A check of one output, shard by shard: only one is open at a time, with its header in memory.
struct Check<'a> {
    places: Places,
    open: &'a OpenShard<'a>,
    room: Room,
}

impl Check<'_> {
    fn run(&self, dir: &Path, progress: &mut Progress<'_>) -> Result<Verified> {
        let folder = if self.places.is_file() {
            Folder::of_file(&self.places, &self.room)?
        } else {
            Folder::read(dir, &self.room)?
        };
        let stored = folder.manifest.as_ref().map(Stored::of).transpose()?;
        let headers = self.check_headers(&folder, stored.as_ref())?;
        let mut notes = folder.notes;
        if let (Some(manifest), Some(stored)) = (&folder.manifest, &stored) {
            beside::check(manifest, &self.places)?;
            notes.extend(sides::check(manifest, &self.places)?);
            let mut checked = 0;
            for (number, hash) in headers.hashes.iter().enumerate() {
                self.check_data(stored, number, hash, &mut |count| {
                    checked += count;
                    progress(checked, headers.data_bytes)
                })?;
            }
        }
        Ok(Verified {
            shards: folder.shards.len(),
            tensors: headers.tensors,
            data_bytes: headers.data_bytes,
            has_checksums: folder.manifest.is_some(),
            unnamed: folder.unnamed,
            side_files: folder
                .manifest
                .as_ref()
                .map_or(0, |manifest| manifest.side_files.len()),
            notes,
        })
    }

    /// Compares the headers of all shards, one after the other, with the indexes and the manifest.
    fn check_headers(&self, folder: &Folder, stored: Option<&Stored<'_>>) -> Result<Headers> {
        let mut listings: Vec<_> = folder.indexes.iter().map(Listing::new).collect();
        let mut headers = Headers::default();
        for (number, name) in folder.shards.iter().enumerate() {
            let (path, bytes, header) = self.opened(name)?;
            for listing in &mut listings {
                listing.check(&path, name, &header, bytes.size())?;
            }
            if let Some(stored) = stored {
                stored.check_header(number, &path, bytes.as_ref(), &header)?;
            }
            headers.data_bytes += bytes.size() - header.data_start;
            headers.tensors += header.tensors.len();
            headers.hashes.push(*header.hash.as_bytes());
        }
        listings
            .into_iter()
            .try_for_each(|listing| listing.check_all(folder))?;
        Ok(headers)
    }

    fn open(&self, name: &str) -> Result<(PathBuf, Box<dyn ShardBytes>)> {
        let path = self.places.finished(name);
        let bytes = (self.open)(&path)?.ok_or_else(|| damaged(&path, "the shard is missing"))?;
        Ok((path, bytes))
    }

    fn opened(&self, name: &str) -> Result<(PathBuf, Box<dyn ShardBytes>, Header)> {
        let (path, bytes) = self.open(name)?;
        self.room.check(
            &path,
            bytes.working_bytes() + Header::memory(bytes.as_ref())?,
        )?;
        let header = Header::read(&path, bytes.as_ref())?;
        Ok((path, bytes, header))
    }

    /// Reads and checks all of a shard's data; `header` is the hash of its header.
    fn check_data(
        &self,
        stored: &Stored<'_>,
        number: usize,
        header: &BlockValue,
        checked: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let shard = stored.shard(number);
        let (path, bytes) = self.open(&shard.name)?;
        let tensors = stored.tensors(number);
        for tensor in &tensors {
            check_blocks(&path, bytes.as_ref(), tensor, checked)?;
        }
        if shard.binds(header, &tensors) {
            return Ok(());
        }
        Err(damaged(
            &path,
            "its digest_of_hashes is not that of its header and tensors",
        ))
    }
}

/// The totals over the headers of all shards.
#[derive(Default)]
struct Headers {
    data_bytes: u64,
    tensors: usize,
    /// The hash of each header.
    hashes: Vec<BlockValue>,
}

/// Returns the folder of a shard or index below the output; empty for the output itself.
fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Returns the uncompressed name of a shard file; `None` for other files.
fn shard_name(file: &str) -> Option<&str> {
    let plain = file.strip_suffix(".zst").unwrap_or(file);
    plain.ends_with(".safetensors").then_some(plain)
}

/// Returns the shard that an index names; some indexes name the compressed file.
fn named(name: &str) -> String {
    shard_name(name).unwrap_or(name).to_owned()
}

fn check_blocks(
    path: &Path,
    bytes: &dyn ShardBytes,
    tensor: &ManifestTensor,
    checked: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let values = tensor.values().ok_or_else(|| {
        damaged(
            Path::new(MANIFEST),
            format!(
                "the checksums of tensor {} do not fit together",
                tensor.name
            ),
        )
    })?;
    for (block, wanted) in (0..).zip(values) {
        let mut read = |buffer: &mut [u8], at| bytes.read_at(buffer, tensor.offset + at);
        let range = block_range(tensor.length, block);
        let value =
            hash_block(tensor.length, block, &mut read).map_err(|error| match error.kind() {
                Kind::Input => error.with_kind(Kind::Damaged),
                _ => error,
            })?;
        if value != wanted {
            let cause = format!(
                "block {block} of tensor {} (bytes {} to {}) does not match its checksum",
                tensor.name,
                tensor.offset + range.start,
                tensor.offset + range.end
            );
            return Err(damaged(path, cause));
        }
        checked(range.end - range.start)?;
    }
    Ok(())
}

pub(super) fn damaged(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::Damaged, "cannot verify", path.display(), cause)
}
