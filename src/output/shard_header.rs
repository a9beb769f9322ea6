//! The header of a finished shard, read back without the layout.

use std::path::Path;

use indexmap::IndexMap;
use safetensors::tensor::Metadata;

use super::verify::{ShardBytes, damaged};
use crate::error::Result;

/// The largest shard header that is read; the format's own limit.
const HEADER_BYTES: u64 = 100_000_000;

/// A shard's header, with each tensor's absolute byte range.
pub(super) struct Header {
    pub(super) data_start: u64,
    pub(super) hash: blake3::Hash,
    pub(super) tensors: IndexMap<String, (u64, u64)>,
}

/// The bytes of memory per header byte while it is read: the text, the parsed header and the
/// tensors' places.
const PARSED_RATIO: u64 = 6;

impl Header {
    /// Estimates the bytes of memory that reading the header takes; 0 when it cannot be read.
    pub(super) fn memory(bytes: &dyn ShardBytes) -> Result<u64> {
        let mut length = [0; 8];
        if bytes.size() < 8 {
            return Ok(0);
        }
        bytes.read_at(&mut length, 0)?;
        Ok(Some(u64::from_le_bytes(length))
            .filter(|len| *len <= HEADER_BYTES)
            .map_or(0, |len| PARSED_RATIO * len))
    }

    pub(super) fn read(path: &Path, bytes: &dyn ShardBytes) -> Result<Self> {
        let size = bytes.size();
        let mut length = [0; 8];
        if size < 8 {
            return Err(damaged(
                path,
                format!("{size} bytes, too short for a header"),
            ));
        }
        bytes.read_at(&mut length, 0)?;
        let len = u64::from_le_bytes(length);
        let fits = len <= HEADER_BYTES && len <= size - 8;
        let Some(header_len) = usize::try_from(len).ok().filter(|_| fits) else {
            return Err(damaged(
                path,
                format!("a header of {len} bytes in a file of {size}"),
            ));
        };
        let mut header = vec![0; header_len + 8];
        bytes.read_at(&mut header, 0)?;
        let metadata: Metadata = serde_json::from_slice(&header[8..])
            .map_err(|error| damaged(path, format!("its header: {error}")))?;
        let data_start = len + 8;
        let wanted = u64::try_from(metadata.data_len())
            .ok()
            .and_then(|data| data.checked_add(data_start));
        if wanted != Some(size) {
            let wanted = wanted.map_or_else(
                || "more than possible".to_owned(),
                |wanted| wanted.to_string(),
            );
            return Err(damaged(
                path,
                format!("{size} bytes, by its header wanted {wanted}"),
            ));
        }
        let place = |name: String| {
            let (start, end) = metadata.info(&name)?.data_offsets;
            Some((
                name,
                (
                    u64::try_from(start).ok()? + data_start,
                    u64::try_from(end - start).ok()?,
                ),
            ))
        };
        let tensors = metadata
            .offset_keys()
            .into_iter()
            .filter_map(place)
            .collect();
        Ok(Self {
            data_start,
            hash: blake3::hash(&header),
            tensors,
        })
    }
}
