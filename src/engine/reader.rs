//! The reading stage: walks the schedule, waits for memory, reads from disk, passes windows on.

use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use rayon::ThreadPool;

use crate::budget::{Budget, Reservation};
use crate::checkpoint::{Source, Window};
use crate::error::Result;
use crate::kernel::{Elements, Kernels};
use crate::monitor::Monitor;
use crate::plan::Plan;
use crate::plan::memory::WINDOW_EDGE_BYTES;
use crate::plan::schedule::{Block, Role};
use crate::plan::tensor::TensorPlan;
use crate::view::{Below, InMemory, Opened, Place, Readable, Stack, Stored, is_sparse};

use super::stop::Stop;

/// A block whose bytes are in memory, and the memory reserved for them.
pub struct Loaded {
    /// The part of a tensor that was read.
    pub block: Block,
    /// One window for each source.
    pub windows: Vec<Window>,
    /// The share of the budget that the windows hold.
    pub _reservation: Reservation,
}

impl Loaded {
    /// Checks, after the windows were used and before the result is, that the inputs were intact.
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

/// The reading stage.
pub struct Reader<'a> {
    /// The plan whose inputs are read.
    pub plan: &'a Plan,
    /// The opened input files.
    pub sources: &'a Sources,
    /// The kernels of views.
    pub kernels: Kernels,
    /// The opened views.
    pub opened: OpenedStacks,
    /// The threads of views that multiply.
    pub pool: Option<&'a ThreadPool>,
    /// The budget for windows.
    pub budget: &'a Arc<Budget>,
    /// The observer of progress.
    pub monitor: &'a dyn Monitor,
    /// The flag that ends the run early.
    pub stop: &'a Stop,
    /// For each further sweep over a group, in their order: true if it is made. The stage that
    /// measures says so once the sweep before has ended.
    pub sweeps: Option<Receiver<bool>>,
}

/// The further sweep that the reader is in, and whether it is made.
#[derive(Default)]
struct Further(Option<(usize, bool)>);

impl Further {
    /// Tells if `block` is read; `None` if nobody is there any more to say so.
    fn reads(&mut self, block: &Block, sweeps: Option<&Receiver<bool>>) -> Option<bool> {
        let sweep = match block.role {
            Role::Measure { sweep, .. } if sweep > 0 => sweep,
            _ => {
                self.0 = None;
                return Some(true);
            }
        };
        match self.0 {
            Some((current, made)) if current == sweep => Some(made),
            _ => {
                let made = sweeps?.recv().ok()?;
                self.0 = Some((sweep, made));
                Some(made)
            }
        }
    }
}

impl Reader<'_> {
    /// Reads `blocks` in order until they end, a stop is asked for, or the next stage is gone.
    ///
    /// # Errors
    ///
    /// Fails if a source cannot be read or has changed.
    pub fn run(&self, blocks: impl Iterator<Item = Block>, next: &Sender<Loaded>) -> Result<()> {
        let mut blocks = blocks.peekable();
        let mut shown = None;
        let mut further = Further::default();
        while let Some(block) = blocks.next() {
            match further.reads(&block, self.sweeps.as_ref()) {
                Some(true) => {}
                Some(false) => continue,
                None => return Ok(()),
            }
            let tensor = &self.plan.tensors[block.tensor];
            let before = shown.replace(block.tensor);
            if before != Some(block.tensor) {
                self.monitor.tensor(&tensor.name);
                before
                    .into_iter()
                    .for_each(|before| self.rest(&self.plan.tensors[before], tensor));
            }
            let cost =
                block.len * tensor.window_units() + tensor.sources.len() as u64 * WINDOW_EDGE_BYTES;
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
            self.monitor
                .advance(tensor.read_bytes(block.start, block.len));
            self.monitor.memory(self.budget.used());
            if next
                .send(Loaded {
                    block,
                    windows,
                    _reservation: reservation,
                })
                .is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Releases the files that tensor `before` was read from and `now` is not.
    fn rest(&self, before: &TensorPlan, now: &TensorPlan) {
        let [before, now] = [before, now].map(TensorPlan::files);
        for (at, file) in before.iter().enumerate() {
            if now.get(at) != Some(file) && !now.contains(file) {
                self.sources[file].rest();
            }
        }
    }

    /// Reads the windows of `block`, one for each source.
    ///
    /// # Errors
    ///
    /// Fails if a source cannot be read or has changed.
    pub fn load(&self, block: &Block) -> Result<Vec<Window>> {
        let tensor = &self.plan.tensors[block.tensor];
        // The source whose window other windows are made of comes first.
        let first = tensor
            .sources
            .iter()
            .find_map(|source| source.stack.window());
        let mut windows: Vec<Option<Window>> = tensor.sources.iter().map(|_| None).collect();
        let others = (0..windows.len()).filter(|index| Some(*index) != first);
        for index in first.into_iter().chain(others) {
            windows[index] = Some(self.window(block, index, &windows)?);
        }
        Ok(windows.into_iter().flatten().collect())
    }

    /// Reads the window of source `index`, or makes it of `windows` that are loaded already.
    fn window(&self, block: &Block, index: usize, windows: &[Option<Window>]) -> Result<Window> {
        let tensor = &self.plan.tensors[block.tensor];
        let stack = &tensor.sources[index].stack;
        let range = block.start..block.start + block.len;
        let lowest = self.stored(stack.place());
        if let Some(stored) = lowest.filter(|_| stack.is_plain()) {
            return stored.load(range);
        }
        let path = lowest.map_or(Path::new(&*tensor.name), |stored| stored.source.path());
        let tensors = self.tensors(block, index, windows);
        let tensors: Vec<&dyn Readable> = tensors.iter().map(|tensor| &**tensor).collect();
        Window::filled(block.len * tensor.source_unit(index), path, |window| {
            let mut opened = self.opened.of(block.tensor, index, stack);
            opened.read(stack, self.below(&tensors), range, window)
        })
    }

    /// Announces the bytes that `block` will read, so that the system can read ahead.
    fn prefetch(&self, block: &Block) {
        let range = block.start..block.start + block.len;
        for (index, source) in self.plan.tensors[block.tensor].sources.iter().enumerate() {
            let stack = &source.stack;
            match stack.span(range.clone()) {
                Some(span) if is_sparse(&span, &range) => {}
                Some(span) => {
                    if let Some(stored) = self.stored(stack.place()) {
                        stored.prefetch(span);
                    }
                }
                // Views are not opened for a block that comes after this tensor.
                None if self.opened.is_for(block.tensor) => {
                    let tensors = self.tensors(block, index, &[]);
                    let tensors: Vec<&dyn Readable> =
                        tensors.iter().map(|tensor| &**tensor).collect();
                    let mut opened = self.opened.of(block.tensor, index, stack);
                    opened.prefetch(stack, self.below(&tensors), range.clone());
                }
                None => {}
            }
        }
    }

    /// Returns the tensors in all places of the stack of source `index`. A window that is not
    /// loaded yet cannot be read from.
    fn tensors<'b>(
        &'b self,
        block: &Block,
        index: usize,
        windows: &'b [Option<Window>],
    ) -> Vec<Box<dyn Readable + 'b>> {
        let sources = &self.plan.tensors[block.tensor].sources;
        let tensor = |place: Place| -> Box<dyn Readable + 'b> {
            match place {
                Place::File {
                    input,
                    file,
                    offset,
                    unit,
                } => Box::new(Stored {
                    source: &*self.sources[&(input, file)],
                    offset,
                    unit,
                }),
                Place::Window { source, dtype } => {
                    let window = windows.get(source).and_then(Option::as_ref);
                    let bytes = window.map_or(&[][..], |window| window);
                    let elements = Elements {
                        dtype: sources[source].dtype,
                        bytes,
                    };
                    Box::new(InMemory {
                        elements,
                        start: block.start,
                        dtype,
                        kernels: self.kernels,
                    })
                }
            }
        };
        sources[index].stack.places().map(tensor).collect()
    }

    fn stored(&self, place: Place) -> Option<Stored<'_>> {
        match place {
            Place::File {
                input,
                file,
                offset,
                unit,
            } => Some(Stored {
                source: &*self.sources[&(input, file)],
                offset,
                unit,
            }),
            Place::Window { .. } => None,
        }
    }

    fn below<'b>(&self, tensors: &'b [&'b dyn Readable]) -> Below<'b>
    where
        Self: 'b,
    {
        Below {
            tensors,
            kernels: self.kernels,
            pool: self.pool,
        }
    }
}

/// The opened views of the tensor that is being read, by its sources.
#[derive(Default)]
pub struct OpenedStacks(RefCell<OpenedTensor>);

#[derive(Default)]
struct OpenedTensor {
    tensor: usize,
    stacks: HashMap<usize, Opened>,
}

impl OpenedStacks {
    /// Tells if `tensor` is the one being read; for another one the views would have to be opened
    /// again.
    fn is_for(&self, tensor: usize) -> bool {
        self.0.borrow().tensor == tensor
    }

    /// The opened views of a source.
    fn of(&self, tensor: usize, source: usize, stack: &Stack) -> RefMut<'_, Opened> {
        RefMut::map(self.0.borrow_mut(), |opened| {
            if opened.tensor != tensor {
                *opened = OpenedTensor {
                    tensor,
                    stacks: HashMap::new(),
                };
            }
            opened.stacks.entry(source).or_insert_with(|| stack.open())
        })
    }
}
