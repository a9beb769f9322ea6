//! Tensors as a merge reads them, made from stored ones; any range of elements can be read at any
//! time.
//!
//! ```text
//!  file ──Stored──► view ──► view ──► window        one [`Stack`] for each source of a plan
//!  file ──Stored───┘          │
//!  window ──InMemory──────────┘
//! ```
//!
//! A [`View`] is plain data: element types, memory, and the mapping of its elements to those below.
//! An opened view is a [`Reading`], with the tables that reading needs. It reads from one or more
//! tensors, each [`Readable`]: the first is the one below it in its stack, the others are its own.
//! A planner pushes views and a reader walks the stack; neither readers nor views know about the
//! other views.
//!
//! - [`Aligned`]: a tensor of a transformed model, with units moved, flipped, turned or mapped.
//! - [`Placed`]: a tensor of another shape, padded or cropped.

mod aligned;
mod cells;
mod mix;
mod moves;
mod placed;
mod placement;
mod stack;

use std::fmt::Debug;
use std::ops::Range;

use rayon::ThreadPool;

use crate::checkpoint::{Source, Window};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernel::{Elements, Kernels};

pub use aligned::{Aligned, Gather};
pub use placed::Placed;
pub use placement::{PIECE_BYTES, Piece, Placement};
pub use stack::{Opened, Place, Stack};

/// The ratio of spanned to wanted elements above which a span counts as sparse.
const SPARSE: u64 = 4;

/// A tensor made from others.
pub trait View: Debug + Send + Sync {
    /// Counts the tensors that the view reads from: the one below it, and further ones of its own.
    fn sources(&self) -> usize {
        1
    }

    /// Returns the type of the view's elements.
    fn dtype(&self) -> Dtype;

    /// Returns the peak memory of an opened view, in bytes.
    fn bytes(&self) -> u64;

    /// Returns the temporary memory of a single read that does not depend on its length, in bytes.
    fn scratch_bytes(&self) -> u64 {
        0
    }

    /// Returns the temporary memory of a single read per element, in bytes, besides the window that
    /// it fills.
    fn scratch_unit(&self) -> u64 {
        0
    }

    /// Counts the elements of source `source` that reading `range` needs.
    fn count(&self, source: usize, range: Range<u64>) -> u64 {
        let _ = source;
        range.end - range.start
    }

    /// Returns the span of elements below that `range` needs; `None` when only an opened view
    /// knows.
    fn span(&self, range: Range<u64>) -> Option<Range<u64>>;

    /// True if some elements have no source below.
    fn lacks_some(&self) -> bool {
        false
    }

    /// Builds the tables that reading needs.
    fn open(&self) -> Box<dyn Reading>;
}

/// An opened view.
pub trait Reading: Send {
    /// Fills `into` with the elements of `range`, of the view's type.
    ///
    /// # Errors
    ///
    /// When a tensor of `below` cannot be read.
    fn read(&mut self, below: Below<'_>, range: Range<u64>, into: &mut [u8]) -> Result<()>;

    /// Announces that `range` will be read soon.
    fn prefetch(&self, below: Below<'_>, range: Range<u64>);
}

/// A tensor whose elements can be read by range.
pub trait Readable {
    /// Fills `into` with the elements of `range`.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn read(&self, range: Range<u64>, into: &mut [u8]) -> Result<()>;

    /// Announces that `range` will be read soon.
    fn prefetch(&self, range: Range<u64>);
}

/// The tensors that a view reads from, with the kernels and threads that process their elements.
#[derive(Clone, Copy)]
pub struct Below<'a> {
    /// The tensors, as many as the view has sources.
    pub tensors: &'a [&'a dyn Readable],
    /// The kernels.
    pub kernels: Kernels,
    /// The threads for matrix products. When `None`, the pool of the reading thread, or that thread
    /// alone.
    pub pool: Option<&'a ThreadPool>,
}

impl<'a> Below<'a> {
    /// Returns the tensor right below.
    fn first(&self) -> &'a dyn Readable {
        self.tensors[0]
    }
}

/// A tensor in a file.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// The file.
    pub source: &'a dyn Source,
    /// Byte offset of the tensor's first element.
    pub offset: u64,
    /// Bytes of an element.
    pub unit: u64,
}

impl Stored<'_> {
    /// Loads the elements of `range` as they are stored.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn load(&self, range: Range<u64>) -> Result<Window> {
        self.source.load(self.bytes(&range))
    }

    fn bytes(&self, range: &Range<u64>) -> Range<u64> {
        self.offset + range.start * self.unit..self.offset + range.end * self.unit
    }
}

impl Readable for Stored<'_> {
    fn read(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        self.source.read_into(self.bytes(&range), into)
    }

    fn prefetch(&self, range: Range<u64>) {
        self.source.prefetch(self.bytes(&range));
    }
}

/// A part of a tensor in memory.
#[derive(Clone, Copy)]
pub struct InMemory<'a> {
    /// The elements.
    pub elements: Elements<'a>,
    /// The index of their first element in the tensor.
    pub start: u64,
    /// The type that they are converted to.
    pub dtype: Dtype,
    /// The kernels that convert them.
    pub kernels: Kernels,
}

impl Readable for InMemory<'_> {
    fn read(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        let Elements { dtype, bytes } = self.elements;
        let bytes = &bytes[index(range.start - self.start) * dtype.bytes()
            ..index(range.end - self.start) * dtype.bytes()];
        self.kernels
            .convert(Elements { dtype, bytes }, self.dtype, into);
        Ok(())
    }

    fn prefetch(&self, _: Range<u64>) {}
}

/// True if `span` has so many more elements than `range` that reading it ahead does not pay.
pub fn is_sparse(span: &Range<u64>, range: &Range<u64>) -> bool {
    span.end - span.start > SPARSE * (range.end - range.start)
}

/// Converts an offset into memory to an index.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("what is in memory fits")
}
