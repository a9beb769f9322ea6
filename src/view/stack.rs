//! A stack of views over a stored tensor.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::{Below, Readable, Reading, View};
use crate::dtype::Dtype;
use crate::error::Result;

/// The place of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a file of an input.
    File {
        /// Index of the input.
        input: usize,
        /// Index of the file among the input's files.
        file: usize,
        /// Byte offset of the first element.
        offset: u64,
        /// Bytes of an element.
        unit: u64,
    },
    /// In the window of another source of the same output tensor, which is loaded first.
    Window {
        /// Index of that source.
        source: usize,
        /// The type that its elements are converted to.
        dtype: Dtype,
    },
}

/// A stored tensor and the views over it, from the lowest to the highest.
#[derive(Debug, Clone)]
pub struct Stack {
    place: Place,
    layers: Vec<Layer>,
}

/// A view, and the places of its sources other than the tensor below.
#[derive(Debug, Clone)]
struct Layer {
    view: Arc<dyn View>,
    places: Vec<Place>,
}

/// The opened views of a stack, from the lowest to the highest.
#[derive(Default)]
pub struct Opened(Vec<Box<dyn Reading>>);

impl Stack {
    /// Makes a stack without views: the stored tensor as it is.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            layers: Vec::new(),
        }
    }

    /// Puts `view` on top. `places` are the places of its sources after the first.
    ///
    /// # Panics
    ///
    /// When `places` does not match the view's number of sources.
    pub fn push(&mut self, view: impl View + 'static, places: Vec<Place>) {
        assert_eq!(
            view.sources(),
            1 + places.len(),
            "a place for every source but the one below"
        );
        self.layers.push(Layer {
            view: Arc::new(view),
            places,
        });
    }

    /// Returns the place of the lowest tensor.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Lists all places: that of the lowest tensor, then those of the views from the lowest to the
    /// highest.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        std::iter::once(self.place).chain(
            self.layers
                .iter()
                .flat_map(|layer| layer.places.iter().copied()),
        )
    }

    /// Returns the source of the same output tensor that must be loaded first, if there is one.
    pub fn window(&self) -> Option<usize> {
        self.places().find_map(|place| match place {
            Place::Window { source, .. } => Some(source),
            Place::File { .. } => None,
        })
    }

    /// True if elements are read as they are stored.
    pub fn is_plain(&self) -> bool {
        self.layers.is_empty()
    }

    /// True if some elements have no source in the lowest tensor.
    pub fn lacks_some(&self) -> bool {
        self.views().any(View::lacks_some)
    }

    /// Returns the peak memory of the opened views, in bytes.
    pub fn bytes(&self) -> u64 {
        self.views().map(View::bytes).sum()
    }

    /// Returns the temporary memory of a single read that does not depend on its length, in bytes.
    pub fn scratch_bytes(&self) -> u64 {
        self.views().map(View::scratch_bytes).sum()
    }

    /// Returns the temporary memory of a single read per element, in bytes, besides the window that
    /// it fills.
    pub fn scratch_unit(&self) -> u64 {
        self.views().map(View::scratch_unit).sum()
    }

    /// Counts the bytes that reading `range` reads from files.
    pub fn read_bytes(&self, range: Range<u64>) -> u64 {
        let (mut range, mut bytes) = (range, 0);
        for layer in self.layers.iter().rev() {
            let own = layer.places.iter().zip(1..);
            bytes += own
                .map(|(place, source)| layer.view.count(source, range.clone()) * place.unit())
                .sum::<u64>();
            range = range.start..range.start + layer.view.count(0, range.clone());
        }
        bytes + (range.end - range.start) * self.place.unit()
    }

    /// Returns the span of elements of the lowest tensor that `range` needs; `None` when only
    /// opened views know.
    pub fn span(&self, range: Range<u64>) -> Option<Range<u64>> {
        self.layers
            .iter()
            .rev()
            .try_fold(range, |range, layer| layer.view.span(range))
    }

    /// Opens the views.
    pub fn open(&self) -> Opened {
        Opened(self.views().map(View::open).collect())
    }

    fn views(&self) -> impl Iterator<Item = &dyn View> {
        self.layers.iter().map(|layer| &*layer.view)
    }
}

impl Place {
    /// Returns the input, and its file, that hold the elements; `None` when they are in memory.
    pub fn file(&self) -> Option<(usize, usize)> {
        match self {
            Self::File { input, file, .. } => Some((*input, *file)),
            Self::Window { .. } => None,
        }
    }

    /// Returns the bytes of an element in its file; 0 when it is in memory.
    fn unit(&self) -> u64 {
        match self {
            Self::File { unit, .. } => *unit,
            Self::Window { .. } => 0,
        }
    }
}

impl Opened {
    /// Fills `into` with elements `range` of the highest view of `stack`. `below` holds the tensors
    /// in all places of the stack.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read.
    pub fn read(
        &mut self,
        stack: &Stack,
        below: Below<'_>,
        range: Range<u64>,
        into: &mut [u8],
    ) -> Result<()> {
        Level::new(&stack.layers, &mut self.0, below).read(range, into)
    }

    /// Announces that elements `range` of the highest view of `stack` will be read soon.
    pub fn prefetch(&mut self, stack: &Stack, below: Below<'_>, range: Range<u64>) {
        Level::new(&stack.layers, &mut self.0, below).prefetch(range);
    }
}

/// The lower part of a stack, whose top view is a tensor that higher views read.
struct Level<'a> {
    layers: &'a [Layer],
    readings: RefCell<&'a mut [Box<dyn Reading>]>,
    /// The tensors in the places of these layers and of the lowest tensor.
    below: Below<'a>,
}

impl<'a> Level<'a> {
    fn new(layers: &'a [Layer], readings: &'a mut [Box<dyn Reading>], below: Below<'a>) -> Self {
        Self {
            layers,
            readings: RefCell::new(readings),
            below,
        }
    }

    /// Calls `act` with the top view and the tensors that it reads from; `None` when there is no
    /// view.
    fn top<T>(&self, act: impl FnOnce(&mut dyn Reading, Below<'_>) -> T) -> Option<T> {
        let (layer, lower) = self.layers.split_last()?;
        let mut readings = self.readings.borrow_mut();
        let (reading, rest) = readings.split_last_mut()?;
        let (tensors, own) = self
            .below
            .tensors
            .split_at(self.below.tensors.len() - layer.places.len());
        let under = Level::new(
            lower,
            rest,
            Below {
                tensors,
                ..self.below
            },
        );
        let tensors: Vec<&dyn Readable> = std::iter::once(&under as &dyn Readable)
            .chain(own.iter().copied())
            .collect();
        Some(act(
            reading.as_mut(),
            Below {
                tensors: &tensors,
                ..self.below
            },
        ))
    }
}

impl Readable for Level<'_> {
    fn read(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        let done = self.top(|reading, below| reading.read(below, range.clone(), into));
        match done {
            Some(done) => done,
            None => self.below.first().read(range, into),
        }
    }

    fn prefetch(&self, range: Range<u64>) {
        if self
            .top(|reading, below| reading.prefetch(below, range.clone()))
            .is_none()
        {
            self.below.first().prefetch(range);
        }
    }
}
