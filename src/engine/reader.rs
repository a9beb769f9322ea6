//! The reading stage: walks the schedule, waits for memory, does the disk's work, hands windows on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::Sender;
use rayon::ThreadPool;

use crate::align::Gather;
use crate::align::view::Stored;
use crate::budget::{Budget, Reservation};
use crate::checkpoint::{Source, Window};
use crate::error::Result;
use crate::kernel::Kernels;
use crate::monitor::Monitor;
use crate::plan::Plan;
use crate::plan::memory::WINDOW_EDGE_BYTES;
use crate::plan::schedule::Block;
use crate::plan::tensor::TensorPlan;

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
            if shown.replace(block.tensor) != Some(block.tensor) {
                self.monitor.tensor(&tensor.name);
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

    /// The windows of `block`, one a source.
    ///
    /// # Errors
    ///
    /// When a source cannot be read or has changed.
    pub fn load(&self, block: &Block) -> Result<Vec<Window>> {
        let tensor = &self.plan.tensors[block.tensor];
        let load = |(index, (source, range)): (usize, (&dyn Source, Range<u64>))| {
            let plan = &tensor.sources[index];
            let unit = tensor.source_unit(index);
            let window = match plan.view.is_some() {
                false => source.load(range)?,
                true => {
                    let (units, stored) = (plan.units(block.start, block.len), self.stored(source, plan.offset));
                    let read = |into: &mut [u8]| {
                        self.gathers
                            .with(tensor, block.tensor, index, |gather| gather.read(stored, units.clone(), into))
                    };
                    Window::filled((units.end - units.start) * unit, source.path(), read)?
                }
            };
            let Some(placement) = plan.placement else { return Ok(window) };
            let size = usize::try_from(unit).expect("an element is a few bytes");
            let place = |wide: &mut [u8]| placement.place(block.start, size, &window, wide);
            let assembled = Window::assembled(block.len * unit, source.path(), place)?;
            window.intact()?;
            Ok(assembled)
        };
        self.ranges(block).enumerate().map(load).collect()
    }

    fn prefetch(&self, block: &Block) {
        let tensor = &self.plan.tensors[block.tensor];
        for (index, (source, range)) in self.ranges(block).enumerate() {
            let plan = &tensor.sources[index];
            if plan.view.is_none() {
                source.prefetch(range);
            } else if self.gathers.is_for(block.tensor) {
                let (units, stored) = (plan.units(block.start, block.len), self.stored(source, plan.offset));
                self.gathers.with(tensor, block.tensor, index, |gather| gather.prefetch(stored, units));
            }
        }
    }

    fn stored<'b>(&'b self, source: &'b dyn Source, offset: u64) -> Stored<'b> {
        Stored { source, offset, kernels: self.kernels, pool: self.pool }
    }

    fn ranges(&self, block: &Block) -> impl Iterator<Item = (&dyn Source, Range<u64>)> {
        let tensor = &self.plan.tensors[block.tensor];
        let (start, len) = (block.start, block.len);
        tensor.sources.iter().enumerate().map(move |(index, source)| {
            (&*self.sources[&(source.input, source.file)], tensor.source_range(index, start, len))
        })
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
