//! The middle of the pipeline: takes loaded blocks in order, has them worked on in the pool, folds what was measured, solves,
//! and hands the writer a promise for every piece of output, in order.
//!
//! This stage takes output buffers itself, in the order in which the writer will give them back. Were they taken inside
//! the pool, tasks for later pieces could hold all of them while the writer waits for an earlier one.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use rayon::ThreadPool;

use crate::budget::{Buffer, Buffers};
use crate::error::{Error, Kind, Result};
use crate::kernel::pair_count;
use crate::method::{Gram, Method, Solution};
use crate::plan::Plan;
use crate::plan::assign::Span;
use crate::plan::schedule::{Block, Role};
use crate::plan::tensor::Action;
use crate::report::Found;

use super::columns::{ColumnRule, ColumnSums};
use super::reader::Loaded;
use super::work::{self, Part, Workbench};

/// What a task will answer, once.
type Promise<T> = Receiver<Result<T>>;

/// What the writer is told, in order.
pub enum Order {
    /// A piece of output is being made.
    Piece {
        /// Index of the output tensor.
        tensor: usize,
        /// Byte offset in the tensor.
        offset: u64,
        /// The bytes, and what was found on the way.
        made: Promise<(Buffer, Found)>,
    },
    /// A group of the tensor was solved.
    Found(Box<Found>),
    /// The whole model was solved.
    Solved(Box<Solution>),
}

/// The dispatching stage.
pub struct Dispatch<'a> {
    /// What is merged.
    pub plan: &'a Arc<Plan>,
    /// Kernels and working memory.
    pub bench: &'a Arc<Workbench>,
    /// Where work is done.
    pub pool: &'a ThreadPool,
    /// Where output buffers come from.
    pub buffers: &'a Arc<Buffers>,
    /// The writing stage.
    pub writer: &'a Sender<Order>,
}

/// A group that is being measured.
#[derive(Default)]
struct Group {
    measured: VecDeque<Promise<Measured>>,
    kept: Vec<Loaded>,
    gram: Option<Gram>,
    /// An input is not finite, so that the base has to be taken instead.
    replaced: bool,
    columns: Option<ColumnSums>,
}

/// One measured block, and its windows when they are kept.
type Measured = (work::Measured, Option<Loaded>);

/// How a block is combined.
#[derive(Clone)]
enum Rule {
    /// With these coefficients.
    Uniform(Arc<Solution>),
    /// Each column with its own.
    Columns(Arc<ColumnRule>),
}

/// The rules that are known: the whole model's, which holds to the end, and that of the segment measured last, for tensors
/// that are not merged over the whole model. One must not take the other's place.
#[derive(Default)]
struct Rules {
    model: Option<Rule>,
    segment: Option<Rule>,
}

impl Rules {
    /// Where the rule of a tensor of this span is kept.
    fn of(&mut self, span: Span) -> &mut Option<Rule> {
        if span == Span::Model { &mut self.model } else { &mut self.segment }
    }
}

/// Why a stage ended before its input did: the next stage is gone, and knows why.
struct Gone;

impl Dispatch<'_> {
    /// Works on all of `blocks`; `solution` is that of the whole model when an earlier run found it.
    ///
    /// # Errors
    ///
    /// The first failure in plan order: of measuring, or of solving.
    pub fn run(&self, blocks: &Receiver<Loaded>, solution: Option<Arc<Solution>>) -> Result<()> {
        let mut group = Group::default();
        let mut rules = Rules { model: solution.map(Rule::Uniform), segment: None };
        let mut columns_gone = None;
        for loaded in blocks {
            let span = self.plan.tensors[loaded.block.tensor].span;
            let rule = rules.of(span);
            let ended = match loaded.block.role {
                Role::Whole | Role::Carry => self.piece(loaded, None),
                Role::Measure { keep, last } if span == Span::FirstAxis => {
                    if group.columns.is_none() {
                        // Columns can take as much memory as is left, so those of the tensor before must be gone.
                        *rule = None;
                        let _ = columns_gone.take().map(|gone: Receiver<()>| gone.recv());
                    }
                    let block = loaded.block;
                    self.measure_columns(loaded, &mut group, keep)?;
                    if last { self.close_columns(&block, &mut group, rule, &mut columns_gone)? } else { Ok(()) }
                }
                Role::Measure { keep, last } => {
                    let block = loaded.block;
                    self.measure(loaded, &mut group, keep);
                    group.fold(self.inputs_of(&block), last)?;
                    if last { self.close(&block, &mut group, rule)? } else { Ok(()) }
                }
                Role::Apply => {
                    let known = rule.clone().expect("a group is measured before it is applied");
                    self.piece(loaded, Some(known))
                }
            };
            if let Err(Gone) = ended {
                return Ok(());
            }
        }
        Ok(())
    }

    fn measure(&self, loaded: Loaded, group: &mut Group, keep: bool) {
        let (answer, promise) = bounded(1);
        let (plan, bench) = (Arc::clone(self.plan), Arc::clone(self.bench));
        self.pool.spawn(move || {
            let method = method_of(&plan, &loaded.block);
            let sums = work::measure(&bench, &part(&plan, &loaded), &*method);
            let sums = loaded.intact().and(sums);
            // Unless they are kept, the windows are given back here, not when somebody asks for the sums.
            let kept = keep.then_some(loaded);
            let _ = answer.send(sums.map(|sums| (sums, kept)));
        });
        group.measured.push_back(promise);
    }

    /// Adds a block to the sums of its columns, here and now: their order is that of the rows.
    fn measure_columns(&self, loaded: Loaded, group: &mut Group, keep: bool) -> Result<()> {
        let method = method_of(self.plan, &loaded.block);
        let tensor = &self.plan.tensors[loaded.block.tensor];
        let sums = group.columns.get_or_insert_with(|| ColumnSums::new(tensor));
        let added = sums.add(self.pool, self.bench.kernels(), &part(self.plan, &loaded), &*method);
        loaded.intact().and(added)?;
        group.kept.extend(keep.then_some(loaded));
        Ok(())
    }

    /// Solves the columns of the tensor whose last block was `block`, and applies the windows that were kept.
    fn close_columns(
        &self,
        block: &Block,
        group: &mut Group,
        rule: &mut Option<Rule>,
        gone: &mut Option<Receiver<()>>,
    ) -> Result<Result<(), Gone>> {
        let Group { kept, columns, .. } = std::mem::take(group);
        let sums = columns.expect("columns are solved after they were measured");
        let tensor = &self.plan.tensors[block.tensor];
        let (solved, found, let_go) = sums.solve(self.pool, tensor, &*method_of(self.plan, block))?;
        let solved = Rule::Columns(Arc::new(solved));
        (*rule, *gone) = (Some(solved.clone()), Some(let_go));
        if self.writer.send(Order::Found(Box::new(found))).is_err() {
            return Ok(Err(Gone));
        }
        Ok(kept.into_iter().try_for_each(|loaded| self.piece(loaded, Some(solved.clone()))))
    }

    /// Solves a group whose last block was `block`, and applies the windows that were kept.
    fn close(&self, block: &Block, group: &mut Group, rule: &mut Option<Rule>) -> Result<Result<(), Gone>> {
        let Group { kept, gram, replaced, .. } = std::mem::take(group);
        let gram = gram.unwrap_or_else(|| Gram::new(self.inputs_of(block)));
        let tensor = &self.plan.tensors[block.tensor];
        let solved = Arc::new(work::solve(tensor, &*method_of(self.plan, block), &gram, replaced)?);
        *rule = Some(Rule::Uniform(Arc::clone(&solved)));
        let order = if tensor.span == Span::Model {
            Order::Solved(Box::new((*solved).clone()))
        } else {
            Order::Found(Box::new(Found::of(&solved.facts)))
        };
        if self.writer.send(order).is_err() {
            return Ok(Err(Gone));
        }
        let applied =
            kept.into_iter().try_for_each(|loaded| self.piece(loaded, Some(Rule::Uniform(Arc::clone(&solved)))));
        Ok(applied)
    }

    fn inputs_of(&self, block: &Block) -> usize {
        self.plan.tensors[block.tensor].sources.len()
    }

    /// Has a piece of output made and tells the writer to wait for it.
    fn piece(&self, loaded: Loaded, rule: Option<Rule>) -> Result<(), Gone> {
        let block = loaded.block;
        let unit = self.plan.tensors[block.tensor].output_unit();
        let place = self.plan.layout.tensors()[block.tensor].offset + block.start * unit;
        let len = usize::try_from(block.len * unit).expect("a block fits the memory");
        let (answer, made) = bounded(1);
        let order = Order::Piece { tensor: block.tensor, offset: block.start * unit, made };
        let mut buffer = match self.buffers.take(len, place) {
            Ok(buffer) => buffer.ok_or(Gone)?,
            // The writer hears of it in its turn, after what was made before.
            Err(error) => {
                let _ = answer.send(Err(error.resumable()));
                return self.writer.send(order).map_err(|_| Gone);
            }
        };
        let (plan, bench) = (Arc::clone(self.plan), Arc::clone(self.bench));
        self.pool.spawn(move || {
            let found = make(&plan, &bench, &loaded, rule.as_ref(), &mut buffer);
            let found = loaded.intact().and(found);
            drop((loaded, rule));
            let _ = answer.send(found.map(|found| (buffer, found)));
        });
        self.writer.send(order).map_err(|_| Gone)
    }
}

impl Group {
    /// Folds in order what has been measured: all of it when the group `ends`, otherwise what is there already.
    fn fold(&mut self, inputs: usize, ends: bool) -> Result<()> {
        while let Some(promise) = self.measured.front() {
            if !ends && promise.is_empty() {
                return Ok(());
            }
            let (measured, loaded) = answer_of(promise)?;
            self.measured.pop_front();
            let gram = self.gram.get_or_insert_with(|| Gram::new(inputs));
            self.replaced |= measured.replaced;
            measured.sums.chunks_exact(pair_count(inputs)).for_each(|chunk| gram.add(chunk));
            self.kept.extend(loaded);
        }
        Ok(())
    }
}

fn make(plan: &Plan, bench: &Workbench, loaded: &Loaded, rule: Option<&Rule>, output: &mut [u8]) -> Result<Found> {
    let part = part(plan, loaded);
    let combined = |overflowed| Ok(Found { overflowed, ..Found::default() });
    match (loaded.block.role, rule) {
        (Role::Carry, _) => Ok(work::carry(&part, output)),
        (_, Some(Rule::Uniform(solution))) => combined(work::apply(bench, &part, solution, output)?),
        (_, Some(Rule::Columns(rule))) => combined(rule.apply(bench.kernels(), &part, output)?),
        (_, None) => work::whole(bench, &part, &*method_of(plan, &loaded.block), output),
    }
}

fn part<'a>(plan: &'a Plan, loaded: &'a Loaded) -> Part<'a> {
    Part { plan, block: loaded.block, windows: &loaded.windows }
}

fn method_of(plan: &Plan, block: &Block) -> Arc<dyn Method> {
    match &plan.tensors[block.tensor].action {
        Action::Merge(method) => Arc::clone(method),
        Action::Carry(_) => unreachable!("carried tensors are never measured"),
    }
}

/// What a task answered.
///
/// # Errors
///
/// The task's own error, or that it died without an answer.
pub fn answer_of<T>(promise: &Promise<T>) -> Result<T> {
    promise.recv().unwrap_or_else(|_| {
        Err(Error::new(Kind::Io, "a worker thread ended without an answer", "pool", "it panicked; this is a bug"))
    })
}
