//! A merge whose result is used in memory and not written, for many small models.

use rayon::ThreadPoolBuilder;

use crate::checkpoint::Io;
use crate::error::{Error, Kind, Result};
use crate::kernel::Kernels;
use crate::pass::Processor;
use crate::plan::Plan;
use crate::plan::tensor::TensorPlan;

use super::recheck::Merger;

/// Computes every tensor of `plan` by itself, in the plan's blocks, and passes all of its bytes to
/// `take`: the same bytes that [`merge`](super::merge()) writes.
///
/// # Errors
///
/// Whatever reading and merging fail with, and those of `take`.
pub fn merge_in_memory(
    plan: &Plan,
    kernels: Kernels,
    io: Io,
    take: &mut dyn FnMut(&TensorPlan, &[u8]) -> Result<()>,
) -> Result<()> {
    let alone = ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .map_err(|error| Error::new(Kind::Io, "cannot start threads", 1, error))?;
    let sources = super::open_sources(plan, None, io)?;
    let bench = Processor::new(kernels, alone);
    let merger = Merger {
        plan,
        bench: &bench,
        sources: &sources,
    };
    let all = (0..plan.tensors.len())
        .map(|tensor| (tensor, Vec::new()))
        .collect();
    let whole = merger.whole_model(&all)?;
    for (index, tensor) in plan.tensors.iter().enumerate() {
        let mut making = merger.making_of(index, whole.as_ref())?;
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < tensor.elements {
            let len = plan.memory.block.min(tensor.elements - at);
            bytes.extend(merger.merged(index, at, len, &mut making)?);
            at += len;
        }
        take(tensor, &bytes)?;
    }
    Ok(())
}
