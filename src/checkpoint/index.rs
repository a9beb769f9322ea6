//! The index of a sharded checkpoint, `model.safetensors.index.json` or
//! `pytorch_model.bin.index.json`: the shard of each tensor.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::header::shown;
use super::regular::open_regular;
use super::side::weight_format;
use super::strings::UniqueStrings;
use super::{InputFile, Name, TensorEntry};
use crate::error::{Error, Kind, Result};

/// The longest index that is read, in bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A parsed index whose shard names are plain names of files of its format.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    /// Tensor name to shard name, as written.
    weight_map: IndexMap<String, String>,
}

impl Index {
    /// Reads the index at `path`, of shards in `format`, a name that [`weight_format`] gives.
    pub fn read(path: &Path, format: &'static str) -> Result<Self> {
        let text = read_capped(path, MAX_INDEX_BYTES, "cannot read index")?;
        let bad =
            |cause: String| Error::new(Kind::Input, "cannot read index", path.display(), cause);
        let raw: RawIndex =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if raw.weight_map.is_empty() {
            return Err(bad("weight_map names no tensor".into()));
        }
        for (tensor, shard) in &raw.weight_map {
            check_shard_name(shard, format).map_err(|cause| {
                bad(format!(
                    "shard {} of tensor {}: {cause}",
                    shown(shard),
                    shown(tensor)
                ))
            })?;
        }
        Ok(Self {
            path: path.to_owned(),
            weight_map: raw.weight_map,
        })
    }

    /// Returns the name of its file.
    pub fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    /// Returns the names of the shards, each once, sorted.
    pub fn shards(&self) -> Vec<&str> {
        self.weight_map
            .values()
            .map(String::as_str)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Checks that every tensor of the index is in its shard.
    ///
    /// Tensors outside the index are accepted: loaders read whole shards as well.
    pub fn check(&self, tensors: &IndexMap<Name, TensorEntry>, files: &[InputFile]) -> Result<()> {
        let bad = |cause: String| {
            Err(Error::new(
                Kind::Input,
                "index does not fit",
                self.path.display(),
                cause,
            ))
        };
        for (name, shard) in &self.weight_map {
            let Some(tensor) = tensors.get(name.as_str()) else {
                return bad(format!(
                    "tensor {} is not in {shard}, nor in any other shard",
                    shown(name)
                ));
            };
            let actual = &files[tensor.file].name;
            if actual != shard && actual.strip_suffix(".zst") != Some(shard) {
                return bad(format!(
                    "tensor {} should be in {shard}, but is in {actual}",
                    shown(name)
                ));
            }
        }
        Ok(())
    }
}

/// Checks a shard's name: a shard is beside its index, so the name must not lead elsewhere.
fn check_shard_name(name: &str, format: &'static str) -> Result<(), String> {
    if name.contains(['/', '\\']) || name.chars().any(char::is_control) || name == ".." {
        return Err("not a plain file name".into());
    }
    if weight_format(name) == Some(format) {
        return Ok(());
    }
    Err(format!("not a {format} file"))
}

/// Reads a small file whole; refuses one longer than `cap` bytes.
pub(super) fn read_capped(path: &Path, cap: u64, what: &'static str) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::io(what, path, error))?;
    if !metadata.is_file() {
        return Err(Error::new(
            Kind::Input,
            what,
            path.display(),
            "not a regular file",
        ));
    }
    if metadata.len() > cap {
        let cause = format!("{} bytes, at most {cap} are read", metadata.len());
        return Err(Error::new(Kind::Input, what, path.display(), cause));
    }
    let mut bytes = Vec::new();
    open_regular(path)
        .and_then(|file| file.take(cap).read_to_end(&mut bytes))
        .map_err(|error| Error::io(what, path, error))?;
    Ok(bytes)
}

struct RawIndex {
    weight_map: IndexMap<String, String>,
}

impl<'de> Deserialize<'de> for RawIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(IndexVisitor)
    }
}

struct IndexVisitor;

impl<'de> Visitor<'de> for IndexVisitor {
    type Value = RawIndex;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawIndex, A::Error> {
        let mut weight_map = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
            } else if weight_map.is_some() {
                return Err(A::Error::duplicate_field("weight_map"));
            } else {
                weight_map = Some(map.next_value_seed(UniqueStrings("weight_map"))?);
            }
        }
        weight_map
            .map(|weight_map| RawIndex { weight_map })
            .ok_or_else(|| A::Error::missing_field("weight_map"))
    }
}
