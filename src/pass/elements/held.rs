//! The elements of base and models of a run: their pieces, keys, sums and counts.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::kernel::select::{
    Deltas, Draws, KeyOf, Mix, MixCounts, Mixing, Output, Picks, Words, divergence,
};
use crate::kernel::{CHUNK, Elements};
use crate::method::elementwise::{ElementRule, Histogram, Refinement, Stream};
use crate::plan::assign::Span;
use crate::plan::tensor::TensorPlan;

use super::super::bench::{Host, sliced};
use super::super::policy::Policy;
use super::super::stretch::{chunks, cut};

/// The elements of base and models on the host.
pub(super) struct Held<'h, 'p> {
    pub(super) host: Host<'h>,
    pub(super) base: Elements<'h>,
    pub(super) models: Vec<Elements<'h>>,
    pub(super) policy: Policy<'p>,
}

impl<'h, 'p> Held<'h, 'p> {
    pub(super) fn new(
        host: Host<'h>,
        policy: Policy<'p>,
        base: usize,
        models: impl Iterator<Item = usize>,
    ) -> Self {
        Self {
            base: host.inputs[base],
            models: models.map(|input| host.inputs[input]).collect(),
            host,
            policy,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.base.len()
    }

    /// The pieces of all elements: chunks, or rows cut into chunks.
    pub(super) fn pieces(&self, by_row: bool) -> Vec<Range<usize>> {
        let all = 0..self.len();
        match by_row {
            false => chunks(&all).collect(),
            true => cut(&all, self.row_len())
                .flat_map(|row| cut(&row, CHUNK))
                .collect(),
        }
    }

    pub(super) fn row_len(&self) -> usize {
        row_len(self.policy.tensor)
    }

    /// The random words of a model at `position` of the recipe, in the row that a group is.
    pub(super) fn words(&self, rule: &ElementRule, position: u32) -> Words {
        let tensor = self.policy.tensor;
        let row = match tensor.span {
            Span::Row => self.policy.start / tensor.segment.max(1),
            _ => 0,
        };
        Words {
            key: Draws::new(rule.seed, position, &tensor.name).key,
            row: u32::try_from(row & u64::from(u32::MAX)).expect("the low half"),
        }
    }

    /// Writes the keys of `piece`.
    pub(super) fn keys(&mut self, piece: Range<usize>, of: KeyOf, keys: &mut Vec<u32>) {
        keys.resize(piece.len(), 0);
        let models = sliced(&self.models, &piece);
        let deltas = Deltas {
            base: self.base.slice(piece),
            models: &models,
        };
        self.host.kernels.keys(deltas, of, self.host.scratch, keys);
    }

    /// Writes the keys of a stream, piece by piece.
    pub(super) fn stream(&mut self, stream: Stream, sink: &mut dyn FnMut(&[u32])) {
        let mut keys = std::mem::take(&mut self.host.scratch.select.keys);
        match stream {
            Stream::Magnitude(model) => {
                for piece in self.pieces(false) {
                    self.keys(piece, KeyOf::Magnitude { model, factor: 1.0 }, &mut keys);
                    sink(&keys);
                }
            }
            Stream::Deviation => {
                for piece in self.pieces(false) {
                    self.keys(piece, KeyOf::Deviation, &mut keys);
                    sink(&keys);
                }
            }
            Stream::Importance(model) => {
                for row in cut(&(0..self.len()), self.row_len()) {
                    let factor = self.divergence(model, &row);
                    self.keys(row, KeyOf::Magnitude { model, factor }, &mut keys);
                    sink(&keys);
                }
            }
        }
        self.host.scratch.select.keys = keys;
    }

    /// Gives the keys of a row of a model to `rank`.
    pub(super) fn rank(
        &mut self,
        model: usize,
        row: &Range<usize>,
        rank: &mut dyn FnMut(&[u32], &mut Vec<u64>),
    ) {
        let mut keys = std::mem::take(&mut self.host.scratch.select.keys);
        let of = KeyOf::Magnitude { model, factor: 1.0 };
        self.keys(row.clone(), of, &mut keys);
        rank(&keys, &mut self.host.scratch.select.order);
        self.host.scratch.select.keys = keys;
    }

    /// Writes a piece of the output; returns the number of finite values that overflowed.
    pub(super) fn mix(
        &mut self,
        piece: &Range<usize>,
        picks: Picks<'_, '_>,
        mix: &Mix,
        bytes: &mut [u8],
        counts: &mut MixCounts,
    ) -> u64 {
        let models = sliced(&self.models, piece);
        let mixing = Mixing {
            deltas: Deltas {
                base: self.base.slice(piece.clone()),
                models: &models,
            },
            picks,
            mix,
            output: Output {
                dtype: self.host.out,
                bytes,
            },
        };
        let combined = self.host.kernels.mix(mixing, self.host.scratch, counts);
        combined.overflows
    }

    /// Counts the keys of each stream in bins.
    pub(super) fn count(&mut self, histogram: &Histogram) {
        let mut counts = std::mem::take(&mut self.host.scratch.select.counts);
        for (at, stream) in histogram.streams.iter().enumerate() {
            histogram.add(at, &mut counts, &mut |sink| self.stream(*stream, sink));
        }
        self.host.scratch.select.counts = counts;
    }

    /// Counts the keys of single bins.
    pub(super) fn count_in_bins(&mut self, refinement: &Refinement) {
        let mut counts = std::mem::take(&mut self.host.scratch.select.counts);
        let wanted = refinement.streams.iter().enumerate();
        for (at, (stream, _)) in wanted.filter(|(_, (_, bins))| !bins.is_empty()) {
            refinement.add(at, &mut counts, &mut |sink| self.stream(*stream, sink));
        }
        self.host.scratch.select.counts = counts;
    }

    /// Counts the elements of each model that others have changed too, and that none else has.
    pub(super) fn shared(&mut self, epsilon: f64) -> Vec<[u64; 2]> {
        let mut counts = vec![[0; 2]; self.models.len()];
        for piece in self.pieces(false) {
            let models = sliced(&self.models, &piece);
            let deltas = Deltas {
                base: self.base.slice(piece),
                models: &models,
            };
            let Host {
                kernels, scratch, ..
            } = &mut self.host;
            kernels.count_shared(deltas, epsilon, scratch, &mut counts);
        }
        counts
    }

    /// The divergence of a row of a model from that of the base.
    pub(super) fn divergence(&mut self, model: usize, row: &Range<usize>) -> f64 {
        let mut wide = std::mem::take(&mut self.host.scratch.select.wide);
        for (wide, input) in wide.iter_mut().zip([self.models[model], self.base]) {
            wide.resize(row.len(), 0.0);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(wide);
            // Widening never overflows.
            self.host
                .kernels
                .convert(input.slice(row.clone()), Dtype::F64, bytes);
        }
        let found = divergence(&wide[0], &wide[1]);
        self.host.scratch.select.wide = wide;
        found
    }
}

/// The elements of a row: of the last axis.
fn row_len(tensor: &TensorPlan) -> usize {
    usize::try_from(tensor.row_len()).expect("a row fits the memory")
}
