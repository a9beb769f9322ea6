//! The middle of the pipeline: takes loaded blocks in order, has the pool compute on them, folds
//! the measurements, solves, and sends the writer a promise for every piece of output, in order.
//!
//! This stage takes output buffers itself, in the order in which the writer will give them back.
//! If tasks in the pool took them, tasks for later pieces could hold all buffers while the writer
//! waits for an earlier piece.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::budget::{Budget, Buffer, Buffers};
use crate::error::{Error, Kind, Result};
use crate::pass::{Bench, Found, Group, Measured, Solved, Work};
use crate::plan::Plan;
use crate::plan::assign::Span;
use crate::plan::schedule::Role;
use crate::plan::tensor::TensorPlan;

use super::reader::Loaded;

/// The answer of a task, given once.
type Promise<T> = Receiver<Result<T>>;

/// A message to the writer, in order.
pub enum Order {
    /// A piece of output is being made.
    Piece {
        /// Index of the output tensor.
        tensor: usize,
        /// Byte offset in the tensor.
        offset: u64,
        /// The bytes, and the findings about them.
        made: Promise<(Buffer, Found)>,
    },
    /// A group of the tensor was solved.
    Found(Box<Found>),
    /// The whole model was solved.
    Solved(Arc<Solved>),
}

/// The memory that this stage takes.
pub struct Memory {
    /// Output buffers.
    buffers: Arc<Buffers>,
    /// Statistics and rules that grow with a tensor.
    columns: Arc<Budget>,
}

impl Memory {
    /// The memory that `plan` has set aside.
    pub fn of(plan: &Plan) -> Self {
        let columns = plan
            .tensors
            .iter()
            .map(TensorPlan::column_bytes)
            .max()
            .unwrap_or(0);
        Self {
            buffers: Buffers::new(Budget::new(plan.memory.output)),
            columns: Budget::new(columns),
        }
    }

    /// Ends all waiting for memory.
    pub fn close(&self) {
        self.buffers.budget().close();
        self.columns.close();
    }
}

/// The dispatching stage.
pub struct Dispatch<'a> {
    /// The plan that is carried out.
    pub plan: &'a Arc<Plan>,
    /// The processor or device that computes.
    pub bench: &'a Arc<dyn Bench>,
    /// The output buffers, and the budget for statistics.
    pub memory: &'a Memory,
    /// The writing stage.
    pub writer: &'a Sender<Order>,
}

/// A group that is being measured.
struct Open {
    group: Group,
    /// Blocks that are being measured, or were measured and are not yet folded, in order.
    measured: VecDeque<Promise<(Measured, Option<Loaded>)>>,
    /// Windows that stay until the group is solved.
    kept: Vec<Loaded>,
}

/// The known rules: that of the whole model, which holds to the end, and that of the segment
/// measured last, for tensors that are not merged over the whole model. Neither may overwrite the
/// other.
#[derive(Default)]
struct Rules {
    model: Option<Arc<Solved>>,
    segment: Option<Arc<Solved>>,
}

impl Rules {
    /// Returns the slot for the rule of a tensor of this span.
    fn of(&mut self, span: Span) -> &mut Option<Arc<Solved>> {
        if span == Span::Model {
            &mut self.model
        } else {
            &mut self.segment
        }
    }
}

/// The reason why a stage ends before its input does.
enum Ended {
    /// The next stage is gone, and knows why.
    Gone,
    /// This stage has failed.
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The result of a step of this stage.
type Step<T = ()> = std::result::Result<T, Ended>;

impl Dispatch<'_> {
    /// Works on all of `blocks`; `known` is the rule of the whole model when an earlier run found
    /// it.
    ///
    /// # Errors
    ///
    /// The first failure in plan order: of measuring, or of solving.
    pub fn run(&self, blocks: &Receiver<Loaded>, known: Option<Solved>) -> Result<()> {
        let mut open = None;
        let mut rules = Rules {
            model: known.map(Arc::new),
            segment: None,
        };
        let all = blocks
            .into_iter()
            .try_for_each(|loaded| self.block(loaded, &mut open, &mut rules));
        match all {
            Ok(()) | Err(Ended::Gone) => Ok(()),
            Err(Ended::Failed(error)) => Err(error),
        }
    }

    fn block(&self, loaded: Loaded, open: &mut Option<Open>, rules: &mut Rules) -> Step {
        let tensor = &self.plan.tensors[loaded.block.tensor];
        let rule = rules.of(tensor.span);
        match loaded.block.role {
            Role::Whole | Role::Carry => self.piece(loaded, None),
            Role::Measure { keep, last } => {
                let mut group = match open.take() {
                    Some(group) => group,
                    None => {
                        // A rule can take as much memory as the next group, so it must be gone
                        // first.
                        *rule = None;
                        self.open(tensor)?
                    }
                };
                self.measure(loaded, &mut group, keep)?;
                match last {
                    true => self.close(tensor, group, rule)?,
                    false => *open = Some(group),
                }
                Ok(())
            }
            Role::Apply => {
                let known = rule
                    .clone()
                    .expect("a group is measured before it is applied");
                self.piece(loaded, Some(known))
            }
        }
    }

    /// Begins a group, waiting until the memory of the one before is free.
    fn open(&self, tensor: &TensorPlan) -> Step<Open> {
        let group = Group::within(&self.memory.columns, tensor).ok_or(Ended::Gone)?;
        Ok(Open {
            group,
            measured: VecDeque::new(),
            kept: vec![],
        })
    }

    /// Measures a block, in the pool if the group allows.
    fn measure(&self, loaded: Loaded, open: &mut Open, keep: bool) -> Step {
        if open.group.is_sequential() {
            let added = work(self.bench, self.plan, &loaded).add_to(&mut open.group);
            loaded.intact().and(added)?;
            open.kept.extend(keep.then_some(loaded));
            return Ok(());
        }
        let (answer, promise) = bounded(1);
        let (plan, bench) = (Arc::clone(self.plan), Arc::clone(self.bench));
        self.bench.pool().spawn(move || {
            let measured = work(&bench, &plan, &loaded).measure();
            let measured = loaded.intact().and(measured);
            // Windows that are not kept are freed here, before the sums are asked for.
            let kept = keep.then_some(loaded);
            let _ = answer.send(measured.map(|measured| (measured, kept)));
        });
        open.measured.push_back(promise);
        open.fold_ready().map_err(Ended::from)
    }

    /// Solves a group that ends with a block of `tensor`, and applies the rule to the windows that
    /// were kept.
    fn close(&self, tensor: &TensorPlan, mut open: Open, rule: &mut Option<Arc<Solved>>) -> Step {
        open.fold_all()?;
        let solved = Arc::new(open.group.solve(&**self.bench, tensor)?);
        *rule = Some(Arc::clone(&solved));
        self.send(match tensor.span {
            Span::Model => Order::Solved(Arc::clone(&solved)),
            _ => Order::Found(Box::new(solved.found())),
        })?;
        open.kept
            .into_iter()
            .try_for_each(|loaded| self.piece(loaded, Some(Arc::clone(&solved))))
    }

    /// Starts a task that makes a piece of output, by `rule` unless the piece is solved by itself,
    /// and tells the writer to wait for it.
    fn piece(&self, loaded: Loaded, rule: Option<Arc<Solved>>) -> Step {
        let block = loaded.block;
        let unit = self.plan.tensors[block.tensor].output_unit();
        let place = self.plan.layout.tensors()[block.tensor].offset + block.start * unit;
        let len = usize::try_from(block.len * unit).expect("a block fits the memory");
        let (answer, made) = bounded(1);
        let order = Order::Piece {
            tensor: block.tensor,
            offset: block.start * unit,
            made,
        };
        let mut buffer = match self.memory.buffers.take(len, place) {
            Ok(buffer) => buffer.ok_or(Ended::Gone)?,
            // The writer receives the error in order, after the pieces made before.
            Err(error) => {
                let _ = answer.send(Err(error.resumable()));
                return self.send(order);
            }
        };
        let (plan, bench) = (Arc::clone(self.plan), Arc::clone(self.bench));
        self.bench.pool().spawn(move || {
            let work = work(&bench, &plan, &loaded);
            let found = match &rule {
                Some(rule) => work.apply(rule, &mut buffer),
                None => work.whole(&mut buffer),
            };
            let found = loaded.intact().and(found);
            drop((loaded, rule));
            let _ = answer.send(found.map(|found| (buffer, found)));
        });
        self.send(order)
    }

    fn send(&self, order: Order) -> Step {
        self.writer.send(order).map_err(|_| Ended::Gone)
    }
}

impl Open {
    /// Folds the blocks at the front that have been measured.
    fn fold_ready(&mut self) -> Result<()> {
        while self
            .measured
            .front()
            .is_some_and(|promise| !promise.is_empty())
        {
            self.fold_next()?;
        }
        Ok(())
    }

    /// Folds all blocks, waiting for those that are still being measured.
    fn fold_all(&mut self) -> Result<()> {
        while !self.measured.is_empty() {
            self.fold_next()?;
        }
        Ok(())
    }

    fn fold_next(&mut self) -> Result<()> {
        let Some(promise) = self.measured.pop_front() else {
            return Ok(());
        };
        let (measured, loaded) = answer_of(&promise)?;
        self.group.fold(&measured);
        self.kept.extend(loaded);
        Ok(())
    }
}

fn work<'a>(bench: &'a Arc<dyn Bench>, plan: &'a Plan, loaded: &'a Loaded) -> Work<'a> {
    Work::new(&**bench, plan, &loaded.block, &loaded.windows)
}

/// Waits for the answer of a task.
///
/// # Errors
///
/// The task's own error, or a failure that says that the task died without an answer.
pub fn answer_of<T>(promise: &Promise<T>) -> Result<T> {
    promise.recv().unwrap_or_else(|_| {
        Err(Error::new(
            Kind::Io,
            "a worker thread ended without an answer",
            "pool",
            "it panicked; this is a bug",
        ))
    })
}
