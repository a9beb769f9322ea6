//! Reads a pickle as a graph of its values; nothing that it names is imported, called or built.
//!
//! `torch.save` writes a pickle in which every storage is a *persistent id* and every tensor a call
//! of `torch._utils._rebuild_tensor_v2` on one. [`read`] turns the opcodes of protocols 1 to 5 into
//! [`Node`]s: a `REDUCE` is recorded as a [`Call`], a class as its two names. The readers of the
//! graph interpret the calls: they know the few that create tensors and treat all others as opaque.
//!
//! Limits: [`MAX_BYTES`] of pickle, [`MAX_NODES`] nodes and memo entries, [`MAX_STACK`] values and
//! marks on the stack. Memory stays proportional to the bytes read, and within the limit of
//! [`Input`]: memory for every value is reserved before it is created. Names that only serve to run
//! code are refused at once.
//!
//! The opcodes are those of CPython's `Lib/pickletools.py`.

mod graph;
mod hostile;
mod input;
mod machine;
#[cfg(test)]
mod tests;

pub(super) use graph::{Graph, Id, Node};
pub(super) use input::{Input, too_much};
pub(super) use machine::read;

/// The longest pickle that is read, in bytes; a checkpoint of a million tensors needs half of it.
pub(super) const MAX_BYTES: u64 = 256 << 20;
/// The most values one pickle may hold, and the most entries its memo may have.
pub(super) const MAX_NODES: usize = 1 << 23;
/// The most values, or marks, on the stack at one time.
pub(super) const MAX_STACK: usize = 1 << 21;
