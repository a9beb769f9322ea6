//! Computes blocks of an output once more, one after the other, without any part of the pipeline.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::budget::Budget;
use crate::checkpoint::Window;
use crate::engine::reader::{OpenedStacks, Reader, Sources};
use crate::engine::stop::Stop;
use crate::error::Result;
use crate::monitor::Silent;
use crate::pass::{Bench, Group, Solved, Work};
use crate::plan::Plan;
use crate::plan::assign::Span;
use crate::plan::schedule::{Block, Role, is_measured};
use crate::plan::tensor::TensorPlan;

/// The way in which a tensor's elements are computed.
pub(in crate::engine) enum Making {
    /// Copied, or solved by small segments and combined at once.
    AtOnce,
    /// By one rule for all of them.
    Known(Arc<Solved>),
    /// Segment by segment; the number and the rule of the one that was solved last.
    Segment(Option<(u64, Arc<Solved>)>),
}

/// Computes any block of the output once more.
pub(in crate::engine) struct Merger<'a> {
    pub(in crate::engine) plan: &'a Plan,
    pub(in crate::engine) bench: &'a dyn Bench,
    pub(in crate::engine) sources: &'a Sources,
}

impl Merger<'_> {
    /// The rule of the whole model, if some chosen tensor needs it.
    pub(in crate::engine) fn whole_model(
        &self,
        chosen: &BTreeMap<usize, Vec<u64>>,
    ) -> Result<Option<Arc<Solved>>> {
        if !chosen
            .keys()
            .any(|index| is_over_model(&self.plan.tensors[*index]))
        {
            return Ok(None);
        }
        let of_model = self
            .plan
            .tensors
            .iter()
            .enumerate()
            .filter(|(_, tensor)| is_over_model(tensor));
        let mut measured: Option<(Group, &TensorPlan)> = None;
        for (index, tensor) in of_model {
            let mut group = measured.map_or_else(|| Group::new(tensor), |(group, _)| group);
            self.measure(index, 0..tensor.elements, &mut group)?;
            measured = Some((group, tensor));
        }
        // The rule of the whole model is solved once its last tensor has been measured.
        measured
            .map(|(group, last)| group.solve(self.bench, last).map(Arc::new))
            .transpose()
    }

    /// Returns the way in which the elements of a tensor are computed, with the rule of the `whole`
    /// model where that is needed.
    pub(in crate::engine) fn making_of(
        &self,
        index: usize,
        whole: Option<&Arc<Solved>>,
    ) -> Result<Making> {
        let tensor = &self.plan.tensors[index];
        if !is_measured(tensor) || tensor.segment == 0 {
            return Ok(Making::AtOnce);
        }
        match tensor.span {
            Span::Model => Ok(Making::Known(Arc::clone(
                whole.expect("a chosen tensor had it solved"),
            ))),
            Span::FirstAxis => Ok(Making::Known(self.solved(index, 0..tensor.elements)?)),
            _ if tensor.segment <= self.plan.memory.block => Ok(Making::AtOnce),
            _ => Ok(Making::Segment(None)),
        }
    }

    /// Computes the output's bytes for `len` elements from `start` on.
    pub(in crate::engine) fn merged(
        &self,
        index: usize,
        start: u64,
        len: u64,
        making: &mut Making,
    ) -> Result<Vec<u8>> {
        let tensor = &self.plan.tensors[index];
        let unit = usize::try_from(tensor.output_unit()).expect("an element is a few bytes");
        let size = |len: u64| usize::try_from(len).expect("a block fits the memory") * unit;
        let mut bytes = Vec::with_capacity(size(len));
        let at_once = matches!(making, Making::AtOnce) && is_measured(tensor);
        let mut at = start;
        while at < start + len {
            let segment = segment_at(tensor, at);
            let end = segment.end.min(start + len);
            // Segments are computed one by one, as a whole if they are solved and combined at once.
            let range = if at_once { segment.clone() } else { at..end };
            let block = Block {
                tensor: index,
                start: range.start,
                len: range.end - range.start,
                role: Role::Whole,
            };
            let windows = self.load(&block)?;
            let work = Work::new(self.bench, self.plan, &block, &windows);
            let mut made = vec![0; size(block.len)];
            match making {
                Making::AtOnce => work.whole(&mut made)?,
                Making::Known(rule) => work.apply(rule, &mut made)?,
                Making::Segment(known) => {
                    work.apply(&*self.rule_of(index, &segment, known)?, &mut made)?
                }
            };
            bytes.extend_from_slice(&made[size(at - range.start)..size(end - range.start)]);
            at = end;
        }
        Ok(bytes)
    }

    /// The rule of a segment, solved unless it is `known`.
    fn rule_of(
        &self,
        index: usize,
        segment: &Range<u64>,
        known: &mut Option<(u64, Arc<Solved>)>,
    ) -> Result<Arc<Solved>> {
        match known {
            Some((start, rule)) if *start == segment.start => Ok(Arc::clone(rule)),
            _ => {
                let rule = self.solved(index, segment.clone())?;
                *known = Some((segment.start, Arc::clone(&rule)));
                Ok(rule)
            }
        }
    }

    /// The rule of the group that `range` of a tensor is.
    fn solved(&self, index: usize, range: Range<u64>) -> Result<Arc<Solved>> {
        let tensor = &self.plan.tensors[index];
        let mut group = Group::new(tensor);
        self.measure(index, range, &mut group)?;
        group.solve(self.bench, tensor).map(Arc::new)
    }

    fn measure(&self, index: usize, range: Range<u64>, group: &mut Group) -> Result<()> {
        for block in self.blocks(index, range) {
            let windows = self.load(&block)?;
            Work::new(self.bench, self.plan, &block, &windows).add_to(group)?;
        }
        Ok(())
    }

    /// Blocks that fit the memory and begin at whole chunks of the range.
    fn blocks(&self, tensor: usize, range: Range<u64>) -> impl Iterator<Item = Block> + use<> {
        let most = self.plan.memory.block;
        let starts = (range.start..range.end)
            .step_by(usize::try_from(most).expect("a block fits the memory"));
        starts.map(move |start| Block {
            tensor,
            start,
            len: most.min(range.end - start),
            role: Role::Whole,
        })
    }

    fn load(&self, block: &Block) -> Result<Vec<Window>> {
        let (budget, stop) = (Budget::new(u64::MAX), Stop::default());
        let reader = Reader {
            plan: self.plan,
            sources: self.sources,
            kernels: self.bench.kernels(),
            opened: OpenedStacks::default(),
            pool: None,
            budget: &budget,
            monitor: &Silent,
            stop: &stop,
        };
        reader.load(block)
    }
}

fn is_over_model(tensor: &TensorPlan) -> bool {
    tensor.span == Span::Model && is_measured(tensor)
}

/// Returns the segment that holds element `at` of a tensor: the whole tensor if elements are not
/// measured by segments.
fn segment_at(tensor: &TensorPlan, at: u64) -> Range<u64> {
    if !is_measured(tensor) || tensor.span == Span::FirstAxis {
        return 0..tensor.elements;
    }
    let start = at / tensor.segment * tensor.segment;
    start..(start + tensor.segment).min(tensor.elements)
}
