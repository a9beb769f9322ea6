//! Tensors as a merge reads them, made of stored ones: any range of their elements at any time.
//!
//! ```text
//!  file ──Stored──► view ──► view ──► window        one [`Stack`] for each source of a plan
//!  file ──Stored───┘          │
//!  window ──InMemory──────────┘
//! ```
//!
//! A [`View`] is plain data: element types, memory, and which elements below belong to which above.
//! Opened, it is a [`Reading`], with everything worked out that reading takes. It reads from one
//! tensor or several, each [`Readable`]: the first is what lies below it in its stack, the others
//! are its own. Whoever plans pushes views, whoever reads walks the stack; neither readers nor
//! views know which views there are besides.
//!
//! - [`Aligned`]: the model is transformed; units are moved, flipped, turned, mapped.
//! - [`Placed`]: a tensor of another shape is padded or cropped.

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

/// Times as many elements as are wanted, beyond which most of a span is left out.
const SPARSE: u64 = 4;

/// A tensor made of others.
pub trait View: Debug + Send + Sync {
    /// Number of tensors that the view reads from: the one below it, and further ones of its own.
    fn sources(&self) -> usize {
        1
    }

    /// Type of the elements that the view gives.
    fn dtype(&self) -> Dtype;

    /// Bytes that an opened view holds at its peak.
    fn bytes(&self) -> u64;

    /// Bytes that a single read takes and gives back, besides those for each element.
    fn scratch_bytes(&self) -> u64 {
        0
    }

    /// Bytes that a single read takes for each element and gives back, besides the window that it
    /// fills.
    fn scratch_unit(&self) -> u64 {
        0
    }

    /// Number of elements of source `source` that reading `range` takes.
    fn count(&self, source: usize, range: Range<u64>) -> u64 {
        let _ = source;
        range.end - range.start
    }

    /// From the first to the last element below that belongs to `range`; `None` when only an opened
    /// view knows.
    fn span(&self, range: Range<u64>) -> Option<Range<u64>>;

    /// Returns true when some elements are made of nothing below.
    fn lacks_some(&self) -> bool {
        false
    }

    /// Works out what reading takes.
    fn open(&self) -> Box<dyn Reading>;
}

/// An opened view.
pub trait Reading: Send {
    /// Fills `into` with the elements of `range`, of the type that the view gives.
    ///
    /// # Errors
    ///
    /// When a tensor of `below` cannot be read.
    fn read(&mut self, below: Below<'_>, range: Range<u64>, into: &mut [u8]) -> Result<()>;

    /// Says that `range` will be read soon.
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

    /// Says that `range` will be read soon.
    fn prefetch(&self, range: Range<u64>);
}

/// The tensors from which a view reads, and what works on their elements.
#[derive(Clone, Copy)]
pub struct Below<'a> {
    /// The tensors, as many as the view has sources.
    pub tensors: &'a [&'a dyn Readable],
    /// The kernels.
    pub kernels: Kernels,
    /// The threads that multiply; those of the pool that the reading thread is of, or itself alone,
    /// when `None`.
    pub pool: Option<&'a ThreadPool>,
}

impl<'a> Below<'a> {
    /// The tensor right below.
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
    /// The elements of `range` as they lie in the file.
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
    /// The place of the first of them in the tensor.
    pub start: u64,
    /// The type in which they are given.
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

/// Returns true when elements `span` hold so many more than those of `range` that reading them
/// ahead is not worth it.
pub fn is_sparse(span: &Range<u64>, range: &Range<u64>) -> bool {
    span.end - span.start > SPARSE * (range.end - range.start)
}

/// An offset into memory that holds it.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("what is in memory fits")
}
