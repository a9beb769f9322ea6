//! The manifest's records of each shard of a finished output.

use std::collections::HashMap;
use std::path::Path;

use super::{ShardBytes, damaged, folder_of};
use crate::error::Result;
use crate::output::folder::MANIFEST;
use crate::output::listed::ManifestTensor;
use crate::output::manifest::{Manifest, ManifestShard};
use crate::output::shard_header::Header;

/// The manifest's shards, each with the numbers of its tensors.
pub(super) struct Stored<'a> {
    manifest: &'a Manifest,
    tensors: Vec<Vec<u32>>,
}

impl<'a> Stored<'a> {
    /// Sorts the manifest's tensors by shard.
    pub(super) fn of(manifest: &'a Manifest) -> Result<Self> {
        let places: HashMap<&str, usize> = manifest
            .shards
            .iter()
            .enumerate()
            .map(|(place, shard)| (shard.name.as_str(), place))
            .collect();
        let mut tensors = vec![vec![]; manifest.shards.len()];
        for (number, tensor) in (0..).zip(manifest.tensors.iter()) {
            let place = places.get(tensor.shard.as_str()).ok_or_else(|| {
                damaged(
                    Path::new(MANIFEST),
                    format!("no shard {} for {}", tensor.shard, tensor.name),
                )
            })?;
            tensors[*place].push(number);
        }
        Ok(Self { manifest, tensors })
    }

    /// Returns shard `number`.
    pub(super) fn shard(&self, number: usize) -> &'a ManifestShard {
        &self.manifest.shards[number]
    }

    /// Returns the tensors of shard `number`, in file order.
    pub(super) fn tensors(&self, number: usize) -> Vec<&'a ManifestTensor> {
        let listed = self.tensors[number].iter();
        let tensor =
            |at: &u32| &self.manifest.tensors[usize::try_from(*at).expect("32 bits fit a usize")];
        let mut tensors: Vec<_> = listed.map(tensor).collect();
        tensors.sort_by_key(|tensor| (tensor.offset, tensor.length));
        tensors
    }

    /// Compares the size and the header of shard `number` with the manifest.
    pub(super) fn check_header(
        &self,
        number: usize,
        path: &Path,
        bytes: &dyn ShardBytes,
        header: &Header,
    ) -> Result<()> {
        let stored = self.shard(number);
        if bytes.size() != stored.size {
            return Err(damaged(
                path,
                format!("{} bytes, wanted {}", bytes.size(), stored.size),
            ));
        }
        let tensors = self.tensors(number);
        for tensor in &tensors {
            let found = header.tensors.get(name_in_file(tensor)).copied();
            let wanted = (tensor.offset, tensor.length);
            if found != Some(wanted) {
                let cause = format!(
                    "tensor {} is at (offset, length) {found:?}, wanted {wanted:?}",
                    tensor.name
                );
                return Err(damaged(path, cause));
            }
        }
        if tensors.len() != header.tensors.len() {
            return Err(damaged(
                path,
                format!("{} tensors, wanted {}", header.tensors.len(), tensors.len()),
            ));
        }
        if header.hash.to_hex().as_str() == stored.header_blake3 {
            return Ok(());
        }
        Err(damaged(
            path,
            format!(
                "its header hashes to {}, wanted {}",
                header.hash, stored.header_blake3
            ),
        ))
    }
}

/// Returns the name of a tensor in its shard: without the folder that holds both.
fn name_in_file(tensor: &ManifestTensor) -> &str {
    let folder = folder_of(&tensor.shard);
    let inside = tensor
        .name
        .strip_prefix(folder)
        .and_then(|rest| rest.strip_prefix('/'));
    inside
        .filter(|_| !folder.is_empty())
        .unwrap_or(&tensor.name)
}
