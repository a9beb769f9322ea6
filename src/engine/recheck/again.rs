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
use crate::pass::{Bench, Group, Solved, Tied, Work};
use crate::plan::Plan;
use crate::plan::assign::Span;
use crate::plan::schedule::{Block, Role, is_measured};
use crate::plan::tensor::TensorPlan;

/// The way in which a tensor's elements are computed.
pub(in crate::engine) enum Making {
    /// Copied, or solved by small segments and combined at once.
    AtOnce,
    /// By one rule for all of them.
    Known(Segment),
    /// Segment by segment; the one that was solved last.
    Segment(Option<Segment>),
}

/// A segment that is solved.
pub(in crate::engine) struct Segment {
    start: u64,
    rule: Arc<Solved>,
    /// The element up to which tied elements were counted, and their number.
    counted: (u64, Tied),
}

impl Segment {
    fn new(start: u64, rule: Arc<Solved>) -> Self {
        Self {
            start,
            rule,
            counted: (start, Tied::default()),
        }
    }
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
        let all: Vec<(usize, &TensorPlan)> = of_model.collect();
        let Some((_, last)) = all.last() else {
            return Ok(None);
        };
        let mut group = Group::new(last);
        loop {
            for (index, tensor) in &all {
                self.measure(*index, 0..tensor.elements, &mut group)?;
            }
            if group.advance(last).is_none() {
                break;
            }
        }
        group.solve(self.bench, last).map(Arc::new).map(Some)
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
            Span::Model => {
                let rule = whole.expect("a chosen tensor had it solved");
                Ok(Making::Known(Segment::new(0, Arc::clone(rule))))
            }
            Span::FirstAxis => {
                let rule = self.solved(index, 0..tensor.elements)?;
                Ok(Making::Known(Segment::new(0, rule)))
            }
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
            let whole = tensor.whole_elements();
            let range = match at_once {
                true => segment.clone(),
                false => at / whole * whole..end.next_multiple_of(whole).min(segment.end),
            };
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
                Making::Known(known) => {
                    let tied = self.tied_before(index, range.start, known)?;
                    work.apply(&known.rule, &tied, &mut made)?
                }
                Making::Segment(known) => {
                    let known = self.segment(index, &segment, known)?;
                    let tied = self.tied_before(index, range.start, known)?;
                    work.apply(&known.rule, &tied, &mut made)?
                }
            };
            bytes.extend_from_slice(&made[size(at - range.start)..size(end - range.start)]);
            at = end;
        }
        Ok(bytes)
    }

    /// The solved segment, unless it is `known` already.
    fn segment<'k>(
        &self,
        index: usize,
        segment: &Range<u64>,
        known: &'k mut Option<Segment>,
    ) -> Result<&'k mut Segment> {
        let is_known = known.as_ref().map(|known| known.start) == Some(segment.start);
        if !is_known {
            let rule = self.solved(index, segment.clone())?;
            *known = Some(Segment::new(segment.start, rule));
        }
        Ok(known.as_mut().expect("set above"))
    }

    /// Counts the tied elements of a segment before element `start`, if its rule needs them; goes on
    /// from those that were counted before.
    fn tied_before(&self, index: usize, start: u64, known: &mut Segment) -> Result<Tied> {
        if !known.rule.needs_order() {
            return Ok(Tied::default());
        }
        if known.counted.0 > start {
            known.counted = (known.start, Tied::default());
        }
        let (from, tied) = &mut known.counted;
        for block in self.blocks(index, *from..start) {
            let windows = self.load(&block)?;
            let work = Work::new(self.bench, self.plan, &block, &windows);
            tied.add(&work.count_tied(&known.rule)?);
        }
        *from = start;
        Ok(tied.clone())
    }

    /// The rule of the group that `range` of a tensor is.
    fn solved(&self, index: usize, range: Range<u64>) -> Result<Arc<Solved>> {
        let tensor = &self.plan.tensors[index];
        let mut group = Group::new(tensor);
        loop {
            self.measure(index, range.clone(), &mut group)?;
            if group.advance(tensor).is_none() {
                return group.solve(self.bench, tensor).map(Arc::new);
            }
        }
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
        let most = self.plan.block_of(&self.plan.tensors[tensor]);
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
            sweeps: None,
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
