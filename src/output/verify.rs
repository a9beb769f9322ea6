//! Reading a finished folder back: index against shards, headers against manifest, every block against its checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use super::checksum::{block_range, hash_block};
use super::folder::{MANIFEST, Places, is_weight_index};
use super::manifest::{Manifest, ManifestTensor, read_capped};
use super::packed::PackedShard;
use super::shard_header::Header;
use super::storage::{DiskStorage, Storage, StorageFile, parent_of};
use super::{Progress, beside, sides};
use crate::error::{Error, Kind, Result};

/// The largest index that is read.
const INDEX_BYTES: u64 = 256 << 20;

/// What was found to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many shards there are.
    pub shards: usize,
    /// How many tensors they hold.
    pub tensors: usize,
    /// Bytes of tensor data.
    pub data_bytes: u64,
    /// Whether every byte was compared with a checksum. False for a folder without manifest, of which only the
    /// structure can be checked.
    pub has_checksums: bool,
    /// Weight files that neither index nor manifest names. Always empty where there is a manifest: then they are
    /// damage.
    pub unnamed: Vec<String>,
    /// How many files beside the weights were compared with what was recorded of them.
    pub side_files: usize,
    /// What a user should know and is no damage: files for people that were edited since, a run that has begun to replace
    /// all of this.
    pub notes: Vec<String>,
}

/// A shard's bytes as the safetensors format has them, wherever they come from.
pub trait ShardBytes {
    /// The size in bytes.
    fn size(&self) -> u64;
    /// Fills all of `buffer` from `offset` on.
    ///
    /// # Errors
    ///
    /// When the bytes cannot be read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
}

/// Opens the shard that the index names so; none when it is not there.
pub type OpenShard<'a> = dyn Fn(&Path) -> Result<Option<Box<dyn ShardBytes>>> + 'a;

/// A shard that is not compressed.
pub(super) struct PlainShard {
    file: Arc<dyn StorageFile>,
    size: u64,
}

impl PlainShard {
    pub(super) fn new(file: Arc<dyn StorageFile>) -> Result<Self> {
        Ok(Self { size: file.len()?, file })
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

/// Opens a shard, compressed or not; none when there is none of that name.
pub(super) fn open_stored(path: &Path) -> Result<Option<Box<dyn ShardBytes>>> {
    if DiskStorage.len(path)?.is_some() { open_shard(path) } else { Ok(None) }
}

/// The same; where a shard of that name is not there, one that was compressed since.
fn open_shard(path: &Path) -> Result<Option<Box<dyn ShardBytes>>> {
    let packed = |path: &Path| match PackedShard::open(path) {
        Err(error) if error.kind() == Kind::Input => Err(error.with_kind(Kind::Damaged)),
        opened => opened.map(|shard| Some(Box::new(shard) as Box<dyn ShardBytes>)),
    };
    if DiskStorage.len(path)?.is_some() {
        if path.extension().is_some_and(|end| end == "zst") {
            return packed(path);
        }
        return Ok(Some(Box::new(PlainShard::new(DiskStorage.open_read(path)?)?)));
    }
    let mut compressed = path.as_os_str().to_owned();
    compressed.push(".zst");
    if DiskStorage.len(Path::new(&compressed))?.is_some() { packed(Path::new(&compressed)) } else { Ok(None) }
}

/// Reads all of a finished output, a folder or a single file, back and compares it with its manifest.
///
/// # Errors
///
/// [`Kind::Damaged`] with shard, tensor and block where something is not as it was written, [`Kind::Usage`] for a file
/// that is not named like weights.
pub fn verify(dir: &Path, progress: &mut Progress<'_>) -> Result<Verified> {
    verify_with(dir, &open_shard, progress)
}

/// As [`verify()`], with shards read by `open`.
///
/// # Errors
///
/// As [`verify()`], and whatever `open` fails with.
pub fn verify_with(dir: &Path, open: &OpenShard<'_>, progress: &mut Progress<'_>) -> Result<Verified> {
    let places = Places::new(dir);
    let folder = if places.is_file() { Folder::of_file(&places)? } else { Folder::read(dir)? };
    let mut shards = vec![];
    for name in &folder.shards {
        let path = places.finished(name);
        let bytes = open(&path)?.ok_or_else(|| damaged(&path, "the shard is missing"))?;
        let header = Header::read(&path, bytes.as_ref())?;
        shards.push((path, bytes, header));
    }
    folder.check_weight_maps(&shards)?;
    let data_bytes: u64 = shards.iter().map(|(_, bytes, header)| bytes.size() - header.data_start).sum();
    folder.check_total_sizes(&shards)?;
    let mut notes = folder.notes;
    if let Some(manifest) = &folder.manifest {
        beside::check(manifest, &places)?;
        notes.extend(sides::check(manifest, &places)?);
        let tensors = check_headers(manifest, &shards)?;
        let mut checked = 0;
        for (((path, bytes, header), stored), tensors) in shards.iter().zip(&manifest.shards).zip(tensors) {
            for tensor in &tensors {
                check_blocks(path, bytes.as_ref(), tensor, &mut |count| {
                    checked += count;
                    progress(checked, data_bytes)
                })?;
            }
            if !stored.binds(header.hash.as_bytes(), &tensors) {
                return Err(damaged(path, "its digest_of_hashes is not that of its header and tensors"));
            }
        }
    }
    Ok(Verified {
        shards: shards.len(),
        tensors: shards.iter().map(|(_, _, header)| header.tensors.len()).sum(),
        data_bytes,
        has_checksums: folder.manifest.is_some(),
        unnamed: folder.unnamed,
        side_files: folder.manifest.as_ref().map_or(0, |manifest| manifest.side_files.len()),
        notes,
    })
}

type OpenedShard = (PathBuf, Box<dyn ShardBytes>, Header);

/// What the folder says of itself.
struct Folder {
    dir: PathBuf,
    manifest: Option<Manifest>,
    indexes: Vec<FolderIndex>,
    shards: Vec<String>,
    unnamed: Vec<String>,
    notes: Vec<String>,
}

/// The index of a folder, the output's own or one below it.
struct FolderIndex {
    path: PathBuf,
    /// The folder below the output; empty for itself.
    folder: String,
    index: Index,
}

impl FolderIndex {
    fn read(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let index = read_index(&path)?;
        Ok(Self { path, folder: folder_of(name).to_owned(), index })
    }
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    metadata: Value,
    weight_map: IndexMap<String, String>,
}

impl Folder {
    fn read(dir: &Path) -> Result<Self> {
        if dir.is_file() {
            let cause = "it is a file, wanted a folder or a single file that ends in .safetensors";
            return Err(Error::new(Kind::Usage, "cannot verify", dir.display(), cause));
        }
        let entries = DiskStorage.list(dir)?.ok_or_else(|| damaged(dir, "there is no such folder"))?;
        let names: Vec<_> = entries.iter().map(|entry| entry.name.to_string_lossy().into_owned()).collect();
        let notes = check_over(&Places::new(dir))?;
        let manifest = Manifest::load(&DiskStorage, &Places::new(dir))?;
        let indexes = names.iter().filter(|name| is_weight_index(name) && name.contains(".safetensors"));
        let index = match (indexes.collect::<Vec<_>>().as_slice(), &manifest) {
            ([], Some(Manifest { index: Some(name), .. })) => {
                return Err(damaged(&dir.join(name), "the index is missing"));
            }
            ([name], Some(Manifest { index, .. })) if index.as_ref() != Some(*name) => {
                return Err(damaged(&dir.join(name), "the manifest knows of no such index"));
            }
            ([], _) => None,
            ([name], _) => Some(FolderIndex::read(dir, name)?),
            (several, _) => return Err(damaged(dir, format!("{} indexes, wanted at most one", several.len()))),
        };
        let mut indexes: Vec<_> = index.into_iter().collect();
        for name in manifest.iter().flat_map(|manifest| &manifest.component_indexes) {
            if DiskStorage.len(&dir.join(name))?.is_none() {
                return Err(damaged(&dir.join(name), "the index is missing"));
            }
            indexes.push(FolderIndex::read(dir, name)?);
        }
        let present: BTreeSet<_> = names.iter().filter_map(|name| shard_name(name)).collect();
        let shards: Vec<String> = match (&manifest, indexes.first()) {
            (Some(manifest), _) => manifest.shards.iter().map(|shard| shard.name.clone()).collect(),
            (None, Some(FolderIndex { index, .. })) => {
                index.weight_map.values().map(|name| named(name)).collect::<BTreeSet<_>>().into_iter().collect()
            }
            (None, None) => present.iter().map(|name| (*name).to_owned()).collect(),
        };
        if manifest.is_none() && indexes.is_empty() && shards.len() != 1 {
            return Err(damaged(dir, format!("no index and {} safetensors files, wanted one", shards.len())));
        }
        if shards.iter().collect::<BTreeSet<_>>().len() != shards.len() {
            return Err(damaged(&dir.join(MANIFEST), "it names a shard twice"));
        }
        let plain: BTreeSet<_> = shards.iter().map(|name| named(name)).collect();
        let unnamed: Vec<_> =
            present.iter().filter(|name| !plain.contains(**name)).map(|name| (*name).into()).collect();
        match unnamed.first() {
            Some(name) if manifest.is_some() => Err(damaged(&dir.join(name), "the manifest knows of no such shard")),
            _ => Ok(Self { dir: dir.to_owned(), manifest, indexes, shards, unnamed, notes }),
        }
    }

    /// A single file has no index, and nothing but its manifest and work folder belongs to it.
    fn of_file(places: &Places) -> Result<Self> {
        let file = places.out();
        let mut notes = check_over(places)?;
        let manifest = match Manifest::load(&DiskStorage, places)? {
            Some(manifest) => Some(manifest),
            None => of_folder(file, &mut notes)?,
        };
        let shards = match &manifest {
            Some(manifest) => manifest.shards.iter().map(|shard| shard.name.clone()).collect::<Vec<_>>(),
            None => vec![file.file_name().unwrap_or_default().to_string_lossy().into_owned()],
        };
        if shards.len() != 1 {
            return Err(damaged(&places.manifest(), format!("{} shards, wanted one", shards.len())));
        }
        Ok(Self { dir: file.to_owned(), manifest, indexes: vec![], shards, unnamed: vec![], notes })
    }

    /// Each index names every tensor of every shard of its folder, in the shard it is in, and nothing else.
    fn check_weight_maps(&self, shards: &[OpenedShard]) -> Result<()> {
        self.indexes.iter().try_for_each(|index| self.check_weight_map(index, shards))
    }

    fn check_weight_map(&self, of: &FolderIndex, shards: &[OpenedShard]) -> Result<()> {
        let FolderIndex { path, folder, index } = of;
        let mut held = BTreeMap::new();
        for ((shard, _, header), name) in shards.iter().zip(&self.shards).filter(|(_, name)| folder_of(name) == folder)
        {
            let name = file_name_of(name);
            for tensor in header.tensors.keys() {
                if let Some(other) = held.insert(tensor, name) {
                    return Err(damaged(shard, format!("tensor {tensor} is in {other} as well")));
                }
                match index.weight_map.get(tensor).map(|name| named(name)) {
                    Some(wanted) if wanted == named(name) => {}
                    Some(wanted) => {
                        return Err(damaged(path, format!("tensor {tensor} is in {name}, not in {wanted}")));
                    }
                    None => return Err(damaged(path, format!("tensor {tensor} of {name} is not listed"))),
                }
            }
        }
        match index.weight_map.iter().find(|(tensor, _)| !held.contains_key(tensor)) {
            Some((tensor, shard)) => Err(damaged(path, format!("tensor {tensor} is not in {shard}"))),
            None => Ok(()),
        }
    }

    fn check_total_sizes(&self, shards: &[OpenedShard]) -> Result<()> {
        for index in &self.indexes {
            let inside = shards.iter().zip(&self.shards).filter(|(_, name)| folder_of(name) == index.folder);
            self.check_total_size(index, inside.map(|((_, bytes, header), _)| bytes.size() - header.data_start).sum())?;
        }
        Ok(())
    }

    fn check_total_size(&self, of: &FolderIndex, data_bytes: u64) -> Result<()> {
        let FolderIndex { path, index, .. } = of;
        let stated = &index.metadata["total_size"];
        // Some writers put a float there; an index without a total is old, yet complete.
        #[expect(clippy::cast_precision_loss, reason = "a float of the same value is what other writers state")]
        let is_right = stated.is_null() || stated.as_u64() == Some(data_bytes) || {
            !stated.is_u64() && stated.as_f64() == Some(data_bytes as f64)
        };
        if is_right && !(stated.is_null() && self.manifest.is_some()) {
            return Ok(());
        }
        Err(damaged(path, format!("total_size is {stated}, wanted {data_bytes}; in {}", self.dir.display())))
    }
}

/// The folder of a shard or index below the output; empty for the output itself.
fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn file_name_of(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, name)| name)
}

/// What the shard of a tensor calls it: without the folder that both are in.
fn name_in_file(tensor: &ManifestTensor) -> &str {
    let folder = folder_of(&tensor.shard);
    let inside = tensor.name.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    inside.filter(|_| !folder.is_empty()).unwrap_or(&tensor.name)
}

/// Refuses what the run that writes it has not finished; what a run is to replace is whole until its last moments.
fn check_over(places: &Places) -> Result<Vec<String>> {
    if DiskStorage.list(&places.work())?.is_none() {
        return Ok(vec![]);
    }
    let is_replaced =
        DiskStorage.list(&places.aside_dir())?.is_some() && DiskStorage.len(&places.exchange())?.is_none();
    if is_replaced && Manifest::load(&DiskStorage, places)?.is_some() {
        return Ok(vec!["a run that is to replace this has begun and is not finished".into()]);
    }
    Err(damaged(places.out(), "the run that writes it is not finished")
        .with_hint("run the same merge again: it goes on where it stopped"))
}

/// What the manifest of a folder says of one of its shards; none where there is no manifest or it does not name it.
fn of_folder(file: &Path, notes: &mut Vec<String>) -> Result<Option<Manifest>> {
    let folder = parent_of(file);
    let Some(manifest) = Manifest::load(&DiskStorage, &Places::new(folder))? else { return Ok(None) };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Some(shard) = manifest.shards.iter().find(|shard| named(&shard.name) == named(&name)).cloned() else {
        return Ok(None);
    };
    notes.push(format!("one shard of {}, by its manifest; the other files there were not looked at", folder.display()));
    let tensors = manifest.tensors.into_iter().filter(|tensor| tensor.shard == shard.name).collect();
    let run = Value::Null;
    Ok(Some(Manifest { index: None, shards: vec![shard], tensors, side_files: vec![], run, ..manifest }))
}

/// The shard that a file in the folder is, compressed or not.
fn shard_name(file: &str) -> Option<&str> {
    let plain = file.strip_suffix(".zst").unwrap_or(file);
    plain.ends_with(".safetensors").then_some(plain)
}

/// The shard that an index means; some name the compressed file.
fn named(name: &str) -> String {
    shard_name(name).unwrap_or(name).to_owned()
}

fn read_index(path: &Path) -> Result<Index> {
    let bytes = read_capped(&DiskStorage, path, INDEX_BYTES)?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| damaged(path, error.to_string()))?;
    match index.weight_map.values().find(|name| name.contains(['/', '\\', '\0']) || name.starts_with('.')) {
        Some(name) => Err(damaged(path, format!("{name:?} is not a plain file name"))),
        None => Ok(index),
    }
}

/// Compares headers and sizes with the manifest; the manifest's tensors by shard, in file order.
fn check_headers<'a>(manifest: &'a Manifest, shards: &[OpenedShard]) -> Result<Vec<Vec<&'a ManifestTensor>>> {
    let mut by_shard: IndexMap<&str, Vec<&ManifestTensor>> = IndexMap::new();
    for shard in &manifest.shards {
        by_shard.insert(&shard.name, vec![]);
    }
    for tensor in &manifest.tensors {
        let held = by_shard.get_mut(tensor.shard.as_str());
        held.ok_or_else(|| damaged(Path::new(MANIFEST), format!("no shard {} for {}", tensor.shard, tensor.name)))?
            .push(tensor);
    }
    for ((path, bytes, header), stored) in shards.iter().zip(&manifest.shards) {
        if bytes.size() != stored.size {
            return Err(damaged(path, format!("{} bytes, wanted {}", bytes.size(), stored.size)));
        }
        let tensors = &mut by_shard[stored.name.as_str()];
        tensors.sort_by_key(|tensor| (tensor.offset, tensor.length));
        for tensor in tensors.iter() {
            let found = header.tensors.get(name_in_file(tensor)).copied();
            let wanted = (tensor.offset, tensor.length);
            if found != Some(wanted) {
                let cause = format!("tensor {} is at (offset, length) {found:?}, wanted {wanted:?}", tensor.name);
                return Err(damaged(path, cause));
            }
        }
        if tensors.len() != header.tensors.len() {
            return Err(damaged(path, format!("{} tensors, wanted {}", header.tensors.len(), tensors.len())));
        }
        if header.hash.to_hex().as_str() != stored.header_blake3 {
            return Err(damaged(
                path,
                format!("its header hashes to {}, wanted {}", header.hash, stored.header_blake3),
            ));
        }
    }
    Ok(by_shard.into_values().collect())
}

fn check_blocks(
    path: &Path,
    bytes: &dyn ShardBytes,
    tensor: &ManifestTensor,
    checked: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let values = tensor.values().ok_or_else(|| {
        damaged(Path::new(MANIFEST), format!("the checksums of tensor {} do not fit together", tensor.name))
    })?;
    for (block, wanted) in (0..).zip(values) {
        let mut read = |buffer: &mut [u8], at| bytes.read_at(buffer, tensor.offset + at);
        let range = block_range(tensor.length, block);
        let value = hash_block(tensor.length, block, &mut read).map_err(|error| match error.kind() {
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
