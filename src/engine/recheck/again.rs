//! Computing blocks of an output once more, one after the other, without any part of the pipeline.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::ThreadPool;

use crate::budget::Budget;
use crate::checkpoint::Window;
use crate::engine::columns::{ColumnRule, ColumnSums};
use crate::engine::reader::{OpenedStacks, Reader, Sources};
use crate::engine::stop::Stop;
use crate::engine::work::{self, Part, Workbench};
use crate::error::Result;
use crate::kernel::pair_count;
use crate::method::{Gram, Method, Solution};
use crate::monitor::Silent;
use crate::plan::Plan;
use crate::plan::assign::Span;
use crate::plan::schedule::{Block, Role, is_measured};
use crate::plan::tensor::{Action, TensorPlan};

/// How a tensor's elements are made.
pub(in crate::engine) enum Rule {
    /// Copied, or solved by small segments and combined at once.
    AtOnce,
    /// By one solution; the number of the segment that it is for.
    Segment(Option<(u64, Arc<Solution>)>),
    /// By the solution of the whole model.
    Model(Arc<Solution>),
    /// By one solution a column.
    Columns(ColumnRule),
}

/// What is needed to compute any block of the output once more.
pub(in crate::engine) struct Merger<'a> {
    pub(in crate::engine) plan: &'a Plan,
    pub(in crate::engine) bench: &'a Workbench,
    pub(in crate::engine) sources: &'a Sources,
    /// One thread, where something wants a pool.
    pub(in crate::engine) alone: &'a ThreadPool,
}

impl Merger<'_> {
    /// The solution of the whole model, if some chosen tensor needs it.
    pub(in crate::engine) fn whole_model(&self, chosen: &BTreeMap<usize, Vec<u64>>) -> Result<Option<Arc<Solution>>> {
        let over_model = |tensor: &TensorPlan| tensor.span == Span::Model && is_measured(tensor);
        let Some(any) = chosen.keys().copied().find(|tensor| over_model(&self.plan.tensors[*tensor])) else {
            return Ok(None);
        };
        let mut measured = Group::new(self.plan.tensors[any].sources.len());
        for (index, tensor) in self.plan.tensors.iter().enumerate().filter(|(_, tensor)| over_model(tensor)) {
            self.measure(index, 0..tensor.elements, &mut measured)?;
        }
        // What decides over the whole model is decided for the last tensor that is measured.
        let last = self.plan.tensors.iter().rfind(|tensor| over_model(tensor)).expect("one was found");
        Ok(Some(Arc::new(work::solve(last, self.method(any), &measured.gram, measured.replaced)?)))
    }

    pub(in crate::engine) fn rule_of(&self, index: usize, whole: &Option<Arc<Solution>>) -> Result<Rule> {
        let tensor = &self.plan.tensors[index];
        if !is_measured(tensor) || tensor.segment == 0 {
            return Ok(Rule::AtOnce);
        }
        match tensor.span {
            Span::Model => Ok(Rule::Model(Arc::clone(whole.as_ref().expect("a chosen tensor had it solved")))),
            Span::FirstAxis => {
                let mut sums = ColumnSums::new(tensor);
                for block in self.blocks(index, 0..tensor.elements) {
                    let windows = self.load(&block)?;
                    sums.add(self.alone, self.bench.kernels(), &self.part(block, &windows), self.method(index))?;
                }
                let (rule, _, _) = sums.solve(self.alone, tensor, self.method(index))?;
                Ok(Rule::Columns(rule))
            }
            _ if tensor.segment <= self.plan.memory.block => Ok(Rule::AtOnce),
            _ => Ok(Rule::Segment(None)),
        }
    }

    /// The output's bytes for `len` elements from `start` on.
    pub(in crate::engine) fn merged(&self, index: usize, start: u64, len: u64, rule: &mut Rule) -> Result<Vec<u8>> {
        let tensor = &self.plan.tensors[index];
        let unit = usize::try_from(tensor.output_unit()).expect("an element is a few bytes");
        let size = |len: u64| usize::try_from(len).expect("a block fits the memory") * unit;
        let mut bytes = Vec::with_capacity(size(len));
        let at_once = matches!(rule, Rule::AtOnce) && is_measured(tensor);
        let mut at = start;
        while at < start + len {
            // Segments are taken one by one; where they are solved and combined at once, whole.
            let segment = if is_measured(tensor) { at / tensor.segment } else { 0 };
            let of_segment = match is_measured(tensor) && tensor.span != Span::FirstAxis {
                true => segment * tensor.segment..((segment + 1) * tensor.segment).min(tensor.elements),
                false => 0..tensor.elements,
            };
            let end = of_segment.end.min(start + len);
            let range = if at_once { of_segment.clone() } else { at..end };
            let block = Block { tensor: index, start: range.start, len: range.end - range.start, role: Role::Whole };
            let windows = self.load(&block)?;
            let part = self.part(block, &windows);
            let mut made = vec![0; size(block.len)];
            match rule {
                Rule::AtOnce => drop(self.at_once(&part, &mut made)?),
                Rule::Model(solution) => drop(work::apply(self.bench, &part, solution, &mut made)?),
                Rule::Columns(rule) => drop(rule.apply(self.bench.kernels(), &part, &mut made)?),
                Rule::Segment(known) => {
                    let solution = self.solution_of(index, segment, &of_segment, known)?;
                    work::apply(self.bench, &part, &solution, &mut made)?;
                }
            }
            bytes.extend_from_slice(&made[size(at - range.start)..size(end - range.start)]);
            at = end;
        }
        Ok(bytes)
    }

    fn at_once(&self, part: &Part<'_>, made: &mut [u8]) -> Result<()> {
        match part.tensor().action {
            Action::Carry(_) => drop(work::carry(part, made)),
            Action::Merge(_) => drop(work::whole(self.bench, part, self.method(part.block.tensor), made)?),
        }
        Ok(())
    }

    fn solution_of(
        &self,
        index: usize,
        segment: u64,
        range: &std::ops::Range<u64>,
        known: &mut Option<(u64, Arc<Solution>)>,
    ) -> Result<Arc<Solution>> {
        if let Some((of, solution)) = known
            && *of == segment
        {
            return Ok(Arc::clone(solution));
        }
        let tensor = &self.plan.tensors[index];
        let mut measured = Group::new(tensor.sources.len());
        self.measure(index, range.clone(), &mut measured)?;
        let solution = Arc::new(work::solve(tensor, self.method(index), &measured.gram, measured.replaced)?);
        *known = Some((segment, Arc::clone(&solution)));
        Ok(solution)
    }

    fn measure(&self, index: usize, range: std::ops::Range<u64>, group: &mut Group) -> Result<()> {
        for block in self.blocks(index, range) {
            let windows = self.load(&block)?;
            let measured = work::measure(self.bench, &self.part(block, &windows), self.method(index))?;
            group.replaced |= measured.replaced;
            measured.sums.chunks_exact(pair_count(windows.len())).for_each(|chunk| group.gram.add(chunk));
        }
        Ok(())
    }

    /// Blocks that fit the memory and begin at whole chunks of the range.
    fn blocks(&self, tensor: usize, range: std::ops::Range<u64>) -> impl Iterator<Item = Block> + use<> {
        let most = self.plan.memory.block;
        let starts = (range.start..range.end).step_by(usize::try_from(most).expect("a block fits the memory"));
        starts.map(move |start| Block { tensor, start, len: most.min(range.end - start), role: Role::Whole })
    }

    fn method(&self, index: usize) -> &dyn Method {
        match &self.plan.tensors[index].action {
            Action::Merge(method) => &**method,
            Action::Carry(_) => unreachable!("carried tensors are not measured"),
        }
    }

    fn part<'b>(&'b self, block: Block, windows: &'b [Window]) -> Part<'b> {
        Part { plan: self.plan, block, windows }
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

/// What was measured of one group.
struct Group {
    gram: Gram,
    replaced: bool,
}

impl Group {
    fn new(inputs: usize) -> Self {
        Self { gram: Gram::new(inputs), replaced: false }
    }
}
