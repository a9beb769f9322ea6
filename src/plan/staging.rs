//! The number and size of a device's lanes.

use crate::budget::format_bytes;
use crate::device::LaneLayout;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::CHUNK;

use super::memory::{DeviceWish, Staging, Wish};
use super::tensor::{Action, TensorPlan};

/// The fewest lanes. With two, one copies while the other computes.
const FEWEST_LANES: usize = 2;
/// The most lanes. With more, nothing is left to overlap: copies each way and the kernels take
/// turns.
const MOST_LANES: usize = 4;
/// The largest lane. Beyond this size, copies are as fast as they get.
const LANE_CAP_BYTES: usize = 32 << 20;
/// All lanes together take at most one part in this many of the host memory, unless they need more.
const SHARE: u64 = 4;

/// Sizes the lanes for these tensors: within the device's memory, and within a quarter of the
/// host's where that suffices; each lane holds at least one chunk of the widest tensor. `None` when
/// nothing is merged.
///
/// # Errors
///
/// [`Kind::Device`], naming the smallest device memory that suffices, when this one is too small.
pub fn share_out(
    wish: &Wish,
    device: &DeviceWish,
    tensors: &[TensorPlan],
) -> Result<Option<Staging>> {
    let merged = merged_dtypes(tensors);
    let lane = |chunks: usize| lane_bytes(&merged, chunks);
    let smallest = lane(1);
    if smallest == 0 {
        return Ok(None);
    }
    let least = (FEWEST_LANES * smallest) as u64;
    if device.memory < least {
        let cause = format!("{FEWEST_LANES} lanes need at least {}", format_bytes(least));
        return Err(Error::new(
            Kind::Device,
            "device memory is too small",
            format_bytes(device.memory),
            cause,
        )
        .with_hint(format!(
            "give --device-memory {}MiB or more, or leave out --device",
            least.div_ceil(1 << 20)
        )));
    }
    let most = device.memory.min((wish.memory / SHARE).max(least));
    let enough = |lanes: usize, chunks: usize| (lanes * lane(chunks)) as u64 <= most;
    let wanted = wish.threads.clamp(FEWEST_LANES, MOST_LANES);
    let lanes = (FEWEST_LANES..=wanted)
        .rev()
        .find(|lanes| enough(*lanes, 1))
        .unwrap_or(FEWEST_LANES);
    let mut chunks = 1;
    while enough(lanes, 2 * chunks) && lane(2 * chunks) <= LANE_CAP_BYTES {
        chunks *= 2;
    }
    Ok(Some(Staging {
        lanes,
        lane_bytes: lane(chunks),
    }))
}

/// Returns the dtypes of the sources and of the output of each merged tensor.
fn merged_dtypes(tensors: &[TensorPlan]) -> Vec<(Vec<Dtype>, Dtype)> {
    let merged = tensors
        .iter()
        .filter(|tensor| matches!(tensor.action, Action::Merge(_)));
    merged
        .map(|tensor| {
            let inputs = tensor.sources.iter().map(|source| source.dtype);
            (inputs.collect(), tensor.dtype)
        })
        .collect()
}

/// Returns the bytes of a lane that holds so many chunks of the widest tensor.
fn lane_bytes(merged: &[(Vec<Dtype>, Dtype)], chunks: usize) -> usize {
    let bytes = merged
        .iter()
        .map(|(inputs, out)| LaneLayout::new(inputs, *out, chunks * CHUNK).bytes());
    bytes.max().unwrap_or(0)
}
