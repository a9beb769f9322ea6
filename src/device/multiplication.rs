//! One product of matrices on a device.

use super::resident::word;
use super::{Address, Argument};

/// Terms of a sum that are added up before they are added to the result; `DEPTH` in `product.h`.
/// Factors may be cut at multiples of it.
pub const DEPTH: usize = 256;
/// Rows and columns of the result that a block of threads computes; `SQUARE` in `product.h`.
pub const SQUARE: usize = 128;

/// A matrix of f32 in the memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factor {
    /// Where its elements begin.
    pub at: Address,
    /// Whether the elements of a column lie behind one another, not those of a row.
    pub transposed: bool,
}

/// The entries `sums`, `stride` from one row to the next, become or grow by `scale` · `left` ·
/// `right`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multiplication {
    /// The left factor, `rows` × `depth`.
    pub left: Factor,
    /// The right factor, `depth` × `columns`.
    pub right: Factor,
    /// The first entry.
    pub sums: Address,
    /// Entries from one row to the next.
    pub stride: usize,
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub columns: usize,
    /// Terms of a sum.
    pub depth: usize,
    /// What the product is multiplied by.
    pub scale: f32,
    /// Whether the entries become the product, whatever they were, instead of growing by it.
    pub fresh: bool,
}

impl Multiplication {
    /// The blocks of threads that `Kernel::Product` takes for it.
    pub(super) fn grid(&self) -> [u32; 2] {
        [self.columns, self.rows].map(|size| word(size.div_ceil(SQUARE)))
    }

    /// The arguments of `Kernel::Product`.
    pub(super) fn arguments(&self) -> [Argument; 10] {
        let turned = u32::from(self.left.transposed) + 2 * u32::from(self.right.transposed);
        [
            Argument::Address(self.left.at),
            Argument::Address(self.right.at),
            Argument::Word(word(self.rows)),
            Argument::Word(word(self.columns)),
            Argument::Word(word(self.depth)),
            Argument::Word(turned),
            Argument::Word(self.scale.to_bits()),
            Argument::Word(u32::from(self.fresh)),
            Argument::Address(self.sums),
            Argument::Word(word(self.stride)),
        ]
    }
}
