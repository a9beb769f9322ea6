//! Compares the index of a finished folder with the shards that it names.

use std::collections::HashSet;
use std::fmt;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::folder::Folder;
use super::room::{self, Room};
use super::{damaged, folder_of, named};
use crate::checkpoint::Name;
use crate::error::Result;
use crate::output::own_checksum::Sealed;
use crate::output::shard_header::Header;
use crate::output::storage::{DiskStorage, Storage};

/// The bytes that are read at a time.
const PIECE_BYTES: usize = 64 << 10;

/// The shard of each tensor, by name.
type WeightMap = IndexMap<Name, Name>;

/// The index of a folder, the output's own or one below it.
pub(super) struct FolderIndex {
    path: PathBuf,
    /// The folder below the output; empty for the output itself.
    folder: String,
    index: Index,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    metadata: Value,
    #[serde(deserialize_with = "weight_map")]
    weight_map: WeightMap,
}

impl FolderIndex {
    /// Reads the index `name` of the output `dir`; refuses one that exceeds the memory.
    pub(super) fn read(dir: &Path, name: &str, room: &Room) -> Result<Self> {
        let path = dir.join(name);
        room.admit(&path, &room::INDEX)?;
        let file = DiskStorage.open_read(&path)?;
        let text = BufReader::with_capacity(PIECE_BYTES, Sealed::new(file.as_ref())?);
        let index: Index =
            serde_json::from_reader(text).map_err(|error| damaged(&path, error.to_string()))?;
        match index
            .weight_map
            .values()
            .find(|name| name.contains(['/', '\\', '\0']) || name.starts_with('.'))
        {
            Some(name) => Err(damaged(&path, format!("{name:?} is not a plain file name"))),
            None => Ok(Self {
                path,
                folder: folder_of(name).to_owned(),
                index,
            }),
        }
    }

    /// Lists the shards that it names, by uncompressed name.
    pub(super) fn shards(&self) -> impl Iterator<Item = String> {
        self.index.weight_map.values().map(|name| named(name))
    }
}

/// The comparison of an index with the shards: the tensors met so far, and their bytes.
pub(super) struct Listing<'a> {
    of: &'a FolderIndex,
    met: Vec<bool>,
    data_bytes: u64,
}

impl<'a> Listing<'a> {
    pub(super) fn new(of: &'a FolderIndex) -> Self {
        Self {
            of,
            met: vec![false; of.index.weight_map.len()],
            data_bytes: 0,
        }
    }

    /// Checks that the index places every tensor of the shard `name`, of `size` bytes, in this
    /// shard. Skips shards of other folders.
    pub(super) fn check(
        &mut self,
        shard: &Path,
        name: &str,
        header: &Header,
        size: u64,
    ) -> Result<()> {
        let FolderIndex {
            path,
            folder,
            index,
        } = self.of;
        if folder_of(name) != folder {
            return Ok(());
        }
        self.data_bytes += size - header.data_start;
        let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
        for tensor in header.tensors.keys() {
            let Some((at, _, listed)) = index.weight_map.get_full(tensor.as_str()) else {
                return Err(damaged(
                    path,
                    format!("tensor {tensor} of {name} is not listed"),
                ));
            };
            let wanted = named(listed);
            if wanted != named(name) {
                if self.met[at] {
                    return Err(damaged(
                        shard,
                        format!("tensor {tensor} is in {wanted} as well"),
                    ));
                }
                return Err(damaged(
                    path,
                    format!("tensor {tensor} is in {name}, not in {wanted}"),
                ));
            }
            self.met[at] = true;
        }
        Ok(())
    }

    /// Checks that every tensor of the index was met, and that its total size is that of the
    /// shards.
    pub(super) fn check_all(self, folder: &Folder) -> Result<()> {
        let FolderIndex { path, index, .. } = self.of;
        if let Some(((tensor, shard), _)) = index
            .weight_map
            .iter()
            .zip(&self.met)
            .find(|(_, met)| !**met)
        {
            return Err(damaged(path, format!("tensor {tensor} is not in {shard}")));
        }
        let (stated, data_bytes) = (&index.metadata["total_size"], self.data_bytes);
        // Some writers state the total as a float; an old index without a total is valid.
        #[expect(
            clippy::cast_precision_loss,
            reason = "a float of the same value is what other writers state"
        )]
        let is_right = stated.is_null() || stated.as_u64() == Some(data_bytes) || {
            !stated.is_u64() && stated.as_f64() == Some(data_bytes as f64)
        };
        if is_right && !(stated.is_null() && folder.manifest.is_some()) {
            return Ok(());
        }
        Err(damaged(
            path,
            format!(
                "total_size is {stated}, wanted {data_bytes}; in {}",
                folder.dir.display()
            ),
        ))
    }
}

fn weight_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
    deserializer.deserialize_map(Entries)
}

/// Reads the map entry by entry; equal shard names share one text.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let (mut entries, mut shards) = (WeightMap::new(), HashSet::<Name>::new());
        while let Some((tensor, shard)) = map.next_entry::<Name, Name>()? {
            let shard = match shards.get(&shard) {
                Some(known) => known.clone(),
                None => {
                    shards.insert(shard.clone());
                    shard
                }
            };
            entries.insert(tensor, shard);
        }
        Ok(entries)
    }
}
