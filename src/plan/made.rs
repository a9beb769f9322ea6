//! Inputs that an earlier stage of the same recipe made. They are known by their contents, which
//! their manifest states, not by their time, so that two runs of the recipe write the same
//! manifest.

use std::collections::HashMap;
use std::fs;
use std::io::BufReader;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::Deserialize;

use crate::checkpoint::{InputFile, MANIFEST_NAME, open_regular};

/// The digests of the shards in a folder, by file name.
#[derive(Debug, Default)]
pub struct Made {
    shards: HashMap<String, Shard>,
    /// Time at which the manifest was written, in nanoseconds since 1970.
    modified_ns: i128,
}

/// The part of a manifest that is read.
#[derive(Debug, Deserialize)]
struct Stated {
    shards: Vec<Shard>,
}

#[derive(Debug, Deserialize)]
struct Shard {
    name: String,
    size: u64,
    #[serde(default)]
    compressed_size: Option<u64>,
    header_blake3: String,
    #[serde(default)]
    digest_of_hashes: Option<String>,
}

impl Made {
    /// Reads the manifest in `folder`; empty when there is none that can be read.
    pub fn read(folder: &Path) -> Self {
        Self::stated(&folder.join(MANIFEST_NAME)).unwrap_or_default()
    }

    fn stated(path: &Path) -> Option<Self> {
        let file = open_regular(path).ok()?;
        let modified = fs::metadata(path).ok()?.modified().ok()?;
        let modified_ns =
            i128::try_from(modified.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()?;
        let Stated { shards } = serde_json::from_reader(BufReader::new(file)).ok()?;
        Some(Self {
            shards: shards
                .into_iter()
                .map(|shard| (shard.name.clone(), shard))
                .collect(),
            modified_ns,
        })
    }

    /// Returns the digest of a shard, in hexadecimal; `None` when the file is not the manifest's
    /// shard, or was written to after the manifest.
    pub fn digest(&self, file: &InputFile) -> Option<&str> {
        let shard = self.shards.get(&file.name)?;
        let header = blake3::Hash::from_bytes(file.header_hash).to_hex();
        let is_same = file.len == shard.compressed_size.unwrap_or(shard.size)
            && header.as_str() == shard.header_blake3;
        if is_same && file.modified_ns <= self.modified_ns {
            shard.digest_of_hashes.as_deref()
        } else {
            None
        }
    }
}
