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
    /// The address of its first element.
    pub at: Address,
    /// True if the matrix is stored column by column, false if row by row.
    pub transposed: bool,
}

/// Sets the entries `sums`, `stride` from one row to the next, to `scale` · `left` · `right`, or
/// adds that to them.
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
    /// The number that multiplies the product.
    pub scale: f32,
    /// True if the product replaces the entries, false if it is added to them.
    pub fresh: bool,
}

impl Multiplication {
    /// The grid of thread blocks for `Kernel::Product`.
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
