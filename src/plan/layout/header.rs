//! The exact first bytes of a shard: eight of length, then JSON, padded so that data begins at a
//! multiple of 8.

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::{Part, TensorSpec, to_u64};
use crate::error::{Context, Kind, Result};

/// Builds the header of a shard of `part` that holds the tensors in `group`.
pub(super) fn bytes(
    group: &[usize],
    tensors: &[TensorSpec],
    lens: &[u64],
    part: &Part,
) -> Result<Vec<u8>> {
    let mut offset = 0usize;
    let mut infos = Vec::with_capacity(group.len());
    for &tensor in group {
        let spec = &tensors[tensor];
        let info = info(spec, lens[tensor], offset)?;
        offset = info.data_offsets.1;
        infos.push((name_in(&part.folder, &spec.name).to_owned(), info));
    }
    let context = Context::new(Kind::Input, "cannot build header", "shard");
    let tensors = Metadata::new(None, infos).map_err(|cause| context.error(cause))?;
    let tensors = serde_json::to_string(&tensors).map_err(|cause| context.error(cause))?;
    // The crate keeps metadata in a hash map, whose entries would come out in a random order.
    let metadata = serde_json::to_string(&part.metadata).map_err(|cause| context.error(cause))?;
    let comma = if tensors == "{}" { "" } else { "," };
    let mut json = format!("{{\"__metadata__\":{metadata}{comma}{}", &tensors[1..]).into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = to_u64(json.len()).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// Describes a tensor of `len` bytes that lies at `offset` in the data.
fn info(spec: &TensorSpec, len: u64, offset: usize) -> Result<TensorInfo> {
    let context = Context::new(Kind::Input, "cannot describe tensor", &spec.name);
    let dtype = serde_json::from_value(Value::from(spec.dtype.name()))
        .map_err(|cause| context.error(cause))?;
    let shape: Result<_, _> = spec.shape.iter().map(|dim| usize::try_from(*dim)).collect();
    let len = usize::try_from(len).map_err(|cause| context.error(cause))?;
    Ok(TensorInfo {
        dtype,
        shape: shape.map_err(|cause| context.error(cause))?,
        data_offsets: (offset, offset + len),
    })
}

/// Returns the name in the files of `folder` for the output's tensor `name`.
pub(super) fn name_in<'a>(folder: &str, name: &'a str) -> &'a str {
    if folder.is_empty() {
        return name;
    }
    name.strip_prefix(folder)
        .and_then(|rest| rest.strip_prefix('/'))
        .unwrap_or(name)
}
