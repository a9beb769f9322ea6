//! Elements of one tensor that are in memory, and cutting them into chunks.

use std::ops::Range;

use crate::checkpoint::Window;
use crate::dtype::Dtype;
use crate::kernel::{CHUNK, Elements};
use crate::method::Method;
use crate::plan::Plan;
use crate::plan::schedule::Block;
use crate::plan::tensor::{Action, TensorPlan};

use super::policy::Policy;

/// Elements of one tensor that are in memory, equally many of each source; bytes if the tensor is
/// carried.
///
/// Ranges count from the first of these elements.
pub(super) struct Stretch<'a> {
    /// The policy for odd elements, with the tensor and the index of the first element in it.
    pub(super) policy: Policy<'a>,
    inputs: Vec<Elements<'a>>,
}

impl<'a> Stretch<'a> {
    /// The elements of `block`, whose bytes are in `windows`, one for each source.
    pub(super) fn new(plan: &'a Plan, block: &Block, windows: &'a [Window]) -> Self {
        let tensor = &plan.tensors[block.tensor];
        // Carried bytes are not interpreted.
        let dtypes = tensor.sources.iter().map(|source| match tensor.action {
            Action::Merge(_) => source.dtype,
            Action::Carry(_) => Dtype::U8,
        });
        let inputs = dtypes
            .zip(windows)
            .map(|(dtype, window)| Elements {
                dtype,
                bytes: window,
            })
            .collect();
        Self {
            policy: Policy {
                plan,
                tensor,
                start: block.start,
            },
            inputs,
        }
    }

    /// The tensor that they belong to.
    pub(super) fn tensor(&self) -> &'a TensorPlan {
        self.policy.tensor
    }

    /// The method by which the tensor is merged.
    pub(super) fn method(&self) -> &'a dyn Method {
        method_of(self.policy.tensor)
    }

    /// The number of elements.
    pub(super) fn len(&self) -> usize {
        self.inputs.first().map_or(0, Elements::len)
    }

    /// The elements of `range`, one entry for each source.
    pub(super) fn elements(&self, range: &Range<usize>) -> Vec<Elements<'a>> {
        super::bench::sliced(&self.inputs, range)
    }
}

/// The method by which `tensor` is merged.
pub(super) fn method_of(tensor: &TensorPlan) -> &dyn Method {
    match &tensor.action {
        Action::Merge(method) => &**method,
        Action::Carry(_) => {
            unreachable!("carried tensors are copied, not measured and not combined")
        }
    }
}

/// The chunks of `range`, counted from its start.
pub(super) fn chunks(range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    cut(range, CHUNK)
}

/// The pieces of `range` of `len` elements each; the last one may be shorter.
pub(super) fn cut(range: &Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range
        .clone()
        .step_by(len.max(1))
        .map(move |start| start..end.min(start.saturating_add(len)))
}
