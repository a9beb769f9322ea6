//! Sixteen f64 lanes, and the working memory made of them.

use bytemuck::{Pod, Zeroable};

use super::pairs::pair_count;

/// Lanes of every sum; element `k` of a chunk goes to lane `k mod LANES`.
pub(super) const LANES: usize = 16;

/// Elements that are widened to f64 at a time, so that they are still in the first-level cache when
/// they are used.
pub(super) const TILE: usize = 512;

/// Rows from one input's tile to the next. The one spare row keeps the tiles from lying a multiple
/// of 4 KiB apart, where they would all compete for the same few cache sets.
pub(super) const TILE_STRIDE: usize = TILE / LANES + 1;

/// Rows for a sum of differences: one tile each for the sums, the centre's elements and a term's
/// elements.
pub(super) const DIFFERENCE_ROWS: usize = 3 * TILE / LANES;

/// One f64 for each lane.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Lanes(pub(super) [f64; LANES]);

// SAFETY: all zero bits are sixteen zeros.
unsafe impl Zeroable for Lanes {}
// SAFETY: sixteen f64 without padding, as 128 is a multiple of the alignment; every bit pattern is
// valid.
unsafe impl Pod for Lanes {}

impl Lanes {
    pub(super) const ZERO: Self = Self([0.0; LANES]);

    /// Adds the lanes up in the order used everywhere: the upper half onto the lower, four times.
    pub(super) fn sum(&self) -> f64 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        lanes[0]
    }
}

/// The elements of `rows` one after another.
pub(super) fn flat(rows: &mut [Lanes]) -> &mut [f64] {
    bytemuck::cast_slice_mut(rows)
}

/// A thread's working memory: grown when first needed, then reused.
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Vec<Lanes>,
}

impl Scratch {
    /// Upper bound on the bytes of a scratch used by kernels on up to `inputs` inputs.
    pub fn bytes(inputs: usize) -> usize {
        Self::wide_rows(inputs.max(1)).max(DIFFERENCE_ROWS) * size_of::<Lanes>()
    }

    /// The bytes that this scratch holds now.
    pub fn held_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Lanes>()
    }

    /// Rows for the Gram sums of `inputs` inputs: a tile for each input and the accumulators of
    /// each pair.
    pub(super) fn gram_rows(inputs: usize) -> usize {
        inputs * TILE_STRIDE + pair_count(inputs)
    }

    /// Rows for Gram sums to twice the digits.
    pub(super) fn wide_rows(inputs: usize) -> usize {
        inputs * TILE_STRIDE + 2 * pair_count(inputs)
    }

    /// The first `count` rows, their contents left from the last use.
    pub(super) fn rows(&mut self, count: usize) -> &mut [Lanes] {
        if self.rows.len() < count {
            // The old rows go first: their contents are not needed, and the two together would
            // exceed the bound.
            self.rows = Vec::new();
            self.rows = vec![Lanes::ZERO; count];
        }
        &mut self.rows[..count]
    }
}
