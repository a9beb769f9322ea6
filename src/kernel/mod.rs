//! To be filled.
use crate::dtype::Dtype;

/// Elements of one chunk: the unit of every sum. Chunk sums are added in chunk order, so no result depends on how
/// a tensor was cut into blocks.
pub const CHUNK: usize = 1 << 15;

/// A run of elements of one input as they lie in its file: little endian, at any alignment.
#[derive(Debug, Clone, Copy)]
pub struct Elements<'a> {
    /// The type of each element, one of [`Dtype::MERGEABLE`].
    pub dtype: Dtype,
    /// The elements' bytes, a whole number of elements.
    pub bytes: &'a [u8],
}
