//! The middle of the pipeline: takes loaded blocks in order, has the pool compute on them, folds
//! the measurements, solves, and sends the writer a promise for every piece of output, in order.
//!
//! This stage takes output buffers itself, in the order in which the writer will give them back.
//! If tasks in the pool took them, tasks for later pieces could hold all buffers while the writer
//! waits for an earlier piece.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Select, Sender, TryRecvError, bounded};

use crate::budget::{Budget, Buffer, Buffers};
use crate::error::{Error, Result};
use crate::pass::{Bench, Found, Group, Measured, Solved, Tied, Turn, Work};
use crate::plan::Plan;
use crate::plan::assign::Span;
use crate::plan::schedule::Role;
use crate::plan::tensor::TensorPlan;

use super::promise::{Promise, answer_of};
use super::reader::Loaded;

/// The tied elements of a block, and the block.
type Counted = Promise<(Tied, Loaded)>;

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
    groups: Arc<Budget>,
}

impl Memory {
    /// The memory that `plan` has set aside.
    pub fn of(plan: &Plan) -> Self {
        let groups = plan
            .tensors
            .iter()
            .map(TensorPlan::group_bytes)
            .max()
            .unwrap_or(0);
        Self {
            buffers: Buffers::new(Budget::new(plan.memory.output)),
            groups: Budget::new(groups),
        }
    }

    /// Ends all waiting for memory.
    pub fn close(&self) {
        self.buffers.budget().close();
        self.groups.close();
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
    /// The reading stage, which is told if a further sweep over a group is made.
    pub reader: &'a Sender<bool>,
}

/// A group that is being measured.
struct Open {
    group: Group,
    /// True if the windows stay until the group is solved.
    keep: bool,
    /// The number of the sweep.
    sweep: usize,
    /// Blocks whose tied elements are being counted, in order.
    counted: VecDeque<Counted>,
    /// Blocks that are being measured, or were measured and are not yet folded, in order.
    measured: VecDeque<Promise<(Measured, Option<Loaded>)>>,
    /// The windows that stay.
    kept: Vec<Loaded>,
}

/// Blocks that are applied once the tied elements before them are known, in order.
#[derive(Default)]
struct Ordered {
    counted: VecDeque<(Counted, Arc<Solved>)>,
    /// The tied elements that went by.
    tied: Tied,
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

/// The state between two blocks.
struct State {
    open: Option<Open>,
    rules: Rules,
    ordered: Ordered,
}

impl State {
    /// The first block that waits for the number of tied elements before it.
    fn waiting(&self) -> Option<&Counted> {
        let ordered = self.ordered.counted.front().map(|(counted, _)| counted);
        ordered.or_else(|| self.open.as_ref()?.counted.front())
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
        let mut state = State {
            open: None,
            rules: Rules {
                model: known.map(Arc::new),
                segment: None,
            },
            ordered: Ordered::default(),
        };
        let all = self
            .take(blocks, &mut state)
            .and_then(|()| self.flush(&mut state.ordered));
        match all {
            Ok(()) | Err(Ended::Gone) => Ok(()),
            Err(Ended::Failed(error)) => Err(error),
        }
    }

    /// Takes blocks as they come. Blocks that wait for the number of tied elements before them hold
    /// memory that the reader may need for the next block, so they go on as soon as it is known.
    fn take(&self, blocks: &Receiver<Loaded>, state: &mut State) -> Step {
        loop {
            let next = match state.waiting() {
                None => blocks.recv().map_err(|_| TryRecvError::Disconnected),
                Some(counted) => {
                    let mut select = Select::new();
                    let block = select.recv(blocks);
                    select.recv(counted);
                    match select.ready() {
                        ready if ready == block => blocks.try_recv(),
                        _ => {
                            self.go_on(state)?;
                            continue;
                        }
                    }
                }
            };
            match next {
                Ok(loaded) => self.block(loaded, state)?,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Goes on with the first block whose tied elements were counted.
    fn go_on(&self, state: &mut State) -> Step {
        if !state.ordered.counted.is_empty() {
            return self.apply_next(&mut state.ordered);
        }
        match &mut state.open {
            Some(open) => self.start_counted(open),
            None => Ok(()),
        }
    }

    fn block(&self, loaded: Loaded, state: &mut State) -> Step {
        let tensor = &self.plan.tensors[loaded.block.tensor];
        let State {
            open,
            rules,
            ordered,
        } = state;
        let rule = rules.of(tensor.span);
        match loaded.block.role {
            Role::Whole | Role::Carry => {
                self.flush(ordered)?;
                self.piece(loaded, None)
            }
            Role::Measure { keep, last, .. } => {
                // Pieces go to the writer in plan order, before anything of this group does.
                self.flush(ordered)?;
                let mut group = match open.take() {
                    Some(group) => group,
                    None => {
                        // A rule can take as much memory as the next group, so it must be gone
                        // first.
                        *rule = None;
                        self.open(tensor, keep)?
                    }
                };
                self.measure(loaded, &mut group)?;
                *open = match last {
                    true => self.end_sweep(tensor, group, rule, ordered)?,
                    false => Some(group),
                };
                Ok(())
            }
            Role::Apply => {
                let known = rule
                    .clone()
                    .expect("a group is measured before it is applied");
                self.apply(loaded, known, ordered)
            }
        }
    }

    /// Begins a group, waiting until the memory of the one before is free.
    fn open(&self, tensor: &TensorPlan, keep: bool) -> Step<Open> {
        let group = Group::within(&self.memory.groups, tensor).ok_or(Ended::Gone)?;
        Ok(Open {
            group,
            keep,
            sweep: 0,
            counted: VecDeque::new(),
            measured: VecDeque::new(),
            kept: vec![],
        })
    }

    /// Measures a block, in the pool if the group allows.
    fn measure(&self, loaded: Loaded, open: &mut Open) -> Step {
        let tensor = &self.plan.tensors[loaded.block.tensor];
        if open.group.is_sequential() {
            let added = work(self.bench, self.plan, &loaded).add_to(&mut open.group);
            loaded.intact().and(added)?;
            open.kept.extend(open.keep.then_some(loaded));
            return Ok(());
        }
        let turn = open.group.turn(tensor);
        if !turn.needs_order() {
            self.start(loaded, open, turn, Tied::default());
            return open.fold_ready().map_err(Ended::from);
        }
        open.counted
            .push_back(self.count(loaded, move |work| work.count_tied_in(&turn)));
        open.fold_ready().map_err(Ended::from)
    }

    /// Measures the first block whose tied elements are being counted.
    fn start_counted(&self, open: &mut Open) -> Step {
        let Some(promise) = open.counted.pop_front() else {
            return Ok(());
        };
        let (next, loaded) = answer_of(&promise)?;
        let tensor = &self.plan.tensors[loaded.block.tensor];
        let tied = open.group.pass_tied(tensor, loaded.block.start, &next);
        let turn = open.group.turn(tensor);
        self.start(loaded, open, turn, tied);
        Ok(())
    }

    /// Starts the task that measures a block.
    fn start(&self, loaded: Loaded, open: &mut Open, turn: Turn, tied: Tied) {
        let keep = open.keep;
        let (answer, promise) = bounded(1);
        let (plan, bench) = (Arc::clone(self.plan), Arc::clone(self.bench));
        self.bench.pool().spawn(move || {
            let measured = work(&bench, &plan, &loaded).measure(&turn, &tied);
            let measured = loaded.intact().and(measured);
            drop(turn);
            // Windows that are not kept are freed here, before the sums are asked for.
            let kept = keep.then_some(loaded);
            let _ = answer.send(measured.map(|measured| (measured, kept)));
        });
        open.measured.push_back(promise);
    }

    /// Starts a task that counts the tied elements of a block.
    fn count(
        &self,
        loaded: Loaded,
        count: impl FnOnce(&Work<'_>) -> Result<Tied> + Send + 'static,
    ) -> Counted {
        let (answer, promise) = bounded(1);
        let (plan, bench) = (Arc::clone(self.plan), Arc::clone(self.bench));
        self.bench.pool().spawn(move || {
            let tied = count(&work(&bench, &plan, &loaded));
            let _ = answer.send(tied.map(|tied| (tied, loaded)));
        });
        promise
    }

    /// Ends a sweep over a group, the last block of which is of `tensor`. Windows that were kept are
    /// swept again as often as the group asks for it, then the rule is applied to them. Another
    /// group is returned if it is not solved yet, and the reader is told what to read.
    fn end_sweep(
        &self,
        tensor: &TensorPlan,
        mut open: Open,
        rule: &mut Option<Arc<Solved>>,
        ordered: &mut Ordered,
    ) -> Step<Option<Open>> {
        loop {
            while !open.counted.is_empty() {
                self.start_counted(&mut open)?;
            }
            open.fold_all()?;
            let steps = open.group.advance(tensor);
            let left = tensor.sweeps().len() - 1 - open.sweep;
            let Some(steps) = steps else {
                if !open.keep {
                    (0..left).for_each(|_| self.tell(false));
                }
                self.close(tensor, open, rule, ordered)?;
                return Ok(None);
            };
            open.sweep += steps;
            if !open.keep {
                (1..steps).for_each(|_| self.tell(false));
                self.tell(true);
                return Ok(Some(open));
            }
            for loaded in std::mem::take(&mut open.kept) {
                self.measure(loaded, &mut open)?;
            }
        }
    }

    /// Tells the reader if the next sweep is made.
    fn tell(&self, made: bool) {
        // A reader that is gone has an error of its own.
        let _ = self.reader.send(made);
    }

    /// Solves a group that ends with a block of `tensor`, and applies the rule to the windows that
    /// were kept.
    fn close(
        &self,
        tensor: &TensorPlan,
        open: Open,
        rule: &mut Option<Arc<Solved>>,
        ordered: &mut Ordered,
    ) -> Step {
        let solved = Arc::new(open.group.solve(&**self.bench, tensor)?);
        *rule = Some(Arc::clone(&solved));
        self.send(match tensor.span {
            Span::Model => Order::Solved(Arc::clone(&solved)),
            _ => Order::Found(Box::new(solved.found())),
        })?;
        open.kept
            .into_iter()
            .try_for_each(|loaded| self.apply(loaded, Arc::clone(&solved), ordered))
    }

    /// Applies a rule to a block, once the tied elements before it are known if it needs them.
    fn apply(&self, loaded: Loaded, rule: Arc<Solved>, ordered: &mut Ordered) -> Step {
        if !rule.needs_order() {
            return self.piece(loaded, Some((rule, Tied::default())));
        }
        let known = Arc::clone(&rule);
        let counted = self.count(loaded, move |work| work.count_tied(&known));
        ordered.counted.push_back((counted, rule));
        Ok(())
    }

    /// Applies the rule to all blocks that wait for it.
    fn flush(&self, ordered: &mut Ordered) -> Step {
        while !ordered.counted.is_empty() {
            self.apply_next(ordered)?;
        }
        Ok(())
    }

    fn apply_next(&self, ordered: &mut Ordered) -> Step {
        let Some((promise, rule)) = ordered.counted.pop_front() else {
            return Ok(());
        };
        let (next, loaded) = answer_of(&promise)?;
        let segment = self.plan.tensors[loaded.block.tensor].segment;
        if loaded.block.start.is_multiple_of(segment.max(1)) {
            ordered.tied = Tied::default();
        }
        let before = ordered.tied.clone();
        ordered.tied.add(&next);
        self.piece(loaded, Some((rule, before)))
    }

    /// Starts a task that makes a piece of output, by `rule` unless the piece is solved by itself,
    /// and tells the writer to wait for it.
    fn piece(&self, loaded: Loaded, rule: Option<(Arc<Solved>, Tied)>) -> Step {
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
                Some((rule, tied)) => work.apply(rule, tied, &mut buffer),
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
