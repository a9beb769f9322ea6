//! The decision about elements that are not finite, made for the groups of one tensor and outside
//! of every loop over elements: kernels find such elements, the policy decides about them.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::{Elements, Kernels};
use crate::plan::Plan;
use crate::plan::tensor::TensorPlan;
use crate::recipe::NanPolicy;

/// An element of an input that is NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OddElement {
    /// Its flat index in the output tensor.
    pub(super) position: u64,
    /// The source that it belongs to.
    pub(super) input: usize,
}

/// The recipe's NaN policy for elements of one tensor that lie in memory.
#[derive(Clone, Copy)]
pub(super) struct Policy<'a> {
    pub(super) plan: &'a Plan,
    pub(super) tensor: &'a TensorPlan,
    /// The flat index in the tensor of the first of these elements.
    pub(super) start: u64,
}

impl Policy<'_> {
    /// The policy for elements that begin `by` elements later.
    pub(super) fn moved(self, by: usize) -> Self {
        Self {
            start: self.start + by as u64,
            ..self
        }
    }

    /// Tells if NaN and infinity reach the output: `nan: propagate`.
    pub(super) fn lets_through(self) -> bool {
        self.plan.job.nan == NanPolicy::Propagate
    }

    /// Decides about `odd` elements; a refusal names the first. Returns true if the base is to be
    /// taken instead of their group.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`] with file, tensor and flat index when they are not allowed, or the base
    /// itself is not finite.
    pub(super) fn judge(self, odd: &[OddElement]) -> Result<bool> {
        let refused = match self.plan.job.nan {
            NanPolicy::Propagate => None,
            NanPolicy::Error => odd.first(),
            NanPolicy::Base => odd
                .iter()
                .find(|element| self.tensor.base == Some(element.input)),
        };
        match refused {
            Some(element) => Err(self.refusal(*element)),
            None => Ok(self.plan.job.nan == NanPolicy::Base && !odd.is_empty()),
        }
    }

    /// Looks for odd elements in a chunk of `inputs` and decides about them, as [`Policy::judge`]
    /// does.
    pub(super) fn judge_chunk(
        self,
        kernels: Kernels,
        inputs: &[Elements<'_>],
        chunk: &Range<usize>,
    ) -> Result<bool> {
        if self.lets_through() {
            return Ok(false);
        }
        let mut odd = Vec::new();
        for (index, input) in inputs.iter().enumerate() {
            if let Some(at) = kernels.first_nonfinite(input.slice(chunk.clone())) {
                odd.push(OddElement {
                    position: self.start + (chunk.start + at) as u64,
                    input: index,
                });
            }
        }
        self.judge(&odd)
    }

    fn refusal(self, OddElement { position, input }: OddElement) -> Error {
        let source = &self.tensor.sources[input];
        let hint = match self.plan.job.nan {
            NanPolicy::Base => {
                "the base itself must be finite where it replaces others: repair it, or name another base"
            }
            _ => {
                "repair or leave out that model, or say `nan: propagate` to let such elements through, `nan: base` to \
                 take such tensors from the base"
            }
        };
        Error::new(
            Kind::NonFinite,
            "input is not finite",
            format!(
                "{}: `{}`",
                self.plan.inputs[source.input].root().display(),
                source.name.escape_debug()
            ),
            format!("NaN or infinity at flat index {position}"),
        )
        .with_hint(hint)
    }

    /// Refuses an overflow in a chunk if the type of `output` has no infinity: the value became
    /// NaN there, which a user could not trace back to the merge. In a type with infinities an
    /// overflow stays visible, and is only reported.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`] with tensor and flat index, unless NaN is let through.
    pub(super) fn refuse_overflow(
        self,
        kernels: Kernels,
        chunk: &Range<usize>,
        output: &[u8],
    ) -> Result<()> {
        let dtype = self.tensor.dtype;
        if dtype != Dtype::F8E4M3 || self.lets_through() {
            return Ok(());
        }
        // All inputs were finite, so NaN can only have come by rounding.
        let Some(at) = kernels.first_nonfinite(Elements {
            dtype,
            bytes: output,
        }) else {
            return Ok(());
        };
        let position = self.start + (chunk.start + at) as u64;
        let cause = format!(
            "the value at flat index {position} is beyond 448, the largest number of F8_E4M3, and would be NaN"
        );
        Err(Error::new(Kind::NonFinite, "output is not finite", self.tensor.name.escape_debug(), cause).with_hint(
            "write a wider type, such as `dtype: bfloat16`, or say `nan: propagate` to have NaN written there",
        ))
    }
}
