//! The reading stage: walks the schedule, waits for memory, does the disk's work, hands windows on.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::Sender;

use crate::budget::{Budget, Reservation};
use crate::checkpoint::{Source, Window};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::plan::Plan;
use crate::plan::memory::WINDOW_EDGE_BYTES;
use crate::plan::schedule::Block;

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

/// The opened files of all inputs, by input and file.
pub type Sources = HashMap<(usize, usize), Arc<dyn Source>>;

/// What the reading stage works with.
pub struct Reader<'a> {
    /// What is read.
    pub plan: &'a Plan,
    /// Where from.
    pub sources: &'a Sources,
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

    fn load(&self, block: &Block) -> Result<Vec<Window>> {
        let tensor = &self.plan.tensors[block.tensor];
        let load = |(index, (source, range)): (usize, (&dyn Source, Range<u64>))| {
            let window = source.load(range)?;
            let Some(placement) = tensor.sources[index].placement else { return Ok(window) };
            let unit = tensor.source_unit(index);
            let size = usize::try_from(unit).expect("an element is a few bytes");
            let place = |wide: &mut [u8]| placement.place(block.start, size, &window, wide);
            Window::assembled(block.len * unit, source.path(), place)
        };
        self.ranges(block).enumerate().map(load).collect()
    }

    fn prefetch(&self, block: &Block) {
        for (source, range) in self.ranges(block) {
            source.prefetch(range);
        }
    }

    fn ranges(&self, block: &Block) -> impl Iterator<Item = (&dyn Source, Range<u64>)> {
        let tensor = &self.plan.tensors[block.tensor];
        let (start, len) = (block.start, block.len);
        tensor.sources.iter().enumerate().map(move |(index, source)| {
            (&*self.sources[&(source.input, source.file)], tensor.source_range(index, start, len))
        })
    }
}
