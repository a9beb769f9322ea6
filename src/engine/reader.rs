//! The reading stage: walks the schedule, waits for memory, does the disk's work, hands windows on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::Sender;
use rayon::ThreadPool;

use crate::budget::{Budget, Reservation};
use crate::checkpoint::{Source, Window};
use crate::error::Result;
use crate::kernel::{Elements, Kernels};
use crate::monitor::Monitor;
use crate::plan::Plan;
use crate::plan::memory::WINDOW_EDGE_BYTES;
use crate::plan::placement::Placement;
use crate::plan::schedule::Block;
use crate::plan::tensor::{SourcePlan, TensorPlan};
use crate::view::Gather;
use crate::view::Stored;

use super::stop::Stop;

/// A block whose bytes are in memory, and what they cost.
pub struct Loaded {
    /// Which part of which tensor.
    pub block: Block,
    /// One window a source.
    pub windows: Vec<Window>,
    /// What the windows take of the budget.
    pub _reservation: Reservation,
}

impl Loaded {
    /// Asked after the windows were used and before the result is: whether it is worth anything.
    ///
    /// # Errors
    ///
    /// An input was changed or could not be read meanwhile.
    pub fn intact(&self) -> Result<()> {
        self.windows.iter().try_for_each(Window::intact)
    }
}

/// The opened files of all inputs, by input and file.
pub type Sources = HashMap<(usize, usize), Arc<dyn Source>>;

/// What the reading stage works with.
pub struct Reader<'a> {
    /// What is read.
    pub plan: &'a Plan,
    /// Where from.
    pub sources: &'a Sources,
    /// What turns pairs of units of aligned models.
    pub kernels: Kernels,
    /// Where the elements of aligned models come from.
    pub gathers: Gathers,
    /// Who multiplies where aligned models are mapped.
    pub pool: Option<&'a ThreadPool>,
    /// What pays for the windows.
    pub budget: &'a Arc<Budget>,
    /// Who is told.
    pub monitor: &'a dyn Monitor,
    /// Who may end it.
    pub stop: &'a Stop,
}

impl Reader<'_> {
    /// Reads `blocks` in order until they end, somebody asks to stop, or the next stage is gone.
    ///
    /// # Errors
    ///
    /// When a source cannot be read or has changed.
    pub fn run(&self, blocks: impl Iterator<Item = Block>, next: &Sender<Loaded>) -> Result<()> {
        let mut blocks = blocks.peekable();
        let mut shown = None;
        while let Some(block) = blocks.next() {
            let tensor = &self.plan.tensors[block.tensor];
            let before = shown.replace(block.tensor);
            if before != Some(block.tensor) {
                self.monitor.tensor(&tensor.name);
                before.into_iter().for_each(|before| self.rest(&self.plan.tensors[before], tensor));
            }
            let cost = block.len * tensor.window_units() + tensor.sources.len() as u64 * WINDOW_EDGE_BYTES;
            let Some(reservation) = self.budget.reserve(cost) else {
                return Ok(());
            };
            if self.stop.asked() {
                return Ok(());
            }
            if let Some(ahead) = blocks.peek() {
                self.prefetch(ahead);
            }
            let windows = self.load(&block)?;
            self.monitor.advance(tensor.read_bytes(block.start, block.len));
            self.monitor.memory(self.budget.used());
            if next.send(Loaded { block, windows, _reservation: reservation }).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Lets the files rest that tensor `before` was read from and `now` is not.
    fn rest(&self, before: &TensorPlan, now: &TensorPlan) {
        for (at, source) in before.sources.iter().enumerate() {
            let is_same = |other: &SourcePlan| (other.input, other.file) == (source.input, source.file);
            if !now.sources.get(at).is_some_and(is_same) && !now.sources.iter().any(is_same) {
                self.sources[&(source.input, source.file)].rest();
            }
        }
    }

    /// The windows of `block`, one a source.
    ///
    /// # Errors
    ///
    /// When a source cannot be read or has changed.
    pub fn load(&self, block: &Block) -> Result<Vec<Window>> {
        let tensor = &self.plan.tensors[block.tensor];
        // The source that fills others up comes first.
        let first = tensor.sources.iter().find_map(|source| source.fill);
        let mut windows: Vec<Option<Window>> = tensor.sources.iter().map(|_| None).collect();
        let others = (0..windows.len()).filter(|index| Some(*index) != first);
        for index in first.into_iter().chain(others) {
            let filling = tensor.sources[index].fill.and_then(|fill| windows[fill].as_ref());
            windows[index] = Some(self.window(block, index, filling)?);
        }
        Ok(windows.into_iter().flatten().collect())
    }

    /// The window of one source, which the elements of `filling` fill up where it has none.
    fn window(&self, block: &Block, index: usize, filling: Option<&Window>) -> Result<Window> {
        let tensor = &self.plan.tensors[block.tensor];
        let (plan, source) = (&tensor.sources[index], self.source(&tensor.sources[index]));
        let len = block.len * tensor.source_unit(index);
        match &plan.placement {
            Some(placement) => Window::filled(len, source.path(), |window| {
                if let (Some(filling), Some(fill)) = (filling, plan.fill) {
                    let elements = Elements { dtype: tensor.sources[fill].dtype, bytes: filling };
                    self.kernels.convert(elements, plan.dtype, window);
                }
                self.place(placement, block, index, window)
            }),
            None if plan.view.is_none() => source.load(tensor.bytes_of(index, block.start..block.start + block.len)),
            None => Window::filled(len, source.path(), |window| {
                self.read(block.tensor, index, block.start..block.start + block.len, window)
            }),
        }
    }

    /// Puts the elements of source `index` that belong to `block` into their places in its window.
    fn place(&self, placement: &Placement, block: &Block, index: usize, window: &mut [u8]) -> Result<()> {
        let plan = &self.plan.tensors[block.tensor].sources[index];
        let (held, unit) = (plan.held.bytes(), plan.dtype.bytes());
        let bytes = |range: Range<usize>, unit: usize| range.start * unit..range.end * unit;
        let mut read = Vec::new();
        placement.pieces(block.start, block.len, held, &mut |piece| {
            let stored = piece.stored();
            if let Some(place) = piece.alone().filter(|_| !plan.is_widened()) {
                return self.read(block.tensor, index, stored, &mut window[bytes(place, unit)]);
            }
            read.resize(usize::try_from(stored.end - stored.start).expect("a block fits the memory") * held, 0);
            self.read(block.tensor, index, stored, &mut read)?;
            piece.runs(&mut |from, to| {
                let elements = Elements { dtype: plan.held, bytes: &read[bytes(from, held)] };
                self.kernels.convert(elements, plan.dtype, &mut window[bytes(to, unit)]);
            });
            Ok(())
        })
    }

    /// Fills `into` with `units` of source `index`, which are its own.
    fn read(&self, tensor: usize, index: usize, units: Range<u64>, into: &mut [u8]) -> Result<()> {
        let plan = &self.plan.tensors[tensor];
        let source = self.source(&plan.sources[index]);
        if plan.sources[index].view.is_none() {
            return source.read_into(plan.bytes_of(index, units), into);
        }
        let stored = self.stored(source, plan.sources[index].offset);
        self.gathers.with(plan, tensor, index, |gather| gather.read(stored, units, into))
    }

    fn prefetch(&self, block: &Block) {
        let tensor = &self.plan.tensors[block.tensor];
        for (index, plan) in tensor.sources.iter().enumerate() {
            let (source, units) = (self.source(plan), plan.units(block.start, block.len));
            // What is mostly left out is not worth reading ahead.
            if units.end - units.start > 4 * block.len {
                continue;
            }
            if plan.view.is_none() {
                source.prefetch(tensor.bytes_of(index, units));
            } else if self.gathers.is_for(block.tensor) {
                let stored = self.stored(source, plan.offset);
                self.gathers.with(tensor, block.tensor, index, |gather| gather.prefetch(stored, units));
            }
        }
    }

    fn source(&self, plan: &SourcePlan) -> &dyn Source {
        &*self.sources[&(plan.input, plan.file)]
    }

    fn stored<'b>(&'b self, source: &'b dyn Source, offset: u64) -> Stored<'b> {
        Stored { source, offset, kernels: self.kernels, pool: self.pool }
    }
}

/// Where the elements of the tensor that is being read come from, worked out once for each of its sources.
#[derive(Default)]
pub struct Gathers(RefCell<(usize, HashMap<usize, Gather>)>);

impl Gathers {
    /// Whether this is the tensor that is being read; for another one everything would have to be worked out again.
    fn is_for(&self, tensor: usize) -> bool {
        self.0.borrow().0 == tensor
    }

    fn with<T>(&self, plan: &TensorPlan, tensor: usize, source: usize, work: impl FnOnce(&mut Gather) -> T) -> T {
        let (current, gathers) = &mut *self.0.borrow_mut();
        if *current != tensor {
            gathers.clear();
            *current = tensor;
        }
        let view = plan.sources[source].view.as_ref().expect("only transformed sources are gathered");
        work(gathers.entry(source).or_insert_with(|| view.gather()))
    }
}
