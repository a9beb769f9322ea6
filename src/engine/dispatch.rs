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
use crate::plan::schedule::{Block, Role};
use crate::plan::tensor::Action;
use crate::report::Found;

use super::reader::Loaded;
use super::work::{self, ChunkSums, Part, Workbench};

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
}

/// One measured block: the sums of its chunks, and its windows when they are kept.
type Measured = (ChunkSums, Option<Loaded>);

/// Why a stage ended before its input did: the next stage is gone, and knows why.
struct Gone;

impl Dispatch<'_> {
    /// Works on all of `blocks`; `solution` is that of the whole model when an earlier run found it.
    ///
    /// # Errors
    ///
    /// The first failure in plan order: of measuring, or of solving.
    pub fn run(&self, blocks: &Receiver<Loaded>, mut solution: Option<Arc<Solution>>) -> Result<()> {
        let mut group = Group::default();
        for loaded in blocks {
            let ended = match loaded.block.role {
                Role::Whole | Role::Carry => self.piece(loaded, None),
                Role::Measure { keep, last } => {
                    let block = loaded.block;
                    self.measure(loaded, &mut group, keep);
                    group.fold(self.inputs_of(&block), last)?;
                    if last { self.close(&block, &mut group, &mut solution)? } else { Ok(()) }
                }
                Role::Apply => {
                    let known = solution.clone().expect("a group is measured before it is applied");
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

    /// Solves a group whose last block was `block`, and applies the windows that were kept.
    fn close(
        &self,
        block: &Block,
        group: &mut Group,
        solution: &mut Option<Arc<Solution>>,
    ) -> Result<Result<(), Gone>> {
        let Group { kept, gram, .. } = std::mem::take(group);
        let gram = gram.unwrap_or_else(|| Gram::new(self.inputs_of(block)));
        let solved = Arc::new(method_of(self.plan, block).solve(&gram)?);
        *solution = Some(Arc::clone(&solved));
        let order = if self.plan.is_over_model() {
            Order::Solved(Box::new((*solved).clone()))
        } else {
            Order::Found(Box::new(Found::of(&solved.facts)))
        };
        if self.writer.send(order).is_err() {
            return Ok(Err(Gone));
        }
        let applied = kept.into_iter().try_for_each(|loaded| self.piece(loaded, Some(Arc::clone(&solved))));
        Ok(applied)
    }

    fn inputs_of(&self, block: &Block) -> usize {
        self.plan.tensors[block.tensor].sources.len()
    }

    /// Has a piece of output made and tells the writer to wait for it.
    fn piece(&self, loaded: Loaded, solution: Option<Arc<Solution>>) -> Result<(), Gone> {
        let block = loaded.block;
        let unit = self.plan.tensors[block.tensor].output_unit();
        let len = usize::try_from(block.len * unit).expect("a block fits the memory");
        let mut buffer = self.buffers.take(len).ok_or(Gone)?;
        let (answer, made) = bounded(1);
        let (plan, bench) = (Arc::clone(self.plan), Arc::clone(self.bench));
        self.pool.spawn(move || {
            let found = make(&plan, &bench, &loaded, solution.as_deref(), &mut buffer);
            let found = loaded.intact().and(found);
            drop(loaded);
            let _ = answer.send(found.map(|found| (buffer, found)));
        });
        let order = Order::Piece { tensor: block.tensor, offset: block.start * unit, made };
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
            let (sums, loaded) = answer_of(promise)?;
            self.measured.pop_front();
            let gram = self.gram.get_or_insert_with(|| Gram::new(inputs));
            sums.chunks_exact(pair_count(inputs)).for_each(|chunk| gram.add(chunk));
            self.kept.extend(loaded);
        }
        Ok(())
    }
}

fn make(
    plan: &Plan,
    bench: &Workbench,
    loaded: &Loaded,
    solution: Option<&Solution>,
    output: &mut [u8],
) -> Result<Found> {
    let part = part(plan, loaded);
    match (loaded.block.role, solution) {
        (Role::Carry, _) => Ok(work::carry(&part, output)),
        (_, Some(solution)) => {
            let overflowed = work::apply(bench, &part, solution, output);
            Ok(Found { overflowed, ..Found::default() })
        }
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
