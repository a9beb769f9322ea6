//! The order in which blocks are read, and the role of each.
//!
//! A *group* shares one Gram matrix: a segment of a tensor, or the whole model. Small segments are
//! measured, solved and applied inside one block ([`Role::Whole`]). A larger one is measured block
//! by block. If all its windows fit the input memory together they are kept and applied without a
//! second reading ([`Role::Measure`] with `keep`), otherwise its blocks are read once more
//! ([`Role::Apply`]).

use crate::method::Method;
use crate::method::elementwise::SweepKind;

use super::Plan;
use super::assign::Span;
use super::memory::WINDOW_EDGE_BYTES;
use super::tensor::{Action, TensorPlan};

/// The work done on a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Measured, solved and applied at once: it holds whole segments.
    Whole,
    /// Measured; after the `last` block the group is solved, and if `keep` is set all its blocks
    /// are applied.
    Measure {
        /// True if the windows stay until they are applied.
        keep: bool,
        /// True if the group is complete with this block.
        last: bool,
        /// The number of the sweep over the group.
        sweep: usize,
        /// True if the sweep is made in any case; another one only if the one before asks for it.
        sure: bool,
    },
    /// Combined by the solution of the group measured last.
    Apply,
    /// Copied, and compared with the other sources.
    Carry,
}

/// A run of elements of one tensor that is read, worked on and released together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Index of the output tensor.
    pub tensor: usize,
    /// First element; for a carried tensor, byte.
    pub start: u64,
    /// Elements; for a carried tensor, bytes.
    pub len: u64,
    /// The work done on it.
    pub role: Role,
}

impl Plan {
    /// Returns all blocks in the order in which they are read, without tensors that are durable
    /// already: `durable[tensor]` counts the bytes of the tensor's output that an earlier run has
    /// finished, and `solved` is true if the coefficients of a merge over the whole model are
    /// known.
    pub fn schedule<'a>(
        &'a self,
        durable: &'a [u64],
        solved: bool,
    ) -> impl Iterator<Item = Block> + 'a {
        let measured =
            (0..self.tensors.len()).filter(move |&i| !solved && is_over_model(&self.tensors[i]));
        let last = measured.clone().next_back();
        let sweeps = last.map_or_else(Vec::new, |last| roles(&self.tensors[last], false));
        let first_pass = sweeps.into_iter().flat_map(move |role| {
            measured.clone().flat_map(move |index| {
                let mut blocks = Vec::new();
                self.cut(index, 0..self.tensors[index].elements, role, &mut blocks);
                if last == Some(index) {
                    close_group(&mut blocks);
                }
                blocks
            })
        });
        let open =
            (0..self.tensors.len()).filter(move |&i| durable[i] < self.tensors[i].output_bytes());
        first_pass.chain(open.flat_map(move |index| self.blocks_of(index)))
    }

    /// Returns the blocks of one tensor, without those that measure the whole model.
    ///
    /// A tensor that is durable in part is worked on from its start, though only the rest is
    /// written: findings about a tensor, such as values that overflowed, are journalled only when
    /// one run has seen all of it.
    fn blocks_of(&self, index: usize) -> Vec<Block> {
        let tensor = &self.tensors[index];
        let mut blocks = Vec::new();
        match &tensor.action {
            Action::Carry(_) => self.cut(index, 0..tensor.elements, Role::Carry, &mut blocks),
            Action::Merge(_) if is_over_model(tensor) => {
                self.cut(index, 0..tensor.elements, Role::Apply, &mut blocks);
            }
            Action::Merge(_) => self.merge_blocks(index, &mut blocks),
        }
        blocks
    }

    fn merge_blocks(&self, index: usize, blocks: &mut Vec<Block>) {
        let tensor = &self.tensors[index];
        let block = self.memory.block;
        if !is_measured(tensor) || tensor.segment == 0 {
            return self.cut(index, 0..tensor.elements, Role::Whole, blocks);
        }
        // Columns run through all blocks, however small the tensor.
        if tensor.segment <= block && tensor.span != Span::FirstAxis {
            let whole = block / tensor.segment * tensor.segment;
            return cut_by(index, 0..tensor.elements, whole, Role::Whole, blocks);
        }
        for segment in 0..tensor.elements / tensor.segment {
            let range = segment * tensor.segment..(segment + 1) * tensor.segment;
            let keep = self.fits(tensor);
            for role in roles(tensor, keep) {
                self.cut(index, range.clone(), role, blocks);
                close_group(blocks);
            }
            if !keep {
                self.cut(index, range, Role::Apply, blocks);
            }
        }
    }

    /// Tells if all windows of one segment fit the input memory at once.
    fn fits(&self, tensor: &TensorPlan) -> bool {
        let windows = tensor.segment.div_ceil(self.block_of(tensor)) * tensor.sources.len() as u64;
        let bytes = tensor.segment * tensor.window_units() + windows * WINDOW_EDGE_BYTES;
        bytes <= self.memory.input
    }

    fn cut(&self, tensor: usize, range: std::ops::Range<u64>, role: Role, blocks: &mut Vec<Block>) {
        let len = match role {
            Role::Carry => self.memory.block,
            _ => self.block_of(&self.tensors[tensor]),
        };
        cut_by(tensor, range, len, role, blocks);
    }

    /// Returns the elements of a block of `tensor`: whole rows where rows are looked at.
    pub fn block_of(&self, tensor: &TensorPlan) -> u64 {
        let whole = tensor.whole_elements();
        (self.memory.block / whole).max(1) * whole
    }
}

/// The roles of a group's blocks in the sweeps over it; one if its windows are kept, over which the
/// further sweeps go.
fn roles(tensor: &TensorPlan, keep: bool) -> Vec<Role> {
    let most = if keep { 1 } else { usize::MAX };
    let kinds = tensor.sweeps().into_iter().enumerate().take(most);
    kinds
        .map(|(sweep, kind)| Role::Measure {
            keep,
            last: false,
            sweep,
            sure: kind != SweepKind::Refine,
        })
        .collect()
}

fn close_group(blocks: &mut [Block]) {
    if let Some(Block {
        role: Role::Measure { last, .. },
        ..
    }) = blocks.last_mut()
    {
        *last = true;
    }
}

fn cut_by(
    tensor: usize,
    range: std::ops::Range<u64>,
    len: u64,
    role: Role,
    blocks: &mut Vec<Block>,
) {
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + len);
        blocks.push(Block {
            tensor,
            start,
            len: end - start,
            role,
        });
        start = end;
    }
}

/// Tells if the tensor's coefficients depend on its contents.
pub fn is_measured(tensor: &TensorPlan) -> bool {
    let depends = |method: &dyn Method| tensor.scanned || method.is_measured();
    matches!(&tensor.action, Action::Merge(method) if depends(&**method)) && tensor.elements > 0
}

/// Tells if the tensor's coefficients are those of the whole model.
fn is_over_model(tensor: &TensorPlan) -> bool {
    tensor.span == Span::Model && is_measured(tensor)
}
