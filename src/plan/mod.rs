//! Recipe and headers in, a pure value out: every output tensor, its sources, its dtype, its shard and final offset, the
//! blocks in which it is worked on, and how the memory is shared out. Nothing of a tensor's data is read here.
//!
//! [`Plan::new`] does it in this order: open the inputs' headers, decide what is made of what ([`assign`]) and by which
//! method with which parameters, resolve each tensor ([`tensor`]), lay the output out ([`layout`]), share out the
//! memory ([`memory`]), and take down the identity by which a later run knows that it goes on with the same work
//! ([`identity`]). The order in which blocks are read is [`schedule`].

pub mod assign;
mod choice;
pub mod identity;
mod job;
pub mod layout;
pub mod memory;
pub mod schedule;
pub mod tensor;

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::error::Result;

use assign::Span;
pub use job::{DEFAULT_SHARD_BYTES, Job};
use layout::{Layout, TensorSpec};
use memory::{Memory, Wish};
use tensor::TensorPlan;

/// The most inputs that one merge takes.
pub const MOST_INPUTS: usize = 100;

/// Everything that a merge will do, decided before a byte of data is read.
pub struct Plan {
    /// The inputs, headers only.
    pub inputs: Vec<Checkpoint>,
    /// The output tensors in the order of [`Layout`]'s tensors.
    pub tensors: Vec<TensorPlan>,
    /// Where each of them lies in which shard.
    pub layout: Layout,
    /// How the memory is shared out.
    pub memory: Memory,
    /// What was asked for.
    pub job: Job,
    /// What a resumed run must be equal in.
    pub identity: Value,
}

impl Plan {
    /// Plans `job` under the memory and threads of `wish`.
    ///
    /// # Errors
    ///
    /// When an input cannot be opened, the inputs do not fit each other, or the memory is too small.
    pub fn new(job: &Job, wish: &Wish) -> Result<Self> {
        let inputs = job.inputs.iter().map(|path| Checkpoint::open(path)).collect::<Result<Vec<_>>>()?;
        let tensors = assign::assign(job, &inputs)?
            .into_iter()
            .map(|assignment| TensorPlan::new(&inputs, assignment, job))
            .collect::<Result<Vec<_>>>()?;
        let specs: Vec<TensorSpec> = tensors.iter().map(TensorPlan::spec).collect();
        let mut layout = Layout::new(&specs, job.shard_bytes, "model")?;
        if let Some(level) = job.zstd {
            layout = layout.compressed(level);
        }
        let memory = Memory::share_out(wish, &inputs, &tensors, job.zstd)?;
        let identity = identity::of(job, &inputs, &layout);
        Ok(Self { inputs, tensors, layout, memory, job: job.clone(), identity })
    }

    /// Whether one Gram matrix is taken over all merged tensors.
    pub fn is_over_model(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.span == Span::Model)
    }

    /// Bytes that one full reading of all sources takes.
    pub fn source_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorPlan::source_bytes).sum()
    }

    /// Bytes of tensor data that are written.
    pub fn output_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorPlan::output_bytes).sum()
    }
}
